"""What a bundle finds in real bags, by decision, class and kind of bag; needs GBAD_REAL_DATA."""

import argparse
import csv
import os
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from gbad_batch.engine import Scan, ScanSettings
from gbad_batch.engine.bundle import DEFAULT_PFA, Bundle, default_bundle_path, operating_point
from gbad_batch.engine.errors import Refused
from gbad_batch.engine.evaluation.bootstrap import Bootstrap, Figures, with_intervals
from gbad_batch.engine.evaluation.figures import ranked
from gbad_batch.engine.evaluation.measures import Auroc, DetectionAt, Flags, Floats, Measure, Ranking, Share
from gbad_batch.engine.evaluation.rows import decision_scores, read_results
from gbad_batch.engine.row import THREATS

from ..report import Report

REFERENCE = "sixray"  # the negatives whose 5 % set the threshold that decisions are compared at
# kinds of negatives, by the column `source` of the list
NEGATIVES = {REFERENCE: "sixray-neg", "passenger": "harjot-neg", "pixray": "pixray"}
FEWEST = 10  # images of a class, below which it has no figure


class RealBags(NamedTuple):
    """The images of a list, in its order."""

    paths: tuple[Path, ...]
    labels: Flags  # [n, 5]
    sources: NDArray[np.str_]  # [n]
    groups: NDArray[np.str_]  # [n] look-alikes, drawn together

    @property
    def positive(self) -> Flags:
        """Tell which images hold a threat, [n]."""
        return np.any(self.labels, axis=1)

    def negatives(self, kind: str) -> Flags:
        """Tell which images are negatives of a kind, [n]."""
        return ~self.positive & (self.sources == NEGATIVES[kind])


class Scored(NamedTuple):
    """A bundle's scores of these images; NaN for one that could not be scored."""

    scores: Mapping[str, Floats]  # [n] of each decision
    thresholds: Mapping[str, float]  # of each decision, where 5 % of benign bags shall alarm
    probabilities: Floats  # [n, 5]


def options(parser: argparse.ArgumentParser) -> None:
    """Name the bundle."""
    parser.add_argument("--model", type=Path, metavar="BUNDLE", help="in the place of the default bundle")


def run(arguments: argparse.Namespace) -> Report:
    """Scan the test list and report every figure with its interval."""
    folder = real_folder()
    model = arguments.model or default_bundle_path()
    bags = read_bags(folder, "test")
    bundle = Bundle.read(model)
    report = Report(f"{bundle.manifest.name} {bundle.hash[:12]} on {len(bags.paths)} real pictures")
    figures = real_figures(bags, scored(model, bags))
    report.facts["bundle"] = bundle.hash
    report.facts["images"] = {
        "positive": int(bags.positive.sum()),
        **{kind: int(bags.negatives(kind).sum()) for kind in NEGATIVES},
    }
    add_figures(report, figures)
    report.notes.append("95 % intervals by bag; `_at_05`: where 5 % of SIXray negatives alarm")
    report.notes.append("SIXray's positives and negatives differ in scanner and cropping: see `within`")
    return report


def real_folder() -> Path:
    """Return the folder real-bags of GBAD_REAL_DATA; raises Refused without it."""
    named = os.environ.get("GBAD_REAL_DATA")
    if not named or not Path(named, "real-bags").is_dir():
        raise Refused("real bags are judged here: let GBAD_REAL_DATA name the folder that holds real-bags")
    return Path(named, "real-bags")


def read_bags(folder: Path, part: str) -> RealBags:
    """Read FOLDER/PART.csv, whose images lie in FOLDER/PART."""
    with (folder / f"{part}.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    return RealBags(
        tuple(folder / part / line["path"] for line in lines),
        np.array([[line[threat] == "1" for threat in THREATS] for line in lines]),
        np.array([line["source"] for line in lines]),
        np.array([line["group"] for line in lines]),
    )


