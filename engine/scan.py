"""The flow of a scan, on one page: sources -> decode -> infer -> decision -> results."""

import hashlib
import logging
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, nullcontext
from functools import partial
from typing import Any, TypeVar

from .decode import DecodeLimits, Decoder
from .decode.batch import BatchDecoder
from .decode.coded_image import CodedImage
from .decode.isolated import IsolatedDecoder
from .errors import Refused, Stopped, TooManyFailures
from .pipeline import Halted, Pipeline
from .plan import Plan
from .progress import Progress
from .results import Session, open_results
from .results.journal import Journal
from .results.ledger import Ledger, key_of
from .results.schema import SCHEMA_VERSION
from .row import ImageFault, Row
from .scorer import Batch, Pixels, Scorer, batches
from .settings import ScanSettings
from .sources import Candidate, SourceSettings, Tally, check, find
from .summary import Summary, summarize

T = TypeVar("T")

log = logging.getLogger(__name__)

AHEAD = 256  # candidates listed ahead of decode
SCORED = 16  # batches that wait, without their pixels, while a part is being written to a slow disk
PERCENT_FROM = 1000  # images before a percentage of failures means something


class Scan:
    """One scan of an archive with one model; `run` stores the rows, `rows` yields them.

    Raises Refused before the first image is read, Stopped where the machine failed, TooManyFailures.
    """

    def __init__(self, settings: ScanSettings):
        self.settings = settings
        self.progress = Progress()
        self.tally = Tally()
        self._pipeline = Pipeline()

    def run(self, watch: Callable[[Progress], None] = lambda _: None) -> Summary:
        """Scan into `settings.out`, going on with what is there; returns the summary of the whole result."""
        with ExitStack() as stack:
            self._open(stack)
            scorer = self._scorer
            results = open_results(
                self.settings, self._fingerprint(), scorer.description(), scorer.engine.features
            )
            session = stack.enter_context(results)
            if session.finished is None:
                self._store(session, watch)
        return summarize(self.settings, session, self._scorer, self.progress, self.tally)

    def rows(self) -> Iterator[Row]:
        """Yield the row of every candidate, for one's own loop; nothing is stored."""
        with ExitStack() as stack:
            self._open(stack)
            for batch in self._flow(Ledger()):
                yield from batch.rows

    def stop(self) -> None:
        """End the scan in order, from a signal handler or another thread: what is scored is kept."""
        self._pipeline.stopped.set()

    def _flow(
        self, ledger: Ledger, journal: Journal | None = None, suspects: frozenset[bytes] = frozenset()
    ) -> Iterator[Batch]:
        """Run the scan: what is listed flows through decode and the scorer."""
        decode, scorer = partial(self._decode, journal, suspects), self._scorer
        log.info("%s", scorer.introduction())
        self.progress.start()
        with self._pipeline as pipeline:
            together = partial(self._together, journal)
            yield from flow(pipeline, self._find(ledger), decode, scorer, scorer.plan, together)

    def _store(self, session: Session, watch: Callable[[Progress], None]) -> None:
        """Write what flows, then finish; an order to stop keeps what is written."""
        try:
            for batch in self._flow(session.ledger, session.journal, session.suspects):
                with self.progress.timed("write"):
                    session.write(batch.rows, batch.outputs and (batch.outputs.x, batch.outputs.logits))
                self.progress.count(batch.rows)
                watch(self.progress)
                self._check_failures(session)
        except Halted:
            raise Stopped("stopped as asked; run the same command to go on") from None
        except MemoryError:
            raise Stopped(
                "this machine has no memory left for the scan; what is finished is kept: free some, or give "
                "fewer --threads, and run the same command again"
            ) from None
        if not session.ledger.listed:
            session.discard()
            raise Refused(self._nothing_found())
        with self.progress.timed("write"):
            session.finish()

    def _find(self, ledger: Ledger) -> Iterator[Candidate]:
        """List the candidates that no earlier run has finished."""
        wanted, stopped = partial(self._wanted, ledger), self._pipeline.stopped
        found = find(listing(self.settings), self.tally, wanted, self.settings.max_file_size, stopped)
        try:
            yield from self.progress.timed_each("list", found)
        except _LimitReached:
            return

    def _wanted(self, ledger: Ledger, candidate: Candidate) -> bool:
        if self.settings.limit is not None and ledger.listed >= self.settings.limit:
            raise _LimitReached
        claim = ledger.claim(candidate.row)
        self.progress.skipped += claim == "finished"
        return claim == "new"

    def _decode(
        self, journal: Journal | None, suspects: frozenset[bytes], candidate: Candidate
    ) -> tuple[Row, Pixels | CodedImage | None]:
        """Read and decode one candidate; apart, where it is suspected of having ended an earlier run."""
        row = candidate.row
        if row.status is not None:
            return row, None
        try:
            with self.progress.timed("read"):
                blob = candidate.read(self.settings.max_file_size)
        except ImageFault as fault:
            row.fail(fault)
            return row, None
        with self.progress.timed("hash"):
            row.sha256 = hashlib.sha256(blob).digest()
        key = key_of(row)
        with self.progress.timed("decode"):
            if key in suspects:
                return row, self._isolated(row, blob)
            with journal.decoding(key) if journal else nullcontext():
                return row, self._decoder(row, blob)

    def _together(self, journal: Journal | None, batch: Batch) -> Batch:
        """Decode what has waited for its batch: on a GPU images are decoded together."""
        if isinstance(self._decoder, BatchDecoder) and batch.images:
            around = (lambda rows: journal.decoding(*map(key_of, rows))) if journal else nullcontext
            with self.progress.timed("decode together"):
                batch.images, batch.pixels = self._decoder.decode_batch(batch.images, batch.pixels, around)
        return batch

    def _open(self, stack: ExitStack) -> None:
        """Open everything that a scan needs, or refuse; nothing of the archive is read."""
        settings = self.settings
        check(listing(settings))
        self._scorer = stack.enter_context(self._open_scorer())
        limits = DecodeLimits(settings.max_pixels, settings.max_file_size)
        self._decoder = self._open_decoder(limits)
        self._isolated = stack.enter_context(
            IsolatedDecoder(self._scorer.input_size, limits, settings.decode_timeout)
        )

    def _open_scorer(self) -> Scorer:
        return Scorer(self.settings, self.progress)

    def _open_decoder(self, limits: DecodeLimits) -> Decoder | BatchDecoder:
        settings, alone = self.settings, Decoder(self._scorer.input_size, limits)
        device, _, gpu = self._scorer.engine.device.partition(":")
        if device == "cpu":
            return alone
        plan = self._scorer.plan
        return BatchDecoder(alone, int(gpu), plan.batch_size, plan.threads, settings.hardware_share)

    def _fingerprint(self) -> dict[str, Any]:
        """Say what must match for an unfinished scan to be gone on with."""
        s, scorer = self.settings, self._scorer
        return {
            "sources": [os.path.abspath(source) for source in s.sources],  # noqa: PTH100 - keeps links
            "files_from": s.files_from is not None,
            "include": list(s.include),
            "exclude": list(s.exclude),
            "hidden": s.hidden,
            "follow_links": s.follow_links,
            "limit": s.limit,
            "model": scorer.bundle.hash,
            "engine": scorer.engine.backend,
            "precision": scorer.engine.precision,
            "decision": scorer.point.decision,
            "pfa": None if s.threshold is not None else scorer.point.pfa,
            "threshold": scorer.point.threshold,
            "max_pixels": s.max_pixels,
            "max_file_size": s.max_file_size,
            "decode_timeout": s.decode_timeout,
            "features": os.path.abspath(s.features) if s.features else None,  # noqa: PTH100
            "schema": SCHEMA_VERSION,
        }

    def _check_failures(self, session: Session) -> None:
        limit = self.settings.failure_limit
        if limit is None:
            return
        failed = self.progress.failed + session.failed_before
        done = self.progress.done + session.ledger.finished
        bound, is_percentage = limit
        if is_percentage:
            bound = bound / 100 * done
        if failed > bound and (done >= PERCENT_FROM or not is_percentage):
            raise TooManyFailures(
                f"{failed} of {done} images failed, more than --max-failures {self.settings.max_failures}; "
                "what is finished is kept: look at its rows, or run again with a higher limit to go on"
            )

    def _nothing_found(self) -> str:
        where = ", ".join(self.settings.sources) or "the list"
        skipped = ", ".join(f"{number} {name}" for name, number in self.tally.skipped.most_common(5))
        return f"no image was found in {where}: " + (f"it holds {skipped}" if skipped else "it is empty")


