"""What families of bodies share: outlines, paths, and draws from their generator. Sizes in cm."""

from collections.abc import Callable
from typing import TypeVar

import numpy as np

from .beam import Material
from .bodies import Body, Part
from .outlines import curve
from .rotations import turn
from .solids import Prism

Rng = np.random.Generator
T = TypeVar("T")
Family = Callable[[Rng], Body]
ALONG_X = turn(1, np.pi / 2)  # lays a cylinder along x


def points(*values: tuple[float, float]) -> np.ndarray:
    """Return an outline or a path of x, y pairs in cm: float [n, 2]."""
    return np.array(values, float)


def arc(x: float, y: float, radius: float, start: float, end: float, points: int = 14) -> np.ndarray:
    """Return an arc about (x, y) from one angle to another: float [n, 2]."""
    angle = np.linspace(start, end, points)
    return np.stack([x + radius * np.cos(angle), y + radius * np.sin(angle)], 1)


def spun(outline: np.ndarray, angle: float, about: tuple[float, float] = (0.0, 0.0)) -> np.ndarray:
    """Return an outline turned in its plane about a point."""
    c, s = np.cos(angle), np.sin(angle)
    return (outline - about) @ np.array([[c, s], [-s, c]]) + about


def space(outline: np.ndarray, z: float = 0.0) -> np.ndarray:
    """Lift a plane path into space at a height z: float [n, 3]."""
    return np.concatenate([outline, np.full((len(outline), 1), z)], 1)


def uniform(rng: Rng, low: float, high: float) -> float:
    """Return a number drawn evenly between two bounds."""
    return float(rng.uniform(low, high))


def inset(outline: np.ndarray, share: float) -> np.ndarray:
    """Return an outline shrunk towards its middle."""
    middle = outline.mean(0)
    return middle + (outline - middle) * share


def hollow(outline: np.ndarray, share: float, half: float, material: Material, cheek: float) -> list[Part]:
    """Return a box with an outline: walls between it and its inset by a share, and two cheeks.

    `half` is half its depth, `cheek` the thickness of both cheeks together, cm.
    """
    walls = Prism(outline, half, (inset(outline, share),))
    return [Part(walls, material), Part(Prism(outline, cheek / 2), material)]


def centred(parts: list[Part], x: float, y: float = 0.0) -> Body:
    """Return parts as a body whose origin lies at (x, y)."""
    return tuple(
        Part(p.solid, p.material, (p.offset[0] - x, p.offset[1] - y, p.offset[2]), p.rotation) for p in parts
    )


def pick(rng: Rng, *choices: T) -> T:
    """Return one of the choices."""
    return choices[rng.integers(len(choices))]


def wandering(rng: Rng, legs: int, step: float, reach: float, flat: float = 0.4) -> np.ndarray:
    """Return a smooth random path in space [n, 3] that stays within a reach: a loose cable."""
    points = [np.zeros(3)]
    heading = rng.uniform(0, 2 * np.pi)
    for _ in range(legs):
        heading += rng.normal(0, 0.9)
        ahead = points[-1] + step * np.array([np.cos(heading), np.sin(heading), rng.normal(0, flat)])
        if np.abs(ahead[:2]).max() > reach:
            heading = np.arctan2(-points[-1][1], -points[-1][0])
            ahead = points[-1] + step * np.array([np.cos(heading), np.sin(heading), 0])
        points.append(ahead)
    return curve(np.array(points), 6)
