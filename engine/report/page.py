"""Puts a report together: one HTML file with its data, script and pictures in it, which loads nothing."""

import base64
import hashlib
import json
import math
import os
from dataclasses import dataclass
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

import numpy as np

from ..bundle import DEMO_SENTENCE, Bundle, default_bundle_path
from ..errors import Refused
from ..explain import Explainer
from ..grouping import Grouping, Numbered, number_bags
from ..results.finished import current_footer, matching_bundle
from ..row import THREATS, Row
from ..system.durable import check_output, write_whole
from ..system.machine import installed
from ..text import timestamp
from .charts import plane_of, thresholds_of
from .gallery import Entry, Gallery, Sample, alarming_bags, gallery_of, incomplete_bags
from .pictures import LIMITS, Picture, pictures_of
from .tally import Tally, tally_of

MOST_PICTURES = 5  # of a bag's other views
MARK = b"<!doctype html>\n<!-- gbad-batch report -->\n"  # what only a report begins with
# JSON within a script: no name can end the script, begin a comment or break a line of it
_UNSAFE = {ord(c): f"\\u{ord(c):04x}" for c in "<>&'\u2028\u2029\u0085"}


@dataclass(frozen=True)
class Shown:
    """What the gallery shows: the highest scores, of images or bags, or alarms drawn at random."""

    top: int = 200  # entries
    grouping: Grouping | None = None
    sample: int | None = None  # alarms to draw, instead

    def __post_init__(self) -> None:
        """Refuse what cannot be shown together."""
        if self.sample is not None and self.grouping is not None:
            raise Refused("--sample draws images, not bags: leave out --group-by and --groups")


def write_report(result: Path, out: Path, shown: Shown, model: Path | None = None) -> None:
    """Write the report of a finished result to the file `out`, replacing an earlier report.

    Without `model` the default model serves, if the result comes from it. Raises Refused if the result is not
    one, comes from another model than `model`, or `out` is another file; then nothing is written.
    """
    footer = current_footer(result)
    check_output(out, "a report", _is_report)
    bundle = _bundle(footer, result, model)
    tally = tally_of(result)
    point, grouping = footer["operating_point"], shown.grouping
    bags = None if grouping is None else number_bags(result, grouping)
    sample = None if shown.sample is None else Sample.of(tally, point["threshold"], shown.sample)
    gallery = gallery_of(result, tally, shown.sample or shown.top, bags, sample)
    explainer = Explainer(bundle, LIMITS) if bundle and bundle.manifest.architecture.has_map else None
    entries = [_entry(entry, grouping) for entry in gallery.entries]
    rows = [(entry.row, one) for entry, one in zip(gallery.entries, entries, strict=True)]
    for entry, one in zip(gallery.entries, entries, strict=True):
        views = zip(entry.views, one["views"], strict=True)
        rows += [(row, view) for row, view in views if row.status == "ok"][:MOST_PICTURES]
    for position, picture in pictures_of([row for row, _ in rows], explainer):
        rows[position][1].update(_shown(picture))
    data = {
        "totals": _totals(tally, gallery, footer),
        "provenance": _provenance(result, footer, bundle),
        "point": point,
        "classes": THREATS,
        "thresholds": thresholds_of(tally, point, bundle),
        "sample": None if sample is None else {"drawn": len(sample.positions), "alarms": sample.alarms},
        "plane": plane_of(tally, point, bundle),
        "bags": None if bags is None else _bags(tally, bags, point["threshold"]),
        "failures": _failures(tally, gallery),
        "entries": entries,
    }
    write_whole(out, _page(data))


def _is_report(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(MARK)) == MARK


def _bundle(footer: dict[str, Any], result: Path, model: Path | None) -> Bundle | None:
    """Read the bundle that the result comes from, if it is at hand."""
    if model is not None:
        return matching_bundle(model, result, footer)
    bundle = Bundle.read(default_bundle_path())
    return bundle if bundle.hash == footer["bundle_hash"] else None


def _totals(tally: Tally, gallery: Gallery, footer: dict[str, Any]) -> dict[str, Any]:
    failed = tally.failed.total()
    images = tally.rows - tally.containers
    seconds = _seconds(footer.get("runs"))
    distinct = len(gallery.entries)
    return {
        "images": images,
        "containers": tally.containers,
        "scored": len(tally.scores),
        "unscored": tally.unscored,
        "failed": failed,
        "alarms": tally.alarms,
        "atypical": tally.atypical,
        "by_class": tally.by_class,
        "seconds": seconds,
        "rate": images / seconds if seconds else None,
        "shown": distinct,
        "shown_rows": sum(entry.copies for entry in gallery.entries),
        "cut": gallery.distinct_cut,
    }


