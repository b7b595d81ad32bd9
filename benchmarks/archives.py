"""Archives for benchmarks: many files from few pictures by hard links, and labelled sets that are kept."""

import hashlib
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import simplejpeg

from gbad_batch.engine.durable import remove
from gbad_batch.engine.synth import SynthSettings, generator_hash, write_archive
from gbad_batch.export.cache import default_cache_dir

FOLDER_SIZE = 1000  # files
LINKS = 60_000  # of one file; ext4 allows 65,000


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
    return default_cache_dir() / "benchmarks"


def labelled_set(work: Path, settings: SynthSettings) -> Path:
    """Write a synthetic set below `work`, or take the finished one of these settings and this generator."""
    said = json.dumps([generator_hash(), asdict(settings) | {"workers": 0}], sort_keys=True)
    folder = work / f"bags-{hashlib.sha256(said.encode()).hexdigest()[:12]}"
    if not (folder / "synth.json").exists():  # it is written last
        print(f"writing {settings.count} synthetic images", file=sys.stderr)
        remove(folder)
        write_archive(folder, settings)
    return folder
