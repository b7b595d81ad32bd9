"""The trunk in half precision as torch emulates it on any machine: every operation's result is rounded.

A half kernel multiplies halves, sums in float32 and rounds its result; that is float32 arithmetic on rounded
weights, with every result rounded to half. What differs on a GPU is the order of sums, and where an engine
fuses operations it rounds less often.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .folding import fold_batch_norms
from .gbad import GBAD, ModelOutputs
from .network import normalize


class EmulatedHalfGBAD(nn.Module):
    """GBAD with its backbone as in half precision, the rest in float32; changes the model it is given."""

    def __init__(self, model: GBAD, *, folded: bool):
        """Round the weights, with `folded` batch norms as TensorRT sees them, else as torch Inductor does."""
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        if folded:
            fold_batch_norms(model.network.backbone, model.architecture.input_size)
        for tensor in model.network.backbone.state_dict().values():
            if tensor.is_floating_point():
                tensor.copy_(tensor.half())

    @torch.no_grad()
    def forward(self, pixels: Tensor) -> ModelOutputs:
        """Score uint8 pixels [N, S, S, 3]."""
        x, logits = self.model.network.heads(self.trunk(pixels))
        return ModelOutputs(x, logits, *self.model.bigan(x))

    def trunk(self, pixels: Tensor) -> list[Tensor]:
        """Return C2..C5 [N, Ci, Hi, Wi], float32 tensors of half values; pixels are normalized in float32."""
        images = normalize(pixels, self.model.pixel_mean, self.model.pixel_std).half().float()
        with _Rounding():
            return self.model.network.backbone(images)


class _Rounding(TorchDispatchMode):
    """Round the float32 results of every operation to half precision, in place."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        for result in tree_leaves(results):
            if isinstance(result, Tensor) and result.dtype == torch.float32:
                result.copy_(result.half())
        return results