def scored(model: Path, bags: RealBags) -> Scored:
    """Scan the images with a bundle, as a user would, and compute the scores of all its decisions."""
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch, "results.parquet")
        Scan(ScanSettings(sources=[str(path) for path in bags.paths], out=out, model=model)).run()
        results = read_results(out)
    bundle = Bundle.read(model)
    position = {Path(uri).name: k for k, uri in enumerate(results.uris)}
    results = results.take(np.array([position[path.name] for path in bags.paths]))
    scores = decision_scores(results, bundle)
    precision = results.footer["precision"]
    thresholds = {name: operating_point(bundle, precision, name).threshold for name in scores}
    return Scored(scores, thresholds, results.probabilities)


def real_figures(bags: RealBags, of: Scored) -> Figures:
    """Return every figure with its interval.

    For each decision: `pfa_KIND`, the alarms on each kind of negative at the shipped operating point, and
    `pd` there; at the threshold that alarms on 5 % of SIXray's negatives `pd_at_05`, also by class, and
    `pfa_at_05_KIND`; `auroc_KIND`, all positives against negatives of a kind. `within.gun` and so on rank
    the positives alone by their class scores, where the look of negatives cannot help.
    """
    figures: Figures = {}
    for name, scores in of.scores.items():
        told = _decision_figures(bags, ranked(scores), of.thresholds[name])
        figures |= {f"{name}.{key}": figure for key, figure in told.items()}
    within = {
        f"within.{threat}": Auroc(Ranking(bags.labels[bags.positive, k], ranked(column[bags.positive])))
        for k, (threat, column) in enumerate(zip(THREATS, of.probabilities.T, strict=True))
        if bags.labels[:, k].sum() >= FEWEST
    }
    return figures | _drawn(bags, bags.positive, within, {"within": list(within)})


def _decision_figures(bags: RealBags, scores: Floats, threshold: float) -> Figures:
    alarm, positive = scores >= threshold, bags.positive
    shares = {f"pfa_{kind}": Share(alarm, bags.negatives(kind)) for kind in NEGATIVES}
    figures = _drawn(bags, np.ones_like(positive), {"pd": Share(alarm, positive), **shares})
    reference = bags.negatives(REFERENCE)
    # what is compared with the reference, at the threshold that its 5 % set
    compared = {"pd_at_05": positive}
    compared |= {
        f"pd_at_05.{threat}": bags.labels[:, k]
        for k, threat in enumerate(THREATS)
        if bags.labels[:, k].sum() >= FEWEST
    }
    compared |= {f"pfa_at_05_{kind}": bags.negatives(kind) for kind in NEGATIVES if kind != REFERENCE}
    for name, kind in compared.items():
        held = reference | kind
        at = DetectionAt(Ranking(kind[held], scores[held]), DEFAULT_PFA)
        figures |= _drawn(bags, held, {name: at}, apart=kind)
    for kind in NEGATIVES:
        held = positive | bags.negatives(kind)
        area = Auroc(Ranking(positive[held], scores[held]))
        figures |= _drawn(bags, held, {f"auroc_{kind}": area})
    return figures


def _drawn(
    bags: RealBags,
    held: Flags,
    measures: Mapping[str, Measure],
    means: Mapping[str, Sequence[str]] | None = None,
    apart: Flags | None = None,
) -> Figures:
    """Return measures of the images held, with intervals; groups of the kind `apart` are drawn apart."""
    kind = bags.positive if apart is None else apart
    return with_intervals(measures, means or {}, kind[held], Bootstrap.by_group(bags.groups[held].tolist()))


def add_figures(report: Report, figures: Figures, prefix: str = "") -> None:
    """Add every figure that is defined, and its interval to the facts."""
    intervals = report.facts.setdefault("intervals", {})
    for name, figure in figures.items():
        if figure.value is None:
            report.not_run[prefix + name] = "not defined on these images"
            continue
        report.add(prefix + name, figure.value)
        intervals[prefix + name] = [figure.low, figure.high]
