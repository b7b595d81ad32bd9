"""Every value that enters a row is bounded by its column's type: no file can stop a scan by what it says."""

import struct
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import stand_in_stages as stand_ins
from PIL import Image

from gbad_batch.engine import Scan, ScanSettings
from gbad_batch.engine.bundle import Bundle
from gbad_batch.engine.results.schema import COLUMNS, LONGEST_MESSAGE, results_schema, rows_of, to_batch
from gbad_batch.engine.row import Row

HUGE = (1 << 31, -(1 << 31) - 1, 1 << 63, -(1 << 63) - 1, 1 << 64, 10**400, 10**5_000)


def sound(name: str, **values: Any) -> Row:
    row = Row(f"/a/{name}", bytes=3, mtime=5, status="ok", width=8, height=9)
    scores = {"p_gun": 0.5, "anomaly_score": 1.0, "anomalous": True, "threats": ["gun"]}
    for column, value in {**scores, **values}.items():
        setattr(row, column, value)
    return row


def stored(*rows: Row) -> list[Row]:
    batch = to_batch(rows, results_schema())
    batch.validate(full=True)
    return rows_of(batch)


@pytest.mark.parametrize("column", ["width", "height", "bit_depth"])
@pytest.mark.parametrize("value", HUGE, ids=range(len(HUGE)))
def test_a_number_beyond_its_column_fails_its_row_alone(column: str, value: int) -> None:
    before, row, after = stored(sound("1"), sound("2", **{column: value}), sound("3"))
    assert (before, after) == (sound("1"), sound("3"))
    if column != "bit_depth" and -(1 << 63) <= value < 1 << 63:
        assert getattr(row, column) == value
        return
    assert (row.status, row.error) == ("undecodable", f"its {column} is not one that a row can hold")
    assert getattr(row, column) is None
    assert (row.p_gun, row.anomaly_score, row.anomalous, row.threats) == (None, None, None, None)
    assert (row.uri, row.bytes, row.mtime) == ("/a/2", 3, 5)


@pytest.mark.parametrize(
    ("column", "value"),
    [
        ("sha256", b"short"),
        ("color", 7),
        ("p_gun", "x"),
        ("threats", [1]),
    ],
)
def test_a_value_of_another_type_fails_its_row_alone(column: str, value: Any) -> None:
    row, other = stored(sound("1", **{column: value}), sound("2"))
    assert (row.status, getattr(row, column)) == ("undecodable", None)
    assert other == sound("2")


def test_a_row_that_has_failed_keeps_its_reason() -> None:
    row = Row("/a", status="too_large", error="it has many pixels", width=1 << 64, bit_depth=1 << 40)
    [got] = stored(row)
    assert (got.status, got.error, got.width, got.bit_depth) == (
        "too_large",
        "it has many pixels",
        None,
        None,
    )


def test_messages_are_cut_and_always_text() -> None:
    odd = "name \udcff \ud800 " + "x" * 10_000_000
    [row] = stored(Row("/a", status="undecodable", error=odd, warnings=odd))
    for text in (row.error, row.warnings):
        assert text is not None
        assert text.startswith("name \\udcff \\ud800 x")
        assert len(text) < LONGEST_MESSAGE + 100


def test_numbers_that_are_none_are_null() -> None:
    [row] = stored(sound("1", p_gun=float("nan"), anomaly_score=float("nan")))
    assert (row.status, row.p_gun, row.anomaly_score) == ("ok", None, None)


def test_each_column_has_a_bound() -> None:
    """A value of no column's type is refused by each of them."""
    for column in COLUMNS.keys() - {"uri", "status", "error", "warnings"}:
        [row] = stored(sound("1", **{column: object()}))
        assert (row.status, getattr(row, column)) == ("undecodable", None), column


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    root = tmp_path / "archive"
    root.mkdir()
    for i in range(9):
        noise = np.random.default_rng(i).integers(0, 256, (30, 40, 3), np.uint8)
        Image.fromarray(noise).save(root / f"{i}.png")
    return root


