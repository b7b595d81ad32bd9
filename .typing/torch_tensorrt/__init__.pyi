# What this project calls of torch-tensorrt 2.14, for the type checker: it comes without a py.typed. From
# torch_tensorrt/_Input.py and dynamo/_compiler.py of its wheel, without what swallows unknown keywords.
import torch

from . import dynamo as dynamo

class Input:
    def __init__(
        self,
        *,
        min_shape: tuple[int, ...],
        opt_shape: tuple[int, ...],
        max_shape: tuple[int, ...],
        dtype: torch.dtype,
    ) -> None: ...
