"""Batches on one NVIDIA GPU: CUDA graphs of fixed sizes, two batches under way at a time.

A graph is captured once a size, with all memory in place, and then costs one launch; smaller batches are
filled up. While one lane computes, the next is fed and the one before is read. What a GPU has decoded is
there already, and goes into a lane's memory by one copy, without the host.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import DeviceLost
from ..text import one_line
from . import OUTPUTS, Outputs
from .cuda import is_lost

Pixels = NDArray[np.uint8] | Tensor  # uint8 [n, S, S, 3], on the host or on the GPU, and finished
Forward = Callable[[Tensor], tuple[Tensor, ...]]  # uint8 [n, S, S, 3] on the GPU -> OUTPUTS, float32 there

WARM_UPS = 3  # calls before a capture: libraries choose their algorithms and allocate in the first ones


class Lane:
    """A stream with buffers of its own and a graph for each size; one batch at a time."""

    def __init__(self, forward: Forward, sizes: Sequence[int], side: int, device: torch.device):
        self._forward = forward
        self._sizes = sorted(sizes)
        self._stream = torch.cuda.Stream(device)
        shape = (self._sizes[-1], side, side, 3)
        self._host = torch.zeros(shape, dtype=torch.uint8, pin_memory=True)
        self._pixels = torch.zeros(shape, dtype=torch.uint8, device=device)
        # all at once, before a decoder uses the GPU: who waits for all of it, as DALI may, breaks a capture
        self._graphs = {size: self._captured(size) for size in self._sizes}
        self._count = 0
        self._source = self._host  # what is being copied from: its memory must not come free
        self._found: list[Tensor] = []

    def start(self, pixels: Pixels) -> None:
        """Send a batch of at most the largest size on its way."""
        self._count = len(pixels)
        self._source = pixels if isinstance(pixels, Tensor) else self._staged(pixels)
        size = next(size for size in self._sizes if size >= self._count)
        graph, outputs, self._found = self._graphs[size]
        with torch.cuda.stream(self._stream):
            self._pixels[: self._count].copy_(self._source, non_blocking=True)
            graph.replay()
            for here, there in zip(self._found, outputs, strict=True):
                here.copy_(there, non_blocking=True)

    def finish(self) -> Outputs:
        """Wait for the batch that was started, and give what the networks say of it."""
        self._stream.synchronize()
        self._source = self._host
        arrays = (each[: self._count].numpy().copy() for each in self._found)
        return Outputs(**dict(zip(OUTPUTS, arrays, strict=True)))

    def _staged(self, pixels: NDArray[np.uint8]) -> Tensor:
        """Copy a batch to where the GPU reads it from by itself."""
        staged = self._host[: len(pixels)]
        staged.copy_(torch.from_numpy(np.ascontiguousarray(pixels)))
        return staged

    def _captured(self, size: int) -> "tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...], list[Tensor]]":
        """Record what `forward` does to the first `size` images, and where its outputs will stand."""
        pixels = self._pixels[:size]
        graph = torch.cuda.CUDAGraph()
        with exact_float32(), torch.inference_mode():
            with torch.cuda.stream(self._stream):
                for _ in range(WARM_UPS):
                    self._forward(pixels)
            self._stream.synchronize()
            # other threads may use the GPU meanwhile
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                outputs = self._forward(pixels)
        return graph, outputs, [torch.empty_like(o, device="cpu").pin_memory() for o in outputs]


class Lanes:
    """Lanes that take turns; batches come back in the order in which they went in."""

    def __init__(self, forwards: Sequence[Forward], sizes: Sequence[int], side: int, device: torch.device):
        with torch.cuda.device(device):
            self._lanes = [Lane(forward, sizes, side, device) for forward in forwards]
        self._device = device
        self._largest = max(sizes)

    def __call__(self, pixels: Pixels) -> Outputs:
        """Score pixels uint8 [n, S, S, 3] of any n >= 1; raises DeviceLost, or RuntimeError."""
        try:
            return self._scored(pixels)
        except RuntimeError as error:
            if is_lost(self._device):
                raise DeviceLost(f"{self._device} failed on a batch ({one_line(error)[:300]})") from error
            raise

    def _scored(self, pixels: Pixels) -> Outputs:
        free, busy, parts = deque(self._lanes), deque[Lane](), list[Outputs]()
        with torch.cuda.device(self._device):
            for start in range(0, len(pixels), self._largest):
                if not free:
                    lane = busy.popleft()
                    parts.append(lane.finish())
                    free.append(lane)
                busy.append(free.popleft())
                busy[-1].start(pixels[start : start + self._largest])
            parts += [lane.finish() for lane in busy]
        return joined(parts)


def joined(parts: Sequence[Outputs]) -> Outputs:
    """Put the outputs of successive batches together."""
    return Outputs(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in OUTPUTS})


@contextmanager
def exact_float32() -> Iterator[None]:
    """Keep what is float32 from being computed in TF32, torch's default for convolutions on a GPU."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before
