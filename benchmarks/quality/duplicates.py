"""Detection of near-duplicates: false matches of unlike bags, altered copies found, time for 100,000."""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter

from gbad_batch.engine.datasets import find_images
from gbad_batch.engine.datasets.duplicates import (
    COARSE_BITS,
    Prints,
    duplicate_groups,
    fingerprints,
    groups_of,
    look_alikes,
)
from gbad_batch.engine.synth import SynthSettings, write_archive
from gbad_batch.engine.system.machine import usable_cores

from ..report import Report

MANY = 100_000  # hashes of the timed search
ALTERED = 60  # bags that are copied in every way
SURE = 3  # of none in n tries, a share of three in n is what 95 % allows
COPIES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "half_size": lambda image: image.resize((image.width // 2, image.height // 2)),
    "contrast": lambda image: ImageEnhance.Contrast(image).enhance(1.2),
    "blurred": lambda image: image.filter(ImageFilter.GaussianBlur(2)),
    "cursor": lambda image: _with_cursor(image),
    "cropped": lambda image: image.crop(
        (image.width // 50, image.height // 50, image.width - image.width // 50, image.height)
    ),
}


def options(parser: argparse.ArgumentParser) -> None:
    """Declare how many synthetic bags are compared with each other."""
    parser.add_argument("--images", type=int, default=1000, metavar="N", help="synthetic bags")


def run(arguments: argparse.Namespace) -> Report:
    """Compare synthetic bags, copies of some, and real ones where GBAD_REAL_DATA names their folder."""
    report = Report("Near-duplicates")
    with tempfile.TemporaryDirectory() as scratch:
        bags = Path(scratch, "bags")
        settings = SynthSettings(count=arguments.images, seed=77, positive=0.3, workers=usable_cores())
        write_archive(bags, settings)
        paths = find_images(bags)
        _unlike(report, paths)
        _copies(report, paths[:: max(1, len(paths) // ALTERED)], Path(scratch, "copies"))
    if folder := os.environ.get("GBAD_REAL_DATA"):
        _real(report, find_images(Path(folder, "sixray-samples")))
    _time(report)
    return report


def _unlike(report: Report, paths: list[Path]) -> None:
    """Count matches of bags that all differ: by both hashes, and by the dHash alone."""
    began = time.perf_counter()
    prints = fingerprints(paths)
    seconds = time.perf_counter() - began
    pairs = len(paths) * (len(paths) - 1) // 2
    wrong = sum(len(i) for i, _ in look_alikes(prints))
    coarse = prints.hashes[:, 0]
    near = np.bitwise_count(coarse[:, None] ^ coarse[None, :]) <= COARSE_BITS
    report.add("unlike_pairs", pairs)
    report.add("false_matches", wrong, at_most=0)
    report.add("false_match_rate_at_most", max(wrong, SURE) / pairs)
    report.add("dhash_alone_rate", (int(near.sum()) - len(paths)) / 2 / pairs)
    report.add("fingerprints", len(paths) / seconds, "img/s")


def _copies(report: Report, originals: list[Path], folder: Path) -> None:
    """Report the share of altered copies that fall into the group of their original."""
    folder.mkdir()
    for name, alter in COPIES.items():
        copies = [folder / f"{name}-{path.name}" for path in originals]
        for path, copy in zip(originals, copies, strict=True):
            alter(Image.open(path)).save(copy, quality=75)
        group = duplicate_groups([*originals, *copies])
        found = group[len(originals) :] == np.arange(len(originals))
        report.add(f"found_{name}", found.mean(), at_least=0.95)


def _with_cursor(image: Image.Image) -> Image.Image:
    """Draw an arrow as operators' stations leave it, a tenth of the height."""
    marked, side = image.copy(), image.height // 10
    x, y = image.width // 3, image.height // 3
    ImageDraw.Draw(marked).polygon(
        [(x, y), (x, y + side), (x + side * 2 // 3, y + side * 2 // 3)], "white", "black"
    )
    return marked


def _real(report: Report, paths: list[Path]) -> None:
    """Of the real samples one pair is one bag, P08742 and P08748."""
    group = duplicate_groups(paths)
    pairs = [(paths[first].stem, paths[k].stem) for k, first in enumerate(group) if first != k]
    report.add("real_pair_found", float(("P08742", "P08748") in pairs), at_least=1)
    report.add("real_other_matches", len(pairs) - float(("P08742", "P08748") in pairs), at_most=0)


def _time(report: Report) -> None:
    hashes = np.random.default_rng(0).integers(0, 1 << 64, (MANY, 5), np.uint64)
    began = time.perf_counter()
    groups_of(Prints((b"",) * MANY, hashes, {}))
    report.add("search_100k_s", time.perf_counter() - began, "s")
