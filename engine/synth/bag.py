"""A bag: its kinds, its outline, and its place on the belt."""

from dataclasses import dataclass
from math import atan

import numpy as np

from .bodies import Pose
from .cloth import blob
from .outlines import Outline, rounded
from .rotations import Rotation, turn
from .shapes import Rng

FOCUS = 95.0  # cm from the tube to the belt's plane
KINDS = ("trolley", "backpack", "handbag", "case", "pouch")


@dataclass(frozen=True)
class Bag:
    """A bag: its kind, size and place."""

    kind: str
    size: tuple[float, float, float]  # cm: along x, y, and the ray
    rotation: Rotation  # bag to view
    centre: tuple[float, float]  # pixels
    scale: float  # pixels a cm at the belt's plane
    outline: Outline  # cm

    def pose(self, at: tuple[float, float, float], turned: Rotation, canvas: tuple[int, int]) -> Pose:
        """Return the pose of a thing at a place in the bag, in the fan beam.

        The tube is a point: what is nearer to it is larger, and each thing is seen along its own ray.
        """
        place = self.rotation.of(at)
        y = self.centre[1] + place[1] * self.scale
        middle, nearer = canvas[0] / 2, 1 + place[2] / FOCUS
        fan = turn(0, atan((y - middle) / self.scale / FOCUS))
        y = middle + (y - middle) * nearer
        return Pose(
            fan @ self.rotation @ turned, (self.centre[0] + place[0] * self.scale, y), self.scale * nearer
        )


def new_bag(rng: Rng, long_pixels: float, small: bool) -> Bag:
    """Return a bag around (0, 0) pixels."""
    kind = KINDS[rng.choice(5, p=[0.2, 0.25, 0.25, 0.1, 0.2] if small else [0.38, 0.28, 0.14, 0.14, 0.06])]
    w = rng.uniform(
        *{
            "trolley": (42, 58),
            "backpack": (34, 48),
            "handbag": (24, 40),
            "case": (34, 50),
            "pouch": (20, 36),
        }[kind]
    )
    h = w * rng.uniform(0.58, 0.85)
    d = rng.uniform(8, 20)
    spin = rng.normal(0, 0.12) if rng.random() < 0.6 else rng.uniform(-np.pi, np.pi)
    spin += np.pi / 2 if rng.random() < 0.25 else 0
    tilt = turn(0, rng.normal(0, 0.07)) @ turn(1, rng.normal(0, 0.07))
    outline = _outline(kind, w, h, rng)
    return Bag(kind, (w, h, d), tilt @ turn(2, spin), (0, 0), long_pixels / max(w, 34), outline)


def moved_to(bag: Bag, centre: tuple[float, float]) -> Bag:
    """Return the bag around another centre, in pixels."""
    return Bag(bag.kind, bag.size, bag.rotation, centre, bag.scale, bag.outline)


def half_sizes(bag: Bag) -> np.ndarray:
    """Return the half sizes x, y of a bag in pixels."""
    ring = bag.rotation.flat(bag.outline) * bag.scale
    return np.maximum(ring.max(0), -ring.min(0))


def bounds_of(bag: Bag, canvas: tuple[int, int]) -> tuple[int, int, int, int]:
    """Return a bag's x, y, width and height in the picture, in pixels."""
    ring = bag.rotation.flat(bag.outline) * bag.scale + bag.centre
    x0, y0 = np.maximum(ring.min(0).astype(int), 0)
    x1, y1 = np.minimum(ring.max(0).astype(int) + 1, (canvas[1], canvas[0]))
    return int(x0), int(y0), int(x1 - x0), int(y1 - y0)


def _outline(kind: str, w: float, h: float, rng: Rng) -> Outline:
    if kind == "trolley":
        return rounded(w, h, rng.uniform(2, 6))
    if kind == "case":
        return rounded(w, h, rng.uniform(0.5, 3))
    if kind == "backpack":
        return _tapered(blob(rng, w, h, 0.05), rng.uniform(-0.15, 0.15))
    if kind == "handbag":
        ring = rounded(w, h, rng.uniform(1, 6), 8) if rng.random() < 0.6 else blob(rng, w, h, 0.04)
        return _tapered(ring, rng.uniform(0, 0.25))
    return blob(rng, w, h, rng.uniform(0.06, 0.2))


def _tapered(ring: Outline, taper: float) -> Outline:
    """Return an outline narrower at its top, -y, by a share."""
    height = ring[:, 1] / np.abs(ring[:, 1]).max()
    return ring * np.stack([1 + taper * (height - 1) / 2, np.ones(len(ring))], 1)
