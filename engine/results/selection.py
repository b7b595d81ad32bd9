"""Selection of the rows of the parts that belong to the result, and their order in its file.

A result that is a folder keeps its parts; rows are in order within each of them.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import Stopped
from ..system.durable import remove
from .index import GONE, REPLACED, Index
from .parts import ROW_GROUP, PartFile, PartFolder, is_one_of, keys_of_finished, read_parquet, row_bytes
from .resuming import FinishReport
from .schema import GONE_PLACE, KEY_COLUMNS, columns_of, results_schema, shard_schema, with_places

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

SORT_BYTES = 256_000_000  # of rows that are sorted at a time
MAX_RANGES = 256  # of positions that are sorted apart: so many files are open


@dataclass
class Selection:
    """Selects the rows of the result from the parts, and counts them."""

    index: Index
    since: int  # us since the epoch: when this scan began; earlier rows are of the finished result before
    keep_gone: bool = False
    images: int = 0
    containers: int = 0
    ok: int = 0
    gone: int = 0
    replaced: int = 0
    kept: int = 0
    kept_gone: int = 0
    changed: int = 0  # rows of the finished result before that are replaced
    new_alarms: int = 0
    recognized: int = (
        0  # rows that were written anew, with the time of the row before: its bytes are the same
    )
    sharded: bool = False  # the result gets the column `place`
    features: int | None = None  # rows of stored features that belong to the result
    rows_read: int = 0
    to_mark: set[Path] = field(default_factory=set)  # parts in which the column `gone` must change

    def select(self, part: PartFile) -> "NDArray[np.int32]":
        """Return the position in the result of each row of a part, negative for rows to be dropped.

        It is the position in the listing; rows that are kept although their candidates are gone follow.
        """
        import numpy as np

        by_key = [*KEY_COLUMNS, "sha256"] if self.rows_read < self.index.finished else []
        columns = columns_of(*by_key, "kind", "status", "anomalous", "scanned_at", "gone")
        selected = [np.empty(0, np.int32)]
        for batch in read_parquet(part.path, columns):
            selected.append(self._select(batch))
            marked = batch["gone"].is_valid().to_numpy(zero_copy_only=False)
            if (marked != (selected[-1] >= self.index.listed)).any():
                self.to_mark.add(part.path)
        return np.concatenate(selected)

    @cached_property
    def schema(self) -> "pa.Schema":
        """Schema of the result."""
        return shard_schema() if self.sharded else results_schema()

    def mark(self, batch: "pa.RecordBatch", positions: "NDArray[np.int32]") -> "pa.RecordBatch":
        """Set the columns `gone` and, in a shard, `place` of rows that `select` gave these positions."""
        marked = self._with_gone(batch, positions)
        return (
            with_places(marked, self._places[positions.clip(GONE)], self.schema) if self.sharded else marked
        )

    @cached_property
    def _places(self) -> "NDArray[np.int64]":
        """Places of all positions: those of rows whose candidates are gone come last."""
        import numpy as np

        listed = np.array(self.index.places, np.int64)
        return np.concatenate([listed, np.full(self.kept_gone + 1, GONE_PLACE)])  # one more for dropped rows

    def _with_gone(self, batch: "pa.RecordBatch", positions: "NDArray[np.int32]") -> "pa.RecordBatch":
        """Set the column `gone`, unless it says so already."""
        import pyarrow as pa

        at, gone = batch.schema.get_field_index("gone"), positions >= self.index.listed
        before = batch["gone"]
        if before.null_count == len(batch) and not gone.any():
            return batch
        now = before.fill_null(pa.scalar(self.since, before.type))
        marked = pa.array(now.to_numpy(zero_copy_only=False), before.type, mask=~gone)
        return batch.set_column(at, batch.schema.field(at), marked)

    def check(self) -> None:
        """Raise Stopped unless every listed candidate has its row, and every scored row its features."""
        rows = self.images + self.containers
        if rows != self.index.listed:
            raise Stopped(
                f"the result would hold {rows} rows for {self.index.listed} candidates: its parts are kept"
            )
        if self.features is not None and self.features != self.ok:
            raise Stopped(
                f"features of {self.features} images are stored, not of {self.ok}: the parts are kept"
            )

    def report(self) -> FinishReport:
        """Return the counts of a finished result."""
        listed = self.images + self.containers
        return FinishReport(
            rows=listed + self.kept_gone,
            images=self.images,
            containers=self.containers,
            gone=self.gone,
            replaced=self.replaced - self.recognized,
            new=listed - self.kept - (self.changed - self.recognized),
            kept=self.kept,
            kept_gone=self.kept_gone,
            new_alarms=self.new_alarms,
        )

    def _positions(self, batch: "pa.RecordBatch") -> "NDArray[np.int32]":
        """Find rows of earlier runs by their keys; this run's rows follow, in listing order."""
        import numpy as np

        start = self.rows_read - self.index.finished  # among the rows of this run, where it is not negative
        self.rows_read += batch.num_rows
        new = self.index.new_positions(max(start, 0), max(start + batch.num_rows, 0))
        if start >= 0:
            return new
        keys = keys_of_finished(batch.slice(0, -start), self.index.finished + start, self.index.by_content)
        return np.concatenate([self.index.take_rows(keys), new])

    def _select(self, batch: "pa.RecordBatch") -> "NDArray[np.int32]":
        first = self.rows_read
        positions = self._positions(batch)
        listed, ok = positions >= 0, is_one_of(batch["status"], ["ok"])
        before = batch["scanned_at"].to_numpy(zero_copy_only=False).astype("int64") < self.since
        containers = _number(is_one_of(batch["kind"], ["container"]) & listed)
        self.containers += containers
        self.images += _number(listed) - containers
        self.ok += _number(ok & listed)
        self.kept += _number(before & listed)
        if contents := self.index.by_content:
            self.recognized += _number((before & listed)[max(0, contents - first) :])
        self.replaced += _number(positions == REPLACED)
        self.changed += _number(before & (positions == REPLACED))
        alarms = batch["anomalous"].fill_null(False).to_numpy(zero_copy_only=False)
        self.new_alarms += _number(alarms & listed & ~before)
        return self._place_gone(positions, batch, ok)

    def _place_gone(
        self, positions: "NDArray[np.int32]", batch: "pa.RecordBatch", ok: "NDArray[np.bool_]"
    ) -> "NDArray[np.int32]":
        """Count the rows whose candidates are gone; those that are kept get places behind the others."""
        import numpy as np

        gone = positions == GONE
        if not self.keep_gone:
            self.gone += _number(gone)
            return positions
        number = _number(gone)
        first = self.index.listed + self.kept_gone
        positions[gone] = np.arange(first, first + number, dtype=np.int32)
        self.gone += _number(gone & batch["gone"].is_null().to_numpy(zero_copy_only=False))
        self.kept_gone += number
        self.ok += _number(gone & ok)
        return positions


