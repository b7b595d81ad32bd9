"""Kills scans, and single workers of scans, with SIGKILL, and compares the rows with an undisturbed scan's.

With each number of workers, scans are killed at random moments and behind each step of the finish, and run
again until they end; then the workers of one scan are killed one after the other. The scan is the command's
own but for the networks: it scores an image by its pixels. Parts are shortened to a second, so that kills
fall on many of them.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from gbad_batch.engine.results.in_flight import PREFIX
from gbad_batch.engine.workers.chunk import CHUNK_SECONDS

from ..archives import linked, thumbnails
from ..report import Report
from ..stand_ins import IMAGE_SECONDS, READS
from .crash_victim import PART_SECONDS, THREADS

IMAGES = 800
SCAN_SECONDS = 2.0  # of one scan that is killed, start-up apart
WORKERS = (1, 2, 4)
WORKER_KILLS = 20  # in one scan
KILL_SECONDS = (0.1, 0.8)  # between the kills of single workers, at least
FINISH_STEPS = 4  # behind which a scan is killed, at least
# what a kill costs: the part that grows, and what the workers have or are dealt by then
REREAD_SECONDS = PART_SECONDS + 4 * CHUNK_SECONDS


def options(parser: argparse.ArgumentParser) -> None:
    """Declare how many kills, of how many workers, and the luck of their moments."""
    add = parser.add_argument
    add("--kills", type=int, default=20, metavar="N", help="of whole scans, with each number of workers")
    add("--worker-kills", type=int, default=WORKER_KILLS, metavar="N", help="of single workers in one scan")
    add("--workers", type=int, nargs="+", default=WORKERS, metavar="W", help="numbers of workers to try")
    add("--seed", type=int, default=0, metavar="S", help="of the moments")


def run(arguments: argparse.Namespace) -> Report:
    """Compare the rows of scans that were disturbed with those of one that was not."""
    report = Report("Scans that were killed, and scans whose workers were killed, against one that was not")
    trials: list[Trial] = []
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        archive = linked(root / "archive", thumbnails(root / "thumbnails", IMAGES), IMAGES)
        plain, began = Victim(archive, root / "plain.parquet", 1), time.monotonic()
        if plain.ended() != 0:
            raise RuntimeError("the undisturbed scan did not end with exit code 0")
        startup = time.monotonic() - began
        wanted = _rows(plain.out)
        for workers in arguments.workers:
            print(f"  {workers} workers ...", file=sys.stderr)
            luck = random.Random(arguments.seed + workers)
            trial = Trial(archive, root, workers, wanted, startup, luck)
            trial.kill_at_random(arguments.kills)
            trial.kill_at_each_step()
            trial.kill_workers(arguments.worker_kills)
            trials.append(trial)
    _add_figures(report, arguments, trials)
    return report


def _add_figures(report: Report, arguments: argparse.Namespace, trials: "list[Trial]") -> None:
    head = ["workers", "scans", "kills", "behind steps", "worker kills", "lost", "doubled", "out of order"]
    rows = [
        [trial.workers, trial.scans, trial.kills, trial.kills_at_steps, trial.worker_kills, *trial.faults()]
        for trial in trials
    ]
    report.tables.append([head, *(list(map(str, row)) for row in rows)])
    report.notes.append(f"scans of {IMAGES} images in parts of {PART_SECONDS:g} s")
    for trial in trials:
        report.add(f"kills_{trial.workers}", trial.kills, at_least=arguments.kills + FINISH_STEPS)
        report.add(f"kills_at_steps_{trial.workers}", trial.kills_at_steps, at_least=FINISH_STEPS)
        report.add(f"worker_kills_{trial.workers}", trial.worker_kills, at_least=arguments.worker_kills)
    report.add("rows_lost", sum(trial.lost for trial in trials), at_most=0)
    report.add("rows_doubled", sum(trial.doubled for trial in trials), at_most=0)
    report.add("files_out_of_order", sum(trial.out_of_order for trial in trials), at_most=0)
    report.add("scans_failed", sum(trial.failed for trial in trials), at_most=0)
    most = sum(trial.kills for trial in trials) * IMAGES * min(1, REREAD_SECONDS / SCAN_SECONDS)
    report.add("images_reread", sum(trial.reread for trial in trials), "images", at_most=most)


@dataclass
class Victim:
    """A scan in a process of its own that may be killed and started again."""

    archive: Path
    out: Path
    workers: int
    seconds: float = 0.0  # that it should take, start-up apart

    @property
    def reads(self) -> int:
        """Count the images that all runs have read."""
        counted = self._counter
        return counted.stat().st_size if counted.exists() else 0

    def start(self, step: int | None = None) -> "subprocess.Popen[bytes]":
        """Start the scan; with a step it kills itself behind that step of its finish."""
        words = [sys.executable, "-m", f"{__package__}.crash_victim", self.archive, self.out, self.workers]
        words += ["-" if step is None else step]
        pace = self.seconds / IMAGES * self.workers * THREADS
        environment = os.environ | {READS: str(self._counter), IMAGE_SECONDS: str(pace)}
        return subprocess.Popen(
            list(map(str, words)), env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def ended(self, step: int | None = None) -> int:
        """Run the scan to its end; returns the exit code."""
        return self.start(step).wait()

    @property
    def _counter(self) -> Path:
        return self.out.with_suffix(".reads")


@dataclass
class Trial:
    """Scans with one number of workers that are disturbed until they end; counts what came of it."""

    archive: Path
    root: Path
    workers: int
    wanted: list[str]  # rows of the undisturbed scan, in order
    startup: float  # seconds of a scan besides SCAN_SECONDS
    luck: random.Random
    kills: int = 0
    kills_at_steps: int = 0
    worker_kills: int = 0
    scans: int = 0
    failed: int = 0  # scans that ended with another exit code than 0
    lost: int = 0
    doubled: int = 0
    out_of_order: int = 0  # finished files
    reread: int = 0

    def faults(self) -> tuple[int, int, int]:
        """Give the counts of what must not be."""
        return self.lost, self.doubled, self.out_of_order

    def kill_at_random(self, kills: int) -> None:
        """Kill the scan at random moments, over as many scans as it takes."""
        while self.kills < kills:
            victim = self._victim("random", SCAN_SECONDS)
            while self.kills < kills and self._kill(victim):
                self.kills += 1
            self._take(victim, 0 if victim.out.exists() else victim.ended())

    def kill_at_each_step(self) -> None:
        """Kill the scan behind each step of its finish, and have it done."""
        step = 0
        while True:
            victim = self._victim(f"step{step}")
            if victim.ended(step) == 0:
                self._take(victim, 0)
                return
            self.kills += 1
            self.kills_at_steps += 1
            code = victim.ended()
            self._take(victim, 0 if code == 2 else code)  # 2: nothing was left to do
            step += 1

    def kill_workers(self, kills: int) -> None:
        """Kill single workers of one scan, one after the other, while they have images."""
        if not kills:
            return
        victim = self._victim("workers", kills * sum(KILL_SECONDS))
        process = victim.start()
        while self.worker_kills < kills and process.poll() is None:
            time.sleep(self.luck.uniform(*KILL_SECONDS))
            if workers := _busy_workers(process.pid):
                os.kill(self.luck.choice(workers), signal.SIGKILL)
                self.worker_kills += 1
        self._take(victim, process.wait(), count_reads=False)

    def _victim(self, name: str, seconds: float = 0.0) -> Victim:
        out = self.root / f"{self.workers}-{name}-{self.scans}.parquet"
        return Victim(self.archive, out, self.workers, seconds)

    def _kill(self, victim: Victim) -> bool:
        """Start the scan and kill it at a random moment; returns whether that was in time."""
        process = victim.start()
        time.sleep(self.luck.uniform(0, self.startup + SCAN_SECONDS))
        process.kill()
        return process.wait() == -signal.SIGKILL

    def _take(self, victim: Victim, code: int, *, count_reads: bool = True) -> None:
        """Compare the rows of a scan that has ended."""
        self.scans += 1
        self.failed += code != 0
        self.reread += victim.reads - IMAGES if count_reads else 0
        rows = _rows(victim.out) if victim.out.exists() else []
        wanted, found = Counter(self.wanted), Counter(rows)
        self.lost += (wanted - found).total()
        self.doubled += (found - wanted).total()
        self.out_of_order += sorted(rows) == sorted(self.wanted) and rows != self.wanted


def _busy_workers(pid: int) -> list[int]:
    """Give the workers of a scan that have begun: their file of images in decoders is in their memory."""
    busy = []
    for path in Path("/proc").glob(f"{pid}/task/{pid}/children"):
        for child in path.read_text().split():
            with suppress(OSError):
                busy += [int(child)] if PREFIX in Path(f"/proc/{child}/maps").read_text() else []
    return busy


def _rows(out: Path) -> list[str]:
    """Read the rows in their order, every column but when it was scanned."""
    return [repr(sorted(row.items())) for row in pq.read_table(out).drop_columns("scanned_at").to_pylist()]
