"""What an operator relies on: metrics, logs as JSON, a check of the disk, units, dashboard and alerts."""

import json
import logging
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from processes import PATIENCE_S
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families as older_text

from gbad_batch import Scan, ScanSettings, Summary
from gbad_batch.engine.bundle import Bundle
from gbad_batch.engine.commands.cli import main
from gbad_batch.engine.commands.dry_run import Estimate
from gbad_batch.engine.commands.metrics import METRICS, MetricsFile
from gbad_batch.engine.errors import Refused, Stopped
from gbad_batch.engine.results import Session, open_results
from gbad_batch.engine.results.index import key_of
from gbad_batch.engine.results.room import estimated_bytes
from gbad_batch.engine.results.schema import results_schema, to_batch
from gbad_batch.engine.row import Row
from gbad_batch.engine.text import disk_size

ROOT = Path(__file__).parents[1]
FILES = ROOT / "docs" / "operations"
PAGE = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
COMMAND = str(Path(sys.executable).with_name("gbad-batch"))
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Seven images and one that is broken."""
    folder = tmp_path / "archive"
    folder.mkdir()
    for i in range(7):
        coarse = np.random.default_rng(i).integers(0, 256, (5, 7, 3), np.uint8)
        Image.fromarray(coarse).resize((50, 44)).save(folder / f"bag{i}.png")
    (folder / "broken.jpg").write_bytes(b"no picture")
    return folder


@pytest.fixture
def scan(archive: Path, tiny_bundle: Bundle, own_cache: Path, tmp_path: Path) -> Run:
    """Run the command on the archive, in a folder of its own."""
    words = ["scan", archive, "--model", tiny_bundle.path, "--cache-dir", own_cache, "--threads", 1]

    def run(*given: object, **options: Any) -> "subprocess.CompletedProcess[str]":
        line = [COMMAND, *map(str, [*words, *given])]
        return subprocess.run(
            line, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE_S, **options
        )

    return run


# --- metrics ---


def gauges(path: Path) -> dict[str, dict[str, float]]:
    """Read a file by both of Prometheus's parsers: by metric, values by the label beside `results`."""
    text = path.read_text()
    read: list[dict[str, dict[str, float]]] = []
    for families in (openmetrics.text_string_to_metric_families(text), older_text(text)):
        found: dict[str, dict[str, float]] = {}
        for family in families:
            assert family.type == "gauge"
            assert family.documentation
            for sample in family.samples:
                label = [value for name, value in sample.labels.items() if name != "results"]
                found.setdefault(sample.name, {})[label[0] if label else ""] = sample.value
        read.append(found)
    assert read[0] == read[1]
    return {name.removeprefix("gbad_batch_"): values for name, values in read[0].items()}


def test_metrics_of_a_finished_scan_are_those_of_its_summary(scan: Run, tmp_path: Path) -> None:
    before = datetime.now(UTC).timestamp() - 1
    ran = scan("--out", "r.parquet", "--metrics", "m.prom", "--json")
    assert ran.returncode == 3, ran.stderr
    summary, found = json.loads(ran.stdout), gauges(tmp_path / "m.prom")
    start, end = (datetime.fromisoformat(summary[name]) for name in ("start", "end"))
    assert before <= start.timestamp() <= end.timestamp() <= time.time()
    assert (summary["host"], start.tzinfo) == (os.uname().nodename, UTC)
    assert found.keys() == METRICS.keys()
    assert found["scan_exit_code"] == {"": 3}
    assert found["scan_running"] == {"": 0}
    assert found["scan_rows_listed"] == found["scan_rows_total"] == found["scan_rows_done"] == {"": 8}
    assert found["results_rows"] == {"ok": 7, **summary["failed"]}
    assert found["results_class_alarms"] == summary["alarms_by_class"]
    assert found["results_changes"]["new"] == 8
    assert found["scan_stage_seconds"] == summary["stage_seconds"]
    assert found["results_info"] == {summary["model"]: 1}
    assert f'results="{tmp_path}/r.parquet"' in (tmp_path / "m.prom").read_text()
    assert (tmp_path / "m.prom").stat().st_mode & 0o044 == 0o044  # node_exporter is another user
    assert {path.name for path in tmp_path.iterdir()} == {"archive", "r.parquet", "m.prom"}
    first_end = found["scan_success_timestamp_seconds"][""]
    ran = scan("--out", "r.parquet", "--metrics", "m.prom")
    assert ran.returncode == 2
    found = gauges(tmp_path / "m.prom")
    assert found["scan_exit_code"] == {"": 2}
    assert first_end - 2 <= found["scan_success_timestamp_seconds"][""] <= first_end
    assert "results_rows" not in found


