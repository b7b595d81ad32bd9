"""OpenVINO on the CPU: the two graphs of a bundle joined into one model with a free batch size.

One such model, compiled once, gives an image the same bits whatever its batch, place and thread count
(tests/test_engine.py); a model of fixed shape would not give those bits.
"""

import io
import math
import sys
from functools import cache
from queue import LifoQueue
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import BundleError, Refused, Stopped
from ..system.machine import usable_cores
from . import OUTPUTS, Engine, Outputs, check_pixels, output_shapes, scored_twice

if TYPE_CHECKING:
    from . import Pixels

DEVICE = "CPU"
BATCH = "free"  # of the engine, as in a cache key
LARGEST_ACTIVATION = 1 << 26  # elements of one image's largest map
_CONVERTER = "openvino.tools.ovc"


def load_openvino() -> Any:
    """Import OpenVINO without its model converter, whose import reports to its maker over the network."""
    absent = object()
    if "openvino" not in sys.modules and sys.modules.get(_CONVERTER, absent) is absent:
        sys.modules[_CONVERTER] = None  # type: ignore[assignment] - Python's way to say 'not to be imported'
        try:
            import openvino
        finally:
            sys.modules.pop(_CONVERTER, None)
    import openvino

    return openvino


@cache
def open_core() -> Any:
    """Open OpenVINO once for the process, and never close it.

    Its CPU plugin gives the thread that opens it another stack for signals. Closed by another thread, or
    before one that was opened later, it leaves a stack that is gone: the next signal then ends the process
    by SIGSEGV.
    """
    ov = load_openvino()
    # its table of array types is made at the first use, and two threads that make it at once never end
    ov.Type.u8.to_dtype()
    return ov.Core()


def version() -> str:
    """Version of OpenVINO, as in a cache key."""
    return str(load_openvino().get_version())


def build(network: bytes, bigan: bytes, constants: bytes = b"") -> bytes:
    """Compile both graphs for this CPU and return what `OpenVINORunner` opens.

    `network` maps pixels to x and logits, `bigan` maps x to the losses; both are verified ONNX graphs, but
    for the INT8 form of the network, which is OpenVINO's XML with its constants. Raises BundleError where
    OpenVINO cannot read or run them.
    """
    ov = load_openvino()
    core = open_core()
    try:
        joined = _joined(ov, core.read_model(network, constants), core.read_model(bigan))
        _check_activations(joined)
        stream = core.compile_model(joined, DEVICE, _properties(usable_cores())).export_model()
    except RuntimeError as error:
        raise BundleError(f"OpenVINO cannot run the graphs of the bundle: {_reason(error)}") from error
    return stream.getvalue()


def _joined(ov: Any, network: Any, bigan: Any) -> Any:
    """One model from pixels to all four outputs: the BiGAN reads x where the network makes it."""
    entry = bigan.input("x")
    features = network.output("x").get_node().input_value(0)
    for reader in entry.get_target_inputs():
        reader.replace_source_output(features)
    results = [*network.get_results(), *bigan.get_results()]
    return ov.Model(results, network.get_parameters(), "gbad")


def _check_activations(model: Any) -> None:
    """Bound what running the graph allocates: a small graph can ask for a large map."""
    for node in model.get_ordered_ops():
        for output in node.outputs():
            shape = output.get_partial_shape()
            if shape.rank.is_static:
                sizes = [size.get_length() for size in shape if size.is_static]
                if math.prod(sizes) > LARGEST_ACTIVATION:
                    raise BundleError(
                        f"the graph makes maps of {math.prod(sizes)} elements, which is too large"
                    )


def _properties(threads: int) -> dict[str, Any]:
    return {
        "PERFORMANCE_HINT": "LATENCY",  # one batch at a time, on all threads of its stream
        "INFERENCE_PRECISION_HINT": "f32",  # else bf16 where the CPU has it
        "INFERENCE_NUM_THREADS": threads,
        "ENABLE_CPU_PINNING": False,  # decode shares these cores
    }


