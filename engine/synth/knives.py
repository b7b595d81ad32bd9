"""Knives: blades on handles, the edge along x. Sizes in cm."""

import numpy as np

from .beam import ALUMINIUM, COPPER, ORGANIC, PVC, STEEL, TITANIUM, ZINC, Material
from .bodies import Body, Part
from .outlines import ribbon
from .shapes import Rng, arc, centred, hollow, pick, points, space, spun, uniform
from .solids import Box, Cylinder, Prism
from .tubes import Tube


def _handle(rng: Rng, length: float, width: float, material: Material) -> list[Part]:
    """Return a handle from x = -length to 0: full or with a hollow, a tang inside, rivets, a bolster."""
    bulge, end = uniform(rng, 0.8, 1.25), uniform(rng, 0.6, 1.3)
    x = np.linspace(-length, 0.4, 12)
    half = (
        width
        / 2
        * np.interp(np.linspace(0, 1, 12), [0, 0.15, 0.5, 0.85, 1], [end * 0.7, end, bulge, 0.9, 0.9])
    )
    sag = -0.06 * length * np.sin(np.linspace(0, np.pi, 12)) * rng.uniform(-1, 1.2)
    outline, thick = ribbon(np.stack([x, sag], 1), half), uniform(rng, 0.5, 1.0)
    if rng.random() < 0.25:
        parts = hollow(outline, uniform(rng, 0.7, 0.85), thick, material, thick * 0.5)
    else:
        parts = [Part(Prism(outline, thick), material)]
    tang = uniform(rng, 0.3, 1.0)
    parts.append(
        Part(Prism(ribbon(np.stack([x * tang, sag], 1), half * uniform(rng, 0.25, 0.8)), 0.1), STEEL)
    )
    rivet = uniform(rng, 0.15, 0.3)
    parts += [
        Part(Cylinder(rivet, rivet, thick), STEEL.times(0.7), (-length * share, 0, 0))
        for share in np.linspace(0.2, 0.75, int(rng.integers(0, 4)))
    ]
    if rng.random() < 0.35:
        parts.append(Part(Box((uniform(rng, 0.3, 0.8), width * 0.45, thick * 0.9)), STEEL.times(0.8)))
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
    return pick(
        rng, ORGANIC, ORGANIC.times(1.4), PVC, PVC.times(1.4), ALUMINIUM, STEEL.times(0.12), STEEL.times(0.3)
    )


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


def table_knife(rng: Rng) -> Body:
    """Return a knife of one piece: a round-nosed blade that runs into a slender handle."""
    length, width = uniform(rng, 18, 25), uniform(rng, 1.6, 2.3)
    x = np.linspace(0, 1, 16)
    half = width / 2 * np.interp(x, [0, 0.1, 0.42, 0.5, 0.6, 0.9, 1], [0.7, 0.9, 0.6, 0.35, 0.9, 1.0, 0.3])
    path = np.stack([x * length - length / 2, 0 * x], 1)
    grip = slice(0, 8)
    parts = [Part(Prism(ribbon(path, half), 0.05), STEEL)]
    parts.append(
        Part(
            Prism(ribbon(path[grip], half[grip]), uniform(rng, 0.12, 0.4)), STEEL.times(uniform(rng, 0.4, 1))
        )
    )
    return tuple(parts)


def hunting_knife(rng: Rng) -> Body:
    """Return a clip-pointed blade behind a guard, some with teeth on the back."""
    length, width = uniform(rng, 10, 18), uniform(rng, 2.2, 3.6)
    x = np.linspace(0, 1, 16)
    clip = uniform(rng, 0.5, 0.75)
    top = -width / 2 + width * 0.6 * np.maximum(x - clip, 0) / (1 - clip)
    edge = width / 2 * (1 - 0.8 * x ** uniform(rng, 3, 6))
    if rng.random() < 0.4:
        top[2:10] += np.where(np.arange(8) % 2, 0.3, 0.0)
    outline = np.concatenate([np.stack([x * length, top], 1), np.stack([x * length, edge], 1)[::-1]])
    spine = np.concatenate(
        [np.stack([x * length, top], 1), np.stack([x * length, (top + edge) / 2], 1)[::-1]]
    )
    guard = [Part(Box((0.3, width * uniform(rng, 0.6, 0.9), 0.6)), pick(rng, STEEL, ZINC, COPPER.times(0.6)))]
    grip = _handle(rng, uniform(rng, 9.5, 12.5), uniform(rng, 2.3, 3), _haft(rng))
    return centred(_blade(outline, spine, uniform(rng, 0.3, 0.5)) + guard + grip, length * 0.15)


def butterfly_knife(rng: Rng) -> Body:
    """Return a blade between two hinged handles with holes."""
    length, width, opening = uniform(rng, 8, 11), uniform(rng, 1.4, 2.0), uniform(rng, 0.0, 0.5)
    x = np.linspace(0, 1, 10)
    half = width / 2 * np.interp(x, [0, 0.6, 1], [0.9, 1, 0.05])
    path = np.stack([x * length, 0 * x], 1)
    parts = _blade(ribbon(path, half), ribbon(path, half * 0.5), uniform(rng, 0.2, 0.35))
    metal = pick(rng, STEEL.times(0.6), ALUMINIUM.times(1.5), ZINC.times(0.5))
    for side in (1, -1):
        arm = spun(
            ribbon(points((0.4, 0.5 * side), (-length * 1.15, 0.5 * side)), np.full(2, 0.55)), side * opening
        )
        holes = tuple(
            spun(arc(-length * t, 0.5 * side, 0.25, 0, 6.28, 8), side * opening) for t in (0.25, 0.5, 0.75)
        )
        parts.append(Part(Prism(arm, 0.5, holes), metal))
        parts.append(Part(Cylinder(0.25, 0.25, 0.6), STEEL, (0.0, 0.5 * side, 0.0)))
    return centred(parts, -length * 0.1)


def many_blades(rng: Rng) -> Body:
    """Return a pocket knife with several tools, one or two of them out."""
    length, width = uniform(rng, 8, 11), uniform(rng, 2.0, 2.8)
    body = ribbon(
        points((-length / 2, 0), (-length * 0.4, 0), (length * 0.4, 0), (length / 2, 0)),
        np.array([0.6, 1, 1, 0.6]) * width / 2,
    )
    parts = [Part(Prism(body, uniform(rng, 0.6, 1.2)), pick(rng, ORGANIC, PVC, ALUMINIUM))]
    for k in range(int(rng.integers(2, 6))):
        tool = ribbon(points((-length * 0.4, 0), (length * 0.35, 0)), np.array([0.3, 0.15]) * width)
        parts.append(Part(Prism(tool, 0.1), STEEL, (0, 0, 0.25 * k - 0.5)))
    for end in (1, -1)[: 1 + int(rng.random() < 0.4)]:
        x = np.linspace(0, 1, 8)
        blade = ribbon(
            np.stack([x * length * 0.8, 0 * x], 1), width * 0.3 * np.interp(x, [0, 0.7, 1], [1, 1, 0.05])
        )
        parts.append(
            Part(
                Prism(spun(blade, uniform(rng, -0.7, 0.7)) * (end, 1) + (end * length * 0.42, 0), 0.11), STEEL
            )
        )
    parts += [Part(Cylinder(0.3, 0.3, 0.8), COPPER.times(0.6), (x * length, 0, 0)) for x in (-0.42, 0.42)]
    return tuple(parts)
