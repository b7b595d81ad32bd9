"""Opens and runs a compiled engine: open, call, close. One file per backend; `cache` keeps the engines."""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np

from ..errors import Refused, Stopped

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from .cuda_graphs import Pixels

log = logging.getLogger(__name__)

LOSSES = ("reconstruction_loss", "feature_matching_loss")
OUTPUTS = ("x", "logits", *LOSSES)
ALIKE_UP_TO = 0.05  # largest PFA of the operating points at which decisions are compared
WITH_STREAMS = frozenset({"openvino"})  # backends that open as many streams as they are asked for


@dataclass(frozen=True)
class Outputs:
    """Outputs of the networks for a batch of n images; the arrays belong to the caller."""

    x: "NDArray[np.float32]"  # [n, features]
    logits: "NDArray[np.float32]"  # [n, 5], in the order of THREATS
    reconstruction_loss: "NDArray[np.float32]"  # [n]
    feature_matching_loss: "NDArray[np.float32]"  # [n]


@dataclass(frozen=True)
class Parity:
    """Differences between an engine and the FP32 values of its bundle, as the parity gate measured them."""

    images: int
    loss_rel_max: float  # largest relative difference of a loss
    score_max: dict[str, float]  # by decision: largest difference, in standard deviations of benign scores
    score_rms: dict[str, float]  # by decision: root mean square difference, in the same unit
    flips: dict[str, float]  # by "DECISION at PFA p": share of decisions that differ
    agreement: dict[str, float]  # by decision: share of equal decisions, at operating points up to PFA 5 %
    cpu: str
    cpu_flags: tuple[str, ...]
    versions: dict[str, str]

    def __str__(self) -> str:
        """Summarize the differences in one line."""
        alike, off = min(self.agreement.values()), max(self.score_rms.values())
        return (
            f"parity with FP32 on {self.images} images: {alike:.2%} of decisions are equal (PFA up to "
            f"{ALIKE_UP_TO:.0%}), scores differ by {off:.1g} standard deviations of benign ones (root mean "
            "square)"
        )


@dataclass(frozen=True)
class Engine:
    """Networks compiled for one device and precision; `open_engine` opens them."""

    backend: str  # openvino, tensorrt or inductor
    version: str  # of the backend
    device: str  # cpu or cuda:N
    precision: str  # fp32, fp16, bf16 or int8
    input_size: int  # pixels a side
    features: int  # length of x
    bundle_hash: str
    key: str  # in the cache; engines with the same key give the same scores
    blob: bytes = field(repr=False)  # in the format of the backend
    parity: Parity | None = None  # None until the parity gate has passed
    reason: str = ""  # why `auto` chose this precision, if it had a choice

    @property
    def description(self) -> str:
        """Backend, precision and device in a few words."""
        return f"{self.backend} {self.version.partition('-')[0]} {self.precision} on {self.device}"


class Runner(Protocol):
    """An open engine; it takes as many concurrent calls as it has streams, each from a thread of its own."""

    engine: Engine
    streams: int  # batches that are computed at once
    sizes: tuple[int, ...]  # batch sizes with code of their own, to which others are padded; or none

    def __call__(self, pixels: "Pixels") -> Outputs:
        """Score pixels uint8 [n, S, S, 3] RGB, for any n >= 1; raises EngineFailed.

        A runner on a GPU also takes a torch tensor on that GPU whose values are ready; it does not read the
        tensor after it has returned. Raises DeviceLost if the GPU no longer responds to this process.
        """
        ...

    def close(self) -> None:
        """Release what the engine holds; safe to call twice."""
        ...


class EngineFailed(Stopped):
    """An engine failed on a batch, twice.

    Whether the machine or an image is at fault is unknown here. The caller can run the images at `positions`
    one by one on a new runner, and report those that fail again.
    """

    def __init__(self, what: str, positions: tuple[int, ...]):
        super().__init__(
            f"{what}, twice; finished results are kept: check the machine's memory, then run the same "
            "command again"
        )
        self.what = what  # without the advice
        self.positions = positions  # in the batch


class NotFinite(EngineFailed):
    """The networks gave NaN or infinity for some images, though weights are finite and pixels bounded."""

    def __init__(self, positions: tuple[int, ...], engine: Engine):
        super().__init__(
            f"{engine.description} gave values that are not finite for {len(positions)} images of a batch",
            positions,
        )


def open_engine(engine: Engine, threads: int | None = None, streams: int = 1) -> Runner:
    """Open an engine on `threads` cores (None: all that this process may use).

    A backend in WITH_STREAMS computes `streams` batches at once, each on its share of the cores; the others
    have a number of their own. Raises Refused if the engine does not match its description or its backend is
    not available, Stopped if the device fails.
    """
    if engine.device != "cpu":
        from ...kernels.compiler import triton_compiles

        triton_compiles()  # says now what is missing, before the first image
    if engine.backend == "openvino":
        from .runtime_openvino import OpenVINORunner

        return OpenVINORunner(engine, threads, streams)
    if engine.backend == "inductor":
        from .runtime_inductor import InductorRunner

        return InductorRunner(engine, threads)
    if engine.backend == "tensorrt":
        from .runtime_tensorrt import TensorRTRunner

        return TensorRTRunner(engine)
    raise Refused(f"this version has no backend {engine.backend!r}: use --engine openvino")


def score_with_retry(engine: Engine, infer: "Callable[[Pixels], Outputs]", pixels: "Pixels") -> Outputs:
    """Run a batch, once more if it fails; raises EngineFailed if it fails again.

    A failure that does not recur is treated as a machine fault; the scores of the second run stand.
    """
    try:
        return _score(engine, infer, pixels)
    except EngineFailed as error:
        log.warning("%s; running the batch once more", error.what)
    return _score(engine, infer, pixels)


def _score(engine: Engine, infer: "Callable[[Pixels], Outputs]", pixels: "Pixels") -> Outputs:
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
    """Raise ValueError unless pixels have the type, shape and device that the engine takes."""
    size, kind, where = engine.input_size, str(pixels.dtype).removeprefix("torch."), str(pixels.device)
    shape = tuple(pixels.shape)
    if kind != "uint8" or shape[1:] != (size, size, 3) or not shape[0] or where not in ("cpu", engine.device):
        raise ValueError(
            f"pixels are {kind} {shape} on {where} and must be uint8 (n, {size}, {size}, 3) on cpu or "
            f"{engine.device}"
        )


def concatenate(outputs: Sequence[Outputs]) -> Outputs:
    """Concatenate the outputs of successive batches."""
    return Outputs(**{name: np.concatenate([getattr(batch, name) for batch in outputs]) for name in OUTPUTS})


def not_finite(outputs: Outputs) -> "NDArray[np.intp]":
    """Return the positions of images with an output that is NaN or infinite."""
    finite = np.isfinite(outputs.x).all(axis=1) & np.isfinite(outputs.logits).all(axis=1)
    finite &= np.isfinite(outputs.reconstruction_loss) & np.isfinite(outputs.feature_matching_loss)
    return np.flatnonzero(~finite)
