"""The bag itself: its kinds, its place on the belt, its skin, seams, metal and straps."""

from dataclasses import dataclass
from math import atan

import numpy as np

from .beam import ALUMINIUM, COPPER, FABRIC, LEATHER, ORGANIC, PVC, SALTED, STEEL, ZINC, Material
from .bodies import Body, Part, Pose
from .cloth import Sheet, blob, sheet
from .outlines import Outline, curve, ribbon, rounded
from .rotations import Rotation, random_rotation, turn
from .shapes import Rng, wandering
from .solids import Box, Cylinder, Prism, Shell
from .tubes import Tube

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
        fan = turn(0, atan((y - canvas[0] / 2) / self.scale / FOCUS))
        magnified = self.scale * (1 + place[2] / FOCUS)
        return Pose(fan @ self.rotation @ turned, (self.centre[0] + place[0] * self.scale, y), magnified)


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


def shell(bag: Bag, rng: Rng) -> Body:
    """Return everything of the bag but its contents."""
    body = _skin(bag, rng) + _seams(bag, rng) + _folds(bag, rng) + _fittings(bag, rng) + _straps(bag, rng)
    return (*body, *_trolley_metal(bag, rng)) if bag.kind == "trolley" else body


def _outline(kind: str, w: float, h: float, rng: Rng) -> Outline:
    if kind == "trolley":
        return rounded(w, h, rng.uniform(2, 5))
    if kind == "case":
        return rounded(w, h, rng.uniform(0.5, 2.5))
    if kind == "backpack":
        return blob(rng, w, h, 0.12)
    if kind == "handbag":
        taper = rng.uniform(0.8, 1)
        ring = rounded(w, h, rng.uniform(1, 5))
        return ring * np.stack([np.where(ring[:, 1] < 0, taper, 1), np.ones(len(ring))], 1)
    return blob(rng, w, h, 0.3)


def fabric(rng: Rng) -> Material:
    """Return a bag's cloth or board: plain, or coated, which looks green."""
    return (FABRIC, SALTED.times(0.3), PVC.times(0.16), ORGANIC.times(0.5))[
        rng.choice(4, p=[0.4, 0.25, 0.2, 0.15])
    ]


def _skin(bag: Bag, rng: Rng) -> Body:
    """Two faces, the rim, and pockets."""
    w, h, d = bag.size
    soft = bag.kind in ("backpack", "pouch", "handbag")
    strength = rng.uniform(0.6, 1.1) if soft else rng.uniform(0.1, 0.5)
    face = rng.uniform(0.15, 0.5) if bag.kind == "pouch" else rng.uniform(0.35, 1.1)
    stuff = fabric(rng)
    parts = [
        Part(_face(bag.outline * rng.uniform(0.97, 1.0, 2), face, strength, rng), stuff, (0, 0, z))
        for z in (-d / 2, d / 2)
    ]
    parts.append(Part(Prism(bag.outline, d * 0.22, (bag.outline * 0.975,)), stuff.times(0.8)))
    for _ in range(int(rng.integers(1, 5))):
        pocket = sheet(
            rng, w * rng.uniform(0.3, 0.8), h * rng.uniform(0.3, 0.8), rng.uniform(0.15, 0.5), strength
        )
        at = (rng.uniform(-0.2, 0.2) * w, rng.uniform(-0.2, 0.2) * h, d / 2)
        parts.append(Part(pocket, stuff, at))
        parts.append(Part(Tube(closed(pocket.outline, 0), rng.uniform(0.06, 0.16)), stuff.times(2), at))
    return tuple(parts)


def _face(outline: Outline, thickness: float, strength: float, rng: Rng) -> Sheet:
    start = (int(rng.integers(512)), int(rng.integers(512)))
    return Sheet(outline, thickness, int(rng.integers(3)), start, strength)


def closed(outline: Outline, z: float) -> np.ndarray:
    """Return an outline as a closed path in space at a height z."""
    ring = np.concatenate([outline, outline[:1]])
    return np.concatenate([ring, np.full((len(ring), 1), z)], 1)


def _seams(bag: Bag, rng: Rng) -> Body:
    """Zips, piping and frame wires that run round the bag."""
    d = bag.size[2]
    parts: list[Part] = []
    for _ in range(int(rng.integers(1, 5))):
        ring = bag.outline * rng.uniform(0.9, 1.0, 2)
        if bag.kind in ("backpack", "pouch"):
            angle = np.linspace(0, 2 * np.pi, len(ring), endpoint=False)[:, None]
            ring = ring * (1 + 0.02 * np.sin(angle * rng.integers(2, 7) + rng.uniform(0, 6)))
        material = (COPPER.times(0.2), SALTED, STEEL.times(0.25), PVC, FABRIC)[
            rng.choice(5, p=[0.15, 0.2, 0.15, 0.25, 0.25])
        ]
        parts.append(Part(Tube(closed(ring, rng.uniform(-d, d) / 2), rng.uniform(0.06, 0.2)), material))
    if bag.kind == "trolley" and rng.random() < 0.7:
        parts.append(Part(Tube(closed(bag.outline * 0.98, d / 2), rng.uniform(0.1, 0.2)), STEEL.times(0.8)))
    return tuple(parts)


