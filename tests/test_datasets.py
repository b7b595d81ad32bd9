"""Labels in every form, how they find their images, and images that are one: on real files of each form."""

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageEnhance

from gbad_batch.engine.datasets import FORMS, Box, Labels, find_images, join, read_labels
from gbad_batch.engine.datasets.check import runs
from gbad_batch.engine.datasets.convert import convert
from gbad_batch.engine.datasets.duplicates import (
    COARSE_BITS,
    FINE_BITS,
    Prints,
    duplicate_groups,
    fingerprints,
    groups_of,
    look_alikes,
)
from gbad_batch.engine.errors import Refused
from gbad_batch.engine.row import THREATS
from gbad_batch.engine.sources.uris import uri_of
from gbad_batch.engine.synth import SynthSettings, write_archive

HEADER = "name,Gun,Knife,Wrench,Pliers,Scissors"
TABLE = "path,gun,knife,wrench,pliers,scissors"
VOC = """<annotation><filename>{name}</filename><size><width>90</width></size>
<object><name>{threat}</name><pose>Unspecified</pose>
<bndbox><xmin>{box[0]}</xmin><ymin>{box[1]}</ymin><xmax>{box[2]}</xmax><ymax>{box[3]}</ymax></bndbox>
</object></annotation>
"""


def held(labels: Labels) -> dict[str, str]:
    """Name the threats of each image, as 'gun knife'."""
    rows = labels.labels.tolist()
    return {
        name: " ".join(t for t, there in zip(THREATS, row, strict=True) if there)
        for name, row in zip(labels.names, rows, strict=True)
    }


