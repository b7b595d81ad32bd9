"""What a finished result says of bytes that it has scored: rows of equal bytes need no decoding.

The table is made for one update, beside its parts, and all of its workers map it: memory holds what they
look up.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..row import Row, identity_of
from .schema import COLUMNS, KEY_COLUMNS, columns_of

if TYPE_CHECKING:
    import pyarrow as pa

TABLE, ORDER = "contents.arrow", "contents.npy"
ROW_BYTES = 200  # of both, about
PREFIX = 8  # bytes of a digest or an identity by which rows are found
OWN = {*KEY_COLUMNS, "etag", "kind", "sha256", "scanned_at", "gone"}  # columns that equal bytes do not share
CARRIED = tuple(name for name in COLUMNS if name not in OWN)
_ENTRY = np.dtype([("digest", ">u8"), ("identity", ">u8"), ("row", "i8")])

Values = tuple[Any, ...]  # of the columns CARRIED


def write_contents(folder: Path, batches: "Iterable[pa.RecordBatch]") -> None:
    """Write the table of all rows that have a digest; `batches` hold all columns. Raises OSError."""
    import pyarrow as pa

    schema = columns_of("sha256", *CARRIED, "scanned_at")
    entries: list[NDArray[Any]] = []
    count = 0
    with (folder / TABLE).open("wb") as file, pa.ipc.new_file(file, schema) as writer:
        for batch in batches:
            known = batch.filter(batch["sha256"].is_valid())
            if not known.num_rows:
                continue
            writer.write_batch(known.select(schema.names))
            entries.append(_entries(known, count))
            count += known.num_rows
    order = np.concatenate([np.empty(0, _ENTRY), *entries])
    order.sort(order=("digest", "identity"))
    np.save(folder / ORDER, order)


def _entries(batch: "pa.RecordBatch", first: int) -> NDArray[Any]:
    found = np.empty(batch.num_rows, _ENTRY)
    digests = b"".join(digest[:PREFIX] for digest in batch["sha256"].to_pylist())
    names = zip(batch["uri"].to_pylist(), batch["offset"].to_pylist(), strict=True)
    found["digest"] = np.frombuffer(digests, ">u8")
    found["identity"] = np.frombuffer(b"".join(identity_of(*name)[:PREFIX] for name in names), ">u8")
    found["row"] = np.arange(first, first + batch.num_rows)
    return found


class KnownContents:
    """Looks rows up by the SHA-256 of their bytes; safe to call from several threads."""

    def __init__(self, folder: Path):
        import pyarrow as pa

        self._order: NDArray[Any] = np.load(folder / ORDER, mmap_mode="r", allow_pickle=False)
        reader = pa.ipc.open_file(pa.memory_map(str(folder / TABLE)))
        self._batches = [reader.get_batch(number) for number in range(reader.num_record_batches)]
        self._starts = np.cumsum([0, *(batch.num_rows for batch in self._batches)])

    @staticmethod
    def is_in(folder: Path) -> bool:
        """Tell whether a folder holds a table."""
        return (folder / ORDER).exists()

    def of(self, rows: Sequence[Row]) -> list[tuple[Values, int | None] | None]:
        """Return the values of equal bytes for each row, or None.

        With them comes `scanned_at` (us) if it was the same file that had these bytes, else None.
        """
        return [None if row.sha256 is None else self._find(row.sha256, row) for row in rows]

    def _find(self, digest: bytes, row: Row) -> tuple[Values, int | None] | None:
        wanted, own = (int.from_bytes(name[:PREFIX]) for name in (digest, identity_of(row.uri, row.offset)))
        digests = self._order["digest"]
        first, last = (int(np.searchsorted(digests, wanted, side)) for side in ("left", "right"))
        if first == last:
            return None
        at = first + int(np.searchsorted(self._order["identity"][first:last], own))
        is_same = at < last and int(self._order["identity"][at]) == own
        found = self._row(int(self._order["row"][at if is_same else first]))
        if found["sha256"] != digest:
            return None  # digests that begin alike: nobody makes such by chance, and then it is decoded
        return tuple(found[name] for name in CARRIED), found["scanned_at"] if is_same else None

    def _row(self, number: int) -> dict[str, Any]:
        import pyarrow as pa

        at = int(np.searchsorted(self._starts, number, "right")) - 1
        row = self._batches[at].slice(number - int(self._starts[at]), 1)
        times = row.schema.get_field_index("scanned_at")
        return row.set_column(times, "scanned_at", row["scanned_at"].cast(pa.int64())).to_pylist()[0]
