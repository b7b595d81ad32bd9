"""The most anomalous images of a result, one entry for equal bytes or a bag, with all a row says of them."""

import math
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..grouping import Numbered
from ..results.parts import is_one_of
from ..results.schema import COLUMNS, rows_of
from ..row import Row
from .tally import Tally, batches_of

if TYPE_CHECKING:
    import pyarrow as pa

MOST_PLACES = 20  # of equal bytes that are named
MOST_VIEWS = 20  # of a bag that are shown
MOST_EXAMPLES = 5  # of failed rows that are named, by reason


@dataclass
class Entry:
    """One image of the gallery, or one bag."""

    copies: int  # rows with these bytes; of a bag, its views
    row: Row  # the first of them; of a bag, the view with the highest score
    places: list[str] = field(default_factory=list)  # uris of the others, at most MOST_PLACES
    views: list[Row] = field(default_factory=list)  # the other views of a bag, at most MOST_VIEWS


@dataclass
class Gallery:
    """Entries by falling score, and some rows of every reason to fail."""

    entries: list[Entry]
    distinct_cut: bool  # whether images are left out because there are more than asked for
    failures: dict[str, list[Row]]  # the first MOST_EXAMPLES of each reason


@dataclass(frozen=True)
class Sample:
    """Distinct alarms drawn at random, which a gallery shows in place of the highest scores.

    Those of the lowest digests are drawn: a digest says nothing about an image, and whoever reads verdicts
    can draw the same again.
    """

    positions: NDArray[np.intp]  # in the tally, by falling score
    alarms: int  # distinct ones that it was drawn from

    @classmethod
    def of(cls, tally: Tally, threshold: float, count: int) -> "Sample":
        """Draw `count` alarms, or all if there are no more."""
        distinct = tally.distinct()
        alarms = distinct[tally.scores[distinct] >= threshold]
        drawn = alarms[:count]
        return cls(drawn[np.argsort(-tally.scores[drawn], kind="stable")], len(alarms))


def gallery_of(
    result: Path, tally: Tally, top: int, bags: Numbered | None = None, sample: Sample | None = None
) -> Gallery:
    """Read the rows of the `top` images, or `bags`, of the highest scores, or of a `sample`.

    Raises Refused if the result is damaged.
    """
    order = np.argsort(-tally.scores, kind="stable") if sample is None else sample.positions  # ties by row
    groups, cut = _groups(tally, order, top) if bags is None else _bags(tally, top, bags)
    most = 1 + (MOST_PLACES if bags is None else MOST_VIEWS)
    wanted = {number: k for k, group in enumerate(groups) for number in group[:most]}
    found: dict[int, list[Row]] = defaultdict(list)
    failures: dict[str, list[Row]] = {status: [] for status, _ in tally.failed.most_common()}
    numbers, first = np.array(sorted(wanted), np.int64), 0
    for batch in batches_of(result, *COLUMNS):
        here = numbers[np.searchsorted(numbers, first) : np.searchsorted(numbers, first + batch.num_rows)]
        for number, row in zip(here.tolist(), rows_of(batch.take(here - first)), strict=True):
            found[wanted[number]].append(row)
        _add_failures(failures, batch)
        first += batch.num_rows
    whole = _entry if bags is None else _bag_entry
    return Gallery([whole(len(group), found[k]) for k, group in enumerate(groups)], cut, failures)


def _entry(count: int, rows: list[Row]) -> Entry:
    return Entry(count, rows[0], [row.uri for row in rows[1:]])


def _bag_entry(count: int, rows: list[Row]) -> Entry:
    scores = [-math.inf if row.anomaly_score is None else row.anomaly_score for row in rows]
    best = scores.index(max(scores))
    return Entry(count, rows[best], views=rows[:best] + rows[best + 1 :])


def _groups(tally: Tally, order: NDArray[np.intp], top: int) -> tuple[list[list[int]], bool]:
    """Return the row numbers of equal bytes, in the order of positions, and whether there are more."""
    cut = False
    chosen: dict[bytes, list[int]] = {}
    for position in order:
        digest = tally.digests[position].tobytes()
        if digest not in chosen:
            if len(chosen) == top:
                cut = True
                break
            chosen[digest] = []
    if not chosen:
        return [], False
    starts = np.frombuffer(b"".join(chosen), np.uint64)[::2]
    alike = np.isin(tally.halves[:, 0], starts)
    for position in np.flatnonzero(alike):
        group = chosen.get(tally.digests[position].tobytes())
        if group is not None:  # else only the first half is equal
            group.append(int(tally.numbers[position]))
    return list(chosen.values()), cut


def _bags(tally: Tally, top: int, bags: Numbered) -> tuple[list[list[int]], bool]:
    """Return the row numbers of each bag, that of its highest score first, and whether there are more.

    Bags fall by their highest score; a bag without one is among the failures only.
    """
    own = bags.bags[tally.numbers]
    order = np.argsort(-tally.scores, kind="stable")
    order = order[own[order] >= 0]
    _, first = np.unique(own[order], return_index=True)
    faces = order[np.sort(first)]  # the highest score of each bag
    chosen = own[faces[:top]]
    groups = {int(bag): [int(row)] for bag, row in zip(chosen, tally.numbers[faces[:top]], strict=True)}
    for row in np.flatnonzero(np.isin(bags.bags, chosen)):
        group = groups[int(bags.bags[row])]
        if row != group[0]:
            group.append(int(row))
    return list(groups.values()), len(faces) > top


def incomplete_bags(tally: Tally, bags: Numbered) -> int:
    """Count the bags of which a view has no score."""
    failed = bags.bags >= 0
    failed[tally.numbers] = False
    return len(np.unique(bags.bags[failed]))


def alarming_bags(tally: Tally, bags: Numbered, threshold: float) -> int:
    """Count the bags of which a view reaches a threshold."""
    own: NDArray[np.int32] = bags.bags[tally.numbers[tally.scores >= threshold]]
    return len(np.unique(own[own >= 0]))


def _add_failures(failures: dict[str, list[Row]], batch: "pa.RecordBatch") -> None:
    """Add the first rows of each reason that has too few yet."""
    for status, rows in failures.items():
        if len(rows) < MOST_EXAMPLES:
            at = np.flatnonzero(is_one_of(batch["status"], [status]))[: MOST_EXAMPLES - len(rows)]
            rows += rows_of(batch.take(at)) if len(at) else []
