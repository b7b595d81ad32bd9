"""Threat image projection: a product that darkens, three sources of threats, and training with them."""

import json
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw

from gbad_batch.engine.datasets import Box
from gbad_batch.engine.errors import Refused
from gbad_batch.engine.model.architecture import Architecture
from gbad_batch.engine.row import THREATS
from gbad_batch.engine.synth import SynthSettings, air_of, write_archive
from gbad_batch.engine.system.progress import silent
from gbad_batch.engine.training.data import Labelled, load_labelled
from gbad_batch.engine.training.projection.physics import (
    AREAS,
    Threat,
    bags_of,
    find_position,
    project,
    varied,
)
from gbad_batch.engine.training.projection.projecting import project_threats
from gbad_batch.engine.training.projection.threats import (
    SYNTH,
    BoxThreats,
    GreyThreats,
    SynthThreats,
    Threats,
    cut_from_box,
    grey_transmission,
    open_threats,
)
from gbad_batch.engine.training.run import train
from gbad_batch.engine.training.settings import Phase1Settings, Phase2Settings, Stage, TrainSettings

AIR = (250, 251, 252)


def bag(width: int = 320, height: int = 240) -> np.ndarray:
    """Draw a bag with a few things on the belt, [height, width, 3]."""
    image = Image.new("RGB", (width, height), AIR)
    draw = ImageDraw.Draw(image)
    draw.rectangle((30, 30, width - 30, height - 30), fill=(225, 215, 190))
    for x in range(50, width - 80, 60):
        draw.ellipse((x, 60, x + 50, 120), fill=(200, 150, 80))
    drawn = np.array(image)
    cloth = drawn[30:-30, 30:-30]  # is uneven, as air is not
    cloth[:] = np.clip(cloth + np.random.default_rng(0).integers(-12, 13, (*cloth.shape[:2], 1)), 0, 255)
    return drawn


def threat(seed: int = 0, height: int = 40, width: int = 30) -> Threat:
    transmission = np.ones((height, width, 3), np.float32)
    transmission[5:-5, 5:-5] = np.random.default_rng(seed).uniform(0.1, 0.7, (height - 10, width - 10, 3))
    return Threat("gun", transmission)


# --- the product ---


def test_a_projection_is_the_product_and_changes_nothing_outside() -> None:
    picture, thing = bag(), threat()
    found = project(picture, thing, (50, 60))
    window = picture[50:90, 60:90]
    np.testing.assert_array_equal(found[50:90, 60:90], np.rint(window * thing.transmission))
    outside = np.ones(picture.shape[:2], bool)
    outside[55:85, 65:85] = False
    np.testing.assert_array_equal(found[outside], picture[outside])
    assert (found <= picture).all()


def test_two_projections_commute_up_to_rounding() -> None:
    picture, one, other = bag(), threat(1), threat(2)
    there = project(project(picture, one, (50, 60)), other, (60, 70)).astype(int)
    back = project(project(picture, other, (60, 70)), one, (50, 60)).astype(int)
    assert np.abs(there - back).max() <= 1
    assert (there < picture).any()


@pytest.mark.parametrize("at", [(-10, -8), (225, 310), (-100, 5), (5, 900)])
def test_what_sticks_out_of_the_picture_is_cut_off(at: tuple[int, int]) -> None:
    picture, thing = bag(), threat()
    canvas = np.full((600, 1400, 3), 255, np.uint8)
    canvas[200:440, 200:520] = picture
    wanted = project(canvas, thing, (at[0] + 200, at[1] + 200))[200:440, 200:520]
    np.testing.assert_array_equal(project(picture, thing, at), wanted)


def test_threats_lie_in_the_bag_in_the_size_of_real_ones() -> None:
    picture, random = bag(640, 480), np.random.default_rng(0)
    (held,) = bags_of(picture)
    shares = []
    for seed in range(60):
        sized = varied(threat(seed, 160, 120), held, AREAS["gun"], random)
        assert sized is not None
        at = find_position(sized, held, random)
        assert at is not None
        changed = (project(picture, sized, at) != picture).any(axis=2)
        assert (picture[changed] == AIR).all(axis=1).mean() < 0.1
        shares.append(sized.outline.sum() / np.prod(held.size))
    assert min(shares) > 0.8 * AREAS["gun"][0]
    assert max(shares) < 1.2 * AREAS["gun"][2]
    assert np.median(shares) == pytest.approx(AREAS["gun"][1], rel=0.3)


