"""Caveats of an evaluation, one sentence each."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from ..bundle import DEMO_SENTENCE, StoredPoint
from ..datasets import Labels
from ..row import THREATS
from .bootstrap import RESAMPLES
from .rows import Results

ENOUGH_IMAGES, ENOUGH_POSITIVES = 10_000, 100  # below, AP and PD at small PFA are known to a few points only


def notes(
    results: Results, rows: Results, labels: Labels, stored: Mapping[str, Sequence[StoredPoint]]
) -> tuple[str, ...]:
    """Yield what is missing, small or assumed; `rows` are the rows of `results` that have a label."""
    sentences = [
        *_of_model(rows, stored),
        *_of_rows(results, rows, labels),
        *_of_labels(labels),
        _of_intervals(labels),
    ]
    return tuple(sentences)


def _of_model(rows: Results, stored: Mapping[str, Sequence[StoredPoint]]) -> Iterator[str]:
    if rows.footer["demo"]:
        yield f"The model is {DEMO_SENTENCE}."
    weak = sorted({point.pfa for points in stored.values() for point in points if not point.supported})
    if weak:
        shares = ", ".join(f"{pfa:.3g}" for pfa in weak)
        yield f"Too few benign calibration images support the operating points at PFA {shares}."


def _of_rows(results: Results, rows: Results, labels: Labels) -> Iterator[str]:
    if unlabelled := len(results.uris) - len(rows.uris):
        yield f"{unlabelled} images have a row and no label: they are left out."
    if results.containers:
        yield f"{results.containers} rows stand for folders or archives not read to their end: left out."
    if failed := rows.failed():
        lost = np.array(rows.statuses) != "ok"
        reasons = ", ".join(f"{name} {number}" for name, number in failed.items())
        yield (
            f"{lost.sum()} images have no score ({reasons}): they rank last and are no alarm, so the "
            f"{(lost & labels.positive).sum()} of them with a threat are missed."
        )


def _of_labels(labels: Labels) -> Iterator[str]:
    counts = labels.labels.sum(axis=0)
    if absent := [threat for threat, count in zip(THREATS, counts, strict=True) if not count]:
        yield f"No image holds {' or '.join(absent)}: no figures of that class, and means leave it out."
    for threat, count in labels.unknown.items():
        yield f"Of {count} images it is unknown whether they hold {threat}: they count as without."
    if not labels.positive.any():
        yield "No image holds a threat: only false alarms can be judged."
    elif labels.positive.all():
        yield "Every image holds a threat: AUROC and false alarms cannot be judged."
    if len(labels.names) < ENOUGH_IMAGES or counts.min() < ENOUGH_POSITIVES:
        yield (
            f"This is a small test, below {ENOUGH_IMAGES:,} images or {ENOUGH_POSITIVES} of each class: "
            "read the intervals, not the figures."
        )


def _of_intervals(labels: Labels) -> str:
    unit = (
        "bags" if any(labels.groups) else "images (no bags are named, so several views of one count as many)"
    )
    return f"Intervals are 95 %, from {RESAMPLES} resamples of {unit}, benign ones and threats apart."