def _seconds(runs: Any) -> float | None:
    """Return the seconds that all runs took, start-up included; None if one does not say."""
    total = 0.0
    for run in runs if isinstance(runs, list) else []:
        try:
            start, end = (datetime.fromisoformat(run[name]) for name in ("start", "end"))
            total += (end - start).total_seconds()
        except (TypeError, KeyError, ValueError):
            return None
    return total if total > 0 else None


def _provenance(result: Path, footer: dict[str, Any], bundle: Bundle | None) -> dict[str, Any]:
    same = footer["fingerprint"]
    runs = [run for run in footer["runs"] if isinstance(run, dict)]
    return {
        "result": os.path.abspath(result),  # noqa: PTH100 - keeps links
        "scan_id": footer["scan_id"],
        "model": footer["bundle"],
        "bundle_hash": footer["bundle_hash"],
        "use": DEMO_SENTENCE if footer["demo"] else None,
        "engine": f"{footer['backend']} {footer.get('backend_version', '')} {footer['precision']}",
        "device": str(footer.get("device", "")),
        "sources": [str(source) for source in same.get("sources") or []],
        "runs": [{key: str(run.get(key)) for key in ("host", "start", "end")} for run in runs],
        "with_model": bundle is not None,
        "with_map": bundle is not None and bundle.manifest.architecture.has_map,
        "made": timestamp(),
        "by": f"gbad-batch {installed(('gbad-batch',)).get('gbad-batch', '')}".strip(),
    }


def _failures(tally: Tally, gallery: Gallery) -> list[dict[str, Any]]:
    return [
        {
            "status": status,
            "count": count,
            "rows": [{"uri": row.uri, "error": row.error} for row in gallery.failures[status]],
        }
        for status, count in tally.failed.most_common()
    ]


def _bags(tally: Tally, bags: Numbered, threshold: float) -> dict[str, int]:
    return {
        "count": bags.count,
        "single": bags.single,
        "alarms": alarming_bags(tally, bags, threshold),
        "incomplete": incomplete_bags(tally, bags),
    }


def _entry(entry: Entry, grouping: Grouping | None) -> dict[str, Any]:
    row = entry.row
    return {
        "bag": None if grouping is None else grouping.bag(row.uri),
        "views": [_view(view) for view in entry.views],
        "uri": row.uri,
        "copies": entry.copies,
        "places": entry.places,
        "sha256": row.sha256.hex() if row.sha256 else "",
        "score": row.anomaly_score,
        "losses": [_finite(row.reconstruction_loss), _finite(row.feature_matching_loss)],
        "p": [
            _finite(value) for value in (row.p_gun, row.p_knife, row.p_wrench, row.p_pliers, row.p_scissors)
        ],
        "typicality": _finite(row.typicality),
        "alarm": bool(row.anomalous),
        "threats": row.threats or [],
        "width": row.width,
        "height": row.height,
        "format": row.format,
        "bytes": row.bytes,
        "warnings": row.warnings,
        "picture": None,
        "size": None,
        "gone": None,
        "heat": None,
    }


def _view(row: Row) -> dict[str, Any]:
    """Return what is shown of another view of a bag."""
    return {
        "uri": row.uri,
        "sha256": row.sha256.hex() if row.sha256 and row.status == "ok" else "",
        "score": None if row.anomaly_score is None else _finite(row.anomaly_score),
        "alarm": bool(row.anomalous),
        "status": row.status,
        "error": row.error,
        "picture": None,
        "gone": None,
    }


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def _shown(picture: Picture | str) -> dict[str, Any]:
    """Return the picture and heat of an entry, or the sentence that stands in its place."""
    if isinstance(picture, str):
        return {"gone": picture}
    shown: dict[str, Any] = {
        "picture": f"data:image/webp;base64,{_base64(picture.webp)}",
        "size": picture.size,
    }
    if picture.places is not None:
        levels = (picture.places * 255).round().astype(np.uint8)
        shown["heat"] = {
            "high": levels.shape[1],
            "wide": levels.shape[2],
            "levels": _base64(levels.tobytes()),
        }
    return shown


def _base64(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _page(data: dict[str, Any]) -> bytes:
    """Fill the template; the page's own policy lets nothing else than its script and style run or load."""
    parts = files(__package__ or "")
    script, style = ((parts / name).read_text("utf-8") for name in ("page.js", "page.css"))
    text = json.dumps(data, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    policy = (
        f"default-src 'none'; img-src data:; script-src {_hash(script)}; style-src {_hash(style)}; "
        "base-uri 'none'; form-action 'none'"
    )
    page = Template((parts / "page.html").read_text("utf-8")).substitute(
        policy=policy, style=style, script=script, data=text.translate(_UNSAFE)
    )
    return MARK + page.encode("utf-8", "backslashreplace")


def _hash(text: str) -> str:
    return f"'sha256-{_base64(hashlib.sha256(text.encode()).digest())}'"
