"""Sources of projected threats: the boxes of the labels, grey pictures, or the synthetic generator."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from ...datasets import Box, find_images, join, read_labels
from ...decode import DecodeLimits, Decoder
from ...errors import Refused
from ...row import THREATS, Row
from ...synth import isolated_threat
from ..data import Labelled
from .physics import Pixels, Threat, Transmission, resized

SYNTH = Path("synth")  # in place of a folder: threats that the generator renders

# how much more or less than on average a metal dims red, green and blue in the pseudo-colours of scanners
METAL = np.array([1.7, 0.87, 0.4], np.float32)
LUMINANCE = np.array([0.299, 0.587, 0.114], np.float32)
TRIES = 12  # of a box that stands out
MARGIN = 0.12  # of a box's sides, around it: where its surroundings are looked at
LEAST_MARGIN = 4  # pixels
FLAT, UNEVEN = 0.08, 0.45  # optical depths: of a quiet ground's grain, and of one too restless to cut from
CLEAR = 0.35  # median optical depth of a threat that stands out
SPECK = 0.1  # of the largest region: a smaller one belongs to the surroundings
GREY_SIDE = 512  # pixels: larger grey pictures are made smaller
DARKEST = 1 / 255


class Threats(Protocol):
    """A source of threats."""

    names: tuple[str, ...]  # classes that it has

    def draw(self, name: str, air: NDArray[np.uint8], random: np.random.Generator) -> Threat | None:
        """Draw a threat for a picture whose empty belt is `air` [3]; None if no draw stands out."""
        ...


def open_threats(source: Path | None, train: Labelled, class_map: Path | None) -> Threats:
    """Open the boxes of the training images (None), the generator (SYNTH), or a folder of grey pictures.

    Raises Refused if there is nothing to project.
    """
    if source is None:
        return BoxThreats(train)
    return SynthThreats() if source == SYNTH else GreyThreats(source, class_map)


class BoxThreats:
    """Threats cut out of the boxes of training images."""

    def __init__(self, train: Labelled):
        self._boxes: dict[str, list[tuple[Path, Box, tuple[Box, ...]]]] = {}
        for path, boxes in zip(train.paths, train.boxes, strict=False):
            for box in boxes:
                self._boxes.setdefault(box.threat, []).append((path, box, boxes))
        self.names = tuple(name for name in THREATS if name in self._boxes)
        if not self.names:
            raise Refused(
                "the labels of the training images hold no box to cut threats from: name labels with boxes "
                "with --labels, or grey pictures of threats with --project-from"
            )

    def draw(self, name: str, air: NDArray[np.uint8], random: np.random.Generator) -> Threat | None:  # noqa: ARG002
        """Draw a box, and cut out what stands out in it."""
        held = self._boxes[name]
        for k in random.integers(len(held), size=TRIES).tolist():
            path, box, others = held[k]
            if any(_overlap(box, other) for other in others if other is not box):
                continue
            pixels = _stored(path)
            transmission = None if pixels is None else cut_from_box(pixels, box)
            if transmission is not None:
                return Threat(name, transmission)
        return None


class GreyThreats:
    """Grey pictures of single objects on an even background, in folders named by class."""

    def __init__(self, folder: Path, class_map: Path | None):
        self.names, self._paths = _grey_pictures(folder, class_map)

    def draw(self, name: str, air: NDArray[np.uint8], random: np.random.Generator) -> Threat | None:  # noqa: ARG002
        """Draw a picture with an even ground, as a metal dims it."""
        held = self._paths[name]
        for k in random.integers(len(held), size=TRIES).tolist():
            transmission = _grey_transmission(held[k])
            if transmission is not None:
                return Threat(name, transmission)
        return None


class SynthThreats:
    """Threats of the generator's training pool, each rendered by itself."""

    names: tuple[str, ...] = THREATS

    def draw(self, name: str, air: NDArray[np.uint8], random: np.random.Generator) -> Threat:
        """Render a threat in a look with such a belt."""
        bright = ("white", "vivid")[int(random.random() < 0.2)]
        look = "grey" if air.mean() < 246 else bright
        return Threat(name, isolated_threat(name, look, random))


def _overlap(box: Box, other: Box) -> bool:
    return (
        box.x < other.x + other.width
        and other.x < box.x + box.width
        and box.y < other.y + other.height
        and other.y < box.y + box.height
    )


def _stored(path: Path) -> Pixels | None:
    """Decode a file at its own size, by the scan's policy."""
    return Decoder(None, DecodeLimits())(Row(uri=str(path)), path.read_bytes())


