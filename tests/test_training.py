"""The three phases on tiny sets, their losses against NumPy, thresholds against their definition."""

import csv
import json
import multiprocessing
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from click.testing import CliRunner
from PIL import Image, ImageDraw
from safetensors.numpy import load, save
from safetensors.torch import save_file

from gbad_batch.engine.bundle import Bundle
from gbad_batch.engine.commands.cli import main
from gbad_batch.engine.datasets.arrays import read_row, rows_below
from gbad_batch.engine.decode import DecodeLimits, Decoder
from gbad_batch.engine.errors import Refused, Stopped
from gbad_batch.engine.model.architecture import MAP_MAX, Architecture
from gbad_batch.engine.model.bigan import BiGAN
from gbad_batch.engine.model.calibration import benign_quantiles, threshold_at, wilson_interval
from gbad_batch.engine.model.decision import Decision
from gbad_batch.engine.model.gbad import GBAD
from gbad_batch.engine.row import Row
from gbad_batch.engine.runtime import open_engine
from gbad_batch.engine.synth import SynthSettings, write_archive
from gbad_batch.engine.system.progress import silent
from gbad_batch.engine.training import features, reported
from gbad_batch.engine.training.augment import ImageSettings, draw, training_images
from gbad_batch.engine.training.data import Labelled, Splits, split
from gbad_batch.engine.training.phases import phase1, phase2
from gbad_batch.engine.training.phases.phase1 import Told, classification_loss, fold_norms, put_norms
from gbad_batch.engine.training.phases.phase2 import (
    adversarial_loss,
    check_collapse,
    discriminator_loss,
    set_standardization,
    train_bigan,
)
from gbad_batch.engine.training.phases.phase3 import (
    Losses,
    choose_default,
    fit_svm,
    is_monotone,
    operating_points,
)
from gbad_batch.engine.training.pixels import decoded
from gbad_batch.engine.training.reported import train_as_reported
from gbad_batch.engine.training.run import train
from gbad_batch.engine.training.settings import (
    Augmentation,
    Phase1Settings,
    Phase2Settings,
    Phase3Settings,
    Shares,
    Stage,
    TrainSettings,
    image_size,
)
from gbad_batch.export import engine_for

ARCHITECTURE = Architecture(backbone="test_resnet", input_size=64)
HEADER = "name,Gun,Knife,Wrench,Pliers,Scissors"


