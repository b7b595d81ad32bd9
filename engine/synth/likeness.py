"""How alike synthetic and real pictures are: shapes of threats, colours, edges, and a classifier.

Every figure has a name, a value and, where METHOD gives one, a bar. A Kolmogorov-Smirnov distance is
the largest difference of two cumulative distributions; a Wasserstein distance is taken a channel of
CIELAB (D65) and averaged.
"""

import csv
import json
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from ..errors import Refused
from ..row import THREATS

SHAPE_BAR, COLOUR_BAR, PATCH_BAR, GUARD_BAR = 0.2, 1.5, 0.90, 0.60
PATCH = 32  # pixels a side
SIDE = 640  # pictures are compared at this longest side, at most
MOST = 300  # synthetic pictures read


@dataclass(frozen=True)
class Figure:
    """One measured figure."""

    name: str
    value: float
    bar: float | None = None  # the most that is alike; None: no bar
    note: str = ""

    @property
    def alike(self) -> bool | None:
        """Tell whether the bar is met; None without one."""
        return None if self.bar is None else bool(self.value <= self.bar)


@dataclass(frozen=True)
class Likeness:
    """All figures, in the order to print."""

    figures: tuple[Figure, ...]

    def value(self, name: str) -> float:
        """Return a figure by name; raises KeyError."""
        return {figure.name: figure.value for figure in self.figures}[name]


class Shape(NamedTuple):
    """A threat's outline in its bag, holes filled."""

    area: float  # share of the bag's crop
    elongation: float  # square root of the ratio of the second moments
    fill: float  # share of its own bounding box


class Look(NamedTuple):
    """What is measured on one picture."""

    grey: bool  # its belt is grey or tinted, not white
    foreground: float  # share of pixels that are not belt
    lab: np.ndarray  # float32 [n, 3], foreground pixels drawn at random
    spectrum: np.ndarray  # float [24], log power by spatial frequency, rings of equal width
    patches: np.ndarray  # float [m, d], features of foreground patches
    bags: int  # separate foreground regions
    histogram: np.ndarray  # float [k], colours, size and foreground share, for the guard


def check_likeness(out: Path, real: Path, masks: Path) -> Likeness:
    """Compare a synthetic archive with real pictures and real threats' outlines.

    `out` is a folder of write_archive, `real` a folder of JPEGs, `masks` one of one-bit PNGs named
    NAME_Class_NN.png in the crop of their bag. Raises Refused where one of them holds nothing to compare.
    """
    rng = np.random.default_rng(0)
    ours = [_measured(path, rng) for path in _pictures(out / "images")[:MOST]]
    theirs = [_measured(path, rng) for path in _pictures(real)]
    figures = [
        *_shape_figures(_shapes(outlines(out / "boxes.json")), _shapes(_drawn(masks))),
        *_look_figures(ours, theirs, rng),
        *_count_figures(out, ours, theirs),
        Figure("patch AUC, real against synthetic", _patch_auc(ours, theirs, rng), PATCH_BAR, "0.5 is alike"),
        *_guard_figures(out, ours, rng),
    ]
    return Likeness(tuple(figures))


def _pictures(folder: Path) -> list[Path]:
    found = sorted(folder.glob("*.jpg"))
    if len(found) < 4:
        raise Refused(f"{folder} holds {len(found)} .jpg files; at least four are needed to compare.")
    return found


# --- shapes ---------------------------------------------------------------------------------------


def _shapes(outlines: Iterable[tuple[str, np.ndarray]]) -> dict[str, list[Shape]]:
    shapes: dict[str, list[Shape]] = {name: [] for name in THREATS}
    for name, mask in outlines:
        shapes[name].append(shape_of(mask))
    return shapes


