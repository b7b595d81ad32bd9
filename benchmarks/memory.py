"""How much memory a scan takes at its peak, as the archive grows.

2k and 20k images are scanned whole. 100k and 1M thumbnails are listed, read, decoded and written with an
engine that does nothing, so that what is measured is the bookkeeping, at a bearable time.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from .archives import bags, linked, thumbnails
from .report import Report

CONTRACT_BYTES_A_ROW = 16
PICTURES = 50


def options(parser: argparse.ArgumentParser) -> None:
    """Declare where the files go."""
    parser.add_argument("--folder", type=Path, help="scratch folder on a disk with a million free inodes")


def run(arguments: argparse.Namespace) -> Report:
    """Measure four scans, each in a process of its own; MB of 1,000,000 bytes."""
    report = Report("Peak memory of a scan")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
        root = Path(scratch)
        pictures = bags(root / "bags", PICTURES)
        small = _peak_mb(root, "2k", pictures, 2_000, idle=False)
        report.add("peak_mb_2k", small, "MB")
        report.add(
            "peak_mb_20k", _peak_mb(root, "20k", pictures, 20_000, idle=False), "MB", at_most=small + 100
        )
        tiny = thumbnails(root / "thumbnails", 1_000_000)
        listed = _peak_mb(root, "100k", tiny, 100_000, idle=True)
        report.add("peak_mb_listed_100k", listed, "MB")
        allowed = listed + 50 + 900_000 * CONTRACT_BYTES_A_ROW / 1e6
        report.add(
            "peak_mb_listed_1m", _peak_mb(root, "1m", tiny, 1_000_000, idle=True), "MB", at_most=allowed
        )
    return report


def _peak_mb(root: Path, name: str, pictures: list[Path], count: int, *, idle: bool) -> float:
    archive = linked(root / name, pictures, count)
    words = [sys.executable, "-m", f"{__package__}.scan_process", str(archive), str(root / f"{name}.parquet")]
    print(f"  scanning {count} images ...", file=sys.stderr)
    done = subprocess.run([*words, *(["--idle"] if idle else [])], check=True, capture_output=True, text=True)
    return int(done.stdout) / 1e6