def write_set(folder: Path, count: int) -> tuple[Path, Path]:
    """Draw pictures, every other one with a dark bar for each of its threats; return labels, images."""
    random = np.random.default_rng(0)
    (folder / "images").mkdir()
    with (folder / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(HEADER.split(","))
        for number in range(count):
            image = Image.new("RGB", (90, 70), tuple(random.integers(200, 256, 3).tolist()))
            draw = ImageDraw.Draw(image)
            for x, y in random.integers(0, 60, (6, 2)).tolist():
                draw.ellipse((x, y, x + 20, y + 15), fill=(230, 170, 90))
            labels = random.random(5) < 0.4 if number % 2 else np.zeros(5, bool)
            labels[number % 5] |= bool(number % 2)
            for k in np.flatnonzero(labels).tolist():
                draw.rectangle((15 * k, 5, 15 * k + 8, 60), fill=(20, 30, 40 + 40 * k))
            image.save(folder / "images" / f"B{number:04d}.png")
            writer.writerow([f"B{number:04d}.png", *np.where(labels, 1, -1).tolist()])
    return folder / "labels.csv", folder / "images"


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> TrainSettings:
    folder = tmp_path_factory.mktemp("set")
    labels, images = write_set(folder, 100)
    weights = folder / "imagenet.safetensors"
    save_file(timm.create_model(ARCHITECTURE.backbone, pretrained=False).state_dict(), weights)
    return TrainSettings(
        backbone_weights=weights,
        labels=labels,
        image_folder=images,
        out=folder / "bundle",
        run=folder / "run",
        demo=True,
        threads=1,
        gate_image_count=2,
        architecture=ARCHITECTURE,
        phase1=Phase1Settings(stages=(Stage(32, 1), Stage(64, 1)), batch_size=16, watched=16),
        phase2=Phase2Settings(steps=60),
    )


@pytest.fixture(scope="module")
def told() -> list[tuple[str, dict[str, float]]]:
    """Collect what the training of `bundle` tells while it runs: phases with their figures."""
    return []


@pytest.fixture(scope="module")
def bundle(settings: TrainSettings, told: list[tuple[str, dict[str, float]]]) -> Bundle:
    out = train(settings, lambda phase, _done, _total, figures: told.append((phase, dict(figures))))
    assert out is not None
    return Bundle.read(out)


@pytest.mark.usefixtures("bundle")
def test_no_figure_is_told_before_it_is_measured(told: list[tuple[str, dict[str, float]]]):
    learning = [figures for _, figures in told if "loss" in figures and "pixels" in figures]
    assert "mAP" not in learning[0]  # before the first validation
    assert all(0 <= figures["mAP"] <= 1 for figures in learning if "mAP" in figures)
    assert any("mAP" in figures for figures in learning)


def test_training_gives_a_bundle_with_all_that_a_scan_needs(bundle: Bundle):
    manifest = bundle.manifest
    assert manifest.demo
    assert manifest.architecture == ARCHITECTURE
    for decision in ("gbad", "classes", "combined"):
        assert [point.pfa for point in manifest.operating_points["fp32"][decision]] == [
            0.01,
            0.02,
            0.05,
            0.10,
        ]
        assert not any(point.supported for point in manifest.operating_points["fp32"][decision])
        assert is_monotone(Decision.from_tensors(decision, bundle.tensors()))
    assert len(bundle.gate().images) == 2
    card = bundle.files["README.md"].decode()
    assert "not for operational decisions" in card
    assert "from weights of the backbone from the file imagenet.safetensors" in card
    assert "On the test split" in card
    assert "not supported" in card
    assert manifest.provenance["test"]["map"][0] is not None


def test_the_weights_of_a_bundle_give_what_its_graphs_give(bundle: Bundle):
    form, gate = bundle.manifest.preprocessing, bundle.gate()
    model = GBAD.from_arrays(bundle.manifest.architecture, bundle.tensors(), form.mean, form.std)
    decoder = Decoder(bundle.manifest.architecture.input_size, DecodeLimits())
    decoded = [decoder(Row("gate"), image) for image in gate.images]
    pixels = np.stack([each for each in decoded if each is not None])
    with torch.inference_mode():
        plain = model(torch.from_numpy(pixels))
    np.testing.assert_allclose(plain.logits, gate.logits, rtol=1e-4, atol=1e-5)
    with closing(open_engine(engine_for(bundle, precision="fp32"))) as runner:
        ours = runner(pixels)
    np.testing.assert_allclose(ours.x, plain.x, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(ours.reconstruction_loss, plain.reconstruction_loss, rtol=1e-3)


@pytest.mark.slow
def test_the_features_of_many_images_are_those_of_few(bundle: Bundle):
    form = bundle.manifest.preprocessing
    model = GBAD.from_arrays(bundle.manifest.architecture, bundle.tensors(), form.mean, form.std)
    pixels = np.random.default_rng(0).integers(0, 256, (5, 64, 64, 3), np.uint8)
    found = []
    for images in (1, features.WORTH_EXPORTING):
        with features.network_for_features(model, "cpu", images) as network:
            found.append(network(pixels))
    for few, many in zip(*found, strict=True):
        np.testing.assert_allclose(few, many, rtol=1e-3, atol=1e-4)


def test_kernels_in_channels_last_keep_their_order():
    model = GBAD(ARCHITECTURE).to(memory_format=torch.channels_last)
    stored = load(save(model.arrays()))
    state = model.state_dict()
    kernel = "network.fpn.output.0.weight"
    np.testing.assert_array_equal(stored[kernel], state[kernel].half().numpy())


@pytest.mark.slow
def test_the_same_seed_gives_the_same_weights(settings: TrainSettings, bundle: Bundle, tmp_path: Path):
    shown: list[Mapping[str, float]] = []

    def watch(phase: str, _done: int, _total: int, figures: Mapping[str, float]) -> None:
        if phase == "phase I":
            shown.append(figures)

    again = train(replace(settings, out=tmp_path / "again", run=tmp_path / "run"), watch)
    assert "mAP" not in shown[0]  # nothing has been validated yet
    assert min(figures.get("mAP", 0.0) for figures in shown) >= 0
    assert again is not None
    assert Bundle.read(again).files["weights.safetensors"] == bundle.files["weights.safetensors"]


def test_a_training_that_is_terminated_says_how_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def train_a_while(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr("gbad_batch.engine.training.run.train", train_a_while)
    ran = CliRunner().invoke(main, ["train", str(tmp_path), "--out", str(tmp_path / "bundle")])
    assert ran.exit_code == 143
    assert ran.output == "gbad-batch: training stopped on request; run the same command again to resume\n"


def train_and_die(settings: TrainSettings, killed_in: tuple[str, int]) -> None:
    """Train in a process that kills itself: nothing is tidied up, as at a power cut."""
    phase1.CHECKPOINT_EVERY_S = phase2.CHECKPOINT_EVERY_S = 0.0
    features.FLUSHED_EVERY = 1

    def die(phase: str, done: int, _total: int, _figures: Mapping[str, float]) -> None:
        if (phase, done) == killed_in:
            os.kill(os.getpid(), signal.SIGKILL)

    train(settings, die)


def train_until_killed(settings: TrainSettings, killed_in: tuple[str, int]) -> None:
    """Train in a process of its own, and see it die by SIGKILL at a step of a phase."""
    process = multiprocessing.get_context("spawn").Process(target=train_and_die, args=(settings, killed_in))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL


@pytest.mark.slow
@pytest.mark.parametrize("kills", [[("phase I", 3), ("phase II", 31)], [("features", 64), ("phase III", 1)]])
def test_a_training_that_was_killed_ends_with_the_same_weights(
    settings: TrainSettings, bundle: Bundle, tmp_path: Path, kills: list[tuple[str, int]]
):
    own = replace(settings, run=tmp_path / "run", out=tmp_path / "bundle", int8_image_count=0)
    for killed_in in kills:
        train_until_killed(own, killed_in)
        assert not own.out.exists()
    seen: list[tuple[str, int]] = []
    train(own, lambda phase, done, _total, _figures: seen.append((phase, done)))
    assert ("phase I", 1) not in seen  # it went on
    assert Bundle.read(own.out).files["weights.safetensors"] == bundle.files["weights.safetensors"]


def of_bags(settings: TrainSettings, folder: Path) -> TrainSettings:
    """Train on the synthetic bags and boxes in `folder`, and write there."""
    bags = folder / "bags"
    return replace(
        settings,
        labels=bags / "boxes.json",
        image_folder=bags / "images",
        out=folder / "bundle",
        run=folder / "run",
    )


@pytest.mark.slow
def test_localization_is_learned_and_resumed(settings: TrainSettings, tmp_path: Path):
    write_archive(tmp_path / "bags", SynthSettings(40, 1, 0.5))
    placed = replace(
        settings.phase1, stages=(Stage(32, 1, 0.5), Stage(64, 1)), batch_size=8, localization=1.0
    )
    own = replace(
        of_bags(settings, tmp_path),
        phases=(1,),
        phase1=placed,
    )
    states = []
    for name, killed_in, places in (("a", None, 1.0), ("b", ("phase I", 3), 1.0), ("c", None, 0.0)):
        each = replace(own, run=tmp_path / name, phase1=replace(placed, localization=places))
        if killed_in is not None:
            train_until_killed(each, killed_in)
        train(each)
        states.append(torch.load(each.run / "network.pt", weights_only=True)["state"])
    told = {name: (tmp_path / name / "metrics.jsonl").read_text() for name in ("a", "b", "c")}
    assert [json.loads(line)["localization_loss"] > 0 for line in told["a"].splitlines()] == [True, True]
    assert "localization_loss" not in told["c"]
    whole, killed, unplaced = states
    assert whole.keys() == GBAD(ARCHITECTURE).network.state_dict().keys()  # nothing of the localization head
    assert all(torch.equal(whole[key], killed[key]) for key in whole)
    assert not all(torch.equal(whole[key], unplaced[key]) for key in whole)


@pytest.mark.slow  # test_start trains a map in small
def test_a_class_map_learns_from_labels_and_boxes_beside_fc5(settings: TrainSettings, tmp_path: Path):
    write_archive(tmp_path / "bags", SynthSettings(60, 1, 0.5))
    own = replace(
        of_bags(settings, tmp_path),
        int8_image_count=0,
        architecture=replace(ARCHITECTURE, head=MAP_MAX, map_channels=16),
        phase1=replace(settings.phase1, stages=(Stage(64, 1),), batch_size=8, localization=1.0),
    )
    train(own)
    found = Bundle.read(own.out)
    (epoch,) = found.manifest.provenance["epochs"]
    assert epoch["localization_loss"] > 0
    poolings = found.manifest.provenance["poolings"]
    assert poolings[found.manifest.architecture.head] == max(poolings.values())
    fresh = GBAD(own.architecture).network.state_dict()
    learned = found.tensors()
    for layer in ("class_map.classes.bias", "fc5.bias"):  # both heads have learned
        assert not np.allclose(learned[f"network.{layer}"], fresh[layer].numpy(), atol=1e-4)
    test = found.manifest.provenance["test"]
    assert test["fc5.map"] != test["map"]
    card = found.files["README.md"].decode()
    assert "over the places of a class map (mAP on validation: the maximum" in card
    assert "FC5 by itself: mean average precision" in card
    # a start from it brings the map along, at another input size too
    slow = replace(own.phase1, learning_rate=0.0, average_decay=0.0)
    other = replace(own.architecture, input_size=96)
    again = replace(
        own, start=own.out, out=tmp_path / "b", run=tmp_path / "r", phase1=slow, architecture=other
    )
    train(replace(again, phases=(1,)))
    state = torch.load(again.run / "network.pt", weights_only=True)["state"]
    kernel = "class_map.classes.weight"
    assert np.array_equal(state[kernel].numpy(), learned[f"network.{kernel}"].astype(np.float32))


def test_an_input_size_without_graphs_is_refused_at_once():
    with pytest.raises(Refused, match="--image-size 300 is not a multiple of 32 from 64 to 2048"):
        image_size(300)
    assert [image_size(size) for size in (64, 256, 320, 384)] == [64, 256, 320, 384]


@pytest.mark.slow
def test_a_run_knows_its_images_and_boxes(settings: TrainSettings, tmp_path: Path):
    write_archive(tmp_path / "bags", SynthSettings(40, 1, 0.5))
    labels, images = tmp_path / "bags" / "boxes.json", tmp_path / "bags" / "images"
    placed = replace(settings.phase1, stages=(Stage(32, 1),), batch_size=8, localization=1.0)
    own = replace(
        settings,
        labels=labels,
        image_folder=images,
        run=tmp_path / "run",
        phases=(1,),
        phase1=placed,
        threads=1,
    )
    train(own)
    trained = (own.run / "network.pt").stat().st_mtime_ns
    moved = (tmp_path / "bags").rename(tmp_path / "moved")
    otherwise = moved / "images" / ".." / "images"
    train(replace(own, labels=moved / "boxes.json", image_folder=otherwise))
    assert (own.run / "network.pt").stat().st_mtime_ns == trained
    told = json.loads((moved / "boxes.json").read_text())
    told["annotations"][0]["bbox"][0] += 1
    (moved / "boxes.json").write_text(json.dumps(told))
    changed = replace(own, labels=moved / "boxes.json", image_folder=moved / "images")
    with pytest.raises(Refused, match="differs in boxes"):
        train(replace(changed, phases=(2,)))
    train(changed)  # phase I by name: it is done again
    assert (own.run / "network.pt").stat().st_mtime_ns > trained


def test_places_without_boxes_are_refused(settings: TrainSettings, tmp_path: Path):
    own = replace(settings, run=tmp_path / "run", out=tmp_path / "bundle", phases=(1,))
    with pytest.raises(Refused, match="need boxes around the threats"):
        train(replace(own, phase1=replace(own.phase1, localization=1.0)))


@pytest.mark.slow
def test_a_phase_runs_alone_and_again(settings: TrainSettings, bundle: Bundle, tmp_path: Path):
    own = replace(settings, out=tmp_path / "bundle", run=tmp_path / "run", int8_image_count=0)
    with pytest.raises(Refused, match="no finished phase I"):
        train(replace(own, phases=(2,)))
    assert train(replace(own, phases=(1,))) is None
    assert train(replace(own, phases=(2,))) is None
    heldout = replace(own.phase3, heldout=True)
    out = train(replace(own, phases=(3,), phase3=heldout))
    assert out is not None
    found, ours = Bundle.read(out).tensors(), bundle.tensors()
    assert np.array_equal(found["network.fc5.weight"], ours["network.fc5.weight"])
    assert not np.array_equal(found["decision.gbad.mean"], ours["decision.gbad.mean"])
    with pytest.raises(Refused, match="another training"):
        train(replace(own, out=tmp_path / "other", seed=1))


def test_the_run_folder_tells_how_it_went(settings: TrainSettings, bundle: Bundle):
    assert bundle.manifest.demo
    lines = [json.loads(line) for line in (settings.run / "metrics.jsonl").read_text().splitlines()]
    epochs = [line for line in lines if line["phase"] == "phase1"]
    assert [line["size"] for line in epochs] == [32, 64]
    for line in epochs:
        assert {"loss", "training_f1_micro", "validation_f1_macro", "validation_map"} <= line.keys()
    assert [line["step"] for line in lines if line["phase"] == "phase2"] == [60]
    drawn = {path.name for path in (settings.run / "plots").iterdir()}
    assert drawn == {"epochs.png", "precision_recall_f1.png", "samples.png", "bigan.png"}
    assert list((settings.run / "tensorboard").glob("events.*"))


def test_memory_that_training_frees_is_not_faulted_in_again():
    code = (
        "import resource, sys\n"
        "from gbad_batch.engine.system.machine import keep_freed_memory\n"
        "if sys.argv[1] == 'kept': keep_freed_memory()\n"
        "def faults(): return resource.getrusage(resource.RUSAGE_SELF).ru_minflt\n"
        "before = faults()\n"
        "for _ in range(10): b'x' * (64 << 20)\n"
        "print(faults() - before)"
    )
    kept, given_back = (
        int(subprocess.run([sys.executable, "-c", code, how], check=True, capture_output=True).stdout)
        for how in ("kept", "given back")
    )
    assert kept < 0.2 * given_back


def test_norms_keep_features_alive_whatever_the_images_have_in_common():
    torch.manual_seed(0)
    network, images = GBAD(ARCHITECTURE).network.train(), torch.randn(32, 3, 64, 64)
    with torch.no_grad():
        for layer in network.fpn.output:
            torch.nn.init.normal_(layer.bias, 0.0, 50.0)  # type: ignore[arg-type]
        before = network(images)[0]
        put_norms(network)
        after = network(images)[0]
    assert (before.amax(dim=0) == 0).float().mean() > 0.3
    assert (after.amax(dim=0) == 0).float().mean() < 0.01


def test_norms_fold_away():
    torch.manual_seed(0)
    network, images = GBAD(ARCHITECTURE).network, torch.randn(16, 3, 64, 64)
    plain = set(network.state_dict())
    put_norms(network)
    with torch.no_grad():
        for level in network.fc:
            torch.nn.init.normal_(level[0].weight, 1.0, 0.3)  # type: ignore[index]
            torch.nn.init.normal_(level[0].bias, 0.0, 0.3)  # type: ignore[index]
    for _ in range(3):
        network.train()(images)
    with torch.no_grad():
        before = network.eval()(images)
        fold_norms(network)
        after = network(images)
    assert set(network.state_dict()) == plain
    for one, other in zip(before, after, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_a_training_starts_from_the_network_of_a_bundle(
    settings: TrainSettings, bundle: Bundle, tmp_path: Path
):
    slow = replace(settings.phase1, learning_rate=0.0, average_decay=0.0)
    own = replace(
        settings,
        out=tmp_path / "bundle",
        run=tmp_path / "run",
        phase1=slow,
        phases=(1,),
        start=bundle.path,
    )
    train(own)
    found = torch.load(own.run / "network.pt", weights_only=True)["state"]["fpn.output.0.weight"]
    assert np.array_equal(found.numpy(), bundle.tensors()["network.fpn.output.0.weight"].astype(np.float32))
    other = replace(
        own, out=tmp_path / "no", run=tmp_path / "other", architecture=replace(ARCHITECTURE, latent=8)
    )
    with pytest.raises(Refused, match="another architecture"):
        train(other)


def test_the_reports_phase_one_has_no_pyramid(
    settings: TrainSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    short = replace(reported.REPORTED, stages=(Stage(32, 1),), batch_size=16)
    monkeypatch.setattr(reported, "REPORTED", short)
    assert reported.ReportedNetwork(ARCHITECTURE.backbone).body.get_classifier().out_features == 5  # type: ignore
    lines = train_as_reported(replace(settings, run=tmp_path / "run"))  # from the file of ImageNet's weights
    assert [line["epoch"] for line in lines] == [1]
    with pytest.raises(Refused, match="leave out --start"):
        train_as_reported(replace(settings, run=tmp_path / "other", start=tmp_path))
    assert not (tmp_path / "run" / "bigan.pt").exists()


def labelled(positive: np.ndarray, groups: Sequence[str] = (), splits: Sequence[str] = ()) -> Labelled:
    """Make a set whose positives hold pliers."""
    n = len(positive)
    labels = np.zeros((n, 5), bool)
    labels[positive, 3] = True
    empty = ("",) * n
    return Labelled(
        tuple(Path(str(i)) for i in range(n)), labels, tuple(groups) or empty, tuple(splits) or empty
    )


SHARES = Shares(validation=0.1, calibration=0.2, test=0.1)


def parts_of(splits: Splits) -> list[np.ndarray]:
    return [splits.train, splits.validation, splits.calibration, splits.test]


def test_splits_are_disjoint_whole_and_share_the_positives():
    images = labelled(np.arange(1000) < 200)
    parts = parts_of(split(images, np.arange(1000), SHARES, seed=7))
    assert sorted(np.concatenate(parts).tolist()) == list(range(1000))
    assert [int(images.positive[part].sum()) for part in parts] == [160, 20, 0, 20]
    assert [len(part) for part in parts] == [640, 100, 160, 100]
    assert not np.array_equal(parts[0], split(images, np.arange(1000), SHARES, 8).train)


def test_images_that_look_alike_or_are_of_one_bag_stay_together():
    alike = np.arange(600) // 3 * 3  # threes look alike
    bags = [f"bag {i // 4}" if i % 4 < 2 else "" for i in range(600)]  # and some of two threes are one bag
    images = labelled(np.arange(600) % 10 == 0, groups=bags)
    part = np.zeros(600, int)
    for k, index in enumerate(parts_of(split(images, alike, SHARES, seed=1))):
        part[index] = k
    for i in range(600):
        assert part[i] == part[alike[i]]
        assert not bags[i] or part[i] == part[bags.index(bags[i])]
    assert len(set(part.tolist())) == 4


def test_the_splits_that_labels_name_hold():
    names = ["train", "validation", "calibration", "test", ""] * 20
    images = labelled(np.arange(100) % 2 == 0, splits=names)
    parts = split(images, np.arange(100), SHARES, seed=0)
    assert {names[i] for i in parts.train} == {"train"}
    assert {names[i] for i in parts.test} == {"test"}
    assert not images.positive[parts.calibration].any()
    assert sum(map(len, parts_of(parts))) == 70  # 20 name no split, 10 positives cannot calibrate


@pytest.mark.parametrize(("positives", "kind"), [(0, "positive"), (1, "positive"), (100, "benign")])
def test_a_set_that_cannot_be_split_is_refused(positives: int, kind: str):
    with pytest.raises(Refused, match=rf"images are {kind}, and the .* split has none: have at least \d+,"):
        split(labelled(np.arange(100) < positives), np.arange(100), SHARES, seed=0)


# --- losses against plain NumPy ---


def sigmoid(values: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-values))


def test_the_loss_of_phase_one_is_the_reports():
    random = np.random.default_rng(0)
    logits, labels = random.normal(size=(6, 5)), random.random((6, 5)) < 0.3
    p = sigmoid(logits)
    wanted = -(np.where(labels, np.log(p), np.log(1 - p))).mean(axis=0).mean()
    told = Told(torch.from_numpy(labels), torch.ones((6, 5), dtype=torch.bool))
    got = classification_loss(torch.from_numpy(logits), *told)
    assert got.item() == pytest.approx(wanted, rel=1e-12)


def test_labels_that_are_unknown_have_no_part_in_the_loss():
    random = np.random.default_rng(0)
    labels, known = (torch.from_numpy(random.random((6, 5)) < share) for share in (0.3, 0.6))
    logits = torch.from_numpy(random.normal(size=(6, 5))).requires_grad_()
    loss = classification_loss(logits, labels, known)
    p = logits.sigmoid()
    wanted = -torch.where(labels, p.log(), (1 - p).log())[known].mean()
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-12)
    loss.backward()
    assert torch.equal(logits.grad != 0, known)
    assert classification_loss(logits, labels, torch.zeros_like(known)).item() == 0


def test_the_losses_of_phase_two_are_the_recipes():
    real, fake = np.random.default_rng(0).normal(size=(2, 50))
    d_loss = (
        -(0.9 * np.log(sigmoid(real)) + 0.1 * np.log(1 - sigmoid(real))).mean()
        - np.log(1 - sigmoid(fake)).mean()
    )
    eg_loss = -np.log(1 - sigmoid(real)).mean() - np.log(sigmoid(fake)).mean()
    tensors = torch.from_numpy(real), torch.from_numpy(fake)
    assert discriminator_loss(*tensors, real_label=0.9).item() == pytest.approx(d_loss, rel=1e-12)
    assert adversarial_loss(*tensors).item() == pytest.approx(eg_loss, rel=1e-12)


def test_dead_features_do_not_divide_by_zero():
    bigan = BiGAN(ARCHITECTURE)
    x = np.random.default_rng(0).gamma(1, 1, (200, 1024)).astype(np.float32)
    x[:, :300] = 0
    set_standardization(bigan, x)
    assert bigan.std.min().item() == pytest.approx(0.1 * np.median(x.std(axis=0)), rel=1e-5)
    s = bigan.standardize(torch.from_numpy(x) * 1000)
    assert s.abs().max().item() == 10


# --- what the phases are for ---


def images_of(folder: Path, count: int) -> list[Path]:
    random = np.random.default_rng(3)
    for k in range(count):
        smooth = Image.fromarray(random.integers(0, 256, (6, 8, 3), np.uint8)).resize((160, 120))
        smooth.save(folder / f"{k}.jpg", quality=95)
    return sorted(folder.glob("*.jpg"))


def fed(paths: list[Path], augmentation: Augmentation | None, size: int = 64, epoch: int = 0) -> np.ndarray:
    """Images [n, S, S, 3] as phase I gets them, normalized by nothing."""
    settings = ImageSettings(size, (0.0,) * 3, (1 / 255,) * 3, augmentation, seed=5, threads=1)
    batches = [np.arange(len(paths))]
    index, images = next(iter(training_images(paths, batches, epoch, settings)))
    assert index.tolist() == list(range(len(paths)))
    return images.permute(0, 2, 3, 1).numpy()


def test_images_without_movement_are_those_of_a_scan(tmp_path: Path):
    paths = images_of(tmp_path, 4)
    still = Augmentation(flip=0, rotation=0, shift=0, scale=0, shear=0)
    decoder = Decoder(64, DecodeLimits())
    scanned = np.stack([decoder(Row(str(path)), path.read_bytes()) for path in paths])  # type: ignore[arg-type]
    for augmentation in (None, still):
        difference = np.abs(fed(paths, augmentation) - scanned)
        assert difference.max() <= 2
        assert difference.mean() <= 0.3
    mirrored = fed(paths, Augmentation(flip=1, rotation=0, shift=0, scale=0, shear=0))
    assert np.abs(mirrored - scanned[:, :, ::-1]).max() <= 2


@pytest.mark.parametrize("augmentation", [Augmentation(), Augmentation(turn=0.5, look=1.0)])
def test_movements_and_looks_belong_to_seed_epoch_and_image(tmp_path: Path, augmentation: Augmentation):
    paths = images_of(tmp_path, 6)
    first = fed(paths, augmentation)
    assert np.array_equal(first, fed(paths, augmentation))
    assert np.array_equal(first[:2], fed(paths[:2], augmentation))
    assert not np.array_equal(first, fed(paths, augmentation, epoch=1))


def test_bags_are_turned_in_all_eight_ways(tmp_path: Path):
    (path,) = images_of(tmp_path, 1)
    turning = Augmentation(flip=0.5, rotation=0, shift=0, scale=0, shear=0, turn=0.5)
    seen = {fed([path], turning, epoch=epoch).tobytes() for epoch in range(60)}
    (plain,) = fed([path], None)
    both = (plain, plain.transpose(1, 0, 2))
    ways = {np.ascontiguousarray(np.rot90(each, k))[None].tobytes() for each in both for k in range(4)}
    assert seen == ways


def test_rows_of_an_array_are_images_like_files(tmp_path: Path):
    paths = images_of(tmp_path, 4)
    decoder = Decoder(64, DecodeLimits())
    scanned = [decoder(Row(str(path)), path.read_bytes()) for path in paths]
    np.save(tmp_path / "images.npy", np.stack(scanned))  # type: ignore[arg-type]
    np.save(tmp_path / "features.npy", np.zeros((4, 7), np.float32))  # is no array of images
    rows = rows_below(tmp_path)
    assert rows == [tmp_path / "images.npy" / str(k) for k in range(4)]
    for augmentation in (None, Augmentation(turn=0.5, look=0.5)):
        # the files by the same filter, to the same size
        assert np.abs(fed(rows, augmentation).astype(int) - fed(paths, augmentation)).mean() <= 1
    assert all(np.array_equal(one, other) for one, other in zip(decoded(rows, 64), scanned, strict=True))  # pyright: ignore
    with pytest.raises(Refused, match="no row 4"):
        read_row(tmp_path / "images.npy" / "4")


def test_an_image_that_vanished_stops_training(tmp_path: Path):
    (tmp_path / "0.png").write_bytes(b"no picture")
    with pytest.raises(Stopped, match="cannot be decoded any more"):
        fed([tmp_path / "0.png"], None)


def test_a_movement_is_the_map_that_it_says():
    whole = Augmentation(flip=0, rotation=90, shift=0, scale=0, shear=0)
    drawn = draw(whole, 100, (0, 0, 0)).affine
    linear, offset = drawn[:, :2], drawn[:, 2]
    assert np.allclose(linear @ linear.T, np.eye(2), atol=1e-6)
    assert np.allclose(linear @ (50, 50) + offset, (50, 50), atol=1e-4)
    shifted = draw(Augmentation(0, 0, 0.1, 0, 0), 100, (0, 0, 1)).affine
    assert np.allclose(shifted[:, :2], np.eye(2))
    assert (np.abs(shifted[:, 2]) <= 10).all()


def test_the_bigan_learns_to_reconstruct_benign_features():
    torch.manual_seed(0)
    torch.set_num_threads(1)
    random = np.random.default_rng(0)
    mixing = random.normal(size=(8, 128)) / 3
    benign, other = (
        np.maximum(random.normal(size=(600, 8)) @ mixing, 0).astype(np.float32),
        np.maximum(random.normal(size=(200, 8)) @ random.normal(size=(8, 128)) / 3, 0).astype(np.float32),
    )
    bigan = BiGAN(Architecture(features=128))
    figures = train_bigan(bigan, benign[:400], Phase2Settings(steps=300), seed=0, progress=silent)
    with torch.no_grad():
        seen, unseen = (bigan(torch.from_numpy(x))[0].numpy() for x in (benign[400:], other))
    assert figures["reconstruction"] < 0.75
    assert np.median(seen) < np.median(unseen)


def test_features_that_are_all_dead_are_a_collapse_and_no_crash():
    bigan = BiGAN(Architecture(features=16))
    figures = train_bigan(bigan, np.zeros((64, 16), np.float32), Phase2Settings(steps=5), 0, silent)
    with pytest.raises(Stopped, match="collapsed"):
        check_collapse(figures, 0.5, 5000, Phase2Settings())


def test_a_collapse_is_named():
    healthy = {"reconstruction": 0.3, "d_real": 0.6, "d_fake": 0.9, "std_g": 0.9, "std_e": 1.0}
    assert check_collapse(healthy, 0.8, 9000, Phase2Settings()) is None
    collapsed = [
        (healthy | {"d_real": 0.99, "d_fake": 1.0}, 0.8, "tells every pair apart"),
        (healthy | {"std_g": 0.1}, 0.8, r"std of G\(z\)"),
        (healthy | {"std_e": 3.5}, 0.8, r"std of E\(x\)"),
        (healthy, 0.45, "AUROC of 0.45"),
        (healthy | {"std_g": float("nan")}, 0.8, r"std of G\(z\)"),
    ]
    for figures, auroc, sentence in collapsed:
        with pytest.raises(Stopped, match=sentence):
            check_collapse(figures, auroc, 5000, Phase2Settings())
        assert "looks collapsed" in (check_collapse(figures, auroc, 4999, Phase2Settings()) or "")


def make_losses(n: int, seed: int, shift: float) -> Losses:
    """Benign images and as many positives, whose losses and logits are larger by `shift`."""
    random = np.random.default_rng(seed)
    labels = np.zeros((2 * n, 5), bool)
    labels[n:, 0] = True
    rise = np.any(labels, axis=1) * shift
    r, m = (np.exp(random.normal(size=2 * n) * 0.5 + rise).astype(np.float32) for _ in range(2))
    logits = (random.normal(size=(2 * n, 5)) - 2 + rise[:, None]).astype(np.float32)
    return Losses(r, m, logits, labels)


@pytest.mark.parametrize("shift", [1.0, -1.0, 0.0])
@pytest.mark.parametrize("name", ["gbad", "combined"])
def test_decisions_are_monotone_whatever_the_data(name: str, shift: float):
    losses = make_losses(200, 0, shift)
    settings = Phase3Settings(gammas=(0.1, 3.0), costs=(1.0,))
    decision = fit_svm(name, losses, make_losses(100, 1, shift), settings, np.random.default_rng(0))
    assert is_monotone(decision)
    scores = losses.scores(decision)
    assert shift < 1 or np.median(scores[losses.positive]) > np.median(scores[~losses.positive])


def test_a_kernel_that_folds_back_is_not_monotone():
    bump = Decision(
        "gbad", *(np.zeros(2), np.ones(2), np.ones(2), np.zeros(1)), support=np.zeros((1, 2)),
        coefficients=np.ones(1), gamma=np.ones(1), low=np.full(2, -1.0), high=np.full(2, 1.0),
    )  # fmt: skip
    assert not is_monotone(bump)


@pytest.mark.parametrize(
    ("found", "chosen"),
    [
        ((150, 220, 225), "classes"),  # of 300 threats; the interval of 225 begins at 209
        ((215, 220, 225), "gbad"),
        ((150, 200, 225), "combined"),
        ((0, 225, 150), "classes"),
    ],
)
def test_the_default_decision_is_the_simplest_of_the_best(found: tuple[int, int, int], chosen: str):
    benign, threats = 700, 300
    random, labels = np.random.default_rng(0), np.zeros((benign + threats, 5), bool)
    labels[benign:, 0] = True
    # each decision looks at a number of its own, which is large for the threats that it finds
    numbers = random.uniform(0, 1, (3, benign + threats))
    for number, count in zip(numbers, found, strict=True):
        number[benign : benign + count] += 2
    gbad, classes, combined = numbers
    logits = np.tile(classes[:, None], 5).astype(np.float32)
    losses = Losses(np.exp(gbad).astype(np.float32), np.exp(combined).astype(np.float32), logits, labels)
    weights = {"gbad": [1.0, 0.0], "classes": [1.0], "combined": [0.0, 1.0, 0.0]}
    decisions = {
        name: Decision(name, np.zeros(len(w)), np.ones(len(w)), np.array(w), np.zeros(1))
        for name, w in weights.items()
    }
    assert choose_default(decisions, losses) == chosen


def test_thresholds_give_at_most_the_false_alarm_rate_asked_for():
    random = np.random.default_rng(0)
    for scores in (random.normal(size=1000), np.repeat(np.arange(10.0), 100), np.zeros(50)):
        for pfa in (0.01, 0.05, 0.1):
            threshold = threshold_at(scores, pfa)
            assert (scores >= threshold).mean() <= pfa
    smooth = random.normal(size=1000)
    assert (smooth >= threshold_at(smooth, 0.05)).mean() == 0.05


def test_operating_points_say_what_supports_them():
    benign = make_losses(2000, 0, 1.0)
    benign = benign.take(~benign.positive)
    decision = Decision("gbad", np.zeros(2), np.ones(2), np.ones(2), np.zeros(1))
    points = operating_points(decision, benign, Phase3Settings())
    assert [point.supported for point in points] == [False, False, True, True]  # 100 images above it
    for point in points:
        low, high = point.interval
        assert low < point.pfa < high
        probabilities = sigmoid(benign.logits.astype(np.float64))
        assert ((probabilities >= np.array(point.class_thresholds)).mean(axis=0) <= point.pfa).all()
    assert [p.threshold for p in points] == sorted((p.threshold for p in points), reverse=True)
    probability, score = benign_quantiles(benign.scores(decision))
    assert probability[0] == 0
    assert probability[-1] == 1
    assert score == sorted(score)
    assert np.interp(0.95, probability, score) == pytest.approx(points[2].threshold, abs=0.02)


def test_wilson_intervals_are_the_published_ones():
    low, high = wilson_interval(18, 1800)
    assert (round(100 * low, 2), round(100 * high, 2)) == (0.63, 1.58)
    assert wilson_interval(0, 0) == (0.0, 1.0)
