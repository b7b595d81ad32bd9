"""The classifier of phase I: backbone, pooled FPN, FC1..FC4 to the feature vector x, then FC5 or a class map.

A network with a class map has FC5 as well: it trains FC1..FC4, and its figures stand beside those of the map.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..row import THREATS
from .architecture import Architecture
from .backbone import LEVELS, channels, create_backbone
from .class_map import LEVELS as MAP_LEVELS
from .class_map import POOLINGS, ClassMap
from .dense import Dense
from .fpn import Means, PooledPyramid


class Predictions(NamedTuple):
    """All that the network says of a batch."""

    x: Tensor  # [N, 1024]
    logits: Tensor  # [N, 5], of the head that the architecture names
    fc5: Tensor  # [N, 5], of FC5
    class_map: Tensor | None  # [N, 5, S/8, S/8], if there is one


class Network(nn.Module):
    """Normalized images [N, 3, S, S] to the feature vector x [N, 1024] and the logits [N, 5]."""

    def __init__(self, architecture: Architecture):
        super().__init__()
        width, features = architecture.fpn_channels, architecture.head_features
        self.backbone = create_backbone(architecture.backbone)
        self.fpn = PooledPyramid(channels(self.backbone), width)
        self.fc = nn.ModuleList([Dense(width, features) for _ in range(LEVELS)])  # FC1..FC4
        self.fc5 = Dense(LEVELS * features, len(THREATS))
        self.head = architecture.head
        self.class_map = (
            ClassMap(channels(self.backbone)[-MAP_LEVELS:], architecture.map_channels)
            if architecture.has_map
            else None
        )

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return x (after ReLU) and the logits of gun, knife, wrench, pliers, scissors."""
        return self.heads(self.backbone(images))

    def heads(self, maps: Sequence[Tensor], means: Means | None = None) -> tuple[Tensor, Tensor]:
        """Return x and the logits of the backbone's C2..C5: [N, Ci, S/4, S/4] .. [N, Ci, S/32, S/32]."""
        found = self.predict(maps, means)
        return found.x, found.logits

    def predict(self, maps: Sequence[Tensor], means: Means | None = None) -> Predictions:
        """Return everything that the heads make of the backbone's C2..C5."""
        pooled = self.fpn(maps, means)  # 4 x [N, 256, 1, 1]
        x = torch.cat(
            [F.relu(fc(p)) for fc, p in zip(self.fc, pooled, strict=True)], dim=1
        )  # [N, 1024, 1, 1]
        fc5 = self.fc5(x).squeeze((2, 3))
        class_map = None if self.class_map is None else self.class_map(maps[-MAP_LEVELS:])
        logits = fc5 if class_map is None else POOLINGS[self.head](class_map)
        return Predictions(x.squeeze((2, 3)), logits, fc5, class_map)


def normalize(pixels: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """Turn uint8 pixels [N, S, S, 3] into float images [N, 3, S, S]: (pixels / 255 - mean) / std."""
    images = pixels.permute(0, 3, 1, 2).to(mean.dtype)
    # one multiplication and one addition, so that every backend can fold them into the first convolution
    return images * (1 / (255 * std))[:, None, None] - (mean / std)[:, None, None]
