"""A body: solids of one or more materials at their places, and its placing in the picture."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

from .beam import Field, Material
from .solids import Patch, Solid, View


@dataclass(frozen=True)
class Part:
    """A solid of one material, turned and shifted within its body."""

    solid: Solid
    material: Material
    offset: tuple[float, float, float] = (0.0, 0.0, 0.0)  # cm
    rotation: np.ndarray = field(default_factory=lambda: np.eye(3))  # solid to body


Body = tuple[Part, ...]


@dataclass(frozen=True)
class Pose:
    """Where a body is and how it is turned: body to view, centre in pixels, pixels a cm."""

    rotation: np.ndarray
    centre: tuple[float, float]
    scale: float

    def view(self, part: Part, canvas: tuple[int, int]) -> View:
        """Return how a part of the body is seen."""
        shift = self.rotation[:2] @ np.array(part.offset) * self.scale
        centre = (self.centre[0] + float(shift[0]), self.centre[1] + float(shift[1]))
        return View(self.rotation @ part.rotation, centre, self.scale, canvas)


Shadow = list[tuple[Patch, Material]]


def cast(body: Iterable[Part], pose: Pose, canvas: tuple[int, int]) -> Shadow:
    """Return the path lengths through a body's parts, with their materials."""
    seen = ((part.solid.seen(pose.view(part, canvas)), part.material) for part in body)
    return [(patch, material) for patch, material in seen if patch is not None]


def add(picture: Field, shadow: Shadow) -> None:
    """Add a body's shadow to the picture."""
    for patch, material in shadow:
        picture.add(patch, material)


def moved(body: Body, offset: tuple[float, float, float], rotation: np.ndarray | None = None) -> Body:
    """Return the body turned, then shifted (cm)."""
    turning = np.eye(3) if rotation is None else rotation
    return tuple(
        Part(
            part.solid,
            part.material,
            tuple((turning @ np.array(part.offset) + offset).tolist()),
            turning @ part.rotation,
        )
        for part in body
    )


def extent(body: Body, rotation: np.ndarray) -> np.ndarray:
    """Return a body's bounds under a rotation: float [2, 2], low and high x, y in cm from its origin."""
    bounds = np.array(
        [part.solid.extent(rotation @ part.rotation) + rotation[:2] @ np.array(part.offset) for part in body]
    )
    return np.stack([bounds[:, 0].min(0), bounds[:, 1].max(0)])


def silhouette(shadow: Shadow, canvas: tuple[int, int], least: float = 0.02) -> Patch | None:
    """Return where a body's path is longer than `least` cm: a 0/1 patch around it, or None."""
    if not shadow:
        return None
    patches = [patch for patch, _ in shadow]
    y0, x0 = min(p.y for p in patches), min(p.x for p in patches)
    y1 = min(max(p.y + p.path.shape[0] for p in patches), canvas[0])
    x1 = min(max(p.x + p.path.shape[1] for p in patches), canvas[1])
    total = np.zeros((y1 - y0, x1 - x0), np.float32)
    for p in patches:
        total[p.y - y0 : p.y - y0 + p.path.shape[0], p.x - x0 : p.x - x0 + p.path.shape[1]] += p.path
    mask = total > least
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if not len(rows):
        return None
    tight = mask[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return Patch(y0 + int(rows[0]), x0 + int(columns[0]), tight.astype(np.float32))