def _drawn(folder: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Yield class and mask bool [H, W] of each outline in a folder of pictures."""
    paths = [path for path in sorted(folder.glob("*_*_*.png")) if path.stem.split("_")[-2].lower() in THREATS]
    if not paths:
        raise Refused(f"{folder} holds no outlines named NAME_Class_NN.png.")
    for path in paths:
        yield path.stem.split("_")[-2].lower(), np.asarray(Image.open(path).convert("L")) > 0


def outlines(boxes: Path) -> Iterator[tuple[str, np.ndarray]]:
    """Yield class and mask bool [H, W], in the crop of its bag, of each threat of a synthetic archive."""
    try:
        threats = json.loads(boxes.read_text())["annotations"]
    except (OSError, ValueError, KeyError, TypeError):
        raise Refused(f"{boxes} is not there or not as `gbad-batch synth` writes it.") from None
    if not threats:
        raise Refused(f"{boxes} holds no threat to compare: make the archive with a higher --positive.")
    for threat in threats:
        counts = threat["segmentation"]["counts"]
        flat = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
        sheet = flat.reshape(threat["segmentation"]["size"], order="F")
        (x, y, w, h), (bx, by, bw, bh) = threat["bbox"], threat["bag"]
        sheet = sheet[min(y, by) : max(y + h, by + bh), min(x, bx) : max(x + w, bx + bw)]
        yield THREATS[threat["category_id"] - 1], sheet


def shape_of(mask: np.ndarray) -> Shape:
    """Measure a mask bool [H, W] that is not empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    crop = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    step = max(1, max(crop.shape) // 128)
    solid = _filled(crop[::step, ::step])
    y, x = np.nonzero(solid)
    least, most = np.linalg.eigvalsh(np.cov(np.stack([x, y])) + np.eye(2) / 12)
    share = solid.mean()
    return Shape(float(share * crop.size / mask.size), float(np.sqrt(most / least)), float(share))


def _filled(mask: np.ndarray) -> np.ndarray:
    """Fill the holes of a mask: what the outside cannot reach."""
    outside = np.pad(~mask, 1, constant_values=True)
    free = outside.copy()
    outside[1:-1, 1:-1] = False
    return ~_flooded(outside, free)[1:-1, 1:-1]


def _flooded(seed: np.ndarray, within: np.ndarray) -> np.ndarray:
    """Return what a seed reaches inside a mask, from neighbour to neighbour along rows and columns."""
    reached, count = seed, -1
    while count != (count := int(reached.sum())):
        reached[1:] |= reached[:-1]
        reached[:-1] |= reached[1:]
        reached[:, 1:] |= reached[:, :-1]
        reached[:, :-1] |= reached[:, 1:]
        reached &= within
    return reached


def ks_distance(a: np.ndarray, b: np.ndarray) -> float:
    """Return the Kolmogorov-Smirnov distance of two samples."""
    grid = np.concatenate([a, b])
    below = [np.searchsorted(np.sort(s), grid, side="right") / len(s) for s in (a, b)]
    return float(np.abs(below[0] - below[1]).max())


def _shape_figures(ours: dict[str, list[Shape]], theirs: dict[str, list[Shape]]) -> list[Figure]:
    figures = []
    for name in THREATS:
        if not ours[name] or not theirs[name]:
            continue
        a, b = np.array(ours[name]), np.array(theirs[name])
        for column, what in enumerate(("log area", "elongation", "box fill")):
            left, right = (np.log(s[:, column]) if column == 0 else s[:, column] for s in (a, b))
            middle = np.median(a[:, column]), np.median(b[:, column])
            note = f"median {middle[0]:.3g}, real {middle[1]:.3g}; n = {len(a)}, {len(b)}"
            figures.append(Figure(f"{name} {what} KS", ks_distance(left, right), SHAPE_BAR, note))
    return figures


# --- pictures -------------------------------------------------------------------------------------


def _measured(path: Path, rng: np.random.Generator) -> Look:
    with Image.open(path) as opened:
        picture = opened.convert("RGB")
    size = picture.size
    picture.thumbnail((SIDE, SIDE))
    pixels = np.asarray(picture)
    air = air_of(pixels)
    front = np.abs(pixels.astype(np.int16) - air.astype(np.int16)).max(2) > 10
    light = pixels.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32)
    lab = _lab(pixels)
    chosen = lab[front] if front.any() else lab.reshape(-1, 3)
    sample = chosen[rng.integers(len(chosen), size=2000)]
    bounds = ((0, 100), (-60, 60), (-90, 90))
    colours = [np.histogram(sample[:, c], 8, bounds[c])[0] / len(sample) for c in range(3)]
    histogram = np.concatenate([*colours, [front.mean(), np.log(size[0]), np.log(size[1])]])
    patches = _patches(lab, light, front)
    return Look(
        bool(air.mean() < 246),
        float(front.mean()),
        sample,
        _spectrum(light),
        patches,
        _regions(front),
        histogram,
    )


def air_of(pixels: np.ndarray) -> np.ndarray:
    """Return the belt's colour: the commonest of the bright colours, uint8 [3]."""
    flat = pixels[::3, ::3].reshape(-1, 3)
    bright = flat[flat.min(1) > 170]
    if not len(bright):
        return np.array([255, 255, 255], np.uint8)
    code = (bright.astype(np.int32) // 4) @ np.array([4096, 64, 1])
    values, counts = np.unique(code, return_counts=True)
    return np.median(bright[code == values[counts.argmax()]], axis=0).astype(np.uint8)


def _lab(pixels: np.ndarray) -> np.ndarray:
    """Return CIELAB (D65) float32 [H, W, 3] of sRGB uint8."""
    curve = np.arange(256) / 255
    linear = np.where(curve > 0.04045, ((curve + 0.055) / 1.055) ** 2.4, curve / 12.92).astype(np.float32)
    matrix = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    matrix /= matrix.sum(1, keepdims=True)
    xyz = linear[pixels] @ matrix.T.astype(np.float32)
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    x, y, z = f[..., 0], f[..., 1], f[..., 2]
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], -1).astype(np.float32)


