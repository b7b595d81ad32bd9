"""How long it takes to resume an unfinished scan of a million rows, that is, to find the finished ones."""

import argparse
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

from gbad_batch.engine.results import open_results
from gbad_batch.engine.results.index import key_of
from gbad_batch.engine.results.schema import results_schema, to_batch
from gbad_batch.engine.row import Row
from gbad_batch.engine.settings import ScanSettings

from ..report import Report

ROWS = 1_000_000
BATCH = 1_000
LONGEST_S = 10.0  # of the contract, a million rows


def options(parser: argparse.ArgumentParser) -> None:
    """Declare how many rows the unfinished scan has."""
    parser.add_argument("--rows", type=int, default=ROWS, metavar="N", help="rows of the unfinished scan")


def run(arguments: argparse.Namespace) -> Report:
    """Report how long opening takes, and each question whether a row is finished."""
    count = arguments.rows
    report = Report("Resuming an unfinished scan")
    found = find_finished(count)
    report.add("open_s", found.open_s, "s", at_most=LONGEST_S * max(1, count / ROWS))
    report.add("claim_us", found.claim_s / count * 1e6, "us a candidate")
    report.add("rows_lost", found.lost, at_most=0)
    return report


@dataclass(frozen=True)
class Found:
    """Time to find the finished rows of an unfinished scan."""

    open_s: float  # until the finished rows are known
    claim_s: float  # to ask for each row once
    lost: int  # rows that were not found


def find_finished(count: int) -> Found:
    """Write rows as a scan does, leave them unfinished, open them again; then meet each candidate once."""
    with tempfile.TemporaryDirectory() as scratch:
        settings = ScanSettings(out=Path(scratch) / "r.parquet")
        with open_results(settings, {}, {}) as session:
            for start in range(0, count, BATCH):
                rows = [made_up_row(i) for i in range(start, min(start + BATCH, count))]
                for row in rows:
                    session.index.claim(key_of(row), row.kind)
                session.write(to_batch(rows, results_schema()))
        began = time.perf_counter()
        with open_results(settings, {}, {}) as session:
            opened = time.perf_counter()
            claims = (session.index.claim(key_of(made_up_row(i)), "image") for i in range(count))
            found = sum(claim == "finished" for claim in claims)
            claimed = time.perf_counter()
    return Found(opened - began, claimed - opened, count - found)


def made_up_row(i: int) -> Row:
    """Give a row as a scan writes it."""
    return Row(
        f"/archive/day{i // 1000:04d}/bag{i:07d}.jpg", "image", 100_000 + i % 999, 1_700_000_000_000_000 + i,
        sha256=i.to_bytes(32, "big"), format="jpeg", width=700, height=500, bit_depth=8, color="rgb",
        status="ok", p_gun=0.1, p_knife=0.2, p_wrench=0.3, p_pliers=0.4, p_scissors=0.5,
        largest_logit=0.0, reconstruction_loss=i / ROWS, feature_matching_loss=0.5, anomaly_score=i / ROWS,
        anomalous=False,
    )  # fmt: skip
