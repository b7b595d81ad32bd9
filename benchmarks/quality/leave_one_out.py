"""Whether threats of a class that no phase has seen are found: every detector, on x and on pooled C2..C5."""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from gbad_batch.engine.datasets.coco import write_coco
from gbad_batch.engine.datasets.labels import Gathered
from gbad_batch.engine.model.architecture import MAP_MAX, Architecture
from gbad_batch.engine.model.network import normalize
from gbad_batch.engine.row import THREATS, threat_names
from gbad_batch.engine.synth import SynthSettings, generator_hash
from gbad_batch.engine.system.durable import write_whole
from gbad_batch.engine.system.machine import cpu_model, usable_cores
from gbad_batch.engine.training.data import Labelled, load_labelled
from gbad_batch.engine.training.pixels import decoded
from gbad_batch.engine.training.run import train
from gbad_batch.engine.training.settings import (
    IMAGENET,
    Phase1Settings,
    Phase2Settings,
    Stage,
    TrainSettings,
)

from ..archives import default_work_dir, labelled_set
from ..report import ROOT, commit
from .comparison import Comparison, Judged
from .contest import Contest, classifier_of, open_run

RESULTS = ROOT / "benchmarks" / "results" / "leave_one_out"
AT_ONCE = 32  # images
# images of each split for every one of training, benign and with known threats; training takes what is left
BENIGN = {"validation": 0.1, "calibration": 0.5, "test": 0.5, "train": 1.0}
KNOWN = {"validation": 0.1, "test": 0.1, "train": 1.0}
POOL = 4.4  # images, half of them with threats: enough are left without the most frequent class
SEED = 31  # of the pool


@dataclass(frozen=True)
class Size:
    """How much each part is trained on, and how long."""

    images: int  # with threats in training, and as many without
    pixels: int  # a side
    windows: int  # epochs of phase I on windows of half of each side around threats, of half the pixels
    epochs: int  # of phase I on whole images, after them
    steps: int  # of phase II
    seeds: int  # of phases II and III
    backbone: str = "tf_efficientnet_lite0"  # as in the default bundle, with a class map

    @property
    def told(self) -> str:
        """Write it for a heading."""
        return (
            f"{self.images} + {self.images} synthetic images at {self.pixels} pixels, {self.backbone} "
            f"from ImageNet, {self.windows} epochs on windows and {self.epochs} on whole images, "
            f"with places, {self.steps} steps of phase II, {self.seeds} seeds of phases II and III"
        )


def options(parser: argparse.ArgumentParser) -> None:
    """Declare which classes are left out, how much is trained, and where parts are kept."""
    add = parser.add_argument
    add("--class", dest="threat", choices=THREATS, help="only this one; default: each in turn")
    add("--images", type=int, default=2000, metavar="N", help="training images with threats, and without")
    add("--pixels", type=int, default=128, metavar="S", help="a side")
    add("--windows", type=int, default=4, metavar="N", help="epochs of phase I on windows around threats")
    add("--epochs", type=int, default=4, metavar="N", help="epochs of phase I on whole images, after them")
    add("--steps", type=int, default=2000, metavar="N", help="of phase II")
    add("--seeds", type=int, default=3, metavar="N", help="of phases II and III")
    add("--work", type=Path, default=default_work_dir(), metavar="DIR", help="what is half done is kept here")
    add(
        "--results",
        type=Path,
        default=RESULTS,
        metavar="DIR",
        help="what is done is kept here, a file a class",
    )


def run(arguments: argparse.Namespace) -> Comparison:
    """Take or compute the part of each class, and show them in one table."""
    arguments.work.mkdir(parents=True, exist_ok=True)
    arguments.results.mkdir(parents=True, exist_ok=True)
    size = Size(
        arguments.images,
        arguments.pixels,
        arguments.windows,
        arguments.epochs,
        arguments.steps,
        arguments.seeds,
    )
    report = Comparison(f"Threats of a class left out of all training: {size.told}")
    for threat in [arguments.threat] if arguments.threat else THREATS:
        part = part_of(threat, size, arguments.results / f"{threat}.json", arguments.work)
        for name, row in part["rows"].items():
            report.add_row(f"{threat}_{name}", {key: Judged(**value) for key, value in row.items()})
        report.notes.append(
            "{0}: trained on {known_in_training} with known threats; judged on {left_out} that hold it "
            "alone, {benign} benign, {known} with known threats; {1} s on {2}".format(
                threat, part["seconds"], part["cpu"], **part["images"]
            )
        )
    report.notes.append("known_: the same on threats of the other classes, for comparison")
    return report


