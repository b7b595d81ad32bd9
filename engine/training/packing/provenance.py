"""Provenance and figures of a model, for bundle.json and the model card."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...bundle import DEFAULT_PFA
from ...evaluation import Bootstrap, Predictions, figures
from ...model.decision import Decision
from ..phases.phase3 import Losses, auroc, operating_points, partial_auroc
from ..settings import Phase3Settings

LARGEST_PFA = 0.05  # of the partial AUROC


def separation(losses: Losses, decisions: Mapping[str, Decision]) -> dict[str, dict[str, Any]]:
    """Measure how well each decision, and each loss by itself, separates threats from benign images."""
    measured: dict[str, dict[str, Any]] = {}
    for name, decision in decisions.items():
        scores = losses.scores(decision)
        measured[name] = {
            "auroc": auroc(scores, losses.positive),
            "partial_auroc": partial_auroc(scores, losses.positive, LARGEST_PFA),
            "kernel": "linear" if decision.support is None else "rbf",
        }
    measured["reconstruction"] = {"auroc": auroc(losses.reconstruction, losses.positive)}
    measured["feature_matching"] = {"auroc": auroc(losses.feature_matching, losses.positive)}
    return measured


def figures_on_test(
    test: Losses,
    groups: Sequence[str],
    decisions: Mapping[str, Decision],
    default: str,
    calibration: Losses,
    settings: Phase3Settings,
) -> dict[str, list[float | None]]:
    """Return figures of the test split as [value, low, high]; empty if it lacks positive or benign images.

    `groups` name the bag of each test image; `default` is the decision that raises the alarm.
    """
    if not test.positive.any() or test.positive.all():
        return {}
    points = {name: operating_points(decision, calibration, settings) for name, decision in decisions.items()}
    alarm = next(point for point in points[default] if point.pfa == DEFAULT_PFA)
    predictions = Predictions(
        labels=test.labels,
        probabilities=test.probabilities,
        scores={name: test.scores(decision) for name, decision in decisions.items()},
        decision=default,
        threshold=alarm.threshold,
        class_thresholds=np.array(alarm.class_thresholds),
    )
    measured = figures(predictions, Bootstrap.by_group(groups), points)
    return {name: [figure.value, figure.low, figure.high] for name, figure in measured.items()}
