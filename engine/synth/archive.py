"""Writes a synthetic archive: images, labels in SIXray's format, boxes in COCO's, and the settings."""

import csv
import hashlib
import json
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import simplejpeg
from PIL import Image

from ..errors import Refused, Stopped
from ..row import THREATS
from ..system.machine import die_with
from .looks import LOOKS
from .picture import Picture, SynthSettings, ThreatBox, render_bag

QUALITY = 95
CHUNK = 4  # images a task: an interrupt waits for those that are begun
NOT_GENERATOR = ("__init__", "air", "archive", "isolated")  # their changes change no picture


@dataclass(frozen=True)
class Counts:
    """Counts of the images written."""

    images: int
    positives: int
    boxes: int
    labels: dict[str, int]  # images that hold each class


class _Record(NamedTuple):
    """Entry of one image in the files of the archive."""

    name: str
    width: int
    height: int
    bags: int
    look: str
    labels: tuple[int, ...]
    threats: list[dict[str, Any]]  # COCO annotations, without their ids


def generator_hash() -> str:
    """Return the SHA-256 of the sources that draw pictures, which names the generator's version."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        if path.stem not in NOT_GENERATOR:
            digest.update(path.read_bytes())
    return digest.hexdigest()


def write_archive(
    out: Path, settings: SynthSettings, progress: Callable[[int], None] | None = None
) -> Counts:
    """Write OUT/images, labels.csv, boxes.json and synth.json; `progress` gets the number of images done.

    Raises Refused if the settings are invalid or OUT is not empty, and Stopped if one of the
    worker processes is ended from outside.
    """
    _check(out, settings)
    (out / "images").mkdir(parents=True)
    records: list[_Record] = []
    for chunk in _chunks(out, settings):
        records += chunk
        if progress is not None:
            progress(len(records))
    _write_labels(out / "labels.csv", records)
    _write_boxes(out / "boxes.json", records)
    counts = _counted(records)
    _write_settings(out / "synth.json", settings, counts)
    return counts


def _check(out: Path, settings: SynthSettings) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise Refused(f"{out} already exists and is not an empty folder: name another one or empty it")
    if settings.count < 1:
        raise Refused(f"--count is {settings.count}: ask for at least one image")
    if settings.longest < 32:
        raise Refused(f"longest is {settings.longest}: it is at least 32 pixels")
    if settings.seed < 0:
        raise Refused(f"--seed is {settings.seed}: it is a whole number, 0 or more")
    if not 0 <= settings.positive <= 1:
        raise Refused(f"--positive is {settings.positive}: it is a share between 0 and 1")
    unknown = sorted(set(settings.looks) - set(LOOKS))
    if unknown or not settings.looks:
        raise Refused(f"unknown look {', '.join(unknown) or '(none given)'}: choose from {', '.join(LOOKS)}")
    if (
        len(settings.class_shares) != len(THREATS)
        or min(settings.class_shares) < 0
        or not any(settings.class_shares)
    ):
        raise Refused(f"class_shares needs {len(THREATS)} weights of 0 or more, one for each class")


def is_positive(index: int, share: float) -> bool:
    """Tell whether image `index` holds a threat; positives are evenly spread."""
    return int((index + 1) * share + 1e-9) > int(index * share + 1e-9)


def render(index: int, settings: SynthSettings) -> Picture:
    """Draw image `index`: pixels, labels, boxes and masks, which depend only on the settings and the index.

    It is the image that `write_archive` writes, before JPEG. A smaller `settings.longest` is cheaper.
    """
    rng = np.random.default_rng([settings.seed, index])
    return render_bag(rng, settings, is_positive(index, settings.positive))


def _chunks(out: Path, settings: SynthSettings) -> Iterator[list[_Record]]:
    starts = range(0, settings.count, CHUNK)
    tasks = [(out, settings, range(s, min(s + CHUNK, settings.count))) for s in starts]
    if settings.workers <= 1:
        yield from map(_write_chunk, tasks)
        return
    spawn = multiprocessing.get_context("spawn")  # a fork would copy another library's locked threads
    with ProcessPoolExecutor(settings.workers, spawn, _start_worker, (os.getpid(),)) as pool:
        try:
            # not `map`, which cancels the rest itself: CPython 3.11 then forgets to end the other workers
            for future in [pool.submit(_write_chunk, task) for task in tasks]:
                yield future.result()
        except BrokenProcessPool as error:
            raise Stopped(
                "a process that drew images was ended from outside, perhaps for want of memory: "
                f"remove {out} and begin again"
            ) from error
        except BaseException:  # an interrupt, or a full disk
            pool.shutdown(cancel_futures=True)
            raise


def _start_worker(parent: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent obeys it, for all
    die_with(parent)


def _write_chunk(task: tuple[Path, SynthSettings, range]) -> list[_Record]:
    out, settings, indices = task
    return [_write_image(out, settings, index) for index in indices]


def _write_image(out: Path, settings: SynthSettings, index: int) -> _Record:
    picture = render(index, settings)
    name = f"{'P' if any(picture.labels) else 'N'}{index + 1:05d}"
    (out / "images" / f"{name}.jpg").write_bytes(_jpeg(picture.pixels, QUALITY))
    height, width, _ = picture.pixels.shape
    threats = [_annotation(threat, height, width) for threat in picture.boxes]
    return _Record(name, width, height, picture.bags, picture.look, picture.labels, threats)


def _jpeg(pixels: np.ndarray, quality: int) -> bytes:
    return simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), quality, "RGB", "420")


def _annotation(threat: ThreatBox, height: int, width: int) -> dict[str, Any]:
    """Return a threat's COCO annotation; its outline is run lengths down the columns, zeros first."""
    x, y, w, h = threat.box
    sheet = np.zeros((height, width), bool)
    sheet[y : y + h, x : x + w] = threat.mask
    flat = sheet.ravel(order="F")
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    counts = np.diff(edges, prepend=0, append=flat.size).tolist()
    return {
        "category_id": THREATS.index(threat.name) + 1,
        "bbox": list(threat.box),
        "area": int(threat.mask.sum()),
        "segmentation": {"size": [height, width], "counts": [0, *counts] if flat[0] else counts},
        "iscrowd": 0,
        "bag": list(threat.bag),
        "covered": round(threat.covered, 3),
    }


