"""The parity gate: an engine is used only where it agrees with FP32 on the images of its bundle."""

import logging
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..engine.bundle import Bundle, Gate, operating_point
from ..engine.bundle.manifest import Agreement, Tolerance
from ..engine.decode import DecodeLimits, Decoder
from ..engine.errors import BundleError, Refused
from ..engine.model.decision import Decision
from ..engine.row import Row
from ..engine.runtime import (
    ALIKE_UP_TO,
    LOSSES,
    OUTPUTS,
    Engine,
    NotFinite,
    Outputs,
    Parity,
    Runner,
    concatenate,
    open_engine,
)
from ..engine.system.machine import cpu_flags, cpu_model

if TYPE_CHECKING:
    from numpy.typing import NDArray

log = logging.getLogger(__name__)

BATCH = 16  # images, for an engine with one code for all sizes; no score depends on it
MOST_SECONDS = 120  # of CPU for decoding all gate images; the limit on pixels bounds a single one
ROUNDING = 1e-9  # of a share of decisions


@dataclass(frozen=True)
class Built:
    """A candidate for an engine, not yet compared with FP32."""

    blob: bytes  # in the format of the backend
    how: Mapping[str, Any]  # choices of the build, for the record


def first_to_pass(
    bundle: Bundle, engine: Engine, built: Iterable[Built], threads: int | None
) -> tuple[Engine, Built]:
    """Open candidates in turn until one passes the gate; returns the engine and the candidate.

    The next one is built only if the one before failed, including by values that are not finite, as when half
    precision overflows. Raises what `pass_gate` raised for the last; where that overflowed in less than FP32,
    and would again, BeyondTolerance.
    """
    refused: Refused | NotFinite | None = None
    for candidate in built:
        if refused:
            log.info("%s; trying another form of the engine", refused)
        ready = replace(engine, blob=candidate.blob)
        try:
            with closing(open_engine(ready, threads)) as runner:
                return replace(ready, parity=pass_gate(bundle, runner)), candidate
        except (Refused, NotFinite) as error:
            refused = error
    assert refused is not None
    if isinstance(refused, NotFinite) and engine.precision != "fp32":
        raise BeyondTolerance(refused.what) from refused
    raise refused


def pass_gate(bundle: Bundle, runner: Runner) -> Parity:
    """Score the gate images and compare them with the bundle's FP32 values.

    Raises BeyondTolerance if a difference exceeds the bundle's tolerance for this precision, BundleError if
    an image is unusable.
    """
    parity = measure(bundle, runner)
    _check(bundle, runner.engine, parity)
    return parity


class BeyondTolerance(Refused):
    """An engine runs but does not agree with FP32; `finding` says how, without the advice."""

    def __init__(self, finding: str):
        super().__init__(f"{finding}; use --precision fp32, or another machine or bundle")
        self.finding = finding


def measure(bundle: Bundle, runner: Runner) -> Parity:
    """Score the gate images and measure differences from the bundle's FP32 values; raises BundleError.

    An engine may compute each batch size, on each of its streams, by code of its own. All of these score all
    images, and the largest differences count.
    """
    expected = bundle.gate()
    found = [
        (each, compare(bundle, runner.engine.precision, each, expected)) for each in _score(bundle, runner)
    ]
    by_decision = {name: [each[name] for _, each in found] for name in bundle.manifest.decisions}
    return Parity(
        images=len(expected.names),
        loss_rel_max=max(_relative(each, expected) for each, _ in found),
        score_max={name: max(each.score_max for each in them) for name, them in by_decision.items()},
        score_rms={name: max(each.score_rms for each in them) for name, them in by_decision.items()},
        flips={
            point: max(each.flips[point] for each in them)
            for them in by_decision.values()
            for point in them[0].flips
        },
        agreement={name: min(each.agreement for each in them) for name, them in by_decision.items()},
        cpu=cpu_model(),
        cpu_flags=tuple(sorted(cpu_flags())),
        versions={runner.engine.backend: runner.engine.version, "numpy": np.__version__},
    )


