"""Where rows go: part files that survive anything, gone on with by the same command, one atomic finish."""

import json
import logging
import os
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from ..errors import Refused, Stopped
from ..row import Row
from ..settings import ScanSettings
from ..system.durable import disk_faults_stop, remove
from ..system.machine import installed
from .features import HELD_ROWS, X_SIZE, FeatureStore, write_common_metadata
from .in_flight import collect_suspects, keep_suspects
from .index import Index as Ledger
from .opening import FinishReport, Opening, State, statuses_of
from .parts import PartFolder, files_of, keys_in, read_parquet, write_parquet
from .schema import COMMON_METADATA, KEY_COLUMNS, SCHEMA_VERSION, footer_metadata, results_schema, to_batch
from .staging import Staging, staging_of

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

log = logging.getLogger(__name__)

PART_SECONDS = 5.0  # a part closes after so long
PART_ROWS = 1 << 16  # or after so many rows
PACK_ROWS = 1024  # rows become Arrow columns in chunks of this
PACKAGES = (
    "gbad-batch",
    "cykooz-resizer",
    "numpy",
    "nvidia-dali-cuda130",
    "nvidia-nvimgcodec-cu13",
    "openvino",
    "pillow",
    "pyarrow",
    "simplejpeg",
)


def open_results(
    settings: ScanSettings, fingerprint: dict[str, Any], description: dict[str, Any], x_size: int = X_SIZE
) -> "Session":
    """Begin or go on with the scan into `settings.out`, alone.

    `fingerprint` is what must match for its parts to be gone on with, `description` more for the footer;
    both hold what JSON can. `x_size` is the length of an image's features. Raises Refused where the output
    is finished, locked, of another fingerprint or not usable, Stopped where the disk fails. Where the
    session's `finished` is set, an earlier run was cut short behind its end, and nothing is left to scan.
    """
    if settings.out_path is None:
        raise Refused("a scan that stores its rows needs an output")
    opening = Opening(
        settings,
        json.loads(json.dumps(fingerprint)),
        Staging(settings.out_path, settings.out_is_folder),
        FeatureStore(Path(settings.features), x_size) if settings.features else None,
        statuses_of(settings.retry),
    )
    opening.check()
    opening.staging.enter()
    try:
        with disk_faults_stop(opening.staging.target):
            return Session(opening, opening.settle(), description)
    except BaseException:
        opening.staging.leave()
        if opening.features:
            opening.features.staging.leave()
        raise