def _write_labels(path: Path, records: list[_Record]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["name", *(name.capitalize() for name in THREATS)])
        writer.writerows([r.name, *(1 if label else -1 for label in r.labels)] for r in records)


def _write_boxes(path: Path, records: list[_Record]) -> None:
    images = [
        {
            "id": k,
            "file_name": f"{r.name}.jpg",
            "width": r.width,
            "height": r.height,
            "bags": r.bags,
            "look": r.look,
        }
        for k, r in enumerate(records, 1)
    ]
    threats = [(k, threat) for k, r in enumerate(records, 1) for threat in r.threats]
    annotations = [{"id": n, "image_id": k, **threat} for n, (k, threat) in enumerate(threats, 1)]
    categories = [{"id": k, "name": name, "supercategory": "threat"} for k, name in enumerate(THREATS, 1)]
    path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))


def _counted(records: list[_Record]) -> Counts:
    labels = {name: sum(r.labels[k] for r in records) for k, name in enumerate(THREATS)}
    positives = sum(any(r.labels) for r in records)
    return Counts(len(records), positives, sum(len(r.threats) for r in records), labels)


def _write_settings(path: Path, settings: SynthSettings, counts: Counts) -> None:
    told = {"generator": generator_hash(), "settings": asdict(settings), "counts": asdict(counts)}
    del told["settings"]["workers"]  # it changes no byte
    path.write_text(json.dumps(told, indent=1))


def gate_images(count: int, seed: int, size: int) -> list[bytes]:
    """Return JPEGs (quality 90) of size x size pixels, alternately positive and benign, in every look."""
    settings = SynthSettings(count=count, seed=seed, positive=0.5)
    pictures = (Image.fromarray(render(k, settings).pixels) for k in range(count))
    small = (picture.resize((size, size), Image.Resampling.BILINEAR) for picture in pictures)
    return [_jpeg(np.asarray(picture), 90) for picture in small]
