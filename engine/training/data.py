"""Labelled images for training: lists in SIXray's form, pixels as the scan decodes them, disjoint splits."""

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..decode import DecodeLimits, Decoder
from ..errors import Refused
from ..row import THREATS, Row
from .progress import Progress

COLUMNS = ["name", *(threat.capitalize() for threat in THREATS)]
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".jp2")


@dataclass(frozen=True)
class Labelled:
    """Paths of images and what they hold."""

    paths: tuple[Path, ...]
    labels: NDArray[np.bool_]  # [n, 5] in the order of THREATS; a benign image has none

    @property
    def positive(self) -> NDArray[np.bool_]:
        """Tell which images hold a threat, [n]."""
        return np.any(self.labels, axis=1)

    def take(self, index: NDArray[np.intp]) -> "Labelled":
        """Return the images at these positions."""
        return Labelled(tuple(self.paths[i] for i in index), self.labels[index])


@dataclass(frozen=True)
class Splits:
    """Disjoint positions in one data set, each sorted."""

    train: NDArray[np.intp]
    validation: NDArray[np.intp]
    calibration: NDArray[np.intp]


def read_sixray(labels: Path, images: Path) -> Labelled:
    """Read a list `name,Gun,Knife,Wrench,Pliers,Scissors` (1 / -1) of images that lie below a folder.

    A name is that of the file, with or without its extension. Raises Refused with file and line for a
    malformed line, a name listed twice, or a name without an image.
    """
    by_name = _images_by_name(images)
    paths, rows = [], []
    with labels.open(newline="", encoding="utf-8-sig") as file:
        lines = csv.reader(file)
        if next(lines, None) != COLUMNS:
            raise Refused(f"{labels} does not begin with the line {','.join(COLUMNS)}.")
        for number, line in enumerate(lines, start=2):
            name, *values = line or [""]
            if len(values) != len(THREATS) or not set(values) <= {"1", "-1", "0"}:
                raise Refused(f"{labels}, line {number}: a name and five labels, 1 or -1, are expected.")
            path = by_name.pop(name, None) or by_name.pop(Path(name).stem, None)
            if path is None:
                raise Refused(
                    f"{labels}, line {number}: {name!r} is listed twice or has no image in {images}."
                )
            paths.append(path)
            rows.append([value == "1" for value in values])
    return Labelled(tuple(paths), np.array(rows, dtype=np.bool_).reshape(-1, len(THREATS)))


def _images_by_name(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise Refused(f"The image folder {folder} does not exist.")
    found = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    return {path.stem: path for path in found}


def split(labelled: Labelled, seed: int, validation: float, calibration: float) -> Splits:
    """Deal images at random into three parts, by shares; calibration gets benign images alone.

    Operating points need no positives, and training needs every one. Raises Refused where a part that needs
    positives or benign images would get none.
    """
    random = np.random.default_rng((seed, 1))
    parts: list[list[NDArray[np.intp]]] = [[], [], []]
    for positive, held in ((True, 0.0), (False, calibration)):
        index = random.permutation(np.flatnonzero(labelled.positive == positive))
        a, b = round(len(index) * validation), round(len(index) * (validation + held))
        for part, piece in zip(parts, (index[b:], index[:a], index[a:b]), strict=True):
            part.append(piece)
    kinds = {"positive": parts[0][0].size and parts[1][0].size, "benign": all(part[1].size for part in parts)}
    if lacking := [kind for kind, enough in kinds.items() if not enough]:
        raise Refused(f"{len(labelled.paths)} images hold too few {' and '.join(lacking)} ones to be split.")
    return Splits(*(np.sort(np.concatenate(part)) for part in parts))


def load_pixels(
    labelled: Labelled, size: int, folder: Path, progress: Progress
) -> tuple[Labelled, NDArray[np.uint8]]:
    """Decode every image as a scan would; returns those that could be read and their pixels.

    Pixels are uint8 [n, size, size, 3], kept in a file of the run folder and mapped, not held in memory.
    Raises Refused where more than one image in a hundred cannot be decoded.
    """
    decoder = Decoder(size, DecodeLimits())
    shape = (len(labelled.paths), size, size, 3)
    pixels = np.lib.format.open_memmap(folder / "pixels.npy", mode="w+", dtype=np.uint8, shape=shape)
    good: list[int] = []
    for number, path in enumerate(labelled.paths):
        image = decoder(Row(uri=str(path)), path.read_bytes())
        if image is not None:
            pixels[len(good)] = image
            good.append(number)
        progress("decode", number + 1, len(labelled.paths), {})
    if len(good) < 0.99 * len(labelled.paths):
        raise Refused(f"{len(labelled.paths) - len(good)} of {len(labelled.paths)} images cannot be decoded.")
    return labelled.take(np.array(good)), pixels[: len(good)]


def counts(labels: NDArray[np.bool_]) -> dict[str, int]:
    """Count images, benign images and labels of each class."""
    by_class = dict(zip(THREATS, labels.sum(axis=0).tolist(), strict=True))
    return {"images": len(labels), "benign": int((~labels.any(axis=1)).sum()), **by_class}


def batches(index: NDArray[np.intp], size: int) -> Sequence[NDArray[np.intp]]:
    """Cut positions into whole batches; a shorter rest is left out."""
    return [index[start : start + size] for start in range(0, len(index) - size + 1, size)]
