"""Forms of a network in less than FP32, INT8 or bfloat16: operating points of their own, and their judgement.

A form is kept where it decides as FP32 does, on calibration images and on those of the gate.
"""

from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ....export import to_openvino
from ....export.gate import ROUNDING, compare, measure
from ...bundle import DEFAULT_PFA, Bundle
from ...bundle.manifest import OPTIONAL_FILES, Agreement, Manifest, StoredPoint
from ...errors import Refused, Stopped
from ...model.decision import Decision, sigmoid
from ...runtime import (
    ALIKE_UP_TO,
    Engine,
    Outputs,
    Parity,
    Runner,
    concatenate,
    open_engine,
    runtime_openvino,
)
from ...system.machine import installed
from ...system.progress import ProgressCallback
from ..pixels import decoded
from .card import with_section

BATCH = 16  # images; no score depends on it
CHANCE = 0.95  # of a share by chance as small as is accepted, or larger
AGREEMENT = 0.995  # share of the decisions at PFAs up to 5 % that a form must make as FP32 does
MARGIN = 1.5  # another CPU may differ from FP32 by this many times what this CPU differed by


@dataclass(frozen=True)
class Share:
    """How often a form decides as FP32 does, at operating points up to PFA 5 %."""

    what: str  # whose decisions, on which images
    found: float
    least: float  # that is asked for

    @property
    def margin(self) -> float:
        """Return by how much the share is above the one that is asked for."""
        return self.found - self.least


@dataclass(frozen=True)
class Form:
    """A form of a network in lower precision, and how it decides."""

    precision: str
    manifest: Manifest  # with operating points of its own, if there are benign images
    parity: Parity  # on the gate images
    agreement: Mapping[str, float]  # on benign images, by "DECISION at PFA p"
    benign: int  # images
    shares: Sequence[Share]
    files: Mapping[str, bytes] = field(default_factory=dict[str, bytes])  # that it adds to the bundle

    @property
    def agrees(self) -> bool:
        """Whether it decides as FP32 does, often enough."""
        return min(share.margin for share in self.shares) > -ROUNDING

    @property
    def finding(self) -> str:
        """Say where the form decides otherwise most often."""
        share = min(self.shares, key=lambda share: share.margin)
        return (
            f"{share.found:.2%} of the decisions {share.what} in {self.precision.upper()} are those of FP32, "
            f"fewer than {share.least:.2%}"
        )


def judged(
    bundle: Bundle,
    runner: Runner,
    both: tuple[Outputs, Outputs] | None,
    files: Mapping[str, bytes] | None = None,
) -> Form:
    """Give the form of a runner operating points of its own, and compare its decisions with FP32's.

    `both` are its outputs and FP32's for the same benign images; None without any. `files` are those that the
    form adds to the bundle.
    """
    precision = runner.engine.precision
    manifest, agreement, count, shares = bundle.manifest, {}, 0, list[Share]()
    if both is not None:
        manifest, count = _calibrated(bundle, precision, *both), len(both[0].logits)
        differences = compare(replace(bundle, manifest=manifest), precision, *both)
        agreement = {point: 1 - flips for each in differences.values() for point, flips in each.flips.items()}
        shares = [
            Share(f"of {name!r} on benign images", each.agreement, least_on_benign(count))
            for name, each in differences.items()
        ]
    parity = measure(replace(bundle, manifest=manifest), runner)
    least = least_on_gate(bundle, parity.images)
    shares += [
        Share(f"of {name!r} on the gate images", share, least) for name, share in parity.agreement.items()
    ]
    return Form(precision, manifest, parity, agreement, count, shares, files or {})


def with_form(bundle: Bundle, form: Form, how: Mapping[str, Any]) -> Bundle:
    """Add a form to a bundle, in memory.

    `how` says how it was made, for the card. Raises Stopped if it decides otherwise than FP32 too often.
    """
    if not form.agrees:
        raise Stopped(form.finding)
    parity, precision = form.parity, form.precision
    provenance = {
        **how,
        "calibration": form.benign,
        "agreement": dict(form.agreement),
        "gate_agreement": min(parity.agreement.values()),
        "score": max(parity.score_rms.values()),
        "cpu": parity.cpu,
        "versions": installed(("nncf", "openvino")),
    }
    stated = {
        f"tolerance_{precision}": Agreement(
            least_on_gate(bundle, parity.images), MARGIN * provenance["score"]
        )
    }
    manifest = replace(
        form.manifest, **stated, provenance={**form.manifest.provenance, precision: provenance}
    )
    points = manifest.operating_points.get(precision)
    own = [asdict(point) for point in points[manifest.default_decision]] if points else None
    card = with_section(bundle.files["README.md"].decode(errors="replace"), precision, provenance, own)
    return replace(
        bundle, manifest=manifest, files={**bundle.files, **form.files, "README.md": card.encode()}
    )


def keep_form(bundle: Bundle, former: Bundle, precision: str, own: Outputs, plain: Outputs) -> Bundle:
    """Add to `bundle`, in memory, a form that `former` has, which has the same network.

    `own` and `plain` are the outputs of this form and of FP32 for the same benign images, with the losses of
    `bundle`; they give the form operating points of its own. Raises Stopped as `with_form` does.
    """
    files = {name: former.files[name] for name in OPTIONAL_FILES} if precision == "int8" else {}
    network, constants = former.network_int8 if files else (bundle.network_onnx, b"")
    with closing(open_network(bundle, precision, network, constants)) as runner:
        form = judged(bundle, runner, (own, plain), files)
    return with_form(bundle, form, former.manifest.provenance.get(precision, {}))


def least_on_benign(images: int) -> float:
    """Return the share of decisions that must be FP32's: AGREEMENT, but one of few images may differ."""
    return min(AGREEMENT, 1 - 1 / images)


def least_on_gate(bundle: Bundle, images: int) -> float:
    """Return the share of decisions on the gate images that must be FP32's on any machine.

    It is AGREEMENT less what chance explains: of forms that agree so often, and no more, one in twenty has a
    smaller share on so few images. AGREEMENT itself would refuse many better ones, on some machines only.
    """
    from scipy.stats import binom

    points = bundle.manifest.operating_points["fp32"][bundle.manifest.default_decision]
    decisions = images * max(1, sum(point.pfa <= ALIKE_UP_TO for point in points))
    return 1 - max(1.0, float(binom.ppf(CHANCE, decisions, 1 - AGREEMENT))) / decisions


def report(bundle: Bundle, precision: str) -> str:
    """Summarize in one line how often a form of a bundle decides as FP32 does."""
    made = bundle.manifest.provenance[precision]
    name = f"{bundle.manifest.default_decision} at PFA {DEFAULT_PFA:g}"
    words = [f"{precision.upper()} form"]
    if "images" in made:
        words[0] += f" quantized on {made['images']} images"
    if name in made["agreement"]:
        words.append(
            f"decides as FP32 on {made['agreement'][name]:.2%} of {made['calibration']} benign images"
        )
    words.append(f"on {made['gate_agreement']:.2%} of the decisions on the gate images")
    return "; ".join(words)


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
        blob=to_openvino.build(network, bundle.bigan_onnx, constants, precision),
    )
    return open_engine(engine)


def _calibrated(bundle: Bundle, precision: str, own: Outputs, plain: Outputs) -> Manifest:
    """Give a form operating points and quantiles that match FP32's, by both outputs on benign images."""
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
        operating_points={**manifest.operating_points, precision: points},
        benign_quantiles={**manifest.benign_quantiles, precision: quantiles},
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