def write(path: Path, text: str | bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


def touch_images(folder: Path, *names: str) -> list[str]:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(folder / name)
    return [str(path) for path in find_images(folder)]


# --- the forms ---


def test_sixrays_list(tmp_path: Path) -> None:
    lines = [HEADER, "P00001,1,-1,-1,1,-1", "", "N2.jpg,-1,-1,-1,-1,-1", "n3,0,-1,1,-1,-1"]
    labels = read_labels(write(tmp_path / "list.csv", "\ufeff" + "\r\n".join(lines)))
    assert held(labels) == {"P00001": "gun pliers", "N2.jpg": "", "n3": "wrench"}
    assert labels.origins[1] == f"{tmp_path / 'list.csv'}, line 4"
    assert labels.positive.tolist() == [True, False, True]


def test_a_table_with_splits_and_groups(tmp_path: Path) -> None:
    lines = ["group,Path,scissors,pliers,wrench,knife,gun,split", "7,a/b.png,1,0,true,FALSE,-1,train"]
    labels = read_labels(write(tmp_path / "t.csv", "\n".join([*lines, ",c,0,0,0,0,0,"])))
    assert held(labels) == {"a/b.png": "wrench scissors", "c": ""}
    assert (labels.groups, labels.splits) == (("7", ""), ("train", ""))


@pytest.mark.parametrize("kind", [pa.int8(), pa.bool_(), pa.string()])
def test_a_table_in_parquet(tmp_path: Path, kind: Any) -> None:
    columns = {name: pa.array([0, 1]).cast(kind) for name in THREATS}
    table = pa.table({"name": ["a", "b"], **columns, "note": [None, [1, 2]], "split": [None, "test"]})
    pq.write_table(table, tmp_path / "labels.parquet")
    labels = read_labels(tmp_path / "labels.parquet")
    assert held(labels) == {"a": "", "b": " ".join(THREATS)}
    assert labels.splits == ("", "test")
    assert labels.origins[1].endswith("labels.parquet, row 2")


def test_pascal_voc(tmp_path: Path) -> None:
    write(tmp_path / "a" / "P1.xml", VOC.format(name="P1.jpg", threat="Gun", box=(1, 2.5, 31, 42)))
    write(tmp_path / "P2.xml", "<annotation><folder>x</folder></annotation>")
    write(tmp_path / "P3.xml", VOC.format(name="P3.jpg", threat="Hammer", box=(1, 2, 3, 4)))
    touch_images(tmp_path, "P1.jpg")
    labels = read_labels(tmp_path)
    assert held(labels) == {"P2": "", "P3.jpg": "", "P1.jpg": "gun"}
    assert labels.boxes == ((), (), (Box("gun", 1, 2.5, 30, 39.5),))


def test_boxes_in_text(tmp_path: Path) -> None:
    lines = "1.jpg Folding_Knife 10 20 30 50\r\n1.jpg Scissor 1 1 2 2\r\n"
    write(tmp_path / "1.txt", lines)
    write(tmp_path / "2.txt", "2.jpg  Utility_Knife\t1 1 5 9")
    write(tmp_path / "3.txt", "")
    labels = read_labels(tmp_path)
    assert held(labels) == {"1.jpg": "knife scissors", "2.jpg": "knife", "3": ""}
    assert labels.boxes[0][0] == Box("knife", 10, 20, 20, 30)


def annotation(**changes: Any) -> str:
    return coco(annotations=[{"image_id": 4, "category_id": 1, "bbox": [1, 2, 3, 4]} | changes])


def coco(**changes: Any) -> str:
    content = {
        "images": [{"id": 4, "file_name": "x/a.png"}, {"id": 5, "file_name": "b.png", "split": "test"}],
        "annotations": [{"image_id": 4, "category_id": 1, "bbox": [1, 2, 3, 4]}],
        "categories": [{"id": 1, "name": "Knife"}, {"id": 2, "name": "Gun"}],
    }
    return json.dumps(content | changes, indent=1)


def test_coco(tmp_path: Path) -> None:
    labels = read_labels(write(tmp_path / "a.json", coco()))
    assert held(labels) == {"x/a.png": "knife", "b.png": ""}
    assert labels.boxes == ((Box("knife", 1, 2, 3, 4),), ())
    assert labels.splits == ("", "test")


def test_folders_named_by_class(tmp_path: Path) -> None:
    paths = touch_images(tmp_path, "Gun/a.png", "benign/a.png", "deep/Gun/a.png", ".hidden/d.png")
    labels = read_labels(tmp_path)
    assert held(labels) == {"Gun/a.png": "gun", "benign/a.png": "", "deep/Gun/a.png": "gun"}
    assert join(labels, paths).tolist() == [0, 1, 2]


def test_both_lists_of_a_synthetic_archive_agree(tmp_path: Path) -> None:
    write_archive(tmp_path / "bags", SynthSettings(count=4, seed=3, positive=0.5))
    by_list, by_boxes = read_labels(tmp_path / "bags"), read_labels(tmp_path / "bags" / "boxes.json")
    assert by_list.positive.sum() == 2
    np.testing.assert_array_equal(by_list.labels, by_boxes.labels)
    paths = [str(path) for path in find_images(tmp_path / "bags")]
    assert join(by_list, paths).tolist() == join(by_boxes, paths).tolist()
    assert all(boxes for boxes, there in zip(by_boxes.boxes, by_list.positive, strict=True) if there)


def test_an_ambiguous_format_is_refused_with_those_that_it_could_be(tmp_path: Path) -> None:
    write(tmp_path / "both" / "a.xml", "<annotation/>")
    write(tmp_path / "both" / "a.txt", "")
    with pytest.raises(Refused, match=r"cannot be detected .*--form voc or boxes"):
        read_labels(tmp_path / "both")
    assert held(read_labels(tmp_path / "both", form="boxes")) == {"a": ""}
    with pytest.raises(Refused, match="cannot be detected; say --form sixray or table or voc"):
        read_labels(write(tmp_path / "labels.dat", HEADER))
    with pytest.raises(Refused, match="does not exist"):
        read_labels(tmp_path / "absent")


def test_a_table_may_leave_open_what_it_does_not_know(tmp_path: Path) -> None:
    text = "name,gun,knife,wrench,pliers\na,1,0,,0\nb,0, ,0,-1\n"
    labels = read_labels(write(tmp_path / "a.csv", text))
    assert held(labels) == {"a": "gun", "b": ""}
    assert labels.known.tolist() == [[True, True, False, True, False], [True, False, True, True, False]]
    assert labels.unknown == {"knife": 1, "wrench": 1, "scissors": 2}
    assert labels.take([1]).unknown == {"knife": 1, "scissors": 1}
    rows = {"path": ["a", "b"], "gun": [True, None], "knife": [None, False]}
    pq.write_table(pa.table(rows), tmp_path / "a.parquet")
    assert read_labels(tmp_path / "a.parquet").unknown == {
        "gun": 1,
        "knife": 1,
        "wrench": 2,
        "pliers": 2,
        "scissors": 2,
    }
    with pytest.raises(Refused, match=r"holds knife and wrench and scissors, and .*: fill the blanks first"):
        convert(tmp_path / "a.csv", tmp_path / "b.json")


# --- classes of other names ---


def test_a_class_map_says_what_other_classes_are(tmp_path: Path) -> None:
    lines = "a Dagger 1 1 2 2\na Baton 1 1 2 2\nb Gun 1 1 2 2\n"
    write(tmp_path / "l.txt", lines)
    classes = write(tmp_path / "map.toml", '[classes]\nDagger = "knife"\nBaton = "ignore"\nGun = "ignore"\n')
    assert held(read_labels(tmp_path / "l.txt", class_map=classes)) == {"a": "knife", "b": ""}


def test_unknown_classes_are_named_at_once_with_the_way_out(tmp_path: Path) -> None:
    write(tmp_path / "l.txt", "a Gun 1 1 2 2\na Dagger 1 1 2 2\nb Power_Bank 1 1 2 2\nc Dagger 1 1 2 2\n")
    with pytest.raises(Refused) as error:
        read_labels(tmp_path / "l.txt")
    said = str(error.value)
    assert said.startswith(
        f"{tmp_path / 'l.txt'}, line 2: the class 'Dagger' is unknown, as are 'Power_Bank';"
    )
    assert '--class-map that maps it, below [classes]: "Dagger" = "knife"' in said


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("classes = 3", "must hold exactly one table"),
        ("[classes]\na = 'gun'\n[other]\n", "must hold exactly one table"),
        ("[classes]\na = 'sword'", "maps 'a' to 'sword'; write one of gun"),
        ("[classes]\na = ['gun']", "maps 'a' to"),
        ("[classes", "is not a TOML file"),
    ],
)
def test_a_class_map_that_is_none_is_refused(tmp_path: Path, text: str, sentence: str) -> None:
    write(tmp_path / "list.csv", HEADER + "\na,1,1,1,1,1")
    with pytest.raises(Refused, match=sentence):
        read_labels(tmp_path / "list.csv", class_map=write(tmp_path / "map.toml", text))


