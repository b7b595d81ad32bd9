"""The workers: chunks come back in order, whoever dies; every fault ends as a row or in one sentence."""

import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import stand_in_stages as stand_ins
from PIL import Image
from processes import children, runs

from gbad_batch.engine import Row, Scan, ScanSettings
from gbad_batch.engine import scan as scan_module
from gbad_batch.engine.bundle import Bundle
from gbad_batch.engine.errors import Refused, Stopped
from gbad_batch.engine.settings import fingerprint
from gbad_batch.engine.workers import pool


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write sixty small images, some of them bad, and one that is named `fatal`."""
    root = tmp_path_factory.mktemp("workers") / "archive"
    root.mkdir()
    for i in range(60):
        noise = np.random.default_rng(i).integers(0, 256, (6, 8, 3), np.uint8)
        Image.fromarray(noise).resize((80 + i, 60)).save(root / f"bag{i:02d}.{('jpg', 'png')[i % 2]}")
    (root / "bag07.png").write_bytes(b"no image")
    (root / "bag30.jpg").rename(root / "fatal.jpg")
    return root


@pytest.fixture
def settings(archive: Path, tiny_bundle: Bundle, tmp_path: Path) -> Any:
    """Give the settings of a scan of the archive, a batch of four at a time."""
    (tmp_path / "cache").mkdir()

    def make(**given: Any) -> ScanSettings:
        known = {"model": tiny_bundle.path, "cache_dir": tmp_path / "cache", "batch_size": 4, "threads": 2}
        return ScanSettings(sources=(archive,), **{**known, **given})

    return make


def figures(rows: list[Row]) -> list[tuple[Any, ...]]:
    return [tuple(getattr(row, each.name) for each in fields(Row)) for row in rows]


@pytest.fixture(scope="module")
def plain(archive: Path, tiny_bundle: Bundle) -> list[tuple[Any, ...]]:
    """Give the rows of a scan that nothing disturbs."""
    settings = ScanSettings(sources=(archive,), model=tiny_bundle.path, batch_size=4, threads=2)
    return figures(list(Scan(settings).rows()))


@pytest.mark.parametrize(("workers", "threads"), [(1, 1), (1, 3), (2, 2), (3, 3), (4, 8)])
def test_workers_and_threads_change_no_bit_and_no_order(
    settings: Any, plain: list[Any], workers: int, threads: int
) -> None:
    assert len(plain) == 60
    assert [row[0] for row in plain] == sorted(row[0] for row in plain)
    assert figures(list(Scan(settings(workers=workers, threads=threads)).rows())) == plain


def test_a_scan_can_be_run_and_iterated_again(settings: Any, tmp_path: Path) -> None:
    scan = Scan(settings(out=tmp_path / "r.parquet", overwrite=True))
    first = figures(list(scan.rows()))
    assert figures(list(scan.rows())) == first
    for _ in range(2):
        assert scan.run().images == 60
    assert pq.read_table(tmp_path / "r.parquet")["uri"].to_pylist() == [row[0] for row in first]


def test_rows_that_are_left_early_leave_no_process(settings: Any) -> None:
    before = set(children(os.getpid()))
    for _ in Scan(settings()).rows():
        break
    left = set(children(os.getpid())) - before
    assert [pid for pid in left if runs(pid)] == []


def test_workers_have_ended_when_a_result_is_put_in_its_place(
    settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, left = set(children(os.getpid())), list[int]()
    finish = scan_module.finish

    def looking(*arguments: Any) -> None:
        # one that is late to begin could still make its file in OUT.parts, which is about to go
        left.extend(pid for pid in set(children(os.getpid())) - before if runs(pid))
        finish(*arguments)

    monkeypatch.setattr(scan_module, "finish", looking)
    Scan(settings(out=tmp_path / "r.parquet", workers=2)).run()
    assert left == []


def test_a_worker_that_is_killed_again_and_again_costs_no_row(
    settings: Any, plain: list[Any], tmp_path: Path
) -> None:
    scan = Scan(settings(out=tmp_path / "r.parquet", workers=2), stand_ins.open_slow)
    before, kills = set(children(os.getpid())), 0

    def kill(_progress: Any) -> None:
        nonlocal kills
        for pid in set(children(os.getpid())) - before:
            if kills < 6 and runs(pid):
                os.kill(pid, signal.SIGKILL)
                kills += 1

    summary = scan.run(kill)
    assert kills == 6
    assert (summary.images, summary.failed) == (60, {"not_an_image": 1})
    table = pq.read_table(tmp_path / "r.parquet")
    assert table["uri"].to_pylist() == [row[0] for row in plain]
    scores = [row[[each.name for each in fields(Row)].index("anomaly_score")] for row in plain]
    assert table["anomaly_score"].to_pylist() == scores


def test_an_image_that_kills_its_worker_is_decoded_apart(
    settings: Any, plain: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    assert figures(list(Scan(settings(), stand_ins.open_dying).rows())) == plain
    assert "SIGKILL" in caplog.text
    assert "decoded apart" in caplog.text


def test_workers_that_die_for_ever_stop_the_scan(settings: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "MOST_DEATHS", 4)  # each start of a worker takes a second
    with pytest.raises(Stopped, match=r"SIGKILL again and again.*memory"):
        list(Scan(settings(), stand_ins.open_always_dying).rows())


def test_a_lost_gpu_is_replaced_and_its_images_are_decoded_apart(
    settings: Any, plain: list[Any], caplog: pytest.LogCaptureFixture
) -> None:
    assert figures(list(Scan(settings(threads=1), stand_ins.open_losing).rows())) == plain
    assert caplog.text.count("the GPU failed") == 2


def test_a_fault_of_the_machine_stops_the_scan_and_keeps_what_is_finished(
    settings: Any, tmp_path: Path
) -> None:
    out = tmp_path / "r.parquet"
    with pytest.raises(Stopped, match="the disk is gone"):
        Scan(settings(out=out), stand_ins.open_stopping).run()
    summary = Scan(settings(out=out)).run()
    assert (summary.images, summary.scanned_now < 60) == (60, True)


def test_a_bug_is_told_with_the_worker_it_was_in(settings: Any) -> None:
    with pytest.raises(ZeroDivisionError) as caught:
        list(Scan(settings(), stand_ins.open_unexpected).rows())
    assert any("in a worker process" in note for note in caught.value.__notes__)


def test_stages_can_be_exchanged(settings: Any) -> None:
    rows = list(Scan(settings(), stand_ins.open_fixed).rows())
    assert {row.anomaly_score for row in rows} == {1.0}


def test_a_model_that_cannot_be_opened_is_refused_as_the_worker_says(settings: Any, tmp_path: Path) -> None:
    with pytest.raises(Refused, match="missing"):
        list(Scan(settings(model=tmp_path / "missing")).rows())


def test_a_scan_that_is_stopped_from_another_thread_ends_and_can_go_on(settings: Any, tmp_path: Path) -> None:
    out = tmp_path / "r.parquet"
    scan = Scan(settings(out=out, threads=1), stand_ins.open_slow)
    with pytest.raises(Stopped, match="stopped on request"):
        scan.run(lambda _: scan.stop())
    assert scan.run().images == 60


WITHOUT_COORDINATOR = """
import sys
from gbad_batch.engine import Scan, ScanSettings
import stand_in_stages
scan = Scan(ScanSettings(sources=(sys.argv[1],), model=sys.argv[2], cache_dir=sys.argv[3], batch_size=1,
                         workers=2), stand_in_stages.open_slow)
