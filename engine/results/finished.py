"""What a finished result says of its scan, checked before anybody relies on it."""

from pathlib import Path
from typing import Any

from ..bundle import Bundle
from ..errors import Refused
from ..row import THREATS
from .form import has_form
from .schema import SCHEMA_VERSION, read_footer
from .staging import staging_of

POINT_FORM = {  # of an operating point, as `has_form` takes it
    "decision": str,
    "precision": str,
    "pfa": float,
    "threshold": float,
    "class_thresholds": [float],
    "interval": ([float], type(None)),
    "supported": bool,
}
FORM = {  # of the footer
    **dict.fromkeys(("bundle", "bundle_hash", "backend", "precision"), str),
    "demo": bool,
    "operating_point": POINT_FORM,
}


def finished_footer(path: Path) -> dict[str, Any]:
    """Return the footer of a finished results file or folder; raises Refused if it is not one."""
    footer = read_footer(path)
    if (
        footer is None
        or not has_form(footer, FORM)
        or len(footer["operating_point"]["class_thresholds"]) != len(THREATS)
    ):
        raise Refused(not_results(path))
    return footer


def current_footer(path: Path) -> dict[str, Any]:
    """Return the footer of a finished result whose rows have today's columns; raises Refused if not."""
    footer = finished_footer(path)
    if footer.get("schema") != SCHEMA_VERSION:
        raise Refused(f"{path} was written by another version, with other columns: scan it again")
    return footer


def not_results(path: Path) -> str:
    """Say why a path holds no results, and what to give instead."""
    if not path.exists():
        if path.name and staging_of(path).exists():
            return f"{path} is not finished: run its scan again to the end, then give it here"
        return f"{path} does not exist: give the file or folder that a scan has written"
    return (
        f"{path} does not hold results of a scan: give the file or folder that `gbad-batch scan --out` wrote"
    )


def matching_bundle(path: Path, results: Path, footer: dict[str, Any]) -> Bundle:
    """Read the bundle that the results come from; raises Refused if they come from another one."""
    bundle = Bundle.read(path)
    if bundle.hash != footer["bundle_hash"]:
        raise Refused(
            f"{path} is not the model of {results}: its hash is {bundle.hash[:12]}, and they come from "
            f"{footer['bundle']!r} {footer['bundle_hash'][:12]}: give that one with --model"
        )
    return bundle