# --- label files that are malformed: one sentence, with file and line, before any image is looked for ---

BOMB = """<?xml version="1.0"?>
<!DOCTYPE lolz [<!ENTITY lol "lol"><!ENTITY lol2 "&lol;&lol;&lol;&lol;&lol;&lol;&lol;&lol;&lol;&lol;">]>
<annotation><filename>&lol2;</filename></annotation>"""
MALFORMED: list[tuple[str, str | bytes, str]] = [
    ("a.csv", "", "line 1: a table of labels needs the column path (or name) and one of gun"),
    ("a.csv", f"{HEADER}\n", "names no image"),
    ("a.csv", "name,Dagger\na,1", "line 1: a table of labels needs the column one of gun, knife, wrench"),
    ("a.csv", "file,gun,knife,wrench,pliers,scissors\na,1,1,1,1,1", "the column path (or name): add it"),
    ("a.csv", f"{TABLE},gun\na,1,1,1,1,1,1", "line 1: the column gun occurs twice"),
    ("a.csv", f"{HEADER}\na,1,-1,-1,-1,-1\nb,1,1,1,1,1,-1", "line 3: a name and five labels are expected"),
    ("a.csv", f"{HEADER}\na,1,-1,-1,-1", "line 2: a name and five labels are expected, not 5"),
    ("a.csv", f"{TABLE}\na,1,0", "line 2: 6 values are expected, not 3"),
    ("a.csv", f"{HEADER}\na,1,-1,x,-1,-1", "line 2: the label 'x' of wrench is none of 1, -1, 0"),
    ("a.csv", f"{HEADER}\na,1,-1,-1,-1,2", "line 2: the label '2' of scissors is none of"),
    ("a.csv", f"{TABLE}\na,?,0,0,0,0", "line 2: the label '?' of gun is none of 1, -1, 0, true, false"),
    ("a.csv", f"{HEADER}\na,,-1,-1,-1,-1", "line 2: the label '' of gun is none of 1, -1, 0"),
    ("a.csv", f"{TABLE},split\na,0,0,0,0,0,dev", "line 2: the split 'dev' is unknown; write train"),
    ("a.csv", f"{HEADER}\n ,1,-1,-1,-1,1", "line 2: the image has no name"),
    ("a.csv", f"{HEADER}\na,1,1,1,1,1\nb,1,1,1,1,1\na,1,1,1,1,1", "line 4: 'a' is listed twice"),
    ("a.csv", f'{HEADER}\n"a"b,1,1,1,1,1', "line 2: this is not CSV"),
    ("a.csv", f"{HEADER}\na,1,-1,-1,-1,-1\nb\xe9,1".encode("latin-1"), "line 3: this is not UTF-8"),
    ("a.csv", f"{HEADER}\na,1,-1,-1,-1,-1\nb\0,1", "line 3: a NUL byte is not text"),
    ("a.parquet", b"PAR1 no more", "is not a Parquet file"),
    ("a.txt", "a.jpg Gun 1 1 9 9\na.jpg Gun 1 1 9", "line 2: file name, class, x min, y min, x max and"),
    ("a.txt", "a.jpg Gun 9 1 5 9", "line 1: the box 9 1 5 9 has no area"),
    ("a.txt", "a.jpg Gun 1 1 nan 9", "line 1: the box 1 1 nan 9 has no area"),
    ("a.txt", "a.jpg Gun 1 one 5 9", "line 1: '1 one 5 9' are not four numbers"),
    ("a.txt", "a.jpg Sword 1 1 5 9", "line 1: the class 'Sword' is unknown"),
    ("a.xml", "", "line 1: this is not XML: no element found"),
    ("a.xml", "<annotation>\n<object>\n</annotation>", "line 3: this is not XML: mismatched tag"),
    ("a.xml", "<html></html>", "line 1: the root is not <annotation>"),
    ("a.xml", "<annotation>\n<object><name>gun</name></object></annotation>", "line 2: the object has no"),
    ("a.xml", VOC.format(name="a", threat="Sword", box=(1, 1, 2, 2)), "line 2: the class 'Sword' is unknown"),
    ("a.xml", VOC.format(name="a", threat="Gun", box=(5, 1, 2, 2)), "line 3: the box 5 1 2 2 has no area"),
    ("a.xml", BOMB, "line 2: a document type is not allowed"),
    ("a.xml", BOMB.encode("utf-16"), "line 2: a document type is not allowed"),
    ("a.xml", "<annotation>" + " " * 4_000_000, "more than 4,000,000 bytes"),
    ("a.json", "", "line 1: this is not JSON"),
    ("a.json", '{"images": [\n{"id": 1,]}', "line 2: this is not JSON"),
    ("a.json", "[" * 100_000, "nested too deep"),
    ("a.json", "[]", "its list of images is missing"),
    ("a.json", coco(annotations=None), "its list of annotations is missing"),
    ("a.json", coco(images=[3]), "images 1: an object is expected"),
    ("a.json", coco(images=[{"id": "4"}]), 'images 1: id must be a whole number, not "4"'),
    ("a.json", coco(images=[{"id": 4}, {"id": 4}]), "images 2: another image has the id 4"),
    ("a.json", coco(images=[{"id": 4, "file_name": None}]), "images 1: file_name must be a text, not null"),
    ("a.json", annotation(image_id=9), "annotations 1: there is no image of the id 9"),
    ("a.json", annotation(category_id=7), "there is no category of the id 7"),
    ("a.json", annotation(bbox=[1, 2, 0, 4]), "bbox must be x, y, width and height"),
    ("a.json", annotation(bbox=[1, 2, 10**400, 3]), "bbox must be x, y, width and height"),
    ("a.json", '{"images": ' + "9" * 5000 + "}", "a number too long"),
    ("a.json", annotation(bbox=[1, 2, 3]), "bbox must be x, y, width and height"),
    ("a.json", coco(categories=[{"id": 1, "name": "Sword"}]), "categories 1: the class 'Sword' is unknown"),
]  # fmt: skip