class Session:
    """One run of a scan, from its first row to the finish; leaving it keeps the parts.

    `write`, `flush`, `finish` and `close` belong to one thread. They raise Stopped where the disk fails.
    """

    def __init__(self, opening: Opening, settled: State | FinishReport, description: dict[str, Any]):
        self.ledger = self.index = Ledger()
        self.suspects: frozenset[bytes] = frozenset()  # keys of images that an earlier run died decoding
        self.finished: FinishReport | None = None
        self.failed_before = 0  # rows of earlier runs that are not ok
        self.rows_written = 0  # by this run
        self._description = description
        self._staging = opening.staging
        self._features = opening.features
        self._rows: list[Row] = []
        self._batches: list[pa.RecordBatch] = []
        self._held = 0  # rows not yet in a part
        self._part_began = 0.0
        self._writable = isinstance(settled, State)
        if isinstance(settled, FinishReport):
            self.finished = settled
        else:
            self._state = settled
            self._open(opening.retry)

    @property
    def folder(self) -> Path:
        """The private folder of this scan."""
        return self._staging.folder

    # Opening

    def _open(self, retry: list[str]) -> None:
        self._schema = results_schema()
        if self._features:
            self._features.enter(self._state.scan_id)
        remove(self._staging.data / COMMON_METADATA)
        self._parts = PartFolder(self._staging.data)
        if self._state.imports and not self._parts.parts:
            self._import_finished(retry or self._state.retry)
        elif retry and retry != self._state.retry and self._parts.parts:
            self._parts.merge(self._parts.parts[:], self._schema, lambda batch: _without(batch, retry))
        self._state.retry = retry or self._state.retry
        if self._features:
            self._features.open(self._parts.last)
        for batch in self._parts.read([*KEY_COLUMNS, "status"]):
            self.ledger.add_finished(keys_in(batch))
            self.failed_before += sum(status != "ok" for status in batch.column("status").to_pylist())
        self._begin_run()

    def _import_finished(self, retry: list[str]) -> None:
        """Write the rows of the finished output that are not to be scanned again as the first part."""
        through = self._features.import_finished() if self._features else 1
        batches = (
            _without(batch, retry) for file in files_of(self._staging.target) for batch in read_parquet(file)
        )
        self._parts.append(self._schema, batches, through)

    def _begin_run(self) -> None:
        folder = self._staging.folder
        suspects = collect_suspects(folder)
        self.suspects = frozenset(key for key in suspects if key not in self.ledger)
        keep_suspects(folder, self.suspects)
        run = {"host": socket.gethostname(), "versions": installed(PACKAGES), "start": _now(), "end": None}
        self._state.runs.append(run)
        self._state.save(self._staging.state)

    # Writing

    def write(
        self,
        batch: "pa.RecordBatch",
        features: "tuple[NDArray[np.float32], NDArray[np.float32]] | None" = None,
    ) -> None:
        """Store rows; durable within a part: some seconds, or `flush`.

        `features`: x [n, 1024] and logits [n, 5] of the n rows whose status is ok, in their order.
        """
        if not self._held:
            self._part_began = time.monotonic()
        self._batches.append(batch)
        self._held += batch.num_rows
        if self._features and features:
            from .schema import rows_of

            self._features.add([row for row in rows_of(batch) if row.status == "ok"], *features)
        if self._is_part_full():
            self.flush()
        self._staging.lock.tell(self.ledger.finished + self.rows_written + self._held)

    def flush(self) -> None:
        """Make all rows so far durable."""
        if not self._held:
            return
        self._writable = False  # a part that failed half-way is not tried again
        with disk_faults_stop(self._staging.target):
            self._pack()
            if self._features:
                self._features.flush()
            self._parts.append(self._schema, self._batches)
            self.rows_written += self._held
            self._batches, self._held = [], 0
            self._parts.merge_small(self._schema)
        self._writable = True

    def _pack(self) -> None:
        if self._rows:
            self._batches.append(to_batch(self._rows, self._schema))
            self._rows = []

    def _is_part_full(self) -> bool:
        features_held = self._features.held if self._features else 0
        late = time.monotonic() - self._part_began >= PART_SECONDS
        return late or self._held >= PART_ROWS or features_held >= HELD_ROWS

    # Ending

    def finish(self) -> FinishReport:
        """Put the result in its place, all or nothing; raises Stopped where a row is missing, parts kept."""
        for _ in self.finish_steps():
            pass
        assert self.finished is not None
        return self.finished

    def finish_steps(self) -> Iterator[str]:
        """Finish step by step, yielding the name of each when it is durable."""
        with disk_faults_stop(self._staging.target):
            self.flush()
            yield "flushed"
            census = _Census(self.ledger)
            census.features = self._features.drop_stale(self.ledger) if self._features else None
            self._state.runs[-1]["end"] = _now()
            yield "features"
            file = self._staging.folder / "finished.parquet"
            if self._staging.is_folder:
                self._finish_parts(census)
            else:
                batches = (census.kept(batch) for batch in self._parts.read())
                write_parquet(file, self._schema, batches, lambda: footer_metadata(self._footer(census)))
            if self._features:
                self._features.seal(self._footer(census))
            yield "written"
            replace = self._state.replaces
            staging = self._staging
            yield from (
                staging.install_data(replace) if staging.is_folder else staging.install_file(file, replace)
            )
            self._writable = False
            if self._features:
                yield from self._features.install(self._state.scan_id, replace)
            self._staging.remove()
            self.finished = census.report()
            yield "removed"

    def _finish_parts(self, census: "_Census") -> None:
        for part in self._parts.parts:
            batches = read_parquet(part.path, [*KEY_COLUMNS, "kind", "status"])
            self._parts.mask(part, [keep for batch in batches for keep in census.mask(batch)])
        write_common_metadata(self._staging.data, self._schema, self._footer(census))

    def _footer(self, census: "_Census") -> dict[str, Any]:
        """Describe the result; raises Stopped where it does not hold one row for each candidate."""
        census.check()
        return {
            **self._description,
            "schema": SCHEMA_VERSION,
            "scan_id": self._state.scan_id,
            "fingerprint": self._state.fingerprint,
            "runs": self._state.runs,
            **asdict(census.report()),
        }

    def discard(self) -> None:
        """End a run that met no candidate: what earlier runs left stays, else nothing does."""
        if self.ledger.finished or self.rows_written or self._held:
            return self.close()
        self._writable = False
        with disk_faults_stop(self._staging.target):
            if self._features:
                self._features.staging.remove()
            self._staging.remove()
        return None

    def close(self) -> None:
        """Keep what is written and give the output free; a second call does nothing."""
        if not self._staging.lock.held:
            return
        try:
            if self._writable:
                self.flush()
                self._state.runs[-1]["end"] = _now()
                with disk_faults_stop(self._staging.target):
                    self._state.save(self._staging.state)
        finally:
            self._writable = False
            self._staging.leave()
            if self._features:
                self._features.staging.leave()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        with suppress(*([Stopped] if error else [])):  # the first error is the one to tell
            self.close()