def _folds(bag: Bag, rng: Rng) -> Body:
    """Loose folds and straps: faint lines over a soft bag."""
    w, h, _ = bag.size
    count = int(rng.integers(6, 26)) if bag.kind in ("backpack", "pouch") else int(rng.integers(2, 12))
    parts = []
    for _ in range(count):
        along = bag.outline[
            (rng.integers(len(bag.outline)) + np.arange(5) * len(bag.outline) // 14) % len(bag.outline)
        ]
        path = along * rng.uniform(0.45, 0.98) + rng.normal(0, 0.02, (5, 2)) * (w, h)
        if rng.random() < 0.4:
            points = rng.uniform(-0.46, 0.46, (4, 2)) * (w, h)
            path = points[np.argsort(points[:, int(rng.integers(2))])]
        line = np.concatenate([curve(path, 8), np.zeros((8 * (len(path) - 1) + 1, 1))], 1)
        parts.append(Part(Tube(line, rng.uniform(0.05, 0.16)), FABRIC.times(rng.uniform(1, 3))))
    return tuple(parts)


def _trolley_metal(bag: Bag, rng: Rng) -> Body:
    """Rails of the pull-out handle, wheels, feet."""
    w, h, d = bag.size
    gap, half = h * rng.uniform(0.16, 0.26), rng.uniform(0.7, 1.3)
    rail = Shell(Box((w * 0.47, half, 0.7)), Box((w * 0.47, half - 0.15, 0.5)))
    metal = ALUMINIUM.times(rng.uniform(0.7, 1.4)) if rng.random() < 0.8 else STEEL.times(0.15)
    parts = [Part(rail, metal, (0, side * gap, -d / 2 + 1)) for side in (1, -1)]
    parts.append(Part(Box((1.2, gap, 1.2)), ORGANIC, (w * 0.47, 0, -d / 2 + 1)))
    end = 1 if rng.random() < 0.5 else -1
    radius, swivel = rng.uniform(1.8, 2.8), rng.uniform(0, np.pi / 2)
    for side in (1, -1):
        at = (end * (w / 2 + 0.4), side * (h / 2 - 2.5), -d / 4)
        spin = turn(0, swivel) if rng.random() < 0.7 else turn(1, swivel)
        parts += [
            Part(
                Shell(Cylinder(radius, radius, 1.1), Cylinder(radius * 0.6, radius * 0.6, 1.1)),
                PVC.times(1.2),
                at,
                spin,
            ),
            Part(Cylinder(radius * 0.9, radius * 0.9, 0.5), ORGANIC, at, spin),
            Part(Cylinder(0.45, 0.45, 1.9), STEEL, at, spin),
            Part(Box((1.2, 1.8, 0.15)), STEEL.times(0.5), (at[0] - end * 1.2, at[1], at[2])),
        ]
    for _ in range(int(rng.integers(4, 14))):
        at = (rng.uniform(-0.48, 0.48) * w, float(rng.choice([-1, 1])) * gap + rng.normal(0, 1), -d / 2)
        parts.append(Part(Cylinder(0.3, 0.3, 0.5), STEEL, at))
    return tuple(parts)


def _fittings(bag: Bag, rng: Rng) -> Body:
    """Zip pulls, buckles, D-rings and rivets along the rim."""
    parts: list[Part] = []
    d = bag.size[2]
    for _ in range(int(rng.integers(2, 11))):
        x, y = bag.outline[rng.integers(len(bag.outline))] * rng.uniform(0.82, 1.02)
        at, spin = (float(x), float(y), rng.uniform(-d, d) / 2), random_rotation(rng)
        metal = (ZINC.times(0.6), STEEL.times(0.7), COPPER.times(0.5))[rng.integers(3)]
        kind = rng.integers(4)
        if kind == 0:
            size = rng.uniform(1.0, 2.2)
            parts.append(Part(Tube(closed(rounded(size, size * 1.4, 0.3), 0), 0.14), metal, at, spin))
            parts.append(Part(Tube(np.array([(-size / 2, 0, 0), (size / 2, 0, 0.0)]), 0.14), metal, at, spin))
        elif kind == 1:
            parts.append(Part(Box((0.5, 0.3, 0.2)), metal, at, spin))
            parts.append(
                Part(Prism(rounded(0.7, 2.6, 0.2), 0.1, (rounded(0.35, 1.6, 0.15),)), metal, at, spin)
            )
        elif kind == 2:
            parts.append(Part(Cylinder(0.4, 0.4, 0.2), metal, at, spin))
        else:
            parts.append(Part(Box((1.6, 1.1, 0.4)), PVC, at, spin))
    return tuple(parts)


def _straps(bag: Bag, rng: Rng) -> Body:
    """Return a carrying handle or loose straps outside the outline."""
    w, h, _ = bag.size
    parts: list[Part] = []
    if bag.kind in ("handbag", "trolley", "case") and rng.random() < 0.7:
        reach, half = h * rng.uniform(0.12, 0.4), w * rng.uniform(0.1, 0.28)
        top = curve(
            np.array(
                [
                    (-half, -h / 2, 0),
                    (-half * 0.9, -h / 2 - reach * 0.7, 0),
                    (0, -h / 2 - reach, 0),
                    (half * 0.9, -h / 2 - reach * 0.7, 0),
                    (half, -h / 2, 0.0),
                ]
            )
        )
        stuff = (LEATHER, PVC.times(0.6), FABRIC)[rng.integers(3)]
        parts.append(Part(Tube(top, rng.uniform(0.35, 0.8)), stuff))
    if bag.kind in ("backpack", "handbag", "pouch"):
        for _ in range(int(rng.integers(0, 4))):
            path = wandering(rng, int(rng.integers(4, 9)), w * 0.12, w)
            start = bag.outline[rng.integers(len(bag.outline))] * 0.95
            band = ribbon(path[:, :2] * 0.8 + start, np.full(len(path), rng.uniform(0.5, 1.6)))
            parts.append(Part(Prism(band, 0.1), FABRIC.times(1.5)))
    return tuple(parts)