@pytest.mark.parametrize(("name", "content", "sentence"), MALFORMED)
def test_a_malformed_label_file_gets_its_sentence(
    tmp_path: Path, name: str, content: str | bytes, sentence: str
) -> None:
    path = write(tmp_path / name, content)
    with pytest.raises(Refused) as error:
        read_labels(path)
    said = str(error.value)
    assert said.startswith(str(path))
    assert sentence in said
    assert "\n" not in said


def test_sixrays_form_takes_no_other_header(tmp_path: Path) -> None:
    path = write(tmp_path / "a.csv", "name,Knife,Gun,Wrench,Pliers,Scissors\na,1,1,1,1,1")
    with pytest.raises(Refused, match="line 1: name,Gun,Knife,Wrench,Pliers,Scissors must be"):
        read_labels(path, form="sixray")


@given(st.sampled_from(FORMS[:5]), st.binary(max_size=300))
@settings(max_examples=200, deadline=None)
def test_no_bytes_raise_anything_else(
    tmp_path_factory: pytest.TempPathFactory, form: str, content: bytes
) -> None:
    path = write(tmp_path_factory.getbasetemp() / "any", content)
    with suppress(Refused):
        read_labels(path, form)


# --- which image a label speaks of ---


def named(*names: str) -> Labels:
    n = len(names)
    places = tuple(f"labels.csv, line {k + 2}" for k in range(n))
    return Labels(
        names, np.zeros((n, 5), bool), places, ("",) * n, ("",) * n, ((),) * n, np.ones((n, 5), bool)
    )


