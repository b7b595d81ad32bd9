"""Part files: numbered, durable before they get their names; small ones are merged."""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import Refused
from ..system.durable import TEMPORARY, make_folder, open_regular, rename
from .index import key_from, unmatched
from .schema import KEY_COLUMNS, REPEATING

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    import pyarrow.parquet as pq
    from numpy.typing import NDArray

ROW_GROUP = 1 << 15  # rows of a file that are written at a time
MERGED_GROUP = 1 << 14  # likewise of parts that are merged: this memory is needed beside a running scan
READ_ROWS = 1 << 14  # rows that are read at a time, some of which become Python objects
READ_BYTES = GROUP_BYTES = 64_000_000  # of rows that are read at a time, and of a row group
MERGE = 16  # parts of one generation become one of the next
SMALL = 1 << 16  # rows; larger parts are not merged


@dataclass(frozen=True)
class PartFile:
    """One file that holds the parts `first` to `last`."""

    first: int
    last: int
    path: Path

    @property
    def span(self) -> int:
        """Number of original parts that it contains."""
        return self.last - self.first + 1


class PartFolder:
    """Part files of one folder, in order of number; their names begin with `prefix`.

    Opening it removes what a crash left: temporary files, and parts that a merged one contains.
    Methods raise OSError of the disk.
    """

    def __init__(self, folder: Path, prefix: str = "part"):
        self.folder = folder
        self.prefix = prefix
        make_folder(folder)
        for leftover in folder.glob(f"*{TEMPORARY}"):
            leftover.unlink()
        self.parts = _uncovered(self._found())

    @property
    def last(self) -> int:
        """Highest number so far, or 0."""
        return self.parts[-1].last if self.parts else 0

    def append(self, schema: "pa.Schema", batches: "Iterable[pa.RecordBatch]", through: int = 0) -> PartFile:
        """Write the next part, durably; with `through` it covers all numbers up to that one."""
        part = self._file_for(self.last + 1, max(self.last + 1, through))
        write_parquet(part.path, schema, batches)
        self.parts.append(part)
        return part

    def merge_small(self, schema: "pa.Schema") -> None:
        """Merge the last parts once there are enough of one generation."""
        while True:
            run = self.parts[-MERGE:]
            if len(run) < MERGE or len({part.span for part in run}) > 1 or any(map(_is_large, run)):
                return
            self.merge(run, schema, lambda batch: batch)

    def merge(
        self, run: Sequence[PartFile], schema: "pa.Schema", keep: "Callable[[pa.RecordBatch], pa.RecordBatch]"
    ) -> None:
        """Replace neighbouring parts by one with the rows that `keep` selects; a crash leaves either."""
        merged = self._file_for(run[0].first, run[-1].last)
        kept = (keep(batch) for part in run for batch in read_parquet(part.path, schema))
        write_parquet(merged.path, schema, kept, most=MERGED_GROUP)
        at = self.parts.index(run[0])
        self.parts[at : at + len(run)] = [merged]
        for part in run:
            if part.path != merged.path:
                part.path.unlink()

    def mask(self, part: PartFile, keep: "NDArray[np.bool_]") -> None:
        """Keep only the rows of a part that `keep` marks; leaves the file untouched if these are all."""
        if not keep.all():
            write_parquet(part.path, _schema_of(part.path), _masked(part.path, keep))

    def drop_after(self, number: int) -> None:
        """Remove the parts beyond a number."""
        for part in [part for part in self.parts if part.last > number]:
            part.path.unlink()
            self.parts.remove(part)

    def read(self, schema: "pa.Schema") -> "Iterator[pa.RecordBatch]":
        """Yield these columns of all rows in order, at most READ_ROWS at a time."""
        for part in self.parts:
            yield from read_parquet(part.path, schema)

    def _file_for(self, first: int, last: int) -> PartFile:
        name = f"{self.prefix}-{first:08d}" if first == last else f"{self.prefix}-{first:08d}-{last:08d}"
        return PartFile(first, last, self.folder / f"{name}.parquet")

    def _found(self) -> Iterator[PartFile]:
        form = re.compile(rf"{self.prefix}-(\d{{8,18}})(?:-(\d{{8,18}}))?\.parquet")
        for name in os.listdir(self.folder):  # noqa: PTH208 - names are wanted
            match = form.fullmatch(name)
            if match and int(match[1]) <= int(match[2] or match[1]):
                yield PartFile(int(match[1]), int(match[2] or match[1]), self.folder / name)


