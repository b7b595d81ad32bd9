"""Runs batches on one NVIDIA GPU by CUDA graphs of fixed sizes, with several batches in flight.

A CUDA graph is captured once per batch size, with all memory allocated, and then costs one launch; smaller
batches are padded. While one lane computes, the other receives its pixels or is read out. Pixels that the GPU
has decoded are copied into a lane on the device, without a detour through the host.
"""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..errors import DeviceLost
from ..text import one_line
from . import OUTPUTS, Outputs, concatenate
from .cuda import is_lost

Pixels = NDArray[np.uint8] | Tensor  # uint8 [n, S, S, 3], on the host or on the GPU, values ready
Forward = Callable[[Tensor], tuple[Tensor, ...]]  # uint8 [n, S, S, 3] on the GPU -> OUTPUTS, float32 there

LANES = 2  # batches at once
WARM_UPS = 3  # calls before a capture: in the first ones libraries choose algorithms and allocate memory


class Lane(Protocol):
    """Computes one batch at a time, while others compute theirs."""

    def start(self, pixels: Pixels) -> None:
        """Launch a batch of at most the largest size; returns before it is computed."""
        ...

    def finish(self) -> Outputs:
        """Wait for the batch that was started and return its outputs."""
        ...


class CudaLane:
    """A CUDA stream with its own buffers and one CUDA graph per batch size.

    `forward_of(n)` makes what is captured for batches of n: a graph may not share with another one what
    changes with the shape of a batch, as an execution context of TensorRT does.
    """

    def __init__(
        self, forward_of: Callable[[int], Forward], sizes: Sequence[int], side: int, device: torch.device
    ):
        self._sizes = sorted(sizes)
        self._device = device
        with torch.cuda.device(device):
            self._stream = torch.cuda.Stream(device)
            shape = (self._sizes[-1], side, side, 3)
            self._host = torch.zeros(shape, dtype=torch.uint8, pin_memory=True)
            self._pixels = torch.zeros(shape, dtype=torch.uint8, device=device)
            # all now, before a decoder uses the GPU: a device-wide synchronization, as DALI's, breaks a
            # capture
            self._forwards = {size: forward_of(size) for size in self._sizes}
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
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
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
        """Capture the forward of `size` images; returns graph, outputs and pinned host memory for them."""
        pixels, forward = self._pixels[:size], self._forwards[size]
        graph = torch.cuda.CUDAGraph()
        with exact_float32(), torch.inference_mode():
            with torch.cuda.stream(self._stream):
                for _ in range(WARM_UPS):
                    forward(pixels)
            self._stream.synchronize()
            # thread_local: other threads may use the GPU during the capture
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                outputs = forward(pixels)
        return graph, outputs, [torch.empty_like(o, device="cpu").pin_memory() for o in outputs]


class LaneRunner:
    """Runs batches on whichever lanes are idle; each of several threads gets the outputs of its own batch."""

    def __init__(self, lanes: Sequence[Lane], largest: int, device: torch.device):
        self._idle: SimpleQueue[Lane] = SimpleQueue()  # the longest idle first, so that all take part
        for lane in lanes:
            self._idle.put(lane)
        self._largest = largest
        self._device = device

    def __call__(self, pixels: Pixels) -> Outputs:
        """Score pixels uint8 [n, S, S, 3], for any n >= 1; raises DeviceLost or RuntimeError."""
        try:
            return self._score(pixels)
        except RuntimeError as error:
            if is_lost(self._device):
                raise DeviceLost(f"{self._device} failed on a batch ({one_line(error)[:300]})") from error
            raise

    def _score(self, pixels: Pixels) -> Outputs:
        busy, outputs = deque[Lane](), list[Outputs]()
        try:
            for start in range(0, len(pixels), self._largest):
                lane = self._next_idle(wait=not busy)
                if lane is None:
                    outputs.append(busy[0].finish())
                    lane = busy.popleft()
                busy.append(lane)
                lane.start(pixels[start : start + self._largest])
            while busy:
                outputs.append(busy[0].finish())
                self._idle.put(busy.popleft())
        finally:
            for lane in busy:  # after an error
                self._idle.put(lane)
        return concatenate(outputs)

    def _next_idle(self, wait: bool) -> Lane | None:
        """Take an idle lane; a thread that has one never waits for another: two might do so for ever."""
        try:
            return self._idle.get(block=wait)
        except Empty:
            return None


@contextmanager
def exact_float32() -> Iterator[None]:
    """Disable TF32, torch's default for float32 convolutions on a GPU."""
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before
