"""The numbers behind the page's charts: alarms over thresholds, and the plane of the two losses."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..bundle import Bundle, share_above
from ..model.decision import SMALLEST_LOSS, Decision
from .tally import Tally

STEPS = 480  # thresholds that the operating point can be dragged to, besides the scan's own
REACH = 4  # spans of the middle 98 % of the scores that the axis shows beyond them
WIDE, HIGH = 96, 64  # cells of the plane
RARE = 0.001  # share of the images beyond each side of the plane


def thresholds_of(tally: Tally, point: dict[str, Any], bundle: Bundle | None) -> dict[str, Any]:
    """Count the images at or above each of STEPS + 1 thresholds, and the share of benign ones, if known.

    The counts are exact: the page moves the operating point from one of these thresholds to the next.
    """
    scores = np.sort(tally.scores)
    low, high = _axis(scores, point["threshold"])
    edges = [low + (high - low) * step / STEPS for step in range(STEPS + 1)]  # as the page computes them
    over = len(scores) - np.searchsorted(scores, edges, "left")
    quantiles = None
    if bundle is not None:
        quantiles = bundle.manifest.benign_quantiles.get(point["precision"], {}).get(point["decision"])
    benign = None if quantiles is None else [round(share_above(quantiles, edge), 7) for edge in edges]
    smallest = None if quantiles is None else round(1 - quantiles.probability[-2], 7)
    return {"low": low, "high": high, "over": over.tolist(), "benign": benign, "smallest": smallest}


def _axis(scores: NDArray[np.float64], threshold: float) -> tuple[float, float]:
    """Choose the range of the axis: the scores without far outliers, and the operating point."""
    if not len(scores):
        return threshold - 1.0, threshold + 1.0
    lower, upper = np.quantile(scores, [0.01, 0.99])
    reach = REACH * (upper - lower)
    low = min(max(scores[0], lower - reach), threshold)
    high = max(min(scores[-1], upper + reach), threshold)
    margin = 0.02 * (high - low) or 0.5
    return float(low - margin), float(high + margin)


def plane_of(tally: Tally, point: dict[str, Any], bundle: Bundle | None) -> dict[str, Any] | None:
    """Count the images in each cell of the plane of the logarithms of both losses; None without images.

    `scores` are those of the decision at the cells' middles, where it depends on the losses alone.
    """
    logs = np.log10(np.maximum(tally.losses.astype(np.float64), SMALLEST_LOSS))
    logs = logs[np.isfinite(logs).all(axis=1)]
    if not len(logs):
        return None
    low, high = np.quantile(logs, [RARE, 1 - RARE], axis=0)
    margin = np.maximum(0.05 * (high - low), 0.01)
    low, high = low - margin, high + margin
    counts, _, _ = np.histogram2d(logs[:, 0], logs[:, 1], (WIDE, HIGH), list(zip(low, high, strict=True)))
    cells = np.flatnonzero(counts)
    return {
        "wide": WIDE,
        "high": HIGH,
        "x": [float(low[0]), float(high[0])],
        "y": [float(low[1]), float(high[1])],
        "cells": cells.tolist(),
        "counts": counts.reshape(-1)[cells].astype(int).tolist(),
        "beyond": int(len(logs) - counts.sum()),
        "scores": _scores(low, high, point, bundle),
    }


def _scores(
    low: NDArray[np.float64], high: NDArray[np.float64], point: dict[str, Any], bundle: Bundle | None
) -> list[float] | None:
    """Return the decision's scores in the middle of each cell, column by column, if losses decide alone."""
    if bundle is None or point["decision"] != "gbad":
        return None
    x, y = (
        (low[k] + (np.arange(cells) + 0.5) / cells * (high[k] - low[k])) * np.log(10)
        for k, cells in enumerate((WIDE, HIGH))
    )
    grid = np.stack(np.meshgrid(x, y, indexing="ij"), axis=-1).reshape(-1, 2)
    decision = Decision.from_tensors("gbad", bundle.tensors())
    return np.round(decision.score_inputs(grid), 5).tolist()
