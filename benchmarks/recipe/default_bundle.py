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
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path

from gbad_batch.engine import Scan, ScanSettings
from gbad_batch.engine.datasets import Labels, read_labels
from gbad_batch.engine.datasets.coco import write_coco
from gbad_batch.engine.datasets.labels import Gathered
from gbad_batch.engine.evaluation import EvaluateSettings, Evaluation, evaluate
from gbad_batch.engine.model.architecture import MAP_MAX, Architecture
from gbad_batch.engine.row import THREATS, threat_names
from gbad_batch.engine.synth import SynthSettings, generator_hash, write_archive
from gbad_batch.engine.system.machine import cpu_model, keep_freed_memory, usable_cores
from gbad_batch.engine.training.drawing import draw_set, gather_set
from gbad_batch.engine.training.mixing import CLASS_SHARES
from gbad_batch.engine.training.run import train
from gbad_batch.engine.training.settings import (
    IMAGENET,
    Augmentation,
    Phase1Settings,
    Phase2Settings,
    Stage,
    TrainSettings,
    image_size,
)
from gbad_batch.engine.training.stopwatch import Stopwatch

from ..quality.projected import IMAGES, projected_figures, write_projected
from ..report import ROOT, Report
from .guards import guard_auroc

SEEN = ("white", "grey")  # looks; the third, vivid, is only in T3
DRAWN = {  # straight to pixels, for training
    # scarce classes are raised only here; calibration and test sets keep SIXray's shares
    "phase1": SynthSettings(24_000, 101, 0.5, looks=SEEN, class_shares=CLASS_SHARES),
    "phase2": SynthSettings(4_000, 102, 0.0, looks=SEEN),
    "validation": SynthSettings(1_000, 104, 0.3, looks=SEEN),
    "calibration": SynthSettings(5_000, 103, 0.0, looks=SEEN),
}
TESTED = {  # archives, which are scanned
    "t1": SynthSettings(8_000, 201, 0.1, looks=SEEN),
    "t2": SynthSettings(4_000, 202, 0.1, looks=SEEN, objects="test"),
    "t3": SynthSettings(1_000, 203, 0.3, looks=("vivid",)),
    "t4": SynthSettings(1_000, 204, 0.3, looks=SEEN, difficulty="hard"),
}
SPLITS = {"phase1": "train", "phase2": "train", "validation": "validation", "calibration": "calibration"}
CARD = "t1"  # the test split, for the card, and for comparisons of detectors on the run's features
TESTS = {
    "t1": "as in training",
    "t2": "threats and clutter never seen",
    "t3": "a look never seen",
    "t4": "threats half covered, or thinner than 8 pixels",
}
ARCHITECTURE = Architecture(backbone="tf_efficientnet_lite0", input_size=384, head=MAP_MAX)
SIZE = ARCHITECTURE.input_size
# windows alone, at the scale of the whole image: a threat is a hundredth or two of its bag, the class map
# looks no further, and a window costs a quarter of an image
PHASE1 = Phase1Settings(
    stages=(Stage(SIZE // 2, 6, 0.5),),
    learning_rate=1e-3,
    weight_decay=0.02,
    localization=1.0,
    watched=512,
    augmentation=Augmentation(scale=0.2, turn=0.5, look=0.8),
)
PHASE2 = Phase2Settings()
T5 = (500, 205)  # bags and seed
DECISIONS = ("gbad", "classes", "combined")
SECONDS = "seconds.json"  # of the working folder: what each step took


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
        "--image-size", type=int, default=SIZE, metavar="PIXELS", help="a side of the network's input"
    )
    parser.add_argument(
        "--model", type=Path, metavar="BUNDLE", help="judge this bundle on the test sets, and train none"
    )


def run(arguments: argparse.Namespace) -> Report:
    """Draw the sets, train, judge; returns the figures of the issue and all decisions beside them."""
    work: Path = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    clock = Stopwatch(work / SECONDS, _told)
    drawn, tested = (_shared(sets, arguments.share) for sets in (DRAWN, TESTED))
    size = image_size(arguments.image_size)
    suffix = "" if size == SIZE else f"_{size}"
    bundle: Path = arguments.model or work / f"bundle{suffix}"
    if not bundle.exists():
        for name, settings in drawn.items():
            draw_set(work / name, settings, SIZE, clock)
        _make_archive(work, CARD, tested[CARD], clock)
        keep_freed_memory()
        settings = _settings(work, bundle, drawn, tested, clock)
        train(_at_size(settings, size, work / f"run{suffix}"), clock)
    judged = {name: _judge(work, bundle, name, tested[name], clock) for name in TESTS}
    found = {name: evaluation for name, (evaluation, _) in judged.items()}
    report = Report(f"The default bundle on sets that it never saw, generator {generator_hash()[:12]}")
    _add_bars(report, found)
    for name in TESTS:
        _add_figures(report, name, found[name])
    _add_real_objects(report, work, bundle)
    report.add("t1.img_s", judged["t1"][1], "img/s")
    report.add("guard_auroc", guard_auroc(work / "t1"), "", at_most=0.60)
    for name, what in TESTS.items():
        counts = found[name].counts
        report.notes.append(f"{name}: {what}; {counts['images']} images, {counts['positive']} with a threat")
    report.notes.append("guard: a logistic regression on colours, image size and foreground share alone")
    report.notes.append(f"minutes, {cpu_model()}: {_minutes(clock.seconds)}")
    return report


def recipe_hash() -> str:
    """Name generator, sets and settings together: SHA-256, hex."""
    told = {
        "generator": generator_hash(),
        "sets": {name: asdict(each) | {"workers": 0} for name, each in (DRAWN | TESTED).items()},
        "settings": [asdict(each) for each in (ARCHITECTURE, PHASE1, PHASE2)],
    }
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _at_size(settings: TrainSettings, size: int, run: Path) -> TrainSettings:
    """Change the input size, and the windows' with it, so that they show as much of an image."""
    stages = tuple(each._replace(size=each.size * size // SIZE) for each in PHASE1.stages)
    return replace(
        settings,
        run=run,
        architecture=replace(ARCHITECTURE, input_size=size),
        phase1=replace(PHASE1, stages=stages),
    )


def _shared(sets: Mapping[str, SynthSettings], share: float) -> dict[str, SynthSettings]:
    return {name: replace(each, count=round(each.count * share)) for name, each in sets.items()}


def _make_archive(work: Path, name: str, settings: SynthSettings, clock: Stopwatch) -> None:
    folder, step = work / name, f"draw {name}"
    if (folder / "synth.json").exists():  # written last
        return
    shutil.rmtree(folder, ignore_errors=True)
    clock(step, 0, settings.count, {})
    making = replace(settings, workers=usable_cores())
    write_archive(folder, making, lambda done: clock(step, done, settings.count, {}))


def _settings(
    work: Path,
    bundle: Path,
    drawn: Mapping[str, SynthSettings],
    tested: Mapping[str, SynthSettings],
    clock: Stopwatch,
) -> TrainSettings:
    table = work / "training.json"
    table.write_bytes(write_coco(_training_labels(work, drawn)))
    counts = ", ".join(f"{name} {each.count}" for name, each in (*drawn.items(), (CARD, tested[CARD])))
    # not those of a training that was killed and goes on
    drawing = sum(seconds for step, seconds in clock.seconds.items() if step.startswith("draw "))
    return TrainSettings(
        labels=table,
        image_folder=work,
        out=bundle,
        run=work / "run",
        name="default",
        demo=True,
        data=(
            f"synthetic X-ray images of `gbad-batch synth` (generator {generator_hash()[:12]}, sets "
            f"{counts}; recipe {recipe_hash()[:12]} of `python -m benchmarks default_bundle`; drawn in "
            f"{drawing / 60:.0f} minutes)"
        ),
        backbone_weights=IMAGENET,
        architecture=ARCHITECTURE,
        phase1=PHASE1,
        phase2=PHASE2,
    )


def _training_labels(work: Path, drawn: Mapping[str, SynthSettings]) -> Labels:
    """Join the sets of all splits."""
    gathered = Gathered()
    for name, split in SPLITS.items():
        gather_set(work / name, drawn[name], SIZE, split, gathered)
    test = read_labels(work / CARD / "boxes.json")
    for k, image in enumerate(test.names):
        path, threats = f"{CARD}/images/{image}", threat_names(test.labels[k])
        gathered.add(path, threats, test.origins[k], split="test", boxes=test.boxes[k])
    return gathered.labels(work)


def _minutes(seconds: Mapping[str, float]) -> str:
    total = sum(seconds.values())
    return ", ".join(f"{step} {took / 60:.1f}" for step, took in [*seconds.items(), ("in all", total)])


def _told(phase: str, done: int, total: int, figures: Mapping[str, float]) -> None:
    if done == total or done % 100 == 0:
        said = ", ".join(f"{name} {value:.3g}" for name, value in figures.items())
        print(f"  {phase}: {done} of {total} {said}", flush=True)


def _scan(images: Path, results: Path, bundle: Path) -> float:
    """Scan a set; returns images a second."""
    settings = ScanSettings(sources=(str(images),), out=results, model=bundle, overwrite=True)
    return Scan(settings).run().images_per_second


def _judge(
    work: Path, bundle: Path, name: str, settings: SynthSettings, clock: Stopwatch
) -> tuple[Evaluation, float]:
    """Scan a test set, drawn where it is missing; returns the figures, and images a second."""
    _make_archive(work, name, settings, clock)
    results = work / f"{name}.parquet"
    clock(f"judge {name}", 0, 1, {})
    speed = _scan(work / name / "images", results, bundle)
    found = evaluate(EvaluateSettings(results, work / name, model=bundle, out=work / f"{name}.figures"))
    clock(f"judge {name}", 1, 1, {})
    return found, speed


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
    report.add("t1_map", t1["map"], "", at_least=0.70)
    report.add("t1_auroc", t1["auroc"], "", at_least=0.92)
    report.add("t1_pd_at_pfa_05", t1["pd_at_pfa_05"], "", at_least=0.72)
    report.add("t1_pfa_measured_05", t1["pfa_measured_05"], "", at_most=0.055)
    report.add("t2_map", t2["map"], "", at_least=0.50)
    report.add("t2_pd_at_pfa_05", t2["pd_at_pfa_05"], "", at_least=0.60)
    report.add("t2_pfa_measured_05", t2["pfa_measured_05"], "", at_most=0.065)


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
