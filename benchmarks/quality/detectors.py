"""Which detector tells threats from harmless bags best, all on the same features and the same splits."""

import argparse
import hashlib
import sys
from pathlib import Path

from gbad_batch.engine.bundle import Bundle, default_bundle_path
from gbad_batch.engine.synth import SynthSettings
from gbad_batch.engine.system.machine import usable_cores
from gbad_batch.engine.training.settings import Phase2Settings, TrainSettings

from .. import anomalib_environment
from ..archives import default_work_dir, labelled_set
from . import ganomaly, skip_ganomaly
from .comparison import Comparison
from .contest import Contest, open_bundle

POSITIVE = 0.4  # share of the images of the set made here
SEED = 41  # of that set


def options(parser: argparse.ArgumentParser) -> None:
    """Declare what is compared, and how long detectors on images may learn."""
    source_options(parser)
    add = parser.add_argument
    add("--seeds", type=int, default=5, metavar="N", help="of phases II and III")
    add(
        "--ganomaly-epochs",
        type=int,
        default=8,
        metavar="N",
        help="of both GANomalies; 0 leaves them out",
    )
    add("--ganomaly-images", type=int, default=2000, metavar="N", help="benign images at most for them")


def source_options(parser: argparse.ArgumentParser) -> None:
    """Declare where features come from: the network of a bundle, on images that it has not seen."""
    add = parser.add_argument
    add("--model", type=Path, default=default_bundle_path(), metavar="BUNDLE", help="its network is used")
    add("--data", type=Path, metavar="DATASET", help="labelled images, in place of synthetic ones")
    add("--images", type=int, default=12_000, metavar="N", help="synthetic images")
    add("--steps", type=int, default=Phase2Settings().steps, metavar="N", help="of phase II")
    add("--work", type=Path, default=default_work_dir(), metavar="DIR", help="what is done is kept here")


def run(arguments: argparse.Namespace) -> Comparison:
    """Score the calibration and test images with every detector, and judge the scores."""
    contest, source = contest_of(arguments)
    report = Comparison(
        f"Detectors on the same features and splits: {source}; "
        f"{arguments.seeds} seeds of phases II and III on one phase I"
    )
    for name, scores in contest.scores(arguments.work / "scores", arguments.seeds).items():
        report.add_row(name, contest.judge(scores))
    if arguments.ganomaly_epochs:
        _add_image_detectors(report, contest, arguments)
    report.notes.append(_splits(contest))
    return report


def contest_of(arguments: argparse.Namespace) -> tuple[Contest, str]:
    """Return what `source_options` ask for, and say what it is.

    A network tells images that it was trained on apart too well: these are others.
    """
    work, data, steps = arguments.work, arguments.data, arguments.steps
    work.mkdir(parents=True, exist_ok=True)
    bundle = Bundle.read(arguments.model)
    if data is None:
        making = SynthSettings(count=arguments.images, seed=SEED, positive=POSITIVE, workers=usable_cores())
        data = labelled_set(work, making)
    told = hashlib.sha256(f"{bundle.hash} {data.absolute()}".encode()).hexdigest()
    settings = TrainSettings(
        labels=data,
        image_folder=data if data.is_dir() else data.parent,
        out=work / "no-bundle",
        run=work / f"features-{told[:12]}-{steps}",
        demo=True,
        phases=(2,),
        start=arguments.model,
        architecture=bundle.manifest.architecture,
        phase2=Phase2Settings(steps=steps),
    )
    print(f"features in {settings.run}", file=sys.stderr)
    contest = open_bundle(bundle, settings)
    whose = f"{bundle.manifest.name} {bundle.hash[:12]}"
    return contest, f"the network of {whose}, {len(contest.labelled.paths)} images that it has not seen"


def _add_image_detectors(report: Comparison, contest: Contest, arguments: argparse.Namespace) -> None:
    """Add the rows of detectors that see images, not features; GANomaly's, or why there is none."""
    benign = contest.benign[: arguments.ganomaly_images]
    paths = contest.labelled.paths
    learned, judged = ([paths[i] for i in index] for index in (benign, contest.judged))
    work, epochs = ganomaly.Work(arguments.work, learned, judged), arguments.ganomaly_epochs
    learning = f"{ganomaly.PIXELS} pixels, {len(benign)} benign images, {epochs} epochs, one seed"
    report.add_row("skip_ganomaly", contest.judge([skip_ganomaly.scores(work, epochs)]))
    report.notes.append(f"skip_ganomaly: {learning}")
    try:
        report.add_row("ganomaly", contest.judge([ganomaly.scores(work, epochs)]))
        report.notes.append(f"ganomaly: anomalib {anomalib_environment.VERSION}, {learning}")
    except anomalib_environment.Unavailable as reason:
        report.notes.append(f"ganomaly: not run, {reason}")


def _splits(contest: Contest) -> str:
    """Say how many images each split holds."""
    positive = contest.labelled.positive
    parts = [
        f"{name} {int((~positive[index]).sum())} benign + {int(positive[index].sum())}"
        for name, index in vars(contest.splits).items()
    ]
    return f"{', '.join(parts)} with threats; thresholds from calibration, figures from test"
