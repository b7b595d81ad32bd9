"""Drift: whether the images of one result differ from those of another by more than chance.

Two distances of each figure: the population stability index over deciles of the baseline, and Wasserstein's
distance. What they come to without drift is seen in random splits of the baseline, which keep the images of
one folder and day together; the largest over all figures counts, so that many figures raise no more alarms
than one (Westfall and Young, Resampling-Based Multiple Testing, 1993).
"""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import import_module
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import MissingExtra, Refused, how_to_install
from ..results.finished import current_footer
from ..results.parts import ROW_GROUP, files_of, read_parquet
from ..results.schema import columns_of
from ..row import THREATS
from ..text import counted
from .comparing import FOLDER
from .told_apart import ToldApart, tell_apart

if TYPE_CHECKING:
    import pyarrow as pa

CLASSES = tuple(f"p_{threat}" for threat in THREATS)
FIGURES = (
    "anomaly_score", "reconstruction_loss", "feature_matching_loss", *CLASSES, "largest_logit", "typicality",
)  # fmt: skip
LOGARITHMS = ("reconstruction_loss", "feature_matching_loss", "typicality")
SMALLEST = 1e-12  # a smaller loss or probability has no useful logarithm
FEWEST = 100  # images of a result, and of a folder or day that is looked at by itself
DECILES = 10
FINER = 25  # bins of a decile, for Wasserstein's distance
SPLITS = 1000  # of the baseline
FALSE_ALARMS = 0.01  # share of comparisons without drift that are called drift; of all groups together, too
BLOCKS = 400  # that the baseline is split into: random ones, or of whole folders and days
FEWEST_BLOCKS = 20  # folders and days from which on splits keep them whole
SLIGHT, MODERATE = 0.1, 0.25  # the customary reading of the index

Floats = NDArray[np.float64]
Counts = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class DriftSettings:
    """Which results to compare. Raises Refused for impossible values."""

    baseline: Path  # finished results: a file, or a folder of parts
    current: Path  # likewise, by the same model
    features: tuple[Path, Path] | None = None  # the features of both scans
    top: int = 20  # folders and days that are listed

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        if self.top < 0:
            raise Refused(f"--top {self.top} is below zero: name how many folders and days to list")


@dataclass(frozen=True)
class Shift:
    """How far a figure has moved, and how far it moves in random splits of the baseline."""

    figure: str
    psi: float  # population stability index
    psi_limit: float
    distance: float  # Wasserstein's, in standard deviations of the baseline; of the logarithm of losses
    distance_limit: float
    moved: float  # of the mean, in the same unit

    @property
    def excess(self) -> float:
        """Return the larger distance over its limit: above 1 it is drift."""
        return max(self.psi / self.psi_limit, self.distance / self.distance_limit)


@dataclass(frozen=True)
class Group:
    """A folder or day of the current result, compared with the same one, or with all, of the baseline."""

    kind: str  # folder or day
    name: str
    images: int
    against: int  # images of the baseline
    drift: bool
    worst: Shift


