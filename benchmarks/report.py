"""The form that every benchmark reports in: figures with units and bars, and where they were measured."""

import json
import os
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from gbad_batch.engine.system.machine import cpu_flags, cpu_model, installed, usable_cores

ROOT = Path(__file__).parents[1]
SPEED_FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "amx_bf16", "avx512_bf16")
PACKAGES = (
    "gbad-batch",
    "cykooz-resizer",
    "nncf",
    "numpy",
    "nvidia-nvimgcodec-cu13",
    "onnxruntime",
    "openvino",
    "pyarrow",
    "simplejpeg",
    "timm",
    "torch",
    "torchvision",
    "triton",
)

Table = Sequence[Sequence[str]]  # rows of cells, the first its heading


@dataclass(frozen=True)
class Figure:
    """One measured value; a bar that is None is not asked for."""

    name: str  # as issues and histories quote it
    value: float
    unit: str
    at_most: float | None
    at_least: float | None

    @property
    def passed(self) -> bool:
        """Say whether the value keeps its bars; NaN keeps none."""
        above = self.at_least is None or self.value >= self.at_least
        below = self.at_most is None or self.value <= self.at_most
        return above and below

    @property
    def bar(self) -> str:
        """Write the bars as a person does."""
        bars = [
            f"{sign} {bound:.6g}"
            for sign, bound in ((">=", self.at_least), ("<=", self.at_most))
            if bound is not None
        ]
        return " and ".join(bars)


@dataclass
class Report:
    """What a benchmark found; `add` in the order that a person reads."""

    title: str
    notes: list[str] = field(default_factory=list)
    figures: list[Figure] = field(default_factory=list)
    not_run: dict[str, str] = field(default_factory=dict)  # figures that are unavailable here, and why
    facts: dict[str, Any] = field(default_factory=dict)  # what the record holds besides figures
    tables: list[Table] = field(default_factory=list)  # what a person reads before the figures

    def add(
        self,
        name: str,
        value: float,
        unit: str = "",
        *,
        at_most: float | None = None,
        at_least: float | None = None,
    ) -> None:
        """Add a figure; exactly n is at_most=n, at_least=n."""
        if any(figure.name == name for figure in self.figures):
            raise ValueError(f"the figure {name!r} is reported twice")
        self.figures.append(Figure(name, float(value), unit, at_most, at_least))

    @property
    def passed(self) -> bool:
        """Say whether every bar is kept; a report without a figure has measured nothing and fails."""
        return bool(self.figures) and all(figure.passed for figure in self.figures)

    def table(self) -> str:
        """Write heading, tables, figures and notes as a person reads them."""
        heading = [self.title, f"{cpu_model()}, {usable_cores()} cores, commit {commit()}", ""]
        tables = [line for table in self.tables for line in (*(f"  {row}" for row in aligned(table)), "")]
        notes = [f"  {note}" for note in self.notes]
        ending = ["" if self.figures else "nothing measured"]
        return "\n".join(heading + tables + self.lines() + notes + ending)

    def lines(self) -> list[str]:
        """Write the figures as aligned lines, a failed one marked."""
        wide = max(map(len, [*(figure.name for figure in self.figures), *self.not_run]), default=0)
        lines = []
        for figure in self.figures:
            verdict = f"{'ok' if figure.passed else 'FAILED'}  {figure.bar}" if figure.bar else ""
            line = f"  {figure.name:<{wide}}  {figure.value:>12.6g} {figure.unit:<8} {verdict}"
            lines.append(line.rstrip())
        return lines + [f"  {name:<{wide}}  {'not run':>12} {why}" for name, why in self.not_run.items()]


def aligned(table: Table) -> list[str]:
    """Write rows of cells as lines, each column as wide as its widest cell."""
    wide = [max(map(len, column)) for column in zip(*table, strict=True)]
    return ["  ".join(cell.ljust(w) for cell, w in zip(row, wide, strict=True)).rstrip() for row in table]


def write_json(report: Report, name: str, path: Path) -> None:
    """Write what `record` gives."""
    path.write_text(json.dumps(record(report, name), indent=2) + "\n", encoding="utf-8")


def record(report: Report, name: str) -> dict[str, Any]:
    """Give the figures by name, null where one was not run, and beside them what they were measured on."""
    content: dict[str, Any] = {figure.name: figure.value for figure in report.figures}
    content |= dict.fromkeys(report.not_run) | report.facts
    return content | {
        "benchmark": name,
        "failed": [figure.name for figure in report.figures if not figure.passed],
        "not_run": report.not_run,
        "notes": report.notes,
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit(),
        "cpu": cpu_model(),
        "machine": machine(),
        "versions": versions(),
    }


def commit() -> str:
    """Name the commit that is measured, with `-dirty` where the files differ from it."""
    try:
        said = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--abbrev=12"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return said.stdout.strip()


def machine() -> dict[str, Any]:
    """Describe what sets the speed of this machine, without its name; memory in MB."""
    return {
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "cores": usable_cores(),
        "memory_mb": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 1_000_000,
        "cpu_flags": [flag for flag in SPEED_FLAGS if flag in cpu_flags()],
    }


def versions() -> dict[str, str]:
    """Give the versions of Python and of the packages that figures depend on, where installed."""
    return {"python": platform.python_version()} | installed(PACKAGES)
