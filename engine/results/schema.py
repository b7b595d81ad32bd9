"""Arrow schema of the results, descriptions of the columns, and the footer of a finished file."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..row import THREATS, ImageFault, Row
from ..system.durable import open_regular
from .form import has_form

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    Floats = NDArray[np.float16] | NDArray[np.float32]

SCHEMA_VERSION = 4
FOOTER_KEY = b"gbad_batch"
COMMON_METADATA = "_common_metadata"  # of a folder: the schema and footer of all its files
LONGEST_MESSAGE = 2000  # characters of an error or of warnings
PLACE = "place"  # column of a shard's result, from which `merge` restores the order of the sources
GONE_PLACE = 1 << 62  # of a row whose candidate is gone, behind all others
KEY_COLUMNS = ["uri", "bytes", "mtime", "offset"]
REPEATING = ["kind", "format", "bit_depth", "color", "status", "error", "warnings", "threats.list.element"]

# What resuming needs of a footer, by key: its type, or the form of the object
FOOTER_FORM: dict[str, Any] = {
    "scan_id": str,
    "fingerprint": dict,
    "runs": list,
    **dict.fromkeys(("rows", "images", "containers", "gone", "replaced"), int),
}

# name: (type, by a name of `_types`; what it says)
COLUMNS: dict[str, tuple[str, str]] = {
    "uri": ("string", "absolute; archive.tar!folder/bag.jpg in a tar; % and non-UTF-8 bytes percent-encoded"),
    "kind": ("string", "image, or container: a folder or archive that could not be listed to its end"),
    "bytes": ("int64", "size as listed"),
    "mtime": ("timestamp", "time of last modification as listed, us, UTC"),
    "offset": ("int64", "of a tar member's data in the (decompressed) archive; null for files"),
    "etag": ("string", "version of an object in a store (of the tar, for a member); null for files"),
    "sha256": ("sha256", "of the whole file or member"),
    "format": ("string", "jpeg, png, tiff, bmp, webp, jpeg2000"),
    "width": ("int64", "pixels as stored, before EXIF orientation"),
    "height": ("int64", "pixels as stored, before EXIF orientation"),
    "bit_depth": ("int32", "bits a channel, as stored"),
    "color": ("string", "gray, gray+alpha, rgb, rgba, palette, cmyk"),
    "status": ("string", "ok, or the reason why there is no score"),
    "error": ("string", "one sentence where status is not ok"),
    "warnings": ("string", "what the decoder tolerated"),
    **{f"p_{name}": ("float", f"probability of a {name}: ungated sigmoid of its logit") for name in THREATS},
    "largest_logit": ("float", "largest of the five logits, which the decisions classes and combined see"),
    "reconstruction_loss": (
        "float",
        "||s - G(E(s))||_1 of the standardized features s, mean over dimensions",
    ),
    "feature_matching_loss": ("float", "||f_D(s, E(s)) - f_D(G(E(s)), E(s))||_2"),
    "anomaly_score": ("double", "the decision's score; higher is more anomalous"),
    "anomalous": ("bool", "the alarm: anomaly_score at or above the operating point"),
    "threats": ("strings", "classes at or above their thresholds; null unless anomalous"),
    "typicality": (
        "float",
        "how near x lies to images like those of training: below 1 it looks like nothing the model has seen",
    ),
    "scanned_at": ("timestamp", "start of the scan, or of the update, that scanned it, us, UTC"),
    "gone": ("timestamp", "start of the update that no longer found it, us, UTC; null while it is there"),
}

_NAMES = list(COLUMNS)
SCORED_COLUMNS = _NAMES[_NAMES.index("p_gun") : _NAMES.index("scanned_at")]  # null unless the status is ok

_values_of: Callable[[Row], tuple[Any, ...]] = attrgetter(*COLUMNS)


def results_schema() -> "pa.Schema":
    """Return the Arrow schema of the results, with a description on each field."""
    import pyarrow as pa

    types = _types()
    return pa.schema(
        [
            pa.field(name, types[kind], metadata={"description": text})
            for name, (kind, text) in COLUMNS.items()
        ]
    )


_schema = cache(results_schema)


def columns_of(*names: str) -> "pa.Schema":
    """Return the schema of some columns of the results."""
    import pyarrow as pa

    return pa.schema([_schema().field(name) for name in names])


def shard_schema() -> "pa.Schema":
    """Return the schema of a shard's result: that of the results, and `place`."""
    import pyarrow as pa

    text = {
        "description": "place of the file in the listing of all shards, then of the member in its archive"
    }
    return results_schema().append(pa.field(PLACE, pa.int64(), metadata=text))


def with_places(
    batch: "pa.RecordBatch", places: "NDArray[np.int64]", schema: "pa.Schema"
) -> "pa.RecordBatch":
    """Add the column `place` to rows of the results; `schema` is that of a shard's result."""
    import pyarrow as pa

    return pa.RecordBatch.from_arrays([*batch.columns, pa.array(places)], schema=schema)


