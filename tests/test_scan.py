"""What a scan promises, end to end: rows, bits, resume, exit codes, refusals."""

import json
import os
import resource
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny_bundle as tiny
from in_process import run_here
from PIL import Image
from processes import PATIENCE_S, children, cpu_seconds, decoding

from gbad_batch.engine import Scan, ScanSettings, Summary
from gbad_batch.engine.bundle import Bundle, write_bundle
from gbad_batch.engine.errors import Refused, TooManyFailures
from gbad_batch.engine.row import THREATS

Rows = list[dict[str, Any]]


def picture(seed: int, size: tuple[int, int] = (90, 70)) -> Image.Image:
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, (6, 8, 3), np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Write forty images of several formats in two folders."""
    root = tmp_path / "archive"
    for i in range(40):
        folder = root / f"day{i % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        picture(i, (60 + i, 50 + i)).save(folder / f"bag{i:02d}.{('jpg', 'png', 'bmp', 'webp')[i % 4]}")
    return root


def rows_of(out: Path) -> Rows:
    table = pq.read_table(out).drop_columns("scanned_at")
    return sorted(table.to_pylist(), key=lambda row: (row["uri"], row["offset"] or 0))


def scores_of(out: Path) -> dict[str, Any]:
    """All columns that the image alone decides, by file name."""
    own = {"uri", "mtime", "offset"}
    return {
        row["uri"].rpartition("/")[2]: {name: value for name, value in row.items() if name not in own}
        for row in rows_of(out)
    }


@pytest.fixture
def scan(tiny_bundle: Bundle, tmp_path: Path) -> Any:
    """Scan in this process with the tiny bundle."""

    def run(*sources: Path | str, out: Path, **settings: Any) -> Summary:
        settings = {"model": tiny_bundle.path, "cache_dir": tmp_path / "cache", **settings}
        return Scan(ScanSettings(sources=tuple(map(str, sources)), out=out, **settings)).run()

    return run


@pytest.fixture
def command(tiny_bundle: Bundle, tmp_path: Path) -> Any:
    """Start the command as a user does."""

    def start(*arguments: Any, **options: Any) -> subprocess.Popen[str]:
        line = [str(Path(sys.executable).with_name("gbad-batch")), "scan", *map(str, arguments)]
        line += ["--model", str(tiny_bundle.path), "--cache-dir", str(tmp_path / "cache")]
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(line, **{**pipes, **options})

    return start


@pytest.fixture
def here(tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Scan by the command in this process, in the folder for temporary files."""
    monkeypatch.chdir(tmp_path)

    def start(*arguments: Any) -> tuple[int, str, str]:
        return run_here("scan", *arguments, "--model", tiny_bundle.path, "--cache-dir", tmp_path / "cache")

    return start


def finish(process: subprocess.Popen[str], stdin: str | None = None) -> tuple[int, str, str]:
    stdout, stderr = process.communicate(stdin, timeout=PATIENCE_S)
    return process.returncode, stdout, stderr


# --- rows and scores ---------------------------------------------------------------------------------


def test_every_image_is_one_row_with_a_decision(
    scan: Any, archive: Path, tmp_path: Path, tiny_bundle: Bundle
) -> None:
    summary = scan(archive, out=tmp_path / "r.parquet")
    rows = rows_of(tmp_path / "r.parquet")
    assert [row["uri"] for row in rows] == sorted(str(p) for p in archive.rglob("*.*"))
    assert {row["status"] for row in rows} == {"ok"}
    assert summary.images == summary.ok == len(rows) == 40
    assert summary.exit_code == 0
    (point,) = [p for p in tiny_bundle.manifest.operating_points["fp32"][summary.decision] if p.pfa == 0.05]
    for row in rows:
        assert row["anomalous"] == (row["anomaly_score"] >= point.threshold)
        over = [
            threat
            for threat, threshold in zip(THREATS, point.class_thresholds, strict=True)
            if row[f"p_{threat}"] >= np.float32(threshold)
        ]
        assert row["threats"] == (over if row["anomalous"] else None)
    assert summary.alarms == sum(row["anomalous"] for row in rows)


