"""A GPU's memory for decoded pixels, with a stream of its own."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from ..errors import DeviceLost, Stopped
from ..runtime.cuda import is_lost
from ..text import one_line
from .host_memory import HostMemory


class DeviceMemory(HostMemory):
    """Memory of one GPU: torch tensors uint8; whoever decodes there uses it from one thread."""

    def __init__(self, gpu: int):
        self._device = torch.device("cuda", gpu)
        self._stream = torch.cuda.Stream(self._device)
        self.stream = self._stream.cuda_stream
        super().__init__()

    @contextmanager
    def here(self) -> Iterator[None]:
        """Make this GPU and this stream the current ones; raises DeviceLost or Stopped where it fails."""
        try:
            with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
                yield
        except RuntimeError as error:
            reason = one_line(error)[:300]
            if self.is_lost():
                raise DeviceLost(f"the GPU failed while it decoded ({reason})") from error
            raise Stopped(
                f"{self._device} cannot hold the pixels of a batch ({reason}); finished rows are kept: "
                "give a smaller --batch-size, and run the same command again"
            ) from error

    def empty(self, *shape: int) -> torch.Tensor:
        """Make a tensor of any content."""
        return torch.empty(shape, dtype=torch.uint8, device=self._device)

    def put(self, pixels: npt.NDArray[np.uint8]) -> torch.Tensor:
        """Bring an array of the host here."""
        return torch.from_numpy(pixels).to(self._device)

    def of(self, tensors: Any) -> torch.Tensor:
        """Give a list of DALI's tensors as one, in place; DALI keeps the memory while the tensor is there."""
        return torch.from_dlpack(tensors.as_tensor())

    def wait(self) -> None:
        """Wait until all that was begun here is done.

        Then nobody reads or writes memory that comes free here: other streams have been waited for before
        what they read was given up (`runtime.cuda_graphs`).
        """
        self._stream.synchronize()

    def is_lost(self) -> bool:
        """Tell whether the GPU answers this process no more."""
        return is_lost(self._device)