def features_schema(x_size: int, logits_size: int) -> "pa.Schema":
    """Return the Arrow schema of stored features: the key columns, x and logits as float16 lists."""
    import pyarrow as pa

    texts = {"x": "the feature vector", "logits": f"of {', '.join(THREATS)}, in this order"}
    lists = {"x": pa.list_(pa.float16(), x_size), "logits": pa.list_(pa.float16(), logits_size)}
    whole = results_schema()
    keys = [whole.field(name) for name in KEY_COLUMNS]
    return pa.schema([*keys, *(pa.field(n, lists[n], metadata={"description": texts[n]}) for n in lists)])


def to_batch(rows: Sequence[Row], schema: "pa.Schema") -> "pa.RecordBatch":
    """Convert rows to Arrow columns; NaN becomes null.

    A value that its column cannot hold becomes null, too, and its row `undecodable` unless it has failed.
    """
    import pyarrow as pa

    try:
        records = pa.array(list(map(_storable_values, rows)), _row_type(), from_pandas=True)
    except (pa.ArrowException, ValueError, TypeError, OverflowError):
        for row in rows:
            _drop_unstorable(row)
        records = pa.array(list(map(_storable_values, rows)), _row_type(), from_pandas=True)
    return pa.RecordBatch.from_arrays(records.flatten(), schema=schema)


def batch_of(columns: bytes) -> "pa.RecordBatch":
    """Read the columns that a worker returned, without copying."""
    import pyarrow as pa

    return pa.ipc.read_record_batch(pa.py_buffer(columns), _schema())


def rows_of(batch: "pa.RecordBatch") -> list[Row]:
    """Convert columns of the results' schema back to rows."""
    import pyarrow as pa

    names = batch.schema.names
    columns = [
        (column.cast(pa.int64()) if pa.types.is_timestamp(column.type) else column).to_pylist()
        for column in batch.columns
    ]
    return [Row(**dict(zip(names, values, strict=True))) for values in zip(*columns, strict=True)]


def features_to_batch(keys: "pa.RecordBatch", x: "Floats", logits: "Floats") -> "pa.RecordBatch":
    """Join the key columns of n rows with their features, x [n, k] and logits [n, 5], as float16."""
    import numpy as np
    import pyarrow as pa

    schema = features_schema(x.shape[1], logits.shape[1])
    halves = [
        pa.FixedSizeListArray.from_arrays(
            pa.array(values.astype(np.float16, copy=False).reshape(-1)), values.shape[1]
        )
        for values in (x, logits)
    ]
    return pa.RecordBatch.from_arrays([*keys.columns, *halves], schema=schema)


def footer_metadata(footer: dict[str, Any]) -> dict[bytes, bytes]:
    """Encode a footer as Parquet's key-value metadata."""
    return {FOOTER_KEY: json.dumps(footer).encode()}


def read_footer(result: Path) -> dict[str, Any] | None:
    """Read the footer of a finished result; None if the path is missing or not a result."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = result / COMMON_METADATA if result.is_dir() else result
    if not file.is_file():
        return None
    try:
        with open_regular(file) as source:
            metadata = pq.read_metadata(source).metadata or {}
        footer = json.loads(metadata[FOOTER_KEY])
    except (FileNotFoundError, pa.ArrowException, KeyError, ValueError, RecursionError):
        return None
    except OSError as error:
        if error.errno:
            raise
        return None  # Parquet by its first bytes, and damaged
    return footer if has_form(footer, FOOTER_FORM) else None


def _types() -> "dict[str, pa.DataType]":
    import pyarrow as pa

    return {
        "string": pa.string(),
        "int32": pa.int32(),
        "int64": pa.int64(),
        "float": pa.float32(),
        "double": pa.float64(),
        "bool": pa.bool_(),
        "timestamp": pa.timestamp("us", tz="UTC"),
        "sha256": pa.binary(32),
        "strings": pa.list_(pa.string()),
    }


@cache
def _row_type() -> "pa.StructType":
    """Return the columns as one struct type, so that many rows are converted in one fast call."""
    import pyarrow as pa

    return pa.struct(list(results_schema()))


def _storable_values(row: Row) -> tuple[Any, ...]:
    """List a row's values; messages are cut, and names in them that are not UTF-8 are escaped."""
    if row.error or row.warnings:
        row = replace(row, error=_storable(row.error), warnings=_storable(row.warnings))
    return _values_of(row)


def _storable(text: str | None) -> str | None:
    if not text:
        return text
    text = text if len(text) <= LONGEST_MESSAGE else f"{text[:LONGEST_MESSAGE]}..."
    return text.encode("utf-8", "backslashreplace").decode()


def _drop_unstorable(row: Row) -> None:
    """Set the values of a row that their columns cannot hold to None, and fail it if it has not failed."""
    import pyarrow as pa

    schema = _schema()
    for name, value in zip(COLUMNS, _storable_values(row), strict=True):
        try:
            pa.array([value], schema.field(name).type, from_pandas=True)
        except (pa.ArrowException, ValueError, TypeError, OverflowError):
            setattr(row, name, None)
            if row.status in (None, "ok"):
                row.fail(ImageFault("undecodable", f"its {name} is not one that a row can hold"))
                for scored in SCORED_COLUMNS:
                    setattr(row, scored, None)
