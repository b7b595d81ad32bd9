"""The model with its backbone in half precision and everything after it in float32."""

from collections.abc import Iterable

from torch import Tensor, channels_last, float16, float32, nn

from ...kernels.bigan_losses import two_losses
from ...kernels.border_pool import border_means
from .gbad import GBAD
from .network import normalize

DTYPES = {"fp32": float32, "fp16": float16}


class MixedPrecisionGBAD(nn.Module):
    """GBAD with its backbone in `precision` and channels_last; changes the model that it is given."""

    def __init__(self, model: GBAD, precision: str):
        super().__init__()
        self.model = model.eval().requires_grad_(False)
        self.dtype = DTYPES[precision]
        model.network.backbone.to(self.dtype).to(memory_format=channels_last)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Score uint8 pixels [N, S, S, 3]: x, logits, reconstruction_loss and feature_matching_loss."""
        x, logits = self.model.network.heads(self.trunk(pixels), border_means)
        return x, logits, *losses_of(self.model.bigan.pairs(x))

    def trunk(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Return C2..C5 [N, Ci, Hi, Wi] in the backbone's precision; pixels are normalized in float32."""
        # to float first: TensorRT's parser accepts uint8 only in a cast
        images = normalize(pixels.float(), self.model.pixel_mean, self.model.pixel_std)
        return tuple(self.model.network.backbone(images.to(self.dtype)))


def losses_of(pairs: Iterable[Tensor]) -> tuple[Tensor, Tensor]:
    """Return both losses [N] from the result of `BiGAN.pairs`, by the fused kernel."""
    return two_losses(*(tensor.flatten(1) for tensor in pairs))
