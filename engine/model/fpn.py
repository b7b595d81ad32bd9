"""Feature pyramid network with global average pooling, in its plain form and in a form that pools first.

Lin et al., Feature Pyramid Networks for Object Detection, CVPR 2017: P5 = out(lat(C5)),
Pi = out(lat(Ci) + up2(P'i+1)), where P' is before the output convolution. Pooling and all of that are linear.
"""

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Means = Callable[[Tensor], Tensor]  # [N, C, H, W] -> [N, C, 3, 3], as `window_means`


class PooledPyramid(nn.Module):
    """C2..C5 [N, Ci, Hi, Wi] to the spatial means of P2..P5, each [N, channels, 1, 1]."""

    def __init__(self, inputs: Sequence[int], channels: int):
        super().__init__()
        self.lateral = _list([nn.Conv2d(each, channels, 1) for each in inputs])
        self.output = _list([nn.Conv2d(channels, channels, 3, padding=1) for _ in inputs])
        for convolution in [*self.lateral, *self.output]:
            nn.init.kaiming_uniform_(convolution.weight, a=1)
            nn.init.zeros_(_bias(convolution))

    def forward(self, maps: Sequence[Tensor], means: Means | None = None) -> list[Tensor]:
        """Pool first if that is exact, which needs each map to be twice as large as the next.

        `means` replaces `window_means`; maps may be in half precision if it returns float32.
        """
        if doubles(maps):
            return self.collapsed(maps, means)
        return self.plain([each.to(self.lateral[0].weight.dtype) for each in maps])

    def plain(self, maps: Sequence[Tensor]) -> list[Tensor]:
        """Run the pyramid as the paper writes it, then take means; serves every size of maps."""
        pooled: list[Tensor] = []
        above: Tensor | None = None
        for level in reversed(range(len(maps))):
            merged = self.lateral[level](maps[level])  # [N, channels, H, W]
            if above is not None:
                merged = merged + F.interpolate(above, size=merged.shape[-2:], mode="nearest")
            pooled.insert(0, self.output[level](merged).mean((2, 3), keepdim=True))
            above = merged
        return pooled

    def collapsed(self, maps: Sequence[Tensor], means: Means | None = None) -> list[Tensor]:
        """Compute the same from nine means per channel of each map; needs `doubles(maps)`."""
        pooled: list[Tensor] = []
        above: Tensor | None = None
        for level in reversed(range(len(maps))):
            lateral, output = self.lateral[level], self.output[level]
            height, width = maps[level].shape[-2:]
            merged = F.conv2d((means or window_means)(maps[level]), lateral.weight)  # [N, channels, 3, 3]
            # the padding carries no bias: each window gets it in proportion to its real positions
            merged = merged + in_windows(_bias(lateral), height, width)
            if above is not None:
                merged = merged + upsampled_means(above)
            # tap (i, j) of a padded 3x3 convolution sees exactly window (i, j)
            pooled.insert(0, F.conv2d(merged, output.weight, output.bias))
            above = merged
        return pooled


def doubles(maps: Sequence[Tensor]) -> bool:
    """Tell whether each map has twice the height and width of the next, and two lines at least."""
    sizes = [tuple(each.shape[-2:]) for each in maps]
    exact = all(fine == (2 * coarse[0], 2 * coarse[1]) for fine, coarse in pairwise(sizes))
    return exact and min(sizes[-1]) >= 2


def window_means(features: Tensor) -> Tensor:
    """Means of [N, C, H, W] over the nine windows that a padded 3x3 convolution sees: [N, C, 3, 3].

    Window (i, j) is the map shifted by (i - 1, j - 1), zeros entering; its mean counts them. Means, since
    sums overflow half precision: a 64 x 64 map of mean 20 sums to 83,299 at its border windows.
    """
    height, width = features.shape[-2:]
    return F.avg_pool2d(features, (height, width), stride=1, padding=1, count_include_pad=True)


def upsampled_means(means: Tensor) -> Tensor:
    """Window means [N, C, 3, 3] of a map after nearest upsampling by two, from those of the map itself.

    In each dimension sums over {all, first line, last line} become (2, 1, 1) times themselves, so in means
    the border windows move half way to the middle one.
    """
    means = (means + means[:, :, 1:2]) / 2
    return (means + means[..., 1:2]) / 2


def in_windows(bias: Tensor, height: int, width: int) -> Tensor:
    """Return the share of a bias [C] in each of the nine windows, that of their real positions: [C, 3, 3].

    The bias itself is scaled: no tensor is made from numbers of the host, which a CUDA graph cannot capture.
    """
    bias = bias[:, None, None]
    border = bias * (1 - 1 / height)
    lines = torch.cat([border, bias, border], 1)  # [C, 3, 1]
    border = lines * (1 - 1 / width)
    return torch.cat([border, lines, border], 2)


def _list(layers: Sequence[nn.Conv2d]) -> Sequence[nn.Conv2d]:
    """Make a ModuleList with typed elements."""
    return cast("Sequence[nn.Conv2d]", nn.ModuleList(layers))


def _bias(layer: nn.Conv2d) -> Tensor:
    assert layer.bias is not None
    return layer.bias
