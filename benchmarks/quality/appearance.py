"""What a picture of a bag looks like: its colours, edges, foreground, and features of its patches."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from skimage.color import rgb2lab
from skimage.measure import block_reduce, label, regionprops
from skimage.util import view_as_blocks

from gbad_batch.engine.synth import air_of

PATCH = 32  # pixels a side
SIDE = 640  # pictures are compared at this longest side, at most
DRAWN = 2000  # foreground pixels drawn from a picture
CROP = 192  # pixels a side of the middle that the spectrum is taken of
RINGS = 24  # of the spectrum, of equal width
FRONT_LEVELS = 10  # levels from the belt's colour beyond which a pixel is foreground
WHITE = 246  # mean level of a belt that counts as white, at least
LAB_BOUNDS = ((0, 100), (-60, 60), (-90, 90))  # of the histograms of L, a, b
BT601 = np.array([0.299, 0.587, 0.114], np.float32)  # lightness of RGB
Floats = NDArray[np.floating]


class Appearance(NamedTuple):
    """What is measured on one picture."""

    grey: bool  # its belt is grey or tinted, not white
    foreground: float  # share of pixels that are not belt
    lab: Floats  # float32 [n, 3], foreground pixels drawn at random, CIELAB (D65)
    spectrum: Floats  # [24], log power by spatial frequency
    patches: Floats  # [m, 17], features of foreground patches
    regions: int  # separate foreground regions
    cues: Floats  # [27], histograms of colours, foreground share, width and height


def appearance_of(path: Path, rng: np.random.Generator) -> Appearance:
    """Measure an image file."""
    with Image.open(path) as opened:
        picture = opened.convert("RGB")
    size = picture.size
    picture.thumbnail((SIDE, SIDE))
    pixels = np.asarray(picture)
    air = air_of(pixels)
    front = np.abs(pixels.astype(np.int16) - air.astype(np.int16)).max(2) > FRONT_LEVELS
    light = pixels.astype(np.float32) @ BT601
    lab = rgb2lab(pixels).astype(np.float32)
    chosen = lab[front] if front.any() else lab.reshape(-1, 3)
    drawn = chosen[rng.integers(len(chosen), size=DRAWN)]
    colours = [np.histogram(drawn[:, c], 8, bounds)[0] / DRAWN for c, bounds in enumerate(LAB_BOUNDS)]
    return Appearance(
        grey=bool(air.mean() < WHITE),
        foreground=float(front.mean()),
        lab=drawn,
        spectrum=_spectrum(light),
        patches=_patches(lab, light, front),
        regions=_regions(front),
        cues=np.concatenate([*colours, [front.mean(), np.log(size[0]), np.log(size[1])]]),
    )


def _spectrum(light: Floats) -> Floats:
    """Return the log power of the middle of a picture [H, W] by frequency, [24]."""
    side = min(CROP, *light.shape)
    top, left = (light.shape[0] - side) // 2, (light.shape[1] - side) // 2
    crop = light[top : top + side, left : left + side]
    window = np.hanning(side)[:, None] * np.hanning(side)[None, :]
    power = np.abs(np.fft.rfft2((crop - crop.mean()) * window)) ** 2 / side**2
    fy, fx = np.fft.fftfreq(side)[:, None], np.fft.rfftfreq(side)[None, :]
    ring = np.minimum((np.hypot(fy, fx) * 2 * RINGS).astype(int), RINGS).ravel()
    total = np.bincount(ring, power.ravel(), RINGS + 1)[:RINGS]
    return np.log10(total / np.maximum(np.bincount(ring, minlength=RINGS + 1)[:RINGS], 1) + 1e-3)


def _patches(lab: Floats, light: Floats, front: NDArray[np.bool_]) -> Floats:
    """Return features [m, 17] of the patches that are mostly foreground."""
    gy, gx = np.gradient(light)
    maps = np.dstack([lab, np.hypot(gx, gy), np.abs(gx), np.abs(gy), front.astype(float)])
    patches = _blocks(maps, PATCH).reshape(-1, PATCH * PATCH, 7)
    patches = patches[patches[:, :, 6].mean(1) > 0.6]
    colour, edge = patches[:, :, :3], patches[:, :, 3]
    quantiles = np.quantile(edge, (0.25, 0.5, 0.9), axis=1).T
    direction = (patches[:, :, 4].mean(1) + 1) / (patches[:, :, 5].mean(1) + 1)
    mean = colour.mean(1)
    covariances = [
        (colour[:, :, i] * colour[:, :, j]).mean(1) - mean[:, i] * mean[:, j]
        for i, j in ((0, 1), (0, 2), (1, 2))
    ]
    low, high = np.quantile(colour[:, :, 0], (0.05, 0.95), axis=1)
    return np.column_stack(
        [mean, np.log1p(colour.std(1)), np.log1p(quantiles), np.log(direction), *covariances, low, high,
         np.log1p(edge.mean(1)), np.log1p(edge.std(1))]
    )  # fmt: skip


def _regions(front: NDArray[np.bool_]) -> int:
    """Count the separate foreground regions of at least 2 % of the picture, on a coarse grid."""
    step = max(front.shape) // 48 + 1
    rows, columns = (side // step * step for side in front.shape)
    grid = block_reduce(front[:rows, :columns], step, np.mean) > 0.3
    return sum(region.area >= 0.02 * grid.size for region in regionprops(label(grid)))


def _blocks(maps: Floats, side: int) -> Floats:
    """Cut maps [H, W, c] into whole blocks [n, side, side, c]."""
    rows, columns = (length // side * side for length in maps.shape[:2])
    whole = np.ascontiguousarray(maps[:rows, :columns])
    return view_as_blocks(whole, (side, side, maps.shape[2])).reshape(-1, side, side, maps.shape[2])