class _LimitReached(Exception):
    """--limit candidates were listed."""


def flow(
    pipeline: Pipeline,
    found: Iterable[T],
    decode: Callable[[T], tuple[Row, Pixels | CodedImage | None]],
    score: Callable[[Batch], Batch],
    plan: Plan,
    together: Callable[[Batch], Batch] = lambda batch: batch,
) -> Iterator[Batch]:
    """Yield scored batches in order: each line is a stage, ahead of the next by a bounded number of items.

    `together` does what of decoding is done a batch at a time.
    """
    size, streams, threads = plan.batch_size, plan.streams, plan.threads
    listed = pipeline.background(found, AHEAD, "list")
    decoded = pipeline.parallel(decode, listed, threads, 2 * size + threads, "decode")
    gathered = pipeline.background(map(together, batches(decoded, size)), 1, "gather")
    scored = pipeline.parallel(score, gathered, streams, 2 * streams, "score")
    yield from pipeline.background(scored, SCORED, "scored")


def listing(settings: ScanSettings) -> SourceSettings:
    """Pick the part of a scan's settings that says what to look at."""
    return SourceSettings(
        sources=settings.sources,
        files_from=settings.files_from,
        null=settings.null,
        include=settings.include,
        exclude=settings.exclude,
        hidden=settings.hidden,
        follow_links=settings.follow_links,
    )
