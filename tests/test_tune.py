"""How a scan divides the machine: by default, as tuned, as the user says; it is shown and changes no bit."""

import json
import logging
import os
import re
import time
from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny_bundle as tiny
from benchmarks.stand_ins import open_gpu_stages
from in_process import run_here
from PIL import Image

from gbad_batch.engine import Scan, ScanSettings, Summary
from gbad_batch.engine import scan as scanning
from gbad_batch.engine.bundle import Bundle
from gbad_batch.engine.commands import tune as tuning
from gbad_batch.engine.decode import DecodeLimits, Decoder
from gbad_batch.engine.decode.batch import waits_for_batch
from gbad_batch.engine.errors import Refused, Stopped
from gbad_batch.engine.row import Row
from gbad_batch.engine.runtime import Engine
from gbad_batch.engine.runtime.cache import PLAN, EngineCache, cache_key
from gbad_batch.engine.settings import BATCH_SIZES
from gbad_batch.engine.sources import Candidate
from gbad_batch.engine.stages import plan as planning
from gbad_batch.engine.stages.plan import WorkPlan, default_plan, keep, plan_for, tuned
from gbad_batch.engine.system.machine import usable_cores
from gbad_batch.engine.workers.chunk import ChunkSize, FinishedChunk
from gbad_batch.engine.workers.feed import Feed
from gbad_batch.engine.workers.pool import Pool
from gbad_batch.engine.workers.progress import Progress
from gbad_batch.export import engine_for

CORES = usable_cores()
TODAY = f"tuned on {date.today().isoformat()}"


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    root = tmp_path / "archive"
    root.mkdir()
    for i, pixels in enumerate(tiny.pictures(23, seed=9)):
        Image.fromarray(pixels).resize((70 + 5 * i, 60)).save(root / f"bag{i:02d}.{('jpg', 'png')[i % 2]}")
    (root / "cut.jpg").write_bytes((root / "bag00.jpg").read_bytes()[:500])
    return root


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def engine(tiny_bundle: Bundle, cache: Path) -> Engine:
    return engine_for(tiny_bundle, cache_dir=cache)


@pytest.fixture
def scan(tiny_bundle: Bundle, archive: Path, cache: Path) -> Any:
    def start(out: Path, **settings: Any) -> Summary:
        settings = {"model": tiny_bundle.path, "cache_dir": cache, "overwrite": True, **settings}
        return Scan(ScanSettings(sources=(str(archive),), out=out, **settings)).run()

    return start


def store(engine: Engine, cache: Path, batch_size: int, workers: int, threads: int) -> Path:
    """Keep a plan as `tune` does; returns its file."""
    opened = EngineCache.open(cache)
    assert opened is not None
    assert keep(WorkPlan(batch_size, workers, threads, CORES), engine, opened)
    opened.close()
    (file,) = cache.glob("*.plan")
    return file


def rows_of(out: Path) -> list[dict[str, Any]]:
    return pq.read_table(out).drop_columns("scanned_at").to_pylist()


# --- what a scan does ---------------------------------------------------------------------------------