@dataclass
class Drift:
    """What differs between two results."""

    verdict: str  # drift or none
    size: str | None  # slight, moderate or large, by the index
    sentence: str
    baseline: str
    current: str
    images: tuple[int, int]  # with a score
    blocks: int  # folders and days that splits kept whole; 0 if images were split
    shifts: list[Shift] = field(default_factory=list)  # the largest excess first
    tested: int = 0  # folders and days
    groups: list[Group] = field(default_factory=list)  # the largest excess first
    features: ToldApart | None = None
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return the figures by name."""
        return asdict(self)


def drift(settings: DriftSettings) -> Drift:
    """Compare the figures of two results, as a whole and by folder and day; raises Refused, MissingExtra."""
    if not find_spec("scipy"):
        raise MissingExtra(f"drift needs SciPy: {how_to_install('statistics')}")
    baseline, current = (_Read.of(path) for path in (settings.baseline, settings.current))
    _check(baseline, current, settings)
    figures = [k for k in range(len(FIGURES)) if baseline.has(k) and current.has(k)]
    bins = _Bins(baseline.values[:, figures])
    codes = [bins.codes(each.values[:, figures]) for each in (baseline, current)]
    blocks, whole = baseline.blocks()
    null = _Null(bins, codes[0], blocks)
    names = [FIGURES[k] for k in figures]
    histograms = [bins.histogram(each) for each in codes]
    shifts = _compared(names, bins, histograms[0], histograms[1], null.limits(1))
    groups = _groups(names, bins, (baseline, current), codes, null)
    apart = None if settings.features is None else tell_apart(*settings.features)
    found = Drift(
        verdict="none",
        size=None,
        sentence="",
        baseline=str(settings.baseline),
        current=str(settings.current),
        images=(len(baseline.values), len(current.values)),
        blocks=whole,
        shifts=shifts,
        tested=len(groups),
        groups=groups[: settings.top],
        features=apart,
    )
    _conclude(found, groups)
    if not whole:
        found.notes.append(
            f"BASELINE has fewer than {FEWEST_BLOCKS} folders and days: what differs from one to the next, "
            "whatever the reason, counts as drift"
        )
    return found


def _check(baseline: "_Read", current: "_Read", settings: DriftSettings) -> None:
    """Raise Refused unless the figures of both results are comparable."""
    ours, theirs = current.footer, baseline.footer
    if ours["bundle_hash"] != theirs["bundle_hash"]:
        raise Refused(
            f"{settings.current} comes from another model ({ours['bundle_hash'][:12]}) than "
            f"{settings.baseline} ({theirs['bundle_hash'][:12]}): scan or rescore one with the other's"
        )
    decisions = [each["operating_point"]["decision"] for each in (theirs, ours)]
    if decisions[0] != decisions[1]:
        raise Refused(
            f"{settings.current} was decided by {decisions[1]!r}, {settings.baseline} by {decisions[0]!r}: "
            f"run gbad-batch decide --decision {decisions[0]} on it first"
        )
    for read, path in ((baseline, settings.baseline), (current, settings.current)):
        if len(read.values) < FEWEST:
            raise Refused(
                f"{path} holds {counted(len(read.values), 'image')} with a score, and fewer than {FEWEST} "
                "tell nothing: give larger results"
            )


@dataclass(frozen=True)
class _Read:
    """The scored images of a result: their figures, their folders and their days."""

    footer: dict[str, Any]
    values: NDArray[np.float32]  # [n, figures]; NaN where a bundle does not tell
    groups: dict[str, tuple[NDArray[np.int32], list[str]]]  # by kind: the number of each image's, names

    @classmethod
    def of(cls, path: Path) -> "_Read":
        footer = current_footer(path)
        values, folders, days = [], _Names(), _Names()
        numbers: dict[str, list[NDArray[np.int32]]] = {"folder": [], "day": []}
        for batch in _batches(path):
            values.append(_figures(batch))
            numbers["folder"].append(folders.numbers(_folders(batch)))
            numbers["day"].append(days.numbers(_days(batch)))
        joined = {k: np.concatenate([np.empty(0, np.int32), *each]) for k, each in numbers.items()}
        names = {"folder": folders.listed(), "day": [_date(each) for each in days.listed()]}
        whole = np.concatenate([np.empty((0, len(FIGURES)), np.float32), *values])
        return cls(footer, whole, {kind: (joined[kind], names[kind]) for kind in names})

    def has(self, figure: int) -> bool:
        """Tell whether the model gave this figure."""
        return not np.isnan(self.values[:, figure]).any()

    def blocks(self) -> tuple[NDArray[np.intp], int]:
        """Divide the images into BLOCKS at most: of whole folders and days, or random ones of few.

        Returns the block of each image, and the number of folders and days that are kept whole, or 0.
        """
        random = np.random.default_rng(0)
        (folders, _), (days, names) = self.groups["folder"], self.groups["day"]
        found, block = np.unique(folders.astype(np.int64) * len(names) + days, return_inverse=True)
        if len(found) < FEWEST_BLOCKS:
            return random.permutation(len(self.values)) % BLOCKS, 0
        return (random.permutation(len(found)) % BLOCKS)[block], len(found)


class _Names:
    """Numbers values in the order of their first appearance."""

    def __init__(self) -> None:
        self._numbers: dict[Any, int] = {}

    def numbers(self, column: "pa.Array") -> NDArray[np.int32]:
        """Return the number of each value."""
        coded = column.dictionary_encode()
        own = [self._numbers.setdefault(v, len(self._numbers)) for v in coded.dictionary.to_pylist()]
        return np.array(own, np.int32)[coded.indices.to_numpy(zero_copy_only=False)]

    def listed(self) -> list[Any]:
        """Return the values by number."""
        return list(self._numbers)


def _batches(path: Path) -> "Iterator[pa.RecordBatch]":
    import pyarrow as pa

    schema = columns_of("uri", "mtime", *FIGURES, "gone")
    for file in files_of(path):
        for batch in read_parquet(file, schema, ROW_GROUP):
            there = batch["gone"].is_null().to_numpy(zero_copy_only=False)
            there &= batch["anomaly_score"].is_valid().to_numpy(zero_copy_only=False)
            if there.any():
                yield batch.filter(pa.array(there))


def _figures(batch: "pa.RecordBatch") -> NDArray[np.float32]:
    """Return the figures [n, figures], on scales where a shift means the same everywhere."""
    columns = []
    for name in FIGURES:
        values = batch[name].to_numpy(zero_copy_only=False).astype(np.float64)
        if name in LOGARITHMS:
            values = np.log(np.maximum(values, SMALLEST))
        elif name in CLASSES:
            p = np.clip(values, SMALLEST, 1 - 1e-7)
            values = np.log(p / (1 - p))
        columns.append(values.astype(np.float32))
    return np.stack(columns, axis=1)


def _folders(batch: "pa.RecordBatch") -> "pa.Array":
    pc: Any = import_module("pyarrow.compute")  # its functions are made at run time, unknown to checkers
    return pc.replace_substring_regex(batch["uri"], pattern=FOLDER, replacement="")


def _days(batch: "pa.RecordBatch") -> "pa.Array":
    """Return the days since the epoch on which files were last modified, -1 where that is unknown."""
    import pyarrow as pa

    return pa.array(batch["mtime"].cast(pa.int64()).fill_null(-1).to_numpy() // 86_400_000_000)


def _date(day: int) -> str:
    return "unknown" if day < 0 else datetime.fromtimestamp(day * 86_400, UTC).date().isoformat()


class _Bins:
    """Bins of each figure by quantiles of the baseline: FINER in each decile, fewer where values tie."""

    def __init__(self, values: NDArray[np.float32]):
        shares = np.linspace(0, 1, DECILES * FINER + 1)[1:-1]
        self._edges = [np.unique(np.quantile(column, shares)) for column in values.T]
        self.count = DECILES * FINER  # of a figure, some of them empty
        self.std = np.maximum(values.std(axis=0, dtype=np.float64), SMALLEST)
        self._codes = self.codes(values)
        self.places = np.stack([self._middle(k, column) for k, column in enumerate(values.T)])
        self.widths = np.diff(self.places, axis=1) / self.std[:, None]  # [figures, count - 1]
        self._decile = np.stack([self._deciles(codes) for codes in self._codes.T])  # [figures, count]

    def codes(self, values: NDArray[np.float32]) -> NDArray[np.int16]:
        """Return the bin of each value [n, figures]."""
        columns = [np.searchsorted(e, v, "right") for e, v in zip(self._edges, values.T, strict=True)]
        return np.stack(columns, axis=1).astype(np.int16)

    def _middle(self, figure: int, column: NDArray[np.float32]) -> Floats:
        """Return the mean of the baseline's values in each bin; empty bins have that of the one before."""
        codes = self._codes[:, figure]
        counts = np.bincount(codes, minlength=self.count)
        means = np.bincount(codes, column, self.count) / np.maximum(counts, 1)
        known = np.maximum.accumulate(np.where(counts > 0, np.arange(self.count), 0))
        return means[known]

    def _deciles(self, codes: NDArray[np.int16]) -> NDArray[np.intp]:
        """Return the decile that each bin lies in, by the share of the baseline before its middle."""
        counts = np.bincount(codes, minlength=self.count)
        before = (np.cumsum(counts) - counts / 2) / counts.sum()
        return np.minimum((before * DECILES).astype(np.intp), DECILES - 1)

    def histogram(self, codes: NDArray[np.int16]) -> Counts:
        """Return the counts [figures, count] of bins."""
        return np.stack([np.bincount(column, minlength=self.count) for column in codes.T]).astype(np.float64)

    def distances(self, first: Counts, second: Counts) -> tuple[Floats, Floats]:
        """Return index and Wasserstein's distance [..., figures] of histograms [..., figures, count].

        The index is smoothed by half an image a decile; distances are in standard deviations.
        """
        shares = [each / each.sum(axis=-1, keepdims=True) for each in (first, second)]
        cumulative = np.cumsum(shares[0] - shares[1], axis=-1)[..., :-1]
        wasserstein = (np.abs(cumulative) * self.widths).sum(axis=-1)
        p, q = (self._smoothed(each) for each in (first, second))
        return ((p - q) * np.log(p / q)).sum(axis=-1), wasserstein

    def _smoothed(self, histogram: Counts) -> Floats:
        """Return the shares [..., figures, DECILES] of deciles; one that ties leave empty says nothing."""
        counts = np.zeros((*histogram.shape[:-1], DECILES))
        for figure, decile in enumerate(self._decile):
            for k in range(DECILES):
                counts[..., figure, k] = histogram[..., figure, decile == k].sum(axis=-1)
        counts += 0.5
        return counts / counts.sum(axis=-1, keepdims=True)


