"""Digests of rows, which depend on their values and on nothing else of a Parquet file.

The digest of a row is the SHA-256 of its columns, in their order, in two parts. First the fixed part: a
byte, 1 if the value is there, and then, little-endian and zero where it is not, the number itself
(integers, and times in microseconds, as they are, floats by their bits, booleans as a byte, binary values
of a fixed length as they are), the length in bytes of a text as uint32, or the count of a list as uint32.
Then the texts, in UTF-8, without anything between them; a list gives the length of each of its texts as
int32, then the texts.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import sha256
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import Refused
from ..results.parts import READ_ROWS, files_of
from ..system.durable import open_regular

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

DIGEST_BYTES = 32
GROUP_ROWS = 1 << 16  # rows whose digests are hashed together
READ_BYTES = 64_000_000  # of rows that are read at a time


@dataclass
class Group:
    """The digests of GROUP_ROWS rows, fewer at the end, and their names."""

    first: int  # number of its first row, from 0
    digests: bytes  # DIGEST_BYTES a row
    uris: "pa.Array"

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self.digests) // DIGEST_BYTES


def columns_in(results: Path) -> "pa.Schema":
    """Return the columns of a finished result; raises Refused if it is damaged or they are of other types."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    schemas: list[pa.Schema] = []
    for path in files_of(results):
        try:
            with open_regular(path) as source:
                schemas.append(pq.read_schema(source).remove_metadata())
        except (pa.ArrowException, ValueError, OSError) as error:
            raise _unreadable(path, error) from None
    if not schemas or "uri" not in schemas[0].names or any(schema != schemas[0] for schema in schemas):
        raise Refused(f"{results} holds files of different columns: scan its images again")
    for column in schemas[0]:
        if not _is_known(column.type):
            raise Refused(
                f"{results} has a column {column.name!r} of the type {column.type}, which no scan writes"
            )
    return schemas[0]


def row_groups(results: Path, *, checked: bool) -> Iterator[Group]:
    """Yield the digests of all rows in order; `checked` refuses pages whose checksum differs.

    Memory holds one group. Raises Refused, naming the column and rows, if some cannot be read.
    """
    import pyarrow as pa

    held: list[bytes] = []
    names: list[pa.Array] = []
    first = count = 0
    for batch in _batches(results, checked):
        for part in _split(batch, GROUP_ROWS - count):
            held.append(row_digests(part))
            names.append(part["uri"])
            count += part.num_rows
            if count == GROUP_ROWS:
                yield Group(first, b"".join(held), pa.concat_arrays(names))
                first, count, held, names = first + count, 0, [], []
    if count:
        yield Group(first, b"".join(held), pa.concat_arrays(names))


def _split(batch: "pa.RecordBatch", room: int) -> Iterator["pa.RecordBatch"]:
    """Divide a batch, of at most GROUP_ROWS rows, where a group ends."""
    yield batch.slice(0, room)
    if batch.num_rows > room:
        yield batch.slice(room)


def row_digests(batch: "pa.RecordBatch") -> bytes:
    """Return the digests of the rows of a batch, one after the other."""
    fixed, (offsets, texts) = _fixed_part(batch), _texts(batch)
    width, raw = fixed.dtype.itemsize, fixed.tobytes()
    at = offsets.tolist()
    return b"".join(
        sha256(raw[row * width : (row + 1) * width] + texts[at[row] : at[row + 1]]).digest()
        for row in range(batch.num_rows)
    )


def _fixed_part(batch: "pa.RecordBatch") -> NDArray[Any]:
    """Return the fixed part of each row, as a packed structure."""
    fields: list[tuple[str, Any]] = []
    values: list[NDArray[Any]] = []
    for number, column in enumerate(batch.columns):
        numbers = _numbers(column)
        fields += [(f"there{number}", "u1"), (f"value{number}", numbers.dtype.newbyteorder("<"))]
        values += [column.is_valid().to_numpy(zero_copy_only=False), numbers]
    rows = np.zeros(batch.num_rows, np.dtype(fields))
    for (name, _), value in zip(fields, values, strict=True):
        rows[name] = value
    return rows


