"""Search for the fastest settings of one model on this machine, measured by scans and stored for later ones.

One size is changed at a time, starting from the default plan. A trial is a scan of pictures on disk, start-up
apart, by exactly the plan that later scans would take. The fastest plan must then beat the default, measured
in turns.
"""

import logging
import math
import os
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from ...export import engine_for
from ..bundle import Bundle, default_bundle_path
from ..errors import Refused
from ..row import ImageFault
from ..runtime import WITH_STREAMS, Engine
from ..runtime.cache import EngineCache
from ..scan import Scan
from ..settings import ScanSettings
from ..sources import ListingCounts, check, find
from ..stages import open_stages
from ..stages.plan import WorkPlan, default_plan, keep
from ..stages.scorer import devices_of
from ..synth import SynthSettings, write_archive
from ..system.machine import usable_cores
from ..text import counted

log = logging.getLogger(__name__)

BATCHES = {"cpu": (4, 8, 16, 32), "cuda": (64, 128, 256, 512, 1024)}  # images
SECONDS = 2.5  # of a trial, about
FIRST = {"cpu": 64, "cuda": 4096}  # images of the scan that tells how many make such a trial: some batches
DEADLINE_S = {"cpu": 80.0, "cuda": 240.0}  # no trial begins later; each one opens an engine and a decoder
DUELS = 2  # of the fastest plan with the default
GAIN = 1.02  # less than this is noise, and the default stays
SYNTHETIC = 32  # pictures, where the user gives none
PICTURES = 256  # of the user's, at most,
PICTURES_BYTES = 256_000_000  # and so many bytes of them
MOST_FILES = 100_000  # of a trial


@dataclass(frozen=True)
class Trial:
    """A plan and its measured speed."""

    plan: WorkPlan
    images_per_second: float


@dataclass(frozen=True)
class Tuning:
    """Result of a search: the trials, and the plan that later scans will use."""

    model: str
    engine: str
    pictures: str  # what it was measured on
    trials: list[Trial]  # in the order in which they ran
    default: Trial
    chosen: Trial
    kept: str | None  # the folder that stores the choice

    def to_json(self) -> dict[str, Any]:
        """Return the figures by name."""
        return asdict(self)


def tune(settings: ScanSettings) -> Tuning:
    """Measure on the pictures of `settings.sources`, or synthetic ones, and store the best plan in the cache.

    Raises Refused if the cache, the model or the pictures cannot be used.
    """
    cache_dir = Path(settings.cache_dir) if settings.cache_dir else None
    cache = EngineCache.open(cache_dir)
    if cache is None:
        raise Refused("the choice cannot be stored: name a folder of your own with --cache-dir")
    try:
        bundle = Bundle.read(Path(settings.model or default_bundle_path()))
        with tempfile.TemporaryDirectory(prefix="gbad-batch-") as folder:
            pictures, source = _pictures(settings, Path(folder, "pictures"))
            engine = engine_for(bundle, settings.device, settings.engine, settings.precision, cache_dir)
            bench = _Bench(settings, engine, pictures, Path(folder, "archive"))
            plan = default_plan(engine, usable_cores(), gpus=len(devices_of(settings.device, engine.device)))
            default, chosen = _duel(bench, plan, _search(bench, engine, plan).plan)
        kept = keep(chosen.plan, engine, cache)
        model = f"{bundle.manifest.name} ({bundle.hash[:12]})"
        where = str(cache.path) if kept else None
        return Tuning(model, engine.description, source, bench.trials, default, chosen, where)
    finally:
        cache.close()