def test_an_empty_belt_has_no_bag() -> None:
    assert bags_of(np.full((200, 300, 3), 240, np.uint8)) == []


# --- the sources ---


def test_a_cut_threat_leaves_its_surroundings_behind() -> None:
    picture, thing = bag(), threat()
    picture = np.where(picture > 0, np.array([225, 215, 190], np.uint8), picture)  # an even ground
    shown = project(picture, thing, (50, 60))
    found = cut_from_box(shown, Box("gun", 65, 55, 20, 30))
    assert found is not None
    again = project(picture, Threat("gun", found), (51, 61))  # the box's margin is four pixels
    # what is as faint as the ground's grain is lost, and no more
    assert np.abs(again.astype(int) - shown).max() <= 40
    assert np.abs(again.astype(int) - shown).mean() < 1
    assert (found[[0, -1]] == 1).all()
    assert (found[:, [0, -1]] == 1).all()


def test_what_does_not_stand_out_is_not_cut() -> None:
    noise = np.random.default_rng(0).integers(20, 255, (100, 100, 3)).astype(np.uint8)
    assert cut_from_box(noise, Box("gun", 30, 30, 40, 40)) is None
    even = np.full((100, 100, 3), 200, np.uint8)
    assert cut_from_box(even, Box("gun", 30, 30, 40, 40)) is None
    assert cut_from_box(even, Box("gun", 0, 0, 100, 100)) is None


