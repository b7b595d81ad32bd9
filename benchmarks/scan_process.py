"""A scan in a process of its own that prints what it took, for `memory` and `growth`."""

import argparse
import json
import re
import resource
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

from gbad_batch.engine.scan import Scan
from gbad_batch.engine.settings import ScanSettings
from gbad_batch.engine.stages import open_stages
from gbad_batch.engine.system.machine import let_arrow_use_malloc

from .report import ROOT
from .stand_ins import open_unscored_stages


@dataclass(frozen=True)
class Scanned:
    """What a scan took."""

    images: int
    seconds: float  # start-up apart
    peak_mb: float  # MB of 1,000,000 bytes: of the coordinator and of its largest worker, added
    stage_cpu_seconds: dict[str, float]  # summed over threads


def scanned_apart(archive: Path, out: Path, *, unscored: bool = False, model: Path | None = None) -> Scanned:
    """Scan in a new process; `unscored` leaves the networks out."""
    words = [sys.executable, "-m", f"{__package__}.scan_process", str(archive), str(out)]
    words += ["--model", str(model)] if model else []
    words += ["--unscored"] if unscored else []
    done = subprocess.run(words, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    return Scanned(**json.loads(done.stdout))


def peak_bytes() -> int:
    """Read the largest resident set of this process, and add that of its largest child that has ended."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found is not None
    return (int(found[1]) + resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss) * 1024


def main() -> None:
    """Scan and print what it took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("archive")
    parser.add_argument("out", type=Path)
    parser.add_argument("--unscored", action="store_true")
    parser.add_argument("--model", type=Path)
    given = parser.parse_args()
    let_arrow_use_malloc()  # as the command does
    settings = ScanSettings(
        sources=(given.archive,), out=given.out, device="cpu", overwrite=True, model=given.model
    )
    done = Scan(settings, open_unscored_stages if given.unscored else open_stages).run()
    print(json.dumps(asdict(Scanned(done.images, done.seconds, peak_bytes() / 1e6, done.stage_cpu_seconds))))


if __name__ == "__main__":
    main()
