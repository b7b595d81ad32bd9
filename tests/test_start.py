"""A site's own labelled images on the network of a bundle, with synthetic ones beside them."""

import csv
import json
import multiprocessing
import os
import signal
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch_bundle
from click.testing import CliRunner
from PIL import Image, ImageDraw

from gbad_batch.engine.bundle import Bundle, write_bundle
from gbad_batch.engine.commands.cli import main
from gbad_batch.engine.errors import Refused
from gbad_batch.engine.row import THREATS
from gbad_batch.engine.training import drawing, mixing
from gbad_batch.engine.training.data import Labelled
from gbad_batch.engine.training.phases import phase1
from gbad_batch.engine.training.phases.phase1 import Phase1Data, epoch_batches
from gbad_batch.engine.training.run import train
from gbad_batch.engine.training.settings import (
    Phase1Settings,
    Phase2Settings,
    Stage,
    TrainSettings,
    from_bundle,
    train_settings,
)

ARCHITECTURE = torch_bundle.PEAKED
SITE = 80


@pytest.fixture(scope="module")
def former(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("former") / "bundle"
    return write_bundle(folder, torch_bundle.manifest(ARCHITECTURE), torch_bundle.files(ARCHITECTURE))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Draw pictures, every other one with a dark bar for a gun or a knife; the list knows of these only."""
    folder, random = tmp_path_factory.mktemp("site"), np.random.default_rng(0)
    (folder / "images").mkdir()
    with (folder / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "gun", "knife"])
        for number in range(SITE):
            image = Image.new("RGB", (90, 70), tuple(random.integers(200, 256, 3).tolist()))
            draw = ImageDraw.Draw(image)
            for x, y in random.integers(0, 60, (6, 2)).tolist():
                draw.ellipse((x, y, x + 20, y + 15), fill=(230, 170, 90))
            held = [number % 2 == 1 and number // 2 % 2 == k for k in (0, 1)]
            for k in np.flatnonzero(held).tolist():
                draw.rectangle((40 * k, 5, 40 * k + 8, 60), fill=(20, 30, 40 + 40 * k))
            image.save(folder / "images" / f"B{number:04d}.png")
            writer.writerow([f"B{number:04d}.png", *map(int, held)])
    return folder


@pytest.fixture(scope="module")
def settings(site: Path, former: Bundle) -> TrainSettings:
    return TrainSettings(
        labels=site / "labels.csv",
        image_folder=site / "images",
        out=site / "bundle",
        run=site / "run",
        start=former.path,
        mixed=12,
        epoch_images=(24, 8),
        threads=1,
        gate_image_count=2,
        int8_image_count=0,
        architecture=ARCHITECTURE,
        phase1=replace(
            from_bundle(ARCHITECTURE, 12), stages=(Stage(64, 2),), batch_size=8, learning_rate=1e-3, watched=8
        ),
        phase2=Phase2Settings(steps=20),
    )


@pytest.fixture(scope="module")
def tuned(settings: TrainSettings) -> Bundle:
    out = train(settings)
    assert out is not None
    return Bundle.read(out)


def test_the_bundle_says_what_it_comes_from_and_what_it_was_not_told(tuned: Bundle, former: Bundle):
    card = tuned.files["README.md"].decode()
    assert f"from the network of the bundle small ({former.hash[:12]})" in card
    assert "12 synthetic images were mixed into phase I" in card
    for threat in THREATS[2:]:
        assert f"Of {SITE} images it is unknown whether they hold {threat}" in card
    assert "whether they hold gun" not in card
    assert not tuned.manifest.demo
    assert tuned.manifest.provenance["images"]["train"]["images"] < SITE  # the synthetic ones are in no split
    (first, second) = tuned.manifest.provenance["epochs"]
    assert first["localization_loss"] > 0  # on the boxes of synthetic images
    assert (first["epoch"], second["epoch"]) == (1, 2)


def test_a_training_without_steps_keeps_the_network(settings: TrainSettings, former: Bundle, tmp_path: Path):
    still = replace(settings.phase1, learning_rate=0.0, average_decay=0.0, stages=(Stage(64, 1),))
    own = replace(settings, run=tmp_path / "run", phases=(1,), phase1=still)
    train(own)
    state = torch.load(own.run / "network.pt", weights_only=True)["state"]
    before = former.tensors()
    for name in ("fc.0.weight", "fc5.weight", "fpn.output.0.weight", "class_map.classes.weight"):
        wanted = torch.from_numpy(before[f"network.{name}"].astype(np.float32)).bfloat16()
        np.testing.assert_array_equal(state[name].numpy(), wanted.half().float().numpy())


def train_and_die(settings: TrainSettings, killed_in: tuple[str, int]) -> None:
    """Train in a process that kills itself: nothing is tidied up, as at a power cut."""
    phase1.CHECKPOINT_EVERY_S, drawing.AT_ONCE = 0.0, 6

    def die(phase: str, done: int, _total: int, _figures: Mapping[str, float]) -> None:
        if (phase, done) == killed_in:
            os.kill(os.getpid(), signal.SIGKILL)

    train(settings, die)


@pytest.mark.slow
@pytest.mark.usefixtures("tuned")
def test_a_training_that_was_killed_ends_with_the_same_weights(settings: TrainSettings, tmp_path: Path):
    own = replace(settings, run=tmp_path / "run", phases=(1,))
    for killed_in in ((f"draw {mixing.FOLDER}", 6), ("phase I", 5)):
        process = multiprocessing.get_context("spawn").Process(target=train_and_die, args=(own, killed_in))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
    drawing_before, drawing.AT_ONCE = drawing.AT_ONCE, 6
    try:
        seen: list[tuple[str, int]] = []
        train(own, lambda phase, done, _total, _figures: seen.append((phase, done)))
    finally:
        drawing.AT_ONCE = drawing_before
    assert ("phase I", 1) not in seen  # it went on
    killed, whole = (torch.load(each.run / "network.pt", weights_only=True) for each in (own, settings))
    assert killed["state"].keys() == whole["state"].keys()
    assert all(torch.equal(killed["state"][key], whole["state"][key]) for key in whole["state"])


def labelled(positive: list[bool]) -> Labelled:
    n = len(positive)
    labels = np.zeros((n, 5), bool)
    labels[positive, 0] = True
    return Labelled(tuple(Path(str(k)) for k in range(n)), labels, ("",) * n, ("",) * n)


def test_an_epoch_has_its_share_of_each_source_and_repeats_small_sets():
    data = Phase1Data(
        labelled([True] * 6 + [False] * 34 + [True] * 100 + [False] * 100),
        np.arange(40),
        np.arange(0),
        mixed=np.arange(40, 240),
        epoch_images=(48, 16),
    )
    seen = np.zeros(240, int)
    for epoch in range(4):
        batches = epoch_batches(data, Phase1Settings(batch_size=16), seed=1, epoch=epoch)
        shown = np.concatenate(batches)
        assert [len(batch) for batch in batches] == [16] * 4
        assert [(shown < 6).sum(), (shown < 40).sum(), (shown < 140).sum()] == [24, 48, 56]
        np.add.at(seen, shown, 1)
    assert set(seen[:6]) == {16}  # 96 guns in 4 epochs
    assert set(seen[6:40]) <= {2, 3}
    assert set(seen[40:]) <= {0, 1}


def test_the_absence_of_a_class_that_hardly_occurs_is_not_believed_of_other_threats():
    images = labelled([True] * mixing.FEWEST + [False] * 10)
    images.labels[0, 3] = True  # one pair of pliers
    known = mixing.believed(images, np.arange(20))
    assert known[:, 0].all()
    assert known[0].tolist() == [True, False, False, True, False]
    assert not known[1 : mixing.FEWEST, 1:].any()
    assert known[mixing.FEWEST :].all()  # benign bags
    images.known[-1, 2] = False
    assert not mixing.believed(images, np.arange(20))[-1, 2]


def given(site: Path, **changes: Any) -> dict[str, Any]:
    """Give the options of `train` as the command line does where nothing is said."""
    names = ("labels", "class_map", "name", "weights", "start", "synthetic", "backbone", "image_size")
    names += ("stages", "batch_size", "learning_rate", "places", "project_from")
    usual = dict.fromkeys(names) | {"form": "auto", "seed": 0, "threads": 0, "device": "cpu", "phases": ()}
    usual |= {"project": 0, "bigan_steps": 20, "phase3": "insample", "out": site / "b", "run": site / "r"}
    return usual | changes


def test_defaults_follow_from_the_bundle(site: Path, former: Bundle):
    own = train_settings(site, **given(site, start=former.path))
    assert own.architecture == ARCHITECTURE
    assert own.mixed == 1000
    assert own.phase1 == from_bundle(ARCHITECTURE, 1000)
    assert own.phase1.localization == 1
    large = from_bundle(replace(ARCHITECTURE, input_size=384), 0)
    assert large.stages == (Stage(384, 3),)
    usual = train_settings(site, **given(site))
    assert (usual.mixed, usual.phase1) == (0, Phase1Settings())
    assert usual.architecture.backbone == "resnext50_32x4d"
    with pytest.raises(Refused, match="--backbone regnetx_004 is not that of"):
        train_settings(site, **given(site, start=former.path, backbone="regnetx_004"))


def test_the_command_takes_a_sites_images(site: Path, former: Bundle, tmp_path: Path):
    words = ["train", str(site / "images"), "--labels", str(site / "labels.csv"), "--start", str(former.path)]
    words += ["--out", str(tmp_path / "b"), "--phase", "1", "--stages", "64:1", "--synthetic", "0"]
    done = CliRunner().invoke(main, words, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    config = json.loads((tmp_path / "b.run" / "config.json").read_text())
    assert (config["start"], config["mixed"]) == (former.hash, None)
