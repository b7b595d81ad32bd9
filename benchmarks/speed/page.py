"""How long a report of a million rows takes, and how much memory, with 200 pictures to read again."""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

from ..archives import bags
from ..made_up_results import write_results
from ..report import Report

ROWS = 1_000_000
PICTURES = 200
LONGEST_S, MOST_MB = 60.0, 1000.0
CODE = """
import json, resource, sys, time
from pathlib import Path
began = time.perf_counter()
from gbad_batch.engine.report import Shown, write_report
write_report(Path(sys.argv[1]), Path(sys.argv[2]), Shown(int(sys.argv[3])))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
print(json.dumps({"seconds": time.perf_counter() - began, "peak_mb": peak}))
"""


def options(parser: argparse.ArgumentParser) -> None:
    """Declare how many rows the result has."""
    parser.add_argument("--rows", type=int, default=ROWS, metavar="N", help="rows of the result")


def run(arguments: argparse.Namespace) -> Report:
    """Report seconds, memory and size of the page, in a process of its own."""
    report = Report(f"Report of {arguments.rows} rows")
    with tempfile.TemporaryDirectory() as scratch:
        result, page = Path(scratch, "results.parquet"), Path(scratch, "report.html")
        pictures = bags(Path(scratch, "bags"), PICTURES)
        write_results(result, arguments.rows, pictures=pictures)
        words = [sys.executable, "-c", CODE, str(result), str(page), str(PICTURES)]
        told = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
        report.add("seconds", told["seconds"], "s", at_most=LONGEST_S * max(1, arguments.rows / ROWS))
        report.add("peak_mb", told["peak_mb"], "MB", at_most=MOST_MB)
        report.add("page_mb", page.stat().st_size / 1e6, "MB")
        missing = page.read_text("utf-8").count('"picture":null')
        report.add("pictures_missing", missing, at_most=0)
    return report
