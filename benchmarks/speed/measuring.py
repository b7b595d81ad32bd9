"""The command, its peers and the limits of the machine, measured in turns on the same images."""

import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gbad_batch.engine.bundle import Bundle, default_bundle_path
from gbad_batch.engine.settings import BATCH_SIZES
from gbad_batch.export import engine_for

from ..bench.accuracy import Agreement, agreement
from ..bench.bench import Bench, BenchSettings, described_bundle, open_bench, untrained
from ..bench.peers import ANOMALIB, PRECISIONS
from ..bench.rounds import Spread, Turns
from ..bench.systems import Command, LoopSettings, Measured, NotRun, command_of
from .limit import STEPS, Limit, NativeRun, Work

PEER = "eager"  # the loop that a user would write; ratios are to it
DEFAULT = "default"  # the default bundle by the command, in the precision that `auto` takes
BEFORE = "before"  # the same by the command of another checkout
PEERS = (PEER, "collapsed", "channels_last", "inductor", "onnxruntime", ANOMALIB)
SYSTEMS = (*PEERS, *PRECISIONS, DEFAULT)
JUDGED = {
    "resnext50": ("int8", "fp32"),
    "default": (DEFAULT,),
}  # by bundle: the first that runs is compared with the limit
DROP_CACHES = Path("/proc/sys/vm/drop_caches")
JPEG = {".jpg", ".jpeg"}


@dataclass(frozen=True)
class Settings:
    """What is measured."""

    bench: BenchSettings = field(default_factory=BenchSettings)
    resnext: Path | None = None  # a bundle at 256 x 256; None: an untrained ResNeXt-50, made once
    model: Path | None = None  # the default bundle's place; None: the one that comes with the package
    systems: Sequence[str] = SYSTEMS
    cold: bool = True  # once with the machine's page cache dropped
    before: Path | None = None  # another checkout, whose command scans with the default bundle, too


@dataclass
class Profile:
    """What the machine allows with one bundle, round by round."""

    system: str  # the command that is compared with the limit
    precision: str
    native: list[NativeRun] = field(default_factory=list)  # bare calls on all cores: the limit

    @property
    def limit(self) -> Spread:
        """Images a second that the bare native calls reach on all cores."""
        return Spread.of([run.images_per_second for run in self.native])

    def microseconds(self) -> dict[str, float]:
        """Give what each native call takes of one core, an image: the median of rounds."""
        return {step: Spread.of([run.microseconds[step] for run in self.native]).median for step in STEPS}

    def fraction(self, images_per_second: Sequence[float]) -> Spread:
        """Give the share of the limit that speeds reached, each by the limit of its own round."""
        pairs = zip(images_per_second, self.native, strict=True)
        return Spread.of([speed / run.images_per_second for speed, run in pairs])


@dataclass
class Found:
    """What a run found."""

    runs: dict[str, list[Measured]]  # by system, a round each
    not_run: dict[str, str]  # unavailable systems and figures, and why
    bundles: dict[str, str]  # by role: name, network, hash
    archive: Mapping[str, object]
    loop: LoopSettings
    searched: dict[str, float]  # img/s by settings of the user's loop
    profiles: dict[str, Profile]  # by bundle
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
        profile = self.profiles[bundle]
        return profile.fraction([run.images_per_second for run in self.runs[profile.system]])

    def gain(self) -> Spread:
        """How many times as fast as the other checkout the command was in the same round."""
        pairs = zip(self.runs[DEFAULT], self.runs[BEFORE], strict=True)
        return Spread.of([run.images_per_second / other.images_per_second for run, other in pairs])

    @property
    def missing(self) -> int:
        """Images without a row in the output of a command, over all runs."""
        commands = (*PRECISIONS, DEFAULT)
        return sum(run.missing for name in commands for run in self.runs.get(name, ()))