def cut_from_box(pixels: Pixels, box: Box) -> Transmission | None:
    """Divide the pixels of a box by the colour around it; None if nothing stands out clearly.

    Whatever is as faint as the noise of the surroundings becomes transparent, so the box shows no edge.
    """
    rows, columns = (
        _widened(start, length, end)
        for start, length, end in (
            (box.y, box.height, pixels.shape[0]),
            (box.x, box.width, pixels.shape[1]),
        )
    )
    window = pixels[rows[0] : rows[3], columns[0] : columns[3]].astype(np.float32)
    around = np.ones(window.shape[:2], np.bool_)
    around[rows[1] - rows[0] : rows[2] - rows[0], columns[1] - columns[0] : columns[2] - columns[0]] = False
    return cut_out(window, around)


def _widened(start: float, length: float, end: int) -> tuple[int, int, int, int]:
    """Bounds of a box along one side, with a margin within the picture: outer, inner, inner, outer."""
    margin = max(LEAST_MARGIN, round(length * MARGIN))
    first, last = max(0, int(start)), min(end, int(np.ceil(start + length)))
    return max(0, first - margin), first, last, min(end, last + margin)


def cut_out(window: NDArray[np.float32], around: NDArray[np.bool_]) -> Transmission | None:
    """Cut out what stands out in a window [h, w, 3] against the pixels `around` [h, w] it; None if nothing.

    Optical depth is counted from the median of the surroundings; up to the 90th percentile of theirs
    nothing is seen, and from twice that on all of it.
    """
    if not around.any() or around.all():
        return None
    ground = np.maximum(np.median(window[around], axis=0), 1)
    light = np.clip(window / ground, DARKEST, 1)
    depth = -np.log(light @ LUMINANCE)
    grain = max(FLAT, float(np.quantile(depth[around], 0.9)))
    if grain > UNEVEN:
        return None
    weight = _connected(np.clip((depth - grain) / grain, 0, 1).astype(np.float32)) * feather(depth.shape)
    body = weight > 0.5
    if not body.any() or np.median(depth[body]) < CLEAR + grain:
        return None
    return np.power(light, weight[..., None], dtype=np.float32)


def _connected(weight: NDArray[np.float32]) -> NDArray[np.float32]:
    """Keep the largest visible region, and others that are not specks beside it."""
    from scipy.ndimage import binary_dilation, label

    region, count = label(weight > 0, np.ones((3, 3)))  # type: ignore[misc]
    if not count:
        return weight
    sizes = np.bincount(region.ravel(), weight.ravel())
    sizes[0] = 0
    kept = binary_dilation(np.isin(region, np.flatnonzero(sizes >= SPECK * sizes.max())))
    return np.where(kept, weight, 0).astype(np.float32)


def feather(shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Rise from 0 at the edges of a window to 1 a few pixels within, float32 [h, w]."""
    sides = []
    for n in shape:
        distance = np.minimum(np.arange(n), np.arange(n)[::-1])
        sides.append(np.clip(distance / max(LEAST_MARGIN, MARGIN * n / 2), 0, 1))
    return np.outer(*sides).astype(np.float32)


def _grey_pictures(
    folder: Path, class_map: Path | None
) -> tuple[tuple[str, ...], Mapping[str, Sequence[Path]]]:
    """Find the pictures of each class; raises Refused if there are none."""
    labels = read_labels(folder, "folders", class_map)
    paths = find_images(folder)
    pictures: dict[str, list[Path]] = {}
    for k, flags in zip(join(labels, [str(path) for path in paths]), labels.labels, strict=True):
        for name in np.array(THREATS)[flags].tolist():
            pictures.setdefault(name, []).append(paths[k])
    if not pictures:
        raise Refused(
            f"{folder} holds no picture of a threat: put grey pictures into folders named "
            f"{', '.join(THREATS)}"
        )
    return tuple(name for name in THREATS if name in pictures), pictures


@lru_cache(maxsize=512)
def _grey_transmission(path: Path) -> Transmission | None:
    """Cut the object out of a grey picture; None if its background is uneven."""
    pixels = _stored(path)
    return None if pixels is None else grey_transmission(pixels)


def grey_transmission(pixels: Pixels) -> Transmission | None:
    """Return what a metal of this grey lets through of each channel; None if the background is uneven.

    One energy gives a grey value; a scanner of two paints metal blue, dimming red the most.
    """
    scale = min(1.0, GREY_SIDE / max(pixels.shape))
    grey = resized(pixels.mean(axis=2, dtype=np.float32)[..., None] / 255, scale)
    rim = np.ones(grey.shape[:2], np.bool_)
    rim[3:-3, 3:-3] = False
    ground = float(np.median(grey[rim]))
    if (grey[rim] < ground * np.exp(-FLAT)).mean() > SPECK:
        return None
    framed = np.pad(grey, ((24, 24), (24, 24), (0, 0)), constant_values=ground)  # it may touch the rim
    around = np.pad(rim & (grey[..., 0] >= ground * np.exp(-FLAT)), 24)
    transmission = cut_out(framed.repeat(3, axis=2) * 255, around)
    return None if transmission is None else transmission**METAL
