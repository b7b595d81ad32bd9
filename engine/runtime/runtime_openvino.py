"""Runs an OpenVINO engine on the CPU: one model from pixels to outputs, with a free batch size.

One such model, compiled once, gives an image the same bits whatever its batch, its position there and the
number of threads (tests/test_engine.py); a model of fixed shape would not give those bits.
"""

import io
import sys
import threading
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import Refused, Stopped
from ..system.machine import usable_cores
from . import OUTPUTS, Engine, Outputs, check_pixels, output_shapes, score_with_retry

if TYPE_CHECKING:
    from . import Pixels

DEVICE = "CPU"
BATCH = "free"  # batch size of the engine, as it stands in a cache key
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


def compile_properties(threads: int) -> dict[str, Any]:
    """Return the properties that a model is compiled and opened with; the scores depend on them."""
    return {
        "PERFORMANCE_HINT": "LATENCY",  # one batch at a time, on all threads of its stream
        "INFERENCE_PRECISION_HINT": "f32",  # else bf16 where the CPU has it
        "INFERENCE_NUM_THREADS": threads,
        "ENABLE_CPU_PINNING": False,  # decode shares these cores
    }


class OpenVINORunner:
    """Run an OpenVINO engine; outputs are copies, so they stay valid after the next batch.

    Each stream is a compiled model of its own. The streams of one OpenVINO model would share its weights, but
    stale outputs of a failed batch could not be detected there.
    """

    sizes = ()  # one model for all

    def __init__(self, engine: Engine, threads: int | None, streams: int = 1):
        self.engine = engine
        threads = threads or usable_cores()
        self.streams = min(streams, threads)
        self._threads = threads // self.streams  # of a stream
        self._closed = False
        self._requests: list[Any] = [self._open() for _ in range(self.streams)]  # None must be reopened
        self._idle = list(range(self.streams))  # their positions
        self._freed = threading.Condition()
        self._local = threading.local()

    def _open(self) -> Any:
        engine = self.engine
        try:
            compiled = open_core().import_model(
                io.BytesIO(engine.blob), DEVICE, compile_properties(self._threads)
            )
            _check_ports(compiled, engine)
            return compiled.create_infer_request()
        except RuntimeError as error:
            raise Refused(
                f"OpenVINO cannot open {engine.description}: {error_reason(error)}; empty the cache "
                "folder, or give another with --cache-dir"
            ) from error

    def _reopen(self) -> Any:
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
            self._requests = []

    def _take(self) -> int:
        """Wait for an idle stream, and return its position: the one that this thread used last, if it can be.

        A stream computes on a thread of its own, which the kernel wakes on the core where it ran last. If
        that is where another thread works now, this one's core stays idle.
        """
        with self._freed:
            self._freed.wait_for(lambda: self._idle or self._closed)
            if self._closed:
                raise ValueError("the runner is closed")
            last = getattr(self._local, "stream", None)
            stream = self._local.stream = last if last in self._idle else self._idle[0]
            self._idle.remove(stream)
            return stream

    def _give_back(self, stream: int) -> None:
        with self._freed:
            self._idle.append(stream)
            self._freed.notify_all()

    def _infer(self, pixels: "Pixels") -> Outputs:
        stream = self._take()
        try:
            request = self._requests[stream] = self._requests[stream] or self._reopen()
            # not `infer`: with one thread it swallows errors and leaves the outputs of the batch before
            request.start_async({"pixels": np.ascontiguousarray(pixels)}, share_inputs=True)
            request.wait()
            return Outputs(**{name: request.get_tensor(name).data.copy() for name in OUTPUTS})
        except RuntimeError as error:
            self._requests[stream] = None  # a request that failed gives stale outputs the next time
            raise RuntimeError(error_reason(error)) from error
        finally:
            self._give_back(stream)


def _check_ports(compiled: Any, engine: Engine) -> None:
    """Raise Refused unless input and outputs have the names, types and sizes that a scan relies on."""
    size = engine.input_size
    wanted = {name: ("f32", shape) for name, shape in output_shapes(engine).items()}
    outputs = {_name(port): _type_and_shape(port) for port in compiled.outputs}
    inputs = {_name(port): _type_and_shape(port) for port in compiled.inputs}
    if outputs != wanted or inputs != {"pixels": ("u8", (size, size, 3))}:
        raise Refused(
            f"{engine.description} has the inputs {inputs} and outputs {outputs}; empty the cache folder"
        )


def _name(port: Any) -> str:
    return "/".join(sorted(port.get_names()))


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
