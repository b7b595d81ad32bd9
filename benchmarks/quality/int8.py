"""What INT8 costs and gives for each overflow fix: features, decisions, mAP, size and img/s against FP32."""

import argparse
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gbad_batch.engine.bundle import DEFAULT_PFA, Bundle, default_bundle_path
from gbad_batch.engine.datasets import find_images
from gbad_batch.engine.evaluation.measures import AveragePrecision, Ranking
from gbad_batch.engine.model.calibration import threshold_at
from gbad_batch.engine.model.decision import Decision
from gbad_batch.engine.system.machine import cpu_flags
from gbad_batch.engine.training.data import load_labelled
from gbad_batch.engine.training.packing.quantizing import sample
from gbad_batch.engine.training.pixels import decoded
from gbad_batch.export.to_int8 import OVERFLOW_FIXES, quantize

from ..archives import bags
from ..report import ROOT, Report

SEED = 31
VNNI = {"avx512_vnni", "avx_vnni"}
Pixels = npt.NDArray[np.uint8]
Flags = npt.NDArray[np.bool_]


def options(parser: argparse.ArgumentParser) -> None:
    """Declare which model, and on which images it is quantized and judged."""
    parser.add_argument("--model", type=Path, default=default_bundle_path(), metavar="BUNDLE")
    parser.add_argument("--images", type=Path, metavar="DIR", help="default: synthetic bags")
    parser.add_argument(
        "--labels", type=Path, metavar="FILE", help="of the images: mAP, thresholds on benign ones"
    )
    parser.add_argument("--quantized-on", type=int, default=300, metavar="N", help="images for the ranges")
    parser.add_argument("--judged-on", type=int, default=1000, metavar="N", help="other images, at most")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="of the interleaved timing")
    parser.add_argument("--fixes", nargs="+", choices=OVERFLOW_FIXES, default=list(OVERFLOW_FIXES))


@dataclass(frozen=True)
class Judged:
    """Images that the forms are compared on, and what they hold."""

    pixels: Pixels  # [n, S, S, 3]
    labels: Flags | None  # [n, 5]

    @property
    def benign(self) -> Flags | None:
        """Tell which hold no threat, [n]; None where nobody says."""
        return None if self.labels is None else ~np.any(self.labels, axis=1)


def run(arguments: argparse.Namespace) -> Report:
    """Quantize once for each fix, then score the same images by every form.

    Each is scored with this CPU's instructions and, where it has VNNI, again with those of AVX2 alone.
    """
    bundle = Bundle.read(arguments.model)
    report = Report(f"INT8 of {bundle.manifest.name} against its FP32")
    with tempfile.TemporaryDirectory() as scratch:
        sampled, judged = _images(bundle, arguments, Path(scratch))
        np.save(Path(scratch, "pixels.npy"), judged.pixels)
        report.add("quantized_on", len(sampled), "images")
        report.add("judged_on", len(judged.pixels), "images")
        for fix in arguments.fixes:
            xml, constants = quantize(bundle.network_onnx, sampled, fix)
            Path(scratch, f"{fix}.xml").write_bytes(xml)
            Path(scratch, f"{fix}.bin").write_bytes(constants)
            report.add(f"{fix}_size_mb", (len(xml) + len(constants)) / 1e6, "MB")
        report.add("fp32_size_mb", len(bundle.network_onnx) / 1e6, "MB")
        for name, limit in {"": None, "avx2_": "AVX2"}.items():
            if limit is None or VNNI & cpu_flags():
                _scored(Path(scratch), arguments, limit)
                _add(report, name, bundle, judged, Path(scratch), arguments.fixes)
    report.notes.append(
        "flips: by FP32's threshold at PFA 5 %; agreement: by thresholds of each one's own benign images"
    )
    return report


