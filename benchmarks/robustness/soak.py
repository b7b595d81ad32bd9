"""Disturbs scans for hours, and feeds readers mutants: no row may be lost or doubled, and nothing may hang.

Rounds of the parts are drawn so that each comes as far as the others towards what two hours should reach. The
counts are kept in a file: a soak that was stopped goes on where it was if it is run again with the same seed.
docs/soak.md says what each part does.
"""

import argparse
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from gbad_batch.engine.errors import Refused
from gbad_batch.engine.system.machine import cpu_model

from ..archives import default_work_dir
from ..report import ROOT, Report, commit, machine, versions
from .soaking.batches import batch, judge_again
from .soaking.faults import faults
from .soaking.kills import kills
from .soaking.machine import MACHINE
from .soaking.moving import moving_files
from .soaking.place import Place
from .soaking.tally import Record, Tally

KEPT = ROOT / "benchmarks" / "results" / "soak.json"
Step = Callable[[Place, int], Tally]

# each part with the rounds that two hours should hold; the share of rounds, not of time
PARTS: dict[str, tuple[Step, int]] = {
    "kills": (kills, 180),
    "faults": (faults, 420),
    "images": (partial(batch, "images"), 40),
    "tars": (partial(batch, "tars"), 30),
    "states": (partial(batch, "states"), 30),
    "moving_files": (moving_files, 30),
    **{name: (step, 15) for name, step in MACHINE.items()},
}
LEAST = {"kills": 500, "faults": 2000, "mutants": 50_000, "tar_mutants": 10_000, "state_mutants": 10_000}
NONE = (
    "rows_lost",
    "rows_doubled",
    "rows_changed",
    "files_out_of_order",
    "tar_members_lost",
    "tar_members_behind_a_fault",
    "unhandled",
    "hangs",
    "crashes",
    "unwritten",
    "misread",
    "sockets_opened",
)
LONG_HOURS = 1.95  # from which the counts of a whole soak are asked for
MOST_MB = 2000
SAY_S = 60.0
STRIDE = 1_000_000  # between the rounds of two seeds


def options(parser: argparse.ArgumentParser) -> None:
    """Declare how long, which parts, and where."""
    add = parser.add_argument
    add("--hours", type=float, default=2.0, metavar="H", help="of this run")
    add("--rounds", type=int, metavar="N", help="of each part in all; end when they are done")
    add("--seed", type=int, default=0, metavar="S", help="of all luck; a stopped soak goes on with its seed")
    add("--parts", metavar="A,B", help=f"only these: {', '.join(PARTS)}")
    add("--jobs", type=int, default=2, metavar="N", help="rounds at a time")
    add("--polite", action="store_true", help="on one core, with low priority")
    add("--work", type=Path, metavar="DIR", help="folder for scratch files")
    add("--kept", type=Path, default=KEPT, metavar="FILE", help="where the counts are kept")


def run(arguments: argparse.Namespace) -> Report:
    """Soak, and report the counts of all runs with this seed."""
    names = arguments.parts.split(",") if arguments.parts else list(PARTS)
    if unknown := [name for name in names if name not in PARTS]:
        raise Refused(f"no part is called {unknown[0]!r}: choose from {', '.join(PARTS)}")
    if arguments.polite:
        os.nice(15)
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    record = Record.open(arguments.kept, arguments.seed)
    root = (arguments.work or default_work_dir()) / f"soak-{arguments.seed}"
    place = Place.prepare(root)
    judge_again(record.tally, place)
    soak = Soak(place, record, names, time.monotonic() + arguments.hours * 3600, arguments.rounds)
    with ThreadPoolExecutor(arguments.jobs) as pool:  # rounds wait as much as they compute
        try:
            for done in [pool.submit(soak.work) for _ in range(arguments.jobs)]:
                done.result()
        finally:
            soak.until = 0.0  # Ctrl-C: the rounds that run are the last
    shutil.rmtree(root)
    return _report(record, soak.left_out)


@dataclass
class Soak:
    """Draws rounds and counts what comes of them, from several threads."""

    place: Place
    record: Record
    names: list[str]
    until: float  # monotonic seconds
    rounds: int | None = None  # of each part, at most
    left_out: dict[str, str] = field(default_factory=dict)  # parts that cannot run here, and why
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _saved: float = field(default_factory=time.monotonic)
    _said: float = field(default_factory=time.monotonic)

    def work(self) -> None:
        """Run one round after the other until the time is over."""
        while time.monotonic() < self.until and (drawn := self._draw()):
            name, number = drawn
            began = time.monotonic()
            try:
                with self.place.round(f"{name}-{number}") as place:
                    tally = PARTS[name][0](place, self.record.seed * STRIDE + number)
            except Refused as refused:
                self.left_out[name] = str(refused)
                continue
            tally.seconds[name] += time.monotonic() - began
            self._take(tally)

    def _draw(self) -> tuple[str, int] | None:
        """Choose the part that is furthest behind; None where no part can or shall run."""
        counts = self.record.tally.counts
        with self._lock:
            able = [
                name
                for name in self.names
                if name not in self.left_out
                and (self.rounds is None or counts[f"rounds of {name}"] < self.rounds)
            ]
            if not able:
                return None
            name = min(able, key=lambda name: counts[f"rounds of {name}"] / PARTS[name][1])
            number = counts[f"rounds of {name}"]
            counts[f"rounds of {name}"] += 1
            self.record.rounds += 1
        return name, number

    def _take(self, tally: Tally) -> None:
        """Add what a round counted, keep it, and tidy up; now and then say how far it is."""
        with self._lock:
            now = time.monotonic()
            self.record.tally.add(tally)
            self.record.hours += (now - self._saved) / 3600
            self._saved = now
            self.record.save(_facts())
            for finding in tally.findings:
                print(f"  {finding}", file=sys.stderr, flush=True)
            if now - self._said > SAY_S:
                self._said = now
                counts = self.record.tally.counts
                said = ", ".join(f"{name} {counts[name]}" for name in (*LEAST, *NONE) if counts[name])
                print(f"  {self.record.hours:.2f} h: {said}", file=sys.stderr, flush=True)


def _facts() -> dict[str, object]:
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "cpu": cpu_model(),
        "machine": machine(),
        "versions": versions(),
    }


def _report(record: Record, left_out: dict[str, str]) -> Report:
    report = Report(f"A soak of {record.hours:.2f} hours in all, seed {record.seed}, {record.rounds} rounds")
    counts, whole = record.tally.counts, record.hours >= LONG_HOURS
    for name, least in LEAST.items():
        report.add(name, counts[name], at_least=least if whole else None)
    for name in NONE:  # those of parts that did not run are 0, too
        report.add(name, counts[name], at_most=0)
    report.add("peak_mb", record.tally.peak_mb, "MB", at_most=MOST_MB)
    report.not_run |= left_out
    seconds = record.tally.seconds
    report.tables.append(
        [
            ["part", "rounds", "seconds"],
            *([name, str(counts[f"rounds of {name}"]), f"{seconds[name]:.0f}"] for name in PARTS),
        ]
    )
    report.notes += [str(finding) for finding in record.tally.findings[:20]]
    return report
