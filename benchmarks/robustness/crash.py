"""Kills scans with SIGKILL at random moments and at each step of the finish, and counts what was lost.

The victim is the command's own code: a guarded scan, parent and child. Reads are counted in a file that
survives; the part interval is shortened to a second, so that kills fall on many parts.
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
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from gbad_batch.engine.plan import MOST_STREAMS
from gbad_batch.engine.scan import SCORED
from gbad_batch.engine.settings import BATCH_SIZES
from gbad_batch.engine.system.machine import usable_cores

from ..archives import bags, linked
from ..report import Report
from .crash_victim import PART_SECONDS

IMAGES = 800
BATCH_SIZE = BATCH_SIZES["cpu"]
CORES = usable_cores()
# batches decoded ahead (2), gathered (3), in streams or before them, scored; an image of each thread
QUEUE = (2 + 3 + 2 * min(CORES, MOST_STREAMS) + 2 + SCORED + 2) * BATCH_SIZE + CORES


def options(parser: argparse.ArgumentParser) -> None:
    """Declare how many kills, and the luck of their moments."""
    parser.add_argument("--kills", type=int, default=20, metavar="N", help="kills at random moments")
    parser.add_argument("--seed", type=int, default=0, metavar="S", help="of the moments")


def run(arguments: argparse.Namespace) -> Report:
    """Compare the rows of scans that were killed with those of one that was not."""
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        archive = linked(root / "archive", bags(root / "bags", 40), IMAGES)
        began = time.monotonic()
        _scan(archive, root / "plain.parquet").wait()
        wanted, seconds = _rows(root / "plain.parquet"), time.monotonic() - began
        trial = Trial(archive, root, seconds, random.Random(arguments.seed))
        trial.kill_at_random(arguments.kills)
        trial.kill_at_each_step()
    report = Report("Scans that were killed, against one that was not")
    report.notes.append(
        f"{trial.scans} scans of {IMAGES} images; parts of {PART_SECONDS:g} s; one scan takes {seconds:.1f} s"
    )
    report.add("kills", trial.kills, at_least=arguments.kills)
    report.add("kills_at_steps", trial.kills_at_steps, at_least=4)
    lost = sum((wanted - rows).total() for rows in trial.found)
    report.add("rows_lost", lost, at_most=0)
    report.add("rows_doubled", sum((rows - wanted).total() for rows in trial.found), at_most=0)
    a_part = PART_SECONDS * IMAGES / seconds + BATCH_SIZE
    report.add(
        "images_reread", trial.reads - trial.scans * IMAGES, "images", at_most=trial.kills * (a_part + QUEUE)
    )
    return report


class Trial:
    """Scans that are killed and started again until they end; counts what came of it."""

    def __init__(self, archive: Path, root: Path, seconds: float, luck: random.Random):
        self.archive, self.root, self.seconds, self.luck = archive, root, seconds, luck
        self.kills = self.kills_at_steps = self.scans = self.reads = 0
        self.found: list[Counter[Any]] = []

    def kill_at_random(self, kills: int) -> None:
        """Kill parent or child at random moments, over as many scans as it takes."""
        while self.kills < kills:
            out = self.root / f"random{self.scans}.parquet"
            while True:
                counter = self.root / "reads"
                process = _scan(self.archive, out, counter)
                is_killed = self._strike(process) if self.kills < kills else process.wait() != 0
                self.reads += _count(counter)
                if not is_killed:
                    break
                self.kills += 1
            self._take(out)

    def kill_at_each_step(self) -> None:
        """Kill the scan behind each step of its finish."""
        step = 0
        while True:
            out = self.root / f"step{step}.parquet"
            counter = self.root / "reads"
            killed = _scan(self.archive, out, counter, step).wait() != 0
            self.reads += _count(counter)
            if not killed:
                self._take(out)
                return
            self.kills += 1
            self.kills_at_steps += 1
            again = _scan(self.archive, out, counter).wait()
            self.reads += _count(counter)
            if again not in (0, 2):  # 2: nothing was left to do
                raise RuntimeError(f"the scan did not go on behind step {step}: exit code {again}")
            self._take(out)
            step += 1

    def _strike(self, process: "subprocess.Popen[bytes]") -> bool:
        """Wait for a random moment, then kill the parent or its child; returns whether it was in time."""
        time.sleep(self.luck.uniform(0.3, max(1.0, 0.6 * self.seconds)))
        victims = [process.pid, *_children(process.pid)]
        if process.poll() is None:
            os.kill(self.luck.choice(victims), signal.SIGKILL)
        return process.wait() != 0

    def _take(self, out: Path) -> None:
        self.scans += 1
        self.found.append(_rows(out))


def _children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except FileNotFoundError:
        return []


def _rows(out: Path) -> "Counter[Any]":
    """Rows as a multiset, every column."""
    return Counter(repr(sorted(row.items())) for row in pq.read_table(out).to_pylist())


def _count(counter: Path) -> int:
    value = int.from_bytes(counter.read_bytes()[:8], "little") if counter.exists() else 0
    counter.unlink(missing_ok=True)
    return value


def _scan(
    archive: Path, out: Path, counter: Path | None = None, step: int | None = None
) -> "subprocess.Popen[bytes]":
    words = [
        sys.executable,
        "-m",
        f"{__package__}.crash_victim",
        archive,
        out,
        counter or "-",
        "-" if step is None else step,
    ]
    return subprocess.Popen(list(map(str, words)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