@dataclass
class _Census:
    """Counts the rows of the result as they are chosen."""

    ledger: Ledger
    images: int = 0
    containers: int = 0
    ok: int = 0
    gone: int = 0
    replaced: int = 0
    features: int | None = None  # rows of stored features that belong to the result

    def kept(self, batch: "pa.RecordBatch") -> "pa.RecordBatch":
        """Leave the rows whose candidates this run has met."""
        import pyarrow as pa

        return batch.filter(pa.array(self.mask(batch), pa.bool_()))

    def mask(self, batch: "pa.RecordBatch") -> list[bool]:
        """Mark these rows."""
        keep = [self._is_kept(key) for key in keys_in(batch)]
        kept = [
            pair
            for pair, k in zip(zip(*_lists(batch, "kind", "status"), strict=True), keep, strict=True)
            if k
        ]
        containers = sum(kind == "container" for kind, _ in kept)
        self.containers += containers
        self.images += len(kept) - containers
        self.ok += sum(status == "ok" for _, status in kept)
        return keep

    def check(self) -> None:
        """Raise Stopped unless each candidate that was met has its row, and each scored row its features."""
        rows = self.images + self.containers
        if rows != self.ledger.listed:
            raise Stopped(
                f"the result would hold {rows} rows for {self.ledger.listed} candidates: its parts are kept"
            )
        if self.features is not None and self.features != self.ok:
            raise Stopped(
                f"features of {self.features} images are stored, not of {self.ok}: the parts are kept"
            )

    def report(self) -> FinishReport:
        return FinishReport(
            self.images + self.containers, self.images, self.containers, self.gone, self.replaced
        )

    def _is_kept(self, key: bytes) -> bool:
        keep = self.ledger.is_listed(key)
        if not keep:
            replaced = self.ledger.is_replaced(key)
            self.replaced += replaced
            self.gone += not replaced
        return keep


def _lists(batch: "pa.RecordBatch", *names: str) -> list[list[Any]]:
    return [batch.column(name).to_pylist() for name in names]


def _without(batch: "pa.RecordBatch", statuses: list[str]) -> "pa.RecordBatch":
    import pyarrow as pa

    return batch.filter(pa.array([s not in statuses for s in batch.column("status").to_pylist()], pa.bool_()))


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
