"""Runs an OpenVINO engine on the CPU: the network, then the BiGAN, with a free batch size.

Such models, compiled once, give an image the same bits whatever its batch, its position there and the number
of threads (tests/test_engine.py); models of fixed shape would not give those bits. The BiGAN computes in FP32
in every precision, as it does where stored features are scored again.
"""

import io
import sys
import threading
from collections.abc import Iterable, Mapping
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import Refused, Stopped
from ..row import THREATS
from ..system.machine import usable_cores
from . import LOSSES, Engine, Outputs, check_pixels, score_with_retry

if TYPE_CHECKING:
    from . import Pixels

    Ports = Mapping[str, tuple[str, tuple[int, ...]]]  # by name: type, and sizes after that of the batch

DEVICE = "CPU"
LENGTH_BYTES = 8  # of the number that an engine's blob begins with
BATCH = "free"  # batch size of the engine, as it stands in a cache key
UNWRITTEN = np.uint32(0x7FDEAD00)  # a NaN as no arithmetic gives it, in outputs until they are computed
_CONVERTER = "openvino.tools.ovc"


def load_openvino() -> Any:
    """Import OpenVINO without its model converter, whose import reports to its maker over the network."""
    absent = object()
    if "openvino" not in sys.modules and sys.modules.get(_CONVERTER, absent) is absent:
        sys.modules[_CONVERTER] = None  # type: ignore[assignment] - makes its import fail
        try:
            import openvino
        finally:
            sys.modules.pop(_CONVERTER, None)
    import openvino

    return openvino


@cache
def open_core() -> Any:
    """Open OpenVINO once for the process, and never close it.

    Its CPU plugin gives the thread that opens it another signal stack. If another thread closes it, or if it
    is closed before one that was opened later, the thread keeps a stack that was freed, and the next signal
    ends the process with SIGSEGV.
    """
    ov = load_openvino()
    # its table of array types is built at the first use; two threads that build it at once deadlock
    ov.Type.u8.to_dtype()
    return ov.Core()


def version() -> str:
    """Return OpenVINO's version, as it stands in a cache key."""
    return str(load_openvino().get_version())


def compile_properties(threads: int, precision: str = "fp32") -> dict[str, Any]:
    """Return the properties that a model is compiled and opened with; the scores depend on them."""
    return {
        "PERFORMANCE_HINT": "LATENCY",  # one batch at a time, on all threads of its stream
        "INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
        "INFERENCE_NUM_THREADS": threads,
        "ENABLE_CPU_PINNING": False,  # decode shares these cores
    }


def join_models(network: bytes, bigan: bytes) -> bytes:
    """Return the blob of an engine that consists of these compiled models."""
    return len(network).to_bytes(LENGTH_BYTES, "little") + network + bigan


def split_models(blob: bytes) -> tuple[bytes, bytes]:
    """Return the compiled network and the compiled BiGAN of an engine's blob."""
    end = LENGTH_BYTES + int.from_bytes(blob[:LENGTH_BYTES], "little")
    return blob[LENGTH_BYTES:end], blob[end:]


class OpenVINORunner:
    """Run an OpenVINO engine; outputs are arrays of their own, so they stay valid after the next batch.

    Each stream has compiled models of its own. It computes on the thread that calls, and beside it on others
    if it has several.
    """

    sizes = ()  # one model for all

    def __init__(self, engine: Engine, threads: int | None, streams: int = 1):
        self.engine = engine
        threads = threads or usable_cores()
        self.streams = min(streams, threads)
        self._threads = threads // self.streams  # of a stream
        self._closed = False
        self._streams: list[_Stream | None] = [self._open() for _ in range(self.streams)]
        self._idle = list(range(self.streams))  # their positions
        self._freed = threading.Condition()

    def _open(self) -> "_Stream":
        try:
            return _Stream(self.engine, self._threads)
        except RuntimeError as error:
            raise Refused(
                f"OpenVINO cannot open {self.engine.description}: {error_reason(error)}; empty the cache "
                "folder, or give another with --cache-dir"
            ) from error

    def _reopen(self) -> "_Stream":
        """Open once more; raises Stopped: an engine that opened before fails only if the machine changed."""
        try:
            return self._open()
        except Refused as error:
            raise Stopped(
                f"{self.engine.description} failed and cannot be reopened; finished results are kept: check "
                "the machine's memory, then run the same command again"
            ) from error

    def __call__(self, pixels: "Pixels") -> Outputs:
        """Score pixels uint8 [n, S, S, 3]; waits while all streams are busy."""
        check_pixels(self.engine, pixels)
        return score_with_retry(self.engine, self._infer, pixels)

    def close(self) -> None:
        """Wait until no stream is busy, then free the model's memory."""
        with self._freed:
            self._closed = True
            self._freed.wait_for(lambda: len(self._idle) == self.streams)
            self._streams = []

    def _take(self) -> int:
        """Wait for an idle stream; returns its position."""
        with self._freed:
            self._freed.wait_for(lambda: self._idle or self._closed)
            if self._closed:
                raise ValueError("the runner is closed")
            return self._idle.pop()

    def _give_back(self, stream: int) -> None:
        with self._freed:
            self._idle.append(stream)
            self._freed.notify_all()

    def _infer(self, pixels: "Pixels") -> Outputs:
        position = self._take()
        try:
            stream = self._streams[position] = self._streams[position] or self._reopen()
            return stream(pixels)
        except RuntimeError as error:
            self._streams[position] = None  # what state a request that failed is in, OpenVINO does not say
            raise RuntimeError(error_reason(error)) from error
        finally:
            self._give_back(position)


