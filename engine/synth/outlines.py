"""Plane outlines and curves that solids are made of. Sizes in cm."""

from functools import lru_cache

import numpy as np

Outline = np.ndarray  # float [n, 2]


@lru_cache(maxsize=8)
def _weights(each: int) -> np.ndarray:
    """Return Catmull-Rom's weights of four neighbours at `each` points of a leg: float [each, 4]."""
    t = np.arange(each) / each
    t2, t3 = t * t, t * t * t
    return 0.5 * np.stack([2 * t2 - t - t3, 2 - 5 * t2 + 3 * t3, t + 4 * t2 - 3 * t3, t3 - t2], 1)


def curve(points: np.ndarray, each: int = 6) -> np.ndarray:
    """Return a Catmull-Rom curve through points [n, d], with this many points a leg."""
    n = len(points)
    p = np.empty((n + 2, points.shape[1]))
    p[1:-1] = points
    p[0], p[-1] = 2 * points[0] - points[1], 2 * points[-1] - points[-2]
    w = _weights(each)
    out = np.empty(((n - 1) * each + 1, points.shape[1]))
    legs = out[:-1].reshape(n - 1, each, -1)
    np.multiply(w[:, 0, None], p[:-3, None], out=legs)
    for k in (1, 2, 3):
        legs += w[:, k, None] * p[k : n - 1 + k, None]
    out[-1] = points[-1]
    return out


def ribbon(path: np.ndarray, half_widths: np.ndarray) -> Outline:
    """Return the outline of a band of varying half width (cm) around a path [n, 2]."""
    ahead = np.empty_like(path, dtype=float)
    ahead[1:-1] = path[2:] - path[:-2]
    ahead[0], ahead[-1] = path[1] - path[0], path[-1] - path[-2]
    length = np.maximum(np.sqrt(ahead[:, 0] ** 2 + ahead[:, 1] ** 2), 1e-9)
    side = ahead[:, ::-1] * (half_widths / length)[:, None]
    side[:, 0] *= -1
    return np.concatenate([path + side, (path - side)[::-1]])


def circle(x: float, y: float, radius: float, points: int = 24, squash: float = 1.0) -> Outline:
    """Return a circle's outline, its y axis squashed."""
    return _unit_circle(points) * (radius, squash * radius) + (x, y)


@lru_cache(maxsize=16)
def _unit_circle(points: int) -> Outline:
    angle = np.arange(points) * (2 * np.pi / points)
    return np.stack([np.cos(angle), np.sin(angle)], 1)


@lru_cache(maxsize=4)
def _quarters(each: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the arcs of a unit rounded square's corners and the corners' signs, [4 * each, 2] both."""
    angle = np.linspace(0, np.pi / 2, each)
    arc = np.stack([np.cos(angle), np.sin(angle)], 1)
    signs = [(1, 1), (-1, 1), (-1, -1), (1, -1)]
    arcs = np.concatenate([arc[:: x * y] * (x, y) for x, y in signs])
    return arcs, np.repeat(np.array(signs, float), each, axis=0)


def rounded(width: float, height: float, corner: float, each: int = 6) -> Outline:
    """Return a rectangle's outline with round corners, centred, sizes in cm."""
    corner = min(corner, width / 2, height / 2)
    arcs, signs = _quarters(each)
    return arcs * corner + signs * (width / 2 - corner, height / 2 - corner)
