"""How a scan divides a machine: by rule, as `tune` measured it here, or as the user says.

No core is set aside for one kind of work. As many threads read and decode as there are cores, and as many
batches are computed at once; the bounded queues between them divide the cores. Where batches wait to be
computed, decoding waits too; where none does, all cores decode. So none is idle before the last batch,
whichever costs more, and a stream of one thread never waits for another thread as a batch on all cores does.
"""

import logging
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

from .runtime import WITH_STREAMS, Engine
from .runtime.cache import PLAN, EngineCache, cache_key
from .settings import BATCH_SIZES, LARGEST, ScanSettings
from .system.machine import installed, usable_cores

log = logging.getLogger(__name__)

MOST_STREAMS = 8  # each takes memory for weights and a batch's maps, 0.1 to 0.3 GB
DECODERS = ("gbad-batch", "cykooz-resizer", "nvidia-nvimgcodec-cu13", "pillow", "simplejpeg")
SIZES = ("batch_size", "streams", "threads")


@dataclass(frozen=True)
class Plan:
    """How much goes on at once. No score depends on it, and it is no part of a scan's fingerprint."""

    batch_size: int  # images
    streams: int  # batches computed at once, each on its share of the cores
    threads: int  # that read, hash and decode
    cores: int  # that all of it runs on
    origin: str = "by rule"

    def __str__(self) -> str:
        """Say it in one line."""
        return f"{self.sizes()}: {self.origin}"

    def sizes(self) -> str:
        """Say what goes on at once."""
        counts = {"stream": self.streams, "decode thread": self.threads}
        each = [f"{count} {name}{'s' * (count > 1)}" for name, count in counts.items()]
        return ", ".join([f"batch {self.batch_size}", *each])


def plan_for(settings: ScanSettings, engine: Engine) -> Plan:
    """Plan a scan: what the settings say, else what was tuned for all cores of this machine, else by rule."""
    plan = None
    if settings.threads is None:
        plan = tuned(engine, settings.cache_dir)
    plan = plan or by_rule(engine, settings.threads or usable_cores())
    given = [f"--{name.replace('_', '-')}" for name in ("batch_size", "threads") if getattr(settings, name)]
    if not given:
        return plan
    origin = f"{plan.origin}, {' and '.join(given)} as given"
    return replace(plan, batch_size=settings.batch_size or plan.batch_size, origin=origin)


def by_rule(engine: Engine, cores: int) -> Plan:
    """Plan without a measurement: everything may have every core."""
    streams = min(cores, MOST_STREAMS) if engine.backend in WITH_STREAMS else 1
    size = BATCH_SIZES[engine.device.partition(":")[0]]
    return Plan(size, streams, min(cores, LARGEST["threads"]), cores)


def tuned(engine: Engine, cache_dir: Path | None) -> Plan | None:
    """Give what `keep` kept for this engine here; None, with a warning, where that is damaged or foreign."""
    cache = EngineCache.open(cache_dir, warn=False)  # who opened the engine has warned
    if cache is None:
        return None
    facts = _facts(engine)
    key = cache_key(facts)
    with closing(cache):
        entry = cache.load(key, PLAN)
    if entry is None:
        return None
    try:
        return _plan(entry.record, facts, engine)
    except ValueError as error:
        log.warning("the cached plan %s is not used, the rule is: %s", key[:12], error)
        return None


def keep(plan: Plan, engine: Engine, cache: EngineCache) -> bool:
    """Keep a plan for later scans with this engine on this machine; False where the disk takes it not."""
    facts = _facts(engine)
    record = {"facts": facts, "date": date.today().isoformat(), **{n: getattr(plan, n) for n in SIZES}}
    return cache.store(cache_key(facts), b"", record, PLAN)


def _facts(engine: Engine) -> dict[str, Any]:
    """All that the best plan depends on; the engine's key holds bundle, backend and processor."""
    return {"engine": engine.key, "cores": usable_cores(), "versions": installed(DECODERS)}


def _plan(record: Mapping[str, Any], facts: Mapping[str, Any], engine: Engine) -> Plan:
    """Read a stored plan; raises ValueError where it is not this machine's or says what cannot be."""
    if record.get("facts") != facts:
        raise ValueError("it is of another machine, model or version")
    cores = facts["cores"]
    streams = cores if engine.backend in WITH_STREAMS else 1
    most = {"batch_size": LARGEST["batch_size"], "streams": streams, "threads": LARGEST["threads"]}
    sizes: dict[str, Any] = {name: record.get(name) for name in SIZES}
    for name, value in sizes.items():
        if type(value) is not int or not 1 <= value <= most[name]:
            raise ValueError(f"{name} is {value!r:.40} and must be 1 to {most[name]}")
    return Plan(**sizes, cores=cores, origin=f"tuned on {date.fromisoformat(str(record.get('date')))}")
