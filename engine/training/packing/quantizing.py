"""The INT8 form of a bundle: made on training images, judged on calibration images."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....export import to_openvino
from ....export.gate import ROUNDING, compare, measure
from ....export.to_int8 import DEPTHWISE, PROJECTIONS, quantize
from ...bundle import DEFAULT_PFA, Bundle, check_vacant, write_bundle
from ...bundle.manifest import OPTIONAL_FILES, Agreement, Manifest, StoredPoint
from ...errors import Refused, Stopped
from ...model.decision import Decision, sigmoid
from ...runtime import Engine, Outputs, Parity, Runner, concatenate, open_engine, runtime_openvino
from ...system.machine import installed
from ...system.progress import ProgressCallback, silent
from ..pixels import decoded
from ..settings import QuantizeSettings
from .card import with_int8

log = logging.getLogger(__name__)

BATCH = 16  # images; no score depends on it
# parts of the backbone that stay FP32, each form slower and closer to FP32 than the one before
FORMS = ((), (DEPTHWISE,), (PROJECTIONS,), (DEPTHWISE, PROJECTIONS))
AGREEMENT = 0.995  # share of the decisions at PFAs up to 5 % that an INT8 form must make as FP32 does
MARGIN = 1.5  # another CPU may differ from FP32 by this many times what the quantizing CPU differed by


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
    with closing(open_network(bundle, "fp32", bundle.network_onnx)) as fp32:
        plain = score_images(bundle, fp32, benign, progress) if benign else None
    finding = ""
    for in_fp32 in FORMS:
        files = quantize(bundle.network_onnx, pixels, settings.overflow_fix, in_fp32)
        with closing(open_network(bundle, "int8", *files)) as int8:
            both = (score_images(bundle, int8, benign, progress), plain) if plain else None
            made = _judged(bundle, files, int8, both)
        if made.worst > -ROUNDING:
            how = {"images": len(pixels), "seed": settings.seed, "overflow_fix": settings.overflow_fix}
            return _written(bundle, out, made, how | {"in_fp32": list(in_fp32)})
        finding = made.finding
        log.info("with %s in FP32 %s", " and ".join(in_fp32) or "nothing", finding)
    raise Stopped(
        f"{finding}: keep the bundle as it is, or quantize it on more images like those that it was "
        "trained on"
    )


def keep_int8(bundle: Bundle, former: Bundle, out: Path, own: Outputs, plain: Outputs) -> Bundle:
    """Write a copy of `bundle` with the INT8 form of `former`, which has the same network, to the new `out`.

    `own` and `plain` are the outputs of the INT8 and the FP32 form for the same benign images, with the
    losses of `bundle`; they give INT8 operating points of its own. Raises Stopped as `quantize_bundle` does.
    """
    files = former.network_int8
    with closing(open_network(bundle, "int8", *files)) as int8:
        made = _judged(bundle, files, int8, (own, plain))
    if made.worst <= -ROUNDING:
        raise Stopped(made.finding)
    return _written(bundle, out, made, former.manifest.provenance.get("int8", {}))


@dataclass(frozen=True)
class _Share:
    """How often an INT8 form decides as FP32 does, at operating points up to PFA 5 %."""

    what: str  # whose decisions, on which images
    found: float
    images: int

    @property
    def margin(self) -> float:
        """Return by how much the share is above the one that is needed."""
        return self.found - needed(self.images)


@dataclass(frozen=True)
class _Form:
    """An INT8 form of a network, and how it decides."""

    files: tuple[bytes, bytes]  # XML and constants
    manifest: Manifest  # with operating points of its own, if there are benign images
    parity: Parity  # on the gate images
    agreement: Mapping[str, float]  # on benign images, by "DECISION at PFA p"
    benign: int  # images
    shares: Sequence[_Share]

    @property
    def worst(self) -> float:
        """Return the smallest margin; below zero, the form decides otherwise too often."""
        return min(share.margin for share in self.shares)

    @property
    def finding(self) -> str:
        """Say where the form decides otherwise most often."""
        share = min(self.shares, key=lambda share: share.margin)
        return (
            f"{share.found:.2%} of the decisions {share.what} in INT8 are those of FP32, fewer than "
            f"{needed(share.images):.2%}"
        )


def _judged(
    bundle: Bundle, files: tuple[bytes, bytes], int8: Runner, both: tuple[Outputs, Outputs] | None
) -> _Form:
    """Give a form operating points of its own, and compare its decisions with FP32's.

    `both` are its outputs and FP32's for the same benign images; None without any.
    """
    manifest, agreement, count, shares = bundle.manifest, {}, 0, list[_Share]()
    if both is not None:
        manifest, count = _calibrated(bundle, *both), len(both[0].logits)
        differences = compare(replace(bundle, manifest=manifest), "int8", *both)
        agreement = {point: 1 - flips for each in differences.values() for point, flips in each.flips.items()}
        shares = [
            _Share(f"of {name!r} on benign images", each.agreement, count)
            for name, each in differences.items()
        ]
    parity = measure(replace(bundle, manifest=manifest), int8)
    shares += [
        _Share(f"of {name!r} on the gate images", share, parity.images)
        for name, share in parity.agreement.items()
    ]
    return _Form(files, manifest, parity, agreement, count, shares)


def _written(bundle: Bundle, out: Path, made: _Form, how: Mapping[str, Any]) -> Bundle:
    """Write the bundle with a form; `how` says how that was quantized."""
    provenance = {**how, **_provenance(made)}
    tolerance = Agreement(needed(made.parity.images), MARGIN * max(made.parity.score_rms.values()))
    manifest = replace(
        made.manifest,
        tolerance_int8=tolerance,
        provenance={**made.manifest.provenance, "int8": provenance},
    )
    files = {**bundle.files, **dict(zip(OPTIONAL_FILES, made.files, strict=True))}
    files["README.md"] = _card(bundle, manifest).encode()
    return write_bundle(out, manifest.document(), files)


def needed(images: int) -> float:
    """Return the share of decisions that must be FP32's: AGREEMENT, but one of few images may differ."""
    return min(AGREEMENT, 1 - 1 / images)


