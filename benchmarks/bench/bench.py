"""Where systems are measured beside each other: on which images, for how long, in which folders."""

import argparse
import hashlib
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from gbad_batch.engine.bundle import Bundle

from ..archives import SIDES, Passes, default_work_dir, sized_bags
from ..report import ROOT
from .accuracy import agreement, mean_ap
from .peers import PRECISIONS, best_settings, open_system
from .systems import Command, Loop, LoopSettings, NotRun, System


@dataclass(frozen=True)
class BenchSettings:
    """What systems are measured on, and for how long."""

    archive: Path | None = None  # a folder of images; None: synthetic bags, made once
    images: int = 64  # different ones; faster systems pass over them several times
    rounds: int = 5
    seconds: float = 10.0  # that a system's turn takes, or one pass where that takes longer
    search: bool = True  # for the best settings of the user's loop; else its defaults
    labelled: Path | None = None  # a set of `gbad-batch synth`, for mAP and agreement
    work: Path = field(default_factory=default_work_dir)


def bench_options(parser: argparse.ArgumentParser) -> None:
    """Declare the settings of a bench."""
    default = BenchSettings()
    add = parser.add_argument
    add("--archive", type=Path, metavar="DIR", help="images to measure on, in the place of synthetic ones")
    add("--images", type=int, default=default.images, metavar="N", help="different images")
    add("--rounds", type=int, default=default.rounds, metavar="N", help="in which systems take turns")
    add("--seconds", type=float, default=default.seconds, metavar="S", help="of a turn, or one pass")
    add("--no-search", dest="search", action="store_false", help="take the user's loop as it is")
    add("--labelled", type=Path, metavar="DIR", help="a labelled synthetic set, for mAP and agreement")
    add("--work", type=Path, default=default.work, metavar="DIR", help="what is kept lies here")


def bench_settings(arguments: argparse.Namespace) -> BenchSettings:
    """Read the settings that `bench_options` declares."""
    return BenchSettings(**{name: getattr(arguments, name) for name in BenchSettings.__dataclass_fields__})


class Bench:
    """Systems that are open, the images that they score, and why others are not."""

    def __init__(self, settings: BenchSettings, scratch: Path, stack: ExitStack):
        self.settings = settings
        self.scratch = scratch
        self.cache = settings.work / "engines"  # not the user's own: what `tune` sets there has no part here
        self.passes = Passes(scratch / "archive", _pictures(settings))
        self.systems: dict[str, System] = {}
        self.not_run: dict[str, str] = {}
        self.stack = stack  # what is to be closed at the end

    def open(self, name: str, kind: str, bundle: Path, cache: Path | None = None) -> None:
        """Open a system of a kind that `peers` knows, or note why it is unavailable."""
        print(f"  opening {name} ...", file=sys.stderr)
        try:
            self.systems[name] = open_system(kind, bundle, cache or self.cache, self.passes.pictures)
        except NotRun as reason:
            self.not_run[name] = str(reason)
        else:
            self.stack.callback(self.systems[name].close)

    def search(self, peer: str) -> tuple[LoopSettings, dict[str, float]]:
        """Search the best settings of a loop, and give them to all others; with them, all speeds tried."""
        loop = self.systems.get(peer)
        if not self.settings.search or not isinstance(loop, Loop):
            return LoopSettings(), {}
        print(f"  searching the best settings of {peer} ...", file=sys.stderr)
        best, tried = best_settings(loop, self.passes(1), self.scratch)
        for system in self.systems.values():
            if isinstance(system, Loop):
                system.settings = best
        return best, tried

    def accuracy(self, bundle: Path) -> dict[str, float]:
        """Give `map_fp32`, `map_int8` and the `agreement` of both on the labelled set, if there is one."""
        labelled, figures, results = self.settings.labelled, {}, []
        names = [f"map_{precision}" for precision in PRECISIONS]
        if labelled is None:
            self.not_run |= dict.fromkeys([*names, "agreement"], "no --labelled set is given")
            return {}
        for name, precision in zip(names, PRECISIONS, strict=True):
            print(f"  scanning {labelled} in {precision} ...", file=sys.stderr)
            results.append(self.scratch / f"labelled-{precision}.parquet")
            try:
                command = Command(bundle, precision, self.cache, self.passes.pictures[0])
                figures[name] = mean_ap(command, bundle, labelled, results[-1])
            except NotRun as reason:
                self.not_run |= dict.fromkeys([name, "agreement"], str(reason))
                return figures
        return figures | {"agreement": agreement(*results).decisions}

    def described(self) -> dict[str, Any]:
        """Say what the images are."""
        sizes = [path.stat().st_size for path in self.passes.pictures]
        made = f"gbad-batch synth, seed 301, bags with sides of {SIDES[0]} to {SIDES[1]} pixels"
        return {
            "from": str(self.settings.archive or made),
            "images": len(sizes),
            "formats": sorted({path.suffix for path in self.passes.pictures}),
            "mean_bytes": round(float(np.mean(sizes))),
        }


@contextmanager
def open_bench(settings: BenchSettings) -> Iterator[Bench]:
    """Open a bench without systems; leaving it ends those that were opened."""
    settings.work.mkdir(mode=0o700, parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=settings.work) as scratch, ExitStack() as stack:
        yield Bench(settings, Path(scratch), stack)


def untrained(work: Path) -> Path:
    """Return the bundle of an untrained ResNeXt-50, made once in a process of its own."""
    maker = hashlib.sha256(Path(__file__).with_name("untrained.py").read_bytes()).hexdigest()
    path = work / f"untrained-resnext50-{maker[:12]}"
    if not (path / "bundle.json").exists():
        subprocess.run([sys.executable, "-m", f"{__package__}.untrained", str(path)], check=True, cwd=ROOT)
    return path


def described_bundle(path: Path) -> str:
    """Name a bundle and its hash."""
    bundle = Bundle.read(path)
    architecture = bundle.manifest.architecture
    return (
        f"{bundle.manifest.name}, {architecture.backbone} at {architecture.input_size} pixels, {bundle.hash}"
    )


def _pictures(settings: BenchSettings) -> list[Path]:
    if settings.archive is None:
        return sized_bags(settings.work, settings.images)
    return sorted(path for path in settings.archive.rglob("*") if path.is_file())[: settings.images]
