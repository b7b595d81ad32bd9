"""Moving averages of weights, as phases I and II keep and ship them."""

from timm.utils.model_ema import ModelEmaV3
from torch import nn


def moving_average(module: nn.Module, decay: float) -> ModelEmaV3:
    """Return an exponential moving average of a module's weights and buffers, whose early steps count more.

    The decay of step k (from 1 on) rises as 1 - 9 / (8 + k) up to `decay`; pass k to `update`, for a resumed
    training must give the same bits.
    """
    return ModelEmaV3(module, decay, use_warmup=True, warmup_gamma=9.0, warmup_power=1.0)
