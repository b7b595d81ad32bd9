"""Runs a TensorRT engine on an NVIDIA GPU: plans of trunk and BiGAN, pooling and heads in float32 between.

A plan is code: it is opened only if it comes from this user's own cache or was built by this process. No
TensorRT object is created before torch has found a GPU: without a driver its Runtime crashes the process.
"""

import logging
from collections.abc import Callable
from functools import cache
from importlib.metadata import version as version_of
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

from ..errors import Refused
from . import Engine, Outputs, check_pixels, score_with_retry
from .torch_form import unpack

if TYPE_CHECKING:
    from torch import Tensor

    import tensorrt as trt

    from ..model.gbad import GBAD
    from . import Pixels

log = logging.getLogger(__name__)

SIZES: tuple[int, ...] = (8, 64, 256)  # batch sizes of the CUDA graphs; plans take any up to the largest
BATCH = f"1 to {SIZES[-1]}"  # batch sizes of the engine, as they stand in a cache key
TRUNK, BIGAN = "trunk", "bigan"
MAPS = ("c2", "c3", "c4", "c5")  # outputs of a trunk that ends with the maps,
HEADS = ("x", "logits")  # of one that includes pooling and heads,
PAIRS = ("s", "reconstruction", "f_d", "f_d_reconstruction")  # and of the BiGAN


def version() -> str:
    """Return the versions of TensorRT and of the packages that its engines also depend on."""
    names = ["tensorrt", "torch", "timm"]
    if find_spec("torch_tensorrt"):  # which builds plans, too
        names.append("torch-tensorrt")
    return "-".join(map(version_of, names))


def network_name(part: str, bundle_hash: str) -> str:
    """Return the name that ties a plan to its part of the model and its bundle.

    The network has it, or where torch-tensorrt has built the plan, the only input.
    """
    return f"gbad-batch {part} of {bundle_hash}"


@cache
def logger() -> "trt.ILogger":
    """Forward TensorRT's messages to Python's logging; there is one, since TensorRT keeps the first."""
    import tensorrt as trt

    levels = {
        trt.ILogger.Severity.INTERNAL_ERROR: logging.ERROR,
        trt.ILogger.Severity.ERROR: logging.ERROR,
        trt.ILogger.Severity.WARNING: logging.WARNING,
    }

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: "trt.ILogger.Severity", msg: str) -> None:
            log.log(levels.get(severity, logging.DEBUG), "TensorRT: %s", msg)

    return Logger()


class TensorRTRunner:
    """Run a TensorRT engine."""

    def __init__(self, engine: Engine):
        import torch

        from .cuda_graphs import LANES, CudaLane, LaneRunner

        self.engine = engine
        self.sizes, self.streams = SIZES, LANES
        if not torch.cuda.is_available():
            raise Refused(f"{engine.description} cannot be opened: torch finds no GPU; use --device cpu")
        device = torch.device(engine.device)
        model, plans = unpack(engine.blob)
        try:
            with torch.cuda.device(device):
                trunk, bigan = (open_plan(plans[part], part, engine) for part in (TRUNK, BIGAN))
            model = model.to(device)
            lanes = [
                CudaLane(
                    lambda images: Forward(model, trunk, bigan, images), SIZES, engine.input_size, device
                )
                for _ in range(LANES)
            ]
            self._run: Callable[[Pixels], Outputs] | None = LaneRunner(lanes, SIZES[-1], device)
        except (RuntimeError, KeyError) as error:
            raise Refused(
                f"TensorRT cannot open {engine.description} ({error!s:.200}): empty the cache folder"
            ) from error

    def __call__(self, pixels: "Pixels") -> Outputs:
        """Score pixels uint8 [n, S, S, 3]."""
        check_pixels(self.engine, pixels)
        if self._run is None:
            raise ValueError("the runner is closed")
        return score_with_retry(self.engine, self._run, pixels)

    def close(self) -> None:
        """Free the engine's memory; safe to call twice."""
        self._run = None


def open_plan(plan: bytes, part: str, engine: Engine) -> "trt.ICudaEngine":
    """Open a plan on the current GPU; raises RuntimeError if it belongs to another part, bundle or GPU."""
    import tensorrt as trt

    runtime = trt.Runtime(logger())
    runtime.engine_host_code_allowed = False
    runtime.tempfile_control_flags = 0  # no file is unpacked to disk
    opened = runtime.deserialize_cuda_engine(plan)
    if opened is None:
        raise RuntimeError("its plan was built for another GPU or another version of TensorRT")
    names = [opened.name, *_names(opened, trt.TensorIOMode.INPUT)]
    if network_name(part, engine.bundle_hash) not in names:
        raise RuntimeError(f"its plan belongs to {' or '.join(names)!r:.200}")
    if part == TRUNK:
        _check_types(opened, engine.precision)
    return opened


