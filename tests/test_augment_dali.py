"""Phase I's images by DALI: as those of the CPU, by DALI's CPU operators, and on a GPU where one is here."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from numpy.typing import NDArray
from nvidia.dali import backend
from PIL import Image

from gbad_batch.engine.commands.cli import main
from gbad_batch.engine.errors import Refused, Stopped
from gbad_batch.engine.training.augment import Draw, ImageSettings, draw, prepared, training_images
from gbad_batch.engine.training.augment_dali import DaliImages, Read, dali_images
from gbad_batch.engine.training.augment_graph import PLAIN, augmenting, decoding
from gbad_batch.engine.training.look import Look
from gbad_batch.engine.training.settings import Augmentation

SIZE, MOST = 64, 8
STILL = Augmentation(flip=0, rotation=0, shift=0, scale=0, shear=0, look=1.0)
LEVELS = ImageSettings(SIZE, (0.0,) * 3, (1 / 255,) * 3, STILL, seed=1, threads=1)  # normalized by nothing
# levels by which the two forms may differ: the mean, the largest, and the largest on the outermost lines,
# which Pillow's filter does not sharpen
ALIKE, SHARPENED = (0.6, 3, 3), (0.8, 5, 24)

Pixels = NDArray[np.uint8]


@pytest.fixture(scope="module", params=["cpu", pytest.param("cuda:0", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    if request.param != "cpu" and not torch.cuda.is_available():
        pytest.skip("no GPU is here")
    return request.param


@pytest.fixture(scope="module")
def repainting(device: str) -> DaliImages:
    return DaliImages(replace(LEVELS, device=device), MOST, 0, parted=False)


def bag(seed: int, size: tuple[int, int] = (120, 90)) -> Pixels:
    """Draw colours that run into each other up to the rim, and a thing with edges; size: width, height."""
    coarse = np.random.default_rng(seed).integers(90, 256, (6, 8, 3), np.uint8)
    pixels = np.array(Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC))
    pixels[30:50, 20:70] = (40, 90, 160)
    return pixels


BAGS = [bag(k, (120 - 9 * k, 90 + 7 * k)) for k in range(4)]


def drawn(look: Look | None = None, **movement: Any) -> Draw:
    return Draw(**{"affine": np.eye(2, 3, dtype=np.float32), "mirror": False, "look": look, **movement})


def both(
    form: DaliImages, draws: Sequence[Draw | None], parts: NDArray[np.float32] | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Prepare BAGS by DALI and as on the CPU, by the same draws: [n, S, S, 3] each, in levels."""
    cut = [None] * len(BAGS) if parts is None else list(parts)
    reads = [Read(7 + k, Path("bag"), *each) for k, each in enumerate(zip(BAGS, cut, draws, strict=True))]
    images = form(reads)
    assert images.is_contiguous(memory_format=torch.channels_last)
    plain = [prepared(bag, SIZE, part, each) for bag, part, each in zip(BAGS, cut, draws, strict=True)]
    return images.permute(0, 2, 3, 1).cpu().numpy().astype(float), np.stack(plain).astype(float)


def assert_alike(
    pair: tuple[NDArray[np.float64], NDArray[np.float64]], tolerance: tuple[float, float, float] = ALIKE
) -> None:
    mean, inside, rim = tolerance
    levels = np.abs(pair[0] - pair[1])
    assert levels.mean() <= mean
    assert levels[:, 1:-1, 1:-1].max() <= inside
    assert levels.max() <= rim


# --- each operation, by the same draws ---


def test_parts_are_cut_to_the_same_pixels_and_resized_alike(device: str):
    parts = np.array([[0, 0, 1, 1], [0.1, 0.2, 0.5, 0.61], [0.333, 0.4, 0.667, 0.6], [0.9, 0.9, 0.1, 0.1]])
    still = replace(LEVELS, device=device, augmentation=None)
    form = DaliImages(still, MOST, 0, parted=True)
    assert_alike(both(form, [None] * len(BAGS), parts.astype(np.float32)), (0.3, 2, 2))


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("mirror", [False, True])
@pytest.mark.parametrize("upended", [False, True])
def test_one_matrix_moves_mirrors_upends_and_transposes(
    repainting: DaliImages, mirror: bool, upended: bool, transposed: bool
):
    affines = [draw(Augmentation(), SIZE, (3, k)).affine for k in range(len(BAGS))]
    turned: dict[str, Any] = {"mirror": mirror, "upended": upended, "transposed": transposed}
    assert_alike(both(repainting, [drawn(affine=affine, **turned) for affine in affines]))
    plain = np.stack([prepared(each, SIZE, None, None) for each in BAGS])
    still, wanted = both(repainting, [drawn(**turned)] * len(BAGS))
    assert_alike((still, wanted), (0.3, 2, 2))  # turning alone resamples nothing
    assert (np.abs(still - plain).mean() > 5) == any(turned.values())