def _spectrum(light: np.ndarray) -> np.ndarray:
    """Return the log power of the middle 192 x 192 pixels by frequency."""
    side = min(192, *light.shape)
    top, left = (light.shape[0] - side) // 2, (light.shape[1] - side) // 2
    crop = light[top : top + side, left : left + side]
    window = np.hanning(side)[:, None] * np.hanning(side)[None, :]
    power = np.abs(np.fft.rfft2((crop - crop.mean()) * window)) ** 2 / side**2
    fy, fx = np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None, :]
    ring = np.minimum((np.hypot(fy, fx) * 48).astype(int), 24).ravel()
    total = np.bincount(ring, power.ravel(), 25)[:24] / np.maximum(np.bincount(ring, minlength=25)[:24], 1)
    return np.log10(total + 1e-3)


def _patches(lab: np.ndarray, light: np.ndarray, front: np.ndarray) -> np.ndarray:
    """Return features of the patches that are mostly foreground: float [m, 17]."""
    rows, columns = light.shape[0] // PATCH, light.shape[1] // PATCH
    gy, gx = np.gradient(light)
    maps = np.dstack([lab, np.hypot(gx, gy), np.abs(gx), np.abs(gy), front])
    cut = maps[: rows * PATCH, : columns * PATCH].reshape(rows, PATCH, columns, PATCH, -1)
    cut = cut.transpose(0, 2, 1, 3, 4).reshape(-1, PATCH * PATCH, 7)
    cut = cut[cut[:, :, 6].mean(1) > 0.6]
    flat = cut[:, :, :3]
    quantiles = np.quantile(cut[:, :, 3], (0.25, 0.5, 0.9), axis=1).T
    joint = (cut[:, :, 4].mean(1) + 1) / (cut[:, :, 5].mean(1) + 1)
    across = [
        (flat[:, :, i] * flat[:, :, j]).mean(1) - flat[:, :, i].mean(1) * flat[:, :, j].mean(1)
        for i, j in ((0, 1), (0, 2), (1, 2))
    ]
    low, high = np.quantile(flat[:, :, 0], (0.05, 0.95), axis=1)
    return np.column_stack(
        [flat.mean(1), np.log1p(flat.std(1)), np.log1p(quantiles), np.log(joint), *across, low, high,
         np.log1p(cut[:, :, 3].mean(1)), np.log1p(cut[:, :, 3].std(1))]
    )  # fmt: skip


def _regions(front: np.ndarray) -> int:
    """Count the separate foreground regions of at least 2 % of the picture, on a coarse grid."""
    step = max(front.shape) // 48 + 1
    rows, columns = front.shape[0] // step, front.shape[1] // step
    grid = front[: rows * step, : columns * step].reshape(rows, step, columns, step).mean((1, 3)) > 0.3
    regions = 0
    while grid.any():
        seed = np.zeros_like(grid)
        seed[tuple(np.argwhere(grid)[0])] = True
        region = _flooded(seed, grid)
        regions += int(region.sum()) >= 0.02 * grid.size
        grid &= ~region
    return regions


def wasserstein(a: np.ndarray, b: np.ndarray) -> float:
    """Return the mean over channels of the 1-D Wasserstein distances of samples [n, c], [m, c]."""
    q = np.linspace(0.0025, 0.9975, 200)
    return float(np.abs(np.quantile(a, q, axis=0) - np.quantile(b, q, axis=0)).mean())


def _split_half(
    looks: list[Look], distance: Callable[[list[Look], list[Look]], float], rng: np.random.Generator
) -> float:
    """Return the mean distance of two random halves of the real pictures, over twenty splits."""
    values = []
    for _ in range(20):
        order = rng.permutation(len(looks))
        half = len(looks) // 2
        values.append(distance([looks[k] for k in order[:half]], [looks[k] for k in order[half:]]))
    return float(np.mean(values))


def _colour_distance(a: list[Look], b: list[Look]) -> float:
    return wasserstein(np.concatenate([k.lab for k in a]), np.concatenate([k.lab for k in b]))


def _spectrum_distance(a: list[Look], b: list[Look]) -> float:
    difference = np.mean([k.spectrum for k in a], 0) - np.mean([k.spectrum for k in b], 0)
    return float(np.sqrt((difference**2).mean()))


