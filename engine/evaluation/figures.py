"""Figures of a model on labelled images, by name."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from ..model.calibration import threshold_at
from ..row import THREATS
from .bootstrap import Bootstrap, Figure, Figures, with_intervals
from .measures import (
    AGREEMENTS,
    Agreement,
    Auroc,
    AveragePrecision,
    DetectionAt,
    Flags,
    Floats,
    Measure,
    Ranking,
    Share,
)

ODDS = (9, 99, 999)  # negatives for each positive
PFAS = (0.01, 0.02, 0.05, 0.10)
GATE_PFAS = (0.02, 0.05, 0.10, 0.20, 0.30, 0.50)


class Threshold(Protocol):
    """The part of a stored operating point that is judged."""

    @property
    def pfa(self) -> float:
        """Probability of false alarm that it was set for."""
        ...

    @property
    def threshold(self) -> float:
        """Lowest score that is an alarm."""
        ...


@dataclass(frozen=True, eq=False)
class Predictions:
    """Labelled images with a model's scores; an image that could not be scored is NaN throughout.

    Such an image counts as no alarm and ranks last, so a threat in it is missed.
    """

    labels: Flags  # [n, 5] in the order of THREATS; a benign image has none
    probabilities: Floats  # [n, 5], ungated
    scores: Mapping[str, Floats]  # [n] by each decision
    decision: str  # the one that raises the alarm
    threshold: float  # an image is an alarm where its score by `decision` is at or above it
    class_thresholds: Floats  # [5]

    @property
    def positive(self) -> Flags:
        """Tell which images hold a threat, [n]."""
        return np.any(self.labels, axis=1)

    @property
    def alarm(self) -> Flags:
        """Tell which images are alarms, [n]."""
        return self.scores[self.decision] >= self.threshold

    @property
    def predicted(self) -> Flags:
        """Tell which classes are at or above their thresholds, alarm or not, [n, 5]."""
        return self.probabilities >= self.class_thresholds

    def take(self, index: Flags) -> "Predictions":
        """Return the images at these positions."""
        scores = {name: score[index] for name, score in self.scores.items()}
        return replace(
            self, labels=self.labels[index], probabilities=self.probabilities[index], scores=scores
        )


def figures(
    predictions: Predictions, bootstrap: Bootstrap, stored: Mapping[str, Sequence[Threshold]]
) -> Figures:
    """Return every figure with its interval; `stored` are the operating points of each decision.

    Names: `map`, `ap.gun`, `map_1_9`, `ap_1_9.gun` for 9 negatives to a positive; `micro_f1`, `macro_f1`,
    `f1.gun` by the class thresholds, with `_gated` if a class counts in alarms only; `pd`, `pfa` of the
    alarm; `auroc`, `anomaly_ap`, `pd_at_pfa_05` and the `pfa_measured_05` that the stored operating point has
    here, `pd_at_test_pfa_05` at a threshold set on these very images, all also as `gbad.auroc` for each
    decision; `map_gated` by the alarm, `map_gated_pfa_05` by a gate set on these images.
    """
    measures = _rankings(predictions) | _gates(predictions) | _agreements(predictions) | _alarms(predictions)
    for name, scores in predictions.scores.items():
        of_decision = _decision_measures(predictions.positive, scores, stored.get(name, ()))
        measures |= {f"{name}.{key}": measure for key, measure in of_decision.items()}
    families = {
        name.removesuffix(".gun") for name in measures if name.startswith("ap") and name.endswith(".gun")
    }
    means = {f"m{family}": [f"{family}.{threat}" for threat in THREATS] for family in sorted(families)}
    by_name = _prevalences(predictions) | with_intervals(measures, means, predictions.positive, bootstrap)
    own = f"{predictions.decision}."
    return by_name | {name.removeprefix(own): by_name[name] for name in measures if name.startswith(own)}


def average_precisions(labels: Flags, probabilities: Floats, bootstrap: Bootstrap | None = None) -> Figures:
    """Return `map` and `ap.gun` to `ap.scissors` of labels and probabilities [n, 5], with intervals."""
    rankings = {
        f"ap.{name}": Ranking(labels[:, k], ranked(probabilities[:, k])) for k, name in enumerate(THREATS)
    }
    measures = {name: AveragePrecision(ranking) for name, ranking in rankings.items()}
    bootstrap = bootstrap or Bootstrap.by_group([""] * len(labels))
    return with_intervals(measures, {"map": list(measures)}, np.any(labels, axis=1), bootstrap)


def detection(
    positive: Flags, scores: Floats, pfas: Sequence[float] = PFAS, bootstrap: Bootstrap | None = None
) -> Figures:
    """Return `auroc`, `anomaly_ap` and `pd_at_test_pfa_05` and so on of scores [n], with intervals."""
    ranking = Ranking(positive, ranked(scores))
    measures: dict[str, Measure] = {"auroc": Auroc(ranking), "anomaly_ap": AveragePrecision(ranking)}
    measures |= {f"pd_at_test_pfa_{percent(pfa)}": DetectionAt(ranking, pfa) for pfa in pfas}
    return with_intervals(measures, {}, positive, bootstrap or Bootstrap.by_group([""] * len(positive)))


def percent(share: float) -> str:
    """Write a share in names of figures: 05 for 0.05, 0_5 for 0.005."""
    return f"{100 * share:g}".zfill(2).replace(".", "_")


def ranked(scores: Floats) -> Floats:
    """Make scores finite: images without one rank last."""
    missing = np.isnan(scores)
    lowest = scores[~missing].min() if not missing.all() else 0.0
    return np.where(missing, lowest - 1, scores)


def gated(alarm: Flags, probability: Floats) -> Floats:
    """Rank [n] all alarms before all others, both by probability, without the ties of p times zero."""
    return np.unique(ranked(probability), return_inverse=True)[1] + alarm * float(len(alarm))


def _prevalences(predictions: Predictions) -> Figures:
    """Return the shares of the images that are positive; they have no interval."""
    shares = {f"prevalence.{name}": predictions.labels[:, k].mean() for k, name in enumerate(THREATS)}
    shares = {"prevalence": predictions.positive.mean(), **shares}
    return {name: Figure(float(share), None, None) for name, share in shares.items()}


def _rankings(predictions: Predictions) -> dict[str, Measure]:
    """Measure AP by class, at the prevalence of the images and at others."""
    measures: dict[str, Measure] = {}
    for k, name in enumerate(THREATS):
        ranking = Ranking(predictions.labels[:, k], ranked(predictions.probabilities[:, k]))
        measures[f"ap.{name}"] = AveragePrecision(ranking)
        measures |= {f"ap_1_{odds}.{name}": AveragePrecision(ranking, odds) for odds in ODDS}
    return measures


def _gates(predictions: Predictions) -> dict[str, Measure]:
    """Measure AP with the ranking gated: by the alarm, and by gates over a range of false alarms."""
    scores = ranked(predictions.scores[predictions.decision])
    benign = scores[~predictions.positive]
    gates = {"gated": predictions.alarm}
    if len(benign):
        gates |= {f"gated_pfa_{percent(pfa)}": scores >= threshold_at(benign, pfa) for pfa in GATE_PFAS}
    return {
        f"ap_{gate}.{name}": AveragePrecision(
            Ranking(predictions.labels[:, k], gated(alarm, predictions.probabilities[:, k]))
        )
        for gate, alarm in gates.items()
        for k, name in enumerate(THREATS)
    }


def _agreements(predictions: Predictions) -> dict[str, Measure]:
    """Measure precision, recall and F1 at the class thresholds; macro over the classes that occur."""
    labels, measures = predictions.labels, dict[str, Measure]()
    occurring = np.flatnonzero(labels.any(axis=0))
    for suffix, predicted in (
        ("", predictions.predicted),
        ("_gated", predictions.predicted & predictions.alarm[:, None]),
    ):
        for figure in AGREEMENTS:
            measures[f"micro_{figure}{suffix}"] = Agreement(labels, predicted, figure)
            macro = Agreement(labels[:, occurring], predicted[:, occurring], figure, "macro")
            measures[f"macro_{figure}{suffix}"] = macro
            for k, name in enumerate(THREATS):
                one = slice(k, k + 1)
                of_class = Agreement(labels[:, one], predicted[:, one], figure)
                measures[f"{figure}{suffix}.{name}"] = of_class
    return measures


def _alarms(predictions: Predictions) -> dict[str, Measure]:
    """Measure detection by the alarm of these results, overall and by class, and its false alarms."""
    by_class = {
        f"pd.{name}": Share(predictions.alarm, predictions.labels[:, k]) for k, name in enumerate(THREATS)
    }
    return {
        "pd": Share(predictions.alarm, predictions.positive),
        "pfa": Share(predictions.alarm, ~predictions.positive),
        **by_class,
    }


def _decision_measures(positive: Flags, scores: Floats, stored: Sequence[Threshold]) -> dict[str, Measure]:
    """Measure how one decision tells threats from benign images."""
    ranking = Ranking(positive, ranked(scores))
    measures: dict[str, Measure] = {"auroc": Auroc(ranking), "anomaly_ap": AveragePrecision(ranking)}
    measures |= {f"anomaly_ap_1_{odds}": AveragePrecision(ranking, odds) for odds in ODDS}
    for point in stored:
        alarm = scores >= point.threshold
        measures[f"pd_at_pfa_{percent(point.pfa)}"] = Share(alarm, positive)
        measures[f"pfa_measured_{percent(point.pfa)}"] = Share(alarm, ~positive)
    return measures | {f"pd_at_test_pfa_{percent(pfa)}": DetectionAt(ranking, pfa) for pfa in PFAS}
