"""One pass over the rows of a result: counts, and what every scored image needs in a report."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import Refused
from ..results.finished import not_results
from ..results.parts import files_of, read_parquet
from ..results.schema import columns_of
from ..row import THREATS

if TYPE_CHECKING:
    import pyarrow as pa

DIGEST = 16  # bytes of a SHA-256 that tell images apart
LOSSES = ("reconstruction_loss", "feature_matching_loss")
COLUMNS = ("kind", "status", "sha256", *LOSSES, "anomaly_score", "anomalous", "threats", "typicality")


@dataclass
class Tally:
    """Counts of a result, and 40 bytes of each scored image, in the order of the rows."""

    rows: int = 0
    containers: int = 0  # rows of folders and archives that could not be read to their end
    failed: Counter[str] = field(default_factory=Counter)  # images and containers, by reason
    unscored: int = 0  # rows that are ok and have no finite score, as no scan writes them
    alarms: int = 0
    atypical: int | None = None  # scored images like nothing the model has seen; None if it does not tell
    by_class: dict[str, int] = field(default_factory=lambda: dict.fromkeys(THREATS, 0))
    numbers: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))  # [n] of rows
    scores: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))  # [n]
    losses: NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 2), np.float32))  # [n, 2]
    digests: NDArray[np.uint8] = field(default_factory=lambda: np.empty((0, DIGEST), np.uint8))  # [n, 16]

    @property
    def halves(self) -> NDArray[np.uint64]:
        """Digests as pairs of numbers, [n, 2]."""
        return np.ascontiguousarray(self.digests).view(np.uint64)

    def distinct(self) -> NDArray[np.intp]:
        """Return the position of each distinct image, that of its highest score, in the order of digests."""
        halves = self.halves
        order = np.lexsort((-self.scores, halves[:, 1], halves[:, 0]))
        ordered = halves[order]
        is_first = np.ones(len(order), np.bool_)
        is_first[1:] = (ordered[1:] != ordered[:-1]).any(axis=1)
        return order[is_first]


def batches_of(result: Path, *columns: str) -> "Iterator[pa.RecordBatch]":
    """Yield these columns of a finished result in pieces; raises Refused if it has others or is damaged."""
    schema = columns_of(*columns)
    for file in files_of(result):  # by handles: Arrow takes no path that is not UTF-8
        yield from read_parquet(file, schema)


def tally_of(result: Path) -> Tally:
    """Read a finished result once; raises Refused if it is damaged or not one."""
    tally = Tally()
    parts = [part for batch in batches_of(result, *COLUMNS) if (part := _count(tally, batch, result))]
    if parts:
        tally.numbers, tally.scores, tally.losses, tally.digests = map(
            np.concatenate, zip(*parts, strict=True)
        )
    return tally


def _count(tally: Tally, batch: "pa.RecordBatch", result: Path) -> tuple[NDArray[Any], ...]:
    """Count a batch; returns numbers, scores, losses and digests of its scored images."""
    pc: Any = import_module("pyarrow.compute")  # its functions are made at run time, unknown to checkers

    statuses = _counted(batch["status"])
    ok = statuses.pop("ok", 0)
    tally.failed += statuses
    tally.containers += _counted(batch["kind"])["container"]
    is_scored = pc.and_(pc.equal(batch["status"], "ok"), pc.is_finite(batch["anomaly_score"]))
    chosen = np.flatnonzero(pc.fill_null(is_scored, False).to_numpy(zero_copy_only=False))
    numbers, scored = tally.rows + chosen, batch.take(chosen)
    tally.rows += batch.num_rows
    tally.unscored += ok - len(chosen)
    tally.alarms += scored["anomalous"].true_count
    for threat, number in _counted(scored["threats"].flatten()).items():
        if threat in tally.by_class:
            tally.by_class[threat] += number
    if scored["typicality"].null_count < len(chosen):
        tally.atypical = (tally.atypical or 0) + (pc.sum(pc.less(scored["typicality"], 1)).as_py() or 0)
    digests = scored["sha256"]
    if digests.null_count:
        raise Refused(not_results(result))
    # a fixed width of 32 bytes, so the buffer is the values; `take` has made it begin at 0
    whole = np.frombuffer(digests.buffers()[1] or b"", np.uint8, 32 * len(chosen)).reshape(-1, 32)
    losses = np.stack([scored[name].to_numpy(zero_copy_only=False) for name in LOSSES], axis=1)
    scores = scored["anomaly_score"].to_numpy(zero_copy_only=False)
    return numbers, scores, losses.astype(np.float32), whole[:, :DIGEST].copy()


def _counted(column: Any) -> Counter[str]:
    return Counter({str(each["values"].as_py()): each["counts"].as_py() for each in column.value_counts()})
