"""Stands in for TensorRT, in tests alone: plans are ONNX graphs, and ONNX Runtime computes them.

It is no TensorRT: it chooses no kernels and tells nothing of speed, and a graph that it runs may still be
refused by the real parser (`test_tensorrt` holds graphs to what that documents). It keeps to the contract of
the names that `.typing/tensorrt` declares, and raises where the real library computes rubbish or ends the
process:

- A context is captured only after it has run, outside the capture, with the same shape (a "warm-up").
- A graph is invalid once the shape of a context that it has captured is set again, or another graph has
  captured the same context (NVIDIA/TensorRT, issue 3798).
- Addresses must be those of memory that is still there.
- Nothing runs on the default stream; plans with auxiliary streams are not captured.
- A plan opens only on the GPU and with the version that it was built for; a timing cache of another GPU is
  not taken.
"""

import json
import sys
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import fake_cuda
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto

__version__ = "11.1.0.stand.in"
VERSION = "11.1.0"
MAGIC = b"a stand-in's plan\n"


class World:
    """What tests look at, and what they break."""

    def __init__(self, cuda: fake_cuda.FakeCuda):
        self.cuda = cuda
        self.gpu = fake_cuda.GPU_NAME
        self.measured = 0  # kernels that were timed, rather than found in a timing cache
        self.contexts = 0
        self.unreadable: Callable[[onnx.ModelProto], bool] = lambda _: False  # graphs the parser refuses
        self.unbuildable: Callable[[onnx.ModelProto], bool] = lambda _: False  # networks no plan is built of
        self.spoiled: Callable[[IExecutionContext, int], bool] = lambda *_: False  # runs that give rubbish


world = World(fake_cuda.FakeCuda())  # `installed` puts a new one here


class ILogger:
    class Severity(Enum):
        INTERNAL_ERROR = 0
        ERROR = 1
        WARNING = 2
        INFO = 3
        VERBOSE = 4

    def __init__(self) -> None: ...

    def log(self, severity: "ILogger.Severity", msg: str) -> None: ...


class DataType(Enum):
    FLOAT = 0
    HALF = 1
    UINT8 = 2


class TensorIOMode(Enum):
    NONE = 0
    INPUT = 1
    OUTPUT = 2


class MemoryPoolType(Enum):
    WORKSPACE = 0


class BuilderFlag(Enum):
    TF32 = 0


ONNX_TYPES = {
    TensorProto.FLOAT: DataType.FLOAT,
    TensorProto.FLOAT16: DataType.HALF,
    TensorProto.UINT8: DataType.UINT8,
}
TORCH_TYPES = {DataType.FLOAT: torch.float32, DataType.HALF: torch.float16, DataType.UINT8: torch.uint8}


class Dims:
    def __init__(self, shape: Sequence[int]):
        self._shape = tuple(shape)

    def __len__(self) -> int:
        return len(self._shape)

    def __getitem__(self, index: int) -> int:
        return self._shape[index]


class IHostMemory(bytes):
    @property
    def nbytes(self) -> int:
        return len(self)


class INetworkDefinition:
    name = "Unnamed Network 0"

    def __init__(self) -> None:
        self._graph = b""


class IOptimizationProfile:
    def __init__(self) -> None:
        self._shapes: dict[str, list[tuple[int, ...]]] = {}

    def set_shape(self, input: str, min: Dims, opt: Dims, max: Dims) -> None:  # noqa: A002 - as the bindings
        self._shapes[input] = [tuple(each) for each in (min, opt, max)]  # pyright: ignore


class ITimingCache:
    def __init__(self, stored: bytes):
        self._content = json.loads(stored) if stored else {"gpu": world.gpu, "kernels": []}

    def serialize(self) -> IHostMemory:
        return IHostMemory(json.dumps(self._content).encode())


class IBuilderConfig:
    max_aux_streams = 4

    def __init__(self) -> None:
        self._tf32 = True
        self._workspace: int | None = None
        self._profile: IOptimizationProfile | None = None
        self._timings: ITimingCache | None = None

    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache:
        return ITimingCache(serialized_timing_cache)

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        if cache._content["gpu"] != world.gpu and not ignore_mismatch:
            return False
        self._timings = cache
        return True

    def set_memory_pool_limit(self, pool: MemoryPoolType, pool_size: int) -> None:
        assert pool is MemoryPoolType.WORKSPACE
        self._workspace = pool_size

    def clear_flag(self, flag: BuilderFlag) -> None:
        assert flag is BuilderFlag.TF32
        self._tf32 = False

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        self._profile = profile
        return 0


