"""The three phases on tiny sets, their losses against NumPy, thresholds against their definition."""

import csv
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image, ImageDraw
from safetensors.numpy import load, save
from safetensors.torch import save_file

from gbad_batch.engine.bundle import Bundle
from gbad_batch.engine.decode import DecodeLimits, Decoder
from gbad_batch.engine.errors import Refused, Stopped
from gbad_batch.engine.model.architecture import Architecture
from gbad_batch.engine.model.bigan import BiGAN
from gbad_batch.engine.model.decision import Decision
from gbad_batch.engine.model.gbad import GBAD
from gbad_batch.engine.row import Row
from gbad_batch.engine.runtime import open_engine
from gbad_batch.engine.training.data import Labelled, read_sixray, split
from gbad_batch.engine.training.phase1 import Phase1Settings, augmented, classification_loss
from gbad_batch.engine.training.phase2 import (
    Phase2Settings,
    adversarial_loss,
    check_collapse,
    discriminator_loss,
    set_standardization,
    train_bigan,
)
from gbad_batch.engine.training.phase3 import (
    Losses,
    Phase3Settings,
    benign_quantiles,
    fit_svm,
    is_monotone,
    operating_points,
    threshold_at,
    wilson,
)
from gbad_batch.engine.training.pipeline import TrainSettings, train
from gbad_batch.engine.training.progress import silent
from gbad_batch.export import engine_for

ARCHITECTURE = Architecture(backbone="regnetx_004", input_size=64)
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
    save_file(timm.create_model("regnetx_004", pretrained=False).state_dict(), weights)
    return TrainSettings(
        backbone_weights=weights,
        labels=labels,
        images=images,
        out=folder / "bundle",
        run=folder / "run",
        demo=True,
        threads=1,
        gate_images=2,
        architecture=ARCHITECTURE,
        phase1=Phase1Settings(stages=((32, 1), (64, 1)), batch_size=16),
        phase2=Phase2Settings(steps=60),
    )


@pytest.fixture(scope="module")
def bundle(settings: TrainSettings) -> Bundle:
    return Bundle.read(train(settings))


def test_training_gives_a_bundle_with_all_that_a_scan_needs(bundle: Bundle):
    manifest = bundle.manifest
    assert manifest.demo
    assert manifest.architecture.backbone == "regnetx_004"
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
    assert "no figures" in card


