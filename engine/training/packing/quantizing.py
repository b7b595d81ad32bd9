"""The INT8 form of a bundle: made on training images, judged on calibration images."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, replace
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
from ...model.decision import Decision, sigmoid
from ...runtime import OUTPUTS, Engine, Outputs, Parity, Runner, open_engine, runtime_openvino
from ...system.machine import installed
from ...system.progress import ProgressCallback, silent
from ..pixels import decoded
from ..settings import QuantizeSettings
from .card import with_int8

BATCH = 16  # images; no score depends on it
AGREEMENT = 0.995  # share of decisions that INT8 should make as FP32 does, at an operating point
MARGIN = 1.5  # another CPU may differ from FP32 by this many times what the quantizing CPU differed by
CONFIDENCE = 0.99  # that an engine with exactly that agreement passes a gate as small as the bundle's


def quantize_bundle(
    bundle: Bundle,
    images: Sequence[Path],
    benign: Sequence[Path],
    out: Path,
    settings: QuantizeSettings,
    progress: ProgressCallback = silent,
) -> Bundle:
    """Write a copy of `bundle` with an INT8 form to the new folder `out`.

    `images` are training images, with and without threats. `benign` are calibration images, on which INT8
    gets operating points of its own; without any it uses FP32's. The same images and seed give the same bytes
    on one machine. Raises Refused where no image can be decoded, and Stopped where INT8 decides otherwise
    than FP32 too often.
    """
    check_vacant(out)
    pixels = _sample(images, bundle.manifest.architecture.input_size, settings, progress)
    network, constants = quantize(bundle.network_onnx, pixels, settings.overflow_fix)
    manifest = bundle.manifest
    with ExitStack() as stack:
        int8 = stack.enter_context(closing(open_network(bundle, "int8", network, constants)))
        agreement: dict[str, float] = {}
        if benign:
            fp32 = stack.enter_context(closing(open_network(bundle, "fp32", bundle.network_onnx)))
            manifest, agreement = _calibrated(bundle, int8, fp32, benign, progress)
        parity = measure(replace(bundle, manifest=manifest), int8)
    made = _provenance(settings, len(pixels), len(benign), agreement, parity)
    manifest = replace(
        manifest, tolerance_int8=_tolerance(parity), provenance={**manifest.provenance, "int8": made}
    )
    files = {**bundle.files, **dict(zip(OPTIONAL_FILES, (network, constants), strict=True))}
    files["README.md"] = _card(bundle, manifest).encode()
    return write_bundle(out, manifest.document(), files)


def report(bundle: Bundle) -> str:
    """Summarize in one line how the INT8 form of a bundle was made, and its figures."""
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
    """Draw `count` of the paths, in their order; or all of them if there are fewer."""
    random = np.random.default_rng((seed, 8))
    return [paths[i] for i in np.sort(random.permutation(len(paths))[:count])]


def _sample(
    images: Sequence[Path], size: int, settings: QuantizeSettings, progress: ProgressCallback
) -> list[NDArray[np.uint8]]:
    """Decode the images that the network is quantized on; leaves out those that cannot be decoded."""
    chosen = sample(images, settings.image_count, settings.seed)
    images_decoded = []
    for number, pixels in enumerate(decoded(chosen, size), 1):
        progress("INT8: images", number, len(chosen), {})
        images_decoded += [] if pixels is None else [pixels]
    if not images_decoded:
        raise Refused(
            f"none of {len(images)} images can be decoded, but INT8 is quantized on images: name others"
        )
    return images_decoded


def open_network(bundle: Bundle, precision: str, network: bytes, constants: bytes = b"") -> Runner:
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
    bundle: Bundle, int8: Runner, fp32: Runner, benign: Sequence[Path], progress: ProgressCallback
) -> tuple[Manifest, dict[str, float]]:
    """Give INT8 operating points that match FP32's; returns the share of images on which both agree."""
    scored = list(_scored(bundle, (int8, fp32), benign, progress))
    if not scored:
        raise Refused(
            f"none of {len(benign)} calibration images can be decoded: name a folder of benign images"
        )
    ours, theirs = (_joined([pair[k] for pair in scored]) for k in range(2))
    manifest, points, quantiles, agreement = bundle.manifest, {}, {}, {}
    for name in manifest.decisions:
        decision = Decision.from_tensors(name, bundle.tensors())
        own, plain = (
            decision.score(each.reconstruction_loss, each.feature_matching_loss, each.logits)
            for each in (ours, theirs)
        )
        stored = manifest.benign_quantiles["fp32"][name]
        quantiles[name] = replace(stored, score=_ascending(map_quantiles(stored.score, plain, own)))
        points[name] = tuple(
            replace(
                point,
                threshold=float(map_quantiles([point.threshold], plain, own)[0]),
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


def map_quantiles(
    values: Sequence[float], source: NDArray[np.floating], target: NDArray[np.floating]
) -> NDArray[np.float64]:
    """Map values from one set of scores [n] to another of the same images, so that as many lie above them.

    Quantiles are interpolated linearly; beyond the scores the map has slope 1. On the images that set a
    threshold this sets it again; on other images the threshold does not move with the choice of images.
    """
    at = np.asarray(values, np.float64)
    x, y = np.sort(source).astype(np.float64), np.sort(target).astype(np.float64)
    return np.interp(at, x, y) + (at - np.clip(at, x[0], x[-1]))


def _ascending(values: NDArray[np.float64]) -> tuple[float, ...]:
    return tuple(np.maximum.accumulate(values).tolist())  # rounding may have turned two round


def _class_thresholds(point: StoredPoint, of: Outputs, to: Outputs) -> tuple[float, ...]:
    pairs = zip(point.class_thresholds, sigmoid(of.logits).T, sigmoid(to.logits).T, strict=True)
    return tuple(float(np.clip(map_quantiles([value], plain, own)[0], 0, 1)) for value, plain, own in pairs)


def _scored(
    bundle: Bundle, runners: Sequence[Runner], paths: Sequence[Path], progress: ProgressCallback
) -> Iterator[tuple[Outputs, ...]]:
    """Yield the outputs of every runner for the images, a batch at a time."""
    batch: list[NDArray[np.uint8]] = []
    for number, pixels in enumerate(decoded(paths, bundle.manifest.architecture.input_size), 1):
        batch += [] if pixels is None else [pixels]
        if batch and (len(batch) == BATCH or number == len(paths)):
            yield tuple(runner(np.stack(batch)) for runner in runners)
            batch = []
        progress("INT8: calibration", number, len(paths), {})


def _joined(parts: Sequence[Outputs]) -> Outputs:
    """Concatenate the outputs of successive batches."""
    return Outputs(**{name: np.concatenate([getattr(part, name) for part in parts]) for name in OUTPUTS})


def _tolerance(parity: Parity) -> Tolerance:
    """Return how much an engine of this INT8 form may differ from FP32, on any machine.

    Losses and scores differ by the noise of quantization, which is the same on every CPU that computes
    correctly; so they are bounded by what they differ by here, with a margin, and a CPU whose sums overflow
    fails. Decisions bound what the noise may cost, and a gate is small: as many may flip as chance flips, at
    any of the operating points, for an engine that agrees on a share AGREEMENT at each. Raises Stopped where
    more flip here.
    """
    from scipy.stats import binom

    sure = 1 - (1 - CONFIDENCE) / len(parity.flips)  # jointly at all points (Bonferroni)
    flips = float(binom.ppf(sure, parity.images, 1 - AGREEMENT)) / parity.images
    point, most = max(parity.flips.items(), key=lambda item: item[1])
    if most > flips:
        raise Stopped(
            f"INT8 changes {most:.1%} of the decisions on the gate images ({point}), more than {flips:.1%}: "
            "keep the bundle as it is, or quantize it on more images like those that it was trained on"
        )
    return Tolerance(MARGIN * parity.loss_rel_max, MARGIN * max(parity.score_max.values()), flips)


def _provenance(
    settings: QuantizeSettings, images: int, benign: int, agreement: Mapping[str, float], parity: Parity
) -> dict[str, Any]:
    """Return how the INT8 form was made and how much it differs, for bundle.json."""
    return {
        "images": images,
        "seed": settings.seed,
        "overflow_fix": settings.overflow_fix,
        "calibration": benign,
        "agreement": dict(agreement),
        "loss_rel": parity.loss_rel_max,
        "score": max(parity.score_max.values()),
        "flips": max(parity.flips.values()),
        "cpu": parity.cpu,
        "versions": installed(("nncf", "openvino")),
    }
