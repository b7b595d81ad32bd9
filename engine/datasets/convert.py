"""Conversion of labels from any format to SIXray's CSV or COCO's JSON."""

import csv
import io
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ..errors import Refused
from ..system.durable import write_whole
from . import read_labels
from .coco import write_coco
from .joining import find_images, join
from .labels import Labels
from .tables import SIXRAY_HEADER


@dataclass(frozen=True)
class Converted:
    """Counts of a conversion."""

    images: int
    positives: int
    boxes: int  # written; a CSV cannot hold any
    dropped: tuple[str, ...]  # what OUT's format cannot hold: boxes, groups, splits


def convert(
    source: Path,
    out: Path,
    form: str = "auto",
    class_map: Path | None = None,
    image_folder: Path | None = None,
) -> Converted:
    """Write the labels of `source` to `out`, a .csv in SIXray's format or a .json in COCO's.

    With `image_folder`, names become paths of images below that folder, and the JSON holds their sizes.
    Raises Refused for labels that cannot be read or joined, and if `out` exists already.
    """
    if out.suffix.lower() not in (".csv", ".json"):
        raise Refused(
            f"{out} ends neither in .csv (SIXray's format) nor in .json (COCO's); name a file that does"
        )
    if out.exists():
        raise Refused(f"{out} exists already; remove it or name another file")
    labels = read_labels(source, form, class_map)
    if labels.unknown:
        raise Refused(
            f"{source} does not say of every image whether it holds {' and '.join(labels.unknown)}, and "
            f"{out} cannot leave that open: fill the blanks first"
        )
    paths = None
    if image_folder is not None:
        on_disk = find_images(image_folder)
        paths = [on_disk[k] for k in join(labels, [str(path) for path in on_disk])]
        labels = replace(labels, names=tuple(path.relative_to(image_folder).as_posix() for path in paths))
    as_csv = out.suffix.lower() == ".csv"
    write_whole(out, write_sixray(labels) if as_csv else write_coco(labels, _sizes(paths)))
    boxes = sum(map(len, labels.boxes))
    held = {"boxes": boxes, "groups": any(labels.groups), "splits": any(labels.splits)}
    dropped = tuple(name for name, there in held.items() if there) if as_csv else ()
    return Converted(len(labels.names), int(labels.positive.sum()), 0 if as_csv else boxes, dropped)


def write_sixray(labels: Labels) -> bytes:
    """Return a list in SIXray's format: one image per line, 1 for a threat and -1 for its absence.

    Raises Refused for a file name that is not UTF-8.
    """
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(SIXRAY_HEADER)
    values = np.where(labels.labels, 1, -1).tolist()
    writer.writerows([name, *row] for name, row in zip(labels.names, values, strict=True))
    try:
        return file.getvalue().encode()
    except UnicodeEncodeError as error:
        name = next(name for name in labels.names if not _is_utf8(name))
        raise Refused(f"the name {name!r} is not UTF-8, which a CSV must be; write a .json") from error


def _is_utf8(name: str) -> bool:
    return not any("\ud800" <= letter <= "\udfff" for letter in name)


def _sizes(paths: list[Path] | None) -> Callable[[int], tuple[int, int]] | None:
    """Return a function that reads width and height of an image from its header; None without images."""
    from PIL import Image

    def size(k: int) -> tuple[int, int]:
        assert paths is not None
        try:
            with Image.open(paths[k]) as image:
                return image.size
        except (OSError, Image.DecompressionBombError) as error:
            raise Refused(f"{paths[k]} is not an image whose size can be read: {error}") from error

    return None if paths is None else size
