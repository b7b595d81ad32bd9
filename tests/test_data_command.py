"""`gbad-batch data check` and `data convert`: what they tell of real files, and what they write."""

import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from PIL import Image

from gbad_batch.engine.commands.cli import main
from gbad_batch.engine.commands.training import data_check
from gbad_batch.engine.datasets import FORMS, read_labels
from gbad_batch.engine.synth import SynthSettings, write_archive

HEADER = "name,Gun,Knife,Wrench,Pliers,Scissors"


def run(*words: str | Path) -> str:
    """Run a command that must succeed; return its standard output."""
    ran = CliRunner().invoke(main, [str(word) for word in words], catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    return ran.stdout


def refused(*words: str | Path) -> str:
    ran = CliRunner().invoke(main, [str(word) for word in words], catch_exceptions=False)
    assert ran.exit_code == 2, ran.output
    assert ran.stderr.count("\n") == 1
    return ran.stderr


@pytest.fixture(scope="module")
def bags(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("set") / "bags"
    write_archive(folder, SynthSettings(count=8, seed=5, positive=0.5))
    return folder


@pytest.fixture
def damaged(bags: Path, tmp_path: Path) -> Path:
    """Copy the archive; take two images away, break one, add one of another name and its list."""
    folder = tmp_path / "damaged"
    shutil.copytree(bags, folder)
    images = sorted((folder / "images").iterdir())  # N00001, 3, 5, 7 and P00002, 4, 6, 8
    images[2].unlink()
    images[3].unlink()
    images[4].write_bytes(images[4].read_bytes()[:500])
    Image.open(images[5]).save(folder / "images" / "T1.jpg", quality=70)
    shutil.copy(images[6], folder / "images" / "T2.jpg")
    (folder / "test.csv").write_text(f"{HEADER}\nT1,-1,-1,-1,-1,-1\nT2,-1,-1,-1,-1,-1\nT3,1,-1,-1,-1,-1\n")
    return folder


def check(*words: str | Path) -> dict[str, Any]:
    return json.loads(run("data", "check", "--json", *words))


def test_a_sound_set_is_counted(bags: Path) -> None:
    found = check(bags)
    (one,) = found["lists"]
    labels = read_labels(bags)
    assert (one["images"], one["positives"], one["positive_rate"], one["benign_per_positive"]) == (
        8,
        4,
        0.5,
        1,
    )
    assert list(one["labels"].values()) == labels.labels.sum(axis=0).tolist()
    assert one["labels_per_positive"] == labels.labels.sum() / 4
    assert one["combinations"]["benign"] == 4
    assert sum(one["combinations"].values()) == 8
    assert (one["missing"], one["ambiguous"], one["repeated"], one["unreadable"], found["unlisted"]) == (
        *(0, 0, 0),
        *({}, 0),
    )
    assert found["exact"]["groups"] == found["near"]["groups"] == 0
    assert found["unlike_pairs"] >= 16
    assert found["unlike_matched"] == 0
    assert found["false_match_rate"] == pytest.approx(2.996 / found["unlike_pairs"], rel=1e-3)


def test_what_is_missing_broken_and_doubled_is_told(damaged: Path) -> None:
    found = check(damaged, "--test", damaged / "test.csv")
    data, test = found["lists"]
    assert (data["missing"], data["missing_names"]) == (2, ["N00005..N00007 (2)"])
    assert (test["name"], test["missing_names"]) == ("test", ["T3"])
    assert data["unreadable"] == {"truncated": 1}
    assert "P00002.jpg: " in data["unreadable_images"][0]
    assert found["exact"]["crossing"] == {"data + test": 1}
    assert found["near"]["crossing"] == {"data + test": 2}
    assert found["near"]["conflicting"] == 2
    assert {Path(path).stem for group in found["near"]["examples"] for path in group} == {
        *("P00004", "T1", "P00006", "T2")
    }
    assert found["unlisted"] == 0
    assert check(damaged)["unlisted"] == 2


def test_splits_of_one_table_are_kept_apart(bags: Path, tmp_path: Path) -> None:
    shutil.copytree(bags / "images", tmp_path / "images")
    for name, of in (("Q1", "P00002"), ("Q2", "P00004")):
        shutil.copy(tmp_path / "images" / f"{of}.jpg", tmp_path / "images" / f"{name}.jpg")
    rows = [("P00002", "train"), ("Q1", "test"), ("P00004", "train"), ("Q2", "train")]
    lines = [f"{name},1,0,0,0,0,{split}" for name, split in rows]
    (tmp_path / "t.csv").write_text("\n".join(["name,gun,knife,wrench,pliers,scissors,split", *lines]))
    found = check(tmp_path, "--labels", tmp_path / "t.csv")
    assert found["lists"][0]["splits"] == {"train": 3, "test": 1}
    assert (found["exact"]["groups"], found["exact"]["crossing"]) == (2, {"test + train": 1})
    assert found["unlisted"] == 6
    assert found["false_match_rate"] is None


def test_the_text_draws_bars_and_marks_what_asks_for_a_look(damaged: Path) -> None:
    said = run("data", "check", damaged, "--test", damaged / "test.csv")
    assert "8 images, 4 with a threat (50 %, 1 : 1)" in said
    assert "█" in said
    assert "! 2 are not on disk: N00005..N00007 (2)" in said
    assert "! cannot be decoded: 1 truncated" in said
    assert "! groups that cross data + test: 2" in said
    assert "false matches: " in said


def test_a_name_that_commands_a_terminal_is_escaped(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "labels.csv").write_text(f"{HEADER}\na,1,-1,-1,-1,-1\n\x1b[2J,1,-1,-1,-1,-1\n")
    said = run("data", "check", tmp_path)
    assert "\x1b" not in said
    assert "not on disk: \\x1b[2J" in said


def test_the_picture_is_drawn(damaged: Path, tmp_path: Path) -> None:
    run("data", "check", damaged, "--test", damaged / "test.csv", "--plot", tmp_path / "labels.svg")
    texts = re.findall(r"<!-- (.*?) -->", (tmp_path / "labels.svg").read_text())
    assert {"gun", "scissors", "Images that hold each threat"} <= set(texts)
    assert "0.5" not in texts  # of an image


def test_a_set_without_a_positive_or_an_image_is_told(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text(f"{HEADER}\na,-1,-1,-1,-1,-1\n")
    found = check(tmp_path)
    assert found["lists"][0]["benign_per_positive"] is None
    assert found["lists"][0]["missing"] == 1
    assert "none with a threat" in run("data", "check", tmp_path, "--plot", tmp_path / "p.png")


def test_a_list_that_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "labels.csv").write_text(f"{HEADER}\na,1,-1,-1,-1,5\n")
    assert "line 2: the label '5' of scissors" in refused("data", "check", tmp_path)
    assert "absent does not exist" in refused("data", "check", tmp_path / "absent")


def test_the_command_knows_every_form() -> None:
    (form,) = [p for p in data_check.params if p.name == "form"]
    assert getattr(form.type, "choices", None) == ("auto", *FORMS)


# --- convert ---


def test_sixrays_list_to_json_and_back_is_the_same(bags: Path, tmp_path: Path) -> None:
    said = run("data", "convert", bags / "labels.csv", tmp_path / "labels.json")
    assert said == f"{tmp_path / 'labels.json'}: 8 images, 4 with a threat\n"
    run("data", "convert", tmp_path / "labels.json", tmp_path / "again.csv")
    assert (tmp_path / "again.csv").read_bytes() == (bags / "labels.csv").read_bytes()


def test_paths_and_sizes_of_images_go_into_the_json(bags: Path, tmp_path: Path) -> None:
    run("data", "convert", bags / "labels.csv", tmp_path / "labels.json", "--images", bags)
    first = json.loads((tmp_path / "labels.json").read_text())["images"][0]
    with Image.open(bags / first["file_name"]) as image:
        assert (first["width"], first["height"]) == image.size


def test_boxes_splits_and_groups_survive_in_json(tmp_path: Path) -> None:
    header = "path,gun,knife,wrench,pliers,scissors,split,group"
    (tmp_path / "t.csv").write_text(f"{header}\nx/a.jpg,1,0,0,0,1,test,bag 7\nx/b.jpg,0,0,0,0,0,,\n")
    (tmp_path / "cutters.txt").write_text("a.jpg Folding_Knife 10 20 30.5 50\n")
    for name, count in (("t.csv", ""), ("cutters.txt", ", 1 boxes")):
        source, out = tmp_path / name, tmp_path / f"{name}.json"
        assert run("data", "convert", source, out).endswith(f"with a threat{count}\n")
        before, after = read_labels(source), read_labels(out)
        assert (before.labels == after.labels).all()
        for field in ("names", "splits", "groups", "boxes"):
            assert getattr(before, field) == getattr(after, field)
    said = run("data", "convert", tmp_path / "t.csv.json", tmp_path / "new.csv")
    assert said.endswith("; a CSV cannot hold groups and splits\n")


def test_what_cannot_be_converted_is_one_sentence(bags: Path, tmp_path: Path) -> None:
    (tmp_path / "there.json").write_text("mine")
    assert "there.json exists already" in refused("data", "convert", bags, tmp_path / "there.json")
    assert "ends neither in .csv" in refused("data", "convert", bags, tmp_path / "out.xml")
    (tmp_path / "empty").mkdir()
    words = ("data", "convert", bags, tmp_path / "out.json", "--images", tmp_path / "empty")
    assert "of 8 names, 8 have no image; the first is 'N00001'" in refused(*words)
    assert not (tmp_path / "out.json").exists()


@pytest.mark.real
def test_real_lists_come_back_byte_for_byte(tmp_path: Path) -> None:
    root = os.environ.get("GBAD_REAL_DATA")
    if not root:
        pytest.skip("GBAD_REAL_DATA names no folder of real images")
    for name in ("X-ray_cls_trainval", "X-ray_cls_test"):
        source = Path(root, "sixray-labels", f"{name}.csv")
        run("data", "convert", source, tmp_path / f"{name}.json")
        run("data", "convert", tmp_path / f"{name}.json", tmp_path / f"{name}.csv")
        assert (tmp_path / f"{name}.csv").read_bytes() == source.read_bytes()