def _look_figures(ours: list[Look], theirs: list[Look], rng: np.random.Generator) -> list[Figure]:
    figures = []
    for grey, name in ((False, "white belt"), (True, "grey belt")):
        a, b = [k for k in ours if k.grey == grey], [k for k in theirs if k.grey == grey]
        if len(a) < 2 or len(b) < 4:
            continue
        half = max(_split_half(b, _colour_distance, rng), 1e-6)
        far = _colour_distance(a, b)
        figures.append(
            Figure(
                f"{name} colour, ratio to split half",
                far / half,
                COLOUR_BAR,
                f"{far:.2f} / {half:.2f} Lab units",
            )
        )
        shares = [np.array([k.foreground for k in s]) for s in (a, b)]
        note = f"median {np.median(shares[0]):.2f}, real {np.median(shares[1]):.2f}"
        figures.append(Figure(f"{name} foreground share KS", ks_distance(*shares), None, note))
        half = max(_split_half(b, _spectrum_distance, rng), 1e-6)
        far = _spectrum_distance(a, b)
        figures.append(
            Figure(
                f"{name} edge spectrum, ratio to split half",
                far / half,
                None,
                f"{far:.3f} / {half:.3f} decades",
            )
        )
    return figures


def _count_figures(out: Path, ours: list[Look], theirs: list[Look]) -> list[Figure]:
    with (out / "labels.csv").open(newline="") as file:
        rows = [[int(v) for v in row[1:]] for row in list(csv.reader(file))[1:]]
    held = [sum(v > 0 for v in row) for row in rows if max(row) > 0]
    bags = [image["bags"] for image in json.loads((out / "boxes.json").read_text())["images"]]
    regions = [float(np.mean([k.bags for k in s])) for s in (ours, theirs)]
    return [
        Figure("labels a positive", float(np.mean(held)) if held else 0.0, None, "SIXray 1.37 to 1.51"),
        Figure(
            "bags a picture",
            float(np.mean(bags)),
            None,
            f"regions found {regions[0]:.2f}, in real ones {regions[1]:.2f}",
        ),
    ]


# --- classifiers ----------------------------------------------------------------------------------


def auc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Return the area under the ROC curve of scores [n] for truth bool [n]; ties count half."""
    _, where, counts = np.unique(scores, return_inverse=True, return_counts=True)
    rank = (np.cumsum(counts) - (counts - 1) / 2)[where]
    p, n = int(positive.sum()), int((~positive).sum())
    return float((rank[positive].sum() - p * (p + 1) / 2) / (p * n))


def cross_validated_auc(
    features: np.ndarray, positive: np.ndarray, groups: np.ndarray, folds: int = 5
) -> float:
    """Return the AUC of a ridge logistic regression on features and their squares, folds by group."""
    scores = np.zeros(len(features))
    for fold in range(folds):
        held = groups % folds == fold
        mean, std = features[~held].mean(0), features[~held].std(0) + 1e-9
        z = np.clip((features - mean) / std, -5, 5)
        z = np.column_stack([np.ones(len(z)), z, z * z])
        scores[held] = z[held] @ _logistic(z[~held], positive[~held])
    return auc(scores, positive)


def _logistic(z: np.ndarray, positive: np.ndarray, ridge: float = 1.0) -> np.ndarray:
    """Fit by Newton's method, classes weighted alike."""
    weight = np.where(positive, 0.5 / positive.mean(), 0.5 / (1 - positive.mean()))
    w = np.zeros(z.shape[1])
    for _ in range(12):
        p = 1 / (1 + np.exp(-np.clip(z @ w, -30, 30)))
        slope = z.T @ (weight * (p - positive)) + ridge * w
        bend = (z * (weight * p * (1 - p) + 1e-6)[:, None]).T @ z + ridge * np.eye(len(w))
        w -= np.linalg.solve(bend, slope)
    return w


def _patch_auc(ours: list[Look], theirs: list[Look], rng: np.random.Generator) -> float:
    """Return how well patches of real and synthetic pictures are told apart, folds by picture."""
    looks = [*ours, *theirs]
    chosen = [rng.permutation(k.patches)[:60] for k in looks]
    groups = np.concatenate([np.full(len(c), k) for k, c in enumerate(chosen)])
    real = groups >= len(ours)
    return cross_validated_auc(np.concatenate(chosen), real, groups)


def _guard_figures(out: Path, ours: list[Look], rng: np.random.Generator) -> list[Figure]:
    """Tell positives from benign ones by colours, size and foreground share: nobody should."""
    names = [path.name for path in _pictures(out / "images")[:MOST]]
    positive = np.array([name.startswith("P") for name in names])
    if min(positive.sum(), (~positive).sum()) < 40:
        return []
    order = rng.permutation(len(ours))
    features = np.stack([ours[k].histogram for k in order])
    value = cross_validated_auc(features, positive[order], np.arange(len(order)), 10)
    note = f"{int(positive.sum())} positive, {int((~positive).sum())} benign"
    return [Figure("guard AUC, positive from colours and size", value, GUARD_BAR, note)]
