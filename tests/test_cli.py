"""Commands in the foreground: whatever goes wrong is one sentence and an exit code, never a traceback."""

import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from in_process import run_here
from processes import PATIENCE_S

from gbad_batch.engine.bundle import Bundle

PROGRAM = str(Path(sys.executable).with_name("gbad-batch"))


def run(*arguments: str, cwd: Path, **options: Any) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        [PROGRAM, *arguments], cwd=cwd, stderr=subprocess.PIPE, text=True, timeout=PATIENCE_S, **options
    )


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["synth", "file/deep", "--count", "2"], 1),
        (["synth", "file", "--count", "2"], 2),
        (["synth", "full", "--count", "2"], 2),
        (["demo", "file", "--count", "2"], 1),
        (["synth", "x" * 300, "--count", "2"], 1),
        (["synth", "new", "--count", "0"], 2),
        (["synth", "new", "--seed", "-1"], 2),
        (["doctor", "--model", "absent"], 1),
        (["doctor", "--model", "file"], 1),
        (["doctor", "--model", "full"], 1),
        (["doctor", "--device", "bogus"], 1),
        (["doctor", "--cache-dir", "file", "--model", "TINY"], 0),
        (["tune", "--model", "absent"], 2),
        (["tune", "--images", "absent", "--model", "TINY"], 2),
        (["tune", "--cache-dir", "file"], 2),
        (["scan", "file", "--out", "/", "--model", "TINY"], 2),
        (["scan", "file", "--out", "r.parquet", "--hardware-share", "1.5"], 2),
        (["scan", "file", "--out", "r.parquet", "--workers", "0"], 2),
        (["scan", "file", "--out", "r.parquet", "--workers", "257"], 2),
        (["train", "absent", "--out", "bundle"], 2),
        (["train", "full", "--out", "bundle", "--backbone", "hf-hub:someone/else"], 2),
        (["train", "full", "--out", "full"], 2),
        (["train", "absent", "--out", "."], 2),
        (["train", "absent", "--out", "/"], 2),
        (["evaluate", "absent", "--labels", "file"], 2),
        (["evaluate", "file", "--labels", "file"], 2),
        (["evaluate", "full", "--labels", "file", "--out", "file"], 2),
        (["evaluate", "/", "--labels", "file"], 2),
    ],
)
def test_what_cannot_be_is_a_sentence(
    tmp_path: Path, tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int
) -> None:
    (tmp_path / "file").write_text("{")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "bundle.json").write_text("{")
    monkeypatch.chdir(tmp_path)
    found, _, said = run_here(*(tiny_bundle.path if each == "TINY" else each for each in arguments))
    assert found == code, said
    assert "Traceback" not in said
    assert said.count("\n") <= 4
    assert {path.name for path in tmp_path.iterdir()} == {"file", "full"}


@pytest.mark.parametrize(
    "arguments",
    [
        ["doctor", "--model", "TINY"],
        ["doctor", "--model", "TINY", "--json"],
        ["synth", "new", "--count", "2"],
        ["scan", "--help"],
    ],
)
def test_an_output_that_takes_nothing_is_told(
    tmp_path: Path, tiny_bundle: Bundle, arguments: list[str]
) -> None:
    words = [str(tiny_bundle.path) if each == "TINY" else each for each in arguments]
    with Path("/dev/full").open("w") as full:
        done = run(*words, cwd=tmp_path, stdout=full)
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "gbad-batch: the output cannot be written: No space left on device"


@pytest.mark.parametrize(
    ("command", "number", "code"), [("synth", signal.SIGINT, 130), ("demo", signal.SIGTERM, 143)]
)
def test_an_interrupt_is_its_code(tmp_path: Path, command: str, number: int, code: int) -> None:
    line = [PROGRAM, command, "new", "--count", "100000"]
    process = subprocess.Popen(
        line,
        cwd=tmp_path,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        # a shell starts its background jobs with SIGINT ignored, and children inherit that
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not list(tmp_path.rglob("*.jpg")) and process.poll() is None:
        time.sleep(0.02)
    process.send_signal(number)
    stdout, stderr = process.communicate(timeout=PATIENCE_S)
    assert (process.returncode, stdout) == (code, "")
    *progress, told = stderr.splitlines()
    assert all(line.startswith("gbad-batch: synth: ") for line in progress)
    assert told == "gbad-batch: stopped on request"


@pytest.mark.parametrize("option", ["--optimizer", "--mixed", "--pos-weight"])
def test_training_takes_no_option_that_it_no_longer_has(tmp_path: Path, option: str) -> None:
    code, stdout, stderr = run_here("train", tmp_path, "--out", tmp_path / "bundle", option)
    assert (code, stdout) == (2, "")
    assert re.search(rf"No such option:? '?{option}\b", stderr)
    assert list(tmp_path.iterdir()) == []


def test_an_error_that_nobody_thought_of_is_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from gbad_batch.engine import Scan, ScanSettings
    from gbad_batch.engine.commands.guarded import guarded_scan

    def run(*_: object) -> None:
        raise ZeroDivisionError("by\nnothing")

    monkeypatch.setattr(Scan, "run", run)
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    try:
        code = guarded_scan(ScanSettings(sources=(tmp_path,)), quiet=False, as_json=False)
    finally:
        signal.signal(signal.SIGINT, before[0])
        signal.signal(signal.SIGTERM, before[1])
    told = capsys.readouterr()
    assert (code, told.out) == (1, "")
    assert told.err == (
        "gbad-batch: the scan failed by a defect of this program (ZeroDivisionError: by nothing); "
        "finished rows are kept: please report this sentence\n"
    )