def _number(flags: "NDArray[np.bool_]") -> int:
    import numpy as np

    return int(np.count_nonzero(flags))


def in_listing_order(
    parts: PartFolder, selected: "list[NDArray[np.int32]]", selection: Selection, scratch: Path
) -> "Iterator[pa.RecordBatch]":
    """Yield the rows whose positions (an array per part) are not negative, by ascending position.

    Raises OSError of the disk.
    """
    import numpy as np

    positions = np.concatenate([np.empty(0, np.int32), *selected])
    pairs = _with_positions(parts.read(results_schema()), positions, selection)
    paths = [part.path for part in parts.parts]
    yield from sorted_by_position(pairs, positions, row_bytes(paths), selection.schema, scratch)


def sorted_by_position(
    pairs: "Iterable[tuple[pa.RecordBatch, NDArray[np.int32]]]",
    positions: "NDArray[np.int32]",
    bytes_each: int,
    schema: "pa.Schema",
    scratch: Path,
) -> "Iterator[pa.RecordBatch]":
    """Yield rows by ascending position, without those whose positions are negative; each has another one.

    `pairs` are batches with the positions of their rows, `positions` those of all rows. Rows that are in
    order already are passed on. Others go through files in the folder `scratch`, one for each range of
    positions, so that memory holds one range at a time, of rows of `bytes_each`. Raises OSError of the disk.
    """
    import numpy as np

    if _ascend(positions):
        for batch, here in pairs:
            yield _rows_where(batch, here >= 0)
        return
    remove(scratch)
    scratch.mkdir()
    in_memory = min(ROW_GROUP, SORT_BYTES // bytes_each)
    span = max(in_memory, int(np.count_nonzero(positions >= 0)) // MAX_RANGES + 1)
    for file in _split_into_ranges(pairs, span, schema, scratch):
        yield from _sorted_rows(file)
        file.unlink()
    scratch.rmdir()


def _ascend(positions: "NDArray[np.int32]") -> bool:
    """Tell whether the positions that are not negative ascend, looking at some of them at a time."""
    last = -1
    for start in range(0, len(positions), ROW_GROUP):
        here = positions[start : start + ROW_GROUP]
        here = here[here >= 0]
        if len(here):
            if here[0] <= last or (here[1:] <= here[:-1]).any():
                return False
            last = int(here[-1])
    return True


def in_part(
    part: PartFile, positions: "NDArray[np.int32]", selection: Selection
) -> "Iterator[pa.RecordBatch]":
    """Yield the rows of a part whose positions are not negative, in their order."""
    for batch, here in _with_positions(read_parquet(part.path, results_schema()), positions, selection):
        yield _rows_where(batch, here >= 0)


def _with_positions(
    batches: "Iterable[pa.RecordBatch]", positions: "NDArray[np.int32]", selection: Selection
) -> "Iterator[tuple[pa.RecordBatch, NDArray[np.int32]]]":
    start = 0
    for batch in batches:
        here = positions[start : start + batch.num_rows]
        yield selection.mark(batch, here), here
        start += batch.num_rows


def _split_into_ranges(
    pairs: "Iterable[tuple[pa.RecordBatch, NDArray[np.int32]]]", span: int, schema: "pa.Schema", folder: Path
) -> list[Path]:
    """Write rows with their positions into a file for each `span` of positions; returns them in order."""
    import numpy as np
    import pyarrow as pa

    schema = schema.append(pa.field("position", pa.int32()))
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    writers: dict[int, pa.RecordBatchStreamWriter] = {}
    with ExitStack() as stack:
        for batch, positions in pairs:
            wide = pa.RecordBatch.from_arrays([*batch.columns, pa.array(positions)], schema=schema)
            ranges = np.where(positions >= 0, positions // span, -1)
            for number in map(int, np.unique(ranges[ranges >= 0])):
                if number not in writers:
                    file = stack.enter_context((folder / f"{number:03d}.arrow").open("wb"))
                    writer = pa.ipc.new_stream(file, schema, options=options)
                    writers[number] = stack.enter_context(writer)
                writers[number].write_batch(_rows_where(wide, ranges == number))
    return [folder / f"{number:03d}.arrow" for number in sorted(writers)]


def _sorted_rows(file: Path) -> "list[pa.RecordBatch]":
    import numpy as np
    import pyarrow as pa

    with file.open("rb") as source, pa.ipc.open_stream(source) as reader:
        table = reader.read_all()
    table = table.take(np.argsort(table["position"].to_numpy())).drop_columns("position")
    return table.to_batches()


def _rows_where(batch: "pa.RecordBatch", mask: "NDArray[np.bool_]") -> "pa.RecordBatch":
    import pyarrow as pa

    return batch if mask.all() else batch.filter(pa.array(mask))
