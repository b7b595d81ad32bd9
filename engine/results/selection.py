"""Selection of the rows of the parts that belong to the result, and their order in its file.

A result that is a folder keeps its parts; rows are in order within each of them.
"""

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import Stopped
from ..system.durable import remove
from .index import GONE, REPLACED, Index
from .parts import ROW_GROUP, PartFile, PartFolder, is_one_of, keys_in, read_parquet, row_bytes
from .resuming import FinishReport
from .schema import KEY_COLUMNS, columns_of

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
    images: int = 0
    containers: int = 0
    ok: int = 0
    gone: int = 0
    replaced: int = 0
    features: int | None = None  # rows of stored features that belong to the result
    rows_read: int = 0

    def select(self, part: PartFile) -> "NDArray[np.int32]":
        """Return the position in the listing of each row of a part, negative for rows to be dropped."""
        import numpy as np

        by_key = KEY_COLUMNS if self.rows_read < self.index.finished else []
        batches = read_parquet(part.path, columns_of(*by_key, "kind", "status"))
        return np.concatenate([np.empty(0, np.int32), *map(self._select, batches)])

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
        return FinishReport(
            self.images + self.containers, self.images, self.containers, self.gone, self.replaced
        )

    def _positions(self, batch: "pa.RecordBatch") -> "NDArray[np.int32]":
        """Find rows of earlier runs by their keys; this run's rows follow, in listing order."""
        import numpy as np

        start = self.rows_read - self.index.finished  # among the rows of this run, where it is not negative
        self.rows_read += batch.num_rows
        new = self.index.new_positions(max(start, 0), max(start + batch.num_rows, 0))
        if start >= 0:
            return new
        return np.concatenate([self.index.take_rows(keys_in(batch.slice(0, -start))), new])

    def _select(self, batch: "pa.RecordBatch") -> "NDArray[np.int32]":
        import numpy as np

        positions = self._positions(batch)
        kept = positions >= 0
        containers = int(np.count_nonzero(is_one_of(batch["kind"], ["container"]) & kept))
        self.containers += containers
        self.images += int(np.count_nonzero(kept)) - containers
        self.ok += int(np.count_nonzero(is_one_of(batch["status"], ["ok"]) & kept))
        self.gone += int(np.count_nonzero(positions == GONE))
        self.replaced += int(np.count_nonzero(positions == REPLACED))
        return positions


def in_listing_order(
    parts: PartFolder, selected: "list[NDArray[np.int32]]", schema: "pa.Schema", scratch: Path
) -> "Iterator[pa.RecordBatch]":
    """Yield the rows whose positions (an array per part) are not negative, by ascending position.

    Rows that are in order already are copied. Others go through files in the folder `scratch`, one for each
    range of positions, so that memory holds one range at a time. Raises OSError of the disk.
    """
    import numpy as np

    positions = np.concatenate([np.empty(0, np.int32), *selected])
    kept = positions[positions >= 0]
    pairs = _with_positions(parts.read(schema), positions)
    if bool(np.all(kept[1:] > kept[:-1])):
        for batch, here in pairs:
            yield _rows_where(batch, here >= 0)
        return
    remove(scratch)
    scratch.mkdir()
    in_memory = min(ROW_GROUP, SORT_BYTES // row_bytes(parts.parts))
    span = max(in_memory, len(kept) // MAX_RANGES + 1)
    for file in _split_into_ranges(pairs, span, schema, scratch):
        yield from _sorted_rows(file)
        file.unlink()
    scratch.rmdir()


def _with_positions(
    batches: "Iterable[pa.RecordBatch]", positions: "NDArray[np.int32]"
) -> "Iterator[tuple[pa.RecordBatch, NDArray[np.int32]]]":
    start = 0
    for batch in batches:
        yield batch, positions[start : start + batch.num_rows]
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
