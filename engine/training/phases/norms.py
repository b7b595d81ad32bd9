"""Batch norms in front of FC1..FC4 while phase I trains; a bundle holds the same function without them.

What all images have in common can leave a rectified unit on pooled maps at zero for all of them, and such a
unit never learns again: without norms 1,012 of 1,024 were dead after 28 epochs, and the BiGAN collapsed on
the rest; with them (Ioffe and Szegedy, ICML 2015) 1,014 or more lived after each of `leave_one_out`'s
trainings. They are linear once training is over.
"""

from typing import cast

import torch
from torch import nn

from ...model.dense import Dense
from ...model.network import Network


def put_norms(network: Network) -> None:
    """Put a batch norm before each of FC1..FC4."""
    for level, fc in enumerate(network.fc):
        network.fc[level] = nn.Sequential(nn.BatchNorm2d(cast("Dense", fc).in_channels), fc)


@torch.no_grad()
def fold_norms(network: Network) -> None:
    """Take the batch norms out again; what the network computes in evaluation stays the same."""
    for level, both in enumerate(network.fc):
        norm, fc = cast("tuple[nn.BatchNorm2d, Dense]", tuple(cast("nn.Sequential", both)))
        mean, variance = cast("torch.Tensor", norm.running_mean), cast("torch.Tensor", norm.running_var)
        scale = norm.weight / (variance + norm.eps).sqrt()  # [inputs]
        weight = fc.weight.flatten(1)  # [outputs, inputs]
        assert fc.bias is not None
        fc.bias += weight @ (norm.bias - mean * scale)
        fc.weight *= scale[:, None, None]
        network.fc[level] = fc
