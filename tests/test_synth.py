"""The synthetic archive: its physics, what it writes, and that it repeats."""

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from processes import PATIENCE_S, children, runs

from gbad_batch.engine.errors import Refused
from gbad_batch.engine.row import THREATS
from gbad_batch.engine.synth import (
    SynthSettings,
    gate_images,
    generator_hash,
    render,
    render_bag,
    write_archive,
)
from gbad_batch.engine.synth.beam import ORGANIC, STEEL, Beam, transmit
from gbad_batch.engine.synth.bodies import Part, Pose, add, cast, silhouette
from gbad_batch.engine.synth.clutter import EVERYDAY, LOOK_ALIKES
from gbad_batch.engine.synth.field import Field
from gbad_batch.engine.synth.outlines import circle
from gbad_batch.engine.synth.rotations import UPRIGHT, Rotation, random_rotation, turn
from gbad_batch.engine.synth.solids import (
    Box,
    Cylinder,
    Ellipsoid,
    Prism,
    Solid,
)
from gbad_batch.engine.synth.threats import POOLS
from gbad_batch.engine.synth.tubes import Tube

CANVAS = (200, 200)
SCALE = 20.0  # pixels a cm


def volume(solid: Solid, rotation: Rotation) -> float:
    """Integrate the path lengths over the picture: the solid's volume, however it is turned."""
    shadow = cast((Part(solid, ORGANIC),), Pose(rotation, (100.0, 100.0), SCALE), CANVAS)
    return float(sum(patch.path.sum(dtype=float) for patch, _ in shadow)) / SCALE**2


@pytest.mark.parametrize(
    ("solid", "expected"),
    [
        (Ellipsoid((2, 1, 3)), 4 / 3 * np.pi * 6),
        (Cylinder(1.5, 1, 2), np.pi * 1.5 * 4),
        (Box((1, 2, 1.5)), 8 * 3),
        (Prism(circle(0, 0, 2, 90), 1.0, (circle(0, 0, 1, 90),)), np.pi * 3 * 2),
        (Tube(np.array([(-3.0, 0, 0), (0, 1, 0.5), (3, 0, 0)]), 0.3), np.pi * 0.09 * 2 * np.sqrt(10.25)),
    ],
)
def test_a_solids_shadow_holds_its_volume_however_it_is_turned(solid: Solid, expected: float):
    rng = np.random.default_rng(5)
    for tilt in (UPRIGHT, turn(0, 0.4), turn(1, 0.7) @ turn(2, 1.0), turn(0, -0.9) @ random_spin(rng)):
        assert volume(solid, tilt) == pytest.approx(expected, rel=0.04)


def random_spin(rng: np.random.Generator) -> Rotation:
    return turn(2, rng.uniform(0, 6.28))


