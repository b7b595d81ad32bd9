"""What another run, program or user may have left at an output is used, or refused in a sentence."""

import json
import os
import random
import shutil
import signal
import socket
import stat
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from gbad_batch.engine.errors import GbadError, Refused, Stopped
from gbad_batch.engine.evaluation.rows import read_results
from gbad_batch.engine.results import Session, open_results
from gbad_batch.engine.results import parts as parts_module
from gbad_batch.engine.results import session as session_module
from gbad_batch.engine.results.in_flight import collect_suspects
from gbad_batch.engine.results.index import key_of
from gbad_batch.engine.results.parts import PartFolder
from gbad_batch.engine.results.resuming import STATE_FORM
from gbad_batch.engine.results.schema import (
    FOOTER_FORM,
    footer_metadata,
    read_footer,
    results_schema,
    to_batch,
)
from gbad_batch.engine.row import Row
from gbad_batch.engine.settings import ScanSettings

FINGERPRINT = {"bundle_hash": "00"}
ODD = [None, 0, -1, 1.5, True, "", "\0", "x" * 100_000, [], [1], [[]], {}, {"a": 1}, 10**400, "\ud800"]


@pytest.fixture(autouse=True)
def no_hang() -> Iterator[None]:
    """End a test that waits on a FIFO."""

    def expired(*_: object) -> None:
        raise TimeoutError("something waits for ever")

    before = signal.signal(signal.SIGALRM, expired)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def rows(count: int = 40) -> list[Row]:
    return [
        Row(f"/a/{i:03}.jpg", bytes=i, mtime=i, status="ok", anomaly_score=float(i), sha256=bytes([i]) * 32)
        for i in range(count)
    ]


def opened(out: Path, **options: Any) -> Session:
    end = "/" if options.pop("out_is_folder", False) else ""
    return open_results(ScanSettings(out=f"{out}{end}", **options), FINGERPRINT, {"bundle": "demo"})


def feed(session: Session, given: list[Row]) -> None:
    for start in range(0, len(given), 10):
        new = [row for row in given[start : start + 10] if session.index.claim(key_of(row), "image") == "new"]
        session.write(to_batch(new, results_schema()))
        session.flush()


def interrupted(out: Path, given: list[Row], **options: Any) -> Path:
    with opened(out, **options) as session:
        feed(session, given)
    return out.with_name(f"{out.name}.parts")


def finished(out: Path, given: list[Row], **options: Any) -> list[dict[str, Any]]:
    with opened(out, **options) as session:
        feed(session, given)
        session.finish()
    return pq.read_table(out).drop_columns("scanned_at").to_pylist()


# --- kinds and owners ---

NAMES = [
    "lock",
    "scan.json",
    "suspects",
    "in_flight-1",
    "data",
    "old",
    "sorting",
    "finished.parquet",
    "journal",
]


def fifo(path: Path) -> None:
    os.mkfifo(path)


def link(path: Path) -> None:
    path.symlink_to("/etc/passwd" if path.suffix else "/etc")


def socket_at(path: Path) -> None:
    here = Path.cwd()
    os.chdir(path.parent)  # its own name may not be long
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path.name)
    os.chdir(here)


@pytest.mark.parametrize("make", [fifo, link, socket_at])
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("begun", [False, True])
def test_what_no_scan_makes_is_refused_and_never_opened(
    tmp_path: Path, make: Callable[[Path], None], name: str, begun: bool
) -> None:
    out = tmp_path / "r.parquet"
    folder = interrupted(out, rows()) if begun else tmp_path / "r.parquet.parts"
    folder.mkdir(mode=0o700, exist_ok=True)
    shutil.rmtree(folder / name, ignore_errors=True)
    (folder / name).unlink(missing_ok=True)
    make(folder / name)
    with pytest.raises(Refused, match="holds other files than a scan's"):
        opened(out)
    assert (folder / name).lstat()


