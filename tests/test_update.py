"""`scan --update`: one command for every night. What is new or changed is scanned, the other rows stay."""

import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
from PIL import Image

from gbad_batch.engine import Scan, ScanSettings, Summary
from gbad_batch.engine.bundle import Bundle
from gbad_batch.engine.errors import Refused
from gbad_batch.engine.results import FinishReport, Session, open_results
from gbad_batch.engine.results.index import key_of
from gbad_batch.engine.results.schema import read_footer, results_schema, to_batch
from gbad_batch.engine.row import Row

COMMAND = str(Path(sys.executable).with_name("gbad-batch"))
FINGERPRINT = {"sources": ["/archive"], "precision": "fp32"}
NOW = 1_700_000_000_000_000
Files = dict[int, int]  # an archive: the number of each image, and how often it was changed


def row_of(number: int, change: int) -> Row:
    """Make the row of an image; every third has no score, every second of the others is an alarm."""
    row = Row(f"/archive/bag{number:04d}.jpg", bytes=1000 + number, mtime=NOW + change, status="ok")
    if number % 3 == 2:
        row.status, row.error = "truncated", "it ends early"
    else:
        row.anomaly_score, row.anomalous, row.threats = number + change / 8, number % 2 == 0, None
    return row


def opened(out: Path, **options: Any) -> Session:
    end = "/" if options.pop("folder", False) else ""
    return open_results(ScanSettings(**{"update": True, **options}, out=f"{out}{end}"), FINGERPRINT, {})


def feed(session: Session, files: Files) -> None:
    """List and write, in small parts, as a scan does."""
    rows = [row_of(*each) for each in sorted(files.items())]
    new = [row for row in rows if session.index.claim(key_of(row), row.kind) == "new"]
    for at in range(0, len(new), 3):
        batch = new[at : at + 3]
        good = sum(row.status == "ok" for row in batch)
        features = np.zeros((good, 1024), np.float32), np.zeros((good, 5), np.float32)
        session.write(to_batch(batch, results_schema()), features)
        session.flush()


def update(out: Path, files: Files, **options: Any) -> FinishReport:
    with opened(out, **options) as session:
        feed(session, files)
        return session.finish()


def stored(out: Path) -> list[dict[str, Any]]:
    """Read the rows as they stand, times in us."""
    table = ds.dataset(out, format="parquet").to_table()
    for name in ("mtime", "scanned_at", "gone"):
        table = table.set_column(table.schema.names.index(name), name, table[name].cast(pa.int64()))
    return table.to_pylist()


