"""Fully connected layers that give each row of a batch the same bits, however many rows there are."""

import torch.nn.functional as F
from torch import Tensor, nn


class Dense(nn.Conv2d):
    """A fully connected layer on [N, inputs, 1, 1], as a 1x1 convolution.

    Backends may round differently for a matrix times a vector than for a matrix times a matrix; they treat a
    convolution of a batch of one like any other. In training, where that does not matter, the layer is
    computed as a matrix product, at half the cost.
    """

    def __init__(self, inputs: int, outputs: int):
        super().__init__(inputs, outputs, 1)

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002  torch's own name
        """Map [N, inputs, 1, 1] to [N, outputs, 1, 1]."""
        if not self.training:
            return super().forward(input)
        return F.linear(input.flatten(1), self.weight.flatten(1), self.bias)[:, :, None, None]
