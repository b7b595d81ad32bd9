"""The parent of a scan: what it restarts, what it gives up, what it hears; each in a process of its own."""

import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from processes import PATIENCE_S

from gbad_batch.engine.supervisor import MOST_LOSSES

PRELUDE = """
import os, resource, signal, sys, time
from pathlib import Path
from gbad_batch.engine.commands.cli import main
from gbad_batch.engine.results.journal import Journal
from gbad_batch.engine.supervisor import supervise
journal, runs = Path(sys.argv[1]) / "journal", Path(sys.argv[1]) / "runs"
resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
def begun():
    with runs.open("a") as file:
        file.write(f"{os.getpid()}\\n")
    return len(runs.read_text().split())
"""


@pytest.fixture
def supervised(tmp_path: Path) -> Callable[..., Any]:
    """Start `supervise` on a scan that is given as the body of a function."""

    def start(body: str, timeout_s: float = 60, feed: bool = False, **options: Any) -> subprocess.Popen[str]:
        lines = "".join(f"\n    {line}" for line in body.strip().splitlines())
        script = f"{PRELUDE}\ndef scan():{lines}\nsys.exit(supervise(scan, journal, {timeout_s}, {feed}))"
        return subprocess.Popen(
            [sys.executable, "-c", script, str(tmp_path)],
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            **options,
        )

    return start


def ended(process: subprocess.Popen[str], stdin: str | None = None) -> tuple[int, str]:
    _, stderr = process.communicate(stdin, timeout=PATIENCE_S)
    return process.returncode, stderr


def runs(folder: Path) -> int:
    return len((folder / "runs").read_text().split()) if (folder / "runs").exists() else 0


def wait_for_runs(folder: Path, number: int) -> None:
    end = time.monotonic() + 60
    while runs(folder) < number and time.monotonic() < end:
        time.sleep(0.02)
    assert runs(folder) == number


def test_the_code_of_the_scan_is_the_code_of_the_command(supervised: Any, tmp_path: Path) -> None:
    assert ended(supervised("begun()\nreturn 3")) == (3, "")
    assert runs(tmp_path) == 1


def test_a_code_that_is_not_the_scans_own_is_told_and_means_stopped(supervised: Any) -> None:
    code, stderr = ended(supervised("os._exit(127)  # as the C library does where it finds no memory"))
    assert code == 1
    assert "code 127" in stderr


def test_a_crash_outside_of_decoders_is_told_once_whatever_an_earlier_journal_says(
    supervised: Any, tmp_path: Path
) -> None:
    """Else a crash at the start, before the journal is taken over, would be started again for ever."""
    left = "j = Journal(journal); j.begin(0, b'k' * 16); os._exit(4)"
    assert ended(supervised(left))[0] == 4
    code, told = ended(supervised("begun()\nos.kill(os.getpid(), signal.SIGSEGV)"))
    assert code == 1
    assert told.count("SIGSEGV") == 1
    assert runs(tmp_path) == 1


def test_a_crash_of_a_decoder_starts_the_scan_again(supervised: Any, tmp_path: Path) -> None:
    crash = """
if begun() < 3:
    Journal(journal).begin(0, b"k" * 16)
    os.kill(os.getpid(), signal.SIGABRT)
time.sleep(1)  # until the parent watches
print(len(os.listdir("/proc/self/fd")), len(os.listdir(f"/proc/{os.getppid()}/fd")), file=sys.stderr)
return 0
"""
    code, told = ended(supervised(crash))
    assert code == 0
    assert runs(tmp_path) == 3
    assert told.count("SIGABRT") == 2
    plain = ended(supervised(crash))[1]  # a fourth run, with no crash before it
    assert told.splitlines()[-1] == plain.splitlines()[-1], "no descriptor is left over by a restart"


LOSS = """
if begun() <= {losses}:
    with Journal(journal).decoding(b"k" * 16, b"l" * 16):
        raise DeviceLost("the GPU failed")
return 0
"""


