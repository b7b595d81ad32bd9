"""Knives: blades on handles, the edge along x. Sizes in cm."""

import numpy as np

from .beam import ALUMINIUM, ORGANIC, PVC, STEEL, TITANIUM, ZINC, Material
from .bodies import Body, Part
from .outlines import ribbon
from .shapes import Rng, arc, centred, points, space, spun, uniform
from .solids import Box, Cylinder, Prism
from .tubes import Tube


def _handle(rng: Rng, length: float, width: float, material: Material) -> list[Part]:
    """Return a handle from x = -length to 0 with a tang and rivets."""
    bulge = uniform(rng, 0.85, 1.2)
    x = np.linspace(-length, 0.4, 12)
    half = width / 2 * np.interp(np.linspace(0, 1, 12), [0, 0.15, 0.5, 0.85, 1], [0.7, 1.05, bulge, 0.9, 0.9])
    sag = -0.06 * length * np.sin(np.linspace(0, np.pi, 12)) * rng.uniform(-0.6, 1)
    outline = ribbon(np.stack([x, sag], 1), half)
    parts = [Part(Prism(outline, uniform(rng, 0.6, 1.0)), material)]
    tang = uniform(rng, 0.4, 0.95)
    parts.append(Part(Prism(ribbon(np.stack([x * tang, sag], 1), half * 0.75), 0.1), STEEL))
    parts += [
        Part(Cylinder(0.25, 0.25, 0.8), STEEL.times(0.7), (-length * share, 0, 0)) for share in (0.25, 0.55)
    ]
    return parts


def _blade(outline: np.ndarray, spine: np.ndarray, thick: float) -> list[Part]:
    """Return a blade ground to its edge: the whole outline thin, the spine's half thicker."""
    return [Part(Prism(outline, thick * 0.3), STEEL), Part(Prism(spine, thick * 0.22), STEEL)]


def kitchen_knife(rng: Rng) -> Body:
    """Return a kitchen knife."""
    length, width = uniform(rng, 13, 23), uniform(rng, 1.2, 4.2)
    x = np.linspace(0, 1, 14)
    edge = width * (1 - x ** uniform(rng, 2.2, 5))
    top = np.where(x > 0.6, width * 0.22 * ((x - 0.6) / 0.4) ** 2, 0) * rng.uniform(0, 1)
    outline = np.concatenate([np.stack([x * length, top], 1), np.stack([x * length, edge], 1)[::-1]])
    spine = np.concatenate([np.stack([x * length, top], 1), np.stack([x * length, edge * 0.45], 1)[::-1]])
    grip = _handle(rng, uniform(rng, 9, 13), uniform(rng, 2.0, 2.8), _haft(rng))
    blade = _blade(outline - (0, width * 0.35), spine - (0, width * 0.35), uniform(rng, 0.15, 0.3))
    return centred(blade + grip, length * 0.2)


def _haft(rng: Rng) -> Material:
    return (ORGANIC.times(1.2), PVC, PVC.times(1.4), STEEL.times(0.12))[rng.integers(4)]


def cleaver(rng: Rng) -> Body:
    """Return a cleaver."""
    length, width = uniform(rng, 14, 19), uniform(rng, 6.5, 9.5)
    nose = uniform(rng, 0, 1.2)
    outline = points(
        (0, -0.8),
        (length - nose, -0.8),
        (length, -0.2),
        (length, width - 1.2),
        (length - 0.6, width - 0.8),
        (0, width - 0.8),
    )
    spine = outline * (1, 0.5)
    grip = _handle(rng, uniform(rng, 9, 12), uniform(rng, 2.3, 3), _haft(rng))
    return centred(_blade(outline, spine, uniform(rng, 0.18, 0.35)) + grip, length * 0.25, width * 0.3)


def dagger(rng: Rng) -> Body:
    """Return a dagger."""
    length, width = uniform(rng, 11, 19), uniform(rng, 1.8, 3.2)
    x = np.linspace(0, 1, 12)
    half = width / 2 * np.interp(x, [0, 0.6, 0.85, 1], [1, 0.95, 0.6, 0.02])
    path = np.stack([x * length, 0 * x], 1)
    blade = _blade(ribbon(path, half), ribbon(path, half * 0.45), uniform(rng, 0.25, 0.45))
    guard = [Part(Box((0.35, width * uniform(rng, 0.8, 1.2), 0.5)), STEEL.times(0.8))]
    pommel = [Part(Cylinder(0.9, 0.9, 0.6), ZINC.times(0.6), (-10.2, 0, 0))]
    return centred(blade + guard + _handle(rng, 10, 2.2, _haft(rng)) + pommel, length * 0.15)