@pytest.mark.parametrize(
    ("name", "uris", "position"),
    [
        ("a", ["/x/b.jpg", "/x/a.jpg"], 1),
        ("a.jpg", ["/x/a.jpg"], 0),
        ("a.jpg", ["/x/a.png"], 0),
        ("a.jpg", ["/x/a.png", "/x/a.jpg"], 1),
        ("a.b", ["/x/a.jpg", "/x/a.b.jpg"], 1),
        ("A", ["/x/a.jpg", "/x/A.JPG"], 1),
        ("y/a", ["/x/a.jpg", "/y/a.jpg", "/xy/a.jpg"], 1),
        ("/x/y/a.jpg", ["/y/a.jpg", "/x/y/a.jpg", "/v/x/z/a.jpg"], 1),
        ("./a.jpg", ["/x/a.jpg"], 0),
        ("../y/a.jpg", ["/x/a.jpg", "/x/y/a.jpg"], 1),
        ("y/a.jpg", ["/x/z/y/a.jpg", "/x/y/a.jpg"], 1),
        ("y/a.jpg", ["/s.tar!x/a.jpg", "/s.tar!y/a.jpg"], 1),
        ("a", ["/s.tar.gz!a.jpg"], 0),
        ("b", ["/x/a!b.jpg", "/y/b.jpg"], 1),
        ("50%", [uri_of(b"/x/50%.jpg")], 0),
        ("bag é", [uri_of("/x/bag é.jpg".encode())], 0),
    ],
)
def test_a_name_finds_its_image(name: str, uris: Sequence[str], position: int) -> None:
    assert join(named(name), uris).tolist() == [position]


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (("a", "no", "nor"), "of 3 names, 2 have no image; the first is 'no' (labels.csv, line 3)"),
        (("b", "a", "x/b"), "of 3 names, 1 fit several images; the first is 'b' (labels.csv, line 2)"),
        (("b", "a", "x/b"), "write it with its folders, for it fits /x/b.jpg and /y/b.jpg"),
        (("a", "a.jpg"), "1 name an image that is already named; the first is 'a.jpg' (labels.csv, line 3)"),
        (("a", "a.jpg"), "leave one out, for 'a' (labels.csv, line 2) is the same image"),
        (("y/a",), "1 have no image"),
        (("w/c",), "fits /x/v/w/c.jpg and /x/u/w/c.jpg"),
        (("no", "b", "a", "a.png"), "of 4 names, 1 have no image, 1 fit several images, 1 name an image"),
    ],
)  # fmt: skip
def test_names_that_do_not_join_are_one_sentence_with_counts(names: Sequence[str], sentence: str) -> None:
    with pytest.raises(Refused) as error:
        join(named(*names), ["/x/a.jpg", "/x/b.jpg", "/y/b.jpg", "/x/v/w/c.jpg", "/x/u/w/c.jpg"])
    assert sentence in str(error.value)


def test_images_are_found_below_a_folder_by_name(tmp_path: Path) -> None:
    touch_images(tmp_path, "b.PNG", "x/a.jpg", ".c/d.png", "x/.e.png")
    write(tmp_path / "labels.csv", "")
    assert find_images(tmp_path) == [tmp_path / "b.PNG", tmp_path / "x" / "a.jpg"]
    with pytest.raises(Refused, match="absent does not exist"):
        find_images(tmp_path / "absent")


# --- images that are one ---


