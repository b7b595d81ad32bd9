"""How cost grows with the archive: images a second, memory, and whether anything grows faster than linear.

1k and 10k images are scanned whole. 10k, 100k and 1M thumbnails are listed, read, decoded and written
without networks, so that what is measured is the bookkeeping, at a bearable time.
"""

import argparse
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..archives import bags, thumbnails
from ..report import Report
from ..scan_process import Scanned
from .memory import PICTURES, SLACK_MB, add_peaks, scan_of
from .resume import LONGEST_S, ROWS, find_finished

WHOLE = {"1k": 1_000, "10k": 10_000}
LISTED = {"listed_10k": 10_000, "100k": 100_000, "1m": 1_000_000}
EXPONENT = 1.15  # of time over images; 1 is linear, and a machine is not always as fast


def options(parser: argparse.ArgumentParser) -> None:
    """Declare where the files go, and how many."""
    parser.add_argument("--folder", type=Path, help="scratch folder on a disk with a million free inodes")
    parser.add_argument(
        "--share", type=float, default=1.0, metavar="S", help="of the images of each size, for a trial"
    )
    parser.add_argument("--model", type=Path, metavar="BUNDLE", help="in the place of the default bundle")


def run(arguments: argparse.Namespace) -> Report:
    """Scan archives of each size, each in a process of its own; MB of 1,000,000 bytes."""
    report = Report("How cost grows with the archive")
    share = arguments.share
    with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
        root = Path(scratch)
        whole, listed = _sizes(WHOLE, share), _sizes(LISTED, share)
        pictures = bags(root / "bags", min(PICTURES, *whole.values()))
        tiny = thumbnails(root / "thumbnails", sum(listed.values()))  # each is linked in all of the archives
        scans = {
            "whole": {n: scan_of(root, n, pictures, k, model=arguments.model) for n, k in whole.items()},
            "listed": {n: scan_of(root, n, tiny, k, unscored=True) for n, k in listed.items()},
        }
    for kind, found in scans.items():
        for name, scanned in found.items():
            report.add(f"img_s_{name}", scanned.images / scanned.seconds, "img/s")
        *_, small, large = found
        add_peaks(report, {small: found[small], large: found[large]}, SLACK_MB[kind])
        _add_exponents(report, kind, list(found.values()))
    _add_resume(report, _sizes({"1m": ROWS}, share)["1m"])
    if share != 1:
        report.notes.append(f"a trial: of every number of images that a name tells, {share:g} of it")
    return report


def _sizes(named: dict[str, int], share: float) -> dict[str, int]:
    return {name: max(2, round(count * share)) for name, count in named.items()}


def _add_exponents(report: Report, kind: str, scans: Sequence[Scanned]) -> None:
    """Add the exponents of a fit of seconds = a * images ** b, of the scans and of each stage.

    A stage's are CPU seconds: the listing runs ahead on an idle core at first, and later waits for one.
    """
    images = [scanned.images for scanned in scans]
    report.add(f"exponent_{kind}", exponent(images, [s.seconds for s in scans]), at_most=EXPONENT)
    for stage in scans[-1].stage_cpu_seconds:
        seconds = [scanned.stage_cpu_seconds.get(stage, 0.0) for scanned in scans]
        if min(seconds) > 0:
            report.add(f"exponent_{kind}_{stage}", exponent(images, seconds), at_most=EXPONENT)


def exponent(images: Sequence[int], seconds: Sequence[float]) -> float:
    """Fit seconds = a * images ** b and return b."""
    return float(np.polyfit(np.log(images), np.log(seconds), 1)[0])


def _add_resume(report: Report, count: int) -> None:
    """Add the time to find the finished rows, and to look up each row."""
    print(f"  finding {count} finished rows ...", file=sys.stderr)
    found = find_finished(count)
    report.add("find_finished_1m_seconds", found.open_s + found.claim_s, "s", at_most=LONGEST_S)
    report.add("finished_rows_lost", found.lost, at_most=0)
