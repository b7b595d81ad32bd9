"""How alike synthetic and real pictures are: shapes of threats, colours, edges, and what tells them apart.

A `_ks` is a Kolmogorov-Smirnov distance, the largest difference of two cumulative distributions. A `_ratio`
is the distance of synthetic from real pictures over that of two random halves of the real ones: colours by
the Wasserstein distance of each channel of CIELAB, edges by the log power of spatial frequencies.
"""

import argparse
import csv
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import ks_2samp
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import PredefinedSplit, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from gbad_batch.engine.errors import Refused
from gbad_batch.engine.row import THREATS

from ..report import Report
from .appearance import Appearance, appearance_of
from .outlines import real_outlines, shapes_by_class, synthetic_outlines

SHAPE_BAR, COLOUR_BAR, PATCH_BAR, GUARD_BAR = 0.2, 1.5, 0.90, 0.60
MOST = 300  # synthetic pictures that are read
LEAST = 4  # pictures of either kind
GUARDED = 40  # positive and benign pictures each that the guard needs
SPLITS = 20  # random halves of the real pictures
QUANTILES = np.linspace(0.0025, 0.9975, 200)  # that the Wasserstein distance is summed over
Floats = NDArray[np.floating]
Pictures = Sequence[Appearance]


def options(parser: argparse.ArgumentParser) -> None:
    """Declare what is compared."""
    add = parser.add_argument
    add("out", type=Path, metavar="OUT", help="a folder that `gbad-batch synth` wrote")
    add("real", type=Path, metavar="REAL", help="a folder of real JPEGs")
    add("masks", type=Path, metavar="MASKS", help="outlines of real threats: one-bit NAME_Class_NN.png")


def run(arguments: argparse.Namespace) -> Report:
    """Compare a synthetic archive with real pictures and with the outlines of real threats.

    Outlines lie in the crop of their bag. Raises Refused where one of the folders holds nothing to compare.
    """
    rng = np.random.default_rng(0)
    out, report = arguments.out, Report("Likeness of synthetic pictures to real ones")
    paths = _pictures(out / "images")[:MOST]
    ours = [appearance_of(path, rng) for path in paths]
    theirs = [appearance_of(path, rng) for path in _pictures(arguments.real)]
    _add_shapes(report, out / "boxes.json", arguments.masks)
    for grey, belt in ((False, "white_belt"), (True, "grey_belt")):
        a, b = [k for k in ours if k.grey == grey], [k for k in theirs if k.grey == grey]
        if len(a) >= 2 and len(b) >= LEAST:
            _add_appearance(report, belt, a, b, rng)
    _add_counts(report, out, ours, theirs)
    report.add("patch_auc", _patch_auc(ours, theirs, rng), at_most=PATCH_BAR)
    report.notes.append("patch_auc: patches of real pictures told from synthetic ones; 0.5 is alike")
    _add_guard(report, paths, ours, rng)
    return report


def _pictures(folder: Path) -> list[Path]:
    paths = sorted(folder.glob("*.jpg"))
    if len(paths) < LEAST:
        raise Refused(f"{folder} holds {len(paths)} .jpg files: at least {LEAST} are needed to compare")
    return paths


def _add_shapes(report: Report, boxes: Path, masks: Path) -> None:
    ours, theirs = shapes_by_class(synthetic_outlines(boxes)), shapes_by_class(real_outlines(masks))
    for name in THREATS:
        a, b = ours[name], theirs[name]
        if not len(a) or not len(b):
            continue
        for column, what in enumerate(("area", "elongation", "fill")):
            figure = f"{name}_{what}_ks"
            report.add(figure, _ks(a[:, column], b[:, column]), at_most=SHAPE_BAR)
            middle = np.median(a[:, column]), np.median(b[:, column])
            report.notes.append(
                f"{figure}: median {middle[0]:.3g}, real {middle[1]:.3g}; n = {len(a)}, {len(b)}"
            )


def _ks(a: Floats, b: Floats) -> float:
    result: Any = ks_2samp(a, b)  # its type is made at run time
    return float(result.statistic)


