"""Opens and runs an engine that exists: open, call, close; one file for each backend."""

import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ..errors import Refused, Stopped
from ..row import THREATS

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .lanes import Pixels

log = logging.getLogger(__name__)

OUTPUTS = ("x", "logits", "reconstruction_loss", "feature_matching_loss")


@dataclass(frozen=True)
class Outputs:
    """What the networks say of a batch of n images; the arrays are the caller's own."""

    x: "NDArray[np.float32]"  # [n, features]
    logits: "NDArray[np.float32]"  # [n, 5], in the order of THREATS
    reconstruction_loss: "NDArray[np.float32]"  # [n]
    feature_matching_loss: "NDArray[np.float32]"  # [n]


@dataclass(frozen=True)
class Parity:
    """How far an engine is from the FP32 values of its bundle, as the parity gate measured it."""

    images: int
    loss_rel_max: float  # largest relative difference of a loss
    score_max: dict[str, float]  # [decision], largest difference, in standard deviations of benign scores
    flips: dict[str, float]  # ["decision at PFA p"], share of decisions that differ
    cpu: str
    cpu_flags: tuple[str, ...]
    versions: dict[str, str]

    def __str__(self) -> str:
        """Say it in one line."""
        score, flips = max(self.score_max.values()), max(self.flips.values())
        return (
            f"parity with FP32 on {self.images} images: losses within {self.loss_rel_max:.1e} (relative), "
            f"scores within {score:.1e} standard deviations, {flips:.2%} of decisions flipped"
        )


@dataclass(frozen=True)
class Engine:
    """Networks made ready for one device and precision; `open_engine` runs it."""

    backend: str  # openvino, tensorrt or inductor
    version: str  # of the backend
    device: str  # cpu or cuda:N
    precision: str  # fp32, fp16 or int8
    input_size: int  # pixels a side
    features: int  # length of x
    bundle_hash: str
    key: str  # of the cache: engines of one key score alike
    blob: bytes = field(repr=False)  # what the backend opens
    parity: Parity | None = None  # None until the gate has passed
    reason: str = ""  # why `auto` took this precision, where it had a choice

    @property
    def description(self) -> str:
        """Name backend, precision and device in a few words."""
        return f"{self.backend} {self.version.partition('-')[0]} {self.precision} on {self.device}"


class Runner(Protocol):
    """An open engine. One call at a time; a runner belongs to one thread at a time."""

    engine: Engine

    def __call__(self, pixels: "Pixels") -> Outputs:
        """Score pixels uint8 [n, S, S, 3] RGB of any n >= 1; raises EngineFailed.

        A runner on a GPU also takes a torch tensor there, finished; it reads it no more when it returns.
        Raises DeviceLost where the GPU answers this process no more.
        """
        ...

    def close(self) -> None:
        """Free what the engine holds; calling twice is allowed."""
        ...


class EngineFailed(Stopped):
    """An engine failed on a batch, twice.

    Whose fault it is, the machine's or an image's, is not known here. Who knows the images may run those at
    `positions` alone on a fresh runner, and name what fails again.
    """

    def __init__(self, what: str, positions: tuple[int, ...]):
        super().__init__(
            f"{what}, twice; what is finished is kept: check the machine's memory, then run the same command "
            "again"
        )
        self.what = what  # without what to do
        self.positions = positions  # in the batch


class NotFinite(EngineFailed):
    """The networks gave no number for some images, though weights are finite and pixels bounded."""

    def __init__(self, positions: tuple[int, ...], engine: Engine):
        super().__init__(
            f"{engine.description} gave values that are no numbers for {len(positions)} images of a batch",
            positions,
        )


def open_engine(engine: Engine, threads: int | None = None) -> Runner:
    """Open an engine on `threads` cores (None: those that this process may use); outputs are checked here.

    Raises Refused where the engine is not what it says to be or no backend for it is here, Stopped where the
    device fails.
    """
    if engine.backend == "openvino":
        from .runtime_openvino import OpenVINORunner

        return OpenVINORunner(engine, threads)
    if engine.backend == "inductor":
        from .runtime_inductor import InductorRunner

        return InductorRunner(engine, threads)
    if engine.backend == "tensorrt":
        from .runtime_tensorrt import TensorRTRunner

        return TensorRTRunner(engine)
    raise Refused(f"no backend {engine.backend!r} is in this version: use --engine openvino")


def scored_twice(engine: Engine, infer: "Callable[[Pixels], Outputs]", pixels: "Pixels") -> Outputs:
    """Run a batch, and once more where that fails; raises EngineFailed where it fails again.

    What does not return was the machine's fault, and the score that stays is the image's own.
    """
    try:
        return _scored(engine, infer, pixels)
    except EngineFailed as error:
        log.warning("%s; the batch is run again", error.what)
    return _scored(engine, infer, pixels)


def _scored(engine: Engine, infer: "Callable[[Pixels], Outputs]", pixels: "Pixels") -> Outputs:
    try:
        outputs = infer(pixels)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        what = f"{engine.description} failed on a batch of {len(pixels)} ({reason})"
        raise EngineFailed(what, tuple(range(len(pixels)))) from error
    bad = not_finite(outputs)
    if bad.size:
        raise NotFinite(tuple(bad.tolist()), engine)
    return outputs


def check_pixels(engine: Engine, pixels: "Pixels") -> None:
    """Assert what the contract between decode and engine says: nothing is guessed from the pixels."""
    size, kind, where = engine.input_size, str(pixels.dtype).removeprefix("torch."), str(pixels.device)
    shape = tuple(pixels.shape)
    if kind != "uint8" or shape[1:] != (size, size, 3) or not shape[0] or where not in ("cpu", engine.device):
        raise ValueError(
            f"pixels are {kind} {shape} on {where} and must be uint8 (n, {size}, {size}, 3) on the CPU, or "
            "where the engine is"
        )


def output_shapes(engine: Engine) -> dict[str, tuple[int, ...]]:
    """Sizes of one image's outputs by name."""
    return {
        "x": (engine.features,),
        "logits": (len(THREATS),),
        "reconstruction_loss": (),
        "feature_matching_loss": (),
    }


def not_finite(outputs: Outputs) -> "NDArray[np.intp]":
    """Positions of the images of which an output is NaN or infinite."""
    good = np.isfinite(outputs.x).all(axis=1) & np.isfinite(outputs.logits).all(axis=1)
    good &= np.isfinite(outputs.reconstruction_loss) & np.isfinite(outputs.feature_matching_loss)
    return np.flatnonzero(~good)
