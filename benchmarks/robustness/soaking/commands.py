"""Runs a command in a process of its own that can be disturbed, and judges how it ended."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from ...report import ROOT
from .tally import Tally

PATIENCE_S = 180.0  # without which nothing ends; only a hang takes longer
TICK_S = 0.01
PAUSE_S = 0.5  # between two looks: what is longer was a pause of this process
VICTIM = (sys.executable, "-m", f"{__package__}.victim")


class Patience:
    """Counts the seconds that this process has waited for something, without those in which it was paused."""

    def __init__(self, seconds: float):
        self._left = seconds
        self._looked = time.monotonic()

    @property
    def over(self) -> bool:
        """Look at the clock, and say whether it has been too long."""
        now = time.monotonic()
        self._left -= min(now - self._looked, PAUSE_S)
        self._looked = now
        return self._left < 0


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int  # negative: the signal
    said: str  # on standard error
    hung: bool
    peak_mb: float  # of its largest process, where its parent waited for it

    def judge(self, tally: Tally, *, codes: Sequence[int], step: str, seed: int) -> bool:
        """Count a hang, a crash, a traceback, another code, or no sentence; say if all is well."""
        tally.counts["scans"] += 1
        tally.peak_mb = max(tally.peak_mb, self.peak_mb)
        lines = [line for line in self.said.splitlines() if line.strip()]
        wrong = None
        if self.hung:
            wrong = "hangs", f"nothing ended within {PATIENCE_S:g} s: {self.said[-300:]}"
        elif "Traceback" in self.said or "defect of this program" in self.said:
            wrong = "unhandled", self.said[-600:]
        elif self.code not in codes:
            wrong = "unhandled", f"exit code {self.code}: {self.said[-500:]}"
        elif self.code in (1, 2) and not any(line.startswith("gbad-batch: ") for line in lines):
            wrong = "unhandled", f"exit code {self.code} without a sentence: {self.said[-300:]}"
        if wrong:
            tally.find(*wrong, step=step, seed=seed)
        return wrong is None


class Running:
    """A command that runs; `ended` waits for it."""

    def __init__(self, words: Sequence[str | Path], environment: Mapping[str, str] | None = None):
        self._said = tempfile.TemporaryFile()  # noqa: SIM115 - closed in `ended`
        self.process = subprocess.Popen(
            list(map(str, words)),
            cwd=ROOT,
            env=os.environ | (environment or {}),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._said,
            start_new_session=True,
        )
        self.pid = self.process.pid
        self._result: tuple[int, float] | None = None

    def poll(self) -> bool:
        """Say whether it has ended."""
        if self._result is None:
            pid, status, usage = os.wait4(self.pid, os.WNOHANG)
            if pid:
                self.process.returncode = os.waitstatus_to_exitcode(status)
                self._result = self.process.returncode, usage.ru_maxrss / 1000
        return self._result is not None

    def ended(self, patience: float = PATIENCE_S) -> Ended:
        """Wait for its end; after the patience it is killed, and is said to have hung."""
        waiting, hung = Patience(patience), False
        while not self.poll():
            if not hung and waiting.over:
                hung = True
                kill(family(self.pid))
            time.sleep(TICK_S)
        assert self._result is not None
        self._said.seek(0)
        said = self._said.read().decode(errors="replace")
        self._said.close()
        return Ended(self._result[0], said, hung, self._result[1])


def children(pid: int) -> list[int]:
    """Give the processes that any thread of one has started."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(OSError):
            found += map(int, task.read_text().split())
    return found


def family(pid: int) -> list[int]:
    """Give a process and all that come of it."""
    return [pid, *(other for child in children(pid) for other in family(child))]


def kill(pids: Sequence[int], number: int = signal.SIGKILL) -> int:
    """Send a signal to processes; returns how many of them were there."""
    sent = 0
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, number)
            sent += 1
    return sent
