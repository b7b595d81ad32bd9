"""What it brings to score each of several separate bags in a picture by itself: on T1, T2 and real bags.

A bag is found from its picture alone, as what lies together and differs from the background. Pictures of one
bag stay whole, margins included; of several each is cut out and scored, and the row takes the maximum.
"""

import argparse
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image
from scipy import ndimage
from sklearn.metrics import average_precision_score, roc_auc_score

from gbad_batch.engine import Scan, ScanSettings
from gbad_batch.engine.bundle import Bundle, default_bundle_path
from gbad_batch.engine.datasets import read_labels
from gbad_batch.engine.evaluation.rows import decision_scores, read_results
from gbad_batch.engine.row import THREATS
from gbad_batch.engine.training.look import air_of

from ..archives import default_work_dir
from ..report import Report
from .real_bags import NEGATIVES, REFERENCE, read_bags, real_folder
from .typicality import test_set

SIDE = 384  # pixels, about, of the longer side of the picture in which bags are looked for
DARKER = 24  # levels than the background, in one channel at least
SMALL = 6  # times smaller than the largest: part of the bag that is nearest
MOST = 4  # bags of a picture
MARGIN = 0.02  # of a bag's longer side
QUALITY = 95  # JPEG of a bag that is cut out
BAGS = {"1": (1, 1), "2": (2, 2), "3_or_more": (3, 99)}  # in a picture
PFA = 0.05

Floats = NDArray[np.float64]


