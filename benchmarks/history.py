"""What nightly runs found: JSON lines, a reference for tonight, a table and a plot of them."""

import json
import os
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gbad_batch.engine.errors import Refused

RUNS = 10  # last ones, whose median is the reference
SHOWN = 30  # last ones, in table and plot

Run = Mapping[str, Any]  # a line of the history, as `report.record` gives it


def read(path: Path) -> list[Run]:
    """Read the runs, oldest first; raises Refused where a line is none."""
    if not path.exists():
        return []
    runs = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        try:
            runs.append(json.loads(line))
        except ValueError:
            raise Refused(f"{path}, line {number} is no JSON object: remove that line") from None
    return runs


def append(path: Path, run: Run) -> None:
    """Add a run as one line, on disk when this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(run) + "\n")
        file.flush()
        os.fsync(file.fileno())


def reference(runs: Sequence[Run], cpu: str, name: str) -> float | None:
    """Give the median of a figure over the last runs on a CPU model, or None where there is none.

    A run in which the figure had regressed is left out: a slow-down must not become what is normal.
    """
    alike = [run for run in runs if run["cpu"] == cpu and name not in run["failed"]]
    values = [run[name] for run in alike if run.get(name) is not None]
    return statistics.median(values[-RUNS:]) if values else None


def table(runs: Sequence[Run], names: Sequence[str]) -> str:
    """Write the last runs as a Markdown table, newest first."""
    head = ["date", "commit", "CPU", *names, "verdict"]
    lines = [head, ["---"] * len(head)]
    for run in reversed(runs[-SHOWN:]):
        values = ["-" if run.get(name) is None else f"{run[name]:.3g}" for name in names]
        verdict = ", ".join(run["failed"]) or "ok"
        lines.append([run["date"][:16].replace("T", " "), run["commit"], run["cpu"], *values, verdict])
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def plot(runs: Sequence[Run], names: Sequence[str], path: Path) -> None:
    """Plot ratios, and the bare calls of each bundle's limit, over the commits of the last runs."""
    from matplotlib.figure import Figure

    shown = runs[-SHOWN:]
    roles = sorted({role for run in shown for role in run.get("stages", ())})
    figure = Figure(figsize=(9, 3 * (1 + len(roles))), layout="constrained")
    axes = figure.subplots(1 + len(roles), 1, sharex=True, squeeze=False)[:, 0]
    for name in names:
        axes[0].plot([run.get(name) for run in shown], marker=".", label=name)
    axes[0].set_ylabel("times the peer")
    for ax, role in zip(axes[1:], roles, strict=True):
        bare = [run.get("stages", {}).get(role, {}).get("limit_us") or {} for run in shown]
        for step in dict.fromkeys(step for run in bare for step in run):
            ax.plot([run.get(step) for run in bare], marker=".", label=step)
        ax.set(yscale="log", ylabel=f"{role}: us/img, bare calls")
    for ax in axes:
        ax.legend(loc="center left", bbox_to_anchor=(1, 0.5), fontsize="small")
    axes[-1].set_xticks(range(len(shown)), [run["commit"] for run in shown], rotation=60, ha="right")
    figure.savefig(path)
