"""COCO's JSON (PIDray, CLCXray, our own boxes.json): images, annotations with boxes, categories."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from ..errors import Refused
from ..row import THREATS
from .classes import ClassMap
from .files import read_text
from .labels import Box, Gathered, Labels

LARGEST = 1e9  # pixels; infinities and NaN are not below it
_PARTS = ("images", "annotations", "categories")
T = TypeVar("T")


def read_coco(path: Path, classes: ClassMap) -> Labels:
    """Read a file of images, annotations and categories; an image without an annotation is benign.

    An annotation without a `bbox` is a label only. Raises Refused with the line of invalid JSON, or with the
    number (from 1) of an invalid entry.
    """
    images, annotations, categories = _parts(path)
    threats: dict[Any, str | None] = {}
    for origin, entry in _entries(path, "categories", categories):
        threats[_get(entry, "id", int, origin)] = classes(_get(entry, "name", str, origin), origin)
    found = _by_image(path, annotations, threats, _ids(path, images))
    gathered = Gathered()
    for origin, entry in _entries(path, "images", images):
        held = found.get(entry["id"], [])
        gathered.add(
            _get(entry, "file_name", str, origin),
            {threat for threat, _ in held},
            origin,
            group=str(entry.get("group") or ""),
            split=str(entry.get("split") or ""),
            boxes=[box for _, box in held if box],
        )
    return gathered.labels(path)


def _parts(path: Path) -> list[list[Any]]:
    try:
        content = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise Refused(f"{path}, line {error.lineno}: this is not JSON: {error.msg}") from error
    except (RecursionError, ValueError) as error:
        raise Refused(f"{path} is not COCO: its JSON is nested too deep, or a number too long") from error
    parts = [content.get(part) if isinstance(content, dict) else None for part in _PARTS]
    for name, part in zip(_PARTS, parts, strict=True):
        if not isinstance(part, list):
            raise Refused(f"{path} is not COCO: its list of {name} is missing")
    return [part for part in parts if isinstance(part, list)]


def _entries(path: Path, part: str, entries: list[Any]) -> list[tuple[str, dict[str, Any]]]:
    """Pair each entry with its origin; raises Refused for one that is not an object."""
    placed = [(f"{path}, {part} {number}", entry) for number, entry in enumerate(entries, start=1)]
    for origin, entry in placed:
        if not isinstance(entry, dict):
            raise Refused(f"{origin}: an object is expected")
    return placed


def _get(entry: dict[str, Any], key: str, kind: type[T], origin: str) -> T:
    value = entry.get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
        wanted = "a whole number" if kind is int else "a text"
        raise Refused(f"{origin}: {key} must be {wanted}, not {json.dumps(value)[:40]}")
    return value


def _ids(path: Path, images: list[Any]) -> set[int]:
    ids: set[int] = set()
    for origin, entry in _entries(path, "images", images):
        number = _get(entry, "id", int, origin)
        if number in ids:
            raise Refused(f"{origin}: another image has the id {number} too; give each its own")
        ids.add(number)
    return ids


def _by_image(
    path: Path, annotations: list[Any], threats: dict[Any, str | None], ids: set[int]
) -> dict[int, list[tuple[str, Box | None]]]:
    """Collect the threats of each image, with their boxes if they have any."""
    found: dict[int, list[tuple[str, Box | None]]] = {}
    for origin, entry in _entries(path, "annotations", annotations):
        image, category = (_get(entry, key, int, origin) for key in ("image_id", "category_id"))
        if image not in ids:
            raise Refused(f"{origin}: there is no image of the id {image}; add it or remove the annotation")
        if category not in threats:
            raise Refused(f"{origin}: there is no category of the id {category}; add it to the categories")
        box = _numbers(entry["bbox"], origin) if entry.get("bbox") is not None else None
        if threat := threats[category]:
            found.setdefault(image, []).append((threat, Box(threat, *box) if box else None))
    return found


def _numbers(values: Any, origin: str) -> tuple[float, float, float, float]:
    numbers = values if isinstance(values, list) else []
    plain = [float(v) for v in numbers if isinstance(v, int | float) and abs(v) < LARGEST]
    if len(numbers) != 4 or len(plain) != 4 or min(plain[2:]) <= 0:
        raise Refused(f"{origin}: bbox must be x, y, width and height, the last two above 0")
    return plain[0], plain[1], plain[2], plain[3]


def write_coco(labels: Labels, size: Callable[[int], tuple[int, int]] | None = None) -> bytes:
    """Return the bytes of a COCO file: an annotation per label, with its box if it is known.

    `size` returns width and height of an image; without it they are left out. Groups and splits are included.
    """
    images, annotations = [], []
    for k, name in enumerate(labels.names):
        entry: dict[str, Any] = {"id": k + 1, "file_name": name}
        if size is not None:
            entry["width"], entry["height"] = size(k)
        known = {"group": labels.groups[k], "split": labels.splits[k]}
        images.append(entry | {key: value for key, value in known.items() if value})
        annotations += [{"image_id": k + 1, **found} for found in _annotations(labels, k)]
    numbered = [{"id": number, **entry} for number, entry in enumerate(annotations, start=1)]
    categories = [{"id": k, "name": name, "supercategory": "threat"} for k, name in enumerate(THREATS, 1)]
    content = {"images": images, "annotations": numbered, "categories": categories}
    return json.dumps(content, indent=1).encode()


def _annotations(labels: Labels, k: int) -> list[dict[str, Any]]:
    boxes = [
        {
            "category_id": THREATS.index(box.threat) + 1,
            "bbox": [box.x, box.y, box.width, box.height],
            "area": box.width * box.height,
            "iscrowd": 0,
        }
        for box in labels.boxes[k]
    ]
    boxed = {box.threat for box in labels.boxes[k]}
    plain = [
        {"category_id": c + 1}
        for c, threat in enumerate(THREATS)
        if labels.labels[k, c] and threat not in boxed
    ]
    return boxes + plain