class Builder:
    def __init__(self, logger: ILogger):
        assert isinstance(logger, ILogger)

    def create_network(self, flags: int = 0) -> INetworkDefinition:
        assert flags == 0
        return INetworkDefinition()

    def create_builder_config(self) -> IBuilderConfig:
        return IBuilderConfig()

    def create_optimization_profile(self) -> IOptimizationProfile:
        return IOptimizationProfile()

    def build_serialized_network(
        self, network: INetworkDefinition, config: IBuilderConfig
    ) -> IHostMemory | None:
        graph = onnx.load_from_string(network._graph)
        (entry,) = graph.graph.input
        assert config._profile is not None
        assert config._timings is not None
        least, best, most = config._profile._shapes[entry.name]
        assert all(1 <= a <= b <= c for a, b, c in zip(least, best, most, strict=True))
        if world.unbuildable(graph):
            return None
        kernels = config._timings._content["kernels"]
        new = sorted({str(node.op_type) for node in graph.graph.node}.difference(kernels))
        world.measured += len(new)
        kernels += new
        facts = {
            "name": network.name,
            "least": least,
            "most": most,
            "streams": config.max_aux_streams,
            "tf32": config._tf32,
        }
        return plan_of(facts, network._graph)


class ParserError:
    def __init__(self, words: str):
        self._words = words

    def desc(self) -> str:
        return self._words


class OnnxParser:
    def __init__(self, network: INetworkDefinition, logger: ILogger):
        assert isinstance(logger, ILogger)
        self._network = network
        self._errors: list[ParserError] = []

    @property
    def num_errors(self) -> int:
        return len(self._errors)

    def parse(self, model: bytes, path: str | None = None) -> bool:  # noqa: ARG002 - as the bindings
        if world.unreadable(onnx.load_from_string(model)):
            self._errors.append(ParserError("no importer is registered for this operator"))
            return False
        self._network._graph = model
        return True

    def get_error(self, index: int) -> ParserError:
        return self._errors[index]


class IExecutionContext:
    def __init__(self, engine: "ICudaEngine"):
        world.contexts += 1
        self.number = world.contexts  # in the order in which they were made
        self._engine = engine
        self._shape: tuple[int, ...] | None = None
        self._memory: dict[str, fake_cuda.Memory] = {}
        self._has_run = False  # with this shape
        self._captured: weakref.ref[fake_cuda.Graph] | None = None
        self._invalid: set[int] = set()  # graphs that have captured this context, but not last

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        least, most = self._engine._facts["least"], self._engine._facts["most"]
        if name not in self._engine._inputs or len(shape) != len(most):
            return False
        if not all(a <= b <= c for a, b, c in zip(least, shape, most, strict=True)):
            return False
        if shape != self._shape:
            self._shape, self._has_run = tuple(shape), False
            self._invalidate(None)
        return True

    def set_tensor_address(self, name: str, memory: int) -> bool:
        self._memory[name] = world.cuda.memory_at(memory)
        return name in self._engine._types

    def get_tensor_shape(self, name: str) -> Dims:
        assert self._shape is not None
        return Dims((self._shape[0], *self._engine._shapes[name][1:]))

    def execute_async_v3(self, stream_handle: int) -> bool:
        if not stream_handle or stream_handle != world.cuda.current().cuda_stream:
            raise AssertionError("it is run on the default stream, or not on torch's own")
        memory = dict(self._memory)
        if memory.keys() != self._engine._types.keys() or self._shape is None:
            return False
        graph, shape = world.cuda.capturing, self._shape
        if graph is None:
            self._run(memory, shape)
            self._has_run = True
            return True
        if not self._has_run:
            raise AssertionError("it is captured without a run before, with this shape")
        if self._engine._facts["streams"]:
            raise AssertionError("it is captured with auxiliary streams")
        self._invalidate(graph)

        def launch(number: int = id(graph)) -> None:
            if number in self._invalid:
                raise RuntimeError("an illegal memory access was encountered: the context has changed")
            self._run(memory, shape)

        graph.launches.append(launch)
        return True

    def _invalidate(self, graph: "fake_cuda.Graph | None") -> None:
        """Make the graph that has captured this context invalid, unless it is this one."""
        before = self._captured() if self._captured else None
        if before is not None and before is not graph:
            self._invalid.add(id(before))
        self._captured = weakref.ref(graph) if graph is not None else None

    def _run(self, memory: dict[str, fake_cuda.Memory], shape: tuple[int, ...]) -> None:
        engine = self._engine
        tensors = {name: each.tensor() for name, each in memory.items()}
        for name, tensor in tensors.items():
            assert tensor.dtype is TORCH_TYPES[engine._types[name]], name
            assert tensor.is_contiguous(), name
            assert len(tensor) == shape[0], name
        found = engine._computed({name: tensors[name].numpy() for name in engine._inputs})
        rubbish = world.spoiled(self, shape[0])
        with torch.inference_mode():
            for name, values in found.items():
                tensors[name].copy_(torch.tensor(np.asarray(values)))
                if rubbish:
                    tensors[name].mul_(1.5)


class ICudaEngine:
    name = ""

    def __init__(self, facts: dict[str, Any], content: bytes):
        self._facts = facts
        self.name = facts["name"]
        loaded = PROGRAMS[content] if content in PROGRAMS else _Graph(content)
        self._inputs, self._types, self._shapes = list(loaded.inputs), loaded.types, loaded.shapes
        self._computed = loaded.computed

    @property
    def num_io_tensors(self) -> int:
        return len(self._types)

    def get_tensor_name(self, index: int) -> str:
        return list(self._types)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self._inputs else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> DataType:
        return self._types[name]

    def get_tensor_shape(self, name: str) -> Dims:
        return Dims(self._shapes[name])

    def create_execution_context(self) -> IExecutionContext | None:
        return IExecutionContext(self)