def test_a_tar_gives_the_same_rows_as_its_files(scan: Any, archive: Path, tmp_path: Path) -> None:
    scan(archive, out=tmp_path / "files.parquet")
    for name in ("a.tar", "b.tar.gz", "c.tgz"):
        with tarfile.open(tmp_path / name, "w:gz" if name.endswith("gz") else "w") as tar:
            tar.add(archive, "shard")
        scan(tmp_path / name, out=tmp_path / f"{name}.parquet")
        assert scores_of(tmp_path / f"{name}.parquet") == scores_of(tmp_path / "files.parquet")
        assert all(row["offset"] for row in rows_of(tmp_path / f"{name}.parquet"))


def test_batch_size_threads_order_and_neighbours_change_no_bit(
    scan: Any, archive: Path, tmp_path: Path
) -> None:
    scan(archive, out=tmp_path / "r.parquet")
    plain = scores_of(tmp_path / "r.parquet")
    in_order = pq.read_table(tmp_path / "r.parquet")["uri"]
    for number, (batch_size, threads) in enumerate([(1, 1), (3, 2), (16, 4), (64, 1), (1, 6)]):
        out = tmp_path / f"r{number}.parquet"
        scan(archive, out=out, batch_size=batch_size, threads=threads)  # and a stream for each thread
        assert scores_of(out) == plain
        assert pq.read_table(out)["uri"] == in_order
    reverse = tmp_path / "list"
    reverse.write_text("\n".join(sorted((str(p) for p in archive.rglob("*.*")), reverse=True)[::3]))
    scan(out=tmp_path / "some.parquet", files_from=str(reverse))
    some = scores_of(tmp_path / "some.parquet")
    assert len(some) == 14
    assert some == {name: plain[name] for name in some}


def test_rows_can_be_had_without_a_file(archive: Path, tiny_bundle: Bundle, tmp_path: Path) -> None:
    settings = ScanSettings(
        sources=(str(archive), str(archive)), model=tiny_bundle.path, cache_dir=tmp_path / "c"
    )
    rows = list(Scan(settings).rows())
    assert [row.uri for row in rows] == sorted(str(p) for p in archive.rglob("*.*"))
    assert all(row.anomaly_score is not None for row in rows)


def test_limit_is_the_first_candidates_in_order_over_the_whole_scan(
    scan: Any, archive: Path, tmp_path: Path
) -> None:
    scan(archive, out=tmp_path / "r.parquet", limit=7)
    assert [row["uri"] for row in rows_of(tmp_path / "r.parquet")] == sorted(map(str, archive.rglob("*.*")))[
        :7
    ]


def test_duplicates_are_one_row_and_counted(scan: Any, archive: Path, tmp_path: Path) -> None:
    summary = scan(archive, archive / "day0", out=tmp_path / "r.parquet")
    assert summary.images == 40
    assert summary.duplicates == 20


def test_bad_files_stop_nothing_and_change_no_neighbour(scan: Any, archive: Path, tmp_path: Path) -> None:
    scan(archive, out=tmp_path / "good.parquet")
    good = scores_of(tmp_path / "good.parquet")
    whole = (archive / "day0" / "bag00.jpg").read_bytes()
    for i, share in enumerate((0.02, 0.3, 0.5, 0.8, 0.99)):
        (archive / "day0" / f"cut{i}.jpg").write_bytes(whole[: int(len(whole) * share)])
    (archive / "empty.jpg").touch()
    (archive / "text.jpg").write_text("<html>not found</html>")
    (archive / "day1" / "scan.dcm").write_bytes(bytes(128) + b"DICM")
    os.mkfifo(archive / "pipe.jpg")
    summary = scan(archive, out=tmp_path / "bad.parquet")
    bad = scores_of(tmp_path / "bad.parquet")
    assert {name: bad[name] for name in good} == good
    assert summary.failed == {"truncated": 5, "empty": 1, "not_an_image": 1, "unsupported": 1}
    assert summary.other_files == {"FIFO": 1}
    assert summary.exit_code == 3
    for name in bad.keys() - good.keys():
        assert bad[name]["error"]
        assert bad[name]["anomaly_score"] is None
        assert bad[name]["anomalous"] is None


