"""Windows around boxed threats, with which phase I may begin before whole images.

A threat covers a hundredth or two of its image. Windows show it at the scale that whole images will have, at
a fraction of their pixels. `python -m benchmarks boxes`: what they bring lies within the noise there.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...datasets.arrays import is_row, read_row
from ...errors import Refused
from ...row import THREATS
from ..data import Index, Labelled

LEAST_SEEN = 0.5  # share of a box inside a window, from which on its threat is in the label
NO_BOXES = (
    "windows in --stages and --places need boxes around the threats, and the labels of the training images "
    "hold none: give labels with boxes by --labels, add threats by --project, or leave both options out"
)
MARGIN = 1.1  # of a box that is larger than the window: the window grows


class Windows(NamedTuple):
    """The visible part of each image in an epoch; images outside the epoch are whole."""

    parts: NDArray[np.float32]  # [n, 4]: left, top, width, height as shares of the image
    labels: NDArray[np.bool_]  # [n, 5]: what lies inside


class BoxedThreats:
    """The boxes of training images, as shares of the images."""

    def __init__(self, labelled: Labelled, train: Index):
        """Read the sizes of the images that hold boxes; raises Refused if no training image has any."""
        self._labels, self._known = labelled.labels, labelled.known
        self._boxes: dict[int, NDArray[np.float64]] = {}  # position -> [m, 4] left, top, right, bottom
        self._classes: dict[int, Index] = {}  # position -> [m]
        for k in train.tolist() if labelled.boxes else ():
            boxes = labelled.boxes[k]
            classes = np.array([THREATS.index(box.threat) for box in boxes], np.intp)
            if not len(classes) or set(classes) != set(np.flatnonzero(self._labels[k])):
                continue  # of a threat without a box nobody knows whether a part of the image holds it
            width, height = _size(labelled.paths[k])
            corners = [[box.x, box.y, box.x + box.width, box.y + box.height] for box in boxes]
            self._boxes[k] = np.clip(np.array(corners) / [width, height, width, height], 0, 1)
            self._classes[k] = classes
        if not self._boxes:
            raise Refused(NO_BOXES)

    def of(self, k: int, part: NDArray[np.float32] | None) -> tuple[NDArray[np.float64], Index] | None:
        """Return boxes [m, 4] as shares of a part (left, top, width, height) of image `k`, and classes [m].

        None where the image holds threats that have no boxes.
        """
        if k not in self._boxes:
            return None if self._labels[k].any() else (np.empty((0, 4)), np.empty(0, np.intp))
        left, top, width, height = (0, 0, 1, 1) if part is None else part.tolist()
        boxes = (self._boxes[k] - [left, top, left, top]) / [width, height, width, height]
        return boxes, self._classes[k]

    def unknown(self, k: int) -> Index:
        """Return the classes of which it is unknown whether image `k` holds them."""
        return np.flatnonzero(~self._known[k])

    def draw(self, index: Index, share: float, key: Sequence[int]) -> Windows:
        """Draw a window around a box of each image of `index`; equal keys draw equal windows.

        `share` is the share of each side that a window shows. A benign image gets the window of some positive
        image; otherwise the position of a window would reveal threats. Positive images whose threats have no
        boxes are shown whole.
        """
        n = len(self._labels)
        parts = np.tile(np.array([0, 0, 1, 1], np.float32), (n, 1))
        labels = self._labels.copy()
        boxed = list(self._boxes)
        for k in index.tolist():
            random = np.random.default_rng((*key, k))
            own = k in self._boxes
            if not own and labels[k].any():
                continue
            boxes = self._boxes[k if own else boxed[random.integers(len(boxed))]]
            part = _around(boxes[random.integers(len(boxes))], share, random)
            parts[k] = np.concatenate([part[:2], part[2:] - part[:2]])
            if own:
                labels[k] = False
                visible = overlap(boxes, part) >= LEAST_SEEN
                labels[
                    k, [threat for threat, inside in zip(self._classes[k], visible, strict=True) if inside]
                ] = True
        return Windows(parts, labels)


def _size(path: Path) -> tuple[int, int]:
    """Return the width and height of an image, which its boxes refer to."""
    if is_row(path):
        height, width, _ = read_row(path).shape
        return width, height
    with Image.open(path) as image:
        return image.size


def _around(box: NDArray[np.float64], share: float, random: np.random.Generator) -> NDArray[np.float64]:
    """Place a window [4] around a box, inside the image: left, top, right, bottom."""
    low, high = box[:2], box[2:]
    side = np.minimum(np.maximum(share, MARGIN * (high - low).max()), 1.0)
    first, last = np.maximum(high - side, 0), np.minimum(low, 1 - side)
    start = first + random.random(2) * np.maximum(last - first, 0)
    return np.concatenate([start, start + side])


def overlap(boxes: NDArray[np.float64], part: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the share of each box [m, 4] that lies inside a part [4]: [m]."""
    inside = np.minimum(boxes[:, 2:], part[2:]) - np.maximum(boxes[:, :2], part[:2])
    areas = np.maximum((boxes[:, 2:] - boxes[:, :2]).prod(axis=1), 1e-12)
    return np.maximum(inside, 0).prod(axis=1) / areas
