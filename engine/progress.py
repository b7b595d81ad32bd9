"""What a scan has done so far, and where its time went."""

import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from .row import Row

T = TypeVar("T")


class Progress:
    """Counts and clocks of one run; written by the stages, read by progress bars and the summary."""

    def __init__(self) -> None:
        self.skipped = 0  # candidates met that an earlier run has finished
        self.done = 0  # rows of this run
        self.failed = 0  # of these, not ok
        self.alarms = 0
        self.seconds: defaultdict[str, float] = defaultdict(float)  # busy, by stage, over all threads
        self.cpu_seconds: defaultdict[str, float] = defaultdict(float)  # of the stages' own threads, likewise
        self.startup_seconds = 0.0
        self.started = time.monotonic()
        self._cpu_at_start = 0.0
        self._lock = threading.Lock()

    def start(self) -> None:
        """Say that everything is open: what came before was start-up."""
        now = time.monotonic()
        self.startup_seconds, self.started = now - self.started, now
        self._cpu_at_start = time.process_time()

    def elapsed(self) -> float:
        """Seconds since the start, start-up apart."""
        return time.monotonic() - self.started

    def elapsed_cpu(self) -> float:
        """CPU seconds of this process since the start: all stages, the engine's own threads, the rest."""
        return time.process_time() - self._cpu_at_start

    def count(self, rows: list[Row]) -> None:
        """Count finished rows."""
        self.done += len(rows)
        self.failed += sum(row.status != "ok" for row in rows)
        self.alarms += sum(row.anomalous is True for row in rows)

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the time that the block takes, and the CPU time of this thread in it, to a stage."""
        began, cpu_began = time.perf_counter(), time.thread_time()
        try:
            yield
        finally:
            spent, cpu_spent = time.perf_counter() - began, time.thread_time() - cpu_began
            with self._lock:
                self.seconds[stage] += spent
                self.cpu_seconds[stage] += cpu_spent

    def timed_each(self, stage: str, items: Iterable[T]) -> Iterator[T]:
        """Time the making of items, not what their consumer does with them."""
        iterator = iter(items)
        while True:
            with self.timed(stage):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item
