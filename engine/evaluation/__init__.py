"""Evaluation of a model on labelled images: from a scan's results to figures, tables and pictures.

`evaluate` is the whole flow; `figures` computes the same figures from arrays, for training and benchmarks.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.metrics import confusion_matrix, precision_recall_curve

from ..bundle import Bundle
from ..datasets import Labels
from ..errors import Refused
from ..results.finished import matching_bundle
from ..row import THREATS
from ..system.durable import write_whole
from .bootstrap import Bootstrap, Figure, Figures
from .figures import Predictions, average_precisions, detection, figures
from .measures import Flags, Floats
from .notes import notes
from .report import Evaluation, as_markdown
from .rows import (
    Results,
    decision_scores,
    images_in_list,
    labelled,
    read_results,
    stored_points,
)

__all__ = [
    "Bootstrap",
    "EvaluateSettings",
    "Evaluation",
    "Figure",
    "Figures",
    "Predictions",
    "average_precisions",
    "detection",
    "evaluate",
    "figures",
]


@dataclass(frozen=True)
class EvaluateSettings:
    """Settings of an evaluation."""

    results: Path
    """Results of a finished scan."""
    labels: Path
    """A label file or folder; where it names splits, its test images are judged."""
    form: str = "auto"
    """Label format; `auto` detects it."""
    class_map: Path | None = None
    """TOML file that maps other class names to the five threats."""
    model: Path | None = None
    """The bundle of the scan, for its operating points and its other decisions."""
    validation: Path | None = None
    """Results of the same model that set the class thresholds."""
    validation_labels: Path | None = None
    """Labels of `validation`; None takes the validation images of `labels`."""
    ignore: Path | None = None
    """A list of names whose labels are in doubt, one a line."""
    out: Path | None = None
    """A folder for metrics.json, table.md and pictures."""


def evaluate(settings: EvaluateSettings) -> Evaluation:
    """Judge the rows of a scan by labels; with `out`, also write figures, table and pictures there.

    Raises Refused if results, labels and model do not belong together.
    """
    _check_folder(settings.out)
    results = read_results(settings.results)
    bundle = matching_bundle(settings.model, results.path, results.footer) if settings.model else None
    rows, labels = labelled(results, settings.labels, "test", settings.form, settings.class_map)
    predictions = Predictions(
        labels=labels.labels,
        probabilities=rows.probabilities,
        scores=decision_scores(rows, bundle),
        decision=results.footer["operating_point"]["decision"],
        threshold=results.footer["operating_point"]["threshold"],
        class_thresholds=_class_thresholds(settings, rows),
    )
    stored = stored_points(results, bundle)
    ignored = images_in_list(rows, settings.ignore) if settings.ignore else None
    evaluation = Evaluation(
        about=_about(settings, predictions, results),
        counts=_counts(results, rows, labels, ignored),
        confusion=_confusion(predictions),
        figures=figures(predictions, Bootstrap.by_group(labels.groups), stored),
        without_ignored=_without(predictions, labels, stored, ignored),
        notes=notes(results, rows, labels, stored),
    )
    if settings.out:
        _write(settings.out, evaluation, predictions, rows, bundle)
    return evaluation


def _write(
    folder: Path, evaluation: Evaluation, predictions: Predictions, rows: Results, bundle: Bundle | None
) -> None:
    """Write metrics.json, table.md and pictures into a folder that exists; raises OSError."""
    from .pictures import draw

    document = json.dumps(evaluation.to_json(), indent=2, allow_nan=False)
    write_whole(folder / "metrics.json", document.encode())
    write_whole(folder / "table.md", f"{as_markdown(evaluation)}\n".encode())
    draw(folder, predictions, rows.losses, bundle)


def _check_folder(out: Path | None) -> None:
    """Make the folder before the work begins; raises Refused if that fails."""
    try:
        if out:
            out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Refused(f"the folder --out {out} cannot be made ({error.strerror}): name another") from None


def _class_thresholds(settings: EvaluateSettings, rows: Results) -> Floats:
    """Return the class thresholds [5]: the scan's own, or those with the best F1 on validation images.

    A class without a validation image keeps the scan's threshold.
    """
    stored = np.array(rows.footer["operating_point"]["class_thresholds"], dtype=np.float32)
    thresholds = stored.astype(np.float64)  # what the scan compared with, to the last bit
    if settings.validation is None:
        if settings.validation_labels:
            raise Refused("--validation-labels needs a second scan: give its results with --validation")
        return thresholds
    validation = read_results(settings.validation)
    if validation.footer["bundle_hash"] != rows.footer["bundle_hash"]:
        raise Refused(
            f"{validation.path} and {rows.path} come from different models: scan both with the same"
        )
    path = settings.validation_labels or settings.labels
    other, labels = labelled(validation, path, "validation", settings.form, settings.class_map)
    if both := len(set(other.uris) & set(rows.uris)):
        raise Refused(f"{both} images are both judged and in the validation of {path}: use other images")
    for k in np.flatnonzero(labels.labels.any(axis=0)):
        thresholds[k] = _best_threshold(labels.labels[:, k], other.probabilities[:, k])
    return thresholds


def _best_threshold(positive: Flags, probabilities: Floats) -> float:
    """Return the threshold with the highest F1 on images, at least one of them positive."""
    precision, recall, thresholds = precision_recall_curve(positive, np.nan_to_num(probabilities, nan=-1.0))
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    return max(0.0, float(thresholds[np.argmax(f1[:-1])]))


def _without(
    predictions: Predictions, labels: Labels, stored: Mapping[str, Any], ignored: Flags | None
) -> Figures | None:
    if ignored is None:
        return None
    groups = [group for group, out in zip(labels.groups, ignored, strict=True) if not out]
    return figures(predictions.take(~ignored), Bootstrap.by_group(groups), stored)


def _about(settings: EvaluateSettings, predictions: Predictions, results: Results) -> dict[str, Any]:
    footer = results.footer
    names = ("bundle", "bundle_hash", "demo", "backend", "precision")
    return {
        "results": str(settings.results),
        "labels": str(settings.labels),
        **{name: footer[name] for name in names},
        **{name: footer["operating_point"][name] for name in ("decision", "pfa", "threshold")},
        "class_thresholds": predictions.class_thresholds.tolist(),
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
        "bags": len(np.unique(Bootstrap.by_group(labels.groups).group)),
        **{threat: int(count) for threat, count in zip(THREATS, labels.labels.sum(axis=0), strict=True)},
        "failed": rows.failed(),
        "failed_positive": int((lost & labels.positive).sum()),
        "ignored": 0 if ignored is None else int(ignored.sum()),
    }


def _confusion(predictions: Predictions) -> dict[str, int]:
    (quiet, false), (missed, detected) = confusion_matrix(
        predictions.positive, predictions.alarm, labels=[False, True]
    )
    return {"detected": int(detected), "missed": int(missed), "false_alarms": int(false), "quiet": int(quiet)}