def test_an_image_without_a_number_is_a_row_and_harms_no_other(
    scan: Any, archive: Path, tmp_path: Path
) -> None:
    files = {**tiny.files(), "network.onnx": tiny.network_without_numbers()}
    broken = write_bundle(tmp_path / "broken", tiny.manifest(), files)
    scan(archive, out=tmp_path / "good.parquet", model=broken.path)
    for name in ("black1.png", "black2.png"):
        Image.new("RGB", (64, 64)).save(archive / "day0" / name)
    features = {"features": tmp_path / "features"}
    summary = scan(archive, out=tmp_path / "r.parquet", model=broken.path, **features)
    assert summary.failed == {"decoder_crash": 2}
    rows = scores_of(tmp_path / "r.parquet")
    good = scores_of(tmp_path / "good.parquet")
    assert {name: rows[name] for name in good} == good
    assert pq.read_table(tmp_path / "features").num_rows == 40


# --- the same command again ---------------------------------------------------------------------------


def test_failed_images_are_scanned_again_on_demand(scan: Any, archive: Path, tmp_path: Path) -> None:
    repaired = archive / "day0" / "late.jpg"
    repaired.write_bytes(b"")
    stamp = repaired.stat()
    out = tmp_path / "r.parquet"
    assert scan(archive, out=out).failed == {"empty": 1}
    with pytest.raises(Refused, match="--retry-failed"):
        scan(archive, out=out)
    summary = scan(archive, out=out, retry=frozenset({"failed"}))
    assert summary.failed == {"empty": 1}
    assert summary.scanned_now == 1
    picture(1).save(repaired)
    os.utime(repaired, ns=(stamp.st_atime_ns, stamp.st_mtime_ns))
    summary = scan(archive, out=out, retry=frozenset({"empty"}))
    assert summary.failed == {}
    assert summary.images == 41


@pytest.mark.parametrize("batch_size", [1, 64])
def test_too_many_failures_stop_with_the_parts_kept(
    scan: Any, archive: Path, tmp_path: Path, batch_size: int
) -> None:
    for i in range(5):
        (archive / f"a{i}.jpg").write_text("no image")
    with pytest.raises(TooManyFailures, match="--max-failures 3"):
        scan(archive, out=tmp_path / "r.parquet", max_failures="3", batch_size=batch_size)
    assert (tmp_path / "r.parquet.parts").is_dir()
    with pytest.raises(TooManyFailures):  # failures of the earlier run count, even if it left nothing to do
        scan(archive, out=tmp_path / "r.parquet", max_failures="4", batch_size=batch_size)
    assert scan(archive, out=tmp_path / "r.parquet", max_failures="5").failed == {"not_an_image": 5}


def test_a_percentage_of_failures_counts_from_a_thousand_images_on(
    scan: Any, archive: Path, tmp_path: Path
) -> None:
    (archive / "bad.jpg").write_text("no image")
    assert scan(archive, out=tmp_path / "r.parquet", max_failures="1%").failed == {"not_an_image": 1}
    many = tmp_path / "many"
    many.mkdir()
    for i in range(1100):
        (many / f"{i:04d}.jpg").touch()
    with pytest.raises(TooManyFailures):
        scan(many, out=tmp_path / "many.parquet", max_failures="50%")


# --- the command ------------------------------------------------------------------------------------


