"""A scan on one page: list candidates, have workers read, decode and score them, write rows in order."""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event
from typing import Any

from .results import Session, check_output, open_results
from .results.frame import frame_of
from .results.index import Index, key_of
from .results.schema import batch_of, rows_of
from .row import Row
from .settings import ScanSettings, fingerprint
from .sources import Candidate, Enough, ListingCounts, check, find
from .stages import OpenStages, Setup, open_stages
from .summary import Summary, finish, summarize
from .workers.chunk import FinishedChunk
from .workers.feed import Feed
from .workers.pool import Pool
from .workers.progress import Progress


class Scan:
    """A scan of an archive with one model: `run` stores rows, `rows` yields them; both can be repeated.

    `open_stages`, a function of an importable module, opens the stages in each worker process. Raises Refused
    before the first image is read, Stopped if the machine fails, TooManyFailures.
    """

    def __init__(self, settings: ScanSettings, open_stages: OpenStages = open_stages):
        self.settings = settings
        self._open_stages = open_stages
        self.progress, self.listed, self._stopped = Progress(), ListingCounts(), Event()

    def run(self, watch: Callable[[Progress], None] = lambda _: None) -> Summary:
        """Scan into `settings.out`, by way of `OUT.parts/`, resuming what is there; returns the summary."""
        check_output(self.settings)
        with self._workers() as workers, self._results(workers.setup) as results:
            if results.finished is None:
                for chunk in self._scored(workers, results.index, results.folder, results.suspects):
                    with self.progress.timed("write"):
                        results.write(batch_of(chunk.columns), chunk.features)
                    watch(self.progress)
                    self.progress.check_failures(self.settings)
                with self.progress.timed("write"):
                    finish(results, self.settings, self.listed, self.progress)
            return summarize(self.settings, results, workers.setup, self.progress, self.listed)

    def rows(self) -> Iterator[Row]:
        """Yield the row of every candidate, in order, and store nothing."""
        with self._workers() as workers, tempfile.TemporaryDirectory(prefix="gbad-batch-") as folder:
            for chunk in self._scored(workers, Index(), Path(folder)):
                yield from rows_of(batch_of(chunk.columns))

    def to_frame(self) -> Any:
        """Return all rows as a data frame of pandas, or of polars, or else an Arrow table; store nothing."""
        return frame_of(self.rows())

    def stop(self) -> None:
        """Have `run` or `rows` raise Stopped, from a signal handler or another thread; written rows stay."""
        self._stopped.set()

    def _scored(
        self, workers: Pool, index: Index, folder: Path, suspects: frozenset[bytes] = frozenset()
    ) -> Iterator[FinishedChunk]:
        """Yield the finished chunks of all candidates that no earlier run has finished, in order."""
        self.progress.start(index)
        with Feed(self._unfinished(index), self.progress) as feed:
            for chunk in workers.process(feed, folder, suspects):
                self.progress.count(chunk)
                yield chunk

    def _unfinished(self, index: Index) -> Iterator[Candidate]:
        """List the candidates that no earlier run has finished, among the first `limit` if there is one."""

        def accept(candidate: Candidate) -> bool:
            if self.settings.limit is not None and index.listed >= self.settings.limit:
                raise Enough
            candidate.key = key_of(candidate.row)
            claim = index.claim(candidate.key, candidate.row.kind)
            if self.settings.shard and claim != "duplicate":
                index.places.append(self.listed.place)
            return claim == "new"

        yield from find(self.settings, self.listed, accept, self.settings.max_file_size, self._stopped)
        self.progress.total = index.listed
        index.whole = {"files": self.listed.files, "digest": f"{self.listed.digest:016x}"}

    def _workers(self) -> Pool:
        """Begin a fresh run: check the sources; entering the pool starts the workers."""
        self.progress, self.listed = Progress(), ListingCounts()
        check(self.settings)
        return Pool(self.settings, self._open_stages, self._stopped)

    def _results(self, setup: Setup) -> Session:
        """Begin or resume the output, now that the first worker knows what `auto` means here."""
        same = fingerprint(self.settings, setup.resolved(self.settings))
        return open_results(self.settings, same, setup.description(), setup.features)