@pytest.fixture(scope="module")
def bags(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("bags")
    for seed in (1, 2):
        write_archive(folder / str(seed), SynthSettings(count=6, seed=seed, positive=0.5))
    return find_images(folder)


def test_bags_of_different_seeds_are_all_apart(bags: list[Path]) -> None:
    assert duplicate_groups(bags).tolist() == list(range(len(bags)))


def test_altered_copies_of_a_bag_are_found(bags: list[Path], tmp_path: Path) -> None:
    for path in bags[::3]:
        name = f"{path.parents[1].name}{path.stem}"
        image = Image.open(path)
        image.save(tmp_path / f"{name}.a.jpg", quality=60)
        image.resize((image.width * 2 // 3, image.height * 2 // 3)).save(tmp_path / f"{name}.b.png")
        ImageEnhance.Contrast(image).enhance(1.15).save(tmp_path / f"{name}.c.png")
        image.crop((2, 2, image.width - 2, image.height - 2)).save(tmp_path / f"{name}.d.png")
    paths = [*bags, *find_images(tmp_path)]
    group = duplicate_groups(paths)
    wanted = {f"{path.parents[1].name}{path.stem}": k for k, path in enumerate(bags)}
    for k, path in enumerate(paths[len(bags) :], start=len(bags)):
        assert group[k] == wanted[path.name.partition(".")[0]], path


def test_an_image_that_cannot_be_decoded_is_a_group_of_its_own(tmp_path: Path, bags: list[Path]) -> None:
    broken = [write(tmp_path / f"{name}.jpg", b"no image") for name in "ab"]
    os.mkfifo(tmp_path / "pipe.jpg")
    write(tmp_path / "empty.jpg", "")
    odd = [tmp_path / f"{name}.jpg" for name in ("gone", "pipe", "empty")]
    prints = fingerprints([bags[0], *broken, *odd, bags[0]])
    faults = ["not_an_image", "not_an_image", "vanished", "unreadable", "empty"]
    assert [row.status for row in prints.faults.values()] == faults
    assert groups_of(prints).tolist() == [0, 1, 2, 3, 4, 5, 0]


def test_the_search_in_tiles_finds_what_comparing_each_pair_does() -> None:
    random = np.random.default_rng(0)
    seeds = random.integers(0, 2, (40, 320), np.uint8)
    bits = np.repeat(seeds, 110, axis=0)  # more than one tile of columns
    bits ^= random.random(bits.shape) < random.choice([0.0, 0.05, 0.15], len(bits))[:, None]
    hashes = np.packbits(bits, axis=1).view(np.uint64)
    prints = Prints((b"",) * len(bits), hashes, {})
    group = groups_of(prints)
    far = bits[:, None, :64] != bits[None, ::40, :64]
    found = {(int(i), int(j)) for pairs in look_alikes(prints) for i, j in zip(*pairs, strict=True)}
    assert all(i < j for i, j in found)
    first = prints.pictures()
    for a, b in combinations(range(0, len(bits), 40), 2):
        near = far[a, b // 40].sum() <= COARSE_BITS and (bits[a, 64:] != bits[b, 64:]).sum() <= FINE_BITS
        assert near == (first[a] == first[b] or (min(first[a], first[b]), max(first[a], first[b])) in found)
        assert not near or group[a] == group[b]
    assert (group <= np.arange(len(group))).all()
    assert (group[group] == group).all()


def test_missing_names_are_written_as_runs() -> None:
    names = [f"P{k:05d}" for k in range(1, 30)] + ["N7.jpg", "N10.jpg", "N9.jpg", "odd", "P3x"]
    chosen = [
        k for k, name in enumerate(names) if name[0] == "N" or "P00010" <= name <= "P00013" or name == "odd"
    ]
    assert runs(names, np.array(chosen)) == ("P00010..P00013 (4)", "N7.jpg..N10.jpg (3)", "odd")


# --- real lists and images ---


def real(folder: str) -> Path:
    root = os.environ.get("GBAD_REAL_DATA")
    if not root:
        pytest.skip("GBAD_REAL_DATA names no folder of real images")
    return Path(root, folder)


@pytest.mark.real
@pytest.mark.parametrize(
    ("name", "counts"),
    [("X-ray_cls_trainval.csv", (27_677, 9_193)), ("X-ray_cls_test.csv", (6_922, 2_300))],
)
def test_real_lists_of_sixray_are_one_positive_to_two_negatives(name: str, counts: tuple[int, int]) -> None:
    labels = read_labels(real("sixray-labels") / name)
    assert (len(labels.names), int(labels.positive.sum())) == counts
    assert all(
        name.startswith("P") == there for name, there in zip(labels.names, labels.positive, strict=True)
    )


@pytest.mark.real
def test_of_real_samples_one_pair_is_one_bag() -> None:
    folder = real("sixray-samples")
    labels = read_labels(folder)
    paths = find_images(folder)
    assert sorted(join(labels, [str(path) for path in paths]).tolist()) == list(range(len(paths)))
    group = duplicate_groups(paths)
    pairs = [(paths[first].stem, paths[k].stem) for k, first in enumerate(group) if first != k]
    assert pairs == [("P08742", "P08748")]
