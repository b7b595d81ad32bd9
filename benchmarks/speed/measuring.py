"""One run of the command, its peers and the machine's limits, in turns on the same images."""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gbad_batch.engine.bundle import default_bundle_path
from gbad_batch.engine.system.machine import usable_cores

from ..bench.accuracy import Agreement, agreement
from ..bench.bench import Bench, BenchSettings, described_bundle, open_bench, untrained
from ..bench.peers import ANOMALIB, PRECISIONS
from ..bench.rounds import Spread, Turns
from ..bench.systems import Command, LoopSettings, Measured
from ..scan_process import scanned_apart
from .stages import Alone, Stages

PEER = "eager"  # the loop that a user would write; ratios are to it
DEFAULT = "default"  # the default bundle by the command, in the precision that `auto` takes
PEERS = (PEER, "collapsed", "channels_last", "inductor", "onnxruntime", ANOMALIB)
SYSTEMS = (*PEERS, *PRECISIONS, DEFAULT)
JUDGED = {
    "resnext50": ("int8", "fp32"),
    "default": (DEFAULT,),
}  # by bundle: of the first that runs, the limit
DROP_CACHES = Path("/proc/sys/vm/drop_caches")


@dataclass(frozen=True)
class Settings:
    """What is measured."""

    bench: BenchSettings = field(default_factory=BenchSettings)
    resnext: Path | None = None  # a bundle at 256 x 256; None: an untrained ResNeXt-50, made once
    model: Path | None = None  # the default bundle's place; None: the one that comes with the package
    systems: Sequence[str] = SYSTEMS
    cold: bool = True  # once with the machine's page cache dropped


@dataclass
class Limit:
    """What a scan's two costly stages take alone, and the scan's own rates, round by round."""

    system: str  # the command's, in which precision
    precision: str
    pixels: list[Alone] = field(default_factory=list)
    engine: list[Alone] = field(default_factory=list)
    one_by_one: list[Alone] = field(default_factory=list)  # a loop without overlap
    stages: dict[str, Alone] = field(default_factory=dict)  # all of them, once
    batch_ms: list[float] = field(default_factory=list)  # in the networks, the other stages beside
    batch_ms_alone: list[float] = field(default_factory=list)

    def fraction(self, seconds_an_image: Sequence[float]) -> Spread:
        """Share of the cores' time that decoding and networks need, in that which was taken, by round."""
        needed = [p.cpu_seconds + e.cpu_seconds for p, e in zip(self.pixels, self.engine, strict=True)]
        pairs = zip(needed, seconds_an_image, strict=True)
        return Spread.of([cpu / (usable_cores() * seconds) for cpu, seconds in pairs])


@dataclass
class Found:
    """What a run found."""

    runs: dict[str, list[Measured]]  # by system, a round each
    not_run: dict[str, str]  # systems and figures that were not to be had, and why
    bundles: dict[str, str]  # by role: name, network, hash
    archive: Mapping[str, object]
    loop: LoopSettings
    searched: dict[str, float]  # img/s by settings of the user's loop
    limits: dict[str, Limit]  # by bundle
    agreements: dict[str, Agreement]  # of a system's rows with those of the command in fp32
    accuracy: dict[str, float]
    cold: Measured | None

    def speed(self, name: str) -> Spread:
        """Images a second over the rounds."""
        return Spread.of([run.images_per_second for run in self.runs[name]])

    def ratio(self, name: str) -> Spread:
        """How many times as fast as the peer a system was in the same round."""
        pairs = zip(self.runs[name], self.runs[PEER], strict=True)
        return Spread.of([run.images_per_second / other.images_per_second for run, other in pairs])

    def fraction(self, bundle: str) -> Spread:
        """Share of the machine's limit that the command reached with a bundle."""
        limit = self.limits[bundle]
        return limit.fraction([run.seconds / run.images for run in self.runs[limit.system]])

    def fraction_one_by_one(self, bundle: str) -> Spread:
        """Share of the limit that a loop without overlap reached."""
        limit = self.limits[bundle]
        return limit.fraction([loop.seconds for loop in limit.one_by_one])

    @property
    def missing(self) -> int:
        """Images without a row in the output of a command, over all runs."""
        commands = (*PRECISIONS, DEFAULT)
        return sum(run.missing for name in commands for run in self.runs.get(name, ()))


