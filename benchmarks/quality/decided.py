"""Whether `decide` gives the rows of a scan with its options, bit for bit, over synthetic bags."""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gbad_batch.engine import Scan, ScanSettings
from gbad_batch.engine.rescreening import DecideSettings, decide

from ..archives import bags
from ..report import Report

PICTURES = 200
OPTIONS: tuple[dict[str, Any], ...] = (
    {"pfa": 0.01},
    {"threshold": 0.0},
    {"decision": "gbad", "pfa": 0.1},
)


def options(parser: argparse.ArgumentParser) -> None:
    """Declare how many bags are scanned."""
    parser.add_argument("--pictures", type=int, default=PICTURES, metavar="N", help="bags that are scanned")


def run(arguments: argparse.Namespace) -> Report:
    """Scan bags, decide again, and scan with the same options."""
    report = Report("Rows that decide gives beside those of a scan with the same options")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        bags(folder / "bags", arguments.pictures)
        _scan(folder, "results")
        differing = 0
        for number, given in enumerate(OPTIONS):
            _scan(folder, f"scanned{number}", **given)
            decide(DecideSettings(results=folder / "results", out=folder / f"decided{number}", **given))
            differing += not _rows(folder / f"decided{number}").equals(_rows(folder / f"scanned{number}"))
    report.add("decide_differing", differing, at_most=0)
    report.notes.append(f"decided: {len(OPTIONS)} operating points on {arguments.pictures} bags")
    return report


def _scan(folder: Path, name: str, **given: Any) -> None:
    Scan(ScanSettings(sources=(folder / "bags" / "images",), out=folder / name, device="cpu", **given)).run()


def _rows(out: Path) -> pa.Table:
    return pq.read_table(out).drop_columns("scanned_at")
