"""Everything that is asked of finished results: how fast, how exact, how often wrongly.

`decide`, on two cores and on one, stands beside pyarrow's bare reading and writing on as many; `bags` and
`diff` run on one core. The other parts are benchmarks of their own, run one after the other.
"""

import argparse
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gbad_batch.engine.grouping import ByPattern
from gbad_batch.engine.rescreening import DecideSettings, DiffSettings, decide, diff
from gbad_batch.engine.rescreening.bagging import join_views
from gbad_batch.engine.results.derived import read_ahead
from gbad_batch.engine.results.parts import ROW_GROUP
from gbad_batch.engine.results.schema import REPEATING

from ..made_up_results import write_results
from ..report import Report

# imported only where they run: a process's peak of memory is at least what its parent had when it began
PARTS = {
    "decided": "..quality.decided", "rescore": ".rescore", "update": ".update", "signed": ".signed",
    "drift": "..quality.drift", "typicality": "..quality.typicality",
}  # fmt: skip
WITH_OPTIONS = ("rescore", "update", "signed")  # the others import much, and run as by default

ROWS = 1_000_000
FEWER = 4  # times, to see that memory does not follow the rows
ROUNDS = 3  # the fastest counts
CORES = 2
LEAST_ROWS_PER_S = 1_000_000
MOST_GROWTH_MB = 50
MOST_BAGS_S, MOST_BAGS_MB = 30, 500  # of a million rows
TEN_VIEWS = r"/bag0*(\d+)\d\."  # makes bags of ten neighbours
MOST_DIFF_S, MOST_DIFF_MB = 20, 1000  # of a million rows


def options(parser: argparse.ArgumentParser) -> None:
    """Declare how many rows the results have."""
    parser.add_argument("--rows", type=int, default=ROWS, metavar="N", help="rows of the results")
    parser.add_argument("--rounds", type=int, default=ROUNDS, metavar="N", help="the fastest counts")
    parser.add_argument(
        "--parts",
        nargs="*",
        default=list(PARTS),
        choices=PARTS,
        metavar="PART",
        help="besides decide and diff",
    )
    for name in WITH_OPTIONS:
        _part(name).options(parser)


def run(arguments: argparse.Namespace) -> Report:
    """Report `decide` and `diff`, then the other parts."""
    report = _decide_and_diff(arguments)
    for name in arguments.parts:
        print(f"rescreen: {name}", file=sys.stderr)
        found: Report = _part(name).run(arguments if name in WITH_OPTIONS else _defaults(name))
        report.figures += found.figures
        report.notes += found.notes
        report.not_run |= found.not_run
    return report


def _defaults(name: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser()
    _part(name).options(parser)
    return parser.parse_args([])


def _part(name: str) -> Any:
    return import_module(PARTS[name], __package__)


def _decide_and_diff(arguments: argparse.Namespace) -> Report:
    """Report the speed of `decide` with another PFA or decision, a bare copy, `diff`, `bags`; and memory."""
    rows = arguments.rows
    report = Report("Results asked again; decide, bags and diff in processes of their own")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        results = write_results(folder / "results", rows)
        fewer = write_results(folder / "fewer", max(1, rows // FEWER))
        other = write_results(folder / "other", rows, seed=1)
        out = folder / "out"
        bare = Turn(copy, {"source": results, "target": out})
        decision = Turn(decide_again, {"results": results, "out": out, "decision": "gbad"})
        turns = {
            "bare_copy": bare,
            "decide_pfa": Turn(decide_again, {"results": results, "out": out, "pfa": 0.01}),
            "decide_decision": decision,
            "bare_copy_one_core": replace(bare, cores=1),
            "decide_decision_one_core": replace(decision, cores=1),
            "decide_fewer": Turn(decide_again, {"results": fewer, "out": out, "decision": "gbad"}),
            "bags": Turn(join, {"results": results, "out": folder / "bags"}, cores=1),
            "diff": Turn(compare, {"old": results, "new": other}, cores=1),
        }
        rounds = [{name: alone(turn) for name, turn in turns.items()} for _ in range(arguments.rounds)]
    fastest = {name: min((each[name] for each in rounds), key=lambda one: one.seconds) for name in turns}
    for name in ("bare_copy", "decide_pfa", "decide_decision"):
        least = None if name == "bare_copy" else LEAST_ROWS_PER_S
        report.add(f"{name}_rows_per_s", rows / fastest[name].seconds, "rows/s", at_least=least)
    for name in ("bare_copy_one_core", "decide_decision_one_core"):
        report.add(f"{name}_rows_per_s", rows / fastest[name].seconds, "rows/s")
    for name in ("decide_pfa", "decide_decision"):
        report.add(f"{name}_of_bare", fastest["bare_copy"].seconds / fastest[name].seconds)
    growth = fastest["decide_decision"].peak_mb - fastest["decide_fewer"].peak_mb
    report.add("decide_peak_mb", fastest["decide_decision"].peak_mb, "MB")
    report.add("decide_growth_mb", growth, "MB", at_most=MOST_GROWTH_MB)
    report.add("bags_s", fastest["bags"].seconds, "s", at_most=MOST_BAGS_S * max(1, rows / ROWS))
    report.add("bags_peak_mb", fastest["bags"].peak_mb, "MB", at_most=MOST_BAGS_MB * max(1, rows / ROWS))
    report.add("diff_s", fastest["diff"].seconds, "s", at_most=MOST_DIFF_S * max(1, rows / ROWS))
    report.add("diff_peak_mb", fastest["diff"].peak_mb, "MB", at_most=MOST_DIFF_MB * max(1, rows / ROWS))
    report.notes.append(
        f"{rows:,} rows, the fastest of {arguments.rounds} rounds; growth over a quarter of the rows"
    )
    return report


@dataclass(frozen=True)
class Turn:
    """One step of a round."""

    action: Callable[..., object]
    arguments: dict[str, Any]
    cores: int = CORES


@dataclass(frozen=True)
class Taken:
    """What one step took, start-up apart."""

    seconds: float
    peak_mb: float  # of its process


def alone(turn: Turn) -> Taken:
    """Run a step in a fresh process that has so many cores."""
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
        return pool.submit(_timed, turn).result()


def _timed(turn: Turn) -> Taken:
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: turn.cores])
    pa.set_cpu_count(turn.cores)
    began = time.perf_counter()
    turn.action(**turn.arguments)
    seconds = time.perf_counter() - began
    return Taken(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000)


def decide_again(**given: Any) -> None:
    """Decide as the command does."""
    decide(DecideSettings(**given, overwrite=True))


def compare(**given: Any) -> None:
    """Compare as the command does."""
    diff(DiffSettings(**given))


def join(results: Path, out: Path) -> None:
    """Join ten views to a bag, as the command does."""
    join_views(results, ByPattern(TEN_VIEWS), out)


def copy(source: Path, target: Path) -> None:
    """Read a result and write it as it is, with nothing but pyarrow, in the form and order of `decide`."""
    with pq.ParquetFile(source, pre_buffer=False, page_checksum_verification=True) as file:
        schema = file.schema_arrow
        dictionary = [name for name in REPEATING if name.partition(".")[0] in schema.names]
        form: dict[str, Any] = {"compression": "zstd", "use_dictionary": dictionary}
        with pq.ParquetWriter(target, schema, write_page_checksum=True, **form) as writer:
            for batch in read_ahead(file.iter_batches(ROW_GROUP, use_threads=False)):
                writer.write_batch(batch)