def _check_types(opened: "trt.ICudaEngine", precision: str) -> None:
    """Raise RuntimeError if a trunk was built in another precision: TensorRT only warns of that."""
    import tensorrt as trt

    wanted = trt.DataType.HALF if precision == "fp16" else trt.DataType.FLOAT
    # x and logits are float32 in either precision
    for name in set(_names(opened, trt.TensorIOMode.OUTPUT)).difference(HEADS):
        if opened.get_tensor_dtype(name) != wanted:
            raise RuntimeError(f"its output {name} is {opened.get_tensor_dtype(name)} and must be {wanted}")


def _names(opened: "trt.ICudaEngine", mode: Any) -> list[str]:
    names = [opened.get_tensor_name(i) for i in range(opened.num_io_tensors)]
    return [name for name in names if opened.get_tensor_mode(name) == mode]


class Forward:
    """The model from pixels to outputs on the GPU, for batches of one size, with contexts of its own.

    A CUDA graph that has captured a context is invalid once the shape of a batch changes on it: so each graph
    needs a context that no other one uses (NVIDIA/TensorRT, issue 3798).
    """

    def __init__(self, model: "GBAD", trunk: "trt.ICudaEngine", bigan: "trt.ICudaEngine", images: int):
        self._heads = model.network.heads
        self._trunk, self._bigan = _Context(trunk, images), _Context(bigan, images)

    def __call__(self, pixels: "Tensor") -> "tuple[Tensor, ...]":
        """Score uint8 pixels [images, S, S, 3]: x, logits and both losses, float32."""
        from ..model.mixed_precision import losses_of

        x, logits = self._features(pixels)
        return x, logits, *losses_of(self._bigan(x.contiguous(), PAIRS))

    def _features(self, pixels: "Tensor") -> "tuple[Tensor, ...]":
        from ...kernels.border_pool import border_means

        if self._trunk.has_outputs(HEADS):
            return tuple(self._trunk(pixels, HEADS))
        maps = [feature_map.permute(0, 3, 1, 2) for feature_map in self._trunk(pixels, MAPS)]
        return self._heads(maps, border_means)


class _Context:
    """An execution context of a plan, for batches of one size: memory for one batch at a time."""

    def __init__(self, opened: "trt.ICudaEngine", images: int):
        import torch

        import tensorrt as trt

        context = opened.create_execution_context()
        if context is None:
            raise RuntimeError("TensorRT could not allocate an execution context")
        self._context = context
        (self._entry,) = _names(opened, trt.TensorIOMode.INPUT)
        self._shape = (images, *_sizes(opened.get_tensor_shape(self._entry))[1:])
        if not context.set_input_shape(self._entry, self._shape):
            raise RuntimeError(f"its plan does not take batches of {images}")
        types = {trt.DataType.HALF: torch.float16, trt.DataType.FLOAT: torch.float32}
        self._outputs: dict[str, Tensor] = {}
        for name in _names(opened, trt.TensorIOMode.OUTPUT):
            shape, kind = _sizes(context.get_tensor_shape(name)), types[opened.get_tensor_dtype(name)]
            self._outputs[name] = torch.empty(shape, dtype=kind, device="cuda")
            context.set_tensor_address(name, self._outputs[name].data_ptr())

    def has_outputs(self, outputs: tuple[str, ...]) -> bool:
        """Tell whether these are the outputs of the plan."""
        return self._outputs.keys() == set(outputs)

    def __call__(self, entry: "Tensor", outputs: tuple[str, ...]) -> "list[Tensor]":
        """Run on torch's current stream, which must not be the default one; returns the outputs by name.

        They are the same tensors in every call, so that a captured graph always finds them.
        """
        import torch

        if entry.shape != self._shape:
            raise RuntimeError(f"a batch has the shape {tuple(entry.shape)} and must have {self._shape}")
        self._context.set_tensor_address(self._entry, entry.data_ptr())
        if not self._context.execute_async_v3(torch.cuda.current_stream().cuda_stream):
            raise RuntimeError(f"TensorRT rejected a batch of {len(entry)}")
        return [self._outputs[name] for name in outputs]


def _sizes(dims: "trt.Dims") -> tuple[int, ...]:
    return tuple(dims[i] for i in range(len(dims)))
