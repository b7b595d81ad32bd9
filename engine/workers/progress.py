"""Progress of a scan: counts, and where the time went."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import TooManyFailures
from ..results import Session
from ..results.index import Index
from ..settings import LimitSettings
from .chunk import FinishedChunk

PERCENT_FROM = 1000  # images before a percentage of failures means something


class Progress:
    """Counts and clocks of one run; written by the coordinator, read by progress bars and the summary."""

    def __init__(self) -> None:
        self.total: int | None = None  # candidates in all, once everything is listed
        self.done = 0  # rows of this run
        self.failed = 0  # of these, rows whose status is not ok
        self.alarms = 0
        self.seconds: defaultdict[str, float] = defaultdict(float)  # busy, by stage, over all threads
        self.cpu_seconds: defaultdict[str, float] = defaultdict(
            float
        )  # of the threads that ran the stages, likewise
        self.workers_cpu_seconds = 0.0
        self.startup_seconds = 0.0
        self.started = time.monotonic()
        self._cpu_at_start = 0.0
        self._index: Index | None = None

    @property
    def skipped(self) -> int:
        """Candidates met that an earlier run has finished."""
        return self._index.skipped if self._index else 0

    def start(self, index: Index) -> None:
        """End the start-up: clocks count from here."""
        now = time.monotonic()
        self.startup_seconds, self.started = now - self.started, now
        self._cpu_at_start, self._index = time.process_time(), index

    def elapsed(self) -> float:
        """Return the seconds since `start`."""
        return time.monotonic() - self.started

    def elapsed_cpu(self) -> float:
        """Return the CPU seconds since `start` of this process and the workers, engines included."""
        return self.coordinator_cpu() + self.workers_cpu_seconds

    def coordinator_cpu(self) -> float:
        """Return the CPU seconds since `start` of this process: listing, dealing, writing."""
        return time.process_time() - self._cpu_at_start

    def count(self, chunk: FinishedChunk) -> None:
        """Add the counts and times of a finished chunk."""
        self.done += chunk.rows
        self.failed += chunk.failed
        self.alarms += chunk.alarms
        self.workers_cpu_seconds += chunk.process_seconds
        for stage, seconds in chunk.seconds.items():
            self.seconds[stage] += seconds
            self.cpu_seconds[stage] += chunk.cpu_seconds[stage]

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the time of the block, and this thread's CPU time in it, to a stage."""
        began, cpu_began = time.perf_counter(), time.thread_time()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - began
            self.cpu_seconds[stage] += time.thread_time() - cpu_began

    def check_failures(self, settings: LimitSettings, results: Session) -> None:
        """Raise TooManyFailures if more rows of all runs failed than `max_failures` allows."""
        if settings.failure_limit is None:
            return
        failed, done = self.failed + results.failed_before, self.done + results.index.finished
        bound, is_percentage = settings.failure_limit
        if is_percentage:
            bound = bound / 100 * done
        if failed > bound and (done >= PERCENT_FROM or not is_percentage):
            raise TooManyFailures(
                f"{failed} of {done} images failed, more than --max-failures {settings.max_failures}; "
                "finished rows are kept: look at them, or run the command with a higher limit to resume"
            )
