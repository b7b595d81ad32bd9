"""A scan in a process of its own that prints what it took, for `memory`, `growth` and `throughput`.

With --idle its engine does nothing: a stand-in of the benchmarks, never offered to users.
"""

import argparse
import json
import re
import subprocess
import sys
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from gbad_batch.engine.row import THREATS
from gbad_batch.engine.runtime import Engine, Outputs, Runner
from gbad_batch.engine.scan import Scan
from gbad_batch.engine.scorer import Scorer
from gbad_batch.engine.settings import ScanSettings

from .report import ROOT

if TYPE_CHECKING:
    from gbad_batch.engine.runtime.cuda_graphs import Pixels

MEASURED = ("model", "precision", "cache_dir")  # settings of a scan that callers choose


@dataclass(frozen=True)
class Scanned:
    """What a scan took."""

    images: int
    seconds: float  # start-up apart
    peak_mb: float  # MB of 1,000,000 bytes
    stage_seconds: dict[str, float]  # busy, summed over threads
    batch_ms: list[float]  # of each batch in the networks, while the other stages ran


class IdleRunner:
    """Gives the same made-up outputs for every image."""

    def __init__(self, engine: Engine):
        self.engine = engine

    def __call__(self, pixels: "Pixels") -> Outputs:
        """Score nothing."""
        n = len(pixels)
        ones = np.ones(n, np.float32)
        x = np.zeros((n, self.engine.features), np.float32)
        return Outputs(x, np.zeros((n, len(THREATS)), np.float32), ones, ones)

    def close(self) -> None:
        """Free nothing."""


class TimedRunner:
    """Runs an engine and notes how long each batch takes."""

    def __init__(self, runner: Runner, batch_ms: list[float]):
        self.engine = runner.engine
        self._runner = runner
        self._batch_ms = batch_ms

    def __call__(self, pixels: "Pixels") -> Outputs:
        """Score pixels uint8 [n, S, S, 3]."""
        began = time.perf_counter()
        outputs = self._runner(pixels)
        self._batch_ms.append((time.perf_counter() - began) * 1e3)
        return outputs

    def close(self) -> None:
        """Free what the engine holds."""
        self._runner.close()


class MeasuredScan(Scan):
    """A scan whose batches are timed, or whose engine does nothing."""

    def __init__(self, settings: ScanSettings, *, idle: bool):
        super().__init__(settings)
        self.batch_ms: list[float] = []
        self._idle = idle

    def _open_scorer(self) -> Scorer:
        scorer = super()._open_scorer()
        if self._idle:
            scorer.runner.close()
            scorer.runner = IdleRunner(scorer.engine)
        else:
            scorer.runner = TimedRunner(scorer.runner, self.batch_ms)
        return scorer


def scanned_apart(archive: Path, out: Path, *, idle: bool = False, **settings: object) -> Scanned:
    """Scan in a new process; `settings` are those named in MEASURED."""
    words = [sys.executable, "-m", f"{__package__}.scan_process", str(archive), str(out)]
    for name, value in settings.items():
        words += [f"--{name.replace('_', '-')}", str(value)]
    words += ["--idle"] if idle else []
    done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    return Scanned(**json.loads(done.stdout))


def peak_bytes() -> int:
    """Read this process's largest resident set."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def main() -> None:
    """Scan and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("archive")
    parser.add_argument("out", type=Path)
    parser.add_argument("--idle", action="store_true")
    parser.add_argument("--model", type=Path)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--cache-dir", type=Path)
    given = parser.parse_args()
    chosen = {name: getattr(given, name) for name in MEASURED}
    scan = MeasuredScan(
        ScanSettings(sources=(given.archive,), out=given.out, device="cpu", overwrite=True, **chosen),
        idle=given.idle,
    )
    done = scan.run()
    peak_mb = peak_bytes() / 1e6
    print(json.dumps(asdict(Scanned(done.images, done.seconds, peak_mb, done.stage_seconds, scan.batch_ms))))


if __name__ == "__main__":
    main()
