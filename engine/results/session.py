"""Store rows in part files that survive a crash, resume them by the same command, finish atomically."""

import json
import logging
import socket
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from ..errors import Refused, Stopped
from ..settings import ScanSettings
from ..system.durable import disk_faults_stop, remove
from ..system.machine import installed
from ..text import counted, disk_size, timestamp
from .contents import write_contents
from .features import HELD_ROWS, X_SIZE, FeatureStore, write_common_metadata
from .in_flight import collect_suspects, keep_suspects
from .index import Index
from .parts import (
    PartFolder,
    files_of,
    is_one_of,
    key_at,
    keys_of_finished,
    read_parquet,
    rows_in,
    write_parquet,
)
from .remote_staging import staging_for
from .resuming import Command, FinishReport, ScanState, statuses_of, usable
from .room import bytes_of, free_bytes
from .schema import COMMON_METADATA, KEY_COLUMNS, SCHEMA_VERSION, columns_of, footer_metadata, results_schema
from .selection import Selection, in_listing_order, in_part

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    from .schema import Floats

log = logging.getLogger(__name__)

PART_SECONDS = 5.0  # a part closes after so long
PART_ROWS = 1 << 16  # or after so many rows
PART_BYTES = 64_000_000  # or after so many bytes of them
JOIN_ROWS = 1024  # small batches are joined into batches of so many rows
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


def check_output(settings: ScanSettings) -> None:
    """Refuse an output that cannot be written, before a model is opened for it; raises Refused."""
    if settings.out is None:
        raise Refused("a scan that stores its rows needs an output")
    staging = staging_for(settings.out, settings.state_dir)
    with usable(staging.target):
        staging.check_target()


def open_results(
    settings: ScanSettings, fingerprint: dict[str, Any], description: dict[str, Any], x_size: int = X_SIZE
) -> "Session":
    """Begin or resume the scan into `settings.out` and lock it.

    `fingerprint` must equal that of an unfinished scan for it to be resumed; `description` is added to the
    footer; both hold what JSON can. `x_size` is the length of an image's features. Raises Refused if the
    output is finished, locked, of another fingerprint or not usable, Stopped if the disk fails. If the
    session's `finished` is set, only the clean-up of an earlier run was interrupted: nothing is left to scan.
    """
    check_output(settings)
    command = Command(
        settings,
        json.loads(json.dumps(fingerprint)),
        staging_for(settings.out or "", settings.state_dir),
        FeatureStore(Path(settings.features), x_size) if settings.features else None,
        statuses_of(settings.retry),
    )
    try:
        command.check()
        command.staging.enter()
        with disk_faults_stop(command.staging.target):
            return Session(command, command.begin_or_resume(), description)
    except BaseException:
        command.staging.leave()
        if command.features:
            command.features.staging.leave()
        raise


