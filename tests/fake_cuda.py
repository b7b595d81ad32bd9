"""Stands in for a GPU, in tests alone: CUDA's streams, graphs and memory, played on the CPU.

It is no GPU and says nothing of speed or of a driver's faults. It keeps to what CUDA promises and demands, as
far as this project relies on it:

- What is captured is not computed then: a graph computes at each replay, from what its buffers hold then.
- A graph keeps the memory that was allocated while it was captured, and no other: a replay that reads or
  writes memory which is gone raises.
- A default stream cannot be captured.

Torch's own code runs: a mode takes the name of the GPU out of its calls, so that its tensors lie in the
machine's memory.
"""

import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

GPU_NAME, CAPABILITY = "stand-in for a GPU", (9, 0)


class Stream:
    """A stream that computes at once; `cuda.on_synchronize` is called where its thread waits for it."""

    def __init__(self, cuda: "FakeCuda", number: int):
        self.cuda_stream = number
        self._cuda = cuda

    def synchronize(self) -> None:
        self._cuda.on_synchronize(self)


class Graph:
    """A captured graph: launches in order, and the memory that was allocated for them."""

    def __init__(self) -> None:
        self.launches: list[Callable[[], None]] = []

    def replay(self) -> None:
        with torch.inference_mode():
            for launch in self.launches:
                launch()


class Memory:
    """A tensor's memory as a graph knows it: an address that is good while something else keeps it."""

    def __init__(self, tensor: torch.Tensor):
        self._storage = StorageWeakRef(tensor.untyped_storage())
        self._form = tensor.storage_offset(), tensor.shape, tensor.stride()
        self._kind = tensor.dtype

    def tensor(self) -> torch.Tensor:
        """Return the memory as a tensor; raises RuntimeError if it is gone."""
        storage = torch.UntypedStorage._new_with_weak_ptr(self._storage.cdata)
        if storage is None:
            raise RuntimeError("an illegal memory access was encountered: a captured buffer is gone")
        return torch.empty(0, dtype=self._kind).set_(storage, *self._form)  # pyright: ignore


class FakeCuda:
    """The state of the GPU that is not there."""

    def __init__(self) -> None:
        self.on_synchronize: Callable[[Stream], None] = lambda _: None
        self._numbers = itertools.count()
        self._default = self._stream()
        self._own = threading.local()
        self._addresses: dict[int, Memory] = {}

    @property
    def capturing(self) -> Graph | None:
        """The graph that this thread captures."""
        return getattr(self._own, "graph", None)

    def current(self, *_: object) -> Stream:
        return getattr(self._own, "stream", self._default)

    def note_address(self, tensor: torch.Tensor, address: int) -> None:
        """Remember whose memory an address is of, as long as it is there."""
        self._addresses[address] = Memory(tensor)

    def memory_at(self, address: int) -> Memory:
        """Return the memory that a tensor has at an address."""
        return self._addresses[address]

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Put this GPU in the place of torch's; `Names` must be active where tensors are made."""
        patch.setattr(torch.cuda, "is_available", lambda: True)
        patch.setattr(torch.cuda, "device_count", lambda: 1)
        patch.setattr(torch.cuda, "current_device", lambda: 0)
        patch.setattr(torch.cuda, "get_device_name", lambda *_: GPU_NAME)
        patch.setattr(torch.cuda, "get_device_capability", lambda *_: CAPABILITY)
        patch.setattr(torch.cuda, "device", lambda _: nullcontext())
        patch.setattr(torch.cuda, "Stream", self._stream)
        patch.setattr(torch.cuda, "stream", self._using)
        patch.setattr(torch.cuda, "current_stream", self.current)
        patch.setattr(torch.cuda, "default_stream", lambda *_: self._default)
        patch.setattr(torch.cuda, "CUDAGraph", Graph)
        patch.setattr(torch.cuda, "graph", self._capture)

    def _stream(self, *_: object) -> Stream:
        return Stream(self, next(self._numbers))

    @contextmanager
    def _using(self, stream: Stream) -> Iterator[None]:
        before = self.current()
        self._own.stream = stream
        try:
            yield
        finally:
            self._own.stream = before

    @contextmanager
    def _capture(self, graph: Graph, stream: Stream | None = None, **_: object) -> Iterator[None]:
        if self.capturing is not None:
            raise RuntimeError("operation not permitted when stream is capturing")
        with self._using(stream or self._stream()), _Recorder(graph) as recorder:
            if not self.current().cuda_stream:
                raise RuntimeError("operation not permitted on the default stream")
            self._own.graph = graph
            try:
                yield
            finally:
                self._own.graph = None
        recorder.forget_values()


class Names(TorchFunctionMode):
    """Takes the name of the GPU, and pinned memory, out of torch's calls; notes addresses that it gives."""

    def __init__(self, cuda: FakeCuda):
        super().__init__()
        self._cuda = cuda

    def __torch_function__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.Tensor.pin_memory:
            return args[0]
        if func is torch.device:
            return func(*args, **(kwargs or {}))
        given = {name: value for name, value in (kwargs or {}).items() if name != "pin_memory"}
        found = func(*map(_on_cpu, args), **{name: _on_cpu(value) for name, value in given.items()})
        if func is torch.Tensor.data_ptr:
            self._cuda.note_address(args[0], found)
        return found


def _on_cpu(value: Any) -> Any:
    is_gpu = isinstance(value, str | torch.device) and str(value).startswith("cuda")
    return torch.device("cpu") if is_gpu else value


class _Recorder(TorchDispatchMode):
    """Records torch's operators into a graph."""

    def __init__(self, graph: Graph):
        super().__init__()
        self._graph = graph
        self._own: dict[int, torch.Tensor] = {}  # tensors of the graph's own memory, by their storage

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Sequence[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        found = func(*args, **kwargs)
        given = {_storage(each) for each in tree_leaves((args, kwargs)) if isinstance(each, torch.Tensor)}
        made = [each for each in tree_leaves(found) if isinstance(each, torch.Tensor)]
        fresh = [None if _storage(each) in given else each for each in made]
        self._own |= {_storage(each): each for each in fresh if each is not None}
        held = tree_map(self._held, (args, kwargs))

        def launch() -> None:
            again_args, again_kwargs = tree_map(_here, held)
            again = func(*again_args, **again_kwargs)
            found_again = [each for each in tree_leaves(again) if isinstance(each, torch.Tensor)]
            for one, other in zip(fresh, found_again, strict=True):
                if one is not None:
                    one.copy_(other)

        self._graph.launches.append(launch)
        return found

    def forget_values(self) -> None:
        """Leave nothing of what was computed to find shapes: a GPU computes nothing during a capture."""
        with torch.inference_mode():
            for tensor in self._own.values():
                tensor.fill_(torch.nan if tensor.is_floating_point() else 0)

    def _held(self, value: Any) -> Any:
        if isinstance(value, torch.Tensor) and _storage(value) not in self._own:
            return Memory(value)
        return value


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


def _here(value: Any) -> Any:
    return value.tensor() if isinstance(value, Memory) else value


@contextmanager
def fake_gpu() -> Iterator[FakeCuda]:
    """Have torch find a GPU, `cuda:0`, that is played on the CPU."""
    cuda = FakeCuda()
    with ExitStack() as stack:
        cuda.install(stack.enter_context(pytest.MonkeyPatch.context()))
        stack.enter_context(Names(cuda))
        yield cuda
