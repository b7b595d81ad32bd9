"""The default bundle: frozen synthetic sets, its training, and its figures on sets that it never saw (hours).

Every step is stored in the working folder and not done again: killed at any moment, the same command goes on.
Sets and settings stand here, before any training, and their hash in the bundle's card: a generator that was
tuned until a bundle passes would prove nothing. Training and T1, T2, T4 see two scanners' looks; the third
is kept for T3. T2 shows threats and clutter of families that are in no other set.
"""

import argparse
import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

from PIL import Image

from gbad_batch.engine import Scan, ScanSettings
from gbad_batch.engine.datasets import Box, Labels, read_labels
from gbad_batch.engine.datasets.coco import write_coco
from gbad_batch.engine.datasets.labels import Gathered
from gbad_batch.engine.decode import DecodeLimits, Decoder
from gbad_batch.engine.evaluation import EvaluateSettings, Evaluation, evaluate
from gbad_batch.engine.model.architecture import Architecture
from gbad_batch.engine.row import THREATS, Row, threat_names
from gbad_batch.engine.synth import SynthSettings, generator_hash, write_archive
from gbad_batch.engine.training.run import train
from gbad_batch.engine.training.settings import Phase1Settings, Phase2Settings, Stage, TrainSettings

from ..quality.projected import IMAGES, projected_figures, write_projected
from ..report import ROOT, Report
from .guards import guard_auroc

SEEN = ("white", "grey")  # looks; the third, vivid, is only in T3
SETS = {
    # scarce classes are raised only here; calibration and test sets keep SIXray's shares
    "phase1": SynthSettings(16_000, 101, 0.5, looks=SEEN, class_shares=(0.30, 0.28, 0.28, 0.34, 0.24)),
    "phase2": SynthSettings(12_000, 102, 0.0, looks=SEEN),
    "validation": SynthSettings(1_500, 104, 0.3, looks=SEEN),
    "calibration": SynthSettings(10_000, 103, 0.0, looks=SEEN),
    "t1": SynthSettings(10_000, 201, 0.1, looks=SEEN),
    "t2": SynthSettings(10_000, 202, 0.1, looks=SEEN, objects="test"),
    "t3": SynthSettings(2_000, 203, 0.3, looks=("vivid",)),
    "t4": SynthSettings(2_000, 204, 0.3, looks=SEEN, difficulty="hard"),
}
SPLIT_OF = {
    "phase1": "train",
    "phase2": "train",
    "validation": "validation",
    "calibration": "calibration",
    "t1": "test",  # for the card, and for comparisons of detectors on the run's features
}
TESTS = {
    "t1": "as in training",
    "t2": "threats and clutter never seen",
    "t3": "a look never seen",
    "t4": "threats half covered, or thinner than 8 pixels",
}
GUARD = "phase1"  # what the guard of the generator is fitted on
ARCHITECTURE = Architecture(backbone="regnetx_004")
# windows first, at the scale of the whole image of 256 pixels: a threat is a hundredth or two of its bag;
# with places, which help (`python -m benchmarks boxes`), where windows alone may not
PHASE1 = Phase1Settings(
    stages=(Stage(64, 8, 0.25), Stage(96, 3, 0.375), Stage(128, 8, 0.5), Stage(256, 9)),
    weight_decay=0.02,
    localization=1.0,
    watched=512,
)
PHASE2 = Phase2Settings()
SMALL = "small"  # folder of the copies that phase I reads
T5 = (500, 205)  # bags and seed
DECISIONS = ("gbad", "classes", "combined")


def options(parser: argparse.ArgumentParser) -> None:
    """Add where to work, and how much of it to do."""
    work = ROOT / "runs" / "default_bundle"
    parser.add_argument(
        "--work", type=Path, default=work, metavar="DIR", help="sets, run and bundle lie here"
    )
    parser.add_argument(
        "--share", type=float, default=1.0, metavar="S", help="of the images of each set, for a trial"
    )
    parser.add_argument(
        "--model", type=Path, metavar="BUNDLE", help="judge this bundle on the test sets, and train none"
    )


def run(arguments: argparse.Namespace) -> Report:
    """Make the sets, train, judge; returns the figures of the issue and all decisions beside them."""
    work: Path = arguments.work
    sets = {name: replace(each, count=round(each.count * arguments.share)) for name, each in SETS.items()}
    bundle: Path = arguments.model or work / "bundle"
    if not bundle.exists():
        _make_sets(work, {name: sets[name] for name in SPLIT_OF})
        _train(work, bundle, {name: sets[name].count for name in SPLIT_OF})
    _make_sets(work, {name: sets[name] for name in (GUARD, *TESTS)})
    found = {name: _judge(work, bundle, name) for name in TESTS}
    report = Report(f"The default bundle on sets that it never saw, generator {generator_hash()[:12]}")
    _add_bars(report, found)
    for name in TESTS:
        _add_figures(report, name, found[name])
    _add_real_objects(report, work, bundle)
    guards = guard_auroc(work / GUARD, work / "t1")
    report.add("guard_auroc", guards, "", at_most=0.60)
    for name, what in TESTS.items():
        counts = found[name].counts
        report.notes.append(f"{name}: {what}; {counts['images']} images, {counts['positive']} with a threat")
    report.notes.append("guard: a logistic regression on colours, image size and foreground share alone")
    return report


