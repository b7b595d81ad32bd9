"""Boxes of single images: Pascal VOC's XML (SIXray), and lines of text (OPIXray, HiXray)."""

from collections.abc import Iterator
from pathlib import Path

from ..errors import Refused
from .classes import ClassMap
from .files import corners, read_text
from .labels import Box, Gathered, Labels
from .markup import Text, read_xml

_CORNERS = ("xmin", "ymin", "xmax", "ymax")
_OBJECT = "annotation/object"


def read_voc(path: Path, classes: ClassMap) -> Labels:
    """Read one XML file, or all below a folder, one per image; an image without an object is benign.

    Raises Refused with file and line.
    """
    gathered = Gathered()
    for file in listed(path, ".xml"):
        texts = read_xml(file)
        if not texts or not texts[-1].path == "annotation":
            raise Refused(f"{file}, line 1: the root is not <annotation>, so this is not Pascal VOC")
        boxes = [box for box in _voc_boxes(file, texts, classes) if box]
        name = next((text.text for text in texts if text.path == "annotation/filename"), "") or file.stem
        gathered.add(name, {box.threat for box in boxes}, str(file), boxes=boxes)
    return gathered.labels(path)


def _voc_boxes(file: Path, texts: list[Text], classes: ClassMap) -> Iterator[Box | None]:
    """Yield a box for each object, or None if it is not a threat."""
    of_object: dict[str, Text] = {}
    for text in texts:
        if text.path == _OBJECT:
            yield _voc_box(file, of_object, text.line, classes)
            of_object = {}
        elif text.path.startswith(f"{_OBJECT}/"):
            of_object.setdefault(text.path.removeprefix(f"{_OBJECT}/"), text)


def _voc_box(file: Path, of_object: dict[str, Text], line: int, classes: ClassMap) -> Box | None:
    for key in ("name", *(f"bndbox/{corner}" for corner in _CORNERS)):
        if key not in of_object:
            raise Refused(f"{file}, line {line}: the object has no <{key.rpartition('/')[2]}>")
    name, *sides = (of_object[key] for key in ("name", *(f"bndbox/{corner}" for corner in _CORNERS)))
    threat = classes(name.text, f"{file}, line {name.line}")
    box = corners([side.text for side in sides], f"{file}, line {sides[0].line}")
    return Box(threat, *box) if threat else None


def read_boxes(path: Path, classes: ClassMap) -> Labels:
    """Read one text file, or all below a folder: one object a line; an empty file is benign.

    A line is file name, class, x min, y min, x max, y max, separated by blanks. Raises Refused with file and
    line.
    """
    gathered = Gathered()
    for file in listed(path, ".txt"):
        images = _text_images(file, read_text(file), classes) or {file.stem: (1, [])}
        for name, (line, boxes) in images.items():
            gathered.add(name, {box.threat for box in boxes}, f"{file}, line {line}", boxes=boxes)
    return gathered.labels(path)


def _text_images(file: Path, text: str, classes: ClassMap) -> dict[str, tuple[int, list[Box]]]:
    """Collect the images of a file: the line where each one begins, and its boxes."""
    images: dict[str, tuple[int, list[Box]]] = {}
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        origin, words = f"{file}, line {number}", line.split()
        if len(words) != 6:
            raise Refused(
                f"{origin}: file name, class, x min, y min, x max and y max are expected, blanks between, "
                f"not {len(words)} values"
            )
        threat, box = classes(words[1], origin), corners(words[2:], origin)
        _, boxes = images.setdefault(words[0], (number, []))
        boxes += [Box(threat, *box)] if threat else []
    return images


def listed(path: Path, suffix: str) -> list[Path]:
    """Return the file, or the files of this suffix below the folder, sorted; raises Refused if none."""
    files = sorted(path.rglob(f"*{suffix}")) if path.is_dir() else [path]
    if not files:
        raise Refused(f"{path} holds no {suffix} file; name the folder with the annotations")
    return files