@pytest.mark.parametrize(
    "change",
    [
        {"resampled": 0.5},
        {"resampled": 0.83},
        {"sharpness": 0.0},
        {"sharpness": 2.5},
        {"hue": 0.3, "saturation": 0.6},
        {"hue": -0.4, "saturation": 1.5},
        {"gamma": 1.5},
        {"gamma": 0.7, "background": (232.0, 208.0, 226.0)},
    ],
)
def test_looks_are_repainted_alike(repainting: DaliImages, change: dict[str, Any]):
    found, wanted = both(repainting, [drawn(replace(PLAIN, **change))] * len(BAGS))
    assert_alike((found, wanted), SHARPENED if "sharpness" in change else ALIKE)
    plain, _ = both(repainting, [drawn()] * len(BAGS))
    assert np.abs(found - plain).mean() > 0.5


@pytest.mark.parametrize("quality", [30, 70, 95])
def test_jpeg_changes_as_much_and_mostly_the_same(repainting: DaliImages, quality: int):
    """Encoders round in other places; images that it is not drawn for stay as they are."""
    look = drawn(replace(PLAIN, quality=quality))
    found, wanted = both(repainting, [look, look, look, drawn()])
    plain, _ = both(repainting, [drawn()] * len(BAGS))
    changed = np.abs(wanted - plain)[:3].mean()
    assert np.abs(found - plain)[:3].mean() == pytest.approx(changed, rel=0.2)
    assert np.abs(found - wanted)[:3].mean() <= min(2.0, 0.6 * changed)
    assert np.array_equal(found[3], plain[3])


def test_noise_is_as_strong_and_grey_and_its_own_for_each_image(repainting: DaliImages):
    dark = replace(PLAIN, gamma=1.2)  # so that no level is cut off
    plain, _ = both(repainting, [drawn(dark)] * len(BAGS))
    found, wanted = both(repainting, [drawn(replace(dark, noise=4.0, seed=5))] * len(BAGS))
    grain = (found - plain)[:, 8:-8, 8:-8]
    inside = (plain[:, 8:-8, 8:-8] > 20) & (plain[:, 8:-8, 8:-8] < 235)
    assert grain[inside].std() == pytest.approx((wanted - plain)[:, 8:-8, 8:-8][inside].std(), rel=0.05)
    both_inside = inside[..., 0] & inside[..., 1]
    assert np.array_equal(grain[..., 0][both_inside], grain[..., 1][both_inside])
    assert abs(np.corrcoef(grain[0, ..., 0].ravel(), grain[1, ..., 0].ravel())[0, 1]) < 0.2


# --- a whole epoch ---


def saved(folder: Path) -> list[Path]:
    """Write what data sets hold: JPEGs, a PNG, a grey TIFF, and rows of an array."""
    for k, pixels in enumerate(BAGS[:2]):
        Image.fromarray(pixels).save(folder / f"{k}.jpg", quality=92)
    Image.fromarray(BAGS[2]).save(folder / "2.png")
    Image.fromarray(BAGS[3]).convert("L").save(folder / "3.tif")
    np.save(folder / "rows.npy", np.stack([bag(k, (SIZE, SIZE)) for k in range(3)]))
    names = ("0.jpg", "2.png", "rows.npy/2", "1.jpg", "3.tif", "rows.npy/0")
    return [folder / name for name in names]


def test_an_epoch_of_files_and_rows_is_that_of_the_cpu(tmp_path: Path, device: str):
    paths, batches = saved(tmp_path), [np.array(each) for each in ([4, 2, 0], [5, 1, 3], [3])]
    quiet = Augmentation(turn=0.5)
    settings = ImageSettings(SIZE, (0.5, 0.4, 0.6), (0.2, 0.3, 0.25), quiet, seed=9, threads=2)
    parts = np.tile(np.array([[0.1, 0.05, 0.8, 0.9]], np.float32), (len(paths), 1))
    wanted = list(training_images(paths, batches, 3, settings, parts))
    found = list(dali_images(paths, batches, 3, replace(settings, device=device), parts))
    assert [index.tolist() for index, _ in found] == [each.tolist() for each in batches]
    mean, largest = (0.6, 3) if device == "cpu" else (1.0, 12)  # nvJPEG's own rounding
    for (_, images), (_, plain) in zip(found, wanted, strict=True):
        assert images.shape == plain.shape
        levels = (images.cpu() - plain).abs() * 255 * torch.tensor(settings.std)[:, None, None]
        assert levels.max() <= largest
        assert levels.mean() <= mean


