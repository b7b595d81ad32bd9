"""Which detector tells threats from harmless bags best, all on the same features and the same splits."""

import argparse
import sys
from pathlib import Path

from gbad_batch.engine.errors import Refused
from gbad_batch.engine.model.architecture import Architecture
from gbad_batch.engine.synth import SynthSettings
from gbad_batch.engine.system.machine import usable_cores
from gbad_batch.engine.training.run import train
from gbad_batch.engine.training.settings import Phase1Settings, Phase2Settings, Stage, TrainSettings

from .. import anomalib_environment
from ..archives import default_work_dir, labelled_set
from . import ganomaly, skip_ganomaly
from .comparison import Comparison
from .contest import Contest, open_run

POSITIVE = 0.4  # share of the images of the set made here
SEED = 41  # of that set
BACKBONE = "regnetx_004"


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
    """Declare where features come from: a finished run, or a set made here."""
    add = parser.add_argument
    add(
        "--run",
        type=Path,
        metavar="DIR",
        help="run folder of `gbad-batch train DATASET`, phases I and II done",
    )
    add("--data", type=Path, metavar="DATASET", help="the data set of that run, named as training did")
    add("--work", type=Path, default=default_work_dir(), metavar="DIR", help="what is done is kept here")
    add("--images", type=int, default=4000, metavar="N", help="without --run: synthetic images")
    add("--pixels", type=int, default=128, metavar="S", help="without --run: a side")
    add("--epochs", type=int, default=6, metavar="N", help="without --run: of phase I")
    add("--steps", type=int, default=Phase2Settings().steps, metavar="N", help="without --run: of phase II")


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
    """Give what `source_options` ask for, and say what it is."""
    arguments.work.mkdir(parents=True, exist_ok=True)
    return _given(arguments) if arguments.run else _own(arguments)


def _given(arguments: argparse.Namespace) -> tuple[Contest, str]:
    if arguments.data is None:
        raise Refused("--run needs --data: a run folder does not hold the images that it was trained on")
    folder = arguments.data if arguments.data.is_dir() else arguments.data.parent
    contest = open_run(arguments.run, arguments.data, folder)
    return contest, f"the run {arguments.run.name} of {len(contest.labelled.paths)} images"


def _own(arguments: argparse.Namespace) -> tuple[Contest, str]:
    """Make a set and train phases I and II on it; what is finished is taken as it is."""
    count, pixels, epochs = arguments.images, arguments.pixels, arguments.epochs
    making = SynthSettings(count=count, seed=SEED, positive=POSITIVE, workers=usable_cores())
    bags = labelled_set(arguments.work, making)
    settings = TrainSettings(
        labels=bags,
        image_folder=bags,
        out=arguments.work / "no-bundle",
        run=arguments.work / f"detectors-{count}-{pixels}-{epochs}-{arguments.steps}",
        demo=True,
        phases=(1, 2),
        architecture=Architecture(backbone=BACKBONE, input_size=pixels),
        phase1=Phase1Settings(stages=(Stage(pixels, epochs),)),
        phase2=Phase2Settings(steps=arguments.steps),
    )
    print(f"training in {settings.run}", file=sys.stderr)
    train(settings)
    said = f"{count} synthetic images, {pixels} pixels, {BACKBONE}, {epochs} epochs, {arguments.steps} steps"
    return open_run(settings.run, bags, bags), said


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
