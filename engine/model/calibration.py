"""Operating points: thresholds set on the scores of benign images, and how well they are known.

"Calibration" is the split of benign images that sets thresholds. Needs SciPy, which a scan does not.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binomtest

from .decision import Scores


@dataclass(frozen=True)
class CalibratedPoint:
    """An operating point: the threshold of an alarm, and its rate of false alarms."""

    pfa: float
    """Probability of false alarm that the thresholds were set for."""
    threshold: float
    """Of the score; an image at or above it raises an alarm."""
    class_thresholds: tuple[float, ...]
    """Of p_gun to p_scissors; a share `pfa` of benign images reaches each."""
    interval: tuple[float, float]
    """95 % interval (Wilson) of the false-alarm rate at `threshold`."""
    supported: bool
    """Whether enough benign images lie above the threshold."""


def calibrate(
    scores: Scores, probabilities: Scores, pfas: Sequence[float], support_events: int
) -> list[CalibratedPoint]:
    """Set an operating point for each PFA from scores [n] and probabilities [n, 5] of benign images.

    A point is supported if at least `support_events` of them are expected above its threshold.
    """
    points = []
    for pfa in pfas:
        threshold = threshold_at(scores, pfa)
        points.append(
            CalibratedPoint(
                pfa=pfa,
                threshold=threshold,
                class_thresholds=tuple(threshold_at(column, pfa) for column in probabilities.T),
                interval=wilson_interval(int((scores >= threshold).sum()), len(scores)),
                supported=len(scores) * pfa >= support_events,
            )
        )
    return points


def threshold_at(benign: NDArray[np.floating], pfa: float) -> float:
    """Return the lowest threshold that at most a share `pfa` of benign scores [n] reaches."""
    return threshold_allowing(benign, int(len(benign) * pfa + 1e-9))


def threshold_allowing(benign: NDArray[np.floating], allowed: int) -> float:
    """Return the lowest threshold that at most `allowed` of benign scores [n], n > allowed, reach."""
    descending = np.sort(benign)[::-1]
    # half way to the last score allowed, but where scores tie: then just above the tie
    bound = descending[allowed]
    above = descending[descending > bound]
    return float((above[-1] + bound) / 2) if len(above) else float(np.nextafter(bound, np.inf))


def benign_quantiles(scores: Scores) -> tuple[list[float], list[float]]:
    """Return probabilities and the benign scores at them, more densely where false alarms are rare."""
    tail = 1 - np.geomspace(max(1e-4, 1 / len(scores)), 0.2, 100)
    probabilities = np.unique(np.concatenate([np.linspace(0, 1, 101), tail]))
    return probabilities.tolist(), np.quantile(scores, probabilities).tolist()


def wilson_interval(events: int, trials: int) -> tuple[float, float]:
    """Return the 95 % interval of a rate seen as `events` of `trials` (Wilson 1927)."""
    if not trials:
        return 0.0, 1.0
    interval = binomtest(events, trials).proportion_ci(method="wilson")
    return float(interval.low), float(interval.high)
