"""Bootstrap intervals over bags, which are drawn with replacement, positive and benign ones separately."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..model.calibration import wilson_interval
from .measures import Flags, Floats, Measure, Share

RESAMPLES = 500
AT_ONCE = 1 << 18  # weights held at a time
LEVELS = (0.025, 0.975)


@dataclass(frozen=True)
class Figure:
    """A figure with its 95 % interval."""

    value: float | None  # None where it is not defined
    low: float | None  # None, too, where every resample gives the same: that is no interval
    high: float | None


Figures = dict[str, Figure]


@dataclass(frozen=True, eq=False)
class Bootstrap:
    """Groups of images and number of resamples; the same seed gives the same intervals."""

    group: NDArray[np.intp]  # [n] the bag of each image, 0 to the number of bags - 1
    resamples: int = RESAMPLES
    seed: int = 0

    @classmethod
    def by_group(cls, groups: Sequence[str]) -> "Bootstrap":
        """Group images by the name of their bag; an image without one is a bag by itself."""
        names = [f"bag {group}" if group else f"image {i}" for i, group in enumerate(groups)]
        return cls(np.unique(names, return_inverse=True)[1])

    def weights(self, positive: Flags) -> Iterator[Floats]:
        """Yield how often each image is drawn, [b, n], for `resamples` draws in all.

        Bags are drawn whole. Bags with a positive image and bags without are drawn separately, so that every
        resample has both kinds in the same shares.
        """
        count = int(self.group.max()) + 1
        suspicious = np.bincount(self.group, positive, count) > 0
        # a generator for each kind: what is drawn does not depend on how many are drawn at once
        kinds = [
            (np.flatnonzero(suspicious == kind), np.random.default_rng((self.seed, 5, kind)))
            for kind in (0, 1)
        ]
        at_once = max(1, AT_ONCE // len(self.group))
        for start in range(0, self.resamples, at_once):
            times = np.zeros((min(at_once, self.resamples - start), count))
            for kind, random in kinds:
                if len(kind):
                    times[:, kind] = _draws(random, len(times), len(kind))
            yield times[:, self.group]


def _draws(random: np.random.Generator, rows: int, count: int) -> NDArray[np.intp]:
    """Draw `count` of `count` with replacement, `rows` times; returns the number of draws, [rows, count]."""
    drawn = random.integers(0, count, (rows, count)) + count * np.arange(rows)[:, None]
    return np.bincount(drawn.ravel(), minlength=rows * count).reshape(rows, count)


def with_intervals(
    measures: Mapping[str, Measure], means: Mapping[str, Sequence[str]], positive: Flags, bootstrap: Bootstrap
) -> Figures:
    """Return every measure, and every mean of the measures that `means` names, with its interval.

    A mean leaves out undefined measures. `positive` [n] separates the two kinds, which are drawn separately.
    """
    values = {name: measure.value() for name, measure in measures.items()}
    defined = {name: measures[name] for name, value in values.items() if not np.isnan(value)}
    drawn: dict[str, list[Floats]] = {name: [] for name in defined}
    for weights in bootstrap.weights(positive):
        for name, measure in defined.items():
            drawn[name].append(measure.weighted(weights))
    samples = {name: np.concatenate(parts) for name, parts in drawn.items()}
    figures = dict.fromkeys([*means, *measures], Figure(None, None, None))
    figures |= {
        name: _figure(measure, values[name], samples[name], bootstrap) for name, measure in defined.items()
    }
    for name, parts in means.items():
        if held := [part for part in parts if part in defined]:
            mean = float(np.mean([values[part] for part in held]))
            figures[name] = _bounded(mean, _mean(np.array([samples[part] for part in held])))
    return figures


def _figure(measure: Measure, value: float, sample: Floats, bootstrap: Bootstrap) -> Figure:
    if isinstance(measure, Share) and value in (0, 1):  # no resample says anything else
        among = len(np.unique(bootstrap.group[measure.among]))
        return Figure(value, *wilson_interval(round(value * among), among))
    return _bounded(value, sample)


def _bounded(value: float, sample: Floats) -> Figure:
    low, high = np.nanquantile(sample, LEVELS).tolist()
    return Figure(value, low, high) if low < high else Figure(value, None, None)


def _mean(samples: Floats) -> Floats:
    """Return the mean [b] over the measures of samples [k, b] that are defined in it."""
    held = ~np.isnan(samples)
    count = held.sum(axis=0)
    return np.where(held, samples, 0).sum(axis=0) / np.where(count, count, np.nan)
