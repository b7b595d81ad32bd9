"""Memory for decoded pixels: in numpy arrays for DALI's CPU operators, in torch tensors on a GPU."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import numpy.typing as npt

ALIGNMENT = 256  # bytes, of an image in a buffer, as CUDA's own allocations have it


class HostMemory:
    """Memory of the machine. What it gives are arrays, of numpy or torch, and the same words serve both."""

    stream = 0  # that work here is ordered by, as CUDA numbers it

    def __init__(self) -> None:
        self._buffer: Any = self.empty(0)

    def here(self) -> AbstractContextManager[object]:
        """Give the context that what is done here is done in."""
        return nullcontext()

    def empty(self, *shape: int) -> Any:
        """Make an array uint8 of any content."""
        return np.empty(shape, np.uint8)

    def put(self, pixels: npt.NDArray[np.uint8]) -> Any:
        """Bring an array of the host here."""
        return pixels

    def of(self, tensors: Any) -> Any:
        """Give a list of DALI's tensors of one shape as one array."""
        return tensors.as_array()

    def views(self, shapes: Sequence[tuple[int, int]]) -> list[Any]:
        """Give black images [height, width, 3] to be written to, in a buffer that stays: the last ones' too.

        A decoder that leaves an image out cannot leave an old picture there, and nothing else ever owns this
        memory, which hardware may write to out of turn.
        """
        sizes = [height * width * 3 for height, width in shapes]
        starts = np.cumsum([0, *(-(-size // ALIGNMENT) * ALIGNMENT for size in sizes)]).tolist()
        if len(self._buffer) < starts[-1]:
            self._buffer = self.empty(starts[-1])
        self._buffer[: starts[-1]] = 0
        return [
            self._buffer[start : start + size].reshape(*shape, 3)
            for start, size, shape in zip(starts, sizes, shapes, strict=False)
        ]

    def wait(self) -> None:
        """Wait until all that was begun here is done."""

    def is_lost(self) -> bool:
        """Tell whether the device answers this process no more."""
        return False