def report(bundle: Bundle) -> str:
    """Summarize in one line how the INT8 form of a bundle was made, and how often it decides as FP32."""
    made = bundle.manifest.provenance["int8"]
    name = f"{bundle.manifest.default_decision} at PFA {DEFAULT_PFA:g}"
    words = [f"INT8 form quantized on {made['images']} images"]
    if name in made["agreement"]:
        words.append(
            f"decides as FP32 on {made['agreement'][name]:.2%} of {made['calibration']} benign images"
        )
    words.append(f"on {made['gate_agreement']:.2%} of the decisions on the gate images")
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


def _calibrated(bundle: Bundle, own: Outputs, plain: Outputs) -> Manifest:
    """Give INT8 operating points and quantiles that match FP32's, by both outputs on benign images."""
    manifest, points, quantiles = bundle.manifest, {}, {}
    for name in manifest.decisions:
        decision = Decision.from_tensors(name, bundle.tensors())
        ours, theirs = (
            decision.score(each.reconstruction_loss, each.feature_matching_loss, each.logits)
            for each in (own, plain)
        )
        stored = manifest.benign_quantiles["fp32"][name]
        quantiles[name] = replace(stored, score=_ascending(map_quantiles(stored.score, theirs, ours)))
        points[name] = tuple(
            replace(
                point,
                threshold=float(map_quantiles([point.threshold], theirs, ours)[0]),
                class_thresholds=_class_thresholds(point, plain, own),
            )
            for point in manifest.operating_points["fp32"][name]
        )
    return replace(
        manifest,
        operating_points={**manifest.operating_points, "int8": points},
        benign_quantiles={**manifest.benign_quantiles, "int8": quantiles},
    )


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


def score_images(
    bundle: Bundle, runner: Runner, paths: Sequence[Path], progress: ProgressCallback
) -> Outputs:
    """Return the outputs of a runner for the images that can be decoded; raises Refused if there are none."""
    batch: list[NDArray[np.uint8]] = []
    parts: list[Outputs] = []
    for number, pixels in enumerate(decoded(paths, bundle.manifest.architecture.input_size), 1):
        batch += [] if pixels is None else [pixels]
        if batch and (len(batch) == BATCH or number == len(paths)):
            parts.append(runner(np.stack(batch)))
            batch = []
        progress(f"{runner.engine.precision.upper()}: calibration", number, len(paths), {})
    if not parts:
        raise Refused(
            f"none of {len(paths)} calibration images can be decoded: name a folder of benign images"
        )
    return concatenate(parts)


def _provenance(made: _Form) -> dict[str, Any]:
    """Return how much the INT8 form differs, for bundle.json."""
    parity = made.parity
    return {
        "calibration": made.benign,
        "agreement": dict(made.agreement),
        "gate_agreement": min(parity.agreement.values()),
        "score": max(parity.score_rms.values()),
        "cpu": parity.cpu,
        "versions": installed(("nncf", "openvino")),
    }
