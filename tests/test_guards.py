"""The guard sees what needs no shape: colours, sizes, foreground; and nothing where these tell nothing."""

import csv
from pathlib import Path

import numpy as np
import pytest
from benchmarks.recipe.guards import guard_auroc
from PIL import Image


def write_archive(folder: Path, count: int, seed: int, *, giveaway: str) -> Path:
    """Write pictures of noise, every other one positive, which differ by the giveaway alone."""
    random = np.random.default_rng(seed)
    (folder / "images").mkdir(parents=True)
    with (folder / "labels.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "Gun", "Knife", "Wrench", "Pliers", "Scissors"])
        for k in range(count):
            positive = k % 2 == 1
            side = 90 if positive and giveaway == "size" else 60
            pixels = random.integers(0, 200, (60, side, 3), np.uint8)
            if positive and giveaway == "colour":
                pixels[..., 2] = 255
            Image.fromarray(pixels).save(folder / "images" / f"{k}.png")
            writer.writerow([k, 1 if positive else -1, -1, -1, -1, -1])
    return folder


@pytest.mark.parametrize(
    ("giveaway", "low", "high"), [("size", 0.99, 1), ("colour", 0.99, 1), ("", 0.3, 0.7)]
)
def test_the_guard_finds_a_giveaway_and_no_more(tmp_path: Path, giveaway: str, low: float, high: float):
    assert low <= guard_auroc(write_archive(tmp_path / "archive", 240, 0, giveaway=giveaway)) <= high
