"""Outlines of threats, synthetic and real, and the shape of each: area, elongation, fill."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import binary_fill_holes

from gbad_batch.engine.errors import Refused
from gbad_batch.engine.row import THREATS

GRID = 128  # pixels of a shape's longer side that its moments are taken on, about
Mask = NDArray[np.bool_]  # [H, W]


class Shape(NamedTuple):
    """The outline of a threat in its bag, holes filled."""

    area: float  # share of the bag's crop
    elongation: float  # square root of the ratio of the second moments
    fill: float  # share of its own bounding box


def shape_of(mask: Mask) -> Shape:
    """Measure a mask bool [H, W] that is not empty."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    crop = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    step = max(1, max(crop.shape) // GRID)
    solid = np.asarray(binary_fill_holes(crop[::step, ::step]))
    y, x = np.nonzero(solid)
    least, most = np.linalg.eigvalsh(np.cov(np.stack([x, y])) + np.eye(2) / 12)
    share = solid.mean()
    return Shape(float(share * crop.size / mask.size), float(np.sqrt(most / least)), float(share))


def shapes_by_class(outlines: Iterable[tuple[str, Mask]]) -> dict[str, NDArray[np.float64]]:
    """Measure outlines; returns [n, 3] for each class, in the order of the fields of Shape."""
    shapes: dict[str, list[Shape]] = {name: [] for name in THREATS}
    for name, mask in outlines:
        shapes[name].append(shape_of(mask))
    return {name: np.array(some, np.float64).reshape(-1, 3) for name, some in shapes.items()}


def real_outlines(folder: Path) -> Iterator[tuple[str, Mask]]:
    """Yield class and mask of each one-bit NAME_Class_NN.png in a folder; raises Refused if there is none."""
    paths = [path for path in sorted(folder.glob("*_*_*.png")) if _class_of(path) in THREATS]
    if not paths:
        raise Refused(f"{folder} holds no outlines: name the folder with files NAME_Class_NN.png")
    for path in paths:
        yield _class_of(path), np.asarray(Image.open(path).convert("L")) > 0


def _class_of(path: Path) -> str:
    return path.stem.split("_")[-2].lower()


def synthetic_outlines(boxes: Path) -> Iterator[tuple[str, Mask]]:
    """Yield class and mask, in the crop of its bag, of each threat of a synthetic archive.

    `boxes` is the boxes.json that `gbad-batch synth` writes. Raises Refused if it is missing, damaged, or
    lists no threat.
    """
    try:
        threats = json.loads(boxes.read_text())["annotations"]
    except (OSError, ValueError, KeyError, TypeError):
        raise Refused(f"{boxes} cannot be read: name a folder that `gbad-batch synth` wrote") from None
    if not threats:
        raise Refused(f"{boxes} lists no threat to compare: write the archive with a higher --positive")
    for threat in threats:
        counts = threat["segmentation"]["counts"]
        flat = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
        sheet = flat.reshape(threat["segmentation"]["size"], order="F")
        (x, y, w, h), (bx, by, bw, bh) = threat["bbox"], threat["bag"]
        sheet = sheet[min(y, by) : max(y + h, by + bh), min(x, bx) : max(x + w, bx + bw)]
        yield THREATS[threat["category_id"] - 1], sheet