@dataclass(frozen=True)
class Difference:
    """How a decision differs from FP32's on some images."""

    score_max: float  # largest difference of a score, in standard deviations of benign scores
    score_rms: float  # root mean square, in the same unit
    flips: Mapping[str, float]  # by "DECISION at PFA p": share of decisions that differ
    agreement: float  # share of equal decisions, over operating points up to PFA ALIKE_UP_TO


def compare(
    bundle: Bundle, precision: str, actual: Outputs, expected: Outputs | Gate
) -> dict[str, Difference]:
    """Compare the decisions of an engine of this precision with FP32's, each by its own thresholds."""
    differences = {}
    for name in bundle.manifest.decisions:
        got, wanted = _scores(bundle, name, actual, expected)
        off = np.abs(got - wanted) / bundle.manifest.benign_score_std[name]
        flips = _flips(bundle, precision, name, got, wanted)
        differences[name] = Difference(
            score_max=float(off.max()),
            score_rms=float(np.sqrt(np.square(off).mean())),
            flips={f"{name} at PFA {pfa:g}": share for pfa, share in flips.items()},
            agreement=1 - float(np.mean([flips[pfa] for pfa in _compared(flips)])),
        )
    return differences


def _compared(pfas: Iterable[float]) -> list[float]:
    """Return the PFAs at which decisions must agree: those up to ALIKE_UP_TO, or else the lowest."""
    return [pfa for pfa in pfas if pfa <= ALIKE_UP_TO] or [min(pfas)]


def _score(bundle: Bundle, runner: Runner) -> list[Outputs]:
    """Return the outputs of all gate images, in order, once for each batch size and stream of the runner.

    Calls one after the other take the streams in turn.
    """
    sizes = [size for size in runner.sizes or (BATCH,) for _ in range(runner.streams)]
    parts: list[list[Outputs]] = [[] for _ in sizes]
    for pixels in _batches(bundle, max(sizes)):
        for part, size in zip(parts, sizes, strict=True):
            part.append(_in_batches(runner, pixels, size))
    if not parts[0]:
        raise BundleError(
            f"the bundle {bundle.path} has no gate image, so no engine can be checked: train it again"
        )
    return [concatenate(part) for part in parts]