def _add_appearance(
    report: Report, belt: str, ours: Pictures, theirs: Pictures, rng: np.random.Generator
) -> None:
    """Add colours, share of foreground and edges of the pictures with one kind of belt."""
    half, far = _split_half(theirs, _colour_distance, rng), _colour_distance(ours, theirs)
    report.add(f"{belt}_colour_ratio", far / half, at_most=COLOUR_BAR)
    report.notes.append(f"{belt}_colour_ratio: {far:.2f} / {half:.2f} Lab units")
    a, b = (np.array([k.foreground for k in some]) for some in (ours, theirs))
    report.add(f"{belt}_foreground_ks", _ks(a, b))
    report.notes.append(f"{belt}_foreground_ks: median {np.median(a):.2f}, real {np.median(b):.2f}")
    half, far = _split_half(theirs, _spectrum_distance, rng), _spectrum_distance(ours, theirs)
    report.add(f"{belt}_spectrum_ratio", far / half)
    report.notes.append(f"{belt}_spectrum_ratio: {far:.3f} / {half:.3f} decades")


def _split_half(
    pictures: Pictures, distance: Callable[[Pictures, Pictures], float], rng: np.random.Generator
) -> float:
    """Return the mean distance of two random halves of the pictures, over SPLITS of them; never zero."""
    values, half = [], len(pictures) // 2
    for _ in range(SPLITS):
        order = rng.permutation(len(pictures))
        values.append(distance([pictures[k] for k in order[:half]], [pictures[k] for k in order[half:]]))
    return max(float(np.mean(values)), 1e-6)


def _colour_distance(a: Pictures, b: Pictures) -> float:
    """Return the mean over channels of the Wasserstein distances of the colours, in Lab units."""
    left, right = (np.quantile(np.concatenate([k.lab for k in some]), QUANTILES, axis=0) for some in (a, b))
    return float(np.abs(left - right).mean())


def _spectrum_distance(a: Pictures, b: Pictures) -> float:
    difference = np.mean([k.spectrum for k in a], 0) - np.mean([k.spectrum for k in b], 0)
    return float(np.sqrt((difference**2).mean()))


def _add_counts(report: Report, out: Path, ours: Pictures, theirs: Pictures) -> None:
    """Add how many threats a positive picture holds, and how many bags a picture."""
    with (out / "labels.csv").open(newline="") as file:
        rows = [[int(value) for value in row[1:]] for row in list(csv.reader(file))[1:]]
    held = [sum(value > 0 for value in row) for row in rows if max(row) > 0]
    bags = [image["bags"] for image in json.loads((out / "boxes.json").read_text())["images"]]
    report.add("labels_a_positive", float(np.mean(held)) if held else 0.0)
    report.add("bags_a_picture", float(np.mean(bags)))
    regions = [float(np.mean([k.regions for k in some])) for some in (ours, theirs)]
    report.notes.append("labels_a_positive: SIXray 1.37 to 1.51")
    report.notes.append(f"bags_a_picture: {regions[0]:.2f} regions seen, in real ones {regions[1]:.2f}")


def _patch_auc(ours: Pictures, theirs: Pictures, rng: np.random.Generator) -> float:
    """Return how well patches of real and synthetic pictures are told apart, folds by picture."""
    chosen = [rng.permutation(k.patches)[:60] for k in (*ours, *theirs)]
    groups = np.concatenate([np.full(len(some), k) for k, some in enumerate(chosen)])
    return separability(np.concatenate(chosen), groups >= len(ours), groups % 5)


def _add_guard(report: Report, paths: Sequence[Path], ours: Pictures, rng: np.random.Generator) -> None:
    """Add how well colours, size and foreground tell positives from benign pictures: they should not."""
    positive = np.array([path.name.startswith("P") for path in paths])
    counts = f"{int(positive.sum())} positive, {int((~positive).sum())} benign"
    if min(positive.sum(), (~positive).sum()) < GUARDED:
        report.not_run["guard_auc"] = f"{counts}: at least {GUARDED} of each are needed"
        return
    order = rng.permutation(len(ours))
    cues = np.stack([ours[k].cues for k in order])
    folds = np.arange(len(order)) % 10
    report.add("guard_auc", separability(cues, positive[order], folds), at_most=GUARD_BAR)
    report.notes.append(f"guard_auc: positives by colours and size alone; {counts}")


def separability(features: Floats, positive: NDArray[np.bool_], folds: NDArray[np.intp]) -> float:
    """Return the cross-validated AUC of a logistic regression on features [n, d] and their squares."""
    model = make_pipeline(
        StandardScaler(),
        FunctionTransformer(_with_squares),
        LogisticRegression(class_weight="balanced", max_iter=1000),
    )
    split = PredefinedSplit(folds)
    scores = cross_val_predict(model, features, positive, cv=split, method="decision_function")
    return float(roc_auc_score(positive, scores))


def _with_squares(z: Floats) -> Floats:
    clipped = np.clip(z, -5, 5)
    return np.column_stack([clipped, clipped**2])
