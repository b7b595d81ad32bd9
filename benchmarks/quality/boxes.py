"""What boxes of threats bring to phase I, as windows and as places, compared with labels of images only."""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from gbad_batch.engine.datasets.coco import write_coco
from gbad_batch.engine.datasets.labels import Gathered
from gbad_batch.engine.evaluation.bootstrap import Bootstrap, with_intervals
from gbad_batch.engine.evaluation.measures import AveragePrecision, Measure, Ranking
from gbad_batch.engine.model.architecture import Architecture
from gbad_batch.engine.row import THREATS, threat_names
from gbad_batch.engine.synth import SynthSettings
from gbad_batch.engine.system.machine import usable_cores
from gbad_batch.engine.training.data import Labelled, load_labelled
from gbad_batch.engine.training.phases.observe import probabilities
from gbad_batch.engine.training.run import train
from gbad_batch.engine.training.settings import Phase1Settings, Stage, TrainSettings

from ..archives import default_work_dir, labelled_set
from .comparison import Comparison, Judged, over_seeds
from .contest import classifier_of, stored

ARMS = {  # windows in the first epochs, weight of the places
    "images": (False, 0.0),
    "windows": (True, 0.0),
    "places": (False, 1.0),
    "windows_and_places": (True, 1.0),
}
PER_WHOLE = 4  # windows of half of each side have as many pixels as one whole image
# images for every one of training, half of them with threats
HELD = {"validation": 0.1, "calibration": 0.02, "test": 0.35}
SEED = 41  # of the pool


@dataclass(frozen=True)
class Size:
    """How much each arm is trained on, and how long."""

    images: int  # with and without threats
    pixels: int  # a side
    windows: int  # epochs on windows of half of each side, of half the pixels
    epochs: int  # on whole images, after them
    backbone: str = "regnetx_004"

    def stages(self, windows: bool) -> tuple[Stage, ...]:
        """Give the stages of an arm: without windows, as many pixels of whole images stand for them."""
        if windows:
            return Stage(self.pixels // 2, self.windows, 0.5), Stage(self.pixels, self.epochs)
        return (Stage(self.pixels, self.epochs + self.windows // PER_WHOLE),)


def options(parser: argparse.ArgumentParser) -> None:
    """Declare how much is trained, how often, and where parts are kept."""
    add = parser.add_argument
    add("--only", choices=ARMS, nargs="*", default=list(ARMS), help="these arms")
    add("--images", type=int, default=4000, metavar="N", help="training images, half of them with threats")
    add("--pixels", type=int, default=128, metavar="S", help="a side")
    add("--windows", type=_windows, default=4, metavar="N", help=f"epochs on them, a multiple of {PER_WHOLE}")
    add("--epochs", type=int, default=4, metavar="N", help="epochs on whole images, after them")
    add("--seeds", type=int, default=2, metavar="N", help="of phase I")
    add("--work", type=Path, default=default_work_dir(), metavar="DIR", help="what is done is kept here")


def _windows(text: str) -> int:
    if not text.isdecimal() or int(text) % PER_WHOLE:
        raise argparse.ArgumentTypeError(f"{text} is no multiple of {PER_WHOLE}: all arms see equal pixels")
    return int(text)


def run(arguments: argparse.Namespace) -> Comparison:
    """Train each arm with each seed, and judge it on test images."""
    size = Size(arguments.images, arguments.pixels, arguments.windows, arguments.epochs)
    arguments.work.mkdir(parents=True, exist_ok=True)
    report = Comparison(
        f"Phase I on {size.images} synthetic images at {size.pixels} pixels, {size.backbone}, seeds: "
        f"{arguments.seeds}; {size.windows} epochs on windows or {size.windows // PER_WHOLE} on whole ones, "
        f"then {size.epochs} on whole ones; AP on test images, half of them with threats"
    )
    labels, pool = _labels(size, arguments.work)
    test = pool.take(np.flatnonzero(np.array(pool.splits) == "test"))
    for arm in arguments.only:
        found = [_scores(arm, seed, size, labels, test, arguments.work) for seed in range(arguments.seeds)]
        report.add_row(arm, _judged(test, found))
    report.notes.append(
        f"{len(test.paths)} test images; in brackets 95 % of resamples of the mean over seeds"
    )
    return report


def _labels(size: Size, work: Path) -> tuple[Path, Labelled]:
    """Write the labels of a pool with the split of each image; images do not depend on each other."""
    count = round(size.images * (1 + sum(HELD.values())))
    pool = labelled_set(work, SynthSettings(count, SEED, 0.5, workers=usable_cores()))
    listed = load_labelled(pool / "boxes.json", pool)
    bounds = np.cumsum([round(size.images * share) for share in HELD.values()])
    names = [*HELD, "train"]
    gathered = Gathered()
    for i, path in enumerate(listed.paths):
        split = names[int(np.searchsorted(bounds, i, "right"))]
        gathered.add(str(path), threat_names(listed.labels[i]), str(pool), split=split, boxes=listed.boxes[i])
    file = work / f"boxes-{size.images}.json"
    file.write_bytes(write_coco(gathered.labels(file)))
    return file, load_labelled(file, pool)


def _scores(arm: str, seed: int, size: Size, labels: Path, test: Labelled, work: Path) -> NDArray[np.float64]:
    """Give the probabilities [n, 5] of the test images by an arm, trained first where that is not done."""
    own = work / f"boxes-{arm}-{seed}-{'-'.join(map(str, astuple(size)))}"
    windows, places = ARMS[arm]
    pool = test.paths[0].parents[1]
    settings = TrainSettings(
        labels=labels,
        image_folder=pool,
        out=own / "no-bundle",
        run=own,
        demo=True,
        seed=seed,
        phases=(1,),
        architecture=Architecture(backbone=size.backbone, input_size=size.pixels),
        phase1=Phase1Settings(stages=size.stages(windows), localization=places),
    )
    return stored(own.with_suffix(".npz"), partial(_trained, settings, test))["probabilities"]


def _trained(settings: TrainSettings, test: Labelled) -> dict[str, NDArray[np.float64]]:
    print(f"training in {settings.run}", file=sys.stderr)
    train(settings)
    model = classifier_of(settings.run, settings.architecture)
    size = settings.architecture.input_size
    return {"probabilities": probabilities(model.network, model, test.paths, size).astype(np.float64)}


def _judged(test: Labelled, found: Sequence[NDArray[np.float64]]) -> dict[str, Judged]:
    """Judge an arm by its probabilities, one array [n, 5] a seed: AP of each class, and their mean."""
    measures: dict[str, Measure] = {
        f"{threat}.{seed}": AveragePrecision(Ranking(test.labels[:, k], each[:, k]))
        for seed, each in enumerate(found)
        for k, threat in enumerate(THREATS)
    }
    seeds = range(len(found))
    means = {threat: [f"{threat}.{seed}" for seed in seeds] for threat in THREATS}
    by_seed = {f"map.{seed}": [f"{threat}.{seed}" for threat in THREATS] for seed in seeds}
    means |= by_seed | {"map": list(measures)}
    intervals = with_intervals(measures, means, test.positive, Bootstrap.by_group(test.groups))
    return {
        name: over_seeds(intervals[name], [intervals[f"{name}.{seed}"] for seed in seeds])
        for name in ("map", *THREATS)
    }