def test_drawn_looks_belong_to_seed_and_epoch(tmp_path: Path, device: str):
    paths = saved(tmp_path)
    settings = replace(LEVELS, augmentation=Augmentation(turn=0.5, look=0.8), device=device)

    def epoch(number: int) -> torch.Tensor:
        return next(dali_images(paths, [np.arange(len(paths))], number, settings))[1]

    first = epoch(0)
    assert torch.equal(first, epoch(0))
    assert (first - epoch(1)).abs().mean() > 5
    assert torch.isfinite(first).all()


@pytest.mark.parametrize("spoil", ["end", "tables"])
def test_a_bad_image_is_named_and_a_good_batch_goes_on(tmp_path: Path, device: str, spoil: str):
    paths = saved(tmp_path)
    good = paths[0].read_bytes()
    at = good.index(b"\xff\xc4") + 5  # of a Huffman table, which no decoder can do without
    bad = good[: len(good) // 2] if spoil == "end" else good[:at] + b"\xff" * 16 + good[at + 16 :]
    paths[0].write_bytes(bad)
    settings = replace(LEVELS, device=device)
    with pytest.raises(Stopped, match=r"0\.jpg cannot be decoded any more"):
        list(dali_images(paths, [np.arange(4)], 0, settings))
    assert len(list(dali_images(paths, [np.arange(1, 5)], 0, settings))) == 1


# --- what can be known of the GPU's form without a GPU ---


@pytest.mark.parametrize("graph", ["decoding", "still", "moved", "repainted"])
def test_every_operator_of_the_graph_exists_for_a_gpu_and_takes_inputs_that_are_there(graph: str):
    options = {"batch_size": MOST, "num_threads": 1, "device_id": 0}
    if graph == "decoding":
        pipeline = decoding(True, **options)
    else:
        augmentation = {"still": None, "moved": Augmentation(), "repainted": STILL}[graph]
        pipeline = augmenting(replace(LEVELS, device="cuda:0", augmentation=augmentation), True, **options)
    pipeline._build_graph()
    registered = {
        "cpu": backend.RegisteredCPUOps(),  # pyright: ignore
        "gpu": backend.RegisteredGPUOps(),  # pyright: ignore
        "mixed": backend.RegisteredMixedOps(),  # pyright: ignore
    }
    seen = set()
    for spec in (operator.spec for operator in pipeline._ops):  # pyright: ignore
        name = str(spec).split()[2].rstrip(":")
        (place,) = {spec.OutputDevice(k) for k in range(spec.NumOutput())}
        runs_on = "mixed" if name == "decoders__Image" else place
        assert name in registered[runs_on]
        seen.add((name, runs_on))
        for k in range(spec.NumInput()):
            given = takes = spec.InputDevice(k)
            if runs_on == "mixed" or k >= spec.NumRegularInput():
                takes = "cpu"  # mixed operators read the host, and so do all for their named arguments
            elif runs_on == "gpu":
                takes = backend.GetSchema(name).GetInputDevice(k, given, runs_on)  # pyright: ignore
            assert given == takes, f"input {k} of {name}"
    wanted = {
        "decoding": {("decoders__Image", "mixed")},
        "still": {("Slice", "gpu"), ("Resize", "gpu"), ("CropMirrorNormalize", "gpu")},
        "moved": {("WarpAffine", "gpu")},
        "repainted": {(n, "gpu") for n in ("Filter", "CoordTransform", "JpegCompressionDistortion")},
    }
    assert wanted[graph] <= seen


def test_where_dali_finds_no_gpu_training_is_refused(tmp_path: Path):
    if torch.cuda.is_available():
        pytest.skip("a GPU is here")
    with pytest.raises(Refused, match=r"DALI cannot work on cuda:0 \(.*\); use --device cpu"):
        next(training_images(saved(tmp_path), [np.arange(2)], 0, replace(LEVELS, device="cuda:0")))


def test_training_on_a_gpu_names_the_extra_that_dali_comes_with(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(sys.modules, "nvidia.dali", None)  # as if it could not be imported
    said = CliRunner().invoke(
        main, ["train", str(tmp_path), "--out", str(tmp_path / "b"), "--device", "cuda"]
    )
    assert said.exit_code == 2
    assert "nvidia.dali not installed: " in said.output
    assert ".[gpu]'" in said.output