def as_rows(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """Leave out what depends on the clock."""
    return [{name: v for name, v in row.items() if name not in ("scanned_at", "gone")} for row in rows]


def expected(files: Files) -> list[dict[str, Any]]:
    table = pa.Table.from_batches(
        [to_batch([row_of(*each) for each in sorted(files.items())], results_schema())]
    )
    table = table.set_column(3, "mtime", table["mtime"].cast(pa.int64()))
    return as_rows(table.to_pylist())


def since(out: Path) -> int:
    footer = read_footer(out)
    assert footer is not None
    return footer["since"]


# --- one night after the other ---


def test_it_begins_and_then_scans_only_what_is_new_or_changed(tmp_path: Path) -> None:
    out = tmp_path / "r.parquet"
    first = update(out, dict.fromkeys(range(10), 0))
    assert (first.rows, first.new, first.kept, first.new_alarms) == (10, 10, 0, 3)
    tonight = {**dict.fromkeys(range(2, 14), 0), 4: 1}  # 0 and 1 are gone, 4 has changed, 10 to 13 are new
    with opened(out) as session:
        feed(session, tonight)
        assert session.rows_written == 5
        report = session.finish()
    assert report == FinishReport(
        rows=12, images=12, containers=0, gone=2, replaced=1, new=4, kept=7, kept_gone=0, new_alarms=3
    )
    rows = stored(out)
    assert as_rows(rows) == expected(tonight)
    tell = {row["uri"][-8:-4] for row in rows if row["scanned_at"] == since(out)}
    assert tell == {"0004", "0010", "0011", "0012", "0013"}
    assert len({row["scanned_at"] for row in rows}) == 2
    assert all(row["gone"] is None for row in rows)


def test_a_night_without_news_changes_no_row(tmp_path: Path) -> None:
    out = tmp_path / "r.parquet"
    update(out, dict.fromkeys(range(9), 0))
    before = stored(out)
    report = update(out, dict.fromkeys(range(9), 0))
    assert (report.new, report.replaced, report.gone, report.kept, report.new_alarms) == (0, 0, 0, 9, 0)
    assert stored(out) == before


@pytest.mark.parametrize("folder", [False, True])
def test_rows_of_files_that_are_gone_are_kept_on_demand_and_marked(tmp_path: Path, folder: bool) -> None:
    out = tmp_path / "r"
    options: dict[str, Any] = {"folder": folder, "keep_gone": True, "features": tmp_path / "f"}
    update(out, dict.fromkeys(range(8), 0), **options)
    report = update(out, {0: 0, 2: 1, 4: 0, 5: 0, 6: 0, 7: 0}, **options)
    second = since(out)
    assert (report.rows, report.images, report.kept_gone, report.gone, report.replaced) == (8, 6, 2, 2, 1)
    marked = {row["uri"][-8:-4]: row["gone"] for row in stored(out) if row["gone"]}
    assert marked == {"0001": second, "0003": second}
    report = update(out, {0: 0, 1: 0, 2: 1, 5: 0, 6: 0, 7: 0}, **options)  # 1 is back, 4 is gone, too
    assert (report.rows, report.images, report.kept_gone, report.gone, report.new) == (8, 6, 2, 1, 0)
    marked = {row["uri"][-8:-4]: row["gone"] for row in stored(out) if row["gone"]}
    assert marked == {"0003": second, "0004": since(out)}
    if not folder:  # rows of files that are there stand in their order, the others follow
        assert {row["uri"][-8:-4] for row in stored(out)[-2:]} == {"0003", "0004"}
    scored = {row["uri"] for row in stored(out) if row["status"] == "ok"}
    features = ds.dataset(tmp_path / "f", format="parquet").to_table()["uri"].to_pylist()
    assert sorted(features) == sorted(scored)
    report = update(out, {0: 0, 1: 0, 2: 1, 5: 0, 6: 0, 7: 0}, **{**options, "keep_gone": False})
    assert (report.rows, report.images, report.kept_gone, report.gone) == (6, 6, 0, 2)
    assert all(row["gone"] is None for row in stored(out))


def test_an_unfinished_first_night_goes_on_the_next(tmp_path: Path) -> None:
    out = tmp_path / "r.parquet"
    with opened(out, update=False) as session:
        feed(session, dict.fromkeys(range(5), 0))
    report = update(out, {**dict.fromkeys(range(1, 8), 0), 3: 1})
    assert (report.rows, report.new, report.kept, report.gone, report.replaced) == (7, 7, 0, 1, 1)
    assert as_rows(stored(out)) == expected({**dict.fromkeys(range(1, 8), 0), 3: 1})


def test_a_clock_that_is_put_back_confuses_no_count(tmp_path: Path) -> None:
    out = tmp_path / "r.parquet"
    update(out, dict.fromkeys(range(4), 0))
    table, footer = pq.read_table(out), read_footer(out)
    assert footer is not None
    ahead = footer["since"] + 10**12
    at = table.schema.get_field_index("scanned_at")
    later = pa.array([ahead] * 4, pa.int64()).cast(table.schema.field(at).type)
    metadata = {"gbad_batch": json.dumps({**footer, "since": ahead})}
    pq.write_table(table.set_column(at, table.schema.field(at), later).replace_schema_metadata(metadata), out)
    report = update(out, dict.fromkeys(range(6), 0))
    assert (report.new, report.kept) == (2, 4)
    assert since(out) == ahead + 1


@pytest.mark.parametrize("value", [10**30, -(10**30), "x", True, None])
def test_a_footer_with_an_absurd_time_is_taken_for_none(tmp_path: Path, value: Any) -> None:
    out = tmp_path / "r.parquet"
    update(out, dict.fromkeys(range(4), 0))
    table, footer = pq.read_table(out), read_footer(out)
    metadata = {"gbad_batch": json.dumps({**(footer or {}), "since": value})}
    pq.write_table(table.replace_schema_metadata(metadata), out)
    assert update(out, dict.fromkeys(range(6), 0)).kept == 4


# --- refusals ---


def test_what_update_cannot_do_is_refused(tmp_path: Path) -> None:
    out = tmp_path / "r.parquet"
    update(out, {0: 0})
    before = out.read_bytes()
    for other in ({"overwrite": True}, {"retry": frozenset({"failed"})}):
        with pytest.raises(Refused, match="exclude each other"):
            opened(out, **other)
    with pytest.raises(Refused, match=r"was scanned with another precision: .+--overwrite"):
        open_results(ScanSettings(out=out, update=True), {**FINGERPRINT, "precision": "int8"}, {})
    with pytest.raises(Refused, match="add --update to scan what is new or changed"):
        opened(out, update=False)
    assert out.read_bytes() == before
    foreign = tmp_path / "foreign.parquet"
    foreign.write_bytes(b"something else")
    with pytest.raises(Refused, match="is not a result of gbad-batch"):
        opened(foreign)


# --- kills ---

STEPS = ("write", "flushed", "features", "written", "aside", "renamed", "features-renamed")


def killed(out: Path, files: Files, kill_at: str, **options: Any) -> None:
    """Update in a process of its own that kills itself after a step, or before the finish."""
    order = {"out": str(out), "files": list(files.items()), "kill_at": kill_at, **options}
    done = subprocess.run([sys.executable, __file__, json.dumps(order)], capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stderr


def _die_as_told() -> None:
    order = json.loads(sys.argv[1])
    out, kill_at, files = Path(order.pop("out")), order.pop("kill_at"), dict(order.pop("files"))
    session = opened(out, **order)
    if kill_at == "write":  # in the middle of the archive
        files = {number: change for number, change in files.items() if number % 2 == 0}
    feed(session, files)
    if kill_at != "write":
        for step in session.finish_steps():
            if step == kill_at:
                break
    os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.slow
def test_ten_nights_in_a_row_with_kills_between(tmp_path: Path) -> None:
    out, luck = tmp_path / "r.parquet", random.Random(20)
    files: Files = dict.fromkeys(range(30), 0)
    for night in range(10):
        before = dict(files) if night else {}
        for number in luck.sample(sorted(files), 3):
            del files[number]
        for number in luck.sample(sorted(files), 2):
            files[number] += 1
        files |= dict.fromkeys(range(30 + 4 * night, 34 + 4 * night), 0)
        steps = [step for step in STEPS if "-" not in step and step != "aside"]
        killed(out, files, steps[night % len(steps)])
        report = update(out, files)
        rows = stored(out)
        assert as_rows(rows) == expected(files)  # none lost, none twice, none old
        assert [path.name for path in tmp_path.iterdir()] == ["r.parquet"]
        if steps[night % len(steps)] != "renamed":  # then the killed run itself has finished the night
            kept = sum(before.get(number) == change for number, change in files.items())
            new = sum(number not in before for number in files)
            assert (report.kept, report.new) == (kept, new)
            fresh = [row for row in rows if row["scanned_at"] == since(out)]
            assert len(fresh) == len(files) - kept
            assert report.new_alarms == sum(bool(row["anomalous"]) for row in fresh)


@pytest.mark.parametrize("step", STEPS)
def test_killed_at_a_step_of_an_update_of_folders(tmp_path: Path, step: str) -> None:
    options: dict[str, Any] = {"folder": True, "keep_gone": True, "features": str(tmp_path / "f")}
    out = tmp_path / "r"
    update(out, dict.fromkeys(range(9), 0), **options)
    tonight = {**dict.fromkeys(range(3, 15), 0), 4: 1}
    killed(out, tonight, step, **options)
    report = update(out, tonight, **options)
    assert (report.rows, report.images, report.kept_gone) == (15, 12, 3)
    rows = sorted(stored(out), key=lambda row: row["uri"])
    assert as_rows(rows) == expected({**tonight, 0: 0, 1: 0, 2: 0})
    assert {path.name for path in tmp_path.iterdir()} == {"r", "f"}


# --- the command ---


def picture(path: Path, seed: int) -> None:
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), np.uint8)
    Image.fromarray(coarse).resize((50, 44), Image.Resampling.BICUBIC).save(path)


