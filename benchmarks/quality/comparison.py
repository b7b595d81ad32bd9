"""Detectors beside each other: figures of each with intervals and the range over seeds, as one table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from gbad_batch.engine.evaluation.bootstrap import Bootstrap, Figure, with_intervals
from gbad_batch.engine.evaluation.figures import percent, ranked
from gbad_batch.engine.evaluation.measures import Auroc, AveragePrecision, Measure, Ranking, Share
from gbad_batch.engine.model.calibration import threshold_at

from ..report import Report, aligned

Flags = NDArray[np.bool_]
Scores = NDArray[np.float64]
PFAS = (0.02, 0.05)


@dataclass(frozen=True)
class Judged:
    """One figure of a detector, over seeds."""

    mean: float
    low: float | None  # 95 % bootstrap interval of the mean
    high: float | None
    least: float  # over seeds
    most: float

    def cells(self) -> tuple[str, str]:
        """Write the mean with its interval, and the range over seeds."""
        interval = "" if self.low is None else f" [{self.low:.3f} {self.high:.3f}]"
        return f"{self.mean:.3f}{interval}", f"{self.least:.3f} .. {self.most:.3f}"


def judge(
    positive: Flags, test: Sequence[Scores], benign: Sequence[Scores], bags: Bootstrap
) -> dict[str, Judged]:
    """Judge a detector by its scores of test images [n] and of benign calibration images [m], a pair a seed.

    Names: `auroc`, `ap`, and for thresholds set on the calibration images `pd_02`, `pfa_02` and so on.
    """
    measures: dict[str, Measure] = {}
    for seed, (scores, calibration) in enumerate(zip(test, benign, strict=True)):
        of_seed = _measures(positive, scores, calibration)
        measures |= {f"{name}.{seed}": each for name, each in of_seed.items()}
    names = [name.removesuffix(".0") for name in measures if name.endswith(".0")]
    means = {name: [f"{name}.{seed}" for seed in range(len(test))] for name in names}
    found = with_intervals(measures, means, positive, bags)
    judged = {}
    for name, parts in means.items():
        judged[name] = over_seeds(found[name], [found[part] for part in parts])
    return judged


def over_seeds(mean: Figure, parts: Sequence[Figure]) -> Judged:
    """Join the figure of each seed and their mean; of one seed the interval is its own."""
    values = np.array([part.value for part in parts], np.float64)
    whole = mean if len(parts) > 1 else parts[0]
    return Judged(values.mean(), whole.low, whole.high, values.min(), values.max())


def _measures(positive: Flags, scores: Scores, benign: Scores) -> dict[str, Measure]:
    ranking = Ranking(positive, ranked(scores))
    measures: dict[str, Measure] = {"auroc": Auroc(ranking), "ap": AveragePrecision(ranking)}
    for pfa in PFAS:
        alarm = scores >= threshold_at(benign, pfa)
        measures[f"pd_{percent(pfa)}"] = Share(alarm, positive)
        measures[f"pfa_{percent(pfa)}"] = Share(alarm, ~positive)
    return measures


@dataclass
class Comparison(Report):
    """A report whose figures are a table: a detector a row, below it the range over seeds."""

    rows: dict[str, Mapping[str, Judged]] = field(default_factory=dict)

    def add_row(self, detector: str, judged: Mapping[str, Judged]) -> None:
        """Add a detector; its figures are `gbad_auroc`, with `_low`, `_high`, `_least` and `_most`."""
        self.rows[detector] = judged
        for name, figure in judged.items():
            self.add(f"{detector}_{name}", figure.mean)
            for part in ("low", "high", "least", "most"):
                if (value := getattr(figure, part)) is not None:
                    self.add(f"{detector}_{name}_{part}", value)

    def lines(self) -> list[str]:
        """Write the table, aligned."""
        names = list(dict.fromkeys(name for row in self.rows.values() for name in row))
        table = [["", *names]]
        for detector, row in self.rows.items():
            cells = [row[name].cells() for name in names]
            table.append([detector, *(mean for mean, _ in cells)])
            if any(each.least < each.most for each in row.values()):
                table.append(["  over seeds", *(over for _, over in cells)])
        return aligned(table)
