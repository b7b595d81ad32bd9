"""Results as tables that other programs open: CSV, Excel's xlsx, JSON.

Beside `uri` stands `path`, the same without its encoding; `sha256` is hexadecimal. For spreadsheets `threats`
is one text, times are in UTC without saying so, to the millisecond, and no text can be taken for a formula.
"""

import json
from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .errors import MissingExtra, Refused, how_to_install
from .results.parts import files_of, read_parquet, rows_in
from .results.schema import read_footer, results_schema
from .sources.uris import plain
from .system.durable import written_aside

if TYPE_CHECKING:
    import pyarrow as pa

TIMES = ("mtime", "scanned_at", "gone")
SHEET_ROWS = 1_048_576  # that Excel shows, the head included
FIRST_YEAR = 1900  # of Excel's dates
FORMULA = r"^[=+\-@\t\r\n]"  # how a text begins that a spreadsheet may run


def export(results: Path, out: Path) -> int:
    """Write the rows of a finished scan to a .csv, .xlsx or .json; returns their number.

    Raises Refused if `results` is not a scan's, if `out` exists or has another extension, and if the rows do
    not fit, MissingExtra if the library for .xlsx is not installed, and OSError of the disk.
    """
    write = _WRITERS.get(out.suffix.lower())
    if write is None:
        raise Refused(f"{out} must end in .csv, .xlsx or .json: its extension gives the format")
    if read_footer(results) is None:
        raise Refused(f"{results} is not a finished result of gbad-batch: name the --out of a scan")
    if out.exists():
        raise Refused(f"{out} exists already: remove it, or name another file")
    files = files_of(results)
    rows = sum(map(rows_in, files))
    if out.suffix.lower() == ".xlsx":
        _check_sheet(results, rows)
    batches = (batch for file in files for batch in read_parquet(file, results_schema()))
    with written_aside(out) as temporary:
        write(temporary, map(_legible, batches))
    return rows


def _check_sheet(results: Path, rows: int) -> None:
    if not find_spec("xlsxwriter"):
        raise MissingExtra(f"an .xlsx needs XlsxWriter, which is not installed: {how_to_install('excel')}")
    if rows >= SHEET_ROWS:
        raise Refused(f"{results} has {rows:,} rows, and a sheet holds {SHEET_ROWS - 1:,}: export a .csv")


def _legible(batch: "pa.RecordBatch") -> "pa.RecordBatch":
    """Add the plain path behind the uri, and write digests in hexadecimal."""
    import pyarrow as pa

    paths = pa.array([plain(uri) for uri in batch["uri"].to_pylist()], pa.string())
    digests = [None if digest is None else digest.hex() for digest in batch["sha256"].to_pylist()]
    columns = dict(zip(batch.schema.names, batch.columns, strict=True))
    columns |= {"sha256": pa.array(digests, pa.string())}
    names = [name for each in batch.schema.names for name in ((each, "path") if each == "uri" else (each,))]
    return pa.RecordBatch.from_arrays([({"path": paths} | columns)[name] for name in names], names)


def _for_spreadsheets(batch: "pa.RecordBatch") -> "pa.RecordBatch":
    """Join threats, and write times as spreadsheets know them."""
    import pyarrow as pa

    pc: Any = import_module("pyarrow.compute")  # its functions are made at run time, unknown to checkers
    joined = pc.binary_join(batch["threats"], ";")
    naive, whole = pa.timestamp("us"), pa.timestamp("ms")
    times = {name: batch[name].cast(naive).cast(whole, safe=False) for name in TIMES}
    changed = {"threats": joined} | times
    names = batch.schema.names
    return pa.RecordBatch.from_arrays([changed.get(name, batch[name]) for name in names], names)


def _defused(batch: "pa.RecordBatch") -> "pa.RecordBatch":
    """Put an apostrophe before each text that a spreadsheet might take for a formula."""
    import pyarrow as pa

    pc: Any = import_module("pyarrow.compute")

    def defused(column: "pa.Array") -> "pa.Array":
        if not pa.types.is_string(column.type):
            return column
        marked = pc.binary_join_element_wise("'", column, "")
        return pc.if_else(pc.match_substring_regex(column, FORMULA), marked, column)

    return pa.RecordBatch.from_arrays([defused(column) for column in batch.columns], batch.schema.names)


def _write_csv(path: Path, batches: "Iterator[pa.RecordBatch]") -> None:
    csv: Any = import_module("pyarrow.csv")
    writer = None
    with path.open("wb") as file:
        for batch in batches:
            safe = _defused(_for_spreadsheets(batch))
            writer = writer or csv.CSVWriter(file, safe.schema)
            writer.write_batch(safe)
        if writer:
            writer.close()


def _write_json(path: Path, batches: "Iterator[pa.RecordBatch]") -> None:
    """Write one array with an object a line; times are ISO 8601 in UTC."""
    separator = "[\n"
    with path.open("w", encoding="utf-8") as file:
        for batch in batches:
            for row in batch.to_pylist():
                row |= {name: row[name] and row[name].isoformat() for name in TIMES}
                file.write(separator + json.dumps(row))
                separator = ",\n"
        file.write("\n]\n" if separator != "[\n" else "[]\n")


def _write_xlsx(path: Path, batches: "Iterator[pa.RecordBatch]") -> None:
    """Write one sheet, row by row; every cell has its type, so none is a formula or a link."""
    xlsxwriter: Any = import_module("xlsxwriter")
    options = {"constant_memory": True, "default_date_format": "yyyy-mm-dd hh:mm:ss"}
    with path.open("wb") as file, xlsxwriter.Workbook(file, options) as book:
        sheet = book.add_worksheet("results")
        sheet.freeze_panes(1, 0)
        at = 0
        for batch in map(_for_spreadsheets, batches):
            if not at:
                sheet.write_row(0, 0, batch.schema.names)
            for values in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                at += 1
                for column, value in enumerate(values):
                    _write_cell(sheet, at, column, value)


def _write_cell(sheet: Any, row: int, column: int, value: Any) -> None:
    if value is None:
        return
    if isinstance(value, bool):
        sheet.write_boolean(row, column, value)
    elif isinstance(value, int | float):
        sheet.write_number(row, column, value)
    elif isinstance(value, str):
        sheet.write_string(row, column, value)
    elif value.year >= FIRST_YEAR:
        sheet.write_datetime(row, column, value)
    else:
        sheet.write_string(row, column, value.isoformat(" "))


_WRITERS: "dict[str, Callable[[Path, Iterator[pa.RecordBatch]], None]]" = {
    ".csv": _write_csv,
    ".json": _write_json,
    ".xlsx": _write_xlsx,
}
