"""`gbad-batch explain`: overlays and regions of images, as files."""

import json
import re
from dataclasses import asdict
from pathlib import Path, PurePath
from typing import Any

from ..bundle import Bundle, default_bundle_path
from ..decode import DecodeLimits
from ..errors import Refused
from ..explain import Explainer, Explanation, overlay
from ..row import THREATS, ImageFault
from ..sources import Candidate, ListingCounts, SourceSettings, check, find
from ..system.durable import make_folder, write_whole

REGIONS = "regions.json"
LONGEST_STEM = 80  # characters of an image's name that its overlay keeps


def explain_into(sources: tuple[str, ...], out: Path, model: Path | None) -> list[dict[str, Any]]:
    """Write an overlay of each image, and one file of the regions of all, into the new or empty folder `out`.

    Returns what is in that file of each image. Raises Refused if there is no image, the folder is taken, or
    the model has no class map.
    """
    settings = SourceSettings(sources)
    check(settings)
    bundle = Bundle.read(model or default_bundle_path())
    explainer = Explainer(bundle, DecodeLimits())
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise Refused(f"{out} exists: name a new or empty folder with --out")
    make_folder(out)
    counts = ListingCounts()
    found = [
        _explained(candidate, explainer, out, number)
        for number, candidate in enumerate(find(settings, counts, lambda _: True), 1)
    ]
    if not found:
        raise Refused(f"no image was found in {', '.join(sources)}: name images, folders or tars")
    document = {
        "model": bundle.manifest.name,
        "bundle_hash": bundle.hash,
        "demo": bundle.manifest.demo,
        "thresholds": dict(zip(THREATS, explainer.thresholds, strict=True)),
        "images": found,
    }
    write_whole(out / REGIONS, (json.dumps(document, indent=1) + "\n").encode())
    return found


def _explained(candidate: Candidate, explainer: Explainer, out: Path, number: int) -> dict[str, Any]:
    """Write the overlay of one image; returns its entry, with a status if it could not be read."""
    row = candidate.row
    explanation = None
    if row.status is None:
        try:
            explanation = explainer(row, candidate.read())
        except ImageFault as fault:
            row.fail(fault)
    entry: dict[str, Any] = {"image": row.uri, "status": row.status}
    if explanation is None:
        return entry | {"error": row.error}
    stem = re.sub(r"[^\w.-]", "_", PurePath(row.uri).stem)[:LONGEST_STEM]
    name = f"{number:04d}-{stem}.png"
    with (out / name).open("wb") as file:
        overlay(explanation.pixels, explanation.places, explanation.regions).save(file, "PNG")
    return entry | {"overlay": name, **_figures(explanation)}


def _figures(explanation: Explanation) -> dict[str, Any]:
    hottest = explanation.hottest()
    probabilities = explanation.probabilities.tolist()
    return {
        "width": explanation.size[0],
        "height": explanation.size[1],
        "classes": {
            threat: {"probability": p, "hottest": hottest[threat]}
            for threat, p in zip(THREATS, probabilities, strict=True)
        },
        "regions": [asdict(region) for region in explanation.regions],
    }
