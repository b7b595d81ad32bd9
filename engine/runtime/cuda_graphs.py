"""Runs batches on one NVIDIA GPU by CUDA graphs of fixed sizes, with several batches in flight.

A CUDA graph is captured once per batch size, with all memory allocated, and then costs one launch; smaller
batches are padded. While one slot computes, the next receives its pixels and the one before is read out.
Pixels that the GPU has decoded are copied into a slot on the device, without a detour through the host.
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

Pixels = NDArray[np.uint8] | Tensor  # uint8 [n, S, S, 3], on the host or on the GPU, values ready
Forward = Callable[[Tensor], tuple[Tensor, ...]]  # uint8 [n, S, S, 3] on the GPU -> OUTPUTS, float32 there

WARM_UPS = 3  # calls before a capture: in the first ones libraries choose algorithms and allocate memory


class Slot:
    """A CUDA stream with its own buffers and one CUDA graph per batch size; holds one batch at a time."""

    def __init__(self, forward: Forward, sizes: Sequence[int], side: int, device: torch.device):
        self._forward = forward
        self._sizes = sorted(sizes)
        self._stream = torch.cuda.Stream(device)
        shape = (self._sizes[-1], side, side, 3)
        self._host = torch.zeros(shape, dtype=torch.uint8, pin_memory=True)
        self._pixels = torch.zeros(shape, dtype=torch.uint8, device=device)
        # all now, before a decoder uses the GPU: a device-wide synchronization, as DALI's, breaks a capture
        self._graphs = {size: self._capture(size) for size in self._sizes}
        self._count = 0
        self._source = self._host  # of the copy in progress; its memory must stay allocated
        self._outputs: list[Tensor] = []  # pinned host memory of the batch in flight

    def start(self, pixels: Pixels) -> None:
        """Launch a batch of at most the largest size; returns before it is computed."""
        self._count = len(pixels)
        self._source = pixels if isinstance(pixels, Tensor) else self._stage(pixels)
        size = next(size for size in self._sizes if size >= self._count)
        graph, outputs, self._outputs = self._graphs[size]
        with torch.cuda.stream(self._stream):
            self._pixels[: self._count].copy_(self._source, non_blocking=True)
            graph.replay()
            for host, device in zip(self._outputs, outputs, strict=True):
                host.copy_(device, non_blocking=True)

    def finish(self) -> Outputs:
        """Wait for the batch that was started and return its outputs."""
        self._stream.synchronize()
        self._source = self._host
        arrays = (output[: self._count].numpy().copy() for output in self._outputs)
        return Outputs(**dict(zip(OUTPUTS, arrays, strict=True)))

    def _stage(self, pixels: NDArray[np.uint8]) -> Tensor:
        """Copy a batch to pinned memory, which the GPU can read asynchronously."""
        staged = self._host[: len(pixels)]
        staged.copy_(torch.from_numpy(np.ascontiguousarray(pixels)))
        return staged

    def _capture(self, size: int) -> "tuple[torch.cuda.CUDAGraph, tuple[Tensor, ...], list[Tensor]]":
        """Capture `forward` for `size` images; returns graph, outputs and pinned host memory for them."""
        pixels = self._pixels[:size]
        graph = torch.cuda.CUDAGraph()
        with exact_float32(), torch.inference_mode():
            with torch.cuda.stream(self._stream):
                for _ in range(WARM_UPS):
                    self._forward(pixels)
            self._stream.synchronize()
            # thread_local: other threads may use the GPU during the capture
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                outputs = self._forward(pixels)
        return graph, outputs, [torch.empty_like(o, device="cpu").pin_memory() for o in outputs]


class CudaGraphRunner:
    """Runs batches through slots in turn, one slot per element of `forwards`, and keeps their order."""

    def __init__(self, forwards: Sequence[Forward], sizes: Sequence[int], side: int, device: torch.device):
        with torch.cuda.device(device):
            self._slots = [Slot(forward, sizes, side, device) for forward in forwards]
        self._device = device
        self._largest = max(sizes)

    def __call__(self, pixels: Pixels) -> Outputs:
        """Score pixels uint8 [n, S, S, 3], for any n >= 1; raises DeviceLost or RuntimeError."""
        try:
            return self._score(pixels)
        except RuntimeError as error:
            if is_lost(self._device):
                raise DeviceLost(f"{self._device} failed on a batch ({one_line(error)[:300]})") from error
            raise

    def _score(self, pixels: Pixels) -> Outputs:
        free, busy, outputs = deque(self._slots), deque[Slot](), list[Outputs]()
        with torch.cuda.device(self._device):
            for start in range(0, len(pixels), self._largest):
                if not free:
                    slot = busy.popleft()
                    outputs.append(slot.finish())
                    free.append(slot)
                busy.append(free.popleft())
                busy[-1].start(pixels[start : start + self._largest])
            outputs += [slot.finish() for slot in busy]
        return concatenate(outputs)


def concatenate(outputs: Sequence[Outputs]) -> Outputs:
    """Concatenate the outputs of successive batches."""
    return Outputs(**{name: np.concatenate([getattr(batch, name) for batch in outputs]) for name in OUTPUTS})


@contextmanager
def exact_float32() -> Iterator[None]:
    """Disable TF32, torch's default for float32 convolutions on a GPU."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before
