"""Sets that training reads, drawn straight to the pixels that a scan would make of them.

A set is a folder of arrays, uint8 [n, S, S, 3], with the labels of each beside it: nothing is drawn, decoded
or resized twice, and a kill costs the arrays that were being drawn.
"""

import io
import json
import multiprocessing
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import simplejpeg

from ..datasets import Box
from ..datasets.labels import Gathered
from ..decode import DecodeLimits, Decoder
from ..errors import Stopped
from ..row import Row, threat_names
from ..synth import Picture, SynthSettings, generator_hash
from ..synth.archive import QUALITY, render
from ..system.durable import write_whole
from ..system.machine import die_with, usable_cores
from ..system.progress import ProgressCallback

AT_ONCE = 250  # images an array


class _Task(NamedTuple):
    array: Path
    settings: SynthSettings
    size: int  # pixels a side
    first: int  # of the set's images
    images: int

    @property
    def labels(self) -> Path:
        return self.array.with_suffix(".json")


def draw_set(folder: Path, settings: SynthSettings, size: int, progress: ProgressCallback) -> None:
    """Draw what a set lacks, by a process for each core; `progress` gets the number of images in it."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [task for task in _tasks(folder, settings, size) if not _is_drawn(task)]
    done = settings.count - sum(task.images for task in missing)
    progress(f"draw {folder.name}", done, settings.count, {})
    if not missing:
        return
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(usable_cores(), spawn, die_with, (os.getpid(),)) as pool:
        for drawn in pool.map(_draw, missing):
            done += drawn
            progress(f"draw {folder.name}", done, settings.count, {})


def gather_set(folder: Path, settings: SynthSettings, size: int, split: str, gathered: Gathered) -> None:
    """Add the images of a drawn set to a split, by the names of their rows below the folder above."""
    for task in _tasks(folder, settings, size):
        for k, image in enumerate(json.loads(task.labels.read_text())["images"]):
            name, boxes = f"{folder.name}/{task.array.name}/{k}", [Box(*box) for box in image["boxes"]]
            gathered.add(name, image["threats"], f"{task.labels}, image {k}", split=split, boxes=boxes)


def _tasks(folder: Path, settings: SynthSettings, size: int) -> list[_Task]:
    count = settings.count
    return [
        _Task(folder / f"{first // AT_ONCE:04d}.npy", settings, size, first, min(AT_ONCE, count - first))
        for first in range(0, count, AT_ONCE)
    ]


def _is_drawn(task: _Task) -> bool:
    """Tell whether an array was drawn by this generator; its labels are written last."""
    if not task.labels.exists():
        return False
    stored = json.loads(task.labels.read_text())
    return stored["drawn"] == _drawn_by(task) and len(stored["images"]) == task.images


def _drawn_by(task: _Task) -> list[Any]:
    settings = task.settings
    told = [settings.seed, settings.positive, settings.objects, settings.looks, settings.class_shares]
    return json.loads(json.dumps([generator_hash(), task.size, *told, settings.difficulty]))


def _draw(task: _Task) -> int:
    """Draw one array; returns the number of its images."""
    decoder = Decoder(task.size, DecodeLimits())
    pixels = np.empty((task.images, task.size, task.size, 3), np.uint8)
    images = []
    for k, picture in enumerate(_pictures(task)):
        # as an archive would hold it, and a scan decode it
        row, jpeg = Row("drawn"), simplejpeg.encode_jpeg(picture.pixels, QUALITY, "RGB", "420")
        if decoder(row, jpeg, pixels[k]) is None:
            raise Stopped(f"image {k} of {task.array} is {row.status} ({row.error}): run again")
        images.append(
            {"threats": threat_names(map(bool, picture.labels)), "boxes": _boxes(picture, task.size)}
        )
    stored = io.BytesIO()
    np.save(stored, pixels)
    write_whole(task.array, stored.getvalue())
    write_whole(task.labels, json.dumps({"drawn": _drawn_by(task), "images": images}).encode())
    return task.images


def _pictures(task: _Task) -> Iterator[Picture]:
    for k in range(task.first, task.first + task.images):
        picture = render(k, task.settings)
        yield picture._replace(pixels=np.ascontiguousarray(picture.pixels))


def _boxes(picture: Picture, size: int) -> list[list[Any]]:
    """Return class, left, top, width and height of each threat, in pixels of the array."""
    height, width, _ = picture.pixels.shape
    x, y = size / width, size / height
    return [
        [threat.name, threat.box[0] * x, threat.box[1] * y, threat.box[2] * x, threat.box[3] * y]
        for threat in picture.boxes
    ]
