"""`scan --update --by-content`: bytes decide what is unchanged; equal bytes are decoded and scored once."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tarfile
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import stand_in_stages as stand_ins
from PIL import Image

from gbad_batch import Refused, Scan, ScanSettings, Stopped, Summary
from gbad_batch.engine.bundle import Bundle
from gbad_batch.engine.results import open_results
from gbad_batch.engine.results.contents import KnownContents, write_contents
from gbad_batch.engine.results.schema import results_schema, to_batch
from gbad_batch.engine.row import Row

IMAGES = 12
LATER = 1_700_000_000  # a time that no file of a test has by itself


def picture(path: Path, seed: int) -> None:
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), np.uint8)
    Image.fromarray(coarse).resize((50, 44), Image.Resampling.BICUBIC).save(path)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Twelve images and one that is broken."""
    folder = tmp_path / "archive"
    folder.mkdir()
    for i in range(IMAGES):
        picture(folder / f"bag{i:02d}.png", i)
    (folder / "bag05 broken.jpg").write_bytes(b"no picture")
    return folder


Run = Callable[..., Summary]


@pytest.fixture
def scan(archive: Path, tiny_bundle: Bundle, own_cache: Path, tmp_path: Path) -> Run:
    """Scan the archive, noting what is decoded; into r.parquet, by content, unless told otherwise."""

    def run(**given: Any) -> Summary:
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        shutil.copytree(own_cache, tmp_path / "cache") if own_cache.exists() else (tmp_path / "cache").mkdir()
        (tmp_path / "cache").chmod(0o700)
        settings = {"out": tmp_path / "r.parquet", "update": True, "by_content": True, "threads": 2, **given}
        whole = ScanSettings((archive,), model=tiny_bundle.path, cache_dir=tmp_path / "cache", **settings)
        return Scan(whole, stand_ins.open_noting).run()

    return run


def decoded(tmp_path: Path) -> list[str]:
    """Names of the images that the last scan decoded."""
    file = tmp_path / "cache" / "decoded"
    return sorted(Path(line).name for line in file.read_text().splitlines()) if file.exists() else []


def rows(path: Path) -> list[dict[str, Any]]:
    return pq.read_table(path).to_pylist()


def counts(summary: Summary) -> dict[str, int]:
    names = ("images", "new", "replaced", "kept", "gone", "scanned_now", "recognized_now")
    return {name: getattr(summary, name) for name in names}


def test_bytes_decide_what_is_unchanged(scan: Run, archive: Path, tmp_path: Path) -> None:
    first = scan()
    assert counts(first) == {
        "images": 13, "new": 13, "replaced": 0, "kept": 0, "gone": 0, "scanned_now": 13, "recognized_now": 0,
    }  # fmt: skip
    before = {Path(row["uri"]).name: row for row in rows(tmp_path / "r.parquet")}
    for path in archive.iterdir():  # a backup that was restored: new times, the same bytes
        os.utime(path, (LATER, LATER))
    stamp = (archive / "bag00.png").stat()
    noise = bytearray((archive / "bag00.png").read_bytes())
    picture(archive / "bag00.png", 99)
    other = (archive / "bag00.png").read_bytes()
    (archive / "bag00.png").write_bytes(other + bytes(max(0, len(noise) - len(other))))
    os.utime(archive / "bag00.png", ns=(stamp.st_mtime_ns, stamp.st_mtime_ns))  # other bytes, the same time
    (archive / "bag01.png").rename(archive / "bag01 moved.png")
    shutil.copy(archive / "bag02.png", archive / "bag02 copy.png")
    picture(archive / "bag03 new.png", 50)
    second = scan()
    assert counts(second) == {
        "images": 15, "new": 3, "replaced": 1, "kept": 11, "gone": 1, "scanned_now": 15, "recognized_now": 13,
    }  # fmt: skip
    assert decoded(tmp_path) == ["bag00.png", "bag03 new.png"]
    after = {Path(row["uri"]).name: row for row in rows(tmp_path / "r.parquet")}
    fresh = {name for name, row in after.items() if row["scanned_at"] != before["bag04.png"]["scanned_at"]}
    assert fresh == {"bag00.png", "bag01 moved.png", "bag02 copy.png", "bag03 new.png"}
    assert second.new_alarms == sum(bool(after[name]["anomalous"]) for name in fresh)
    assert after["bag05 broken.jpg"]["mtime"].timestamp() == LATER
    scan(out=tmp_path / "whole.parquet", update=False, by_content=False)
    updated, whole = pq.read_table(tmp_path / "r.parquet"), pq.read_table(tmp_path / "whole.parquet")
    assert updated.drop_columns("scanned_at").equals(whole.drop_columns("scanned_at"))
    third = scan(by_content=False)  # sizes and times of now stand in the rows
    assert (third.kept, third.scanned_now) == (15, 0)


