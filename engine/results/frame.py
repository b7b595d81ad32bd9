"""Rows as a data frame of a library that is installed."""

from collections.abc import Iterable
from importlib import import_module
from importlib.util import find_spec
from itertools import islice
from typing import Any

from ..row import Row
from .schema import results_schema, to_batch

AT_ONCE = 4096  # rows that are converted together


def frame_of(rows: Iterable[Row]) -> Any:
    """Return rows as a data frame of pandas, or else of polars, or else as an Arrow table."""
    import pyarrow as pa

    remaining, schema = iter(rows), results_schema()
    chunks = iter(lambda: list(islice(remaining, AT_ONCE)), [])
    table = pa.Table.from_batches((to_batch(chunk, schema) for chunk in chunks), schema)
    if find_spec("pandas"):
        return table.to_pandas()
    if find_spec("polars"):
        return import_module("polars").from_arrow(table)
    return table
