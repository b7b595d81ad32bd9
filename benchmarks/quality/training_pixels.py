"""What the scores differ by between DALI's pixels, which training sees, and the scan's."""

import argparse
import tempfile
from contextlib import closing
from pathlib import Path

import numpy as np
import numpy.typing as npt

from gbad_batch.engine.bundle import Bundle, default_bundle_path
from gbad_batch.engine.model.decision import Decision
from gbad_batch.engine.runtime import Outputs, open_engine
from gbad_batch.export import engine_for

from ..archives import bags
from ..report import Report

SEED = 78  # not the gate's
Pixels = npt.NDArray[np.uint8]  # [n, S, S, 3]


def options(parser: argparse.ArgumentParser) -> None:
    """Declare how many bags are compared."""
    parser.add_argument("--images", type=int, default=64, metavar="N", help="synthetic bags")


def run(arguments: argparse.Namespace) -> Report:
    """Decode the same files both ways, and score both by the default bundle, FP32 on the CPU.

    At the rim of a picture DALI's filter repeats the edge, where the scan's, as Pillow's, weighs what is
    there: that is reported apart. Scores have the bar that the bundle's gate sets for another engine, the
    means of the losses theirs; the largest difference of a loss has none, for what it does is in the scores.
    """
    bundle = Bundle.read(default_bundle_path())
    tolerance = bundle.manifest.tolerance
    with tempfile.TemporaryDirectory() as scratch:
        paths = bags(Path(scratch, "bags"), arguments.images, SEED)
        size = bundle.manifest.architecture.input_size
        scanned, trained = scan_pixels(paths, size), training_pixels(paths, size)
    with closing(open_engine(engine_for(bundle, device="cpu", precision="fp32"))) as runner:
        ours, theirs = runner(scanned), runner(trained)
    report = Report(f"DALI's pixels against the scan's, {len(paths)} synthetic bags")
    levels = np.abs(scanned.astype(int) - trained)
    report.add("pixels_mean", levels.mean(), "levels", at_most=0.3)
    report.add("pixels_inside_max", levels[:, 1:-1, 1:-1].max(), "levels", at_most=2)
    report.add("pixels_rim_max", levels.max(), "levels")
    _add_losses(report, ours, theirs, tolerance.loss_rel)
    _add_scores(report, bundle, ours, theirs, tolerance.score)
    return report


def scan_pixels(paths: list[Path], size: int) -> Pixels:
    """Decode as a scan does."""
    from gbad_batch.engine.training.pixels import decoded

    found = [pixels for pixels in decoded(paths, size) if pixels is not None]
    if len(found) != len(paths):
        raise RuntimeError(f"{len(paths) - len(found)} of {len(paths)} good pictures were not decoded")
    return np.stack(found)


def training_pixels(paths: list[Path], size: int) -> Pixels:
    """Decode as phase I does, not moved and not normalized; DALI resizes to whole levels."""
    from gbad_batch.engine.training.augment import ImageSettings, training_images

    settings = ImageSettings(size, (0.0,) * 3, (1 / 255,) * 3, None, seed=0)
    _, images = next(iter(training_images(paths, [np.arange(len(paths))], 0, settings)))
    return np.rint(images.permute(0, 2, 3, 1).numpy()).astype(np.uint8)


def _add_losses(report: Report, ours: Outputs, theirs: Outputs, tolerance: float) -> None:
    """Differences of the two losses, relative to the scan's."""
    for name in ("reconstruction_loss", "feature_matching_loss"):
        a, b = getattr(ours, name), getattr(theirs, name)
        difference = np.abs(a - b) / np.abs(a)
        report.add(f"{name}_rel_mean", difference.mean(), at_most=tolerance)
        report.add(f"{name}_rel_max", difference.max())


def _add_scores(report: Report, bundle: Bundle, ours: Outputs, theirs: Outputs, tolerance: float) -> None:
    """Differences of each decision's score, in standard deviations of its benign scores."""
    for name in bundle.manifest.decisions:
        decision = Decision.from_tensors(name, bundle.tensors())
        a, b = (
            decision.score(o.reconstruction_loss, o.feature_matching_loss, o.logits) for o in (ours, theirs)
        )
        difference = np.abs(a - b) / bundle.manifest.benign_score_std[name]
        report.add(f"{name}_score_mean", difference.mean(), "std")
        report.add(f"{name}_score_max", difference.max(), "std", at_most=tolerance)
