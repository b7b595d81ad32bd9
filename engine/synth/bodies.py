"""A body: solids of one or more materials at their places, and its placing in the picture."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from .beam import Material
from .field import Field
from .rotations import UPRIGHT, Rotation
from .solids import Dots, Patch, Solid, View


class Part(NamedTuple):
    """A solid of one material, turned and shifted within its body."""

    solid: Solid
    material: Material
    offset: tuple[float, float, float] = (0.0, 0.0, 0.0)  # cm
    rotation: Rotation = UPRIGHT  # solid to body


Body = tuple[Part, ...]


@dataclass(frozen=True)
class Pose:
    """Where a body is and how it is turned: body to view, centre in pixels, pixels a cm."""

    rotation: Rotation
    centre: tuple[float, float]
    scale: float


Shadow = list[tuple[Patch | Dots, Material]]


def cast(body: Body, pose: Pose, canvas: tuple[int, int]) -> Shadow:
    """Return the path lengths through a body's parts, with their materials."""
    shadow: Shadow = []
    for solid, material, offset, rotation in body:
        x, y, _ = pose.rotation.of(offset)
        turned = pose.rotation if rotation is UPRIGHT else pose.rotation @ rotation
        centre = pose.centre[0] + x * pose.scale, pose.centre[1] + y * pose.scale
        seen = solid.seen(View(turned, centre, pose.scale, canvas))
        if seen is not None:
            shadow.append((seen, material))
    return shadow


def add(picture: Field, shadow: Shadow) -> None:
    """Add a body's shadow to the picture."""
    for patch, material in shadow:
        picture.add(patch, material)


def extent(body: Body, rotation: Rotation) -> np.ndarray:
    """Return a body's bounds under a rotation: float [2, 2], low and high x, y in cm from its origin.

    They hold the boxes around its parts, so they may be a little wide.
    """
    left = top = np.inf
    right = bottom = -np.inf
    for part in body:
        low, high = part.solid.bounds()
        turned = rotation if part.rotation is UPRIGHT else rotation @ part.rotation
        x, y, _ = rotation.of(part.offset)
        across, down, deep = [(a + b) / 2 for a, b in zip(low, high, strict=True)]
        middle = turned.of((across, down, deep))
        half = [(b - a) / 2 for a, b in zip(low, high, strict=True)]
        w, h = (abs(a) * half[0] + abs(b) * half[1] + abs(c) * half[2] for a, b, c in turned[:2])
        x, y = x + middle[0], y + middle[1]
        left, right = min(left, x - w), max(right, x + w)
        top, bottom = min(top, y - h), max(bottom, y + h)
    return np.array([(left, top), (right, bottom)])


def silhouette(shadow: Shadow, canvas: tuple[int, int], least: float = 0.02) -> Patch | None:
    """Return where a body's path is longer than `least` cm: a 0/1 patch around it, or None."""
    shapes = [patch.fine() if isinstance(patch, Patch) else patch for patch, _ in shadow]
    if not shapes:
        return None
    bounds = [_bounds(shape, canvas[1]) for shape in shapes]
    y0, x0 = min(b[0] for b in bounds), min(b[1] for b in bounds)
    y1, x1 = max(b[2] for b in bounds), max(b[3] for b in bounds)
    total = np.zeros((y1 - y0, x1 - x0), np.float32)
    for p in shapes:
        if isinstance(p, Dots):
            y, x = np.divmod(p.place, canvas[1])
            np.add.at(total.reshape(-1), (y - y0) * (x1 - x0) + (x - x0), p.path)
        else:
            total[p.y - y0 : p.y - y0 + p.path.shape[0], p.x - x0 : p.x - x0 + p.path.shape[1]] += p.path
    total = total[: canvas[0] - y0, : canvas[1] - x0]
    mask = total > least
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return None
    tight = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return Patch(y0 + int(rows[0]), x0 + int(columns[0]), tight.astype(np.float32))


def _bounds(patch: Patch | Dots, width: int) -> tuple[int, int, int, int]:
    """Return the first row and column of what is drawn, and those behind the last."""
    if isinstance(patch, Dots):
        x = patch.place % width
        y0, y1 = int(patch.place.min()) // width, int(patch.place.max()) // width
        return y0, int(x.min()), y1 + 1, int(x.max()) + 1
    return patch.y, patch.x, patch.y + patch.path.shape[0], patch.x + patch.path.shape[1]
