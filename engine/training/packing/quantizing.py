"""A bundle's INT8 form: made on training images, judged on calibration images, held to its own tolerance."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....export import to_openvino
from ....export.gate import measure
from ....export.to_int8 import quantize
from ...bundle import DEFAULT_PFA, Bundle, check_vacant, write_bundle
from ...bundle.manifest import OPTIONAL_FILES, Manifest, StoredPoint, Tolerance
from ...errors import Refused, Stopped
from ...model.decision import Decision
from ...runtime import OUTPUTS, Engine, Outputs, Parity, Runner, open_engine, runtime_openvino
from ...scorer import sigmoid
from ...system.machine import installed
from ...system.progress import Progress, silent
from ..pixels import decoded
from .card import with_int8

BATCH = 16  # images; no score depends on it
AGREEMENT = 0.995  # of decisions with FP32's at an operating point, which INT8 is made for
MARGIN = 1.5  # another CPU may differ from FP32 by this times what the CPU that quantized differed by
SURE = 0.99  # of gates as small as the bundle's that an engine of just that agreement passes


@dataclass(frozen=True)
class QuantizeSettings:
    """How a network is quantized."""

    images: int = 300  # that the ranges of maps are found on
    seed: int = 0  # of which are taken, where there are more
    overflow_fix: str = "enable"  # weights held to 7 bits, as `export.to_int8.quantize` says


def quantize_bundle(
    bundle: Bundle,
    images: Sequence[Path],
    benign: Sequence[Path],
    out: Path,
    settings: QuantizeSettings,
    progress: Progress = silent,
) -> Bundle:
    """Write a bundle to the new folder `out` that has an INT8 form beside all that `bundle` has.

    `images` are training images, with and without threats; `benign` are calibration images, on which INT8
    gets operating points of its own, or none: then it uses FP32's. The same images and seed give the same
    bytes on one machine. Raises Refused for images that are no use, Stopped where INT8 decides otherwise than
    FP32 too often.
    """
    check_vacant(out)
    pixels = _sample(images, bundle.manifest.architecture.input_size, settings, progress)
    network, constants = quantize(bundle.network_onnx, pixels, settings.overflow_fix)
    manifest = bundle.manifest
    with ExitStack() as stack:
        int8 = stack.enter_context(closing(opened(bundle, "int8", network, constants)))
        agreement: dict[str, float] = {}
        if benign:
            fp32 = stack.enter_context(closing(opened(bundle, "fp32", bundle.network_onnx)))
            manifest, agreement = _calibrated(bundle, int8, fp32, benign, progress)
        found = measure(replace(bundle, manifest=manifest), int8)
    made = _provenance(settings, len(pixels), len(benign), agreement, found)
    manifest = replace(
        manifest, tolerance_int8=_tolerance(found), provenance={**manifest.provenance, "int8": made}
    )
    files = {**bundle.files, **dict(zip(OPTIONAL_FILES, (network, constants), strict=True))}
    files["README.md"] = _card(bundle, manifest).encode()
    return write_bundle(out, manifest.document(), files)


def report(bundle: Bundle) -> str:
    """Say in a line what the INT8 form of a bundle was made from, and how it does."""
    made = bundle.manifest.provenance["int8"]
    name = f"{bundle.manifest.default_decision} at PFA {DEFAULT_PFA:g}"
    words = [f"INT8 form quantized on {made['images']} images"]
    if name in made["agreement"]:
        words.append(
            f"decides as FP32 on {made['agreement'][name]:.2%} of {made['calibration']} benign images"
        )
    words.append(f"{made['flips']:.2%} of decisions flipped on the gate")
    return "; ".join(words)


def _card(bundle: Bundle, manifest: Manifest) -> str:
    points = manifest.operating_points.get("int8")
    own = [asdict(point) for point in points[manifest.default_decision]] if points else None
    return with_int8(bundle.files["README.md"].decode(errors="replace"), manifest.provenance["int8"], own)


def sample(paths: Sequence[Path], count: int, seed: int) -> list[Path]:
    """Draw some of the paths, in their order; all where there are no more."""
    random = np.random.default_rng((seed, 8))
    return [paths[i] for i in np.sort(random.permutation(len(paths))[:count])]


def _sample(
    images: Sequence[Path], size: int, settings: QuantizeSettings, progress: Progress
) -> list[NDArray[np.uint8]]:
    """Decode the images that the ranges are found on, but for those that do not decode."""
    chosen = sample(images, settings.images, settings.seed)
    found = []
    for number, pixels in enumerate(decoded(chosen, size), 1):
        progress("INT8: images", number, len(chosen), {})
        found += [] if pixels is None else [pixels]
    if not found:
        raise Refused(f"of {len(images)} images none can be decoded, and INT8's ranges are found on images")
    return found


def opened(bundle: Bundle, precision: str, network: bytes, constants: bytes = b"") -> Runner:
    """Open a form of the network, not yet part of a bundle, with the bundle's BiGAN on this CPU."""
    engine = Engine(
        backend="openvino",
        version=runtime_openvino.version(),
        device="cpu",
        precision=precision,
        input_size=bundle.manifest.architecture.input_size,
        features=bundle.manifest.architecture.features,
        bundle_hash=bundle.hash,
        key="",
        blob=to_openvino.build(network, bundle.bigan_onnx, constants),
    )
    return open_engine(engine)