def part_of(threat: str, size: Size, file: Path, work: Path) -> dict[str, Any]:
    """Give the stored part of a class, computed first where it is missing or of other settings."""
    asked = {"size": asdict(size), "generator": generator_hash()}
    if file.exists() and (part := json.loads(file.read_text())).items() >= asked.items():
        return part
    began = time.monotonic()
    contest, pooled, left_out = _trained(threat, size, work)
    test = contest.splits.test
    images = {
        "known_in_training": int(contest.labelled.positive[contest.splits.train].sum()),
        "left_out": int(left_out[test].sum()),
        "benign": int((~contest.labelled.positive[test]).sum()),
        "known": int((contest.labelled.positive & ~left_out)[test].sum()),
    }
    rows = dict(_rows(contest, pooled, left_out, size.seeds, work / "scores"))
    plain = {name: {key: asdict(each) for key, each in row.items()} for name, row in rows.items()}
    where = {"seconds": round(time.monotonic() - began), "cpu": cpu_model(), "commit": commit()}
    part = {"class": threat, **asked, "images": images, **where, "rows": plain}
    write_whole(file, (json.dumps(part, indent=1) + "\n").encode())
    return part


def _trained(threat: str, size: Size, work: Path) -> tuple[Contest, NDArray[np.float32], NDArray[np.bool_]]:
    """Train without a class; returns the contest, pooled C2..C5 [n, d], what holds the class [n]."""
    making = SynthSettings(round(POOL * size.images), SEED, 0.5, workers=usable_cores())
    pool = labelled_set(work, making)
    own = work / f"without-{threat}-{size.images}-{size.pixels}-{size.windows}-{size.epochs}-{size.steps}"
    own.mkdir(exist_ok=True)
    labels = own / "labels.json"
    _write_labels(labels, threat, load_labelled(pool / "boxes.json", pool), size.images)
    settings = TrainSettings(
        labels=labels,
        image_folder=pool,
        out=own / "no-bundle",
        run=own / "run",
        demo=True,
        phases=(1, 2),
        backbone_weights=IMAGENET,
        architecture=Architecture(backbone=size.backbone, input_size=size.pixels, head=MAP_MAX),
        phase1=Phase1Settings(
            stages=(Stage(size.pixels // 2, size.windows, 0.5), Stage(size.pixels, size.epochs)),
            localization=1.0,
        ),
        phase2=Phase2Settings(steps=size.steps),
    )
    print(f"training in {settings.run}", file=sys.stderr)
    train(settings)
    contest = open_run(settings.run, labels, pool)
    holds = contest.labelled.labels[:, THREATS.index(threat)]
    return contest, _pooled(contest, settings.run, settings.architecture), holds


def _write_labels(file: Path, threat: str, pool: Labelled, images: int) -> None:
    """Deal images without the class into splits; those that hold it and no other go to the test split."""
    own, holds = pool.labels[:, THREATS.index(threat)], pool.labels.sum(axis=1)
    given = dict.fromkeys(np.flatnonzero(own & (holds == 1)).tolist(), "test")
    random = np.random.default_rng((SEED, 1))
    for kind, shares in ((~pool.positive, BENIGN), (pool.positive & ~own, KNOWN)):
        members = iter(random.permutation(np.flatnonzero(kind)).tolist())
        for split, share in shares.items():
            given |= dict.fromkeys(islice(members, round(share * images)), split)
    gathered = Gathered()
    for i, split in sorted(given.items()):
        gathered.add(
            str(pool.paths[i]), threat_names(pool.labels[i]), str(file), split=split, boxes=pool.boxes[i]
        )
    file.write_bytes(write_coco(gathered.labels(file)))


@torch.no_grad()
def _pooled(contest: Contest, run: Path, architecture: Architecture) -> NDArray[np.float32]:
    """Global averages of the backbone's maps C2..C5, side by side [n, d]."""
    model = classifier_of(run, architecture)
    images, parts = decoded(contest.labelled.paths, architecture.input_size), []
    while batch := [image for image in islice(images, AT_ONCE) if image is not None]:
        pixels = torch.from_numpy(np.stack(batch))
        maps = model.network.backbone(normalize(pixels, model.pixel_mean, model.pixel_std))
        parts.append(torch.cat([each.mean((2, 3)) for each in maps], dim=1).numpy())
    return np.concatenate(parts)


def _rows(
    contest: Contest, pooled: NDArray[np.float32], left_out: NDArray[np.bool_], seeds: int, folder: Path
) -> Iterator[tuple[str, Mapping[str, Judged]]]:
    """Judge every detector on x and on pooled maps: benign images against the class and known ones."""
    spaces = {"x": contest, "pooled": replace(contest, x=pooled, digest=f"{contest.digest} pooled")}
    for space, each in spaces.items():
        for name, scores in each.scores(folder, seeds).items():
            benign = ~each.labelled.positive
            row = each.judge(scores, benign | left_out)
            known = each.judge(scores, ~left_out)
            del row["ap"]  # it says more of their number than of the detector
            yield f"{space}_{name}", row | {"known_auroc": known["auroc"], "known_pd_02": known["pd_02"]}