def grey_knife(ground: int = 235, uneven: bool = False) -> np.ndarray:
    image = Image.new("L", (240, 160), ground)
    draw = ImageDraw.Draw(image)
    if uneven:
        draw.rectangle((0, 0, 90, 160), fill=ground // 2)
    draw.polygon([(20, 80), (150, 60), (220, 80), (150, 95)], fill=60)
    return np.asarray(image.convert("RGB"))


def test_grey_becomes_the_transmission_of_metal() -> None:
    found = grey_transmission(grey_knife())
    assert found is not None
    core = found[found.shape[0] // 2, found.shape[1] // 2]
    assert core[0] < core[1] < core[2]  # what comes through is blue
    np.testing.assert_allclose(-np.log(core) / -np.log(60 / 235), [1.7, 0.87, 0.4], rtol=0.02)
    assert (found[0] == 1).all()
    assert grey_transmission(grey_knife(uneven=True)) is None


def write_grey(folder: Path) -> Path:
    for name in ("knife", "scissors"):
        (folder / name).mkdir(parents=True)
        Image.fromarray(grey_knife()).save(folder / name / "1.png")
    return folder


def written_bags(folder: Path, positive: float, count: int = 16) -> Labelled:
    write_archive(folder, SynthSettings(count=count, seed=3, positive=positive))
    return load_labelled(folder / "boxes.json", folder)


@pytest.fixture(scope="module")
def bags(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Labelled]:
    folder = tmp_path_factory.mktemp("bags")
    return {name: written_bags(folder / name, share) for name, share in (("threats", 1.0), ("benign", 0.0))}


def source_of(kind: str, bags: Mapping[str, Labelled], folder: Path) -> Threats:
    if kind == "grey":
        return open_threats(write_grey(folder / "grey"), bags["benign"], None)
    return open_threats(SYNTH if kind == "synth" else None, bags["threats"], None)


@pytest.mark.parametrize(
    ("kind", "opened"), [("boxes", BoxThreats), ("grey", GreyThreats), ("synth", SynthThreats)]
)
def test_each_source_projects_into_benign_images(
    kind: str, opened: type, bags: dict[str, Labelled], tmp_path: Path
) -> None:
    source, benign = source_of(kind, bags, tmp_path), bags["benign"]
    assert isinstance(source, opened)
    made = project_threats(tmp_path / "made", benign, source, 5, 0, silent)
    assert len(made.paths) >= 3
    assert made.positive.all()
    assert {name for flags in made.labels for name in np.array(THREATS)[flags]} <= set(source.names)
    hosts = [np.asarray(Image.open(path)).astype(int) for path in benign.paths]
    for path in made.paths:
        picture = np.asarray(Image.open(path)).astype(int)
        alike = [host for host in hosts if host.shape == picture.shape and (host == picture).mean() > 0.5]
        assert len(alike) == 1
        assert (picture <= alike[0]).all()
        assert (picture < alike[0] - 20).any()
        air = air_of(alike[0].astype(np.uint8))
        on_air = (np.abs(alike[0] - air).max(axis=2) == 0) & (picture != alike[0]).any(axis=2)
        assert on_air.sum() < 0.4 * (picture != alike[0]).any(axis=2).sum()


def test_boxes_hold_what_was_projected(bags: dict[str, Labelled], tmp_path: Path) -> None:
    benign = bags["benign"]
    made = project_threats(tmp_path / "made", benign, SynthThreats(), 6, 0, silent)
    again = project_threats(tmp_path / "made", benign, SynthThreats(), 6, 0, silent)
    assert made.boxes == again.boxes
    hosts = [np.asarray(Image.open(path)).astype(int) for path in benign.paths]
    for path, boxes, flags in zip(made.paths, made.boxes, made.labels, strict=True):
        assert {box.threat for box in boxes} == set(np.array(THREATS)[flags])
        picture = np.asarray(Image.open(path)).astype(int)
        darker = min(
            ((host - picture).max(axis=2) for host in hosts if host.shape == picture.shape),
            key=lambda difference: np.abs(difference).sum(),
        )
        inside = np.zeros(darker.shape, bool)
        for box in boxes:
            window = slice(int(box.y), int(box.y + box.height)), slice(int(box.x), int(box.x + box.width))
            inside[window] = True
            rows, columns = np.nonzero(darker[window] > 15)
            assert np.ptp(rows) > 0.6 * box.height
            assert np.ptp(columns) > 0.6 * box.width
        assert (darker[~inside] > 60).sum() <= 0.02 * (darker > 60).sum()


def test_pictures_belong_to_seed_and_number(bags: dict[str, Labelled], tmp_path: Path) -> None:
    benign = bags["benign"]
    few = project_threats(tmp_path / "few", benign, SynthThreats(), 2, 4, silent)
    more = project_threats(tmp_path / "more", benign, SynthThreats(), 4, 4, silent)
    for path in few.paths:
        assert path.read_bytes() == (tmp_path / "more" / path.name).read_bytes()
    assert len(more.paths) > len(few.paths)
    other = project_threats(tmp_path / "other", benign, SynthThreats(), 2, 5, silent)
    assert few.paths[0].read_bytes() != other.paths[0].read_bytes()


def test_nothing_to_project_is_one_sentence(bags: dict[str, Labelled], tmp_path: Path) -> None:
    benign, threats = bags["benign"], bags["threats"]
    with pytest.raises(Refused, match="no box to cut threats from"):
        open_threats(None, benign, None)
    (tmp_path / "grey" / "negative").mkdir(parents=True)
    Image.fromarray(grey_knife()).save(tmp_path / "grey" / "negative" / "1.png")
    with pytest.raises(Refused, match="no picture of a threat"):
        open_threats(tmp_path / "grey", threats, None)
    held = len(benign.paths)
    with pytest.raises(Refused, match=f"holds {held} benign images"):
        project_threats(tmp_path / "made", benign, SynthThreats(), held + 1, 0, silent)
    belt = tmp_path / "belt.png"
    Image.new("RGB", (90, 90), AIR).save(belt)
    empty = Labelled((belt,), np.zeros((1, 5), bool), ("",), ("",))
    with pytest.raises(Refused, match="none of 1 threats could be projected"):
        project_threats(tmp_path / "none", empty, SynthThreats(), 1, 0, silent)


@pytest.mark.real
def test_real_grey_objects_are_cut_out(tmp_path: Path) -> None:
    folder = os.environ.get("GBAD_REAL_DATA")
    if not folder:
        pytest.skip("GBAD_REAL_DATA names no folder of real images")
    classes = tmp_path / "classes.toml"
    classes.write_text('[classes]\nshuriken = "ignore"\nrazor_blade = "ignore"\nother = "ignore"\n')
    source = GreyThreats(Path(folder, "gdxray-objects"), classes)
    assert source.names == ("gun",)
    for seed in range(5):
        found = source.draw("gun", np.full(3, 255, np.uint8), np.random.default_rng(seed))
        assert found is not None
        assert 0.1 < found.outline.mean() < 0.8
        assert np.median(found.transmission[found.outline]) < 0.3


# --- in training ---


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> TrainSettings:
    """Drawn bags, every other one with a dark bar for one threat, in an odd dozen of groups."""
    folder = tmp_path_factory.mktemp("set")
    random = np.random.default_rng(0)
    lines = ["path,gun,knife,wrench,pliers,scissors,group"]
    for number in range(60):
        image = Image.fromarray(bag(int(random.integers(150, 260)), int(random.integers(150, 220))))
        draw = ImageDraw.Draw(image)
        for x, y in random.integers(40, 110, (5, 2)).tolist():
            draw.ellipse((x, y, x + 20, y + 15), fill=tuple(random.integers(60, 220, 3).tolist()))
        if number % 2:
            x = 40 + 15 * (number % 5)
            draw.rectangle((x, 40, x + 8, 110), fill=(20, 30, 120))
        image.save(folder / f"B{number:03d}.png")
        flags = [int(bool(number % 2) and k == number // 2 % 5) for k in range(5)]
        lines.append(f"B{number:03d}.png,{','.join(map(str, flags))},bag {number}")
    (folder / "labels.csv").write_text("\n".join(lines) + "\n")
    return TrainSettings(
        labels=folder / "labels.csv",
        image_folder=folder,
        out=folder / "bundle",
        run=folder / "run",
        threads=1,
        gate_image_count=2,
        projected=10,
        projected_from=SYNTH,
        architecture=Architecture(backbone="test_resnet", input_size=64),
        phase1=Phase1Settings(stages=(Stage(32, 1),), batch_size=8, watched=8),
        phase2=Phase2Settings(steps=20),
    )


class Killed(Exception):
    """The process ended here."""


@pytest.mark.slow
def test_training_takes_projected_images_into_the_train_split_alone(
    settings: TrainSettings, tmp_path: Path
) -> None:
    plain = replace(settings, out=tmp_path / "plain", run=tmp_path / "run", projected=0, projected_from=None)
    counted = []
    for each in (plain, settings):
        out = train(each)
        assert out is not None
        counted.append(json.loads((out / "bundle.json").read_text())["provenance"])
    without, given = counted
    made = given["projected"]["images"]
    assert 7 <= made <= 10
    assert given["projected"]["benign"] == 0
    assert without["projected"]["images"] == 0
    assert given["images"]["train"]["images"] == without["images"]["train"]["images"] + made
    assert given["images"]["train"]["benign"] == without["images"]["train"]["benign"]
    for split in ("validation", "calibration", "test"):
        assert given["images"][split] == without["images"][split]
    assert len(list((settings.run / "projected").glob("*.png"))) == made
    card = (settings.out / "README.md").read_text()
    assert f"{made} images of the train split are benign ones into which threats were projected" in card
    assert "projected" not in (plain.out / "README.md").read_text()
    assert list((plain.run).glob("projected")) == []


@pytest.mark.slow
def test_places_are_learned_from_projected_threats(settings: TrainSettings, tmp_path: Path) -> None:
    placed = replace(settings.phase1, localization=1.0)
    own = replace(settings, run=tmp_path / "run", phases=(1,), phase1=placed)
    shown: list[object] = []
    for projected, reason in (0, "labels of the training images hold none"), (10, "no box to cut threats"):
        bare = replace(own, run=tmp_path / "bare", projected=projected, projected_from=None)
        with pytest.raises(Refused, match=reason):
            train(bare, lambda *of: shown.append(of))
    assert shown == []  # refused before all images are looked at
    train(own)
    train(replace(own, run=tmp_path / "plain", phase1=settings.phase1))
    states = [
        torch.load(tmp_path / run / "network.pt", weights_only=True)["state"] for run in ("run", "plain")
    ]
    assert any(not torch.equal(states[0][key], states[1][key]) for key in states[0])


@pytest.mark.slow
def test_a_projection_that_was_killed_goes_on(settings: TrainSettings, tmp_path: Path) -> None:
    own = replace(settings, run=tmp_path / "run", phases=(1,))

    def kill(phase: str, done: int, _total: int, _figures: Mapping[str, float]) -> None:
        if (phase, done) == ("project threats", 4):
            raise Killed

    with pytest.raises(Killed):
        train(own, kill)
    folder = own.run / "projected"
    first = {path: path.stat().st_mtime_ns for path in folder.glob("*.png")}
    assert first
    train(own)
    assert {path: path.stat().st_mtime_ns for path in first} == first  # they were not made again
    whole = replace(own, run=tmp_path / "whole")
    train(whole)
    for path in folder.glob("*.png"):
        assert path.read_bytes() == (whole.run / "projected" / path.name).read_bytes()
    states = [torch.load(run / "network.pt", weights_only=True)["state"] for run in (own.run, whole.run)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    with pytest.raises(Refused, match="differs in projected"):
        train(replace(own, phases=(2,), projected=5))
    train(replace(own, projected=5))  # phase I by name: it is done again
    assert len(list(folder.glob("*.png"))) <= 5
