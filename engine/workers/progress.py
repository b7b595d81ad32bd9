"""Progress of a scan: counts, and where the time went."""

import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

from ..errors import TooManyFailures
from ..results.index import Index
from ..settings import LimitSettings
from ..system.objects import retries
from ..text import timestamp
from .chunk import FinishedChunk

PERCENT_FROM = 1000  # images before a percentage of failures means something


class Progress:
    """Counts and clocks of one run; written by the coordinator, read by progress bars and the summary."""

    def __init__(self) -> None:
        self.began = timestamp()  # of the run, its start-up included
        self.total: int | None = None  # candidates in all, once everything is listed
        self.done = 0  # rows of this run
        self.failed = 0  # rows of all runs whose status is not ok
        self.alarms = 0  # of all runs
        self.recognized = 0  # rows of this run whose bytes were known (--by-content)
        self.seconds: defaultdict[str, float] = defaultdict(float)  # busy, by stage, over all threads
        self.thread_cpu_seconds: defaultdict[str, float] = defaultdict(
            float
        )  # of the threads that ran the stages
        self.workers_cpu_seconds = 0.0
        self.rows_by_node: defaultdict[str, int] = defaultdict(int)  # of this run, by node of a cluster
        self._worker_retries, self._retries_before = 0, retries.count
        self.startup_seconds = 0.0
        self.started = time.monotonic()
        self._cpu_at_start = 0.0
        self._index: Index | None = None

    @property
    def earlier(self) -> int:
        """Rows of earlier runs; once everything is listed, those whose candidates are still there."""
        if self._index is None:
            return 0
        return self._index.finished if self.total is None else self._index.skipped

    @property
    def listed(self) -> int:
        """Distinct candidates that were listed so far."""
        return self._index.listed if self._index else 0

    def start(self, index: Index) -> None:
        """End the start-up: clocks count from here, counts from what earlier runs have done."""
        self.failed, self.alarms = index.failed, index.alarms
        now = time.monotonic()
        self.startup_seconds, self.started = now - self.started, now
        self._cpu_at_start, self._index = time.process_time(), index

    def elapsed(self) -> float:
        """Return the seconds since `start`."""
        return time.monotonic() - self.started

    def coordinator_cpu(self) -> float:
        """Return the CPU seconds since `start` of this process: listing, dealing, writing."""
        return time.process_time() - self._cpu_at_start

    def cpu_by_stage(self) -> dict[str, float]:
        """Divide the CPU seconds since `start` of this process and the workers among the stages.

        An engine computes in threads of its own, so `score` is what the workers' other stages leave, and
        `deal` what listing and writing leave of this process.
        """
        spent = self.thread_cpu_seconds
        ours = {name: spent[name] for name in ("list", "write")}
        theirs = {name: spent[name] for name in ("read", "decode", "columns")}
        deal = max(0.0, self.coordinator_cpu() - sum(ours.values()))
        score = max(0.0, self.workers_cpu_seconds - sum(theirs.values()))
        return {**ours, "deal": deal, **theirs, "score": score}

    def count(self, chunk: FinishedChunk) -> None:
        """Add the counts and times of a finished chunk."""
        self.done += chunk.rows
        self.failed += chunk.failed
        self.alarms += chunk.alarms
        self.recognized += chunk.recognized
        self.workers_cpu_seconds += chunk.process_seconds
        self._worker_retries += chunk.retries
        if chunk.node:
            self.rows_by_node[chunk.node] += chunk.rows
        for stage, seconds in chunk.seconds.items():
            self.seconds[stage] += seconds
            self.thread_cpu_seconds[stage] += chunk.cpu_seconds[stage]

    @property
    def retries(self) -> int:
        """Requests to an object store that were repeated, by the workers and by this process."""
        return self._worker_retries + retries.count - self._retries_before

    @contextmanager
    def timed(self, stage: str) -> Iterator[None]:
        """Add the time of the block, and this thread's CPU time in it, to a stage."""
        began, cpu_began = time.perf_counter(), time.thread_time()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - began
            self.thread_cpu_seconds[stage] += time.thread_time() - cpu_began

    def check_failures(self, settings: LimitSettings) -> None:
        """Raise TooManyFailures if more rows of all runs failed than `max_failures` allows."""
        if settings.failure_limit is None:
            return
        failed, done = self.failed, self.done + (self._index.finished if self._index else 0)
        bound, is_percentage = settings.failure_limit
        if is_percentage:
            bound = bound / 100 * done
        if failed > bound and (done >= PERCENT_FROM or not is_percentage):
            raise TooManyFailures(
                f"{failed} of {done} images failed, more than --max-failures {settings.max_failures}; "
                "finished rows are kept: look at them, or run the command with a higher limit to resume"
            )
