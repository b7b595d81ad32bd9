"""What stands on disk, whatever happens: parts, resume, the finish, the same command again."""

import json
import math
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest

from gbad_batch.engine.errors import Refused, Stopped
from gbad_batch.engine.results import FinishReport, Session, open_results, selection
from gbad_batch.engine.results import session as session_module
from gbad_batch.engine.results.in_flight import collect_suspects, in_flight, open_slots
from gbad_batch.engine.results.index import key_of
from gbad_batch.engine.results.parts import PartFolder
from gbad_batch.engine.results.schema import columns_of, read_footer, results_schema, to_batch
from gbad_batch.engine.row import Row
from gbad_batch.engine.settings import ScanSettings

FINGERPRINT = {"sources": ["/archive"], "precision": "fp32", "limit": None}
NOW = 1_700_000_000_123_456


def ok(i: int, mtime: int = 0) -> Row:
    score = {"anomaly_score": i / 7, "anomalous": i % 2 == 0, "threats": ["gun"] if i % 2 == 0 else None}
    return Row(
        f"/archive/bag{i}.jpg", bytes=1000 + i, mtime=NOW + mtime, sha256=bytes([i % 256]) * 32,
        format="jpeg", width=700, height=500, bit_depth=8, color="rgb", status="ok", p_gun=i / 1000,
        p_knife=0.1, p_wrench=0.2, p_pliers=0.3, p_scissors=0.4, reconstruction_loss=0.5,
        feature_matching_loss=0.6, **score,
    )  # fmt: skip


def bad(i: int, status: Any = "truncated") -> Row:
    return Row(f"/archive/bag{i}.jpg", bytes=1000 + i, mtime=NOW, status=status, error="it ends early")


def some(n: int) -> list[Row]:
    return [bad(i) if i % 5 == 4 else ok(i) for i in range(n)]


def features_of(rows: list[Row]) -> tuple[np.ndarray, np.ndarray]:
    """Features that tell which image and which version of it they are of."""
    good = [row for row in rows if row.status == "ok"]
    numbers = [[(row.bytes or 0) - 1000, (row.mtime or 0) - NOW] for row in good]
    x = np.zeros((len(good), 1024), np.float32)
    x[:, :2] = np.array(numbers, np.float32).reshape(-1, 2)
    return x, np.full((len(good), 5), 0.5, np.float32)


def opened(out: Path, fingerprint: dict[str, Any] = FINGERPRINT, **options: Any) -> Session:
    end = "/" if options.pop("out_is_folder", False) else ""
    return open_results(ScanSettings(out=f"{out}{end}", **options), fingerprint, {"bundle": "demo"})


def feed(session: Session, rows: Iterable[Row], part: int = 7) -> None:
    """Claim and write rows as a scan does; a part is flushed every so many rows."""
    batch: list[Row] = []
    for row in rows:
        if session.index.claim(key_of(row), row.kind) == "new":
            batch.append(row)
        if len(batch) == part:
            session.write(to_batch(batch, results_schema()), features_of(batch))
            session.flush()
            batch = []
    if batch:
        session.write(to_batch(batch, results_schema()), features_of(batch))


def scan(out: Path, rows: Iterable[Row], **options: Any) -> FinishReport:
    with opened(out, **options) as session:
        if session.finished is None:
            feed(session, rows)
            session.finish()
        assert session.finished
        return session.finished


def interrupted(out: Path, rows: Iterable[Row], **options: Any) -> None:
    with opened(out, **options) as session:
        feed(session, rows)


def plain(table: pa.Table) -> list[dict[str, Any]]:
    """Give rows as dictionaries, mtime in us, without what depends on the clock."""
    table = table.set_column(3, "mtime", table["mtime"].cast(pa.int64()))
    return table.drop_columns(["scanned_at", "gone"]).to_pylist()