class _Stream:
    """Both models of an engine, opened for one batch at a time."""

    def __init__(self, engine: Engine, threads: int):
        """Raise RuntimeError if OpenVINO cannot open a model, Refused if its ports are not the engine's."""
        network, bigan = split_models(engine.blob)
        size, form = engine.input_size, compile_properties(threads, engine.precision)
        x: Ports = {"x": ("f32", (engine.features,))}
        found: Ports = {**x, "logits": ("f32", (len(THREATS),))}
        losses: Ports = {name: ("f32", ()) for name in LOSSES}  # noqa: C420 - its type would be narrower
        pixels: Ports = {"pixels": ("u8", (size, size, 3))}
        self._network = _Model(engine, network, form, pixels, found)
        self._bigan = _Model(engine, bigan, compile_properties(threads), x, losses)

    def __call__(self, pixels: "Pixels") -> Outputs:
        """Score pixels uint8 [n, S, S, 3]; raises RuntimeError."""
        found = self._network(np.ascontiguousarray(pixels))
        return Outputs(**found, **self._bigan(found["x"]))


class _Model:
    """A compiled model with one input and float32 outputs, opened for one batch at a time."""

    def __init__(
        self,
        engine: Engine,
        blob: bytes,
        properties: Mapping[str, Any],
        inputs: "Ports",
        outputs: "Ports",
    ):
        """Raise RuntimeError if OpenVINO cannot open it, Refused if its ports are not those."""
        compiled = open_core().import_model(io.BytesIO(blob), DEVICE, properties)
        found = [_types(compiled.inputs, inputs), _types(compiled.outputs, outputs)]
        if found != [inputs, outputs]:
            raise Refused(
                f"{engine.description} has the inputs {found[0]} and outputs {found[1]}; empty the cache "
                "folder"
            )
        (self._input,) = inputs
        self._sizes = {name: sizes for name, (_, sizes) in outputs.items()}
        self._request = compiled.create_infer_request()

    def __call__(self, values: Any) -> dict[str, Any]:
        """Compute the outputs of n inputs, each [n, ...]; raises RuntimeError."""
        found = {name: np.full((len(values), *sizes), UNWRITTEN) for name, sizes in self._sizes.items()}
        for name, array in found.items():
            output = load_openvino().Tensor(array.view(np.float32), shared_memory=True)
            self._request.set_tensor(name, output)
        # not `start_async`: while the kernel wakes another thread for it, a core may stay idle
        self._request.infer({self._input: values}, share_inputs=True)
        if any((array == UNWRITTEN).any() for array in found.values()):
            # with one thread, `infer` returns after an error as if there had been none
            raise RuntimeError("OpenVINO left outputs unwritten: the machine may be short of memory")
        return {name: array.view(np.float32) for name, array in found.items()}


def _types(ports: Iterable[Any], wanted: "Ports") -> "Ports":
    """Return the ports by name; one in whose place OpenVINO removed an operator has several."""
    by_name = {}
    for port in ports:
        names = port.get_names()
        by_name[next(iter(names & wanted.keys()), "/".join(sorted(names)))] = _type_and_shape(port)
    return by_name


def _type_and_shape(port: Any) -> tuple[str, tuple[int, ...]]:
    """Return the type, and the sizes after a batch dimension that must be free."""
    batch, *sizes = port.get_partial_shape()
    if batch.is_static or any(size.is_dynamic for size in sizes):
        return port.get_element_type().get_type_name(), (-1,)
    return port.get_element_type().get_type_name(), tuple(size.get_length() for size in sizes)


def error_reason(error: Exception) -> str:
    """Shorten OpenVINO's error message to one line, without its source locations."""
    lines = [line.strip() for line in str(error).splitlines()]
    kept = [line for line in lines if line and not line.startswith(("Exception from", "Check '"))]
    return "; ".join(kept)[:300] or type(error).__name__