for row in scan.rows():
    print(row.uri, flush=True)
"""


def test_workers_die_with_their_coordinator(archive: Path, tiny_bundle: Bundle, tmp_path: Path) -> None:
    words = [sys.executable, "-c", WITHOUT_COORDINATOR, archive, tiny_bundle.path, tmp_path / "cache"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(Path(__file__).parent), *sys.path])}
    with subprocess.Popen(list(map(str, words)), stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        process.stdout.readline()
        workers = children(process.pid)
        assert len(workers) == 2
        process.kill()
    while any(map(runs, workers)):
        time.sleep(0.05)


def test_a_new_setting_says_whether_resuming_depends_on_it() -> None:
    assert {each.name: each.metadata.get("resume") for each in fields(ScanSettings)}.keys() == {
        each.name for each in fields(ScanSettings) if each.metadata.get("resume") in ("same", "any")
    }
    assert all(each.metadata["help"] for each in fields(ScanSettings))


def test_what_an_unfinished_scan_depends_on_follows_from_the_settings() -> None:
    one, other = ScanSettings(sources=("/a",)), ScanSettings(sources=("/a",), threads=3, device="cpu")
    assert fingerprint(one, {}) == fingerprint(other, {})
    for changed in ({"sources": ("/b",)}, {"hidden": True}, {"limit": 3}, {"max_pixels": 5}):
        assert fingerprint(ScanSettings(**{"sources": ("/a",), **changed}), {}) != fingerprint(one, {})


def test_paths_may_be_text_or_paths() -> None:
    text = ScanSettings(sources="/a", out="r/", features="f", model="m")  # type: ignore[arg-type]
    paths = ScanSettings(sources=(Path("/a"),), out=Path("r"), features=Path("f"), model=Path("m"))
    assert fingerprint(text, {}) == fingerprint(paths, {})
    assert (text.out_is_folder, paths.out_is_folder) == (True, False)


def test_a_second_thread_may_scan_at_the_same_time(settings: Any) -> None:
    found: list[int] = []
    threads = [
        threading.Thread(target=lambda: found.append(len(list(Scan(settings()).rows())))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [60, 60]