def test_metrics_are_kept_up_to_date_while_scanning(
    archive: Path, tiny_bundle: Bundle, own_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gbad_batch.engine.commands.metrics.EVERY_S", 0.01)
    settings = ScanSettings(
        (archive,),
        out=tmp_path / "r.parquet",
        model=tiny_bundle.path,
        cache_dir=own_cache,
        batch_size=1,
        threads=1,
    )
    scan, path = Scan(settings), tmp_path / "m.prom"
    metrics = MetricsFile(path, settings)
    assert "scan_rows_done" not in gauges(path)
    seen: list[float] = []

    def look(progress: Any) -> None:
        """Wait until the file tells of this chunk."""
        until = time.monotonic() + PATIENCE_S
        while gauges(path).get("scan_rows_scanned") != {"": progress.done} and time.monotonic() < until:
            time.sleep(0.01)
        found = gauges(path)
        assert found["scan_running"] == {"": 1}
        assert "scan_exit_code" not in found
        seen.append(found["scan_rows_scanned"][""])

    with metrics.follow(lambda: scan.progress):
        summary = scan.run(look)
    assert seen[-1] == 8
    assert seen[0] < 8
    metrics.end(summary.exit_code, summary)
    assert gauges(path)["scan_running"] == {"": 0}
    assert gauges(path)["scan_rows_failed"] == {"": 1}


def test_a_disk_that_takes_no_metrics_stops_no_scan(
    archive: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "folder").mkdir()
    metrics = MetricsFile(tmp_path / "folder" / "m.prom", ScanSettings((archive,), out="r.parquet"))
    shutil.rmtree(tmp_path / "folder")
    with caplog.at_level(logging.WARNING):
        metrics.end(0, None)
        metrics.end(0, None)
    assert len(caplog.messages) == 1
    assert "m.prom cannot be written: No such file or directory" in caplog.messages[0]


@pytest.mark.parametrize(
    ("name", "said"), [("absent/m.prom", "cannot be written: No such file"), ("m.txt", "ends in .prom")]
)
def test_metrics_that_nobody_would_read_are_refused(scan: Run, tmp_path: Path, name: str, said: str) -> None:
    ran = scan("--out", "r.parquet", "--metrics", name)
    assert (ran.returncode, ran.stdout) == (2, "")
    assert said in ran.stderr
    assert {path.name for path in tmp_path.iterdir()} == {"archive"}


KILLED = """
import os, signal, sys, threading, time
from pathlib import Path
from gbad_batch.engine.commands.metrics import MetricsFile
from gbad_batch.engine.settings import ScanSettings
metrics = MetricsFile(Path(sys.argv[1]), ScanSettings(("/archive",), out="/r.parquet"))

def die():
    time.sleep(float(sys.argv[2]))
    os.kill(os.getpid(), signal.SIGKILL)

threading.Thread(target=die).start()
print("begun", flush=True)
while True:
    metrics._write()
"""


@pytest.mark.parametrize("seconds", [0.003, 0.02, 0.07])
def test_a_kill_leaves_metrics_whole(tmp_path: Path, seconds: float) -> None:
    words = [sys.executable, "-c", KILLED, str(tmp_path / "m.prom"), str(seconds)]
    ran = subprocess.run(words, capture_output=True, text=True)
    assert ran.returncode == -9, ran.stderr
    assert gauges(tmp_path / "m.prom")["scan_running"] == {"": 1}
    MetricsFile(tmp_path / "m.prom", ScanSettings(("/archive",), out="/r.parquet")).end(0, None)
    assert [path.name for path in tmp_path.iterdir()] == ["m.prom"]  # also what the kill left aside


# --- logs ---


def test_each_line_of_the_log_is_one_json_object(scan: Run, archive: Path) -> None:
    (archive / "odd\x1b\udcff\u202e.png").write_bytes(b"x")
    ran = scan("--out", "r.parquet", "--log-format", "json", "--log-level", "debug")
    again = scan("--out", "r.parquet", "--log-format", "json")
    assert (ran.returncode, again.returncode) == (3, 2)
    lines = [json.loads(line) for line in (ran.stderr + again.stderr).splitlines()]
    for line in lines:
        assert line.keys() == {"time", "level", "message", "fields"}
        age = datetime.now(UTC) - datetime.fromisoformat(line["time"])
        assert -1 < age.total_seconds() < PATIENCE_S
        assert line["fields"]["logger"].startswith("gbad_batch")
    assert {"debug", "info", "error"} <= {line["level"] for line in lines}
    assert lines[-1]["level"] == "error"
    assert lines[-1]["fields"]["exit_code"] == 2
    assert "is finished: name another output" in lines[-1]["message"]
    assert any("durable" in line["message"] for line in lines)
    assert (ran.stderr + again.stderr).isascii()


def test_progress_in_json_has_its_figures(capsys: pytest.CaptureFixture[str], monkeypatch: Any) -> None:
    from gbad_batch.engine.commands import console
    from gbad_batch.engine.workers.progress import Progress

    monkeypatch.setattr(console, "LINE_EVERY_S", 0.0)
    monkeypatch.setattr(logging.getLogger(), "handlers", [console.LogLines(as_json=True)])
    logging.getLogger().setLevel("INFO")
    progress = Progress()
    progress.done, progress.total, progress.failed = 3, 9, 1
    with console.progress_shown(quiet=False) as watch:
        watch(progress)
    line = json.loads(capsys.readouterr().err)
    assert line["message"].startswith("3 of 9 images, ")
    assert {**line["fields"], "images_per_second": 0, "seconds_left": 0, "logger": ""} == {
        "logger": "",
        "done": 3,
        "total": 9,
        "images_per_second": 0,
        "failed": 1,
        "alarms": 0,
        "seconds_left": 0,
    }


def test_settings_that_are_refused_are_told_in_json_too(scan: Run) -> None:
    ran = scan("--out", "r.parquet", "--pfa", "2", "--log-format", "json")
    (line,) = ran.stderr.splitlines()
    assert json.loads(line)["fields"] == {"logger": "gbad_batch", "exit_code": 2}


# --- disks ---


SAME = {"sources": ["/archive"]}


def rows(start: int, stop: int) -> list[Row]:
    return [Row(f"/archive/bag{i}.jpg", bytes=i, mtime=i, status="empty") for i in range(start, stop)]


def write(session: Session, some: list[Row]) -> None:
    """List and write rows, as a scan does, and make them durable."""
    new = [row for row in some if session.index.claim(key_of(row), row.kind) == "new"]
    session.write(to_batch(new, results_schema()))
    session.flush()


def test_a_night_that_the_disk_cannot_hold_is_refused_before_it_begins(tmp_path: Path) -> None:
    out = tmp_path / "r.parquet"
    with open_results(ScanSettings(out=out), SAME, {}) as session:
        write(session, rows(0, 9))
        session.finish()
    content = out.read_bytes()
    with out.open("wb") as file:  # results as large as no disk here, and mostly a hole
        file.seek(10 * 10**12)
        file.write(content)
    said = rf"the results at {out} need at least 20\.0 TB, and the disk of {tmp_path} has [\d.]+ [kMGT]B free"
    with pytest.raises(Refused, match=said):
        open_results(ScanSettings(out=out, update=True), SAME, {})
    assert [path.name for path in tmp_path.iterdir()] == ["r.parquet"]
    assert out.stat().st_size == 10 * 10**12 + len(content)


def test_a_disk_that_fills_while_scanning_is_told_in_time(
    small_disk: Path, caplog: pytest.LogCaptureFixture
) -> None:
    settings = ScanSettings(out=small_disk / "r.parquet")
    with caplog.at_level(logging.WARNING), open_results(settings, SAME, {}) as session:
        write(session, rows(0, 9))
        assert caplog.text == ""
        room = os.statvfs(small_disk)
        (small_disk / "ballast").write_bytes(bytes(room.f_bavail * room.f_frsize - 18_000))
        write(session, rows(9, 12))
        assert "beside its parts when the scan ends, and the disk has" in caplog.text
        with pytest.raises(Stopped, match="No space left on device"):
            session.finish()
    (small_disk / "ballast").unlink()
    with open_results(settings, SAME, {}) as session:
        write(session, rows(0, 12))
        assert session.finish().rows == 12


def test_the_dry_run_tells_the_disk_that_is_needed_and_free(scan: Run) -> None:
    found = json.loads(scan("--out", "r.parquet", "--dry-run", "--json").stdout)
    assert found["disk_bytes"] == estimated_bytes(8, is_folder=False, x_size=None) == 8 * 600
    assert found["disk_free_bytes"] > 0
    assert (
        Estimate(disk_bytes=4800, disk_free_bytes=9000)
        .text()
        .endswith("about 4.8 kB of disk for the results, 9.0 kB free")
    )
    assert estimated_bytes(1, is_folder=True, x_size=1024) == 300 + 2048


@pytest.mark.parametrize(
    ("count", "text"), [(0, "0.0 kB"), (4800, "4.8 kB"), (2_500_000, "2.5 MB"), (3 * 10**13, "30.0 TB")]
)
def test_sizes_are_readable(count: int, text: str) -> None:
    assert disk_size(count) == text


# --- units, dashboard, alerts ---


def unit(name: str) -> str:
    return (FILES / name).read_text(encoding="utf-8")


def test_systemd_accepts_the_units(tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not here")
    for name in ("gbad-batch.service", "gbad-batch.timer"):
        text = unit(name).replace("/opt/gbad-batch/.venv/bin/gbad-batch", COMMAND)
        (tmp_path / name).write_text(text)
    words = ["systemd-analyze", "verify", "--man=no", *map(str, sorted(tmp_path.iterdir()))]
    ran = subprocess.run(words, capture_output=True, text=True)
    ours = [line for line in ran.stderr.splitlines() if "gbad-batch" in line]
    assert (ran.returncode, ours) == (0, [])


def test_the_unit_runs_the_command_and_takes_failed_images_for_success() -> None:
    service = unit("gbad-batch.service")
    (line,) = re.findall(r"^ExecStart=\S+/gbad-batch scan (.+)$", service, re.MULTILINE)
    given = main.commands["scan"].make_context("scan", shlex.split(line)).params
    assert given["update"]
    assert given["log_format"] == "json"
    assert f"SuccessExitStatus={Summary(out='', failed={'truncated': 1}).exit_code}\n" in service
    assert f"RestartPreventExitStatus={Refused.exit_code} 4\n" in service
    assert str(given["metrics"].parent) in PAGE  # the folder that node_exporter is told


def test_the_line_for_cron_parses() -> None:
    ((line,),) = [block.splitlines() for block in re.findall(r"```crontab\n(.*?)```", PAGE, re.DOTALL)]
    words = shlex.split(line.split("gbad-batch scan", 1)[1].split(" >>")[0])
    assert main.commands["scan"].make_context("scan", words).params["update"]


def names_in(text: str) -> set[str]:
    """Metrics of ours that expressions name."""
    return set(re.findall(r"\bgbad_batch_(\w+)", text))


def test_dashboard_alerts_and_page_name_what_a_scan_writes() -> None:
    board = json.loads(unit("grafana.json"))
    asked = [target["expr"] for panel in board["panels"] for target in panel["targets"]]
    assert len(asked) > 10
    assert all(names_in(expression) for expression in asked)
    assert names_in(" ".join(asked)) | names_in(json.dumps(board["templating"])) <= METRICS.keys()
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
    rules = [rule for group in yaml.safe_load(unit("alerts.yml"))["groups"] for rule in group["rules"]]
    assert len(rules) == 5
    for rule in rules:
        assert names_in(rule["expr"])
        assert names_in(rule["expr"]) <= METRICS.keys()
    assert set(re.findall(r"`((?:scan|results)_\w+)`", PAGE)) >= METRICS.keys()
    for label in re.findall(r"{{\s*(?:\$labels\.)?(\w+)\s*}}", json.dumps(board) + unit("alerts.yml")):
        assert label in {"results", *(label for label, _ in METRICS.values())}


def test_the_log_line_of_the_page_is_one() -> None:
    (line,) = re.findall(r"```json\n(.*?)```", PAGE, re.DOTALL)
    assert json.loads(line).keys() == {"time", "level", "message", "fields"}


def test_the_page_explains_every_exit_code() -> None:
    table = PAGE.partition("## Tuesday")[2].partition("## Wednesday")[0]
    codes = {
        int(code)
        for codes in re.findall(r"^\| ([\d, ]+) \|", table, re.MULTILINE)
        for code in codes.split(",")
    }
    assert codes == {0, 1, 2, 3, 4, 130, 143}
