"""An operating point of a site's own: the JSON file that `calibrate` writes and that --point names."""

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..bundle import Bundle, OperatingPoint
from ..errors import Refused
from ..row import THREATS
from ..settings import StrPath
from ..system.durable import open_regular, write_whole
from .finished import POINT_FORM
from .form import has_form

KIND = "operating point of gbad-batch"
FORMAT = 1
FORM = {"kind": str, "format": int, "bundle": str, "bundle_hash": str, "operating_point": POINT_FORM}
MOST_BYTES = 1 << 20
LARGEST = 1e30  # of a threshold


def write_point(path: Path, point: OperatingPoint, bundle: Bundle, origin: dict[str, Any]) -> None:
    """Write an operating point of `bundle` durably; `origin` says what it follows from. Raises OSError."""
    document = {"kind": KIND, "format": FORMAT, "bundle": bundle.manifest.name, "bundle_hash": bundle.hash}
    document |= {"operating_point": asdict(point), "origin": origin}
    write_whole(path, (json.dumps(document, indent=1, allow_nan=False) + "\n").encode())


def read_point(path: StrPath, bundle: Bundle) -> OperatingPoint:
    """Read an operating point; raises Refused if it is damaged, or that of another model than `bundle`."""
    document = _document(Path(path))
    if document is None:
        raise Refused(f"--point {path} is not an operating point: give the file that calibrate has written")
    if document["format"] != FORMAT:
        raise Refused(f"--point {path} was written by another version: run calibrate again")
    if document["bundle_hash"] != bundle.hash:
        raise Refused(
            f"--point {path} is of the model {document['bundle']!r:.80} {document['bundle_hash'][:12]!r}, "
            f"and {bundle.path} is {bundle.hash[:12]}: give that one with --model, or calibrate this one"
        )
    given = document["operating_point"]
    if not _is_possible(given) or given["decision"] not in bundle.manifest.decisions:
        raise Refused(f"--point {path} holds values that no operating point has: run calibrate again")
    low, high = given["interval"] or (None, None)
    return OperatingPoint(
        decision=given["decision"],
        precision=given["precision"],
        pfa=float(given["pfa"]),
        threshold=float(given["threshold"]),
        class_thresholds=tuple(map(float, given["class_thresholds"])),
        interval=None if low is None or high is None else (float(low), float(high)),
        supported=given["supported"],
    )


def is_point(path: Path) -> bool:
    """Tell whether a file holds an operating point."""
    return _document(path) is not None


def digest_of(point: OperatingPoint) -> str:
    """Return what tells operating points apart wherever they are stored: a hash of all their values."""
    return hashlib.sha256(json.dumps(asdict(point), sort_keys=True).encode()).hexdigest()[:32]


def _document(path: Path) -> dict[str, Any] | None:
    """Return the content of a point's file, None if it holds something else; raises Refused if unreadable."""
    try:
        with open_regular(path) as file:
            document = json.loads(file.read(MOST_BYTES))
    except OSError as error:
        raise Refused(f"--point {path} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        return None
    return document if has_form(document, FORM) and document["kind"] == KIND else None


def _is_possible(point: dict[str, Any]) -> bool:
    """Tell whether the numbers of a point can be compared with scores and probabilities."""
    classes, interval = point["class_thresholds"], point["interval"]
    shares = [point["pfa"], *classes, *(interval or ())]
    return (
        all(0 <= share <= 1 for share in shares)
        and -LARGEST <= point["threshold"] <= LARGEST
        and len(classes) == len(THREATS)
        and (interval is None or len(interval) == 2)
    )