def test_random_rotations_are_rotations():
    turned = np.array(random_rotation(np.random.default_rng(0)))
    np.testing.assert_allclose(turned @ turned.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(turned) == pytest.approx(1)


def test_a_ray_through_the_middle_crosses_the_whole_body():
    picture = Field(*CANVAS)
    body = (Part(Box((1, 1, 0.5)), ORGANIC),)
    add(picture, cast(body, Pose(UPRIGHT, (100.0, 100.0), SCALE), CANVAS))
    assert picture.depth[0, 100, 100] == pytest.approx(ORGANIC.low * 1.0, rel=1e-3)
    assert picture.depth[1, 100, 100] == pytest.approx(ORGANIC.high * 1.0, rel=1e-3)
    assert picture.depth[:, 10, 10].max() == 0


def test_optical_depths_of_overlapping_bodies_add_before_saturation():
    pose = Pose(UPRIGHT, (100.0, 100.0), SCALE)
    steel, plastic = (Part(Box((1, 1, 0.3)), STEEL),), (Part(Cylinder(2, 2, 1), ORGANIC),)
    alone = [Field(*CANVAS), Field(*CANVAS)]
    both = Field(*CANVAS)
    for picture, body in zip(alone, (steel, plastic), strict=True):
        add(picture, cast(body, pose, CANVAS))
        add(both, cast(body, pose, CANVAS))
    np.testing.assert_allclose(both.depth, alone[0].depth + alone[1].depth, rtol=1e-6)
    quiet = Beam(photons=1e12, scatter=0.0, crosstalk=0.0, banding=0.0)
    seen = [transmit(f.depth, quiet, np.random.default_rng(0))[:, 100, 100] for f in (*alone, both)]
    np.testing.assert_allclose(seen[2], seen[0] * seen[1], rtol=1e-3, atol=2e-4)  # Beer-Lambert


def test_the_scatter_floor_keeps_the_darkest_pixel_above_nothing_and_noise_grows_as_its_root():
    beam = Beam(photons=1e4, scatter=0.01, crosstalk=0.1, banding=0.0)
    opaque = np.full((2, 80, 80), 50, np.float32)
    dark = transmit(opaque, beam, np.random.default_rng(1))
    bright = transmit(opaque * 0, beam, np.random.default_rng(1))
    assert dark.mean() == pytest.approx(0.01, rel=0.02)
    assert dark.std() == pytest.approx(0.01 / 10, rel=0.1)  # 100 photons
    assert bright.std() == pytest.approx(0.01, rel=0.1)  # 10,000 photons


def test_train_and_test_pools_share_no_threat_and_no_look_alike():
    for name in THREATS:
        assert not set(POOLS["train"][name]) & set(POOLS["test"][name])
        assert not set(LOOK_ALIKES["train"][name]) & set(LOOK_ALIKES["test"][name])
        assert len(set(POOLS["train"][name])) >= 3
    benign = [
        {f for _, f in EVERYDAY[pool]} | {f for families in LOOK_ALIKES[pool].values() for f in families}
        for pool in ("train", "test")
    ]
    assert not benign[0] & benign[1]


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("synth") / "archive"
    told: list[int] = []
    counts = write_archive(out, SynthSettings(count=24, seed=7, positive=0.5), told.append)
    assert counts.images == 24
    assert counts.positives == 12
    assert told[-1] == 24
    return out


def read_labels(out: Path) -> dict[str, list[int]]:
    with (out / "labels.csv").open(newline="") as file:
        rows = list(csv.reader(file))
    assert rows[0] == ["name", "Gun", "Knife", "Wrench", "Pliers", "Scissors"]
    return {row[0]: [int(v) for v in row[1:]] for row in rows[1:]}


def test_an_archive_has_an_image_and_a_label_row_for_each_name(archive: Path):
    labels = read_labels(archive)
    assert sorted(labels) == sorted(path.stem for path in (archive / "images").iterdir())
    for name, row in labels.items():
        assert set(row) <= {1, -1}
        assert (1 in row) == name.startswith("P")
        with Image.open(archive / "images" / f"{name}.jpg") as picture:
            assert picture.mode == "RGB"
            assert 194 <= min(picture.size) <= max(picture.size) <= 1536


def test_boxes_are_coco_and_agree_with_the_labels(archive: Path):
    boxes = json.loads((archive / "boxes.json").read_text())
    images = {image["id"]: image for image in boxes["images"]}
    assert [c["name"] for c in boxes["categories"]] == list(THREATS)
    held: dict[str, set[int]] = {}
    for found in boxes["annotations"]:
        image = images[found["image_id"]]
        x, y, w, h = found["bbox"]
        assert x >= 0
        assert y >= 0
        assert x + w <= image["width"]
        assert y + h <= image["height"]
        assert 0 < found["area"] <= w * h
        held.setdefault(Path(image["file_name"]).stem, set()).add(found["category_id"])
    for name, row in read_labels(archive).items():
        assert held.get(name, set()) == {k for k, value in enumerate(row, 1) if value == 1}


@pytest.mark.parametrize("killed", ["a worker", "the writer"])
def test_workers_do_not_outlive_a_kill(tmp_path: Path, killed: str):
    code = (
        "import sys; from pathlib import Path\n"
        "from gbad_batch.engine.errors import GbadError\n"
        "from gbad_batch.engine.synth import SynthSettings, write_archive\n"
        "try: write_archive(Path('new'), SynthSettings(count=100_000, workers=2))\n"
        "except GbadError as error: sys.exit(str(error))"
    )
    writer = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path, stderr=subprocess.PIPE, text=True)
    while len(list(tmp_path.rglob("*.jpg"))) < 2 and writer.poll() is None:
        time.sleep(0.02)
    workers = [
        each for each in children(writer.pid) if b"spawn_main" in Path(f"/proc/{each}/cmdline").read_bytes()
    ]
    assert len(workers) == 2
    os.kill(workers[0] if killed == "a worker" else writer.pid, signal.SIGKILL)
    _, said = writer.communicate(timeout=PATIENCE_S)
    if killed == "a worker":
        assert said == (
            "a process that drew images was ended from outside, perhaps for want of memory: remove new and "
            "begin again\n"
        )
    deadline = time.monotonic() + PATIENCE_S
    while any(map(runs, workers)):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_the_settings_and_the_generators_hash_are_kept(archive: Path):
    told = json.loads((archive / "synth.json").read_text())
    assert told["generator"] == generator_hash()
    assert told["settings"]["seed"] == 7
    assert told["counts"]["images"] == 24


def test_an_image_depends_on_seed_and_index_alone(archive: Path, tmp_path: Path):
    write_archive(tmp_path / "two", SynthSettings(count=20, seed=7, positive=0.5, workers=2))
    again = sorted((tmp_path / "two" / "images").iterdir())
    assert len(again) == 20
    for path in again:
        assert path.read_bytes() == (archive / "images" / path.name).read_bytes()
    other = tmp_path / "other"
    write_archive(other, SynthSettings(count=2, seed=8, positive=0.5))
    first = sorted((other / "images").iterdir())[0]
    assert first.read_bytes() != (archive / "images" / first.name).read_bytes()