@pytest.mark.parametrize("make", [fifo, socket_at])
def test_a_part_that_is_no_file_is_told(tmp_path: Path, make: Callable[[Path], None]) -> None:
    folder = interrupted(tmp_path / "r.parquet", rows())
    make(folder / "data" / "part-00000099.parquet")
    with pytest.raises(GbadError):
        opened(tmp_path / "r.parquet")


@pytest.mark.parametrize("make", [fifo, socket_at])
def test_an_output_that_is_no_file_is_told(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "r.parquet")
    with pytest.raises(Refused, match="neither a file nor a folder"):
        opened(tmp_path / "r.parquet")
    (tmp_path / "folder").mkdir()
    make(tmp_path / "folder" / "_common_metadata")
    with pytest.raises(Refused):
        opened(tmp_path / "folder", out_is_folder=True)
    with pytest.raises(GbadError):
        read_results(tmp_path / "folder")


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to give files to another user")
@pytest.mark.parametrize("name", ["lock", "scan.json", "suspects", "data", ""])
def test_what_belongs_to_another_user_is_not_opened(tmp_path: Path, name: str) -> None:
    folder = interrupted(tmp_path / "r.parquet", rows())
    (folder / "suspects").touch()
    os.chown(folder / name, 12345, 12345)
    with pytest.raises(Refused, match=r"another user|other files than a scan's"):
        opened(tmp_path / "r.parquet")


