"""Phase I in bfloat16 on CPUs that multiply it: half the time of a step.

One operation is better left in float32: oneDNN's gradient of the weights of a grouped convolution takes five
to ten times as long in bfloat16, and depthwise convolutions are most of a mobile network.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


@contextmanager
def bfloat16() -> Iterator[None]:
    """Compute what is inside in bfloat16 as torch's autocast chooses, with `_Grouped` in its place."""
    with torch.autocast("cpu", torch.bfloat16), _GroupedInstead():
        yield


class _GroupedInstead(TorchFunctionMode):
    """Replaces grouped convolutions of images [N, C, H, W]."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.conv2d and not kwargs and len(args) == 7 and args[6] > 1 and args[2] is None:
            images, weight, _, stride, padding, dilation, groups = args
            return _Grouped.apply(images, weight, list(stride), list(padding), list(dilation), groups)
        return func(*args, **kwargs)


class _Grouped(torch.autograd.Function):
    """A grouped convolution without bias in bfloat16, whose weights' gradient is computed in float32."""

    @staticmethod
    def forward(  # noqa: PLR0913
        ctx: Any, images: Tensor, weight: Tensor, stride: Any, padding: Any, dilation: Any, groups: int
    ) -> Tensor:
        images = images.to(torch.bfloat16)
        ctx.save_for_backward(images, weight)
        ctx.how = (None, stride, padding, dilation, False, [0, 0], groups)
        _, *how = ctx.how
        return torch.ops.aten.convolution(images, weight.to(torch.bfloat16), None, *how)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        (gradient,) = gradients
        images, weight = ctx.saved_tensors
        of_images, of_weight, *_ = ctx.needs_input_grad
        backward = torch.ops.aten.convolution_backward
        in_images = in_weight = None
        if of_images:
            half = weight.to(torch.bfloat16)
            in_images = backward(gradient, images, half, *ctx.how, [True, False, False])[0]
        if of_weight:
            whole = backward(gradient.float(), images.float(), weight, *ctx.how, [False, True, False])
            in_weight = whole[1]
        return in_images, in_weight, None, None, None, None