def _images(bundle: Bundle, arguments: argparse.Namespace, scratch: Path) -> tuple[list[Pixels], Judged]:
    """Deal the images into those that the ranges are found on and those that the forms are judged on."""
    labels = None
    if arguments.labels:
        labelled = load_labelled(arguments.labels, arguments.images)
        paths, labels = list(labelled.paths), labelled.labels
    elif arguments.images:
        paths = find_images(arguments.images)
    else:
        paths = bags(scratch / "bags", arguments.quantized_on + arguments.judged_on, SEED)
    sampled = set(sample(paths, arguments.quantized_on, SEED))
    others = sample([path for path in paths if path not in sampled], arguments.judged_on, SEED)
    size = bundle.manifest.architecture.input_size
    found = list(decoded(others, size))
    whole = np.array([pixels is not None for pixels in found])
    if labels is not None:
        position = {path: k for k, path in enumerate(paths)}
        labels = labels[[position[path] for path in others]][whole]
    pixels = np.stack([each for each in found if each is not None])
    return [each for each in decoded(sorted(sampled), size) if each is not None], Judged(pixels, labels)


def _scored(scratch: Path, arguments: argparse.Namespace, limit: str | None) -> None:
    """Run every form in a process of its own, whose instruction sets may be limited."""
    words = [str(arguments.model), str(scratch), str(arguments.rounds), *arguments.fixes]
    environment = {**os.environ, **({"ONEDNN_MAX_CPU_ISA": limit} if limit else {})}
    subprocess.run(
        [sys.executable, "-m", f"{__package__}.int8_worker", *words], cwd=ROOT, env=environment, check=True
    )


def _add(report: Report, name: str, bundle: Bundle, judged: Judged, scratch: Path, fixes: list[str]) -> None:
    """Add the figures of every form with one set of instructions."""
    forms = {form: np.load(scratch / f"{form}.npz") for form in ("fp32", *fixes)}
    plain = forms["fp32"]
    for form, found in forms.items():
        report.add(f"{name}{form}_img_s", found["img_s"], "img/s")
        if judged.labels is not None:
            report.add(f"{name}{form}_map", _map(judged.labels, found["logits"]))
        if form == "fp32":
            continue
        difference = np.linalg.norm(found["x"] - plain["x"], axis=1) / np.linalg.norm(plain["x"], axis=1)
        report.add(f"{name}{form}_features_rel", difference.mean())
        for decision in bundle.manifest.decisions:
            ours, theirs = (_scores(bundle, decision, each) for each in (found, plain))
            spread = bundle.manifest.benign_score_std[decision]
            report.add(f"{name}{form}_{decision}_score_mean", np.abs(ours - theirs).mean() / spread, "std")
            threshold = _threshold(bundle, decision)
            report.add(
                f"{name}{form}_{decision}_flips", ((ours >= threshold) != (theirs >= threshold)).mean()
            )
            if judged.benign is not None:
                alarms = [each >= threshold_at(each[judged.benign], DEFAULT_PFA) for each in (ours, theirs)]
                report.add(f"{name}{form}_{decision}_agreement", (alarms[0] == alarms[1]).mean())


def _scores(bundle: Bundle, decision: str, found: "np.lib.npyio.NpzFile") -> npt.NDArray[np.float64]:
    losses = found["reconstruction_loss"], found["feature_matching_loss"]
    return Decision.from_tensors(decision, bundle.tensors()).score(*losses, found["logits"])


def _threshold(bundle: Bundle, decision: str) -> float:
    points = bundle.manifest.operating_points["fp32"][decision]
    return min(points, key=lambda point: abs(point.pfa - DEFAULT_PFA)).threshold


def _map(labels: Flags, logits: npt.NDArray[np.float32]) -> float:
    """Mean average precision over the classes that some image holds."""
    found = [
        AveragePrecision(Ranking(labels[:, k], logits[:, k].astype(np.float64))).value()
        for k in range(labels.shape[1])
        if labels[:, k].any()
    ]
    return float(np.mean(found)) if found else np.nan