def _calibrated(
    bundle: Bundle, int8: Runner, fp32: Runner, benign: Sequence[Path], progress: Progress
) -> tuple[Manifest, dict[str, float]]:
    """Carry FP32's operating points over to INT8, and say on what share of the images both decide alike."""
    scored = list(_scored(bundle, (int8, fp32), benign, progress))
    if not scored:
        raise Refused(f"of {len(benign)} calibration images none can be decoded")
    ours, theirs = (_joined([pair[k] for pair in scored]) for k in range(2))
    manifest, points, quantiles, agreement = bundle.manifest, {}, {}, {}
    for name in manifest.decisions:
        decision = Decision.from_tensors(name, bundle.tensors())
        own, plain = (
            decision.score(each.reconstruction_loss, each.feature_matching_loss, each.logits)
            for each in (ours, theirs)
        )
        stored = manifest.benign_quantiles["fp32"][name]
        quantiles[name] = replace(stored, score=_ascending(carried(stored.score, plain, own)))
        points[name] = tuple(
            replace(
                point,
                threshold=float(carried([point.threshold], plain, own)[0]),
                class_thresholds=_class_thresholds(point, theirs, ours),
            )
            for point in manifest.operating_points["fp32"][name]
        )
        for point, of_int8 in zip(manifest.operating_points["fp32"][name], points[name], strict=True):
            alike = (own >= of_int8.threshold) == (plain >= point.threshold)
            agreement[f"{name} at PFA {point.pfa:g}"] = float(alike.mean())
    manifest = replace(
        manifest,
        operating_points={**manifest.operating_points, "int8": points},
        benign_quantiles={**manifest.benign_quantiles, "int8": quantiles},
    )
    return manifest, agreement


def carried(
    values: Sequence[float], of: NDArray[np.floating], to: NDArray[np.floating]
) -> NDArray[np.float64]:
    """Carry values over from one set of scores [n] to another of the same images: as many lie above them.

    This is the line of the quantiles against each other; beyond the scores it goes on in parallel. Where the
    images are those that set a threshold, the threshold is so set again; where they are others, it does not
    move for that.
    """
    at, x, y = np.asarray(values, np.float64), np.sort(of).astype(np.float64), np.sort(to).astype(np.float64)
    return np.interp(at, x, y) + (at - np.clip(at, x[0], x[-1]))


def _ascending(values: NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(np.maximum.accumulate(values).tolist())  # rounding may have turned two round


def _class_thresholds(point: StoredPoint, of: Outputs, to: Outputs) -> tuple[float, ...]:
    pairs = zip(point.class_thresholds, sigmoid(of.logits).T, sigmoid(to.logits).T, strict=True)
    return tuple(float(np.clip(carried([value], plain, own)[0], 0, 1)) for value, plain, own in pairs)


def _scored(
    bundle: Bundle, runners: Sequence[Runner], paths: Sequence[Path], progress: Progress
) -> Iterator[tuple[Outputs, ...]]:
    """Give what each runner says of the images, a batch at a time."""
    batch: list[NDArray[np.uint8]] = []
    for number, pixels in enumerate(decoded(paths, bundle.manifest.architecture.input_size), 1):
        batch += [] if pixels is None else [pixels]
        if batch and (len(batch) == BATCH or number == len(paths)):
            yield tuple(runner(np.stack(batch)) for runner in runners)
            batch = []
        progress("INT8: calibration", number, len(paths), {})


def _joined(parts: Sequence[Outputs]) -> Outputs:
    """Put the outputs of successive batches together."""
    return Outputs(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in OUTPUTS})


def _tolerance(found: Parity) -> Tolerance:
    """Say what an engine of this INT8 form may differ by, wherever it runs.

    Losses and scores differ by the noise of quantization, which is the same on every CPU that computes as it
    should; so they are held to what they differ by here, with a margin, and a CPU whose sums overflow fails.
    What the noise may cost is a matter of decisions, and a gate is small: as many may flip as chance flips,
    at any of the operating points, for an engine that agrees on a share AGREEMENT at each. Raises Stopped
    where it flips more here.
    """
    from scipy.stats import binom

    sure = 1 - (1 - SURE) / len(found.flips)  # at all of the points together (Bonferroni)
    flips = float(binom.ppf(sure, found.images, 1 - AGREEMENT)) / found.images
    point, most = max(found.flips.items(), key=lambda item: item[1])
    if most > flips:
        raise Stopped(
            f"INT8 changes {most:.1%} of the decisions on the gate images ({point}), more than {flips:.1%}: "
            "leave the bundle as it is, or quantize it on more images, like those that it was trained on"
        )
    return Tolerance(MARGIN * found.loss_rel_max, MARGIN * max(found.score_max.values()), flips)


def _provenance(
    settings: QuantizeSettings, images: int, benign: int, agreement: Mapping[str, float], found: Parity
) -> dict[str, Any]:
    """Say how the INT8 form was made and what it differs by, for bundle.json."""
    return {
        "images": images,
        "seed": settings.seed,
        "overflow_fix": settings.overflow_fix,
        "calibration": benign,
        "agreement": dict(agreement),
        "loss_rel": found.loss_rel_max,
        "score": max(found.score_max.values()),
        "flips": max(found.flips.values()),
        "cpu": found.cpu,
        "versions": installed(("nncf", "openvino")),
    }
