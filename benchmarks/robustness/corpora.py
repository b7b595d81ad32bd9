"""Decodes folders of public test images beside Pillow, and names what is refused or read otherwise.

The test images of Pillow, image-rs, TwelveMonkeys, openjpeg, wuffs and libtiff are such folders; they are not
in this repository. Files that are no image of a format that is known here are passed over.
"""

import argparse
import warnings
from collections import Counter
from pathlib import Path

import numpy as np
from PIL import Image

from gbad_batch.engine.decode import DecodeLimits, Decoder
from gbad_batch.engine.errors import Refused
from gbad_batch.engine.row import Row

from ..report import Report
from .soaking.images import LEVELS, pillows

MOST_REFUSED = 9


def options(parser: argparse.ArgumentParser) -> None:
    """Declare where the images lie."""
    parser.add_argument("folders", type=Path, nargs="+", metavar="DIR", help="folders of images, whole trees")


def run(arguments: argparse.Namespace) -> Report:
    """Decode each image twice, and name those that Pillow reads and we refuse, or read otherwise."""
    paths = [path for folder in arguments.folders for path in sorted(folder.rglob("*")) if path.is_file()]
    if not paths:
        raise Refused(
            f"{arguments.folders[0]} holds no files: name folders of JPEG, PNG, TIFF or other images"
        )
    report = Report("Public test images, decoded beside Pillow")
    statuses: Counter[str] = Counter()
    refused: list[list[str]] = []
    differing: list[list[str]] = []
    decoder = Decoder(None, DecodeLimits())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of bombs and of odd tags
        for path in paths:
            row, data = Row(path.name), path.read_bytes()
            pixels = decoder(row, data)
            if row.status in ("not_an_image", "empty"):
                continue
            statuses[str(row.status)] += 1
            if pixels is None:
                if row.status != "unsupported" and _pillow_loads(path):
                    refused.append([f"{path.parent.name}/{path.name}", str(row.status), str(row.error)])
                continue
            other = pillows(data, has_alpha=row.color in ("rgba", "gray+alpha"))
            if other is not None and (apart := _levels_apart(pixels, other)) > LEVELS:
                said = row.warnings or "no warning"
                differing.append([f"{path.parent.name}/{path.name}", f"{apart:.1f}", said])
    report.add("images", statuses.total())
    for status, count in statuses.most_common():
        report.add(status, count)
    report.add("refused_beside_pillow", len(refused), at_most=MOST_REFUSED)
    report.add("differing", len(differing))
    report.add("differing_in_silence", sum(said == "no warning" for *_, said in differing))
    report.tables.append([["Pillow reads it, we refuse it", "status", "reason"], *refused])
    report.tables.append([["differs from Pillow's", "levels", "warnings"], *differing])
    return report


def _pillow_loads(path: Path) -> bool:
    try:
        with Image.open(path) as image:
            image.load()
    except Exception:  # noqa: BLE001 - it reads it or not
        return False
    return True


def _levels_apart(pixels: np.ndarray, other: np.ndarray) -> float:
    """Return the mean difference, infinite for pictures of different sizes."""
    if pixels.shape != other.shape:
        return float("inf")
    return float(np.abs(pixels.astype(int) - other.astype(int)).mean())