def recipe_hash() -> str:
    """Name generator, sets and settings together: SHA-256, hex."""
    told = {
        "generator": generator_hash(),
        "sets": {name: asdict(each) | {"workers": 0} for name, each in SETS.items()},
        "settings": [asdict(each) for each in (ARCHITECTURE, PHASE1, PHASE2)],
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _make_sets(work: Path, sets: Mapping[str, SynthSettings]) -> None:
    workers = len(os.sched_getaffinity(0))
    for name, settings in sets.items():
        folder = work / name
        if (folder / "synth.json").exists():  # written last
            continue
        print(f"  {name}: {settings.count} images ...", flush=True)
        shutil.rmtree(folder, ignore_errors=True)
        write_archive(folder, replace(settings, workers=workers))


def _train(work: Path, bundle: Path, counts: Mapping[str, int]) -> None:
    table = work / "training.json"
    table.write_bytes(write_coco(_training_labels(work)))
    settings = TrainSettings(
        labels=table,
        image_folder=work,
        out=bundle,
        run=work / "run",
        name="default",
        demo=True,
        data=(
            f"synthetic X-ray images of `gbad-batch synth` (generator {generator_hash()[:12]}, sets "
            f"{', '.join(f'{name} {number}' for name, number in counts.items())}; recipe "
            f"{recipe_hash()[:12]} of `python -m benchmarks default_bundle`)"
        ),
        architecture=ARCHITECTURE,
        phase1=PHASE1,
        phase2=PHASE2,
    )
    train(settings, _told)


def _training_labels(work: Path) -> Labels:
    """Join the sets of all splits; small copies stand in for training images, read dozens of times."""
    gathered = Gathered()
    for name, split in SPLIT_OF.items():
        labels = read_labels(work / name / "boxes.json")
        names, boxes = [f"{name}/images/{image}" for image in labels.names], labels.boxes
        if split == "train":
            shapes = _write_small(work, name, labels.names)
            names = [f"{SMALL}/{name}/{Path(image).stem}.bmp" for image in labels.names]
            boxes = tuple(map(_shrunk, boxes, shapes))
        for k, image in enumerate(names):
            gathered.add(
                image, threat_names(labels.labels[k]), labels.origins[k], split=split, boxes=boxes[k]
            )
    return gathered.labels(work)


def _write_small(work: Path, name: str, images: Sequence[str]) -> list[tuple[int, int]]:
    """Write the pixels that a scan makes of each image, uncompressed; returns widths and heights before."""
    folder = work / SMALL / name
    folder.mkdir(parents=True, exist_ok=True)
    decoder = Decoder(ARCHITECTURE.input_size, DecodeLimits())

    def shrink(image: str) -> tuple[int, int]:
        source, small = work / name / "images" / image, folder / f"{Path(image).stem}.bmp"
        if not small.exists():
            row = Row(image)
            pixels = decoder(row, source.read_bytes())
            if pixels is None:
                raise ValueError(f"{name}/{image} is {row.status}: {row.error}")
            part = small.with_suffix(".part")  # a kill leaves no half of one
            Image.fromarray(pixels).save(part, "BMP")
            part.rename(small)
        with Image.open(source) as whole:
            return whole.size

    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return list(pool.map(shrink, images))


def _shrunk(boxes: tuple[Box, ...], shape: tuple[int, int]) -> tuple[Box, ...]:
    x, y = (ARCHITECTURE.input_size / length for length in shape)
    return tuple(Box(b.threat, b.x * x, b.y * y, b.width * x, b.height * y) for b in boxes)


def _told(phase: str, done: int, total: int, figures: Mapping[str, float]) -> None:
    if done == total or done % 100 == 0:
        said = ", ".join(f"{name} {value:.3g}" for name, value in figures.items())
        print(f"  {phase}: {done} of {total} {said}", flush=True)


def _scan(images: Path, results: Path, bundle: Path) -> None:
    Scan(ScanSettings(sources=(str(images),), out=results, model=bundle, overwrite=True)).run()


def _judge(work: Path, bundle: Path, name: str) -> Evaluation:
    results = work / f"{name}.parquet"
    _scan(work / name / "images", results, bundle)
    return evaluate(EvaluateSettings(results, work / name, model=bundle, out=work / f"{name}.figures"))


def _add_real_objects(report: Report, work: Path, bundle: Path) -> None:
    """Add T5, real objects in unseen synthetic bags, where there are such objects."""
    real = os.environ.get("GBAD_REAL_DATA")
    if not real:
        report.notes.append("t5: not run, for GBAD_REAL_DATA names no folder of real objects")
        return
    folder, results = work / "t5", work / "t5.parquet"
    if not folder.exists():
        write_projected(folder, Path(real, "gdxray-objects"), *T5)
    _scan(folder / IMAGES, results, bundle)
    for name, figure in projected_figures(folder, results).items():
        if figure.value is not None:
            report.add(f"t5.{name}", figure.value)


def _add_bars(report: Report, found: Mapping[str, Evaluation]) -> None:
    """Add the figures that the bundle is held to, by its default decision."""
    t1, t2 = (found[name].to_json() for name in ("t1", "t2"))
    report.add("t1_map", t1["map"], "", at_least=0.80)
    report.add("t1_auroc", t1["auroc"], "", at_least=0.90)
    report.add("t2_map", t2["map"], "", at_least=0.70)
    report.add("t2_pd_at_pfa_05", t2["pd_at_pfa_05"], "", at_least=0.60)
    report.add("t2_pfa_measured_05", t2["pfa_measured_05"], "")


def _add_figures(report: Report, name: str, evaluation: Evaluation) -> None:
    figures = evaluation.to_json()
    keys = [f"ap.{threat}" for threat in THREATS]
    keys += [
        f"{decision}.{key}"
        for decision in DECISIONS
        for key in ("auroc", "pd_at_pfa_02", "pd_at_pfa_05", "pfa_measured_05")
    ]
    for key in [*(["map"] if name in ("t3", "t4") else []), *keys]:
        if figures.get(key) is not None:
            report.add(f"{name}.{key}", figures[key])
