"""Localization, a second task of phase I: cells of the backbone's maps learn which threats they see.

One label per image teaches little to a network that starts from random weights, and a threat covers a
hundredth or two of its image. Boxes teach more: every cell of C4 and C5 gets labels of its own. The layers
that give the cells' logits are thrown away after training; what a bundle holds is the network of the report.
"""

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torchvision.ops import sigmoid_focal_loss

from ...row import THREATS
from ..augment import Draw, ImageSettings, draw
from ..data import Index
from .windows import LEAST_SEEN, BoxedThreats, overlap

MAPS = 2  # the last of the backbone's maps
PRIOR = 0.01  # share of cells that hold a threat, before anything is learned
CORE = 0.5  # of a box's sides: the cells inside hold its threat, those of the rest may or may not
IGNORED = -1.0

CellTargets = Callable[[int], NDArray[np.float32]]  # n: the targets [N, 5, n, n] of a batch


class LocalizationHead(nn.Module):
    """Backbone maps C2..C5 to one logit for each class and cell of the last two; a 1x1 convolution each."""

    def __init__(self, channels: Sequence[int]):
        super().__init__()
        self.layers = nn.ModuleList([nn.Conv2d(inputs, len(THREATS), 1) for inputs in channels[-MAPS:]])
        for layer in self.layers:
            nn.init.normal_(layer.weight, std=0.01)  # type: ignore[arg-type]
            nn.init.constant_(layer.bias, math.log(PRIOR / (1 - PRIOR)))  # type: ignore[arg-type]

    def forward(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Return [N, 5, S/16, S/16] and [N, 5, S/32, S/32] for the usual backbones."""
        return [layer(level) for layer, level in zip(self.layers, maps[-MAPS:], strict=True)]


def localization_loss(logits: Sequence[Tensor], targets: Sequence[Tensor]) -> Tensor:
    """Return the focal loss (Lin et al., ICCV 2017: alpha 0.25, gamma 2), a mean over maps.

    It is divided by the number of cells that hold a threat. `targets`: 1, 0 or IGNORED for each logit.
    """
    losses = []
    for level, wanted in zip(logits, targets, strict=True):
        loss = sigmoid_focal_loss(level, wanted.clamp(min=0.0))
        losses.append((loss * (wanted != IGNORED)).sum() / (wanted == 1).sum().clamp(min=1))
    return torch.stack(losses).mean()


def moved_boxes(boxes: NDArray[np.float64], drawn: Draw, size: int) -> NDArray[np.float64]:
    """Return boxes [m, 4] (left, top, right, bottom in pixels) as augmentation moves their image."""
    inverse = np.linalg.inv(drawn.affine[:, :2].astype(np.float64))
    corners = boxes[:, [[0, 1], [2, 1], [0, 3], [2, 3]]]  # [m, 4, 2]
    corners = (corners - drawn.affine[:, 2]) @ inverse.T
    if drawn.mirror:
        corners[..., 0] = size - corners[..., 0]
    if drawn.upended:
        corners[..., 1] = size - corners[..., 1]
    if drawn.transposed:
        corners = corners[..., ::-1]
    return np.concatenate([corners.min(axis=1), corners.max(axis=1)], axis=1)


def cell_targets(
    boxes: NDArray[np.float64], classes: NDArray[np.intp], size: int, cells: int
) -> NDArray[np.float32]:
    """Return targets [5, cells, cells] of an image of `size` pixels a side with boxes [m, 4] in pixels.

    1 in the core of a box, and at least in the cell of its centre; IGNORED in the rest of the box, and in all
    of one that lies outside the picture by half or more.
    """
    targets = np.zeros((len(THREATS), cells, cells), np.float32)
    pitch = size / cells
    shown = np.clip(boxes, 0, size)
    whole = overlap(boxes, np.array([0.0, 0.0, size, size])) > LEAST_SEEN
    for box, threat in zip(shown, classes, strict=True):
        targets[threat][_cells(box[:2], box[2:], pitch)] = IGNORED
    for box, threat in zip(shown[whole], classes[whole], strict=True):
        centre, half = (box[:2] + box[2:]) / 2, CORE * (box[2:] - box[:2]) / 2
        targets[threat][_cells(centre - half, centre + half, pitch)] = 1.0
    return targets


def _cells(low: NDArray[np.float64], high: NDArray[np.float64], pitch: float) -> tuple[slice, slice]:
    """Return rows and columns of the cells whose centres lie in a rectangle, or of the cell at its middle."""
    first, last = np.ceil(low / pitch - 0.5).astype(int), np.floor(high / pitch - 0.5).astype(int)
    middle = ((low + high) / 2 // pitch).astype(int)
    first, last = np.where(first > last, middle, first), np.where(first > last, middle, last)
    return slice(max(first[1], 0), last[1] + 1), slice(max(first[0], 0), last[0] + 1)


def batch_targets(
    boxed: BoxedThreats, index: Index, epoch: int, images: ImageSettings, parts: NDArray[np.float32] | None
) -> CellTargets:
    """Return a function that gives the targets of a batch's cells, as its images were cut and augmented."""
    moved, unknown_of = [], [boxed.unknown(k) for k in index.tolist()]
    for k in index.tolist():
        held = boxed.of(k, None if parts is None else parts[k])
        if held is not None:
            assert images.augmentation is not None
            drawn = draw(images.augmentation, images.size, (images.seed, epoch, k))
            held = moved_boxes(held[0] * images.size, drawn, images.size), held[1]
        moved.append(held)

    def targets(cells: int) -> NDArray[np.float32]:
        unknown = np.full((len(THREATS), cells, cells), IGNORED, np.float32)
        found = np.stack(
            [
                unknown if held is None else cell_targets(held[0], held[1], images.size, cells)
                for held in moved
            ]
        )
        for k, classes in enumerate(unknown_of):
            found[k, classes] = IGNORED
        return found

    return targets
