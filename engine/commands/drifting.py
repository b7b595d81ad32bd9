"""The command that says whether the images of one scan differ from those of another."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..text import escaped
from .options import DEMO

if TYPE_CHECKING:
    from ..rescreening import Drift
    from ..rescreening.drifting import Group, Shift

PATH = click.Path(path_type=Path)


@click.command("drift", epilog=DEMO)
@click.argument("baseline", type=PATH, metavar="BASELINE")
@click.argument("current", type=PATH, metavar="CURRENT")
@click.option(
    "--features",
    type=(PATH, PATH),
    metavar="DIR DIR",
    help="Features that both scans stored: a classifier looks for differences there, too (extra: train).",
)
@click.option(
    "--top",
    type=click.IntRange(0),
    default=20,
    show_default=True,
    help="Number of folders and days to list.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the figures as one JSON object.")
def drift(as_json: bool, **given: Any) -> None:
    """Say whether the images of CURRENT differ from those of BASELINE: two results by one model.

    Looks at scores, losses, class scores and typicality, as a whole and by folder and day of the files, by
    the population stability index and Wasserstein's distance. Random splits of BASELINE set what is drift:
    one comparison in a hundred without drift is called drift. If BASELINE has 20 folders or days, the splits
    keep them whole, so that what differs from day to day there is no drift. The exit code is 0 either way.
    Needs SciPy (extra: statistics).

    \b
    gbad-batch drift last-month.parquet tonight.parquet
    gbad-batch drift january.parquet july.parquet --features january/ july/ --json
    """
    from ..rescreening import DriftSettings
    from ..rescreening import drift as compare

    found = compare(DriftSettings(**given))
    click.echo(json.dumps(found.to_json(), indent=2) if as_json else _drift_text(found))


def _drift_text(found: "Drift") -> str:
    """Format what differs between two results for a person."""
    lines = [
        escaped(found.sentence),
        "",
        f"BASELINE  {escaped(found.baseline)}: {found.images[0]} images scored",
    ]
    lines += [f"CURRENT   {escaped(found.current)}: {found.images[1]} images scored", ""]
    lines.append("  index of limit  distance of limit    moved  figure")
    lines += map(_shift_text, found.shifts)
    strange = [group for group in found.groups if group.drift]
    lines += ["", f"{found.tested} folders and days by themselves: {len(strange)} of those listed differ"]
    lines += map(_group_text, found.groups)
    if found.features is not None:
        told = "told apart" if found.features.drift else "not told apart"
        lines += [
            "",
            f"Features: {told} (AUROC {found.features.auroc:.3f}, limit {found.features.limit:.3f})",
        ]
    return "\n".join([*lines, "", *found.notes] if found.notes else lines)


def _shift_text(shift: "Shift") -> str:
    index = f"{shift.psi:>7.3f} {shift.psi / shift.psi_limit:>7.0%}"
    distance = f"{shift.distance:>9.3f} {shift.distance / shift.distance_limit:>8.0%}"
    mark = "  *" if shift.excess > 1 else ""
    return f"{index} {distance} {shift.moved:>+8.2f}  {shift.figure}{mark}"


def _group_text(group: "Group") -> str:
    said = "drift" if group.drift else "     "
    worst = f"{group.worst.figure} {group.worst.moved:+.2f}, index {group.worst.psi:.2f}"
    return f"  {said}  {group.kind:<6} {escaped(group.name)} ({group.images} images): {worst}"