def measure(settings: Settings) -> Found:
    """Let systems and limits take turns; then measure what is measured once."""
    bundles = {"default": settings.model or default_bundle_path()}
    if set(settings.systems) - {DEFAULT}:
        bundles["resnext50"] = settings.resnext or untrained(settings.bench.work)
    with open_bench(settings.bench) as bench:
        bench.not_run |= {name: "not asked for" for name in SYSTEMS if name not in settings.systems}
        for name in settings.systems:
            role, kind = ("default", "auto") if name == DEFAULT else ("resnext50", name)
            bench.open(name, kind, bundles[role])
        if settings.before is not None:
            _open_before(bench, settings.before, bundles["default"])
        loop, searched = bench.search(PEER)
        turns = Turns(bench)
        turns.warm_up()
        profiles = _profiles(bench)
        limits = _open_limits(bench, profiles, bundles)
        for number in range(settings.bench.rounds):
            turns.round(number)
            for role, limit in limits.items():
                print(f"  round {number + 1}: limit of {role} ...", file=sys.stderr)
                profiles[role].native.append(limit(settings.bench.seconds))
        return Found(
            runs=turns.runs,
            not_run=bench.not_run,
            bundles={role: described_bundle(path) for role, path in bundles.items()},
            archive=bench.described(),
            loop=loop,
            searched=searched,
            profiles=profiles,
            agreements=_agreements(turns),
            accuracy=bench.accuracy(bundles["default"]),
            cold=_cold(bench, profiles) if settings.cold else None,
        )


def _open_before(bench: Bench, checkout: Path, bundle: Path) -> None:
    """Open the command of another checkout, with a cache of its own."""
    scratch, cache = bench.scratch / BEFORE, bench.settings.work / "engines-before"
    scratch.mkdir()
    try:
        command = command_of(checkout, scratch)
        bench.systems[BEFORE] = Command(bundle, "auto", cache, bench.passes.pictures[0], command)
    except NotRun as reason:
        bench.not_run[BEFORE] = str(reason)


def _profiles(bench: Bench) -> dict[str, Profile]:
    """Choose the command in its fastest precision with each bundle."""
    profiles: dict[str, Profile] = {}
    for role, names in JUDGED.items():
        for name in names:
            system = bench.systems.get(name)
            if isinstance(system, Command) and role not in profiles:
                profiles[role] = Profile(name, system.precision)
    return profiles


def _open_limits(
    bench: Bench, profiles: Mapping[str, Profile], bundles: Mapping[str, Path]
) -> dict[str, Limit]:
    """Start the processes of each bundle's limit, with the engine that the command runs."""
    if other := {path.suffix.lower() for path in bench.passes.pictures} - JPEG:
        why = f"the limit is measured on JPEG files alone; the archive also holds {', '.join(sorted(other))}"
        bench.not_run |= {f"fraction_of_limit_{role}": why for role in profiles}
        return {}
    limits = {}
    for role, profile in profiles.items():
        bundle = Bundle.read(bundles[role])
        engine = engine_for(bundle, device="cpu", precision=profile.precision, cache_dir=bench.cache)
        limits[role] = Limit(Work(bench.passes.pictures, engine, BATCH_SIZES["cpu"]))
        bench.stack.callback(limits[role].close)
    return limits


def _agreements(turns: Turns) -> dict[str, Agreement]:
    """Compare what each system with the same outputs wrote in its last round with the command's FP32."""
    alike = [name for name in turns.runs if name not in ("fp32", DEFAULT, BEFORE, ANOMALIB)]
    if "fp32" not in turns.runs:
        return {}
    return {name: agreement(turns.out("fp32"), turns.out(name)) for name in alike}


def _cold(bench: Bench, profiles: Mapping[str, Profile]) -> Measured | None:
    """Scan each picture once with nothing in the page cache, where that may be emptied."""
    if "resnext50" not in profiles:
        return None
    os.sync()
    try:
        DROP_CACHES.write_text("3\n")
    except OSError as error:
        bench.not_run["img_s_cold"] = f"{DROP_CACHES} cannot be written: {error.strerror}"
        return None
    return bench.systems[profiles["resnext50"].system](bench.passes(1), bench.scratch / "cold.parquet")
