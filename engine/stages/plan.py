"""How a scan divides a machine: by default, as `tune` measured, or as the user chose.

On a CPU a worker has up to 8 cores and as many threads, each of which takes a chunk from bytes to columns,
with an inference stream of its own. Cores stay busy until the last chunk, whether decoding or inference is
slower, and no thread waits for another. On GPUs there is one worker for each.
"""

import logging
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

from ..runtime import WITH_STREAMS, Engine
from ..runtime.cache import PLAN, EngineCache, cache_key
from ..settings import BATCH_SIZES, ScanSettings, most
from ..system.machine import installed, usable_cores

log = logging.getLogger(__name__)

CORES_A_WORKER = 8  # at most; they share an interpreter lock and the memory of an engine
CORES_A_READER = 4  # of a GPU's worker: one reader process for so many cores
AT_WORK = 4  # threads of a GPU's worker: one decodes, two have a batch in the engine, one decides
DECODERS = ("gbad-batch", "cykooz-resizer", "nvidia-nvimgcodec-cu13", "simplejpeg")
SIZES = ("batch_size", "workers", "threads")


@dataclass(frozen=True)
class WorkPlan:
    """How much happens at once. It changes no score, and may differ when a scan is resumed."""

    batch_size: int  # images
    workers: int  # processes
    threads: int  # of a worker, each with a chunk of its own
    cores: int  # of a worker
    origin: str = "default"

    def __str__(self) -> str:
        """Describe the plan in one line."""
        return f"{self.sizes()}: {self.origin}"

    def sizes(self) -> str:
        """Describe batch size, workers and threads."""
        counts = {"worker": self.workers, "thread": self.threads}
        parts = [f"{count} {name}{'s' * (count > 1)}" for name, count in counts.items()]
        return ", ".join([f"batch {self.batch_size}", *parts])


def plan_for(settings: ScanSettings, engine: Engine, gpus: int = 1) -> WorkPlan:
    """Plan a scan from its settings, else as tuned for this machine, else by default."""
    plan = None
    if settings.threads is None and settings.workers is None:
        plan = tuned(engine, settings.cache_dir, gpus)
    plan = plan or default_plan(engine, settings.threads or usable_cores(), settings.workers, gpus)
    given = ("batch_size", "threads", "workers")
    names = [f"--{name.replace('_', '-')}" for name in given if getattr(settings, name)]
    if not names:
        return plan
    origin = f"{plan.origin}, {' and '.join(names)} as given"
    return replace(plan, batch_size=settings.batch_size or plan.batch_size, origin=origin)


def default_plan(engine: Engine, cores: int, workers: int | None = None, gpus: int = 1) -> WorkPlan:
    """Plan without a measurement: a thread per core, a worker per GPU."""
    kind = engine.device.partition(":")[0]
    if engine.backend in WITH_STREAMS:
        workers = workers or -(-cores // CORES_A_WORKER)
    elif kind == "cpu":
        workers = workers or 1
    else:
        workers = gpus
    each = max(1, cores // workers)
    return WorkPlan(BATCH_SIZES[kind], workers, each if kind == "cpu" else gpu_threads(each), each)


def gpu_threads(cores: int) -> int:
    """Return the number of threads of a GPU's worker: some are at work, the others wait for readers."""
    return AT_WORK + readers(cores)


def readers(cores: int) -> int:
    """Return the number of reader processes for a GPU's worker."""
    return max(1, cores // CORES_A_READER)


def tuned(engine: Engine, cache_dir: Any, gpus: int = 1) -> WorkPlan | None:
    """Read the plan that `keep` stored for this engine; None if it is missing or, with a warning, bad."""
    cache = EngineCache.open(_folder(cache_dir), warn=False)  # opening the engine has warned already
    if cache is None:
        return None
    facts = _facts(engine, gpus)
    key = cache_key(facts)
    with closing(cache):
        entry = cache.load(key, PLAN)
    if entry is None:
        return None
    try:
        return _plan(entry.record, facts)
    except ValueError as error:
        log.warning("the cached plan %s is not used: %s; the default settings are used", key[:12], error)
        return None


def keep(plan: WorkPlan, engine: Engine, cache: EngineCache) -> bool:
    """Store a plan for later scans with this engine on this machine; returns False if the disk refuses it."""
    facts = _facts(engine, plan.workers)
    record = {"facts": facts, "date": date.today().isoformat(), **{n: getattr(plan, n) for n in SIZES}}
    return cache.store(cache_key(facts), b"", record, PLAN)


def _folder(cache_dir: Any) -> Path | None:
    return None if cache_dir is None else Path(cache_dir)


def _facts(engine: Engine, gpus: int) -> dict[str, Any]:
    """Return what the best plan depends on; the engine's key holds bundle, backend and processor."""
    return {
        "engine": engine.key,
        "cores": usable_cores(),
        "gpus": 0 if engine.device == "cpu" else gpus,
        "versions": installed(DECODERS),
    }


def _plan(record: Mapping[str, Any], facts: Mapping[str, Any]) -> WorkPlan:
    """Parse a stored plan; raises ValueError if it belongs elsewhere or holds impossible sizes."""
    if record.get("facts") != facts:
        raise ValueError("it belongs to another machine, model or version")
    sizes: dict[str, Any] = {name: record.get(name) for name in SIZES}
    for name, value in sizes.items():
        if type(value) is not int or not 1 <= value <= most(name):
            raise ValueError(f"{name} is {value!r:.40} and must be 1 to {most(name)}")
    cores = max(1, facts["cores"] // sizes["workers"])
    return WorkPlan(**sizes, cores=cores, origin=f"tuned on {date.fromisoformat(str(record.get('date')))}")