class Session:
    """One run of a scan, from its first row to the finish; leaving the context keeps the parts.

    Call `write`, `flush`, `finish` and `close` from one thread. They raise Stopped if the disk fails.
    """

    def __init__(self, command: Command, found: ScanState | FinishReport, description: dict[str, Any]):
        self.index = Index()
        self.suspects: frozenset[bytes] = frozenset()  # keys of images that an earlier run died decoding
        self.finished: FinishReport | None = None
        self.rows_written = 0  # by this run
        self._description = description
        self._keep_gone = command.settings.keep_gone
        self._sharded = command.settings.shard is not None
        self._staging = command.staging
        self._features = command.features
        self._batches: list[pa.RecordBatch] = []  # as they were given
        self._joined: list[pa.RecordBatch] = []  # earlier ones
        self._joined_bytes = 0
        self._loose = 0  # rows of `_batches`
        self._held = 0  # rows not yet in a part
        self._part_began = 0.0
        self._warned = False  # of a disk that is too full for the finish
        self._writable = isinstance(found, ScanState)
        if isinstance(found, FinishReport):
            self.finished = found
        else:
            self._state = found
            self._open(command.retry)

    @property
    def folder(self) -> Path:
        """Private folder of the scan, while it is unfinished."""
        return self._staging.folder

    # Opening

    def _open(self, retry: list[str]) -> None:
        self._schema = results_schema()
        if self._features:
            self._features.enter(self._state.scan_id)
        remove(self._staging.data / COMMON_METADATA)
        remove(self._staging.sorting)
        self._parts = PartFolder(self._staging.data)
        if self._state.keeps_finished and not self._parts.parts:
            self._import_finished(retry or self._state.retry)
        elif retry and retry != self._state.retry and self._parts.parts:
            self._parts.merge(self._parts.parts[:], self._schema, lambda batch: _without(batch, retry))
        self._state.retry = retry or self._state.retry
        if self._features:
            self._features.open(self._parts.last)
        if self._state.by_content:
            self._write_contents()
        self._add_finished()
        if unfinished := max(0, self.index.finished - self.index.by_content):
            log.info("resuming with %s already finished", counted(unfinished, "row"))
        self._begin_run()

    def _import_finished(self, retry: list[str]) -> None:
        """Write the rows of the finished output that are kept as the first part."""
        through = self._features.import_finished() if self._features else 1
        batches = (
            _without(batch, retry)
            for file in files_of(self._staging.target)
            for batch in read_parquet(file, self._schema)
        )
        self._parts.append(self._schema, batches, through)

    def _write_contents(self) -> None:
        """Let the digests of the finished output's rows, which are the first, decide what is unchanged."""
        whole = (
            batch for file in files_of(self._staging.target) for batch in read_parquet(file, self._schema)
        )
        write_contents(self._staging.folder, whole)
        self.index.by_content = sum(map(rows_in, files_of(self._staging.target)))

    def _add_finished(self) -> None:
        """Add the rows of all parts to the index."""
        contents = self.index.by_content
        for batch in self._parts.read(columns_of(*KEY_COLUMNS, "sha256", "status", "anomalous")):
            first = self.index.finished
            self.index.add_finished(keys_of_finished(batch, first, contents))
            counted_rows = batch.slice(min(batch.num_rows, max(0, contents - first)))
            self.index.failed += int((~is_one_of(counted_rows["status"], ["ok"])).sum())
            self.index.alarms += counted_rows["anomalous"].true_count

    def _begin_run(self) -> None:
        folder = self._staging.folder
        suspects = collect_suspects(folder)
        self.suspects = frozenset(key for key in suspects if key not in self.index)
        keep_suspects(folder, self.suspects)
        run = {
            "host": socket.gethostname(),
            "versions": installed(PACKAGES),
            "start": timestamp(),
            "end": None,
        }
        self._state.runs.append(run)
        self._state.save(self._staging.state)

    # Writing

    def write(self, batch: "pa.RecordBatch", features: "tuple[Floats, Floats] | None" = None) -> None:
        """Store the rows of the next new candidates, in listing order, as a batch of `results_schema()`.

        They are durable after some seconds, or after `flush`. `features`: x [n, k] and logits [n, 5],
        float16 or float32, of the n rows whose status is ok, in their order. Raises ValueError if the batch
        does not end with the candidate that the index has at its place: rows were left out, or come twice.
        """
        last = self.rows_written + self._held + batch.num_rows - 1
        if batch.num_rows and not self.index.is_new(key_at(batch, batch.num_rows - 1), last):
            raise ValueError("a batch of results does not hold the next candidates of the listing")
        if not self._held:
            self._part_began = time.monotonic()
        self._batches.append(self._dated(batch))
        self._held += batch.num_rows
        self._loose += batch.num_rows
        if self._features and features:
            self._features.add(_keys_of_ok(batch, len(features[0])), *features)
        if self._loose >= JOIN_ROWS:
            self._join_loose()
        if self._is_part_full():
            self.flush()
        self._staging.lock.tell(self.index.finished + self.rows_written + self._held)

    def _dated(self, batch: "pa.RecordBatch") -> "pa.RecordBatch":
        """Set the column `scanned_at`, where a row has not kept that of the row before."""
        import pyarrow as pa

        at = self._schema.get_field_index("scanned_at")
        field = self._schema.field(at)
        now = pa.scalar(self._state.since, field.type)
        before = batch["scanned_at"]
        dated = pa.repeat(now, len(batch)) if before.null_count == len(batch) else before.fill_null(now)
        return batch.set_column(at, field, dated)

    def flush(self) -> None:
        """Make all rows written so far durable."""
        if not self._held:
            return
        self._writable = False  # a part that failed half-way is not tried again
        with disk_faults_stop(self._staging.target):
            if self._features:
                self._features.flush()
            part = self._parts.append(self._schema, [*self._joined, *self._batches])
            log.debug("%s: %d rows, durable", part.path.name, self._held)
            self.rows_written += self._held
            self._joined, self._batches = [], []
            self._joined_bytes = self._held = self._loose = 0
            self._parts.merge_small(self._schema)
            self._warn_of_a_full_disk()
        self._writable = True

    def _warn_of_a_full_disk(self) -> None:
        """Warn once if the finished file, written beside its parts, would not fit."""
        if self._staging.is_folder or self._warned:
            return
        need, free = bytes_of(part.path for part in self._parts.parts), free_bytes(self._staging.folder)
        if need > free:
            self._warned = True
            log.warning(
                "%s will need %s beside its parts when the scan ends, and the disk has %s free: free some in "
                "time; a scan that the disk stops is resumed by the same command",
                self._staging.target,
                disk_size(need),
                disk_size(free),
            )

    def _join_loose(self) -> None:
        """Copy small batches into one, so that the memory they refer to can be freed."""
        import pyarrow as pa

        self._joined.append(pa.concat_batches(self._batches))
        self._joined_bytes += self._joined[-1].nbytes
        self._batches, self._loose = [], 0

    def _is_part_full(self) -> bool:
        features_held = self._features.held if self._features else 0
        late = time.monotonic() - self._part_began >= PART_SECONDS
        full = self._held >= PART_ROWS or self._joined_bytes >= PART_BYTES
        return late or full or features_held >= HELD_ROWS

    # Ending

    def finish(self) -> FinishReport:
        """Put the result in its place, all or nothing; raises Stopped, parts kept, if a row is missing."""
        for _ in self.finish_steps():
            pass
        assert self.finished is not None
        return self.finished

    def finish_steps(self) -> Iterator[str]:
        """Finish step by step; yields the name of each step once it is durable."""
        with disk_faults_stop(self._staging.target):
            self.flush()
            yield "flushed"
            selection = Selection(self.index, self._state.since, self._keep_gone, sharded=self._sharded)
            if self._features:
                selection.features = self._features.drop_stale(self.index, self._keep_gone)
            self._state.runs[-1]["end"] = timestamp()
            yield "features"
            file = self._staging.folder / "finished.parquet"
            selected = [selection.select(part) for part in self._parts.parts]
            selection.check()
            if self._staging.is_folder:
                self._finish_parts(selected, selection)
            else:
                batches = in_listing_order(self._parts, selected, selection, self._staging.sorting)
                write_parquet(file, selection.schema, batches, footer_metadata(self._footer(selection)))
            if self._features:
                self._features.seal(self._footer(selection))
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
            self.finished = selection.report()
            yield "removed"

    def _finish_parts(self, selected: "list[NDArray[np.int32]]", selection: Selection) -> None:
        for part, positions in zip(self._parts.parts, selected, strict=True):
            if (positions < 0).any() or part.path in selection.to_mark:
                write_parquet(part.path, self._schema, in_part(part, positions, selection))
        write_common_metadata(self._staging.data, self._schema, self._footer(selection))

    def _footer(self, selection: Selection) -> dict[str, Any]:
        return {
            **self._description,
            "schema": SCHEMA_VERSION,
            "scan_id": self._state.scan_id,
            "since": self._state.since,
            "fingerprint": self._state.fingerprint,
            "runs": self._state.runs,
            **({"listing": self.index.whole} if self._sharded else {}),
            **asdict(selection.report()),
        }

    def discard(self) -> None:
        """End a run without candidates; keeps what earlier runs left, otherwise removes the folder."""
        if self.index.finished or self.rows_written or self._held:
            return self.close()
        self._writable = False
        with disk_faults_stop(self._staging.target):
            if self._features:
                self._features.staging.remove()
            self._staging.remove()
        return None

    def close(self) -> None:
        """Keep what is written and release the output; a second call does nothing."""
        try:
            if self._writable:
                self.flush()
                self._state.runs[-1]["end"] = timestamp()
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


def _keys_of_ok(batch: "pa.RecordBatch", count: int) -> "pa.RecordBatch":
    """Return the key columns of the `count` rows whose status is ok."""
    import pyarrow as pa

    keys = batch.select(KEY_COLUMNS)
    if count < batch.num_rows:
        keys = keys.filter(pa.array(is_one_of(batch["status"], ["ok"])))
    assert keys.num_rows == count, "features are of the rows whose status is ok"
    return keys


def _without(batch: "pa.RecordBatch", statuses: list[str]) -> "pa.RecordBatch":
    import pyarrow as pa

    return batch.filter(pa.array(~is_one_of(batch["status"], statuses)))
