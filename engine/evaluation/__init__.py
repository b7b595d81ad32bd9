"""How good a model is on labelled images: from a scan's results file to figures, tables and pictures.

The whole flow is `evaluate`; `figures` gives the same figures of arrays, for training and benchmarks.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import confusion_matrix, precision_recall_curve

from ..datasets import Labels
from ..errors import Refused
from ..row import THREATS
from .bootstrap import Bags, Figure, Figures
from .figures import Scored, average_precisions, detection, figures
from .measures import Flags, Floats
from .notes import notes
from .report import Evaluation
from .rows import (
    Results,
    decision_scores,
    labelled,
    matching_bundle,
    named,
    read_results,
    stored_points,
)

__all__ = [
    "Bags",
    "EvaluateSettings",
    "Evaluation",
    "Figure",
    "Figures",
    "Scored",
    "average_precisions",
    "detection",
    "evaluate",
    "figures",
]


@dataclass(frozen=True)
class EvaluateSettings:
    """What is judged, by which labels."""

    results: Path  # of a finished scan
    labels: Path  # a label file or folder; where it names splits, its test images are taken
    form: str = "auto"  # of the labels
    class_map: Path | None = None  # of the labels
    model: Path | None = None  # the bundle of the scan: its operating points, and its other decisions
    validation: Path | None = None  # results of the same model that set the class thresholds
    validation_labels: Path | None = None  # None: the validation images of `labels`
    ignore: Path | None = None  # names whose labels are in doubt, one a line
    out: Path | None = None  # a folder for metrics.json, table.md and pictures


def evaluate(settings: EvaluateSettings) -> Evaluation:
    """Judge the rows of a scan by labels; with `out`, write what was found there.

    Raises Refused where results, labels and model do not fit each other.
    """
    _check_folder(settings.out)
    results = read_results(settings.results)
    bundle = matching_bundle(settings.model, results) if settings.model else None
    rows, labels = labelled(results, settings.labels, "test", settings.form, settings.class_map)
    scored = Scored(
        labels=labels.labels,
        probabilities=rows.probabilities,
        scores=decision_scores(rows, bundle),
        decision=results.footer["operating_point"]["decision"],
        threshold=results.footer["operating_point"]["threshold"],
        class_thresholds=_class_thresholds(settings, rows),
    )
    stored = stored_points(results, bundle)
    ignored = named(rows, settings.ignore) if settings.ignore else None
    evaluation = Evaluation(
        about=_about(settings, scored, results),
        counts=_counts(results, rows, labels, ignored),
        confusion=_confusion(scored),
        figures=figures(scored, Bags.named(labels.groups), stored),
        without_ignored=_without(scored, labels, stored, ignored),
        notes=notes(results, rows, labels, stored),
    )
    if settings.out:
        from .writing import write

        write(settings.out, evaluation, scored, rows, bundle)
    return evaluation


def _check_folder(out: Path | None) -> None:
    """Make the folder before the work begins; raises Refused where it cannot be."""
    try:
        if out:
            out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Refused(f"--out {out} cannot be made a folder: {error.strerror}; name another") from None


def _class_thresholds(settings: EvaluateSettings, rows: Results) -> Floats:
    """Give the class thresholds [5]: the scan's own, or those with the best F1 on validation images.

    A class that no validation image holds keeps the scan's.
    """
    stored = np.array(rows.footer["operating_point"]["class_thresholds"], dtype=np.float32)
    thresholds = stored.astype(np.float64)  # what the scan compared with, to the last bit
    if settings.validation is None:
        if settings.validation_labels:
            raise Refused("--validation-labels speaks of a second scan: give its results with --validation")
        return thresholds
    validation = read_results(settings.validation)
    if validation.footer["bundle_hash"] != rows.footer["bundle_hash"]:
        raise Refused(f"{validation.path} and {rows.path} come from different models: scan both with one")
    path = settings.validation_labels or settings.labels
    seen, labels = labelled(validation, path, "validation", settings.form, settings.class_map)
    if both := len(set(seen.uris) & set(rows.uris)):
        raise Refused(
            f"{both} images are both judged and in the validation of {path}: thresholds need others"
        )
    for k in np.flatnonzero(labels.labels.any(axis=0)):
        thresholds[k] = _best_threshold(labels.labels[:, k], seen.probabilities[:, k])
    return thresholds


def _best_threshold(positive: Flags, probabilities: Floats) -> float:
    """Give the threshold of the highest F1 on images of which at least one is positive."""
    precision, recall, thresholds = precision_recall_curve(positive, np.nan_to_num(probabilities, nan=-1.0))
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    return max(0.0, float(thresholds[np.argmax(f1[:-1])]))


def _without(
    scored: Scored, labels: Labels, stored: Mapping[str, Any], ignored: Flags | None
) -> Figures | None:
    if ignored is None:
        return None
    groups = [group for group, out in zip(labels.groups, ignored, strict=True) if not out]
    return figures(scored.take(~ignored), Bags.named(groups), stored)


def _about(settings: EvaluateSettings, scored: Scored, results: Results) -> dict[str, Any]:
    footer = results.footer
    names = ("bundle", "bundle_hash", "demo", "backend", "precision")
    return {
        "results": str(settings.results),
        "labels": str(settings.labels),
        **{name: footer[name] for name in names},
        **{name: footer["operating_point"][name] for name in ("decision", "pfa", "threshold")},
        "class_thresholds": scored.class_thresholds.tolist(),
        "class_thresholds_from": str(settings.validation) if settings.validation else "the scan",
    }


def _counts(results: Results, rows: Results, labels: Labels, ignored: Flags | None) -> dict[str, Any]:
    lost = np.array(rows.statuses) != "ok"
    return {
        "rows": len(results.uris) + results.containers,
        "containers": results.containers,
        "unlabelled": len(results.uris) - len(rows.uris),
        "images": len(rows.uris),
        "positive": int(labels.positive.sum()),
        "benign": int((~labels.positive).sum()),
        "bags": len(np.unique(Bags.named(labels.groups).of)),
        **{threat: int(count) for threat, count in zip(THREATS, labels.labels.sum(axis=0), strict=True)},
        "failed": rows.failed(),
        "failed_positive": int((lost & labels.positive).sum()),
        "ignored": 0 if ignored is None else int(ignored.sum()),
    }


def _confusion(scored: Scored) -> dict[str, int]:
    (quiet, false), (missed, detected) = confusion_matrix(scored.positive, scored.alarm, labels=[False, True])
    return {"detected": int(detected), "missed": int(missed), "false_alarms": int(false), "quiet": int(quiet)}
