"""TensorRT on an NVIDIA GPU: plans of trunk and BiGAN, pooling and heads in float32 between them.

A plan is code: it is opened only where it comes out of our own cache, or was built by this process. Nothing
of TensorRT is made before torch has found a GPU: without a driver its Runtime is a null pointer that crashes.
"""

import logging
from collections.abc import Callable
from functools import cache
from importlib.metadata import version as version_of
from typing import TYPE_CHECKING, Any

from ..errors import Refused
from . import Engine, Outputs, check_pixels, scored_twice
from .torch_form import unpack

if TYPE_CHECKING:
    from torch import Tensor

    import tensorrt as trt

    from ..model.gbad import GBAD
    from . import Pixels

log = logging.getLogger(__name__)

SIZES = (8, 64, 256)  # images of a CUDA graph; plans serve any number up to the largest
BATCH = f"1 to {SIZES[-1]}"  # of the engine, as in a cache key
LANES = 2  # batches under way at once
TRUNK, BIGAN = "trunk", "bigan"
MAPS = ("c2", "c3", "c4", "c5")  # outputs of a trunk that ends with the maps,
HEADS = ("x", "logits")  # of one that holds pooling and heads,
PAIRS = ("s", "again", "f_d", "f_d_again")  # and of the BiGAN


def version() -> str:
    """Version of TensorRT, with those of the packages that its engines depend on too."""
    return "-".join(version_of(name) for name in ("tensorrt", "torch", "timm"))


def network_name(part: str, bundle_hash: str) -> str:
    """Name a network so that its plan can be told from that of another part or bundle."""
    return f"gbad-batch {part} of {bundle_hash}"


@cache
def logger() -> "trt.ILogger":
    """Pass on what TensorRT says to Python's logging; one for all, as TensorRT keeps the first."""
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
    """An open TensorRT engine."""

    def __init__(self, engine: Engine):
        import torch

        from .lanes import Lanes

        self.engine = engine
        if not torch.cuda.is_available():
            raise Refused(f"{engine.description} cannot be opened: torch finds no GPU; use --device cpu")
        device = torch.device(engine.device)
        model, plans = unpack(engine.blob)
        try:
            with torch.cuda.device(device):
                opened = [opened_plan(plans[part], part, engine) for part in (TRUNK, BIGAN)]
                forwards = [Forward(model.to(device), *opened) for _ in range(LANES)]
            self._run: Callable[[Pixels], Outputs] | None
            self._run = Lanes(forwards, SIZES, engine.input_size, device)
        except (RuntimeError, KeyError) as error:
            raise Refused(
                f"TensorRT cannot open {engine.description} ({error!s:.200}): empty the cache folder"
            ) from error

    def __call__(self, pixels: "Pixels") -> Outputs:
        """Score pixels uint8 [n, S, S, 3]."""
        check_pixels(self.engine, pixels)
        if self._run is None:
            raise ValueError("the runner is closed")
        return scored_twice(self.engine, self._run, pixels)

    def close(self) -> None:
        """Free the engine's memory."""
        self._run = None


def opened_plan(plan: bytes, part: str, engine: Engine) -> "trt.ICudaEngine":
    """Open a plan on the current GPU; raises RuntimeError where it is not that of this part and bundle."""
    import tensorrt as trt

    runtime = trt.Runtime(logger())
    runtime.engine_host_code_allowed = False
    runtime.tempfile_control_flags = 0  # nothing is unpacked to disk
    opened = runtime.deserialize_cuda_engine(plan)
    if opened is None:
        raise RuntimeError("its plan is for another GPU or another TensorRT")
    if opened.name != network_name(part, engine.bundle_hash):
        raise RuntimeError(f"its plan is of {opened.name!r:.100}")
    if part == TRUNK:
        _check_types(opened, engine.precision)
    return opened


def _check_types(opened: "trt.ICudaEngine", precision: str) -> None:
    """Find a trunk that was built in another precision than asked for: TensorRT only warns of it."""
    import tensorrt as trt

    wanted = trt.DataType.HALF if precision == "fp16" else trt.DataType.FLOAT
    # x and logits are float32 in either; a trunk that ends with them is built after one with maps
    for name in set(_names(opened, trt.TensorIOMode.OUTPUT)).difference(HEADS):
        if opened.get_tensor_dtype(name) != wanted:
            raise RuntimeError(f"its {name} is {opened.get_tensor_dtype(name)} where {wanted} was asked for")


def _names(opened: "trt.ICudaEngine", mode: Any) -> list[str]:
    names = [opened.get_tensor_name(i) for i in range(opened.num_io_tensors)]
    return [name for name in names if opened.get_tensor_mode(name) == mode]


class Forward:
    """One lane's way from pixels to outputs, all on the GPU, with contexts of its own."""

    def __init__(self, model: "GBAD", trunk: "trt.ICudaEngine", bigan: "trt.ICudaEngine"):
        self._heads = model.network.heads
        self._trunk, self._bigan = _Context(trunk), _Context(bigan)

    def __call__(self, pixels: "Tensor") -> "tuple[Tensor, ...]":
        """Score uint8 pixels [n, S, S, 3]: x, logits and both losses, float32."""
        from ..model.parts import losses_of

        x, logits = self._features(pixels)
        return x, logits, *losses_of(self._bigan(x.contiguous(), *PAIRS))

    def _features(self, pixels: "Tensor") -> "tuple[Tensor, ...]":
        from ...kernels.border_pool import border_means

        if self._trunk.gives(HEADS):
            return tuple(self._trunk(pixels, *HEADS))
        maps = [each.permute(0, 3, 1, 2) for each in self._trunk(pixels, *MAPS)]
        return self._heads(maps, border_means)


class _Context:
    """An execution context: a plan's own memory for one batch at a time."""

    def __init__(self, opened: "trt.ICudaEngine"):
        import torch

        import tensorrt as trt

        context = opened.create_execution_context()
        if context is None:
            raise RuntimeError("TensorRT has no memory for an execution context")
        self._context = context
        (self._entry,) = _names(opened, trt.TensorIOMode.INPUT)
        types = {trt.DataType.HALF: torch.float16, trt.DataType.FLOAT: torch.float32}
        outputs = _names(opened, trt.TensorIOMode.OUTPUT)
        self._types = {name: types[opened.get_tensor_dtype(name)] for name in outputs}

    def gives(self, outputs: tuple[str, ...]) -> bool:
        """Tell whether these are what the plan puts out."""
        return self._types.keys() == set(outputs)

    def __call__(self, entry: "Tensor", *outputs: str) -> "list[Tensor]":
        """Run on torch's current stream, which must not be the default one; returns the outputs by name."""
        import torch

        context = self._context
        context.set_input_shape(self._entry, tuple(entry.shape))
        context.set_tensor_address(self._entry, entry.data_ptr())
        found = []
        for name in outputs:
            sizes = context.get_tensor_shape(name)
            shape = [sizes[i] for i in range(len(sizes))]
            found.append(torch.empty(shape, dtype=self._types[name], device=entry.device))
            context.set_tensor_address(name, found[-1].data_ptr())
        if not context.execute_async_v3(torch.cuda.current_stream().cuda_stream):
            raise RuntimeError(f"TensorRT did not take a batch of {len(entry)}")
        return found
