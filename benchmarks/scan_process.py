"""A scan in a process of its own that prints its peak memory in bytes, for `memory` and `growth`.

With --idle its engine does nothing: a stand-in of the benchmarks, never offered to users.
"""

import argparse
import re
from pathlib import Path

import numpy as np

from gbad_batch.engine.row import THREATS
from gbad_batch.engine.runtime import Engine, Outputs
from gbad_batch.engine.scan import Scan
from gbad_batch.engine.scorer import Scorer
from gbad_batch.engine.settings import ScanSettings


class IdleRunner:
    """Gives the same made-up outputs for every image."""

    def __init__(self, engine: Engine):
        self.engine = engine

    def __call__(self, pixels: np.ndarray) -> Outputs:
        """Score nothing."""
        n = len(pixels)
        ones = np.ones(n, np.float32)
        x = np.zeros((n, self.engine.features), np.float32)
        return Outputs(x, np.zeros((n, len(THREATS)), np.float32), ones, ones)

    def close(self) -> None:
        """Free nothing."""


class IdleScan(Scan):
    """A scan whose engine does nothing."""

    def _open_scorer(self) -> Scorer:
        scorer = super()._open_scorer()
        scorer.runner.close()
        scorer.runner = IdleRunner(scorer.engine)
        return scorer


def peak_bytes() -> int:
    """Read this process's largest resident set."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return int(found[1]) * 1024


def main() -> None:
    """Scan and print the peak."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("archive")
    parser.add_argument("out", type=Path)
    parser.add_argument("--idle", action="store_true")
    arguments = parser.parse_args()
    settings = ScanSettings(sources=(arguments.archive,), out=arguments.out)
    (IdleScan if arguments.idle else Scan)(settings).run()
    print(peak_bytes())


if __name__ == "__main__":
    main()