def write_parquet(
    target: Path,
    schema: "pa.Schema",
    batches: "Iterable[pa.RecordBatch]",
    footer: dict[bytes, bytes] | None = None,
    most: int = ROW_GROUP,
) -> int:
    """Write a Parquet file that gets its name once it is durable; returns its number of rows.

    `footer` is key-value metadata, `most` the rows of a row group. Raises OSError of the disk and whatever
    `batches` raises; then nothing is left.
    """
    import pyarrow.parquet as pq

    rows = 0
    temporary = target.with_name(target.name + TEMPORARY)
    dictionary = [name for name in REPEATING if name.partition(".")[0] in schema.names]
    try:
        with temporary.open("wb") as file:
            options: dict[str, Any] = {"compression": "zstd", "use_dictionary": dictionary}
            with pq.ParquetWriter(file, schema, write_page_checksum=True, **options) as writer:
                for table in _in_row_groups(schema, batches, most):
                    writer.write_table(table, row_group_size=most)
                    rows += table.num_rows
                if footer:
                    writer.add_key_value_metadata(footer)
            file.flush()
            os.fsync(file.fileno())
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    rename(temporary, target)
    return rows


def read_parquet(path: Path, schema: "pa.Schema", most: int = READ_ROWS) -> "Iterator[pa.RecordBatch]":
    """Yield these columns of a file's rows, at most so many, and some READ_BYTES, at a time.

    The checksums of what is read are verified. Raises Refused if they differ, if the file is damaged in
    another way, or lacks a column, or has one of another type.
    """
    import pyarrow as pa
    import pyarrow.parquet as pq

    # not buffered ahead: that would hold what was read of the whole file
    options: dict[str, Any] = {"pre_buffer": False, "page_checksum_verification": True}
    try:
        with open_regular(path) as source, pq.ParquetFile(source, **options) as file:
            _check_columns(file.schema_arrow, schema)
            rows = max(1, min(most, READ_BYTES // _row_bytes(file.metadata)))
            for batch in file.iter_batches(rows, columns=schema.names, use_threads=False):
                columns = [batch.column(name) for name in schema.names]
                yield pa.RecordBatch.from_arrays(columns, schema=schema)  # with our own metadata
    except (pa.ArrowException, ValueError, OSError) as error:
        if isinstance(error, OSError) and error.errno:
            raise  # the disk, not the content
        raise Refused(
            f"{path} is damaged: move it away to scan its images again, or add --restart to drop all parts"
        ) from None


def _check_columns(found: "pa.Schema", wanted: "pa.Schema") -> None:
    """Raise ValueError unless a file has the columns that are wanted."""
    types = {field.name: field.type for field in found}
    if len(types) < len(found) or any(types.get(field.name) != field.type for field in wanted):
        raise ValueError("it has other columns")


def _row_bytes(metadata: "pq.FileMetaData") -> int:
    """Return the average bytes of a row in a file."""
    groups = (metadata.row_group(i) for i in range(metadata.num_row_groups))
    return 1 + sum(group.total_byte_size for group in groups) // max(1, metadata.num_rows)


def row_bytes(files: Iterable[Path]) -> int:
    """Return the bytes of a row in the file whose rows are largest, at least 1."""
    import pyarrow.parquet as pq

    most = 1
    for file in files:
        with open_regular(file) as source:
            most = max(most, _row_bytes(pq.read_metadata(source)))
    return most


def files_of(output: Path) -> list[Path]:
    """Return the files of a finished output, in order."""
    return [part.path for part in PartFolder(output).parts] if output.is_dir() else [output]


def rows_in(path: Path) -> int:
    """Return the number of rows of a Parquet file."""
    import pyarrow.parquet as pq

    with open_regular(path) as source:
        return pq.read_metadata(source).num_rows


def keys_in(batch: "pa.RecordBatch") -> Iterator[bytes]:
    """Yield the index's key of each row, from the columns uri, bytes, mtime, offset."""
    import pyarrow as pa

    uri, size, mtime, offset = (batch.column(name) for name in KEY_COLUMNS)
    return map(key_from, *map(_values, (uri, offset, size, mtime.cast(pa.int64()))))


def keys_of_finished(batch: "pa.RecordBatch", first: int, by_content: int) -> Iterator[bytes]:
    """Yield the keys of finished rows, from row number `first` on, as the index has them.

    Of the first `by_content` rows, those with a digest have a key that matches no size and time.
    """
    keys = keys_in(batch)
    if first >= by_content:
        return keys
    known = batch["sha256"].is_valid().to_numpy(zero_copy_only=False).copy()
    known[by_content - first :] = False
    return (unmatched(key) if is_known else key for key, is_known in zip(keys, known, strict=True))


def key_at(batch: "pa.RecordBatch", row: int) -> bytes:
    """Return the index's key of one row."""
    uri, size, mtime, offset = (batch.column(name)[row] for name in KEY_COLUMNS)
    return key_from(uri.as_py(), offset.as_py(), size.as_py(), mtime.value)


def is_one_of(column: "pa.Array", values: list[str]) -> "NDArray[np.bool_]":
    """Tell for each text of a column whether it is one of these."""
    import pyarrow as pa

    pc: Any = import_module("pyarrow.compute")  # its functions are made at run time, unknown to checkers
    return pc.is_in(column, value_set=pa.array(values, pa.string())).to_numpy(zero_copy_only=False)


def _values(column: "pa.Array") -> list[Any]:
    """Return a column's values as Python objects, through NumPy (faster) where that is lossless."""
    if column.null_count == len(column):
        return [None] * len(column)
    return column.to_pylist() if column.null_count else column.to_numpy(zero_copy_only=False).tolist()


def _schema_of(path: Path) -> "pa.Schema":
    import pyarrow.parquet as pq

    with open_regular(path) as source:
        return pq.read_schema(source)


def _masked(path: Path, keep: "NDArray[np.bool_]") -> "Iterator[pa.RecordBatch]":
    import pyarrow as pa

    at = 0
    for batch in read_parquet(path, _schema_of(path)):
        yield batch.filter(pa.array(keep[at : at + batch.num_rows]))
        at += batch.num_rows


def _is_large(part: PartFile) -> bool:
    return rows_in(part.path) >= SMALL


def _uncovered(found: Iterable[PartFile]) -> list[PartFile]:
    """Sort parts by number and remove those that a merged one contains."""
    kept: list[PartFile] = []
    for part in sorted(found, key=lambda part: (part.first, -part.last)):
        if kept and part.last <= kept[-1].last:
            part.path.unlink()
        else:
            kept.append(part)
    return kept


def _in_row_groups(
    schema: "pa.Schema", batches: "Iterable[pa.RecordBatch]", most: int
) -> "Iterator[pa.Table]":
    """Join batches into contiguous tables of one row group each: `most` rows, fewer if they are large."""
    import pyarrow as pa

    held: list[pa.RecordBatch] = []
    count = size = 0
    for batch in batches:
        size += batch.nbytes
        if size > GROUP_BYTES and held:
            yield pa.Table.from_batches(held, schema).combine_chunks()
            held, count, size = [], 0, batch.nbytes
        while count + batch.num_rows >= most:
            head = most - count
            yield pa.Table.from_batches([*held, batch.slice(0, head)], schema).combine_chunks()
            batch, held, count = batch.slice(head), [], 0
        if batch.num_rows:
            held.append(batch)
            count += batch.num_rows
    if held:
        yield pa.Table.from_batches(held, schema).combine_chunks()