def test_equal_bytes_are_decoded_once_in_a_first_scan(scan: Run, archive: Path, tmp_path: Path) -> None:
    for i in range(40):
        shutil.copy(archive / "bag07.png", archive / f"copy{i:02d}.png")
    (tmp_path / "more").mkdir()
    with tarfile.open(archive / "shard.tar", "w") as tar:
        tar.add(archive / "bag07.png", "inside.png")
    summary = scan(batch_size=2)
    assert (summary.images, summary.recognized_now) == (54, 41)
    assert len(decoded(tmp_path)) == 13
    scan(out=tmp_path / "whole.parquet", update=False, by_content=False)
    once, whole = pq.read_table(tmp_path / "r.parquet"), pq.read_table(tmp_path / "whole.parquet")
    assert once.drop_columns("scanned_at").equals(whole.drop_columns("scanned_at"))


def test_rows_without_bytes_go_by_size_and_time(scan: Run, archive: Path, tmp_path: Path) -> None:
    (archive / "scan.dcm").write_bytes(b"never read")
    (archive / "short.tar").write_bytes((archive / "bag00.png").read_bytes()[:700])
    scan()
    summary = scan()
    assert counts(summary) == {
        "images": 14, "new": 0, "replaced": 0, "kept": 15, "gone": 0, "scanned_now": 13, "recognized_now": 13,
    }  # fmt: skip
    assert decoded(tmp_path) == []


KILLED = """
import json, os, signal, sys
from gbad_batch import Scan, ScanSettings
given = json.loads(sys.argv[1])
after = given.pop("after")
scan = Scan(ScanSettings(**given))

def watch(progress):
    if progress.done >= after:
        results.flush()
        os.kill(os.getpid(), signal.SIGKILL)

begun = scan._results

def noted(workers):
    global results
    results = begun(workers)
    return results

scan._results = noted
scan.run(watch)
"""


@pytest.mark.parametrize("after", [2, 9])
def test_a_kill_loses_and_repeats_nothing(
    scan: Run, archive: Path, tiny_bundle: Bundle, tmp_path: Path, after: int
) -> None:
    scan()
    for path in archive.iterdir():
        os.utime(path, (LATER, LATER))
    picture(archive / "bag03.png", 77)
    picture(archive / "bag08 new.png", 78)
    given = {"sources": [str(archive)], "out": str(tmp_path / "r.parquet"), "model": str(tiny_bundle.path)}
    given |= {"update": True, "by_content": True, "threads": 1, "batch_size": 1, "after": after}
    words = [sys.executable, "-c", KILLED, json.dumps(given)]
    assert subprocess.run(words, capture_output=True).returncode == -signal.SIGKILL
    summary = scan()
    assert summary.scanned_now < 14
    assert {**counts(summary), "scanned_now": 0, "recognized_now": 0} == {
        "images": 14, "new": 1, "replaced": 1, "kept": 12, "gone": 0, "scanned_now": 0, "recognized_now": 0,
    }  # fmt: skip
    assert {path.name for path in tmp_path.iterdir()} == {"archive", "r.parquet", "cache"}
    scan(out=tmp_path / "whole.parquet", update=False, by_content=False)
    updated, whole = pq.read_table(tmp_path / "r.parquet"), pq.read_table(tmp_path / "whole.parquet")
    assert updated.drop_columns("scanned_at").equals(whole.drop_columns("scanned_at"))