def _in_batches(runner: Runner, pixels: "NDArray[np.uint8]", size: int) -> Outputs:
    """Score images in batches of exactly `size`; the first ones again fill the last batch."""
    filled = np.resize(pixels, (-(-len(pixels) // size) * size, *pixels.shape[1:]))
    outputs = concatenate([runner(filled[i : i + size]) for i in range(0, len(filled), size)])
    return Outputs(**{name: getattr(outputs, name)[: len(pixels)] for name in OUTPUTS})


def _batches(bundle: Bundle, images: int) -> "Iterator[NDArray[np.uint8]]":
    """Decode the gate images, so many at a time."""
    gate, size = bundle.gate(), bundle.manifest.architecture.input_size
    decode = Decoder(size, DecodeLimits(max_pixels=size * size))
    began = time.thread_time()
    for start in range(0, len(gate.names), images):
        yield np.stack(
            [_pixels(bundle, gate, decode, i) for i in range(len(gate.names))[start : start + images]]
        )
        if time.thread_time() - began > MOST_SECONDS:
            raise BundleError(
                f"the gate images of the bundle {bundle.path} take more than {MOST_SECONDS} s to decode"
            )


def _pixels(bundle: Bundle, gate: Gate, decode: Decoder, i: int) -> "NDArray[np.uint8]":
    """Decode a gate image to [S, S, 3] as a scan does; at the input size nothing is resized."""
    row = Row(uri=gate.names[i])
    image, size = decode.gate(row, gate.images[i]), bundle.manifest.architecture.input_size
    fits = image is not None and (row.width, row.height) == (size, size)
    pixels = decode.pixels(row, image) if image is not None and fits else None
    if pixels is None:
        reason = row.error or f"it has {row.width} x {row.height} pixels and must have {size} x {size}"
        raise BundleError(f"the gate image {row.uri} of the bundle {bundle.path} cannot be used: {reason}")
    return pixels


def _scores(
    bundle: Bundle, name: str, actual: Outputs, expected: Outputs | Gate
) -> "tuple[NDArray[np.float64], NDArray[np.float64]]":
    """Return scores [n] of the engine and of FP32, by the same arithmetic."""
    decision = Decision.from_tensors(name, bundle.tensors())
    got, wanted = (
        decision.score(each.reconstruction_loss, each.feature_matching_loss, each.logits)
        for each in (actual, expected)
    )
    return got, wanted


def _flips(
    bundle: Bundle,
    precision: str,
    name: str,
    got: "NDArray[np.float64]",
    wanted: "NDArray[np.float64]",
) -> dict[float, float]:
    """Return the share of decisions that differ, by the PFA of the operating point."""
    shares = {}
    for point in bundle.manifest.operating_points["fp32"][name]:
        own = operating_point(bundle, precision, name, pfa=point.pfa)
        differ = (got >= own.threshold) != (wanted >= point.threshold)
        shares[point.pfa] = float(differ.mean())
    return shares


def _relative(actual: Outputs, expected: Gate) -> float:
    """Return the largest relative difference of a loss."""
    pairs = [(getattr(actual, loss), getattr(expected, loss)) for loss in LOSSES]
    return max(
        float((np.abs(got - wanted) / np.maximum(np.abs(wanted), 1e-12)).max()) for got, wanted in pairs
    )


def _check(bundle: Bundle, engine: Engine, parity: Parity) -> None:
    tolerance = bundle.manifest.tolerance_of(engine.precision)
    where = f"{engine.description} does not agree with FP32 on the gate images of {bundle.path}"
    if isinstance(tolerance, Agreement):
        name, share = min(parity.agreement.items(), key=lambda item: item[1])
        if not share > tolerance.decisions - ROUNDING:
            raise BeyondTolerance(
                f"{where}: {share:.2%} of the decisions of {name!r} are those of FP32, fewer than "
                f"{tolerance.decisions:.2%}"
            )
    measured = _measured(tolerance, parity)
    for what, value, most in measured:
        if not value <= most:
            raise BeyondTolerance(f"{where}: {what} is {value:.2g}, above the limit of {most:.2g}")


def verdict(bundle: Bundle, engine: Engine) -> str:
    """Say by what an engine passed the gate, and how near to its limit; nothing if it was not measured."""
    if engine.parity is None:
        return ""
    tolerance = bundle.manifest.tolerance_of(engine.precision)
    if isinstance(tolerance, Agreement):
        flipped, most = 1 - min(engine.parity.agreement.values()), 1 - tolerance.decisions
    else:
        flipped, most = max(engine.parity.flips.values()), tolerance.flips
    return f"{100 * flipped:.2g} % of decisions differ from FP32 ({100 * most:.2g} % allowed)"


def _measured(tolerance: Tolerance | Agreement, parity: Parity) -> list[tuple[str, float, float]]:
    """Return what a tolerance bounds, in words, with the value and its bound."""
    unit = "in standard deviations"
    if isinstance(tolerance, Agreement):
        value = max(parity.score_rms.values())
        return [(f"the root mean square difference of a score {unit}", value, tolerance.score)]
    return [
        ("the relative difference of a loss", parity.loss_rel_max, tolerance.loss_rel),
        (f"the difference of a score {unit}", max(parity.score_max.values()), tolerance.score),
        ("the share of flipped decisions", max(parity.flips.values()), tolerance.flips),
    ]