def test_a_picture_in_memory_is_the_one_in_the_archive(archive: Path):
    for index in (0, 1):
        drawn = render(index, SynthSettings(seed=7, positive=0.5))
        name = f"{'P' if any(drawn.labels) else 'N'}{index + 1:05d}.jpg"
        with Image.open(archive / "images" / name) as stored:
            assert np.abs(np.asarray(stored, float) - drawn.pixels).mean() < 6  # JPEG keeps half the colours


def test_a_smaller_picture_shows_the_same_bags():
    for index in range(3):
        whole, small = (
            render(index, SynthSettings(seed=7, positive=0.0, longest=longest)) for longest in (1536, 200)
        )
        assert max(small.pixels.shape) == 200
        assert (small.look, small.bags, small.labels) == (whole.look, whole.bags, whole.labels)
        shape = small.pixels.shape[1::-1]
        resized = np.asarray(Image.fromarray(whole.pixels).resize(shape, Image.Resampling.BOX), float)
        assert np.abs(resized - small.pixels).mean() < 15


@pytest.mark.parametrize("pool", ["train", "test"])
def test_a_gun_is_not_a_slab_its_walls_are_darker_than_what_they_enclose(pool: str):
    rng = np.random.default_rng(3)
    for family in POOLS[pool]["gun"]:
        shadow = cast(family(rng), Pose(UPRIGHT, (250.0, 250.0), SCALE), (500, 500))
        outline = silhouette(shadow, (500, 500))
        picture = Field(500, 500)
        add(picture, shadow)
        assert outline is not None
        h, w = outline.path.shape
        inside = picture.depth[1, outline.y : outline.y + h, outline.x : outline.x + w][outline.path > 0]
        thin, thick = np.quantile(inside, (0.2, 0.9))
        assert thick > 2 * thin


def test_class_shares_force_classes():
    settings = SynthSettings(seed=3, class_shares=(0, 0, 0, 0, 1))
    for seed in range(3):
        picture = render_bag(np.random.default_rng(seed), settings, positive=True)
        assert picture.labels == (0, 0, 0, 0, 1)


def test_a_look_can_be_held_out():
    settings = SynthSettings(looks=("grey",), positive=0.0)
    looks = {render_bag(np.random.default_rng(seed), settings).look for seed in range(4)}
    assert looks == {"grey"}


def test_a_covered_threat_is_covered_by_half_or_more():
    settings = SynthSettings(difficulty="covered")
    for seed in range(4):
        picture = render_bag(np.random.default_rng(seed), settings, positive=True)
        assert all(box.covered >= 0.5 for box in picture.boxes)


def test_a_thin_threat_is_thinner_than_8_pixels_at_256():
    settings = SynthSettings(difficulty="thin")
    for seed in range(4):
        picture = render_bag(np.random.default_rng(seed), settings, positive=True)
        for box in picture.boxes:
            y, x = np.nonzero(box.mask)
            angles = np.linspace(0, np.pi, 60, endpoint=False)
            across = np.outer(np.cos(angles), x) + np.outer(np.sin(angles), y)
            assert np.ptp(across, axis=1).min() * 256 / min(picture.pixels.shape[:2]) < 8


def test_the_test_pool_draws_without_the_train_pool():
    settings = SynthSettings(objects="test", positive=1.0)
    picture = render_bag(np.random.default_rng(1), settings)
    assert any(picture.labels)
    assert picture.pixels.dtype == np.uint8


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        (SynthSettings(count=0), "at least one image"),
        (SynthSettings(positive=1.5), "between 0 and 1"),
        (SynthSettings(looks=("x-ray",)), "unknown look"),
        (SynthSettings(class_shares=(1, 1)), "5 weights"),
        (SynthSettings(seed=-1), "0 or more"),
        (SynthSettings(longest=8), "at least 32"),
    ],
)
def test_senseless_settings_are_refused_and_nothing_is_written(
    tmp_path: Path, settings: SynthSettings, says: str
):
    with pytest.raises(Refused, match=says):
        write_archive(tmp_path / "out", settings)
    assert not (tmp_path / "out").exists()


def test_a_folder_in_use_is_refused(tmp_path: Path):
    (tmp_path / "mine.txt").write_text("keep")
    with pytest.raises(Refused, match="not an empty folder"):
        write_archive(tmp_path, SynthSettings(count=1))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_gate_images_are_small_jpegs_that_repeat():
    blobs = gate_images(4, 11, 96)
    assert blobs == gate_images(4, 11, 96)
    assert len(set(blobs)) == 4
    for blob in blobs:
        with Image.open(io.BytesIO(blob)) as picture:
            assert picture.format == "JPEG"
            assert picture.size == (96, 96)
