"""What one NVIDIA GPU does in 8 minutes: parity, speed by stage and end to end, peers, kernels, tests."""

import argparse
import importlib.util
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gbad_batch.engine.errors import Refused, how_to_install
from gbad_batch.export import nvidia_gpus
from gbad_batch.export.choice import gpu_name, is_installed, unusable

from ..archives import bags, linked
from ..report import ROOT, Report

SECONDS = 470.0  # for all of it
LEAST_S = 10.0  # a part is not begun with less
PICTURES = 128  # that are told apart; the archive is of links to them
# in the order of what is missed most, where time runs out; with the packages that each needs
PARTS = {
    "chain": ("timm",),
    "parity": ("timm",),
    "stages": ("timm",),
    "scan": ("timm",),
    "loader": ("timm", "torchvision"),
    "dali": ("timm", "nvidia.dali"),
    "kernels": ("triton",),
    "decision": ("sklearn",),
    "tests": ("pytest",),
    "inductor": ("timm", "triton"),
}


def options(parser: argparse.ArgumentParser) -> None:
    """Declare what is measured, for how long, and that a file is always written."""
    add = parser.add_argument
    add("--model", type=Path, metavar="BUNDLE", help="in the place of the default bundle")
    add("--images", type=int, default=50_000, metavar="N", help="of the archive that is scanned")
    add("--seconds", type=float, default=SECONDS, metavar="S", help="for all parts; later ones are left out")
    add("--parts", nargs="+", choices=PARTS, default=list(PARTS), metavar="NAME", help=", ".join(PARTS))
    parser.set_defaults(json=ROOT / "benchmarks" / "results" / "gpu.json")


def run(arguments: argparse.Namespace) -> Report:
    """Run each part in a process of its own; raises Refused where no GPU can be measured."""
    _need_a_gpu()
    until = time.monotonic() + arguments.seconds
    report = Report(f"One GPU: {gpu_name('cuda:0')}")
    if not is_installed("tensorrt"):
        report.notes.append(
            f"TensorRT is not installed, so Inductor is the engine: {how_to_install('tensorrt')}"
        )
    with tempfile.TemporaryDirectory() as scratch:
        pictures = bags(Path(scratch) / "bags", PICTURES)
        archive = linked(Path(scratch) / "archive", pictures, arguments.images)
        words = ["--pictures", str(pictures[0].parent), "--archive", str(archive)]
        words += ["--model", str(arguments.model)] if arguments.model else []
        for name in arguments.parts:
            add_part(report, name, run_part(name, words, until - time.monotonic()))
    add_ratios(report)
    return report


def _need_a_gpu() -> None:
    reason = unusable("cuda:0")
    if reason:
        there = f"{len(nvidia_gpus())} are here" if nvidia_gpus() else "none is here"
        raise Refused(
            f"no NVIDIA GPU can be measured: {there}, and {reason}; gbad-batch doctor --gpu shows more"
        )


@dataclass(frozen=True)
class Part:
    """What a part has found, or why it has not run."""

    figures: list[dict[str, Any]] = field(default_factory=list)  # as `Report.add` takes them
    notes: list[str] = field(default_factory=list)
    not_run: str | None = None
    failed: str | None = None


def run_part(name: str, words: Sequence[str], seconds: float) -> Part:
    """Run a part for so many seconds at most; what it has started ends with it."""
    missing = [package for package in PARTS[name] if not _is_there(package)]
    if missing:
        return Part(not_run=f"{', '.join(missing)} not installed")
    if seconds < LEAST_S:
        return Part(not_run="out of time")
    with tempfile.TemporaryDirectory() as scratch:
        result = Path(scratch) / "result.json"
        command = [sys.executable, "-m", f"{__package__}.gpu_parts", name, *words, "--result", str(result)]
        said = finished(command, seconds)
        if said is None:
            return Part(not_run=f"out of time, after {seconds:.0f} seconds of its own")
        if not result.exists():
            return Part(failed=said)
        return Part(**json.loads(result.read_text()))


def _is_there(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # of a package that it would be in
        return False


def finished(command: Sequence[str], seconds: float) -> str | None:
    """Run a command and give the last line of its errors; None where it took longer and was ended."""
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        _, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # with what it has started
        process.communicate()
        return None
    lines = [line for line in errors.splitlines() if line.strip()]
    return lines[-1][:300] if lines else f"it ended with code {process.returncode}"


def add_part(report: Report, name: str, part: Part) -> None:
    """Add what a part has found under its name; one that failed fails the report."""
    if part.not_run:
        report.notes.append(f"{name}: not run: {part.not_run}")
    if part.failed:
        report.add(f"{name}_failed", 1, at_most=0)
        report.notes.append(f"{name}: failed: {part.failed}")
    for figure in part.figures:
        report.add(**figure)
    report.notes += [f"{name}: {note}" for note in part.notes]


def add_ratios(report: Report) -> None:
    """Add what end to end is of the slower stage alone, and of the plain loop's speed."""
    found = {figure.name: figure.value for figure in report.figures}
    scan = found.get("scan_img_s")
    alone = [found[name] for name in ("engine_img_s", "decode_img_s") if name in found]
    if scan and len(alone) == 2:
        report.add("scan_of_slower_stage", scan / min(alone), at_least=0.7)
    if scan and "loader_img_s" in found:
        report.add("scan_of_loader", scan / found["loader_img_s"], at_least=3)
