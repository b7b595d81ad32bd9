"""How a scan with one model is best divided on this machine: measured, and kept for the scans to come.

One size is changed at a time, starting from the rule's plan: batch, streams, decode threads. A trial is the
scan's own flow over pictures in memory, without an end: the first rounds of batches pass, then whole rounds
are timed, so that neither start nor end counts. The fastest must then beat the rule, measured in turns.
"""

import logging
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from itertools import cycle, islice
from pathlib import Path
from typing import Any, Self

from ..decode import DecodeLimits, Decoder
from ..errors import Refused
from ..pipeline import Pipeline
from ..plan import Plan, by_rule, keep
from ..progress import Progress
from ..row import ImageFault, Row
from ..runtime import WITH_STREAMS
from ..runtime.cache import EngineCache
from ..scan import flow, listing
from ..scorer import Pixels, Scorer
from ..settings import LARGEST, ScanSettings
from ..sources import Tally, check, find
from ..synth import SynthSettings, write_archive
from ..system.machine import usable_cores

log = logging.getLogger(__name__)

BATCHES = {"cpu": (4, 8, 16, 32), "cuda": (64, 128, 256)}  # images
WARM_ROUNDS = 2  # of a batch in each stream, before the clock starts
ROUNDS = 3  # that are timed at least,
SECONDS = 2.5  # and for so long at least
DEADLINE_S = 80.0  # no trial begins later
DUELS = 2  # of the fastest plan with the rule's
GAIN = 1.02  # less than this is noise, and the rule stays
SYNTHETIC = 32  # pictures, where the user gives none
PICTURES = 256  # of the user's, at most,
PICTURES_BYTES = 256_000_000  # and so many bytes of them


@dataclass(frozen=True)
class Trial:
    """A plan and its speed."""

    plan: Plan
    images_per_second: float


@dataclass(frozen=True)
class Tuning:
    """What was measured, and what the scans to come will do."""

    model: str
    engine: str
    pictures: str  # what it was measured on
    trials: list[Trial]  # in the order in which they ran
    rule: Trial
    chosen: Trial
    kept: str | None  # the folder that keeps the choice

    def to_json(self) -> dict[str, Any]:
        """Give the figures by name."""
        return asdict(self)


def tune(settings: ScanSettings) -> Tuning:
    """Measure on the pictures of `settings.sources`, or synthetic ones, and keep the best plan in the cache.

    Raises Refused where the cache, the model or the pictures are not to be used.
    """
    cache = EngineCache.open(settings.cache_dir)
    if cache is None:
        raise Refused("the choice would be kept nowhere: give a folder of your own with --cache-dir")
    try:
        with _Bench(settings) as bench:
            bundle, engine = bench.scorer.bundle, bench.scorer.engine
            pictures, said = _pictures(settings)
            bench.load(pictures)
            plan = by_rule(engine, usable_cores())
            rule, chosen = _duel(bench, plan, _search(bench, plan).plan)
            kept = keep(chosen.plan, engine, cache)
        model = f"{bundle.manifest.name} ({bundle.hash[:12]})"
        where = str(cache.path) if kept else None
        return Tuning(model, engine.description, said, bench.trials, rule, chosen, where)
    finally:
        cache.close()


