"""Measures of detection, by scikit-learn and, for many weightings of the images at once, by sums.

The second way is for the bootstrap, for which the first would take minutes; tests check that both agree.
"""

from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import (
    average_precision_score,
    f1_score,
    precision_score,
    recall_score,
    roc_auc_score,
    roc_curve,
)

Flags = NDArray[np.bool_]
Floats = NDArray[np.float64]

AGREEMENTS = {"precision": precision_score, "recall": recall_score, "f1": f1_score}
SLACK = 1e-9  # of a count of images: rounding of a share


class Measure(Protocol):
    """A figure of labelled and scored images; NaN if it is undefined."""

    def value(self) -> float:
        """Return the figure of the images as they are."""
        ...

    def weighted(self, weights: Floats) -> Floats:
        """Return the figure [b] under each of the weightings [b, n] of the images."""
        ...


class Ranking:
    """Images in the order of a score, most suspicious first."""

    def __init__(self, positive: Flags, scores: Floats):
        self.positive = positive  # [n]
        self.scores = scores  # [n], finite
        self._last: tuple[Floats, tuple[Floats, Floats]] | None = None

    @property
    def has_both(self) -> bool:
        """Tell whether there are positive and negative images."""
        return bool(self.positive.any() and not self.positive.all())

    def counts(self, weights: Floats) -> tuple[Floats, Floats]:
        """Count positives and negatives [b, m] down to the end of each step, for weights [b, n].

        The last result is cached, since several measures ask for it.
        """
        if self._last is None or self._last[0] is not weights:
            ordered = weights[:, self._order]
            both = np.add.reduceat(ordered, self._starts, axis=1)
            ordered *= self.positive[self._order]
            positives = np.add.reduceat(ordered, self._starts, axis=1)
            np.cumsum(both, axis=1, out=both)
            np.cumsum(positives, axis=1, out=positives)
            self._last = weights, (positives, both - positives)
        return self._last[1]

    @cached_property
    def _order(self) -> NDArray[np.intp]:
        return np.argsort(-self.scores, kind="stable")

    @cached_property
    def _starts(self) -> NDArray[np.intp]:
        """Where each step begins: images of one score, or all negatives between two positives.

        Within such a run of negatives no measure here takes its value, so nothing is lost.
        """
        scores, positive = self.scores[self._order], self.positive[self._order]
        first = np.flatnonzero(np.r_[True, scores[1:] != scores[:-1]])
        holds = np.logical_or.reduceat(positive, first)
        return first[np.r_[True, holds[1:] | holds[:-1]]]


@dataclass(frozen=True)
class AveragePrecision:
    """The mean precision over the positives of a ranking.

    With `odds`, negatives are weighted so that there are so many per positive.
    """

    ranking: Ranking
    odds: float | None = None

    def value(self) -> float:
        """Compute it by scikit-learn; NaN without images of both kinds."""
        positive = self.ranking.positive
        if not self.ranking.has_both:
            return np.nan
        weights = None
        if self.odds is not None:
            weights = np.where(positive, 1.0, self.odds * positive.sum() / (~positive).sum())
        return float(average_precision_score(positive, self.ranking.scores, sample_weight=weights))

    def weighted(self, weights: Floats) -> Floats:
        """Compute it [b] for weights [b, n]."""
        positives, negatives = self.ranking.counts(weights)
        scale = 1.0 if self.odds is None else self.odds * _share(positives[:, -1:], negatives[:, -1:])
        step = np.diff(positives, axis=1, prepend=0)
        return _share(
            (step * _share(positives, positives + scale * negatives, empty=0)).sum(1), positives[:, -1]
        )


@dataclass(frozen=True)
class Auroc:
    """The area under the ROC: how often a positive is ranked before a negative."""

    ranking: Ranking

    def value(self) -> float:
        """Compute it by scikit-learn; NaN without images of both kinds."""
        if not self.ranking.has_both:
            return np.nan
        return float(roc_auc_score(self.ranking.positive, self.ranking.scores))

    def weighted(self, weights: Floats) -> Floats:
        """Compute it [b] for weights [b, n], by trapezoids."""
        positives, negatives = self.ranking.counts(weights)
        step = np.diff(negatives, axis=1, prepend=0)
        before = np.concatenate([np.zeros_like(positives[:, :1]), positives[:, :-1]], axis=1)
        area = (step * (positives + before)).sum(1) / 2
        return _share(area, positives[:, -1] * negatives[:, -1])


@dataclass(frozen=True)
class DetectionAt:
    """The share of positives at the lowest threshold that at most a share `pfa` of negatives reaches."""

    ranking: Ranking
    pfa: float

    def value(self) -> float:
        """Compute it by scikit-learn; NaN without images of both kinds."""
        if not self.ranking.has_both:
            return np.nan
        false, true, _ = roc_curve(self.ranking.positive, self.ranking.scores, drop_intermediate=False)
        return float(true[false <= self.pfa + SLACK].max())

    def weighted(self, weights: Floats) -> Floats:
        """Compute it [b] for weights [b, n], with a new threshold for each."""
        positives, negatives = self.ranking.counts(weights)
        allowed = negatives <= (self.pfa + SLACK) * negatives[:, -1:]
        return _share(np.where(allowed, positives, 0).max(axis=1), positives[:, -1])


@dataclass(frozen=True)
class Share:
    """The share of images with a property among those of a kind."""

    having: Flags  # [n]
    among: Flags  # [n]

    def value(self) -> float:
        """Compute it; NaN without an image of the kind."""
        return float(self.having[self.among].mean()) if self.among.any() else np.nan

    def weighted(self, weights: Floats) -> Floats:
        """Compute it [b] for weights [b, n]."""
        return _share(weights @ (self.having & self.among), weights @ self.among)


@dataclass(frozen=True)
class Agreement:
    """Precision, recall or F1 of predicted labels."""

    labels: Flags  # [n, k]
    predicted: Flags  # [n, k]
    figure: str  # one of AGREEMENTS
    average: str = "micro"  # micro: over all k n decisions; macro: the mean over the k classes

    def value(self) -> float:
        """Compute it by scikit-learn; NaN without a labelled image."""
        if not self.labels.any():
            return np.nan
        options: dict[str, Any] = {"average": self.average, "zero_division": 0}
        labels, predicted = self.labels, self.predicted
        if labels.shape[1] == 1:  # scikit-learn would average over the class and its absence
            labels, predicted, options["average"] = labels[:, 0], predicted[:, 0], "binary"
        return float(AGREEMENTS[self.figure](labels, predicted, **options))

    def weighted(self, weights: Floats) -> Floats:
        """Compute it [b] for weights [b, n]."""
        sums = [weights @ flags for flags in (self.labels & self.predicted, self.predicted, self.labels)]
        if self.average == "micro":
            sums = [each.sum(axis=1, keepdims=True) for each in sums]
        hits, predicted, labels = sums
        pairs = {
            "precision": (hits, predicted),
            "recall": (hits, labels),
            "f1": (2 * hits, predicted + labels),
        }
        return _share(*pairs[self.figure], empty=0).mean(axis=1)


def _share(part: Floats, whole: Floats, empty: float = np.nan) -> Floats:
    """Divide; returns `empty` for a division by zero."""
    return np.divide(part, whole, out=np.full(np.shape(whole), float(empty)), where=whole > 0)