def in_order(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(rows, key=lambda row: (row["uri"], row["offset"] or 0))


def stored(out: Path) -> list[dict[str, Any]]:
    return in_order(plain(ds.dataset(out, format="parquet").to_table()))


def as_stored(rows: list[Row]) -> list[dict[str, Any]]:
    return plain(pa.Table.from_batches([to_batch(rows, results_schema())]))


def expected(rows: list[Row]) -> list[dict[str, Any]]:
    return in_order(as_stored(rows))


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


# The finished file


def test_rows_come_back_as_written_and_in_their_order(tmp_path: Path):
    rows = some(40)
    rows.append(Row("/archive/locked", kind="container", status="unlistable", error="permission denied"))
    rows.append(Row("/archive/a.tar!x.jpg", bytes=5, mtime=NOW, offset=512, status="empty", error="no bytes"))
    report = scan(tmp_path / "r.parquet", rows)
    assert report == FinishReport(
        rows=42, images=41, containers=1, gone=0, replaced=0, new=42, kept=0, kept_gone=0, new_alarms=16
    )
    table = pq.read_table(tmp_path / "r.parquet")
    assert plain(table) == as_stored(rows)
    assert table.schema.names == list(Row.__slots__)
    assert names(tmp_path) == {"r.parquet"}


def test_types_descriptions_and_footer(tmp_path: Path):
    scan(tmp_path / "r.parquet", some(3))
    schema = pq.read_schema(tmp_path / "r.parquet")
    assert schema.field("sha256").type == pa.binary(32)
    assert schema.field("mtime").type == pa.timestamp("us", "UTC")
    assert schema.field("p_gun").type == pa.float32()
    assert schema.field("anomaly_score").type == pa.float64()
    assert schema.field("threats").type.value_type == pa.string()
    assert all(field.metadata[b"description"] for field in schema)
    footer = read_footer(tmp_path / "r.parquet")
    assert footer
    assert footer["bundle"] == "demo"
    assert footer["fingerprint"] == FINGERPRINT
    assert (footer["rows"], footer["images"], footer["schema"]) == (3, 3, 4)
    (run,) = footer["runs"]
    assert run["host"]
    assert "pyarrow" in run["versions"]
    assert run["start"] <= run["end"]


def test_mtime_keeps_its_microseconds(tmp_path: Path):
    scan(tmp_path / "r.parquet", [ok(1)])
    assert pq.read_table(tmp_path / "r.parquet")["mtime"].cast(pa.int64()).to_pylist() == [NOW]


def test_missing_values_are_null_never_nan(tmp_path: Path):
    row = ok(1)
    row.anomaly_score = row.p_gun = math.nan
    scan(tmp_path / "r.parquet", [row, bad(2)])
    first, second = stored(tmp_path / "r.parquet")
    assert first["anomaly_score"] is first["p_gun"] is None
    assert second["threats"] is second["p_knife"] is second["width"] is None


def test_what_hostile_headers_and_names_hold_is_stored(tmp_path: Path):
    row = bad(1)
    row.error, row.warnings, row.width, row.bit_depth = "cannot read \udcff.jpg", "\udc80", 2**32 - 1, 65535
    scan(tmp_path / "r.parquet", [row])
    (back,) = stored(tmp_path / "r.parquet")
    assert (back["error"], back["warnings"]) == ("cannot read \\udcff.jpg", "\\udc80")
    assert (back["width"], back["bit_depth"]) == (2**32 - 1, 65535)


def test_an_output_name_that_is_not_utf8(tmp_path: Path):
    out = tmp_path / os.fsdecode(b"r\xff.parquet")
    interrupted(out, some(9))
    assert scan(out, some(12)).rows == 12


def test_a_missing_row_stops_the_finish_and_keeps_the_parts(tmp_path: Path):
    with opened(tmp_path / "r.parquet") as session:
        feed(session, some(10))
        session.index.claim(key_of(ok(99)), "image")  # met, and never written
        with pytest.raises(Stopped, match="10 rows for 11 candidates"):
            session.finish()
    assert names(tmp_path) == {"r.parquet.parts"}
    assert scan(tmp_path / "r.parquet", some(10)).rows == 10


def test_a_result_that_appears_meanwhile_is_not_replaced(tmp_path: Path):
    with opened(tmp_path / "r.parquet") as session:
        feed(session, some(3))
        (tmp_path / "r.parquet").write_text("mine")
        with pytest.raises(Stopped, match="has appeared"):
            session.finish()
    assert (tmp_path / "r.parquet").read_text() == "mine"


def test_no_candidate_leaves_nothing(tmp_path: Path):
    with opened(tmp_path / "r.parquet", features=tmp_path / "f") as session:
        session.discard()
    assert names(tmp_path) == set()


def test_no_candidate_keeps_what_earlier_runs_did(tmp_path: Path):
    interrupted(tmp_path / "r.parquet", some(9))
    with opened(tmp_path / "r.parquet") as session:
        session.discard()
    assert scan(tmp_path / "r.parquet", some(9)).rows == 9


# Resume


def test_the_same_command_goes_on(tmp_path: Path):
    out = tmp_path / "r.parquet"
    interrupted(out, some(20))
    with opened(out) as session:
        assert session.index.finished == 20
        assert session.index.failed == 4
        feed(session, some(30))
        session.finish()
        assert session.rows_written == 10
    assert stored(out) == expected(some(30))
    footer = read_footer(out)
    assert footer
    assert len(footer["runs"]) == 2


def test_changed_rows_are_replaced_and_gone_ones_dropped(tmp_path: Path):
    out = tmp_path / "r.parquet"
    interrupted(out, some(10))
    now = [ok(i, mtime=i % 2) for i in range(8)]
    report = scan(out, now)
    assert (report.rows, report.images, report.containers) == (8, 8, 0)
    assert (report.gone, report.replaced, report.new, report.kept) == (2, 4, 8, 0)
    kept = [bad(4) if i == 4 else ok(i) if i % 2 == 0 else now[i] for i in range(8)]
    assert stored(out) == expected(kept)


def listed(out: Path) -> list[str]:
    """Read the uris of a finished file as they stand in it."""
    return pq.read_table(out)["uri"].to_pylist()


def uris(rows: Iterable[Row]) -> list[str]:
    return [row.uri for row in rows]


def test_rows_stand_in_the_order_of_this_listing_where_files_were_added(tmp_path: Path):
    out = tmp_path / "r.parquet"
    before, now = [ok(i) for i in range(10, 30)], [ok(i) for i in (*range(5), *range(10, 32), 7)]
    interrupted(out, before)
    scan(out, now)
    assert listed(out) == uris(now)
    assert names(tmp_path) == {"r.parquet"}


def test_retried_and_changed_rows_stand_where_the_listing_has_them(tmp_path: Path):
    out = tmp_path / "r.parquet"
    scan(out, some(20))
    now = [ok(i, mtime=i % 7 == 3) for i in range(20)]
    scan(out, now, retry=frozenset({"failed"}))
    assert plain(pq.read_table(out)) == as_stored(now)


def test_a_list_in_another_order_gives_rows_in_that_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(selection, "ROW_GROUP", 16)
    out = tmp_path / "r.parquet"
    now = some(300)
    random.Random(0).shuffle(now)
    interrupted(out, some(250))
    killed(out, 300, "flushed")
    scan(out, now[:290])
    assert plain(pq.read_table(out)) == as_stored(now[:290])


def test_a_row_that_was_stored_twice_is_taken_once(tmp_path: Path):
    out = tmp_path / "r.parquet"
    interrupted(out, some(14))
    data = tmp_path / "r.parquet.parts" / "data"
    shutil.copy(data / "part-00000001.parquet", data / "part-00000003.parquet")
    assert scan(out, some(20)).rows == 20
    assert plain(pq.read_table(out)) == as_stored(some(20))


def test_batches_out_of_turn_are_not_stored(tmp_path: Path):
    with opened(tmp_path / "r.parquet") as session:
        for row in some(9):
            session.index.claim(key_of(row), row.kind)
        first, second = to_batch(some(4), results_schema()), to_batch(some(9)[4:], results_schema())
        with pytest.raises(ValueError, match="next candidates"):
            session.write(second)
        session.write(first)
        with pytest.raises(ValueError, match="next candidates"):
            session.write(first)
        session.write(second)
        assert session.finish().rows == 9


def test_the_rest_of_a_finish_that_died_while_sorting_goes(tmp_path: Path):
    out = tmp_path / "r.parquet"
    interrupted(out, some(9))
    rest = tmp_path / "r.parquet.parts" / "sorting"
    rest.mkdir()
    (rest / "000.arrow").write_bytes(b"half a file")
    scan(out, some(9))
    assert names(tmp_path) == {"r.parquet"}


def test_a_killed_scan_keeps_its_flushed_parts(tmp_path: Path):
    out = tmp_path / "r.parquet"
    killed(out, rows=30, kill_at="write")
    with opened(out) as session:
        assert session.index.finished == 28  # four parts of seven; two rows were not flushed
        feed(session, some(30))
        session.finish()
    assert stored(out) == expected(some(30))


def test_small_parts_merge_and_keep_order(tmp_path: Path):
    out = tmp_path / "r.parquet"
    with opened(out) as session:
        feed(session, some(300), part=1)
        found = sorted(names(tmp_path / "r.parquet.parts" / "data"))
        assert found[:3] == [
            "part-00000001-00000256.parquet",
            "part-00000257-00000272.parquet",
            "part-00000273-00000288.parquet",
        ]
        assert len(found) == 3 + 12
        session.finish()
    assert pq.read_table(out)["uri"].to_pylist() == [row.uri for row in some(300)]


def test_a_crash_in_a_merge_leaves_each_row_once(tmp_path: Path):
    folder, saved = tmp_path / "data", tmp_path / "saved"
    parts, schema = PartFolder(folder), results_schema()
    for i in range(15):
        parts.append(schema, [to_batch([ok(i)], schema)])
    parts.append(schema, [to_batch([ok(15)], schema)])
    shutil.copytree(folder, saved)
    parts.merge_small(schema)
    shutil.copytree(saved, folder, dirs_exist_ok=True)  # renamed, and not yet removed
    (folder / "part-00000017.parquet.tmp").write_bytes(b"half a part")
    reopened = PartFolder(folder)
    assert names(folder) == {"part-00000001-00000016.parquet"}
    assert [uri for batch in reopened.read(columns_of("uri")) for uri in batch["uri"].to_pylist()] == [
        ok(i).uri for i in range(16)
    ]
    assert reopened.last == 16


def test_a_part_closes_after_its_seconds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(session_module, "PART_SECONDS", 0.0)
    with opened(tmp_path / "r.parquet") as session:
        feed(session, [ok(1)])
        assert session.rows_written == 1


def test_a_part_closes_after_64k_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(session_module, "PART_SECONDS", 1e9)
    with opened(tmp_path / "r.parquet") as session:
        rows = [bad(i) for i in range((1 << 16) + 100)]
        for start in range(0, len(rows), 100):
            feed(session, rows[start : start + 100], part=1000)
        (part,) = PartFolder(session._staging.data).parts
        assert 1 << 16 <= pq.read_metadata(part.path).num_rows < len(rows)


def test_a_damaged_part_is_named(tmp_path: Path):
    out = tmp_path / "r.parquet"
    interrupted(out, some(7))
    part = tmp_path / "r.parquet.parts" / "data" / "part-00000001.parquet"
    part.write_bytes(part.read_bytes()[:100])
    with pytest.raises(Refused, match=r"part-00000001\.parquet is damaged"):
        opened(out)
    part.write_bytes(b"PAR1" + bytes(100) + b"PAR1")
    with pytest.raises(Refused, match="is damaged"):
        opened(out)
    part.unlink()
    assert scan(out, some(7)).rows == 7


def test_a_hundred_thousand_finished_rows_are_found(tmp_path: Path):
    out = tmp_path / "r.parquet"
    rows = [
        Row(f"/archive/{i}.jpg", bytes=i, mtime=NOW, status="empty", error="no bytes") for i in range(100_000)
    ]
    with opened(out) as session:
        for at in range(0, len(rows), 1000):
            feed(session, rows[at : at + 1000], part=2000)
    with opened(out) as session:
        assert session.index.finished == 100_000
        assert {session.index.claim(key_of(row), row.kind) for row in rows} == {"finished"}
        assert session.finish().rows == 100_000


# Kills at each step of the finish


def killed(out: Path, rows: int, kill_at: str, **options: Any) -> None:
    """Scan in a process of its own that kills itself after a step."""
    order = {"out": str(out), "rows": rows, "kill_at": kill_at, **options}
    command = [sys.executable, __file__, json.dumps(order, default=str)]
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr


def _die_as_told() -> None:
    order = json.loads(sys.argv[1])
    out, count, kill_at = Path(order.pop("out")), order.pop("rows"), order.pop("kill_at")
    if "features" in order:
        order["features"] = Path(order["features"])
    session = opened(out, **order)
    feed(session, some(count))
    if kill_at == "decode":
        first, second = open_slots(session.folder / "in_flight-1", [1, 1])
        first.begin(key_of(ok(10_000)))
        second.begin(key_of(some(count)[0]))
    elif kill_at != "write":
        for step in session.finish_steps():
            if step == kill_at:
                break
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.parametrize("step", ["flushed", "features", "written", "renamed", "removed"])
def test_killed_at_a_step_of_the_finish(tmp_path: Path, step: str):
    out = tmp_path / "r.parquet"
    interrupted(out, [ok(1, mtime=9), *some(12), ok(50)])  # one that changed since, one that is gone
    killed(out, 20, step)
    if step != "removed":
        report = scan(out, some(20))
        assert (report.rows, report.gone, report.replaced) == (20, 1, 1)
    assert stored(out) == expected(some(20))
    assert names(tmp_path) == {"r.parquet"}


@pytest.mark.parametrize(
    "step",
    ["flushed", "features", "written", "aside", "renamed", "features-aside", "features-renamed"],
)
def test_killed_at_a_step_of_replacing_folders(tmp_path: Path, step: str):
    options: dict[str, Any] = {"out_is_folder": True, "features": tmp_path / "f"}
    out = tmp_path / "r"
    scan(out, [ok(1), ok(2)], **options)
    killed(out, 20, step, overwrite=True, **options)
    report = scan(out, some(20), overwrite=True, **options)
    assert (report.rows, report.gone, report.replaced) == (20, 0, 0)
    assert stored(out) == expected(some(20))
    assert feature_pairs(tmp_path / "f") == [(i, 0) for i in range(20) if i % 5 != 4]
    assert names(tmp_path) == {"r", "f"}


def test_behind_a_cut_finish_other_commands_meet_a_finished_output(tmp_path: Path):
    out = tmp_path / "r.parquet"
    killed(out, 9, "renamed")
    with pytest.raises(Refused, match="--overwrite"):
        opened(out, {**FINGERPRINT, "limit": 3})
    assert names(tmp_path) == {"r.parquet"}
    killed(out, 9, "renamed", overwrite=True)
    assert scan(out, some(4), retry=frozenset({"failed"})).rows == 4


# One scan an output


def test_a_second_scan_is_refused_by_name(tmp_path: Path):
    out = tmp_path / "r.parquet"
    with opened(out) as session:
        feed(session, some(20))
        session._staging.lock._told = 0.0
        feed(session, [ok(90)])
        with pytest.raises(
            Refused, match=rf"a scan on .+ \(process {os.getpid()}, started .+, 21 rows so far\)"
        ):
            opened(out)
    interrupted(out, some(3))


def test_two_started_at_once(tmp_path: Path):
    order = json.dumps({"out": str(tmp_path / "r.parquet"), "rows": 400, "kill_at": "decode"})
    racers = [
        subprocess.Popen([sys.executable, __file__, order], stderr=subprocess.PIPE, text=True)
        for _ in range(3)
    ]
    errors = [racer.communicate()[1] for racer in racers]
    codes = sorted(racer.returncode for racer in racers)
    assert -signal.SIGKILL in codes
    assert all("is being written by" in error for error in errors if error)
    assert scan(tmp_path / "r.parquet", some(400)).rows == 400  # a dead holder's lock is free


# The same command on what stands


def test_a_finished_output_is_refused_with_the_ways_out(tmp_path: Path):
    out = tmp_path / "r.parquet"
    scan(out, some(5))
    before = (out.stat().st_ino, out.stat().st_mtime_ns)
    with pytest.raises(Refused, match=r"--overwrite.+--retry-failed.+--retry REASON"):
        opened(out)
    with pytest.raises(Refused, match="is finished"):
        opened(out, restart=True)
    assert names(tmp_path) == {"r.parquet"}
    assert (out.stat().st_ino, out.stat().st_mtime_ns) == before


def test_overwrite_replaces_only_at_the_end(tmp_path: Path):
    out = tmp_path / "r.parquet"
    scan(out, some(5))
    interrupted(out, some(3), overwrite=True)
    assert stored(out) == expected(some(5))
    assert scan(out, some(8), overwrite=True).rows == 8
    assert stored(out) == expected(some(8))


def test_another_fingerprint_is_refused_naming_what_differs(tmp_path: Path):
    out = tmp_path / "r.parquet"
    interrupted(out, some(5))
    with pytest.raises(Refused, match=r"differs in limit, precision: .+--restart"):
        opened(out, {**FINGERPRINT, "precision": "int8", "limit": 5})
    assert scan(out, some(5)).rows == 5


def test_another_operating_point_of_an_unfinished_scan_is_decided_once_it_is_finished(tmp_path: Path):
    out = tmp_path / "r.parquet"
    before, now = ({**FINGERPRINT, "decision": "gbad", "pfa": p, "threshold": 1 - p} for p in (0.05, 0.01))
    with opened(out, before) as session:
        feed(session, some(5))
    with pytest.raises(Refused, match=r"`gbad-batch decide .+ --pfa 0.01 --out NEW` then, or add --restart"):
        opened(out, now)
    with pytest.raises(Refused, match=r"--decision classes --threshold 2 --out NEW`"):
        opened(out, {**now, "decision": "classes", "pfa": None, "threshold": 2})


def test_restart_drops_unfinished_parts(tmp_path: Path):
    out = tmp_path / "r.parquet"
    interrupted(out, some(5), features=tmp_path / "f")
    with opened(out, {**FINGERPRINT, "limit": 5}, restart=True, features=tmp_path / "g") as session:
        assert session.index.finished == 0
        feed(session, some(4))
        session.finish()
    assert stored(out) == expected(some(4))
    assert names(tmp_path) == {"r.parquet", "g"}


@pytest.mark.parametrize("folder", [False, True])
def test_retry_scans_again_what_failed(tmp_path: Path, folder: bool):
    out = tmp_path / "r"
    options: dict[str, Any] = {"out_is_folder": folder, "features": tmp_path / "f"}
    scan(out, some(20), **options)
    retry: dict[str, Any] = options | {"retry": frozenset({"failed"})}
    with opened(out, **retry) as session:
        assert session.index.finished == 16
        feed(session, [ok(i) for i in range(10)])
    assert stored(out) == expected(some(20))  # until the end
    with opened(out, **retry) as session:
        assert session.index.finished == 18  # what the first try did stays
        feed(session, [ok(i) for i in range(20)])
        session.finish()
    assert stored(out) == expected([ok(i) for i in range(20)])
    assert feature_pairs(tmp_path / "f") == [(i, 0) for i in range(20)]
    assert names(tmp_path) == {"r", "f"}


def test_retry_of_one_reason_and_of_good_rows(tmp_path: Path):
    out, features = tmp_path / "r.parquet", tmp_path / "f"
    rows = [bad(0, "empty"), bad(1, "unreadable"), ok(2)]
    scan(out, rows, features=features)
    with opened(out, retry=frozenset({"unreadable", "ok"}), features=features) as session:
        assert session.index.finished == 1
        feed(session, [bad(0, "vanished"), ok(1), ok(2)])
        session.finish()
    assert stored(out) == expected([bad(0, "empty"), ok(1), ok(2)])
    assert feature_pairs(features) == [(1, 0), (2, 0)]


def test_retry_on_unfinished_parts_drops_once(tmp_path: Path):
    out = tmp_path / "r.parquet"
    interrupted(out, some(10))
    with opened(out, retry=frozenset({"failed"})) as session:
        assert session.index.finished == 8
        feed(session, some(10))
    with opened(out, retry=frozenset({"failed"})) as session:
        assert session.index.finished == 10
        feed(session, some(10))
        session.finish()
    assert stored(out) == expected(some(10))


def test_retry_needs_a_result_of_the_same_fingerprint_and_a_known_reason(tmp_path: Path):
    out = tmp_path / "r.parquet"
    with pytest.raises(Refused, match="no result"):
        opened(out, retry=frozenset({"failed"}))
    scan(out, some(5))
    with pytest.raises(Refused, match="another precision"):
        opened(out, {**FINGERPRINT, "precision": "int8"}, retry=frozenset({"failed"}))
    with pytest.raises(Refused, match="'broken' is not a status"):
        opened(out, retry=frozenset({"broken"}))
    assert names(tmp_path) == {"r.parquet"}


# Outputs that cannot be


def refused(out: Path, match: str, **options: Any) -> None:
    before = sorted(out.parent.rglob("*")) if out.parent.exists() else None
    with pytest.raises(Refused, match=match):
        opened(out, **options)
    assert before == (sorted(out.parent.rglob("*")) if out.parent.exists() else None)


def test_outputs_that_cannot_be_are_refused_and_nothing_is_made(tmp_path: Path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("mine")
    (tmp_path / "link").symlink_to("file")
    (tmp_path / "dangling").symlink_to("nowhere")
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "missing" / "r.parquet", "does not exist")
    refused(tmp_path / "file" / "r.parquet", "does not exist")
    refused(tmp_path / "folder", "is a folder: add a slash")
    refused(tmp_path / "file", "is a file, not a folder", out_is_folder=True)
    refused(tmp_path / "link", "symbolic link", overwrite=True)
    refused(tmp_path / "dangling", "symbolic link")
    refused(tmp_path / "pipe", "neither a file nor a folder", overwrite=True)
    refused(tmp_path / "file", "is not a result of gbad-batch")
    refused(tmp_path / "file", "not a result of gbad-batch", retry=frozenset({"failed"}))
    refused(tmp_path / ("x" * 300), "cannot be used")
    refused(tmp_path / "r", "other files than results", features=tmp_path)
    refused(tmp_path / "r", "both rows and features", features=tmp_path / "r")
    refused(tmp_path / "r", "does not exist", features=tmp_path / "missing" / "f")


@pytest.mark.parametrize("out", ["/", "//", "/tmp/.."])
def test_the_root_is_no_output(out: str):
    with pytest.raises(Refused, match="cannot be an output"):
        opened(Path(out))


def test_overwrite_takes_any_file_but_no_folder_of_other_things(tmp_path: Path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_text("mine")
    assert scan(tmp_path / "file", some(3), overwrite=True).rows == 3
    refused(tmp_path / "photos", "other files than results", out_is_folder=True, overwrite=True)


def test_an_empty_folder_may_become_the_result(tmp_path: Path):
    (tmp_path / "r").mkdir()
    assert scan(tmp_path / "r", some(30), out_is_folder=True).rows == 30
    assert stored(tmp_path / "r") == expected(some(30))
    assert (read_footer(tmp_path / "r") or {})["rows"] == 30


def test_parts_that_others_could_have_planted_are_refused(tmp_path: Path):
    out, parts = tmp_path / "r.parquet", tmp_path / "r.parquet.parts"
    (tmp_path / "elsewhere").mkdir()
    parts.symlink_to("elsewhere")
    refused(out, "cannot be used")
    parts.unlink()
    parts.write_text("a file")
    refused(out, "cannot be used")
    parts.unlink()
    parts.mkdir()
    parts.chmod(0o777)
    refused(out, "others may write")
    parts.chmod(0o700)
    if os.geteuid() == 0:
        os.chown(parts, 12345, 12345)
        refused(out, "belongs to another user")
        os.chown(parts, 0, 0)
    (parts / "notes.txt").write_text("mine")
    with pytest.raises(Refused, match="other files than a scan's"):
        opened(out)
    (parts / "notes.txt").unlink()
    interrupted(out, some(3))
    assert parts.stat().st_mode & 0o777 == 0o700
    (parts / "scan.json").write_text("{")
    with pytest.raises(Refused, match="is damaged"):
        opened(out)
    (parts / "scan.json").write_text('{"format": 99}')
    with pytest.raises(Refused, match="another version"):
        opened(out)


def as_another_user(action: Any) -> str:
    """Run `action` in a forked child that may do less than root; returns the text of its Refused."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        try:
            if os.geteuid() == 0:
                os.setgroups([])
                os.setresgid(65534, 65534, 65534)
                os.setresuid(65534, 65534, 65534)
            action()
        except Refused as error:
            os.write(writer, str(error).encode())
        finally:
            os._exit(0)
    os.close(writer)
    os.waitpid(child, 0)
    with os.fdopen(reader) as pipe:
        return pipe.read()


def test_a_folder_that_cannot_be_written(tmp_path: Path):
    (tmp_path / "closed").mkdir(mode=0o555)
    handle = os.open(tmp_path / "closed", os.O_RDONLY)
    here = Path(f"/proc/self/fd/{handle}")  # the folders above may be closed to the other user
    text = as_another_user(lambda: opened(here / "r.parquet"))
    os.close(handle)
    assert "cannot be written" in text or "cannot be used" in text
    assert names(tmp_path / "closed") == set()


# A full disk


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1200k", "none", str(disk)], check=False, capture_output=True
    )
    if mounted.returncode:
        pytest.skip("a small file system cannot be mounted here")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


@pytest.mark.parametrize("features", [False, True])
def test_a_full_disk_keeps_the_parts(small_disk: Path, features: bool):
    out = small_disk / "r.parquet"
    options: dict[str, Any] = {"features": small_disk / "f"} if features else {}
    ballast = small_disk / "ballast"
    interrupted(out, some(14), **options)
    with opened(out, **options) as session:
        ballast.write_bytes(bytes(os.statvfs(small_disk).f_bavail * 4096))
        with pytest.raises(Stopped, match=r"No space left on device.+run the same command"):
            feed(session, some(400))
    with pytest.raises(Refused, match=r"need at least \d+\.\d kB, .+ has 0\.0 kB free: .+ rows are kept"):
        opened(out, **options)
    ballast.unlink()
    assert scan(out, some(30), **options).rows == 30
    assert stored(out) == expected(some(30))


def test_a_full_disk_at_the_finish(small_disk: Path):
    out = small_disk / "r.parquet"
    ballast = small_disk / "ballast"
    with opened(out) as session:
        feed(session, some(30))
        session.flush()
        ballast.write_bytes(bytes(os.statvfs(small_disk).f_bavail * 4096))
        with pytest.raises(Stopped, match="No space left"):
            session.finish()
        ballast.unlink()
    assert scan(out, some(30)).rows == 30


def test_a_write_that_fails_keeps_what_is_finished(tmp_path: Path):
    out = tmp_path / "r.parquet"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        with opened(out) as session:
            feed(session, some(14))
            session.flush()
            resource.setrlimit(resource.RLIMIT_FSIZE, (2000, before[1]))
            with pytest.raises(Stopped, match="File too large"):
                feed(session, [ok(i) for i in range(14, 28)])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    with opened(out) as session:
        assert session.index.finished == 14


# Features


def feature_pairs(folder: Path) -> list[tuple[int, int]]:
    """Read (image, version) of all stored features."""
    table = ds.dataset(folder, format="parquet").to_table()
    x = np.stack([np.array(row) for row in table["x"].to_pylist()])
    uris = [f"/archive/bag{int(i)}.jpg" for i in x[:, 0]]
    assert table["uri"].to_pylist() == uris
    return sorted((int(i), int(version)) for i, version in x[:, :2])


def test_features_are_float16_with_their_keys(tmp_path: Path):
    scan(tmp_path / "r.parquet", some(20), features=tmp_path / "f")
    table = ds.dataset(tmp_path / "f", format="parquet").to_table()
    assert table.schema.names == ["uri", "bytes", "mtime", "offset", "x", "logits"]
    assert table.schema.field("x").type == pa.list_(pa.float16(), 1024)
    assert table.schema.field("logits").type == pa.list_(pa.float16(), 5)
    assert len(names(tmp_path / "f")) == 4  # three parts and the common metadata
    rows, features = read_footer(tmp_path / "r.parquet"), read_footer(tmp_path / "f")
    assert rows
    assert features
    assert rows["scan_id"] == features["scan_id"]
    assert feature_pairs(tmp_path / "f") == [(i, 0) for i in range(20) if i % 5 != 4]


def test_features_follow_their_rows_over_kills_and_changes(tmp_path: Path):
    out, features = tmp_path / "r.parquet", tmp_path / "f"
    killed(out, 30, "write", features=features)
    orphan = tmp_path / "f.parts" / "data" / "features-00000005.parquet"
    shutil.copy(orphan.with_name("features-00000001.parquet"), orphan)  # its rows were never renamed
    now = [ok(i, mtime=i % 2) for i in range(26)]
    report = scan(out, now, features=features)
    assert report.gone == 2
    assert feature_pairs(features) == [(i, i % 2) for i in range(26) if i % 2 or i % 5 != 4]


def test_missing_features_are_not_passed_over(tmp_path: Path):
    out = tmp_path / "r.parquet"
    interrupted(out, some(20), features=tmp_path / "f")
    shutil.rmtree(tmp_path / "f.parts")
    with pytest.raises(Refused, match=r"features of finished images are missing.+--restart"):
        opened(out, features=tmp_path / "f")
    assert scan(out, some(20), features=tmp_path / "f", restart=True).rows == 20


def test_features_of_another_scan_are_left_alone(tmp_path: Path):
    interrupted(tmp_path / "a.parquet", some(9), features=tmp_path / "f")
    with pytest.raises(Refused, match="another unfinished scan"):
        opened(tmp_path / "b.parquet", features=tmp_path / "f")
    assert names(tmp_path) == {"a.parquet.parts", "f.parts"}
    scan(tmp_path / "a.parquet", some(9), features=tmp_path / "f")
    with pytest.raises(Refused, match="features of a finished scan"):
        opened(tmp_path / "c.parquet", features=tmp_path / "f")
    assert feature_pairs(tmp_path / "f") == [(i, 0) for i in range(9) if i % 5 != 4]


# Images in flight


def test_images_in_decoders_are_seen_from_outside(tmp_path: Path):
    path, keys = tmp_path / "in_flight-1", [key_of(ok(i)) for i in range(300)]
    alone, many = open_slots(path, [1, 300])
    began = time.monotonic_ns()
    alone.begin(keys[0])
    ((found, started, _),) = in_flight(path)
    assert found == keys[0]
    assert began <= started <= time.monotonic_ns()
    alone.begin(keys[1])
    assert [image.key for image in in_flight(path)] == keys[1:2]
    alone.end()
    many.begin_all(keys)
    assert [image.key for image in in_flight(path)] == keys
    many.end()
    assert in_flight(path) == in_flight(tmp_path / "none") == []


def test_what_a_dead_scan_was_decoding_is_suspect_until_it_has_a_row(tmp_path: Path):
    out = tmp_path / "r.parquet"
    killed(out, 14, "decode")
    assert len(in_flight(tmp_path / "r.parquet.parts" / "in_flight-1")) == 2
    suspect = ok(10_000)
    with opened(out) as session:
        assert session.suspects == {key_of(suspect)}  # the other one has its row
        assert list(session.folder.glob("in_flight-*")) == []
    with opened(out) as session:
        assert session.suspects == {key_of(suspect)}
        feed(session, [suspect])
    with opened(out) as session:
        assert session.suspects == frozenset()


def test_suspects_outlive_a_crash_while_they_are_collected(tmp_path: Path):
    (slots,) = open_slots(tmp_path / "in_flight-1", [1])
    slots.begin(key_of(ok(1)))
    assert collect_suspects(tmp_path) == {key_of(ok(1))}
    assert collect_suspects(tmp_path) == {key_of(ok(1))}


if __name__ == "__main__":
    _die_as_told()