class Box(NamedTuple):
    """Part of a picture, in pixels."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def area(self) -> int:
        """Number of pixels."""
        return (self.right - self.left) * (self.bottom - self.top)

    def joined(self, other: "Box") -> "Box":
        """Return the smallest box that holds both."""
        return Box(*np.minimum(self[:2], other[:2]).tolist(), *np.maximum(self[2:], other[2:]).tolist())

    def gap(self, other: "Box") -> int:
        """Return how far apart both are, across and along; below zero if they overlap."""
        across = max(self.left, other.left) - min(self.right, other.right)
        along = max(self.top, other.top) - min(self.bottom, other.bottom)
        return max(across, along) if min(across, along) < 0 else across + along


@dataclass(frozen=True)
class Scores:
    """Scores of pictures, in the order of their files."""

    classes: Floats  # [n], of the decision `classes`
    probabilities: Floats  # [n, 5]


def options(parser: argparse.ArgumentParser) -> None:
    """Name the bundle, and how many pictures to draw."""
    parser.add_argument("--model", type=Path, metavar="BUNDLE", help="in the place of the default bundle")
    parser.add_argument("--bags", type=int, default=2000, metavar="N", help="pictures of each test set")
    work = default_work_dir()
    parser.add_argument("--work", type=Path, default=work, metavar="DIR", help="test sets are kept here")


def run(arguments: argparse.Namespace) -> Report:
    """Score test sets and real bags whole and bag by bag; thresholds are those of each way."""
    model: Path = arguments.model or default_bundle_path()
    report = Report("Pictures scored whole, and with several bags apart, by the decision 'classes'")
    for name in ("t1", "t2"):
        images = test_set(arguments, name)
        told = json.loads((images.parent / "boxes.json").read_text())["images"]
        ways = _both_ways(model, [images / image["file_name"] for image in told])
        bags = np.array([image["bags"] for image in told])
        _add_set(report, name, read_labels(images.parent / "boxes.json").labels, bags, *ways)
    if os.environ.get("GBAD_REAL_DATA"):
        _add_real(report, model)
    else:
        report.not_run["real"] = "GBAD_REAL_DATA names no folder of real bags"
    report.notes.append(f"pd_05: where {PFA:.0%} of the harmless pictures alarm, of SIXray's among real ones")
    return report


def separate_bags(pixels: NDArray[np.uint8]) -> list[Box]:
    """Find the bags of a picture [H, W, 3], from left to right; the whole picture if there is none."""
    height, width, _ = pixels.shape
    step = max(1, max(height, width) // SIDE)
    small = pixels[::step, ::step]
    dark = (air_of(small) - small).max(axis=2) > DARKER
    dark = ndimage.binary_dilation(ndimage.binary_opening(dark, np.ones((3, 3))), np.ones((3, 3)))
    bodies, _ = cast("tuple[NDArray[np.int32], int]", ndimage.label(dark))
    found = [
        Box(across.start, along.start, across.stop, along.stop)
        for along, across in ndimage.find_objects(bodies)
    ]
    return [_enlarged(box, step, width, height) for box in sorted(_bags_of(found))] or [
        Box(0, 0, width, height)
    ]


def _bags_of(found: list[Box]) -> list[Box]:
    """Join what overlaps, and what is small with the nearest."""
    boxes = list(found)
    while len(boxes) > 1:
        pairs = ((a, b) for k, a in enumerate(boxes) for b in boxes[:k] if a.gap(b) < 0)
        pair = next(pairs, None)
        if pair is None:
            least = min(boxes, key=lambda box: box.area)
            if least.area * SMALL >= max(box.area for box in boxes) and len(boxes) <= MOST:
                break
            others = [box for box in boxes if box is not least]
            pair = least, min(others, key=least.gap)
        boxes = [box for box in boxes if box is not pair[0] and box is not pair[1]]
        boxes.append(pair[0].joined(pair[1]))
    return boxes


def _enlarged(box: Box, step: int, width: int, height: int) -> Box:
    """Return a box of the small picture in pixels of the whole one, with a margin."""
    margin = round((MARGIN * max(box.right - box.left, box.bottom - box.top) + 1) * step)
    low = np.maximum(np.array(box[:2]) * step - margin, 0)
    high = np.minimum(np.array(box[2:]) * step + margin, (width, height))
    return Box(*low.tolist(), *high.tolist())


def _both_ways(model: Path, files: Sequence[Path]) -> tuple[Scores, Scores]:
    """Score pictures whole, and with several bags apart."""
    whole = _scores(model, files)
    with tempfile.TemporaryDirectory() as scratch:
        cut, of = list[Path](), list[int]()
        for k, file in enumerate(files):
            with Image.open(file) as opened:
                pixels = np.asarray(opened.convert("RGB"))
            boxes = separate_bags(pixels)
            for number, box in enumerate(boxes if len(boxes) > 1 else ()):
                part = np.ascontiguousarray(pixels[box.top : box.bottom, box.left : box.right])
                cut.append(Path(scratch, f"{k:06d}-{number}.jpg"))
                of.append(k)
                cut[-1].write_bytes(simplejpeg.encode_jpeg(part, QUALITY, colorsubsampling="444"))
        apart = Scores(whole.classes.copy(), whole.probabilities.copy())
        if cut:
            parts = _scores(model, cut)
            several = np.unique(of)
            apart.classes[several], apart.probabilities[several] = -np.inf, 0
            np.maximum.at(apart.classes, of, parts.classes)
            np.maximum.at(apart.probabilities, of, parts.probabilities)
    return whole, apart


def _scores(model: Path, files: Sequence[Path]) -> Scores:
    with tempfile.TemporaryDirectory() as scratch:
        out, names = Path(scratch, "r.parquet"), Path(scratch, "names")
        names.write_text("".join(f"{file}\n" for file in files))
        Scan(ScanSettings(files_from=str(names), out=out, model=model, device="cpu")).run()
        results = read_results(out)
    scores = decision_scores(results, Bundle.read(model))["classes"]
    return Scores(np.asarray(scores, np.float64), np.asarray(results.probabilities, np.float64))


def _add_set(
    report: Report, name: str, labels: NDArray[np.bool_], bags: NDArray[np.int_], whole: Scores, apart: Scores
) -> None:
    """Add the figures of a synthetic set, also by the number of bags in a picture."""
    positive = labels.any(axis=1)
    for way, found in (("whole", whole), ("apart", apart)):
        ap = [average_precision_score(labels[:, k], found.probabilities[:, k]) for k in range(len(THREATS))]
        report.add(f"{name}.{way}.map", float(np.mean(ap)))
        report.add(f"{name}.{way}.auroc", float(roc_auc_score(positive, found.classes)))
        alarm = found.classes > np.quantile(found.classes[~positive], 1 - PFA)
        report.add(f"{name}.{way}.pd_05", float(alarm[positive].mean()))
        for what, (least, most) in BAGS.items():
            chosen = positive & (bags >= least) & (bags <= most)
            if chosen.any():
                report.add(f"{name}.{way}.pd_05_bags_{what}", float(alarm[chosen].mean()))


def _add_real(report: Report, model: Path) -> None:
    bags = read_bags(real_folder(), "test")
    positive, reference = bags.positive, bags.negatives(REFERENCE)
    for way, found in zip(("whole", "apart"), _both_ways(model, bags.paths), strict=True):
        threshold = np.quantile(found.classes[reference], 1 - PFA)
        report.add(f"real.{way}.pd_05", float((found.classes[positive] > threshold).mean()))
        for kind in NEGATIVES:
            negative = bags.negatives(kind)
            chosen = positive | negative
            auroc = roc_auc_score(positive[chosen], found.classes[chosen])
            report.add(f"real.{way}.auroc_{kind}", float(auroc))
        within = [
            roc_auc_score(bags.labels[positive, k], found.probabilities[positive, k])
            for k in range(len(THREATS))
        ]
        report.add(f"real.{way}.within", float(np.mean(within)))