def folding_knife(rng: Rng) -> Body:
    """Return a folding knife."""
    length, width = uniform(rng, 7.5, 11), uniform(rng, 1.7, 2.8)
    x = np.linspace(0, 1, 10)
    top = -width * 0.3 + width * 0.35 * np.maximum(x - 0.55, 0) / 0.45
    edge = width * 0.6 * (1 - x**3.5)
    outline = np.concatenate([np.stack([x * length, top], 1), np.stack([x * length, edge], 1)[::-1]])
    spine = np.concatenate([np.stack([x * length, top], 1), np.stack([x * length, edge * 0.4], 1)[::-1]])
    fold = rng.choice([0.0, 0.0, 0.0, float(rng.uniform(0.3, 1.6))])
    blade = _blade(spun(outline, fold), spun(spine, fold), uniform(rng, 0.2, 0.32))
    grip = length * uniform(rng, 1.15, 1.35)
    scale = (ALUMINIUM, STEEL.times(0.35), PVC, TITANIUM.times(0.5))[rng.integers(4)]
    body = ribbon(
        np.stack([np.linspace(-grip, 0.6, 8), 0.25 * np.sin(np.linspace(0, 3, 8))], 1),
        np.array([0.8, 1.2, 1.25, 1.1, 1.15, 1.25, 1.2, 0.8]),
    )
    parts = [
        Part(Prism(body, 0.6), scale),
        Part(Prism(body * (1, 0.5), 0.15), STEEL),
        Part(Cylinder(0.35, 0.35, 0.75), STEEL, (-0.2, 0.1, 0)),
        Part(
            Prism(ribbon(points((-grip * 0.95, 0.2), (-grip * 0.4, 0.2)), np.full(2, 0.35)), 0.08),
            STEEL,
            (0, 0, 0.8),
        ),
    ]
    return centred(parts + blade, length * 0.05)


def box_cutter(rng: Rng) -> Body:
    """Return a box cutter."""
    length, out = uniform(rng, 13, 17), uniform(rng, 2, 7)
    blade = points((0, -0.8), (out, -0.8), (out + 1.2, 0.9), (0, 0.9))
    parts = [
        Part(Prism(blade, 0.04), STEEL),
        Part(Prism(points((-8, -0.7), (0, -0.7), (0, 0.7), (-8, 0.7)), 0.05), STEEL),
        Part(
            Prism(
                ribbon(points((-length, 0), (-length * 0.5, 0.1), (0.2, 0)), np.array([1.2, 1.5, 1.15])), 0.7
            ),
            PVC.times(0.8),
        ),
        Part(Prism(ribbon(points((-length * 0.9, 0), (0, 0)), np.full(2, 1.0)), 0.1), STEEL),
        Part(Cylinder(0.7, 0.7, 0.5), PVC, (-4, 0, 0.6)),
    ]
    return centred(parts, -length * 0.25)


def curved_knife(rng: Rng) -> Body:
    """Return a hooked or upswept blade."""
    length, bend, width = uniform(rng, 9, 20), uniform(rng, 0.2, 0.6), uniform(rng, 1.8, 3.4)
    x = np.linspace(0, 1, 14)
    path = np.stack([x * length, -bend * length * x * x * 0.6], 1)
    half = width / 2 * np.interp(x, [0, 0.5, 0.75, 1], [0.8, 1.1, 0.9, 0.02])
    blade = _blade(
        ribbon(path, half), ribbon(path - np.array((0, width * 0.15)), half * 0.45), uniform(rng, 0.2, 0.4)
    )
    grip = _handle(rng, uniform(rng, 9, 12), uniform(rng, 2.0, 2.8), _haft(rng))
    ring = [Part(Tube(space(arc(-12, 0, 1.3, 0, 2 * np.pi, 24)), 0.25), STEEL)] if rng.random() < 0.3 else []
    return centred(blade + grip + ring, length * 0.2)