class OpenVINORunner:
    """An open OpenVINO engine; its outputs are copies, so a batch may outlive the next.

    Each stream is a compiled model of its own. OpenVINO's streams of one model share its weights, but what a
    failed batch leaves behind cannot be told apart there: the next batch might get its values.
    """

    def __init__(self, engine: Engine, threads: int | None, streams: int = 1):
        self.engine = engine
        threads = threads or usable_cores()
        self._streams = min(streams, threads)
        self._threads = threads // self._streams  # of a stream
        self._closed = False
        self._idle: LifoQueue[Any] = LifoQueue()  # a request of each stream; None is to be opened again
        for _ in range(self._streams):
            self._idle.put(self._open())

    def _open(self) -> Any:
        engine = self.engine
        try:
            compiled = open_core().import_model(io.BytesIO(engine.blob), DEVICE, _properties(self._threads))
            _check_ports(compiled, engine)
            return compiled.create_infer_request()
        except RuntimeError as error:
            raise Refused(
                f"OpenVINO cannot open {engine.description}: {_reason(error)}; empty the cache folder, or "
                "give another with --cache-dir"
            ) from error

    def _open_again(self) -> Any:
        """Open as before; raises Stopped: what was open once is no bad engine, so the machine has changed."""
        try:
            return self._open()
        except Refused as error:
            raise Stopped(
                f"{self.engine.description} failed and does not open again; what is finished is kept: check "
                "the machine's memory, then run the same command again"
            ) from error

    def __call__(self, pixels: "Pixels") -> Outputs:
        """Score pixels uint8 [n, S, S, 3]; where all streams are busy, a call waits for one."""
        check_pixels(self.engine, pixels)
        return scored_twice(self.engine, self._infer, pixels)

    def close(self) -> None:
        """Free the model's memory, once no stream is busy."""
        if self._closed:
            return
        self._closed = True
        for _ in range(self._streams):
            self._idle.get()
        self._idle.put(None)  # a call that comes later finds the runner closed, and does not wait

    def _infer(self, pixels: "Pixels") -> Outputs:
        request = self._idle.get()
        try:
            if self._closed:
                raise ValueError("the runner is closed")
            request = request or self._open_again()
            # not `infer`, which with one thread swallows errors and leaves the values of the batch before
            request.start_async({"pixels": np.ascontiguousarray(pixels)}, share_inputs=True)
            request.wait()
            return Outputs(**{name: request.get_tensor(name).data.copy() for name in OUTPUTS})
        except RuntimeError as error:
            request = None  # one that has failed gives stale values the next time
            raise RuntimeError(_reason(error)) from error
        finally:
            self._idle.put(request)


def _check_ports(compiled: Any, engine: Engine) -> None:
    """Refuse an engine whose input and outputs are not, by name, type and size, what the scan relies on."""
    size = engine.input_size
    wanted = {name: ("f32", shape) for name, shape in output_shapes(engine).items()}
    found = {_name(port): _type_and_shape(port) for port in compiled.outputs}
    inputs = {_name(port): _type_and_shape(port) for port in compiled.inputs}
    if found != wanted or inputs != {"pixels": ("u8", (size, size, 3))}:
        raise Refused(f"{engine.description} has the inputs {inputs} and outputs {found}: rebuild it")


def _name(port: Any) -> str:
    return "/".join(sorted(port.get_names()))


def _type_and_shape(port: Any) -> tuple[str, tuple[int, ...]]:
    """Type, and sizes after a batch dimension that must be free."""
    batch, *sizes = port.get_partial_shape()
    if batch.is_static or any(size.is_dynamic for size in sizes):
        return port.get_element_type().get_type_name(), (-1,)
    return port.get_element_type().get_type_name(), tuple(size.get_length() for size in sizes)


def _reason(error: Exception) -> str:
    """Say on one line what OpenVINO says on several, without its source files."""
    lines = [line.strip() for line in str(error).splitlines()]
    told = [line for line in lines if line and not line.startswith(("Exception from", "Check '"))]
    return "; ".join(told)[:300] or type(error).__name__