class _Bench:
    """Runs trials: scans of as many copies of the pictures as take some seconds."""

    def __init__(self, settings: ScanSettings, engine: Engine, pictures: Sequence[Path], archive: Path):
        self.trials: list[Trial] = []
        self._source = _names(settings)
        self._settings = replace(settings, sources=(str(archive),), engine=engine.backend)
        self._pictures, self._archive = pictures, archive
        self._files = 0
        self._kind = engine.device.partition(":")[0]
        self._deadline = time.monotonic() + DEADLINE_S[self._kind]
        archive.mkdir()

    @property
    def is_late(self) -> bool:
        """Whether no further trial should begin."""
        return time.monotonic() > self._deadline

    def run(self, plan: WorkPlan) -> Trial:
        """Time one plan."""
        if not self._files:
            self._link(FIRST[self._kind])
            self._link(min(MOST_FILES, math.ceil(SECONDS * self._speed(plan))))
        trial = Trial(plan, self._speed(plan))
        log.info("%s: %.1f img/s", plan.sizes(), trial.images_per_second)
        self.trials.append(trial)
        return trial

    def _speed(self, plan: WorkPlan) -> float:
        """Return the images per second of a scan with this plan; raises Refused if none can be decoded."""
        scan = Scan(self._settings, partial(open_stages, plan=plan))
        scored = sum(row.status == "ok" for row in scan.rows())
        if not scored:
            raise Refused(f"no image in {self._source} can be decoded: name others with --images")
        return scored / scan.progress.elapsed()

    def _link(self, count: int) -> None:
        """Fill the archive with links to the pictures, up to `count` files."""
        for number in range(self._files, count):
            os.link(self._pictures[number % len(self._pictures)], self._archive / f"{number:06d}")
        self._files = max(self._files, count)


def _search(bench: _Bench, engine: Engine, default: WorkPlan) -> Trial:
    """Return the fastest plan, changing one size after the other."""
    best = bench.run(default)
    for size, values in _choices(engine, default).items():
        start = replace(best.plan, origin="tried")
        for value in values:
            if value != getattr(start, size) and not bench.is_late:
                tried = replace(start, **{size: value})
                trial = bench.run(replace(tried, cores=max(1, usable_cores() // tried.workers)))
                best = max(best, trial, key=lambda t: t.images_per_second)
    return best


def _choices(engine: Engine, default: WorkPlan) -> dict[str, tuple[int, ...]]:
    """Return the values to try for each size."""
    batches = {"batch_size": BATCHES[engine.device.partition(":")[0]]}
    if engine.backend not in WITH_STREAMS:
        return batches
    cores = usable_cores()
    each = default.threads
    workers = {1, default.workers, min(cores, 2 * default.workers)}
    return {
        **batches,
        "threads": tuple(sorted({each, each + 1, 2 * each})),
        "workers": tuple(sorted(workers)),
    }


def _duel(bench: _Bench, default: WorkPlan, best: WorkPlan) -> tuple[Trial, Trial]:
    """Measure the default and the fastest plan in turns; returns the default's trial and the chosen one."""
    if best == default or bench.is_late:
        return bench.trials[0], bench.trials[0]
    turns = [(bench.run(default), bench.run(best)) for _ in range(DUELS)]
    ruled, tried = (max(each, key=lambda t: t.images_per_second) for each in zip(*turns, strict=True))
    return ruled, tried if tried.images_per_second > GAIN * ruled.images_per_second else ruled


def _pictures(settings: ScanSettings, folder: Path) -> tuple[list[Path], str]:
    """Write the pictures for the trials to a folder; returns their paths and a description."""
    folder.mkdir()
    if not settings.sources:
        write_archive(folder, SynthSettings(count=SYNTHETIC, workers=usable_cores()))
        paths = sorted((folder / "images").iterdir())
        return paths, f"{len(paths)} synthetic pictures"
    check(settings)
    for number, content in enumerate(_contents(settings)):
        (folder / f"{number:06d}").write_bytes(content)
    paths = sorted(folder.iterdir())
    if not paths:
        raise Refused(f"no image in {_names(settings)} can be read: name others with --images")
    return paths, f"{counted(len(paths), 'image')} of {_names(settings)}"


def _names(settings: ScanSettings) -> str:
    return ", ".join(os.fsdecode(source) for source in settings.sources)


def _contents(settings: ScanSettings) -> Iterator[bytes]:
    """Yield the bytes of the first images that can be read."""
    held = 0
    readable = find(settings, ListingCounts(), lambda each: each.row.status is None, settings.max_file_size)
    for number, candidate in enumerate(readable):
        if number >= PICTURES or held > PICTURES_BYTES:
            return
        try:
            content = candidate.read(settings.max_file_size)
        except ImageFault:
            continue
        held += len(content)
        yield content