def test_an_updated_result_holds_the_rows_of_a_whole_scan(tmp_path: Path, tiny_bundle: Bundle) -> None:
    archive, out = tmp_path / "archive", tmp_path / "r.parquet"
    archive.mkdir()
    for i in range(12):
        picture(archive / f"bag{i:02d}.png", i)
    (archive / "bag05 broken.jpg").write_bytes(b"no picture")
    settings: dict[str, Any] = {"sources": (archive,), "model": tiny_bundle.path}

    def scan(**given: Any) -> Summary:
        return Scan(ScanSettings(**settings, **given)).run()

    first = scan(out=out, update=True)
    assert (first.images, first.new, first.kept) == (13, 13, 0)
    (archive / "bag00.png").unlink()
    picture(archive / "bag01.png", 99)
    picture(archive / "bag04 new.png", 50)
    line = [COMMAND, "scan", archive, "--model", tiny_bundle.path, "--out", out, "--update"]
    ran = subprocess.run([*map(str, line), "--json"], capture_output=True, text=True)
    assert ran.returncode == 3, ran.stderr  # one image of the archive has no score
    figures = json.loads(ran.stdout)
    counts = {name: figures[name] for name in ("images", "new", "replaced", "gone", "kept", "scanned_now")}
    assert counts == {"images": 13, "new": 1, "replaced": 1, "gone": 1, "kept": 11, "scanned_now": 2}
    scan(out=tmp_path / "whole.parquet")
    updated, whole = pq.read_table(out), pq.read_table(tmp_path / "whole.parquet")
    assert updated.drop_columns("scanned_at").equals(whole.drop_columns("scanned_at"))
    fresh = [row for row in stored(out) if row["scanned_at"] == since(out)]
    assert figures["new_alarms"] == sum(bool(row["anomalous"]) for row in fresh)
    (archive / "bag02.png").unlink()
    ran = subprocess.run([*map(str, line), "--keep-gone"], capture_output=True, text=True)
    assert "0 new, 0 changed (0 alarms), 12 kept as they were" in ran.stdout
    assert "1 no longer there: rows marked" in ran.stdout
    assert "12 images: 11 scored, 1 failed" in ran.stdout


if __name__ == "__main__":
    _die_as_told()