def measure(settings: Settings) -> Found:
    """Let systems and limits take turns; then measure what is measured once."""
    bundles = {
        "resnext50": settings.resnext or untrained(settings.bench.work),
        "default": settings.model or default_bundle_path(),
    }
    with open_bench(settings.bench) as bench:
        bench.not_run |= {name: "not asked for" for name in SYSTEMS if name not in settings.systems}
        for name in settings.systems:
            role, kind = ("default", "auto") if name == DEFAULT else ("resnext50", name)
            bench.open(name, kind, bundles[role])
        loop, searched = bench.search(PEER)
        turns = Turns(bench)
        turns.warm_up()
        limits, stages = _limits(bench, bundles)
        for number in range(settings.bench.rounds):
            turns.round(number)
            for role, limit in limits.items():
                _measure_limit(limit, stages[role])
        for role, limit in limits.items():
            _measure_stages(limit, stages[role], bench, bundles[role])
        return Found(
            runs=turns.runs,
            not_run=bench.not_run,
            bundles={role: described_bundle(path) for role, path in bundles.items()},
            archive=bench.described(),
            loop=loop,
            searched=searched,
            limits=limits,
            agreements=_agreements(turns),
            accuracy=bench.accuracy(bundles["default"]),
            cold=_cold(bench, limits) if settings.cold else None,
        )


def _limits(bench: Bench, bundles: Mapping[str, Path]) -> tuple[dict[str, Limit], dict[str, Stages]]:
    """Open the stages of the command's fastest precision with each bundle."""
    limits, stages = {}, {}
    for role, names in JUDGED.items():
        for name in names:
            system = bench.systems.get(name)
            if isinstance(system, Command) and role not in limits:
                limits[role] = Limit(name, system.precision)
                stages[role] = Stages(bundles[role], system.precision, bench.cache, bench.passes.pictures)
                bench.stack.callback(stages[role].close)
    return limits, stages


def _measure_limit(limit: Limit, stages: Stages) -> None:
    limit.pixels.append(stages.pixels())
    limit.engine.append(stages.engine())
    limit.one_by_one.append(stages.without_overlap())


def _measure_stages(limit: Limit, stages: Stages, bench: Bench, bundle: Path) -> None:
    print(f"  stages of {limit.system} ...", file=sys.stderr)
    limit.stages = stages.all(bench.passes(1))
    limit.batch_ms_alone = stages.batch_ms()
    chosen = {"model": bundle, "precision": limit.precision, "cache_dir": bench.cache}
    limit.batch_ms = scanned_apart(bench.passes(1), bench.scratch / "timed.parquet", **chosen).batch_ms


def _agreements(turns: Turns) -> dict[str, Agreement]:
    """Compare what each system with the same outputs wrote in its last round with the command's FP32."""
    alike = [name for name in turns.runs if name not in ("fp32", DEFAULT, ANOMALIB)]
    if "fp32" not in turns.runs:
        return {}
    return {name: agreement(turns.out("fp32"), turns.out(name)) for name in alike}


def _cold(bench: Bench, limits: Mapping[str, Limit]) -> Measured | None:
    """Scan each picture once with nothing in the page cache, where that may be emptied."""
    if "resnext50" not in limits:
        return None
    os.sync()
    try:
        DROP_CACHES.write_text("3\n")
    except OSError as error:
        bench.not_run["img_s_cold"] = f"{DROP_CACHES} cannot be written: {error.strerror}"
        return None
    return bench.systems[limits["resnext50"].system](bench.passes(1), bench.scratch / "cold.parquet")
