"""Lists of images with a column for each threat: SIXray's own CSV, and plain tables in CSV or Parquet."""

import csv
import io
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ..errors import Refused
from ..row import THREATS
from .files import read_bytes, read_text
from .labels import Gathered, Labels

SIXRAY_HEADER = ["name", *(threat.capitalize() for threat in THREATS)]
_NAMES = ("path", "name")  # of the column that names the image
_SIXRAY = {"1": True, "-1": False, "0": False}  # 0 is what it does not know: absent, as far as known
_TABLE = {**_SIXRAY, "true": True, "false": False, "": None}  # a blank says that it is unknown


def read_sixray(path: Path) -> Labels:
    """Read a list `name,Gun,Knife,Wrench,Pliers,Scissors` of 1, -1 or 0; raises Refused with the line."""
    lines = _csv_lines(path)
    if next(lines, (1, None))[1] != SIXRAY_HEADER:
        raise Refused(f"{path}, line 1: {','.join(SIXRAY_HEADER)} must be the first line")
    gathered = Gathered()
    for number, line in lines:
        origin = f"{path}, line {number}"
        if len(line) != len(SIXRAY_HEADER):
            raise Refused(f"{origin}: a name and five labels are expected, not {len(line)} values")
        present, _ = _threats(dict(zip(THREATS, line[1:], strict=True)), _SIXRAY, origin)
        gathered.add(line[0], present, origin)
    return gathered.labels(path)


def read_table(path: Path) -> Labels:
    """Read a CSV or Parquet table with `path` or `name`, the five threats, optionally `split` and `group`.

    Labels are 1 / true or 0 / -1 / false; a blank, or a class without a column, is unknown. Other columns are
    ignored. Raises Refused with the line or row.
    """
    is_parquet = path.suffix.lower() == ".parquet"
    header, rows = _parquet_rows(path) if is_parquet else csv_rows(path)
    columns = [column.strip().lower() for column in header]
    name, threats, split, group = _positions(str(path) if is_parquet else f"{path}, line 1", columns)
    gathered = Gathered()
    for origin, row in rows:
        if len(row) != len(columns):
            raise Refused(f"{origin}: {len(columns)} values are expected, not {len(row)}")
        present, unknown = _threats({threat: row[k] for threat, k in threats.items()}, _TABLE, origin)
        gathered.add(
            row[name],
            present,
            origin,
            unknown=unknown,
            group="" if group is None else row[group].strip(),
            split="" if split is None else row[split].strip(),
        )
    return gathered.labels(path)


def _positions(origin: str, columns: list[str]) -> tuple[int, dict[str, int], int | None, int | None]:
    """Find the columns of the name, of threats, of the split and the group."""
    if twice := sorted(
        {c for c in columns if columns.count(c) > 1 and c in (*_NAMES, *THREATS, "split", "group")}
    ):
        raise Refused(f"{origin}: the column {twice[0]} occurs twice; keep one")
    name = next((column for column in _NAMES if column in columns), None)
    threats = {threat: columns.index(threat) for threat in THREATS if threat in columns}
    if name is None or not threats:
        missing = [
            *(() if name else ("path (or name)",)),
            *(() if threats else (f"one of {', '.join(THREATS)}",)),
        ]
        raise Refused(f"{origin}: a table of labels needs the column {' and '.join(missing)}: add it")
    split, group = (columns.index(c) if c in columns else None for c in ("split", "group"))
    return columns.index(name), threats, split, group


def _threats(
    values: dict[str, str], meanings: Mapping[str, bool | None], origin: str
) -> tuple[list[str], list[str]]:
    """Return the threats whose value is true, and those of which nothing is known."""
    told: dict[str, bool | None] = dict.fromkeys(THREATS)
    for threat, value in values.items():
        text = value.strip().lower()
        if text not in meanings:
            some = ", ".join(filter(None, meanings))
            raise Refused(f"{origin}: the label {value!r} of {threat} is none of {some}")
        told[threat] = meanings[text]
    return [threat for threat in told if told[threat]], [threat for threat in told if told[threat] is None]


def _csv_lines(path: Path) -> Iterator[tuple[int, list[str]]]:
    """Yield line numbers and values of the lines that are not blank."""
    lines = csv.reader(io.StringIO(read_text(path), newline=""), strict=True)
    try:
        for line in lines:
            if line:
                yield lines.line_num, line
    except csv.Error as error:
        raise Refused(f"{path}, line {lines.line_num}: this is not CSV: {error}") from error


def csv_rows(path: Path) -> tuple[list[str], Iterator[tuple[str, list[str]]]]:
    """Return the header of a CSV file, and its other lines, each with its origin; raises Refused."""
    lines = _csv_lines(path)
    _, header = next(lines, (0, []))
    return header, ((f"{path}, line {number}", line) for number, line in lines)


def _parquet_rows(path: Path) -> tuple[list[str], Iterator[tuple[str, list[str]]]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(pa.BufferReader(read_bytes(path)))
    except (pa.ArrowException, OSError) as error:
        raise Refused(f"{path} is not a Parquet file: {' '.join(str(error).split())}") from error
    known = (*_NAMES, *THREATS, "split", "group")
    wanted = [k for k, column in enumerate(table.column_names) if column.strip().lower() in known]
    columns = [table.column(k).to_pylist() for k in wanted]
    rows = enumerate(zip(*columns, strict=True), start=1)
    header = [table.column_names[k] for k in wanted]
    return header, ((f"{path}, row {number}", [_as_text(v) for v in row]) for number, row in rows)


def _as_text(value: Any) -> str:
    return "" if value is None else str(value)


def first_line(path: Path) -> list[str]:
    """Return the header of a CSV file; raises Refused if it is not CSV."""
    return next(_csv_lines(path), (0, []))[1]