def settings(archive: Path, bundle: Bundle, **options: Any) -> ScanSettings:
    return ScanSettings(
        sources=(archive,), model=bundle.path, cache_dir=archive.parent, batch_size=4, threads=1, **options
    )


@pytest.mark.parametrize("features", [False, True])
def test_an_image_whose_values_fit_no_row_stops_no_scan(
    archive: Path, tiny_bundle: Bundle, tmp_path: Path, features: bool
) -> None:
    (archive / "4.png").rename(archive / "4fatal.png")
    stored = {"features": tmp_path / "x"} if features else {}
    options = {"out": tmp_path / "r.parquet", **stored}
    summary = Scan(settings(archive, tiny_bundle, **options), stand_ins.open_boundless).run()
    assert (summary.images, summary.exit_code) == (9, 3)
    rows = pq.read_table(tmp_path / "r.parquet").to_pylist()
    assert [row["status"] for row in rows] == [*["ok"] * 4, "undecodable", *["ok"] * 4]
    assert rows[4]["error"] == "its width is not one that a row can hold"
    if features:
        kept = pa.concat_tables(map(pq.read_table, sorted((tmp_path / "x").glob("*.parquet"))))
        assert len(kept) == 8


def tiff(*entries: tuple[int, int, int, int], big: bool = False) -> bytes:
    """Write a TIFF of one directory: (tag, type, count, value)."""
    if big:
        packed = b"".join(struct.pack("<HHQQ", *entry) for entry in entries)
        return struct.pack("<2sHHHQQ", b"II", 43, 8, 0, 16, len(entries)) + packed + bytes(8)
    packed = b"".join(struct.pack("<HHII", *entry) for entry in entries)
    return struct.pack("<2sHIH", b"II", 42, 8, len(entries)) + packed + bytes(4)


FILES = {
    "bits": tiff((256, 4, 1, 8), (257, 4, 1, 8), (258, 4, 1, 2**32 - 1)),
    "bits of 64": tiff((256, 4, 1, 8), (257, 4, 1, 8), (258, 16, 1, 2**64 - 1), big=True),
    "sides": tiff((256, 4, 1, 2**32 - 1), (257, 4, 1, 2**32 - 1), (258, 3, 1, 8)),
    "sides of 64": tiff((256, 16, 1, 2**64 - 1), (257, 16, 1, 2**64 - 1), (258, 3, 1, 8), big=True),
    "one side of 64": tiff((256, 16, 1, 2**64 - 1), (257, 3, 1, 1), big=True),
    "no side": tiff((256, 16, 1, 2**63), (257, 3, 1, 0), big=True),
    "png": b"\x89PNG\r\n\x1a\n"
    + struct.pack(">I4sIIBBBBB", 13, b"IHDR", 2**32 - 1, 2**32 - 1, 8, 0, 0, 0, 0),
    "jpeg2000": b"\xff\x4f\xff\x51"
    + struct.pack(">HH8IH", 41, 0, 2**32 - 1, 2**32 - 1, 0, 0, 2**32 - 1, 2**32 - 1, 0, 0, 1)
    + b"\xff\x01\x01",
    "bmp": b"BM" + struct.pack("<IHHIIiiHHI", 54, 0, 0, 54, 40, -(2**31), -(2**31), 1, 24, 0) + bytes(20),
}


def test_headers_that_say_huge_numbers_stop_no_scan(archive: Path, tiny_bundle: Bundle) -> None:
    for name, content in FILES.items():
        (archive / f"5{name}").write_bytes(content)
    rows = list(Scan(settings(archive, tiny_bundle)).rows())
    assert [row.status for row in rows].count("ok") == 9
    bad = {row.uri.rpartition("/5")[2]: row.status for row in rows if row.status != "ok"}
    assert bad.keys() == FILES.keys()
    assert set(bad.values()) <= {"too_large", "unsupported", "undecodable", "truncated", "not_an_image"}
