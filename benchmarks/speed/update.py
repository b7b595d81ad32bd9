"""What one night of `scan --update` costs beside a whole scan, and whether it gives the same rows."""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gbad_batch.engine.scan import Scan
from gbad_batch.engine.settings import ScanSettings

from ..archives import bags, linked
from ..report import Report

IMAGES = 20_000
PICTURES = 64
NEW = 100  # of so many images one is new
MOST_SHARE = 0.05  # of a whole scan


def options(parser: argparse.ArgumentParser) -> None:
    """Declare how many images the archive has."""
    parser.add_argument("--images", type=int, default=IMAGES, metavar="N", help="images of the archive")


def run(arguments: argparse.Namespace) -> Report:
    """Scan an archive, add some images, and time the update and a scan from the beginning."""
    new = max(1, arguments.images // NEW)
    report = Report("A night of scan --update beside a whole scan, start-up included")
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        archive, pictures = root / "archive", bags(root / "bags", PICTURES)
        linked(archive / "first", pictures, arguments.images - new)
        # the night before is short: equal bytes are scored once, which neither timed scan does
        _scan(archive, root / "updated", update=True, by_content=True)
        linked(archive / "new", pictures, new)
        update_s = _scan(archive, root / "updated", update=True)
        whole_s = _scan(archive, root / "whole")
        differing = 0 if _rows(root / "updated").equals(_rows(root / "whole")) else 1
    report.add("update_s", update_s, "s")
    report.add("whole_s", whole_s, "s")
    report.add("update_share", update_s / whole_s, at_most=MOST_SHARE)
    report.add("results_differing", differing, at_most=0)
    report.notes.append(f"update: {arguments.images:,} images, of which {new:,} are new")
    return report


def _scan(archive: Path, out: Path, **options: Any) -> float:
    """Return the seconds of a scan on the CPU."""
    began = time.perf_counter()
    Scan(ScanSettings(sources=(archive,), out=out, device="cpu", **options)).run()
    return time.perf_counter() - began


def _rows(out: Path) -> pa.Table:
    return pq.read_table(out).drop_columns("scanned_at")