def test_the_weights_of_a_bundle_give_what_its_graphs_give(bundle: Bundle):
    form, gate = bundle.manifest.preprocessing, bundle.gate()
    model = GBAD.from_arrays(bundle.manifest.architecture, bundle.tensors(), form.mean, form.std)
    decoder = Decoder(bundle.manifest.architecture.input_size, DecodeLimits())
    decoded = [decoder(Row("gate"), image) for image in gate.images]
    pixels = np.stack([each for each in decoded if each is not None])
    with torch.inference_mode():
        plain = model(torch.from_numpy(pixels))
    np.testing.assert_allclose(plain.logits, gate.logits, rtol=1e-4, atol=1e-5)
    with closing(open_engine(engine_for(bundle))) as runner:
        ours = runner(pixels)
    np.testing.assert_allclose(ours.x, plain.x, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(ours.reconstruction_loss, plain.reconstruction_loss, rtol=1e-3)


def test_kernels_in_channels_last_keep_their_order():
    model = GBAD(ARCHITECTURE).to(memory_format=torch.channels_last)
    stored = load(save(model.arrays()))
    state = model.state_dict()
    kernel = "network.fpn.output.0.weight"
    np.testing.assert_array_equal(stored[kernel], state[kernel].half().numpy())


def test_the_same_seed_gives_the_same_weights(settings: TrainSettings, bundle: Bundle, tmp_path: Path):
    again = replace(settings, out=tmp_path / "again", run=tmp_path / "run")
    assert Bundle.read(train(again)).files["weights.safetensors"] == bundle.files["weights.safetensors"]


def test_splits_are_disjoint_whole_and_share_the_positives():
    labels = np.zeros((1000, 5), bool)
    labels[:200, 3] = True
    labelled = Labelled(tuple(Path(str(i)) for i in range(1000)), labels)
    splits = split(labelled, seed=7, validation=0.1, calibration=0.2)
    parts = [splits.train, splits.validation, splits.calibration]
    assert sorted(np.concatenate(parts).tolist()) == list(range(1000))
    assert [int(labelled.positive[part].sum()) for part in parts] == [180, 20, 0]
    assert [len(part) for part in parts] == [740, 100, 160]
    assert not np.array_equal(splits.train, split(labelled, 8, 0.1, 0.2).train)


@pytest.mark.parametrize(("positives", "kind"), [(0, "positive"), (1, "positive"), (100, "benign")])
def test_a_set_that_cannot_be_split_is_refused(positives: int, kind: str):
    labels = np.zeros((100, 5), bool)
    labels[:positives, 0] = True
    with pytest.raises(Refused, match=f"too few {kind} ones"):
        split(Labelled((Path("a"),) * 100, labels), seed=0, validation=0.1, calibration=0.2)


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        (["name,Knife,Gun,Wrench,Pliers,Scissors"], "does not begin with"),
        ([], "does not begin with"),
        ([HEADER, "a,1,-1,-1,-1"], "line 2: a name and five labels"),
        ([HEADER, "a,1,-1,-1,-1,-1", "b,yes,-1,-1,-1,-1"], "line 3: a name and five labels"),
        ([HEADER, "c,1,-1,-1,-1,-1"], "line 2: 'c' is listed twice or has no image"),
        ([HEADER, "a,1,-1,-1,-1,-1", "a.jpg,1,-1,-1,-1,-1"], "line 3: 'a.jpg' is listed twice"),
    ],
)
def test_a_malformed_list_gets_one_sentence_with_its_line(tmp_path: Path, lines: list[str], sentence: str):
    for name in ("a.jpg", "b.jpg"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    (tmp_path / "labels.csv").write_text("\n".join(lines) + "\n")
    with pytest.raises(Refused, match=sentence):
        read_sixray(tmp_path / "labels.csv", tmp_path)


def test_a_list_finds_its_images_with_or_without_extension(tmp_path: Path):
    for name in ("P00001.jpg", "N00002.jpg"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    (tmp_path / "labels.csv").write_text(f"{HEADER}\nP00001,1,-1,-1,1,-1\nN00002.jpg,-1,-1,-1,-1,-1\n")
    labelled = read_sixray(tmp_path / "labels.csv", tmp_path)
    assert [path.name for path in labelled.paths] == ["P00001.jpg", "N00002.jpg"]
    assert labelled.positive.tolist() == [True, False]
    assert labelled.labels[0].tolist() == [True, False, False, True, False]


# --- losses against plain NumPy ---


def sigmoid(values: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-values))


def test_the_loss_of_phase_one_is_the_reports():
    random = np.random.default_rng(0)
    logits, labels = random.normal(size=(6, 5)), random.random((6, 5)) < 0.3
    p = sigmoid(logits)
    wanted = -(np.where(labels, np.log(p), np.log(1 - p))).mean(axis=0).mean()
    got = classification_loss(torch.from_numpy(logits), torch.from_numpy(labels))
    assert got.item() == pytest.approx(wanted, rel=1e-12)


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


def test_augmentation_without_movement_changes_nothing():
    images = torch.rand((2, 3, 32, 32))
    still = Phase1Settings(flip=0, rotation=0, shift=0, scale=0, shear=0)
    assert torch.allclose(augmented(images, 32, still, torch.Generator()), images, atol=1e-5)
    mirrored = Phase1Settings(flip=1, rotation=0, shift=0, scale=0, shear=0)
    assert torch.allclose(augmented(images, 32, mirrored, torch.Generator()), images.flip(3), atol=1e-5)
    shrunk = augmented(images, 16, still, torch.Generator())
    assert shrunk.shape == (2, 3, 16, 16)


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
    low, high = wilson(18, 1800)
    assert (round(100 * low, 2), round(100 * high, 2)) == (0.63, 1.58)
    assert wilson(0, 0) == (0.0, 1.0)