class _Bench:
    """Runs trials with one open model, opened again where the number of streams changes."""

    def __init__(self, settings: ScanSettings):
        self.trials: list[Trial] = []
        self.scorer = Scorer(settings, Progress())
        self._settings = settings
        self._decoder = Decoder(self.scorer.input_size, DecodeLimits())
        self._pictures: list[bytes] = []
        self._deadline = 0.0

    def load(self, pictures: Sequence[bytes]) -> None:
        """Take the pictures that can be decoded, and start the time; raises Refused where there is none."""
        self._pictures = [blob for blob in pictures if self._decode(blob)[1] is not None]
        if not self._pictures:
            raise Refused(f"no image of {', '.join(self._settings.sources)} can be decoded: give others")
        self._deadline = time.monotonic() + DEADLINE_S

    @property
    def is_late(self) -> bool:
        """Whether no further trial should begin."""
        return time.monotonic() > self._deadline

    def run(self, plan: Plan) -> Trial:
        """Time one plan."""
        if plan.streams != self.scorer.plan.streams:
            self.scorer.close()
            self.scorer = Scorer(self._settings, Progress(), plan)
        trial = Trial(plan, self._speed(plan))
        log.info("%s: %.1f img/s", plan.sizes(), trial.images_per_second)
        self.trials.append(trial)
        return trial

    def _speed(self, plan: Plan) -> float:
        """Images a second, in the steady state."""
        with Pipeline() as pipeline:
            scored = flow(pipeline, cycle(self._pictures), self._decode, self.scorer, plan)
            _pass(scored, WARM_ROUNDS * plan.streams)
            began, rounds = time.monotonic(), 0
            while rounds < ROUNDS or time.monotonic() - began < SECONDS:
                _pass(scored, plan.streams)
                rounds += 1
            return rounds * plan.streams * plan.batch_size / (time.monotonic() - began)

    def _decode(self, blob: bytes) -> tuple[Row, Pixels | None]:
        row = Row(uri="", sha256=sha256(blob).digest())
        return row, self._decoder(row, blob)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.scorer.close()


def _pass(scored: Iterator[Any], count: int) -> None:
    """Take so many batches."""
    for _ in islice(scored, count):
        pass


def _search(bench: _Bench, rule: Plan) -> Trial:
    """Give the fastest plan that is found by changing one size after the other."""
    best = bench.run(rule)
    for size, values in _choices(bench, rule).items():
        start = replace(best.plan, origin="tried")
        for value in values:
            if value != getattr(start, size) and not bench.is_late:
                trial = bench.run(replace(start, **{size: value}))
                best = max(best, trial, key=lambda each: each.images_per_second)
    return best


def _choices(bench: _Bench, rule: Plan) -> dict[str, tuple[int, ...]]:
    """Name what is worth trying, by size."""
    engine, cores = bench.scorer.engine, rule.cores
    doubled = tuple(2**k for k in range(cores.bit_length()))
    threads = {max(1, cores // 2), cores, 2 * cores}
    return {
        "batch_size": BATCHES[engine.device.partition(":")[0]],
        "streams": tuple(sorted({*doubled, cores})) if engine.backend in WITH_STREAMS else (),
        "threads": tuple(sorted(n for n in threads if n <= LARGEST["threads"])),
    }


def _duel(bench: _Bench, rule: Plan, best: Plan) -> tuple[Trial, Trial]:
    """Measure the rule and the fastest plan in turns; returns the rule's trial and the one to be kept."""
    if best == rule or bench.is_late:
        return bench.trials[0], bench.trials[0]
    turns = [(bench.run(rule), bench.run(best)) for _ in range(DUELS)]
    ruled, tried = (max(each, key=lambda t: t.images_per_second) for each in zip(*turns, strict=True))
    return ruled, tried if tried.images_per_second > GAIN * ruled.images_per_second else ruled


def _pictures(settings: ScanSettings) -> tuple[list[bytes], str]:
    """Give the bytes of the pictures to measure on, and say what they are."""
    if settings.sources:
        check(listing(settings))
        blobs = list(_read(settings))
        return blobs, f"{len(blobs)} images of {', '.join(settings.sources)}"
    with tempfile.TemporaryDirectory(prefix="gbad-batch-") as folder:
        write_archive(Path(folder), SynthSettings(count=SYNTHETIC, workers=usable_cores()))
        paths = sorted(Path(folder, "images").iterdir())
        return [path.read_bytes() for path in paths], f"{len(paths)} synthetic pictures"


def _read(settings: ScanSettings) -> Iterator[bytes]:
    """Yield the bytes of the first images that can be read."""
    held = 0
    readable = find(listing(settings), Tally(), lambda each: each.row.status is None, settings.max_file_size)
    for number, candidate in enumerate(readable):
        if number >= PICTURES or held > PICTURES_BYTES:
            return
        try:
            blob = candidate.read(settings.max_file_size)
        except ImageFault:
            continue
        held += len(blob)
        yield blob