def _numbers(column: "pa.Array") -> NDArray[Any]:
    """Return a column's numbers, zero where there is none; lengths of texts, counts of lists."""
    import pyarrow as pa

    pc: Any = import_module("pyarrow.compute")  # its functions are made at run time, unknown to checkers
    kind = column.type
    if pa.types.is_string(kind):
        return pc.binary_length(column).fill_null(0).to_numpy(zero_copy_only=False).astype("u4")
    if pa.types.is_list(kind):
        return pc.list_value_length(column).fill_null(0).to_numpy(zero_copy_only=False).astype("u4")
    if pa.types.is_fixed_size_binary(kind):
        filled = column.fill_null(pa.scalar(bytes(kind.byte_width), kind))
        buffer = filled.buffers()[1]
        start = filled.offset * kind.byte_width
        raw = np.frombuffer(buffer, np.uint8)[start : start + len(filled) * kind.byte_width]
        return raw.view(f"V{kind.byte_width}")
    if pa.types.is_timestamp(kind):
        column = column.cast(pa.int64())
    if pa.types.is_boolean(kind):
        column = column.cast(pa.uint8())
    return column.fill_null(0).to_numpy(zero_copy_only=False)


def _texts(batch: "pa.RecordBatch") -> tuple[NDArray[np.int64], bytes]:
    """Return the texts of each row, joined, and where they begin and end."""
    import pyarrow as pa

    pc: Any = import_module("pyarrow.compute")
    parts: list[Any] = []
    for column in batch.columns:
        if pa.types.is_string(column.type):
            parts.append(column.cast(pa.binary()))
        elif pa.types.is_list(column.type):
            parts += _list_parts(column)
    if not parts:
        return np.zeros(batch.num_rows + 1, np.int64), b""
    empty = pa.scalar(b"", pa.binary())
    joined = pc.binary_join_element_wise(*parts, empty, null_handling="replace", null_replacement=b"")
    lengths = pc.binary_length(joined).to_numpy(zero_copy_only=False)
    offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
    return offsets, b"".join(joined.to_pylist())


def _list_parts(column: "pa.Array") -> "list[pa.Array]":
    """Return, for each list of texts, the lengths of its texts as int32, -1 for null, and the texts."""
    import pyarrow as pa

    lengths: list[bytes] = []
    texts: list[bytes] = []
    for row in column.to_pylist():
        encoded = [None if text is None else text.encode() for text in row or ()]
        sizes = (-1 if text is None else len(text) for text in encoded)
        lengths.append(b"".join(size.to_bytes(4, "little", signed=True) for size in sizes))
        texts.append(b"".join(text or b"" for text in encoded))
    return [pa.array(lengths, pa.binary()), pa.array(texts, pa.binary())]


def _batches(results: Path, checked: bool) -> "Iterator[pa.RecordBatch]":
    """Yield the rows of all files, some READ_BYTES at a time."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    first = 0  # row of the result
    for path in files_of(results):
        try:
            with (
                open_regular(path) as source,
                pq.ParquetFile(source, page_checksum_verification=checked) as file,
            ):
                for number in range(file.metadata.num_row_groups):
                    size = file.metadata.row_group(number)
                    most = max(1, min(READ_ROWS, READ_BYTES * size.num_rows // max(1, size.total_byte_size)))
                    try:
                        yield from file.iter_batches(most, row_groups=[number], use_threads=False)
                    except (pa.ArrowException, ValueError, OSError):
                        raise _damaged(path, file, number, first) from None
                    first += size.num_rows
        except (pa.ArrowException, ValueError, OSError) as error:
            raise _unreadable(path, error) from None


def _damaged(path: Path, file: "pq.ParquetFile", number: int, first: int) -> Refused:
    """Say which columns of a row group cannot be read."""
    import pyarrow as pa

    bad = []
    for name in file.schema_arrow.names:
        try:
            file.read_row_group(number, columns=[name], use_threads=False)
        except (pa.ArrowException, ValueError, OSError):
            bad.append(name)
    last = first + file.metadata.row_group(number).num_rows
    what = f"the column {bad[0]!r} " if len(bad) == 1 else f"{len(bad)} columns " if bad else ""
    return Refused(f"{path} is damaged: {what}of rows {first + 1} to {last} cannot be read")


def _unreadable(path: Path, error: Exception) -> Refused:
    if isinstance(error, OSError) and error.errno:
        return Refused(f"{path} cannot be read: {error.strerror}")
    return Refused(f"{path} is damaged: it cannot be read as Parquet")


def _is_known(kind: "pa.DataType") -> bool:
    import pyarrow as pa

    types = pa.types
    numeric = types.is_integer(kind) or types.is_float32(kind) or types.is_float64(kind)
    plain = numeric or types.is_boolean(kind) or types.is_string(kind) or types.is_fixed_size_binary(kind)
    is_time = types.is_timestamp(kind) and kind.unit == "us"
    return plain or is_time or (types.is_list(kind) and types.is_string(kind.value_type))