def test_the_folder_of_parts_is_durable_before_a_scan_begins(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[str] = []
    fsync = os.fsync

    def noting(handle: int) -> None:
        flushed.append(str(Path(f"/proc/self/fd/{handle}").readlink()))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", noting)
    with opened(tmp_path / "r.parquet"):
        parts = tmp_path / "r.parquet.parts"
        assert flushed[0] == str(tmp_path)
        assert str(parts) in flushed[flushed.index(str(tmp_path)) :]
        assert stat.S_IMODE(parts.stat().st_mode) == 0o700


# --- scan.json, suspects, footers ---


@pytest.mark.parametrize("key", STATE_FORM)
def test_any_value_in_the_state_is_used_or_refused(tmp_path: Path, key: str) -> None:
    out = tmp_path / "r.parquet"
    folder = interrupted(out, rows())
    whole = json.loads((folder / "scan.json").read_text())
    for value in ODD:
        (folder / "scan.json").write_text(json.dumps({**whole, key: value}))
        with suppress(Refused, Stopped), opened(out) as session:
            feed(session, rows())
    del whole[key]
    (folder / "scan.json").write_text(json.dumps(whole))
    with pytest.raises(Refused, match="is damaged"):
        opened(out)


STATES = [b"", b"{", b"null", b"[]", b"7", b"[" * 100_000, b"9" * 5_000, b"\xff", b'{"format": 3}', b"{}"]


@pytest.mark.parametrize("text", STATES, ids=range(len(STATES)))
def test_a_state_that_is_none_is_refused_and_restart_helps(tmp_path: Path, text: bytes) -> None:
    out = tmp_path / "r.parquet"
    folder = interrupted(out, rows())
    (folder / "scan.json").write_bytes(text)
    with pytest.raises(Refused, match=r"is damaged|another version"):
        opened(out)


@pytest.mark.parametrize("size", [1, 5, 15, 17, 31, 100_001])
def test_an_odd_file_of_suspects_stops_no_scan(tmp_path: Path, size: int) -> None:
    folder = interrupted(tmp_path / "r.parquet", rows())
    (folder / "suspects").write_bytes(bytes(range(256)) * (size // 256) + bytes(range(size % 256)))
    (folder / "in_flight-7").write_bytes(b"\1" * size)
    assert all(len(key) == 16 for key in collect_suspects(folder))
    assert len(finished(tmp_path / "r.parquet", rows())) == 40


@pytest.mark.parametrize("key", FOOTER_FORM)
def test_a_footer_that_lacks_a_key_or_has_another_type_is_not_ours(tmp_path: Path, key: str) -> None:
    out = tmp_path / "r.parquet"
    finished(out, rows())
    footer, table = read_footer(out), pq.read_table(out)
    assert footer is not None
    for value in [*ODD, "missing"]:
        changed = {**footer, key: value}
        if value == "missing":
            del changed[key]
        with pq.ParquetWriter(out, table.schema) as writer:
            writer.write_table(table)
            writer.add_key_value_metadata(footer_metadata(changed))
        for options in ({}, {"retry": frozenset({"failed"})}, {"overwrite": True}):
            with suppress(Refused, Stopped), opened(out, **options) as session:
                session.discard()
            shutil.rmtree(tmp_path / "r.parquet.parts", ignore_errors=True)
        with pytest.raises(Refused):
            read_results(out)  # it has no operating point, anyway


def test_other_parquet_files_are_no_results(tmp_path: Path) -> None:
    for name, metadata in {
        "a": b"{",
        "b": b"[]",
        "c": b"[" * 100_000,
        "d": b"\xff",
        "e": b"9" * 5_000,
    }.items():
        schema = pa.schema([("x", pa.int8())], metadata={b"gbad_batch": metadata})
        pq.write_table(pa.table({"x": pa.array([1], pa.int8())}, schema), tmp_path / name)
        with pytest.raises(Refused):
            opened(tmp_path / name)
        with pytest.raises(Refused):
            read_results(tmp_path / name)


OPERATING_POINT = {
    "decision": "gbad", "precision": "fp32", "pfa": 0.05, "threshold": 1, "class_thresholds": [0.5] * 5,
    "interval": None, "supported": True,
}  # fmt: skip


def test_results_to_be_judged_have_a_whole_operating_point_and_names(tmp_path: Path) -> None:
    out = tmp_path / "r.parquet"
    finished(out, rows())
    footer, table = read_footer(out), pq.read_table(out)
    model = {"bundle": "m", "bundle_hash": "00", "backend": "openvino", "precision": "fp32", "demo": True}
    whole: dict[str, Any] = {**(footer or {}), **model, "operating_point": OPERATING_POINT}

    def write(table: pa.Table, footer: dict[str, Any]) -> Path:
        with pq.ParquetWriter(out, table.schema) as writer:
            writer.write_table(table)
            writer.add_key_value_metadata(footer_metadata(footer))
        return out

    assert len(read_results(write(table, whole)).uris) == 40
    for key in OPERATING_POINT:
        lacking = {name: value for name, value in OPERATING_POINT.items() if name != key}
        for point in (lacking, OPERATING_POINT | {key: {}}):
            with pytest.raises(Refused, match="does not hold results"):
                read_results(write(table, {**whole, "operating_point": point}))
    for column in ("uri", "kind", "status"):
        nulls = table.set_column(table.schema.get_field_index(column), column, pa.nulls(40, pa.string()))
        with pytest.raises(Refused, match="does not hold results"):
            read_results(write(nulls, whole))
        with pytest.raises(Refused, match="is damaged"):
            read_results(write(table.drop_columns(column), whole))


def test_other_descriptions_of_the_columns_are_no_damage(tmp_path: Path) -> None:
    out = tmp_path / "r.parquet"
    finished(out, [*rows(), Row("/a/x", bytes=1, mtime=1, status="truncated")])
    footer, table = read_footer(out), pq.read_table(out)
    assert footer is not None
    schema = pa.schema([field.with_metadata({"description": "other"}) for field in table.schema][::-1])
    with pq.ParquetWriter(out, schema) as writer:
        writer.write_table(table.select(schema.names).cast(schema))
        writer.add_key_value_metadata(footer_metadata(footer))
    again = finished(out, [*rows(), Row("/a/x", bytes=1, mtime=1, status="ok")], retry=frozenset({"failed"}))
    assert [row["status"] for row in again] == ["ok"] * 41
    assert pq.read_schema(out).equals(results_schema(), check_metadata=False)


# --- parts ---


FOREIGN: dict[str, Callable[[pa.Table], pa.Table]] = {
    "other columns": lambda _: pa.table({"x": [1]}),
    "no columns": lambda _: pa.table({}),
    "one missing": lambda table: table.drop_columns("status"),
    "another type": lambda table: table.set_column(2, "bytes", pa.array(["a", "b", "c"])),
    "nested": lambda table: table.set_column(0, "uri", pa.array([[1], [2], [3]])),
    "twice": lambda table: table.append_column("uri", table["uri"]),
}


@pytest.mark.parametrize("kind", FOREIGN)
def test_a_foreign_file_among_the_parts_is_named(tmp_path: Path, kind: str) -> None:
    folder = interrupted(tmp_path / "r.parquet", rows())
    path = folder / "data" / "part-00000077.parquet"
    pq.write_table(FOREIGN[kind](pa.Table.from_batches([to_batch(rows(3), results_schema())])), path)
    with pytest.raises(Refused, match=r"part-00000077\.parquet is damaged"):
        opened(tmp_path / "r.parquet")
    path.unlink()
    assert len(finished(tmp_path / "r.parquet", rows())) == 40


@pytest.mark.parametrize("number", ["00000009-00000002", "9" * 200, "x"])
def test_names_that_are_no_parts_are_left_alone(tmp_path: Path, number: str) -> None:
    folder = interrupted(tmp_path / "r.parquet", rows())
    (folder / "data" / f"part-{number}.parquet").write_bytes(b"PAR1")
    assert len(finished(tmp_path / "r.parquet", rows())) == 40


def test_no_damage_of_a_part_changes_a_row(tmp_path: Path) -> None:
    """Bits are flipped all over a part: it is refused by its checksums, or its rows are as they were."""
    folder = interrupted(tmp_path / "r.parquet", rows())
    saved = Path(shutil.copytree(folder, tmp_path / "saved"))
    right = finished(tmp_path / "r.parquet", rows())
    parts = sorted(saved.glob("data/*.parquet"))
    draw = random.Random(3)
    outcomes = {"refused": 0, "as before": 0}
    for _ in range(60):
        (tmp_path / "r.parquet").unlink(missing_ok=True)
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(saved, folder)
        part = folder / "data" / draw.choice(parts).name
        content = bytearray(part.read_bytes())
        content[draw.randrange(len(content))] ^= 1 << draw.randrange(8)
        part.write_bytes(content)
        try:
            assert finished(tmp_path / "r.parquet", rows()) == right
            outcomes["as before"] += 1
        except (Refused, Stopped):
            outcomes["refused"] += 1
    assert outcomes["refused"] > 15


# --- memory ---


def test_rows_of_long_names_close_a_part_early(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_module, "JOIN_ROWS", 4)
    monkeypatch.setattr(session_module, "PART_BYTES", 40_000)
    monkeypatch.setattr(parts_module, "READ_BYTES", 20_000)
    monkeypatch.setattr(parts_module, "GROUP_BYTES", 20_000)
    draw = np.random.default_rng(1)
    given = [Row(f"/{draw.bytes(2_000).hex()}", bytes=1, mtime=i, status="ok") for i in range(100)]
    with opened(tmp_path / "r.parquet") as session:
        for at in range(0, 100, 2):
            for row in given[at : at + 2]:
                session.index.claim(key_of(row), "image")
            session.write(to_batch(given[at : at + 2], results_schema()))
        data = tmp_path / "r.parquet.parts" / "data"
        assert len(list(data.iterdir())) >= 8
        sizes = [batch.nbytes for batch in PartFolder(data).read(results_schema())]
        assert max(sizes) < 60_000
        session.finish()
    file = pq.ParquetFile(tmp_path / "r.parquet")
    assert file.num_row_groups >= 10
    assert file.read()["uri"].to_pylist() == [row.uri for row in given]