@pytest.mark.slow
def test_ten_nights_of_real_scans_with_kills_between(
    scan: Run, archive: Path, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    """By turns by size and time, and by content; at the end the rows are those of one whole scan."""
    luck, out = random.Random(10), tmp_path / "r.parquet"
    for night in range(10):
        names = sorted(archive.iterdir())
        gone, changed, touched, copied = luck.sample(names, 4)
        gone.unlink()
        picture(changed.with_suffix(".png"), 100 + night)
        os.utime(touched, (LATER + night, LATER + night))
        shutil.copy(copied, archive / f"copy{night}{copied.suffix}")
        picture(archive / f"new{night}.png", 200 + night)
        given = {"sources": [str(archive)], "out": str(out), "model": str(tiny_bundle.path), "update": True}
        given |= {"by_content": night % 2 == 1, "threads": 1, "batch_size": 1, "after": luck.randint(1, 3)}
        words = [sys.executable, "-c", KILLED, json.dumps(given)]
        assert subprocess.run(words, capture_output=True).returncode == -signal.SIGKILL
        summary = scan(by_content=night % 2 == 1)
        assert summary.images == len(list(archive.iterdir()))
        assert {path.name for path in tmp_path.iterdir()} == {"archive", "r.parquet", "cache"}
        uris = [row["uri"] for row in rows(out)]
        assert uris == sorted(map(str, archive.iterdir()))
    scan(out=tmp_path / "whole.parquet", update=False, by_content=False)
    updated, whole = pq.read_table(out), pq.read_table(tmp_path / "whole.parquet")
    assert updated.drop_columns("scanned_at").equals(whole.drop_columns("scanned_at"))


def test_what_cannot_be_is_refused(scan: Run, archive: Path, tiny_bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="--by-content says what --update takes for unchanged: add --update"):
        ScanSettings(by_content=True)
    with pytest.raises(Refused, match="exclude each other: leave one of them out"):
        ScanSettings(by_content=True, update=True, features="f")
    scan()
    settings: dict[str, Any] = {"model": tiny_bundle.path, "out": tmp_path / "r.parquet", "update": True}
    begun = Scan(ScanSettings((archive,), **settings, by_content=True, batch_size=1, threads=1))
    with pytest.raises(Stopped):
        begun.run(lambda _: begun.stop())
    with pytest.raises(Refused, match=r"was begun with --by-content: resume it so, or add --restart"):
        Scan(ScanSettings((archive,), **settings)).run()
    assert scan().kept == 13


# --- the table ---


def made_up(count: int, digest: Callable[[int], bytes]) -> list[Row]:
    return [
        Row(f"/archive/{i}.png", bytes=i, mtime=i, sha256=digest(i), status="ok", width=i, scanned_at=10 + i)
        for i in range(count)
    ]


def test_known_bytes_are_found_by_digest_and_name(tmp_path: Path) -> None:
    def digest(number: int) -> bytes:
        return sha256(bytes([number // 3])).digest()  # three files have the same bytes

    known = made_up(300, digest)
    known[299].sha256 = None
    schema = results_schema()
    write_contents(
        tmp_path, [to_batch(known[:100], schema), to_batch([], schema), to_batch(known[100:], schema)]
    )
    table = KnownContents(tmp_path)
    asked = [
        Row("/archive/0.png", sha256=digest(0)),
        Row("/elsewhere.png", sha256=digest(0)),
        Row("/none.png"),
    ]
    same, moved, none = table.of(asked)
    assert same is not None
    assert same[1] == 10
    assert moved is not None
    assert moved[1] is None
    assert none is None
    forged = digest(0)[:8] + bytes(24)  # it only begins like a digest that is known
    assert table.of([Row("/archive/0.png", sha256=bytes(32)), Row("/x.png", sha256=forged)]) == [None, None]


def test_a_table_of_nothing_knows_nothing(tmp_path: Path) -> None:
    write_contents(tmp_path, [])
    assert KnownContents(tmp_path).of([Row("/a.png", sha256=bytes(32))]) == [None]
    settings = ScanSettings(out=tmp_path / "r.parquet", update=True, by_content=True)
    with open_results(settings, {"sources": []}, {}) as session:
        assert session.index.by_content == 0