def _scale(first: Counts, second: Counts) -> Floats:
    """Return 1/n + 1/m of two histograms: the index scales by it, Wasserstein's distance by its root."""
    return 1 / first.sum(axis=-1) + 1 / second.sum(axis=-1)


@dataclass(frozen=True)
class _Limits:
    """What both distances of each figure may come to, for one comparison of histograms."""

    psi: Floats  # [figures], over 1/n + 1/m
    distance: Floats  # [figures], over its root


class _Null:
    """Both distances in SPLITS random halves of the baseline, apart from the sizes of the halves."""

    def __init__(self, bins: _Bins, codes: NDArray[np.int16], blocks: NDArray[np.intp]):
        random = np.random.default_rng(1)
        number = int(blocks.max()) + 1
        order = np.argsort(blocks, kind="stable")
        bounds = np.searchsorted(blocks[order], np.arange(number + 1))
        counts = np.stack(
            [bins.histogram(codes[order[a:b]]) for a, b in pairwise(bounds)]
        )  # [blocks, figures, count]
        total, flat = counts.sum(axis=0), counts.reshape(number, -1)
        scaled = []
        for _ in range(SPLITS // 100):
            halves = random.permuted(np.tile(np.arange(number) < number // 2, (100, 1)), axis=1)
            first = (halves.astype(np.float64) @ flat).reshape(100, *total.shape)
            psi, distance = bins.distances(first, total - first)
            scale = _scale(first, total - first)
            scaled.append(np.stack([psi / scale, distance / np.sqrt(scale)], axis=1))  # [100, 2, figures]
        everything = np.concatenate(scaled)
        # each distance in units of what it seldom exceeds, so that all of them have one limit
        self._unit = np.maximum(np.quantile(everything, 0.99, axis=0), SMALLEST)  # [2, figures]
        self._largest = np.sort((everything / self._unit).max(axis=(1, 2)))

    def limits(self, comparisons: int) -> _Limits:
        """Return limits that FALSE_ALARMS of such numbers of comparisons without drift exceed in any.

        Beyond the highest tenth of the splits, which are too few for many comparisons, the tail is taken for
        exponential, which is that of the index; that of Wasserstein's distance is shorter.
        """
        start = np.quantile(self._largest, 0.9)
        excess = float((self._largest[self._largest >= start] - start).mean())
        limit = start + excess * np.log(0.1 * comparisons / FALSE_ALARMS)
        return _Limits(*(limit * self._unit))


def _compared(names: list[str], bins: _Bins, first: Counts, second: Counts, limits: _Limits) -> list[Shift]:
    """Compare the histograms of two sets of images by every figure; the largest excess comes first."""
    from scipy.stats import wasserstein_distance

    index, _ = bins.distances(first, second)
    scale = _scale(first, second)
    shifts = []
    for k, name in enumerate(names):
        places, counts = bins.places[k], (first[k], second[k])
        means = [float((places * each).sum() / each.sum()) for each in counts]
        shifts.append(
            Shift(
                figure=name,
                psi=float(index[k]),
                psi_limit=float(limits.psi[k] * scale[k]),
                distance=float(wasserstein_distance(places, places, *counts) / bins.std[k]),
                distance_limit=float(limits.distance[k] * np.sqrt(scale[k])),
                moved=(means[1] - means[0]) / float(bins.std[k]),
            )
        )
    return sorted(shifts, key=lambda shift: -shift.excess)


def _groups(
    names: list[str], bins: _Bins, reads: tuple[_Read, _Read], codes: list[NDArray[np.int16]], null: _Null
) -> list[Group]:
    """Compare the folders and days of the current result, those of the largest excess first.

    The same folder or day of the baseline is the measure, where that has enough images of it, else all of it.
    """
    whole = bins.histogram(codes[0])
    chosen: list[tuple[str, str, Counts, Counts]] = []
    for kind in ("folder", "day"):
        (before, known), (now, named) = (read.groups[kind] for read in reads)
        own = {known[k]: rows for k, rows in _members(before)}
        members = _members(now)
        for k, rows in members if len(members) > 1 else ():  # one alone is the whole
            same = own.get(named[k])
            first = whole if same is None else bins.histogram(codes[0][same])
            chosen.append((kind, named[k], first, bins.histogram(codes[1][rows])))
    limits = null.limits(max(1, len(chosen)))
    found = []
    for kind, name, first, second in chosen:
        worst = _compared(names, bins, first, second, limits)[0]
        images, against = (int(each[0].sum()) for each in (second, first))
        found.append(Group(kind, name, images, against, worst.excess > 1, worst))
    return sorted(found, key=lambda group: (-group.worst.excess, group.name))


def _members(numbers: NDArray[np.int32]) -> list[tuple[int, NDArray[np.intp]]]:
    """Return the images of each number that has FEWEST or more."""
    order = np.argsort(numbers, kind="stable")
    counts = np.bincount(numbers)
    ends = np.cumsum(counts)
    return [
        (k, order[end - count : end])
        for k, (count, end) in enumerate(zip(counts.tolist(), ends.tolist(), strict=True))
        if count >= FEWEST
    ]


def _conclude(found: Drift, groups: list[Group]) -> None:
    """Set the verdict, its size and the sentence."""
    worst, strange = found.shifts[0], [group for group in groups if group.drift]
    whole = worst.excess > 1
    by_features = found.features is not None and found.features.drift
    if not (whole or strange or by_features):
        found.sentence = (
            f"none: {counted(found.images[1], 'image')} of CURRENT differ from the {found.images[0]} of "
            "BASELINE no more than parts of BASELINE differ from each other"
        )
        return
    found.verdict = "drift"
    most = (
        max((each.psi for each in found.shifts), default=0.0)
        if whole or not strange
        else strange[0].worst.psi
    )
    found.size = "slight" if most < SLIGHT else "moderate" if most < MODERATE else "large"
    if whole:
        what = f"the images of CURRENT differ from those of BASELINE, most in {_told(worst)}"
    elif strange:
        what = f"CURRENT as a whole is like BASELINE, but not {strange[0].kind} {strange[0].name}, most in "
        what += _told(strange[0].worst)
    else:
        what = "features tell the images of CURRENT from those of BASELINE, though no figure does"
    found.sentence = f"drift, {found.size}: {what}"


def _told(shift: Shift) -> str:
    return (
        f"{shift.figure} (moved by {shift.moved:+.2f} standard deviations, stability index {shift.psi:.2f})"
    )