class _Graph:
    """What a plan computes that was built from a graph of ONNX."""

    def __init__(self, graph: bytes):
        inferred = onnx.shape_inference.infer_shapes(onnx.load_from_string(graph)).graph
        self.inputs = [port.name for port in inferred.input]
        ports = [*inferred.input, *inferred.output]
        self.types = {port.name: ONNX_TYPES[port.type.tensor_type.elem_type] for port in ports}  # pyright: ignore
        self.shapes = {
            port.name: tuple(each.dim_value or -1 for each in port.type.tensor_type.shape.dim)
            for port in ports
        }
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])

    def computed(self, given: dict[str, Any]) -> dict[str, Any]:
        names = [port.name for port in self._session.get_outputs()]
        return dict(zip(names, self._session.run(names, given), strict=True))


class Program:
    """What a plan computes that was built from a program of torch, with the names of its ports."""

    def __init__(self, module: Callable[..., Any], sample: torch.Tensor, entry: str, outputs: Sequence[str]):
        self._module, self._outputs = module, outputs
        found = dict(zip(outputs, self._run(sample), strict=True))
        kinds = {kind: name for name, kind in TORCH_TYPES.items()}
        self.inputs = [entry]
        self.types = {name: kinds[each.dtype] for name, each in {entry: sample, **found}.items()}
        self.shapes = {name: (-1, *each.shape[1:]) for name, each in {entry: sample, **found}.items()}

    def _run(self, entry: torch.Tensor) -> tuple[torch.Tensor, ...]:
        with torch.no_grad():
            return self._module(entry)

    def computed(self, given: dict[str, Any]) -> dict[str, Any]:
        found = self._run(torch.tensor(given[self.inputs[0]]))
        return {name: each.numpy() for name, each in zip(self._outputs, found, strict=True)}


PROGRAMS: dict[bytes, Program] = {}  # by what stands in a plan


def plan_of(facts: dict[str, Any], content: bytes) -> IHostMemory:
    """Return a plan."""
    facts = {"version": VERSION, "gpu": world.gpu, **facts}
    return IHostMemory(MAGIC + json.dumps(facts).encode() + b"\n" + content)


class Runtime:
    engine_host_code_allowed = False
    tempfile_control_flags = 3

    def __init__(self, logger: ILogger):
        assert isinstance(logger, ILogger)

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> ICudaEngine | None:
        assert not self.engine_host_code_allowed
        assert self.tempfile_control_flags == 0
        facts, graph = unpacked(serialized_engine)
        if (facts["version"], facts["gpu"]) != (VERSION, world.gpu):
            return None
        return ICudaEngine(facts, graph)


def unpacked(plan: bytes) -> tuple[dict[str, Any], bytes]:
    """Return what a plan says of itself, and its graph."""
    assert plan.startswith(MAGIC)
    line, _, graph = plan.removeprefix(MAGIC).partition(b"\n")
    return json.loads(line), graph


def names() -> list[str]:
    """Name what the real module would have."""
    mine = sys.modules[__name__]
    return [
        name
        for name, each in vars(mine).items()
        if isinstance(each, type) and each.__module__ == __name__ and each not in (World, _Graph, Program)
    ]


@contextmanager
def installed(cuda: fake_cuda.FakeCuda, patch: pytest.MonkeyPatch) -> Iterator[World]:
    """Have `import tensorrt` find this module, and the code under test its version."""
    from triton import testing

    from gbad_batch.engine.runtime import runtime_tensorrt

    module: Any = ModuleType("tensorrt")
    module.__spec__ = ModuleSpec("tensorrt", None)
    module.__version__ = __version__
    for name in names():
        setattr(module, name, globals()[name])
    patch.setitem(sys.modules, "tensorrt", module)
    say_version(patch, "tensorrt", VERSION)
    patch.setattr(testing, "do_bench_cudagraph", benched)
    patch.setitem(globals(), "world", World(cuda))
    runtime_tensorrt.logger.cache_clear()
    yield world
    runtime_tensorrt.logger.cache_clear()


def say_version(patch: pytest.MonkeyPatch, package: str, version: str) -> None:
    """Have the code under test find this version of a package."""
    from gbad_batch.engine.runtime import runtime_tensorrt
    from gbad_batch.export import choice

    for module in (runtime_tensorrt, choice):
        found = getattr(module, "version_of", None)
        if found is not None:
            patch.setattr(
                module,
                "version_of",
                lambda name, others=found: version if name == package else others(name),
            )


def benched(work: Callable[[], object], rep: int, return_mode: str) -> float:
    """Stand in for Triton's clock: run the work, capture it, replay it; what it returns is made up."""
    assert rep > 0
    assert return_mode == "median"
    with torch.cuda.stream(torch.cuda.Stream()):  # type: ignore[arg-type]
        work()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            work()
        graph.replay()
    return 1.0
