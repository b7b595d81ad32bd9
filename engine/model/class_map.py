"""The class map: logits of the five threats at every place of the stride of C3, and one logit for the image.

A mean over the picture, which FC5 sees, carries the look of the whole bag into the classes; the strongest
place does not (docs/departures.md has the figures). The neck is a top-down pyramid (Lin et al., CVPR 2017) of
few channels, then one depthwise separable convolution (Howard et al., MobileNets, 2017).
"""

import math
from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from ..row import THREATS

LEVELS = 3  # C3..C5
PRIOR = 0.05  # probability of a class in an image before anything is learned
TEMPERATURE = 0.5  # of the log-sum-exp, in logits


class ClassMap(nn.Module):
    """C3..C5 [N, Ci, Hi, Wi] to logits [N, 5, H3, W3] of gun, knife, wrench, pliers, scissors."""

    def __init__(self, inputs: Sequence[int], channels: int):
        super().__init__()
        self.lateral = nn.ModuleList([_normed(nn.Conv2d(each, channels, 1, bias=False)) for each in inputs])
        self.spatial = _normed(nn.Conv2d(channels, channels, 3, padding=1, groups=channels, bias=False))
        self.mixed = _normed(nn.Conv2d(channels, channels, 1, bias=False))
        self.classes = nn.Conv2d(channels, len(THREATS), 1)
        nn.init.normal_(self.classes.weight, std=0.01)
        nn.init.constant_(self.classes.bias, math.log(PRIOR / (1 - PRIOR)))  # type: ignore[arg-type]

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Return the map of logits; `maps` may be in half precision, all else is float32."""
        dtype = self.classes.weight.dtype
        merged: Tensor | None = None
        for lateral, level in reversed(list(zip(self.lateral, maps, strict=True))):
            own = lateral(level.to(dtype))
            merged = own if merged is None else add_upsampled(own, merged)
        assert merged is not None
        return self.classes(F.relu(self.mixed(F.relu(self.spatial(F.relu(merged))))))


def _normed(convolution: nn.Conv2d) -> nn.Sequential:
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out")
    return nn.Sequential(convolution, nn.BatchNorm2d(convolution.out_channels))


def add_upsampled(fine: Tensor, coarse: Tensor) -> Tensor:
    """Add a map [N, C, h, w], upsampled by the nearest place, to one of [N, C, H, W].

    Where the one is exactly twice the other, as in scans, the addition itself repeats each place: a graph
    needs no operator that makes a large map out of a small one, and bundles may hold none.
    """
    channels, height, width = coarse.shape[1:]
    if fine.shape[-2:] != (2 * height, 2 * width):
        return fine + F.interpolate(coarse, size=fine.shape[-2:], mode="nearest")
    blocks = fine.reshape(-1, channels, height, 2, width, 2) + coarse[:, :, :, None, :, None]
    return blocks.reshape(-1, channels, 2 * height, 2 * width)


def strongest(class_map: Tensor) -> Tensor:
    """Return the maximum over places of logits [N, 5, H, W]: [N, 5]."""
    return class_map.amax((2, 3))


def log_sum_exp(class_map: Tensor) -> Tensor:
    """Return T log sum exp(z / T) over places of logits z [N, 5, H, W]: [N, 5], never below the maximum.

    A threat that many places see counts for more than one that a single place sees.
    """
    most = class_map.amax((2, 3), keepdim=True)
    total = ((class_map - most) / TEMPERATURE).exp().sum((2, 3))
    return most.squeeze((2, 3)) + TEMPERATURE * total.log()


# how a bundle's head makes logits of the image from those of places, by its name in the manifest
POOLINGS = {"map_max": strongest, "map_lse": log_sum_exp}
