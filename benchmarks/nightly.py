"""The nightly run, compared with a history: throughput in a short form, memory, exactness."""

import argparse
import tempfile
from collections.abc import Callable
from pathlib import Path

from gbad_batch.engine.system.machine import cpu_model

from . import history
from .archives import default_work_dir
from .bench.bench import bench_options, bench_settings
from .quality import exactness
from .report import Report, record
from .robustness import memory
from .speed.measuring import DEFAULT, PEER, PRECISIONS, Settings, measure
from .speed.throughput import add_figures

BAND = 0.10  # of the reference
SYSTEMS = (PEER, *PRECISIONS, DEFAULT)
RATIOS = tuple(f"ratio_{name}" for name in (*PRECISIONS, DEFAULT))
LISTED = {"listed_2k": 2_000, "listed_20k": 20_000}
SHORT = {"rounds": 3, "seconds": 5.0, "search": False}


def options(parser: argparse.ArgumentParser) -> None:
    """Declare the history, the band, and what is measured."""
    add = parser.add_argument
    default = default_work_dir() / "nightly.jsonl"
    add("--history", type=Path, default=default, metavar="FILE", help="a line a run; more lies beside it")
    add("--band", type=float, default=BAND, metavar="SHARE", help="that a ratio may lose against its past")
    add("--parts", nargs="+", default=PARTS, choices=PARTS, metavar="PART", help=", ".join(PARTS))
    add("--model", type=Path, metavar="BUNDLE", help="in the place of the default bundle")
    add("--resnext", type=Path, metavar="BUNDLE", help="in the place of an untrained ResNeXt-50")
    bench_options(parser)
    parser.set_defaults(**SHORT)


def run(arguments: argparse.Namespace) -> Report:
    """Measure, compare, append to the history, write its table and plot."""
    past = history.read(arguments.history)
    arguments.work.mkdir(mode=0o700, parents=True, exist_ok=True)
    report = Report("Tonight, against the last runs on this CPU model")
    for part in arguments.parts:
        PARTS[part](report, arguments, past)
    history.append(arguments.history, record(report, "nightly"))
    publish(arguments.history)
    return report


def publish(path: Path) -> None:
    """Write the table FILE.md and the plot FILE.png of a history beside it."""
    runs = history.read(path)
    picture = path.with_suffix(".png")
    history.plot(runs, RATIOS, picture)
    text = f"# Nightly runs\n\n{history.table(runs, RATIOS)}\n![stages over commits]({picture.name})\n"
    path.with_suffix(".md").write_text(text, encoding="utf-8")


def _add_throughput(report: Report, arguments: argparse.Namespace, past: list[history.Run]) -> None:
    """Add the command's ratios to the peer of the same run; each may lose no more than the band."""
    found = measure(
        Settings(
            bench=bench_settings(arguments),
            resnext=arguments.resnext,
            model=arguments.model,
            systems=SYSTEMS,
            cold=False,
        )
    )
    add_figures(report, found)
    for name in (*PRECISIONS, DEFAULT):
        if name not in found.runs or PEER not in found.runs:
            report.not_run[f"ratio_{name}"] = found.not_run.get(name) or found.not_run[PEER]
            continue
        before = history.reference(past, cpu_model(), f"ratio_{name}")
        least = None if before is None else before * (1 - arguments.band)
        report.add(f"ratio_{name}", found.ratio(name).median, "times", at_least=least)
        if before is None:
            report.notes.append(f"ratio_{name}: no earlier run on this CPU model to compare with")


def _add_memory(report: Report, arguments: argparse.Namespace, _: list[history.Run]) -> None:
    """Add the peaks of two archives of thumbnails."""
    with tempfile.TemporaryDirectory(dir=arguments.work) as scratch:
        memory.add_listed(report, Path(scratch), LISTED)


def _add_exactness(report: Report, arguments: argparse.Namespace, _: list[history.Run]) -> None:
    """Add all of `python -m benchmarks exactness`."""
    report.figures += exactness.run(arguments).figures


PARTS: dict[str, Callable[[Report, argparse.Namespace, list[history.Run]], None]] = {
    "throughput": _add_throughput,
    "memory": _add_memory,
    "exactness": _add_exactness,
}