def test_exit_codes_and_streams(command: Any, archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.parquet"
    code, stdout, stderr = finish(command(archive, "--out", out, "--json"))
    assert code == 0, stderr
    assert json.loads(stdout)["images"] == 40
    assert (code, stdout) == (0, stdout)
    code, stdout, stderr = finish(command(archive, "--out", out))
    assert (code, stdout) == (2, "")
    assert "--overwrite" in stderr
    assert "Traceback" not in stderr
    (archive / "empty.jpg").touch()
    code, stdout, stderr = finish(command(archive, "--out", out, "--overwrite", "--quiet"))
    assert (code, stdout, stderr) == (3, "", "")
    assert len(rows_of(out)) == 41


def test_an_output_inside_the_archive_is_no_part_of_it(
    here: Any, archive: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The parts lie in the archive while it is walked; a folder of parts lies there afterwards, too."""
    monkeypatch.chdir(archive)
    for out in ("r.parquet", "rows/", "day0/again/"):
        features = ("--features", f"features-{out.strip('/').replace('/', '-')}")
        code, _, stderr = here(".", "--out", out, *features)
        assert code == 0, stderr
        assert len(rows_of(archive / out)) == 40
    code, _, stderr = here(".", "--out", "rows/", *features, "--overwrite")
    assert code == 0, stderr
    assert len(rows_of(archive / "rows")) == 40


@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-", "| head -c 0", "2>&1 | head -c 0"])
def test_streams_that_are_closed_change_no_row_and_no_code(
    archive: Path, tiny_bundle: Bundle, tmp_path: Path, closed: str
) -> None:
    program = Path(sys.executable).with_name("gbad-batch")
    line = f"{program} scan {archive} --out r.parquet --model {tiny_bundle.path} --cache-dir cache {closed}"
    done = subprocess.run(
        ["bash", "-c", f"{line}; exit ${{PIPESTATUS[0]}}"], cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0
    assert "Traceback" not in done.stderr
    assert len(rows_of(tmp_path / "r.parquet")) == 40


def test_a_summary_that_cannot_be_written_is_told(command: Any, archive: Path, tmp_path: Path) -> None:
    with Path("/dev/full").open("w") as full:
        code, _, stderr = finish(command(archive, "--out", tmp_path / "r.parquet", stdout=full))
    assert code == 0
    assert "its summary cannot be written: No space left on device" in stderr
    assert "Traceback" not in stderr
    assert len(rows_of(tmp_path / "r.parquet")) == 40


@pytest.mark.parametrize("end", ["", "/"])
def test_an_output_whose_name_is_not_utf8(command: Any, archive: Path, tmp_path: Path, end: str) -> None:
    code, stdout, stderr = finish(command(archive, "--out", f"caf\udce9{end}", "--json", cwd=tmp_path))
    assert code == 0, stderr
    assert json.loads(stdout)["images"] == 40
    code, stdout, stderr = finish(command(archive, "--out", f"caf\udce9{end}", "--overwrite", cwd=tmp_path))
    assert code == 0, stderr
    assert "Results: " in stdout


def test_a_locale_without_the_letters_of_a_name(command: Any, archive: Path, tmp_path: Path) -> None:
    for path in [p for p in archive.rglob("*") if p.is_file()]:
        path.rename(path.with_name(f"Gepäck {path.name}"))
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    out = tmp_path / "Größe.parquet"
    code, stdout, stderr = finish(command(archive, "--out", out, env={**os.environ, **ascii_only}))
    assert code == 0, stderr
    assert "Gep\\xe4ck bag" in stdout
    assert "Results: " in stdout


@pytest.mark.parametrize("megabytes", [200, 300, 500])
def test_too_little_memory_ends_with_one_sentence(
    command: Any, archive: Path, tmp_path: Path, megabytes: int
) -> None:
    """Whatever is loaded first for which there is no room; no row is made of it, no traceback shown."""
    limit = megabytes << 20
    process = command(
        archive,
        "--out",
        tmp_path / "r.parquet",
        "--quiet",
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
    )
    code, stdout, stderr = finish(process)
    assert code in (0, 1, 2), stderr  # 0 where libraries are smaller
    assert stdout == ""
    assert "Traceback" not in stderr
    assert not code or stderr.splitlines()[-1].startswith("gbad-batch: ")
    if (tmp_path / "r.parquet.parts").exists():
        code, _, stderr = finish(command(archive, "--out", tmp_path / "r.parquet", "--quiet"))
        assert code == 0, stderr
        assert {row["status"] for row in rows_of(tmp_path / "r.parquet")} == {"ok"}


@pytest.mark.usefixtures("archive")
@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["missing", "--out", "r.parquet"], "missing"),
        (["empty", "--out", "r.parquet"], "no image"),
        (["archive", "--out", "no/r.parquet"], "no"),
        (["archive"], "--out"),
        (["archive", "--out", "r.parquet", "--pfa", "0.1", "--threshold", "1"], "--pfa"),
        (["archive", "--out", "r.parquet", "--pfa", "7"], "--pfa"),
        (["archive", "--out", "r.parquet", "--pfa", "nan"], "--pfa"),
        (["archive", "--out", "r.parquet", "--threshold", "nan"], "--threshold"),
        (["archive", "--out", "r.parquet", "--decode-timeout", "nan"], "--decode-timeout"),
        (["archive", "--out", "r.parquet", "--decode-timeout", "inf"], "--decode-timeout"),
        (["archive", "--out", "r.parquet", "--threads", "5000"], "--threads"),
        (["archive", "--out", "r.parquet", "--batch-size", "1000000000000"], "--batch-size"),
        (["archive", "--out", "r.parquet", "--features", "/"], "cannot be an output"),
        (["archive", "--out", "/"], "cannot be an output"),
        (["archive", "--out", "r.parquet", "--decision", "magic"], "magic"),
        (["archive", "--out", "r.parquet", "--precision", "int8"], "int8"),
        (["archive", "--out", "r.parquet", "--device", "cuda"], "cuda"),
        (["archive", "--out", "r.parquet", "--engine", "tensorrt"], "tensorrt"),
        (["archive", "--out", "r.parquet", "--max-failures", "lots"], "lots"),
        (["archive", "--out", "r.parquet", "--retry", "boredom"], "boredom"),
        (["archive", "--out", "r.parquet", "--config", "bad.toml"], "colour"),
        (["archive", "--out", "r.parquet", "--config", "absent.toml"], "absent.toml"),
    ],
)
def test_refusals_are_one_sentence_and_leave_nothing(
    here: Any, tmp_path: Path, arguments: list[str], said: str
) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad.toml").write_text('[scan]\ncolour = "red"\n')
    before = sorted(tmp_path.iterdir())
    code, stdout, stderr = here(*arguments)
    assert code == 2
    assert stdout == ""
    assert said in stderr
    assert "Traceback" not in stderr
    assert stderr.count("\n") <= 4
    assert set(tmp_path.iterdir()) - set(before) <= {tmp_path / "cache"}


def test_an_output_is_refused_before_the_model_is_opened(archive: Path, tmp_path: Path) -> None:
    settings = ScanSettings(
        sources=(archive,), out=tmp_path / "no" / "r.parquet", model=tmp_path / "no model"
    )
    with pytest.raises(Refused, match="make it first, or name another output"):
        Scan(settings).run()


def test_configuration_is_a_file_that_is_named(here: Any, archive: Path, tmp_path: Path) -> None:
    (tmp_path / "gbad-batch.toml").write_text("[scan]\nlimit = 1\n")
    (tmp_path / "mine.toml").write_text("[scan]\nlimit = 5\nbatch-size = 2\n")
    code, stdout, _ = here(archive, "--out", "a.parquet", "--json")
    assert (code, json.loads(stdout)["images"]) == (0, 40)
    mine = ("--config", "mine.toml", "--json")
    code, stdout, _ = here(archive, "--out", "b.parquet", *mine)
    assert (code, json.loads(stdout)["images"]) == (0, 5)
    code, stdout, _ = here(archive, "--out", "c.parquet", *mine, "--limit", 3)
    assert (code, json.loads(stdout)["images"]) == (0, 3)


def test_names_are_escaped_wherever_printed(command: Any, tmp_path: Path) -> None:
    folder = tmp_path / "odd"
    folder.mkdir()
    picture(3).save(folder / "red\x1b[31m.png")
    code, stdout, stderr = finish(command(folder, "--out", tmp_path / "r.parquet"))
    assert code == 0
    assert "\x1b" not in stdout + stderr
    assert "\\x1b" in stdout
    code, _, stderr = finish(command("no\x1bwhere", "--out", tmp_path / "s.parquet"))
    assert code == 2
    assert "\x1b" not in stderr


def test_a_list_on_standard_input(command: Any, archive: Path, tmp_path: Path) -> None:
    names = "\0".join(map(str, archive.rglob("*.png")))
    arguments = ("--files-from", "-", "--null", "--out", tmp_path / "r.parquet", "--json")
    code, stdout, stderr = finish(command(*arguments, stdin=subprocess.PIPE), names)
    assert code == 0, stderr
    assert json.loads(stdout)["images"] == 10


def test_dry_run_counts_and_writes_nothing(here: Any, archive: Path, tmp_path: Path) -> None:
    (archive / "labels.csv").write_text("name\n")
    before = sorted(tmp_path.rglob("*"))
    code, stdout, _ = here(archive, "--out", tmp_path / "r.parquet", "--dry-run", "--json")
    found = json.loads(stdout)
    assert code == 0
    assert found["by_extension"] == {".jpg": 10, ".png": 10, ".bmp": 10, ".webp": 10}
    assert found["other_files"] == {".csv": 1}
    assert found["seconds"] > 0
    assert set(tmp_path.rglob("*")) - set(before) <= set((tmp_path / "cache").rglob("*")) | {
        tmp_path / "cache"
    }


# --- crashes, kills and stops -------------------------------------------------------------------------


@pytest.fixture(scope="session")
def slow_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write a picture that takes seconds to decode."""
    path = tmp_path_factory.mktemp("slow") / "slow.jp2"
    noise = np.random.default_rng(0).integers(0, 256, (2000, 2000, 3), np.uint8)
    Image.fromarray(noise).save(path, irreversible=False)
    return path


@pytest.fixture
def slow_archive(tmp_path: Path, slow_image: Path) -> Path:
    root = tmp_path / "slow"
    root.mkdir()
    for i in range(6):
        picture(i).save(root / f"a{i}.png")
    (root / "slow.jp2").hardlink_to(slow_image)
    picture(9).save(root / "z.png")
    return root


def wait_for(condition: Any, seconds: float = 60.0) -> Any:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.01)
    raise AssertionError("what was waited for did not come")


def decoding_for(out: Path, seconds: float) -> bool:
    """Whether an image has been in a decoder for so long."""
    now = time.monotonic_ns()
    return any(now - started > seconds * 1e9 for started in decoding(out))


def test_a_decoder_that_dies_costs_no_row(command: Any, slow_archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.parquet"
    process = command(slow_archive, "--out", out)
    wait_for(lambda: decoding_for(out, 0.5))
    os.kill(children(process.pid)[0], signal.SIGSEGV)
    code, _, stderr = finish(process)
    assert code == 0, stderr
    assert "SIGSEGV" in stderr
    assert len(rows_of(out)) == 8


def test_an_image_that_kills_its_decoder_again_is_a_row(
    command: Any, slow_archive: Path, tmp_path: Path
) -> None:
    out = tmp_path / "r.parquet"
    process = command(slow_archive, "--out", out)
    wait_for(lambda: decoding_for(out, 0.5))
    first = children(process.pid)[0]
    os.kill(first, signal.SIGSEGV)
    second = wait_for(lambda: [child for child in children(process.pid) if child != first])[0]
    apart = wait_for(lambda: children(second))[0]
    wait_for(lambda: cpu_seconds(apart) > 1.0)
    os.kill(apart, signal.SIGSEGV)
    code, _, stderr = finish(process)
    assert code == 3, stderr
    crashed = [(row["uri"], row["status"]) for row in rows_of(out) if row["status"] != "ok"]
    assert crashed == [(str(slow_archive / "slow.jp2"), "decoder_crash")]
    assert len(rows_of(out)) == 8


def test_an_image_that_takes_too_long_is_a_row(command: Any, slow_archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.parquet"
    code, _, stderr = finish(command(slow_archive, "--out", out, "--decode-timeout", 0.5))
    assert code == 3, stderr
    late = [(row["uri"], row["status"]) for row in rows_of(out) if row["status"] != "ok"]
    assert late == [(str(slow_archive / "slow.jp2"), "decoder_timeout")]
    assert len(rows_of(out)) == 8


def test_suspects_outlive_a_parent_that_dies_too(command: Any, slow_archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.parquet"
    process = command(slow_archive, "--out", out)
    wait_for(lambda: decoding_for(out, 0.5))
    process.kill()
    finish(process)
    process = command(slow_archive, "--out", out)
    child = wait_for(lambda: children(process.pid))[0]
    apart = wait_for(lambda: children(child))
    assert apart, "the image that was being decoded is decoded apart"
    code, _, stderr = finish(process)
    assert code == 0, stderr
    assert len(rows_of(out)) == 8


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signals_end_in_order_and_the_same_command_goes_on(
    command: Any, slow_archive: Path, tmp_path: Path, number: int, expected: int
) -> None:
    out = tmp_path / "r.parquet"
    process = command(slow_archive, "--out", out, "--batch-size", 1)
    wait_for(lambda: decoding_for(out, 0.5))
    process.send_signal(number)
    code, stdout, stderr = finish(process)
    assert code == expected, stderr
    assert stdout == ""
    assert "run the same command" in stderr
    assert not out.exists()
    code, stdout, stderr = finish(command(slow_archive, "--out", out, "--batch-size", 1, "--json"))
    assert code == 0, stderr
    assert json.loads(stdout)["scanned_now"] < 8
    assert len(rows_of(out)) == 8


def test_two_scans_to_one_output_do_not_meet(command: Any, slow_archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.parquet"
    first = command(slow_archive, "--out", out)
    wait_for(lambda: decoding_for(out, 0.1))
    code, _, stderr = finish(command(slow_archive, "--out", out))
    assert code == 2
    assert "process" in stderr
    assert finish(first)[0] == 0
    assert len(rows_of(out)) == 8


def test_a_source_that_is_taken_away_stops_the_scan_and_invents_nothing(
    command: Any, slow_archive: Path, tmp_path: Path
) -> None:
    out = tmp_path / "r.parquet"
    for i in range(4000):  # more than the other thread gets done meanwhile
        (slow_archive / f"z{i:04d}.png").hardlink_to(slow_archive / f"a{i % 6}.png")
    process = command(slow_archive, "--out", out)
    wait_for(lambda: decoding_for(out, 0.1))
    slow_archive.rename(tmp_path / "away")
    code, _, stderr = finish(process)
    assert code == 1, stderr
    assert str(slow_archive) in stderr
    (tmp_path / "away").rename(slow_archive)
    code, _, stderr = finish(command(slow_archive, "--out", out))
    assert code == 0, stderr
    rows = rows_of(out)
    assert len(rows) == 4008
    assert {row["status"] for row in rows} == {"ok"}


def test_a_piped_list_survives_a_crash(command: Any, slow_archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.parquet"
    process = command("--files-from", "-", "--out", out, stdin=subprocess.PIPE)
    names = sorted(map(str, slow_archive.iterdir()))
    process.stdin.write("\n".join(names[:7]) + "\n")
    process.stdin.flush()
    wait_for(lambda: decoding_for(out, 0.5))
    os.kill(children(process.pid)[0], signal.SIGSEGV)
    code, _, stderr = finish(process, "\n".join(names[7:]))
    assert code == 0, stderr
    assert [row["uri"] for row in rows_of(out)] == names


@pytest.mark.slow  # the fast half: too little memory from the start
def test_memory_that_ends_during_a_scan_stops_it(command: Any, archive: Path, tmp_path: Path) -> None:
    """At each of these limits another part of the scan is the first to find no room."""
    for megabytes in range(700, 1300, 100):
        out = tmp_path / f"{megabytes}.parquet"
        limit = megabytes << 20
        code, _, stderr = finish(
            command(
                *(archive, "--out", out, "--batch-size", 64, "--quiet"),
                preexec_fn=lambda limit=limit: resource.setrlimit(resource.RLIMIT_AS, (limit, limit)),
            )
        )
        assert "Traceback" not in stderr
        assert code in (0, 1, 2), stderr
        assert not out.exists() or {row["status"] for row in rows_of(out)} == {"ok"}
