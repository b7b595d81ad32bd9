"""How much memory a scan takes at its peak, as the archive grows.

2k and 20k images are scanned whole. 100k and 1M thumbnails are listed, read, decoded and written without
networks, so that what is measured is the bookkeeping, at a bearable time.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from ..archives import bags, linked, thumbnails
from ..report import Report
from ..scan_process import Scanned, scanned_apart

CONTRACT_BYTES_A_ROW = 16
PICTURES = 50
SLACK_MB = {"whole": 100, "listed": 50}  # over a smaller archive, the rows' bytes apart


def options(parser: argparse.ArgumentParser) -> None:
    """Declare where the files go."""
    parser.add_argument("--folder", type=Path, help="scratch folder on a disk with a million free inodes")


def run(arguments: argparse.Namespace) -> Report:
    """Measure four scans, each in a process of its own; MB of 1,000,000 bytes."""
    report = Report("Peak memory of a scan")
    with tempfile.TemporaryDirectory(dir=arguments.folder) as scratch:
        root = Path(scratch)
        pictures = bags(root / "bags", PICTURES)
        whole = {name: scan_of(root, name, pictures, n) for name, n in {"2k": 2_000, "20k": 20_000}.items()}
        add_peaks(report, whole, SLACK_MB["whole"])
        add_listed(report, root, {"listed_100k": 100_000, "listed_1m": 1_000_000})
    return report


def add_listed(report: Report, root: Path, sizes: dict[str, int]) -> None:
    """Add the peaks of two archives of thumbnails, scanned without networks."""
    tiny = thumbnails(root / "thumbnails", sum(sizes.values()))  # each is linked in both
    listed = {name: scan_of(root, name, tiny, count, unscored=True) for name, count in sizes.items()}
    add_peaks(report, listed, SLACK_MB["listed"])


def scan_of(
    root: Path,
    name: str,
    pictures: list[Path],
    count: int,
    *,
    unscored: bool = False,
    model: Path | None = None,
) -> Scanned:
    """Scan `count` links to some pictures, in a process of its own."""
    print(f"  scanning {count} images ...", file=sys.stderr)
    archive = linked(root / name, pictures, count)
    return scanned_apart(archive, root / f"{name}.parquet", unscored=unscored, model=model)


def add_peaks(report: Report, scans: dict[str, Scanned], slack_mb: float) -> None:
    """Add the peaks of a smaller and a larger archive; the larger may have its rows' bytes and some slack."""
    (small, before), (large, after) = scans.items()
    rows_mb = (after.images - before.images) * CONTRACT_BYTES_A_ROW / 1e6
    report.add(f"peak_mb_{small}", before.peak_mb, "MB")
    report.add(f"peak_mb_{large}", after.peak_mb, "MB", at_most=before.peak_mb + slack_mb + rows_mb)
