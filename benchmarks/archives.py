"""Archives for benchmarks: many files from few pictures by hard links, and labelled sets that are kept."""

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import simplejpeg

from gbad_batch.engine.runtime.cache import BENCHMARKS, default_cache_dir
from gbad_batch.engine.synth import SynthSettings, generator_hash, write_archive
from gbad_batch.engine.system.durable import remove
from gbad_batch.engine.system.machine import usable_cores

FOLDER_SIZE = 1000  # files
LINKS = 60_000  # of one file; ext4 allows 65,000
SIDES = (600, 900)  # pixels, both sides of a bag of `sized_bags`
DRAWN = 10  # bags drawn for one whose sides lie there; it is one in seven


def bags(folder: Path, pictures: int, seed: int = 1) -> list[Path]:
    """Write synthetic bags and return their paths."""
    write_archive(folder, SynthSettings(count=pictures, seed=seed, positive=0.2))
    return sorted((folder / "images").iterdir())


def thumbnails(folder: Path, count: int) -> list[Path]:
    """Write enough tiny pictures that `count` links to them are allowed."""
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    paths = []
    for number in range(max(16, -(-count // LINKS))):
        path = folder / f"{number:04d}.jpg"
        path.write_bytes(simplejpeg.encode_jpeg(rng.integers(0, 256, (32, 32, 3), np.uint8), quality=80))
        paths.append(path)
    return paths


def sized_bags(work: Path, count: int, seed: int = 301) -> list[Path]:
    """Give the first `count` bags whose sides lie in SIDES, of a larger synthetic set that is kept."""
    folder = labelled_set(work, SynthSettings(DRAWN * count, seed, 0.1, workers=usable_cores()))
    least, most = SIDES
    fitting = [
        folder / "images" / image["file_name"]
        for image in json.loads((folder / "boxes.json").read_text())["images"]
        if least <= min(image["width"], image["height"]) and max(image["width"], image["height"]) <= most
    ]
    if len(fitting) < count:
        raise ValueError(f"of {DRAWN * count} bags {len(fitting)} have sides of {least} to {most} pixels")
    return fitting[:count]


class Passes:
    """The same pictures once, twice, or more often in a folder, by links; folders are made when asked for."""

    def __init__(self, root: Path, pictures: Sequence[Path]):
        self._root = root
        own = root / "pictures"
        own.mkdir(parents=True)
        names = [f"{number:04d}{path.suffix}" for number, path in enumerate(pictures)]
        self.pictures = [
            Path(shutil.copy(path, own / name)) for path, name in zip(pictures, names, strict=True)
        ]

    def __call__(self, passes: int) -> Path:
        """Return the folder that holds every picture `passes` times."""
        folder = self._root / f"{passes}-passes"
        return folder if folder.exists() else linked(folder, self.pictures, passes * len(self.pictures))


def linked(root: Path, pictures: list[Path], count: int) -> Path:
    """Make an archive of `count` files of these pictures in turn; returns its root."""
    for start in range(0, count, FOLDER_SIZE):
        folder = root / f"{start // FOLDER_SIZE:05d}"
        folder.mkdir(parents=True)
        for number in range(start, min(start + FOLDER_SIZE, count)):
            os.link(pictures[number % len(pictures)], folder / f"{number:07d}.jpg")
    return root


def default_work_dir() -> Path:
    """Give the folder where long benchmarks keep what they need not do again."""
    return default_cache_dir() / BENCHMARKS


def labelled_set(work: Path, settings: SynthSettings) -> Path:
    """Write a synthetic set below `work`, or take the finished one of these settings and this generator."""
    said = json.dumps([generator_hash(), asdict(settings) | {"workers": 0}], sort_keys=True)
    folder = work / f"bags-{hashlib.sha256(said.encode()).hexdigest()[:12]}"
    if not (folder / "synth.json").exists():  # it is written last
        print(f"writing {settings.count} synthetic images", file=sys.stderr)
        remove(folder)
        write_archive(folder, settings)
    return folder
