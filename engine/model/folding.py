"""Batch norms and the convolutions before them, which engines multiply into one."""

from typing import Any, cast

import torch
from torch import Tensor, nn

from .network import Network

LEAST_WEIGHT = 1e-6  # a norm with a smaller one passes nothing on


@torch.no_grad()
def normed_convolutions(backbone: nn.Module, size: int) -> list[tuple[nn.Conv2d, nn.BatchNorm2d]]:
    """Return every convolution with the batch norm behind it.

    Which follows which is seen as an image of `size` pixels a side passes.
    """
    makers: dict[int, nn.Conv2d] = {}  # of tensors, by identity
    kept: list[Tensor] = []  # no identity is given twice
    found: list[tuple[nn.Conv2d, nn.BatchNorm2d]] = []

    def note(module: nn.Module, inputs: Any, output: Any) -> None:
        kept.append(output)
        if isinstance(module, nn.Conv2d):
            makers[id(output)] = module
        elif id(inputs[0]) in makers:
            found.append((makers[id(inputs[0])], cast("nn.BatchNorm2d", module)))

    handles = [
        module.register_forward_hook(note)
        for module in backbone.modules()
        if isinstance(module, nn.Conv2d | nn.BatchNorm2d)
    ]
    trains = backbone.training
    backbone.eval()(torch.zeros(1, 3, size, size))
    backbone.train(trains)
    for handle in handles:
        handle.remove()
    return found


@torch.no_grad()
def fold_batch_norms(backbone: nn.Module, size: int) -> None:
    """Multiply every batch norm into the convolution before it, as engines do; the norm then does nothing."""
    for convolution, norm in normed_convolutions(backbone, size):
        mean, variance = _statistics(norm)
        scale = norm.weight / (variance + norm.eps).sqrt()
        own = 0 if convolution.bias is None else convolution.bias
        convolution.bias = nn.Parameter(norm.bias + (own - mean) * scale, requires_grad=False)
        convolution.weight *= scale[:, None, None, None]
        mean.zero_()
        variance.fill_(1 - norm.eps)
        norm.weight.fill_(1)
        norm.bias.zero_()


@torch.no_grad()
def round_to_bfloat16(network: Network, size: int) -> None:
    """Round the weights of a network to numbers that bfloat16 holds, also once batch norms are folded in.

    An engine in bfloat16 then has the weights that one in FP32 has: on EfficientNet-Lite0 half of what
    separates the two is rounded weights. A convolution and the statistics of its norm are scaled together, so
    that the norm multiplies by a power of two; what they compute stays the same but for rounding, in training
    too.
    """
    for convolution, norm in normed_convolutions(network.backbone, size):
        mean, variance = _statistics(norm)
        norm.weight.copy_(norm.weight.half())  # as a bundle stores it
        weight = norm.weight.abs()
        live = weight > LEAST_WEIGHT
        scale = torch.where(live, weight / (variance + norm.eps).sqrt(), 1)
        # the variance behind it must be positive
        most = torch.where(live, weight / (2 * norm.eps) ** 0.5, 1)
        power = torch.exp2(torch.minimum(scale.log2().round(), most.log2().floor()))
        ratio = scale / power
        convolution.weight *= ratio[:, None, None, None]
        if convolution.bias is not None:
            convolution.bias *= ratio
        mean *= ratio
        variance.copy_(torch.where(live, (weight / power) ** 2 - norm.eps, variance * ratio**2))
    for weight in network.parameters():
        if weight.dim() > 1:
            weight.copy_(weight.bfloat16())


def _statistics(norm: nn.BatchNorm2d) -> tuple[Tensor, Tensor]:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    return norm.running_mean, norm.running_var
