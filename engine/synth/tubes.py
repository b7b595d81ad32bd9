"""Round wires along a path: cables, seams, rings, rods."""

from dataclasses import dataclass
from functools import lru_cache
from math import ceil

import numpy as np

from .solids import Bounds, Dots, View

PHASES = 4  # places within a pixel, each way, that a wire's disc is drawn at
FINE = 8  # steps a pixel that a disc is measured in


@dataclass(frozen=True)
class Tube:
    """A round wire along a path: float [n, 3] points and the radius, cm; or several, one after another."""

    path: np.ndarray
    radius: float
    breaks: tuple[int, ...] = ()  # points after the first that begin a wire of their own

    def bounds(self) -> Bounds:
        """Return its bounds in its own frame."""
        r = self.radius
        (x0, y0, z0), (x1, y1, z1) = self.path.min(0).tolist(), self.path.max(0).tolist()
        return (x0 - r, y0 - r, z0 - r), (x1 + r, y1 + r, z1 + r)

    def seen(self, view: View) -> Dots | None:
        """Return the arc length a pixel, spread over the wire's disc.

        For a straight wire this is the chord 2 sqrt(r^2 - d^2) over the sine of the angle to the ray.
        """
        radius = self.radius * view.scale
        points = (self.path @ np.array(view.rotation).T) * view.scale
        points[:, 0] += view.centre[0]
        points[:, 1] += view.centre[1]
        middles, lengths = _pieces(points, max(0.9, 0.65 * radius), self.breaks)
        height, width = view.canvas
        first, side, stamps = _stamps(max(round(radius * 4), 1))
        sub = ((middles + first) * PHASES).astype(
            np.int32
        )  # of the stamp's corner; left of 0 is cut off below
        x, y = sub[:, 0] // PHASES, sub[:, 1] // PHASES
        keep = (sub > 0).all(1) & (x <= width - side) & (y <= height - side)
        if not keep.all():
            x, y, sub, lengths = x[keep], y[keep], sub[keep], lengths[keep]
        if not len(x):
            return None
        phase = sub[:, 1] % PHASES * PHASES + sub[:, 0] % PHASES
        steps = np.arange(side)
        place = (y * width + x)[:, None] + (steps[:, None] * width + steps).ravel()
        weight = (lengths * (np.pi * radius * radius / view.scale)).astype(np.float32)
        return Dots(place.ravel(), (stamps[phase] * weight[:, None]).ravel())


@lru_cache(maxsize=256)
def _stamps(quarters: int) -> tuple[float, int, np.ndarray]:
    """Return how a disc is drawn whose radius is `quarters` of a quarter pixel.

    That is where the pixels around its middle begin, how many there are each way, and their shares by the
    place of that beginning within a pixel: float32 [PHASES^2, side^2].
    """
    radius = max(quarters / 4, 0.5)
    side = ceil(2 * radius + 1)  # a thin wire takes two pixels, not three
    first = -side / 2 + 0.5
    fine = (np.arange(side * FINE) + 0.5) / FINE
    shares = []
    for y in range(PHASES):
        for x in range(PHASES):
            dy, dx = fine - (y + 0.5) / PHASES + first, fine - (x + 0.5) / PHASES + first
            disc = (dy[:, None] ** 2 + dx[None, :] ** 2 < radius * radius).astype(float)
            shares.append(disc.reshape(side, FINE, side, FINE).sum((1, 3)).ravel() / disc.sum())
    return first, side, np.array(shares, np.float32)


def strands(paths: list[np.ndarray], radius: float) -> Tube:
    """Return wires of one radius along paths float [n, 3]."""
    breaks = np.cumsum([len(path) for path in paths[:-1]]).tolist()
    return Tube(np.concatenate(paths), radius, tuple(breaks))


def _pieces(points: np.ndarray, step: float, breaks: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    """Cut polylines [n, 3] into pieces about a step long in projection: middles [m, 2], lengths [m]."""
    legs = points[1:] - points[:-1]
    flat = legs[:, 0] ** 2 + legs[:, 1] ** 2
    counts = np.maximum(np.ceil(np.sqrt(flat) * (1 / step)), 1).astype(np.intp)
    lengths = np.sqrt(flat + legs[:, 2] ** 2) / counts
    if breaks:
        counts[np.array(breaks) - 1] = 0
    index = np.repeat(np.arange(len(legs)), counts)
    within = np.arange(len(index)) - (np.cumsum(counts) - counts)[index] + 0.5
    middles = legs[index, :2]
    middles *= (within / counts[index])[:, None]
    middles += points[index, :2]
    return middles, lengths[index]
