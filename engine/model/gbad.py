"""The whole model as one torch module, to and from the named arrays of a bundle."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import BundleError
from .architecture import Architecture
from .backbone import normalization
from .bigan import BiGAN
from .network import Network, normalize
from .typicality import PREFIX


class ModelOutputs(NamedTuple):
    """Outputs of the model for a batch, float32 tensors."""

    x: Tensor  # [N, 1024]
    logits: Tensor  # [N, 5]
    reconstruction_loss: Tensor  # [N]
    feature_matching_loss: Tensor  # [N]


class GBAD(nn.Module):
    """The model from uint8 pixels [N, S, S, 3] to features, logits and both losses."""

    pixel_mean: Tensor
    pixel_std: Tensor

    def __init__(
        self,
        architecture: Architecture,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ):
        """Build it with random weights; mean and std of pixels, if not given, are the backbone's own."""
        super().__init__()
        self.architecture = architecture
        self.network = Network(architecture)
        self.bigan = BiGAN(architecture)
        own_mean, own_std = normalization(architecture.backbone)
        mean, std = own_mean if mean is None else mean, own_std if std is None else std
        # constants of the bundle's manifest, not weights: stored there and nowhere else
        self.register_buffer("pixel_mean", torch.tensor(mean), persistent=False)
        self.register_buffer("pixel_std", torch.tensor(std), persistent=False)

    def forward(self, pixels: Tensor) -> ModelOutputs:
        """Score a batch; the network must be in evaluation mode."""
        x, logits = self.features(pixels)
        return ModelOutputs(x, logits, *self.bigan(x))

    def features(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Return x [N, 1024] and logits [N, 5] of uint8 pixels [N, S, S, 3]."""
        return self.network.heads(self.maps(pixels))

    def maps(self, pixels: Tensor) -> list[Tensor]:
        """Return the backbone's C2..C5 of uint8 pixels [N, S, S, 3]."""
        return self.network.backbone(normalize(pixels, self.pixel_mean, self.pixel_std))

    def use_head(self, head: str) -> None:
        """Let another of HEADS give the logits; one of a class map only where there is one."""
        self.architecture = replace(self.architecture, head=head)
        self.network.head = head

    def arrays(self) -> dict[str, np.ndarray]:
        """Return every weight by its name in a bundle: float16, except for statistics, which stay float32."""
        # C order: a channels_last kernel would otherwise be written in its memory order
        return {
            _stored_name(key): np.ascontiguousarray(value.detach().cpu().to(_stored_dtype(key)).numpy())
            for key, value in self.state_dict().items()
            if not key.endswith("num_batches_tracked")
        }

    def load_arrays(self, arrays: Mapping[str, np.ndarray]) -> None:
        """Set every weight from a bundle's arrays; raises BundleError for a wrong name or shape."""
        own = {k: v for k, v in self.state_dict().items() if not k.endswith("num_batches_tracked")}
        given = {key: arrays[key] for key in arrays if not key.startswith(("decision.", PREFIX))}
        for key, value in own.items():
            array = given.pop(_stored_name(key), None)
            if array is None or array.shape != tuple(value.shape):
                raise BundleError(f"the weights of the bundle do not fit its architecture at {key!r}")
            value.copy_(torch.from_numpy(np.array(array, dtype=np.float32)))
        if given:
            raise BundleError(f"the weights of the bundle hold an unknown tensor, {next(iter(given))!r}")

    @classmethod
    def from_arrays(
        cls,
        architecture: Architecture,
        arrays: Mapping[str, np.ndarray],
        mean: Sequence[float],
        std: Sequence[float],
    ) -> "GBAD":
        """Build the model of a bundle, in evaluation mode."""
        model = cls(architecture, mean, std)
        model.load_arrays(arrays)
        return model.eval()


def round_to_half(module: nn.Module) -> None:
    """Round every weight, except for statistics, to the float16 value that a bundle will hold."""
    for key, value in module.state_dict().items():
        if value.is_floating_point() and _stored_dtype(key) == torch.float16:
            value.copy_(value.half().float())


def _stored_dtype(key: str) -> torch.dtype:
    """Return float32 for statistics, which may exceed float16's range, else float16."""
    statistics = ("running_mean", "running_var", "bigan.mean", "bigan.std")
    return torch.float32 if key.endswith(statistics) or key in ("mean", "std") else torch.float16


def _stored_name(key: str) -> str:
    """Return the name in a bundle: the standardization does not belong to the BiGAN there."""
    return key.replace("bigan.mean", "standardize.mean").replace("bigan.std", "standardize.std")