def test_every_core_has_a_thread_by_default(scan: Any, tmp_path: Path) -> None:
    workers = -(-CORES // 8)
    plan = WorkPlan(8, workers, CORES // workers, CORES // workers, "default")
    assert scan(tmp_path / "r.parquet").plan == plan
    given = scan(tmp_path / "r.parquet", threads=3, batch_size=5).plan
    assert given == WorkPlan(5, 1, 3, 3, "default, --batch-size and --threads as given")
    given = scan(tmp_path / "r.parquet", threads=4, workers=2).plan
    assert given == WorkPlan(8, 2, 2, 2, "default, --threads and --workers as given")


@pytest.mark.parametrize(
    ("backend", "device", "sizes"),
    [("openvino", "cpu", (8, 3, 6)), ("inductor", "cpu", (8, 1, 20)), ("tensorrt", "cuda:0", (256, 4, 5))],
)
def test_the_default_follows_backend_and_device(
    backend: str, device: str, sizes: tuple[int, int, int]
) -> None:
    engine = Engine(backend, "1", device, "fp32", 64, 32, "hash", "key", b"")
    plan = default_plan(engine, cores=20, gpus=4)
    assert (plan.batch_size, plan.workers, plan.threads) == sizes


def test_the_tuned_choice_is_taken_and_said_and_options_win(
    scan: Any, engine: Engine, cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store(engine, cache, 3, 1, 4)
    with caplog.at_level(logging.INFO):
        summary = scan(tmp_path / "r.parquet")
    assert summary.plan == WorkPlan(3, 1, 4, CORES, TODAY)
    assert f"batch 3, 1 worker, 4 threads: {TODAY}" in caplog.text
    batch_given = scan(tmp_path / "r.parquet", batch_size=2).plan
    assert batch_given == WorkPlan(2, 1, 4, CORES, f"{TODAY}, --batch-size as given")
    threads_given = scan(tmp_path / "r.parquet", threads=2).plan
    assert threads_given == WorkPlan(8, 1, 2, 2, "default, --threads as given")


def test_the_command_and_the_doctor_say_it(
    engine: Engine, tiny_bundle: Bundle, archive: Path, cache: Path, tmp_path: Path
) -> None:
    store(engine, cache, 3, 1, 4)
    said = f"batch 3, 1 worker, 4 threads: {TODAY}"
    model = ["--model", str(tiny_bundle.path), "--cache-dir", str(cache)]
    words = ["scan", archive, "--out", tmp_path / "r.parquet", "--overwrite", *model]
    _, stdout, stderr = run_here(*words)
    assert said in stdout
    assert said in stderr
    as_json = json.loads(run_here(*words, "--json")[1])
    sizes = {"batch_size": 3, "workers": 1, "threads": 4, "cores": CORES}
    assert as_json["plan"] == {**sizes, "origin": TODAY}
    assert said in run_here("doctor", *model)[1]


def test_no_choice_changes_a_bit_or_the_order(scan: Any, engine: Engine, cache: Path, tmp_path: Path) -> None:
    scan(tmp_path / "r.parquet")
    wanted = rows_of(tmp_path / "r.parquet")
    assert [row["uri"] for row in wanted] == sorted(row["uri"] for row in wanted)
    for sizes in ((1, CORES, 1), (1, 1, 5), (4, CORES, 3), (64, 1, 2)):
        store(engine, cache, *sizes)
        assert scan(tmp_path / "again.parquet").plan.origin == TODAY
        assert rows_of(tmp_path / "again.parquet") == wanted


def test_an_unfinished_scan_goes_on_with_another_choice(
    scan: Any, engine: Engine, tiny_bundle: Bundle, archive: Path, cache: Path, tmp_path: Path
) -> None:
    """It was stopped while several batches were under way; what was written then is not scanned again."""
    scan(tmp_path / "whole.parquet")
    out = {"out": tmp_path / "r.parquet", "batch_size": 1, "threads": 4}
    first = Scan(ScanSettings(sources=(str(archive),), model=tiny_bundle.path, cache_dir=cache, **out))
    with pytest.raises(Stopped, match="on request"):
        first.run(lambda progress: first.stop() if progress.done >= 1 else None)
    store(engine, cache, 16, 1, 3)
    summary = scan(tmp_path / "r.parquet", overwrite=False)
    assert summary.plan is not None
    assert summary.plan.origin == TODAY
    assert summary.scanned_now < 24
    assert rows_of(tmp_path / "r.parquet") == rows_of(tmp_path / "whole.parquet")


def test_the_summary_tells_cpu_seconds_by_stage(scan: Any, tmp_path: Path) -> None:
    summary = scan(tmp_path / "r.parquet")
    stages = {"list", "read", "decode", "score", "columns", "write"}
    assert summary.stage_seconds.keys() == stages
    assert summary.stage_cpu_seconds.keys() == stages | {"deal"}
    assert 0 < sum(summary.stage_cpu_seconds.values()) == pytest.approx(summary.cpu_seconds)


# --- what is kept -------------------------------------------------------------------------------------


def test_the_file_is_private_and_its_key_holds_what_the_choice_depends_on(
    engine: Engine, cache: Path
) -> None:
    file = store(engine, cache, 16, 1, 2)
    assert file.stat().st_mode & 0o777 == 0o600
    facts = json.loads(file.read_bytes())["facts"]
    assert file.stem == cache_key(facts)
    assert facts.keys() == {"engine", "cores", "gpus", "versions"}
    assert (facts["engine"], facts["cores"], facts["gpus"]) == (engine.key, CORES, 0)
    assert {"gbad-batch", "simplejpeg"} <= facts["versions"].keys()
    assert tuned(replace(engine, key="another"), cache) is None


def rewritten(file: Path, **values: Any) -> None:
    """Store other values under the name of a plan, whole by their hash."""
    record = json.loads(file.read_bytes())
    del record["sha256"]
    opened = EngineCache.open(file.parent)
    assert opened is not None
    assert opened.store(file.stem, b"", {**record, **values}, PLAN)
    opened.close()


def spoil(file: Path, how: str) -> None:
    whole = file.read_bytes()
    if how == "a bit":
        file.write_bytes(whole.replace(b'"batch_size": 3', b'"batch_size": 2'))
    elif how == "cut":
        file.write_bytes(whole[:-20])
    elif how == "no JSON":
        file.write_bytes(b"batch_size = 3\n")
    elif how == "a link":
        file.rename(file.with_name("elsewhere"))
        file.symlink_to(file.with_name("elsewhere"))
    elif how == "another user's":
        if os.geteuid() != 0:
            pytest.skip("only root can give a file away")
        os.chown(file, 12345, -1)
    elif how == "another machine's":
        rewritten(file, facts={**json.loads(whole)["facts"], "cores": CORES + 1})
    else:
        name, value = how.split()
        rewritten(file, **{name: json.loads(value)})


@pytest.mark.parametrize(
    "how",
    [
        *("a bit", "cut", "no JSON", "a link", "another user's", "another machine's"),
        *("batch_size 0", "batch_size 4097", "batch_size 2.5", "workers true", "workers 4096"),
        *("threads null", "threads 1025", 'date "long_ago"'),
    ],
)
def test_a_damaged_or_foreign_choice_is_told_and_not_used(
    engine: Engine, cache: Path, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    file = store(engine, cache, 3, 1, 4)
    spoil(file, how)
    assert plan_for(ScanSettings(cache_dir=cache), engine) == default_plan(engine, CORES)
    (warning,) = [record.getMessage() for record in caplog.records if record.levelno >= logging.WARNING]
    assert re.match(r"the cached plan [0-9a-f]{12} is not used: .*; the default settings are used", warning)


def test_an_unsafe_cache_is_told_once(
    scan: Any, engine: Engine, cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store(engine, cache, 3, 1, 4)
    cache.chmod(0o755)
    assert scan(tmp_path / "r.parquet").plan.origin == "default"
    assert caplog.text.count("is not used") == 1


# --- what is measured ---------------------------------------------------------------------------------


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in {"SECONDS": 0.0, "DUELS": 1, "SYNTHETIC": 2}.items():
        monkeypatch.setattr(tuning, name, value)
    for kind, batches in (("cpu", (2, 8)), ("cuda", (256, 512))):
        monkeypatch.setitem(tuning.FIRST, kind, 8)
        monkeypatch.setitem(tuning.BATCHES, kind, batches)


@pytest.mark.usefixtures("quick")
def test_tuning_measures_each_size_and_scans_do_as_it_found(
    scan: Any, archive: Path, cache: Path, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    settings = ScanSettings(sources=(str(archive),), model=tiny_bundle.path, cache_dir=cache)
    found = tuning.tune(settings)
    tried = {(each.plan.batch_size, each.plan.workers, each.plan.threads) for each in found.trials}
    default = default_plan(engine_for(tiny_bundle, cache_dir=cache), CORES)
    assert {batch for batch, _, _ in tried} == {2, 8}
    assert {threads for _, _, threads in tried} >= {default.threads, 2 * default.threads}
    assert {workers for _, workers, _ in tried} >= {1, min(CORES, 2 * default.workers)}
    assert all(each.images_per_second > 0 for each in found.trials)
    assert found.default.plan == default
    assert found.pictures == f"24 images of {archive}"
    chosen, taken = found.chosen.plan, scan(tmp_path / "r.parquet").plan
    assert (taken.batch_size, taken.workers, taken.threads, taken.origin) == (
        *(chosen.batch_size, chosen.workers, chosen.threads),
        TODAY,
    )


@pytest.mark.usefixtures("quick")
def test_what_was_found_before_is_measured_anew(
    archive: Path, cache: Path, engine: Engine, tiny_bundle: Bundle
) -> None:
    store(engine, cache, 2, 1, 4)
    found = tuning.tune(ScanSettings(sources=(str(archive),), model=tiny_bundle.path, cache_dir=cache))
    assert found.trials[0].plan == found.default.plan == default_plan(engine, CORES)


@pytest.mark.usefixtures("quick")
def test_when_the_time_is_up_the_default_stays(
    archive: Path, cache: Path, tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(tuning.DEADLINE_S, "cpu", 0.0)
    found = tuning.tune(ScanSettings(sources=(str(archive),), model=tiny_bundle.path, cache_dir=cache))
    assert found.trials == [found.default] == [found.chosen]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[WorkPlan]:
    """Give the plans that scans ran by."""
    plans = list[WorkPlan]()

    class Noted(Pool):
        def process(self, *words: Any, **named: Any) -> Iterator[FinishedChunk]:
            plans.append(self.setup.plan)
            return super().process(*words, **named)

    monkeypatch.setattr(scanning, "Pool", Noted)
    return plans


@pytest.mark.usefixtures("quick")
def test_a_trial_is_a_scan_by_the_plan_that_is_kept(
    archive: Path, cache: Path, tiny_bundle: Bundle, opened: list[WorkPlan]
) -> None:
    """Also in what is not stored, the cores of a worker: a scan later has the same."""
    found = tuning.tune(ScanSettings(sources=(str(archive),), model=tiny_bundle.path, cache_dir=cache))
    plans = [each.plan for each in found.trials]
    assert opened == [plans[0], *plans]  # the first scan only counts
    for plan in plans:
        assert plan.cores == CORES // plan.workers
    engine = engine_for(tiny_bundle, cache_dir=cache)
    later = plan_for(ScanSettings(cache_dir=cache), engine, gpus=0)
    assert replace(later, origin="") == replace(found.chosen.plan, origin="")


@pytest.mark.usefixtures("quick")
def test_on_a_gpu_trials_have_the_readers_of_a_scan_and_larger_batches(
    cache: Path,
    engine: Engine,
    tiny_bundle: Bundle,
    opened: list[WorkPlan],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """With real readers and a stand-in for GPU and engine, on a machine of 8 cores and 2 GPUs."""
    there = replace(engine, backend="tensorrt", device="cuda:0", key="a GPU's")
    monkeypatch.setattr(tuning, "engine_for", lambda *_: there)
    monkeypatch.setattr(tuning, "devices_of", lambda *_: ("cuda:0",))
    monkeypatch.setattr(tuning, "open_stages", open_gpu_stages)
    for module in (tuning, planning):
        monkeypatch.setattr(module, "usable_cores", lambda: 8)
    (tmp_path / "photographs").mkdir()
    for i in range(3):
        Image.new("RGB", (90, 80), (i, 90, 200)).save(tmp_path / "photographs" / f"{i}.jpg")
    settings = ScanSettings(sources=(str(tmp_path / "photographs"),), model=tiny_bundle.path, cache_dir=cache)
    found = tuning.tune(settings)
    default = WorkPlan(256, 1, planning.AT_WORK + 2, 8)
    assert found.default.plan == opened[0] == default
    assert {(plan.batch_size, plan.threads, plan.cores) for plan in opened} == {
        (256, default.threads, 8),
        (512, default.threads, 8),
    }
    later = plan_for(ScanSettings(cache_dir=cache), there, gpus=1)
    assert replace(later, origin="") == replace(found.chosen.plan, origin="")
    assert plan_for(ScanSettings(cache_dir=cache), there, gpus=2).origin == "default"


def test_on_a_gpu_larger_batches_than_the_default_are_tried() -> None:
    assert max(tuning.BATCHES["cuda"]) > BATCH_SIZES["cuda"]
    images, size = 512, ChunkSize(512, 256, on_gpu=True)
    listed = [Candidate(Row("x", bytes=140_000), b"x") for _ in range(images)]  # a photograph's size
    with Feed(iter(listed), Progress()) as feed:
        while not (taken := feed.take(size.images, size.bytes, at_once=False)):
            time.sleep(0.001)
    assert len(taken) == images


@pytest.mark.parametrize(("side", "images"), [(64, 256), (384, 112), (2048, 8)])
def test_a_chunk_s_pixels_are_bounded_however_fast_the_model_is(side: int, images: int) -> None:
    size = ChunkSize(8, side, on_gpu=False)
    size.learn(FinishedChunk(0, b"", rows=8, failed=0, alarms=0, seconds={"score": 1e-6}))
    assert size.images == images


def test_its_synthetic_pictures_are_decoded_on_a_gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "SYNTHETIC", 1)
    (picture,), _ = tuning._pictures(ScanSettings(), tmp_path / "pictures")
    row = Row("picture")
    image = Decoder(256, DecodeLimits()).gate(row, picture.read_bytes())
    assert image is not None
    assert waits_for_batch(row, image)


def test_pictures_that_cannot_be_decoded_are_refused(
    tiny_bundle: Bundle, cache: Path, tmp_path: Path
) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.jpg").write_bytes(b"no picture")
    settings = ScanSettings(sources=(str(tmp_path / "bad"),), model=tiny_bundle.path, cache_dir=cache)
    with pytest.raises(Refused, match=r"no image in .*bad can be decoded"):
        tuning.tune(settings)
    assert not list(cache.glob("*.plan"))


@pytest.mark.usefixtures("quick")
def test_the_command_prints_a_table_or_json(
    tiny_bundle: Bundle, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(tuning.DEADLINE_S, "cpu", 0.0)  # one trial
    words = ["tune", "--model", tiny_bundle.path, "--cache-dir", cache]
    code, stdout, stderr = run_here(*words)
    assert code == 0, stderr
    assert "on 2 synthetic pictures" in stdout
    assert re.search(r"^ +8 +\d+ +\d+ +\d+\.\d  default$", stdout, re.MULTILINE)
    assert stdout.endswith(f"Stored in {cache}\n")
    _, stdout, _ = run_here(*words, "--json")
    found = json.loads(stdout)
    assert found["kept"] == str(cache)
    assert found["chosen"]["plan"]["cores"] == CORES
    (trial,) = found["trials"]
    assert trial["plan"] == found["chosen"]["plan"]
    assert np.isfinite(found["chosen"]["images_per_second"])


def test_pictures_that_are_not_there_are_refused_before_an_engine_is_built(
    tiny_bundle: Bundle, tmp_path: Path
) -> None:
    own = tmp_path / "cache"
    with pytest.raises(Refused, match="absent"):
        tuning.tune(ScanSettings(sources=(str(tmp_path / "absent"),), model=tiny_bundle.path, cache_dir=own))
    assert not [path for path in own.rglob("*") if path.is_file() and path.stat().st_size]