def lost(body: str) -> str:
    """Write a scan that ends as the guarded one does where its GPU is lost."""
    lines = "".join(f"\n        {line}" for line in body.strip().splitlines())
    return (
        "from gbad_batch.engine.errors import DeviceLost\n"
        "from gbad_batch.engine.supervisor import LOST_CODE\n"
        f"def scan():{lines}\n"
        "try: return scan()\n"
        "except DeviceLost: return LOST_CODE"
    )


def test_a_lost_gpu_starts_the_scan_again_with_its_images_set_apart(supervised: Any, tmp_path: Path) -> None:
    code, told = ended(supervised(lost(LOSS.format(losses=2))))
    assert code == 0
    assert runs(tmp_path) == 3
    assert told.count("the loss of its GPU; going on, with the 2 images") == 2


def test_a_gpu_that_is_lost_again_and_again_ends_the_scan(supervised: Any, tmp_path: Path) -> None:
    code, told = ended(supervised(lost(LOSS.format(losses=99))))
    assert code == 1
    assert runs(tmp_path) == MOST_LOSSES + 1
    assert "run the same command to go on" in told


def test_a_gpu_that_is_lost_with_no_image_in_a_decoder_ends_the_scan(supervised: Any, tmp_path: Path) -> None:
    code, told = ended(
        supervised("from gbad_batch.engine.supervisor import LOST_CODE\nbegun()\nreturn LOST_CODE")
    )
    assert code == 1
    assert runs(tmp_path) == 1
    assert told.count("the loss of its GPU") == 1


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGRTMIN + 3])
def test_a_scan_that_is_killed_is_not_started_again(supervised: Any, tmp_path: Path, number: int) -> None:
    kill = f"begun()\nJournal(journal).begin(0, b'k' * 16)\nos.kill(os.getpid(), {int(number)})"
    code, told = ended(supervised(kill))
    assert code == 1
    assert "run the same command to go on" in told
    assert "Traceback" not in told
    assert runs(tmp_path) == 1


def test_an_error_that_nobody_expects_is_not_silent(supervised: Any) -> None:
    code, told = ended(supervised("raise ValueError('unheard of')"))
    assert code == 1
    assert "unheard of" in told


def test_a_scan_that_hangs_when_it_is_stopped_is_not_started_again(supervised: Any, tmp_path: Path) -> None:
    hang = """
signal.signal(signal.SIGINT, lambda *_: None)
Journal(journal).begin(0, b"k" * 16)
begun()
while True:
    time.sleep(1)
"""
    process = supervised(hang, timeout_s=1.5)
    wait_for_runs(tmp_path, 1)
    os.killpg(process.pid, signal.SIGINT)
    code, told = ended(process)
    assert code == 130
    assert "run the same command to go on" in told
    assert runs(tmp_path) == 1


def test_an_image_is_not_late_because_all_stood_still(supervised: Any, tmp_path: Path) -> None:
    """Ctrl-Z, then fg."""
    slow = """
j = Journal(journal)
j.begin(0, b"k" * 16)
begun()
time.sleep(1)
j.end(0)
return 0
"""
    process = supervised(slow, timeout_s=3)
    wait_for_runs(tmp_path, 1)
    os.killpg(process.pid, signal.SIGSTOP)
    time.sleep(4)
    os.killpg(process.pid, signal.SIGCONT)
    assert ended(process) == (0, "")
    assert runs(tmp_path) == 1


def test_a_list_that_cannot_be_kept_ends_with_a_sentence(tmp_path: Path) -> None:
    def small_files() -> None:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))

    line = [
        str(Path(sys.executable).with_name("gbad-batch")),
        "scan",
        "--files-from",
        "-",
        "--out",
        "r.parquet",
    ]
    done = subprocess.run(
        line, input="x\n" * 100_000, capture_output=True, text=True, cwd=tmp_path, preexec_fn=small_files
    )
    assert done.returncode == 1
    assert "TMPDIR" in done.stderr
    assert "Traceback" not in done.stderr
