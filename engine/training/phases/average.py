"""Exponential moving averages of weights, and seeds that make a run repeat."""

import copy
from typing import Any

import torch
from torch import nn


class Average:
    """A copy of a module whose weights follow it slowly; early steps count more."""

    def __init__(self, module: nn.Module, decay: float):
        self.module = copy.deepcopy(module).eval().requires_grad_(False)
        self.decay = decay
        self.steps = 0

    @torch.no_grad()
    def update(self, module: nn.Module) -> None:
        """Move by one step towards the module as it is now."""
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        source: dict[str, Any] = module.state_dict()
        for key, mean in self.module.state_dict().items():
            if mean.is_floating_point():
                mean.lerp_(source[key], 1 - decay)
            else:
                mean.copy_(source[key])
