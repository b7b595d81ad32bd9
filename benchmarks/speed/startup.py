"""How long a user waits for `--help`, and for the import by itself."""

import argparse
import statistics
import subprocess
import sys
import time
from pathlib import Path

from ..report import Report


def options(parser: argparse.ArgumentParser) -> None:
    """Declare how often to try."""
    parser.add_argument(
        "--repeat", type=int, default=9, metavar="N", help="tries of each, after one to warm up"
    )


def run(arguments: argparse.Namespace) -> Report:
    """Give the median of fresh processes, seconds; the help's bar is half a second."""
    report = Report("Start-up, median of fresh processes")
    help_words = [str(Path(sys.executable).with_name("gbad-batch")), "--help"]
    report.add("help_s", _median_s(help_words, arguments.repeat), "s", at_most=0.5)
    report.add(
        "import_s", _median_s([sys.executable, "-c", "import gbad_batch.engine"], arguments.repeat), "s"
    )
    report.add("python_s", _median_s([sys.executable, "-c", ""], arguments.repeat), "s")
    return report


def _median_s(words: list[str], repeat: int) -> float:
    tries = []
    for _ in range(repeat + 1):
        began = time.perf_counter()
        subprocess.run(words, check=True, stdout=subprocess.DEVNULL)
        tries.append(time.perf_counter() - began)
    return statistics.median(tries[1:])
