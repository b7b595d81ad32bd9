"""How many bytes of files a worker holds at once, however many threads it has and however files grow."""

import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from gbad_batch.engine import Scan, ScanSettings
from gbad_batch.engine.bundle import Bundle
from gbad_batch.engine.sources import Candidate, ListingCounts, SourceSettings, find
from gbad_batch.engine.stages import Batch, cpu
from gbad_batch.engine.stages.cpu import FileRead, ready

MB = 1_000_000


def listed(folder: Path) -> list[Candidate]:
    return list(find(SourceSettings((folder,)), ListingCounts(), lambda _: True))


THREADS = """
import resource, sys, threading, time
from gbad_batch.engine.sources import ListingCounts, SourceSettings, find
from gbad_batch.engine.stages import Batch
from gbad_batch.engine.stages.cpu import FileRead
candidates = list(find(SourceSettings((sys.argv[1],)), ListingCounts(), lambda _: True))
read = FileRead(256_000_000, 100_000_000)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
def work(first):
    for candidate in candidates[first::8]:
        batch = Batch([candidate])
        read(batch)
        assert len(batch.contents[0]) == 40_000_000
        time.sleep(0.05)
        batch.drop_contents()
threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
[t.start() for t in threads]
[t.join() for t in threads]
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1000)
"""


def test_threads_hold_no_more_bytes_than_their_worker_may(tmp_path: Path) -> None:
    """Eight threads with files of 40 MB (of holes) take less than three of them at once."""
    for i in range(16):
        with (tmp_path / f"{i:02}.jpg").open("wb") as file:
            file.truncate(40 * MB)
    found = subprocess.run([sys.executable, "-c", THREADS, tmp_path], capture_output=True, check=True)
    assert int(found.stdout) < 150


def test_a_file_above_the_bound_is_read_alone(tmp_path: Path) -> None:
    for i in range(4):
        (tmp_path / f"{i}.jpg").write_bytes(bytes(1_000))
    read = FileRead(MB, 500)
    done: list[bytes] = []

    def work(candidate: Candidate) -> None:
        batch = Batch([candidate])
        read(batch)
        done.append(batch.contents[0])
        batch.drop_contents()
        batch.drop_contents()  # gives nothing back twice

    threads = [threading.Thread(target=work, args=(each,)) for each in listed(tmp_path)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert done == [bytes(1_000)] * 4


def test_files_that_grow_after_they_were_listed_are_read_in_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for i in range(20):
        (tmp_path / f"{i:02}.jpg").write_bytes(b"x")
    batch = Batch(listed(tmp_path))
    for i in range(20):
        (tmp_path / f"{i:02}.jpg").write_bytes(bytes([i]) * 1_000)
    monkeypatch.setattr(cpu, "GROWTH", 5_000)
    FileRead(MB)(batch)
    assert sum(isinstance(content, bytes) for content in batch.contents) == 6
    assert [ready(content) for content in batch.contents] == [bytes([i]) * 1_000 for i in range(20)]
    assert all(candidate.row.sha256 for candidate in batch.candidates)


def test_a_scan_of_files_that_are_read_in_turn_gives_the_same_rows(
    tmp_path: Path, tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    from gbad_batch.engine.decode import DecodeLimits
    from gbad_batch.engine.stages.cpu import CPUDecode

    archive = tmp_path / "archive"
    archive.mkdir()
    for i in range(6):
        noise = np.random.default_rng(i).integers(0, 256, (64, 64, 3), np.uint8)
        Image.fromarray(noise).save(archive / f"{i}.png")
    (archive / "3.png").write_bytes(b"no picture")
    settings = ScanSettings(sources=(archive,), model=tiny_bundle.path, cache_dir=tmp_path, threads=1)
    wanted = [(row.uri, row.status, row.sha256) for row in Scan(settings).rows()]
    monkeypatch.setattr(cpu, "GROWTH", -10 * MB)
    batch = Batch(listed(archive))
    FileRead(MB)(batch)
    assert all(callable(content) for content in batch.contents)

    class Notes:
        def begin(self, key: bytes) -> None:
            pass

        def begin_all(self, keys: object) -> None:
            pass

        def end(self) -> None:
            pass

    with CPUDecode(64, DecodeLimits(), 60.0) as decode:
        decode(batch, Notes())
    assert [(row.uri, row.status, row.sha256) for row in batch.rows] == wanted
