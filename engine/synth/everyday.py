"""Everyday things that bags hold. Sizes in cm."""

import numpy as np

from .beam import (
    ALUMINIUM,
    CERAMIC,
    COPPER,
    FABRIC,
    GLASS,
    LEAD,
    LEATHER,
    ORGANIC,
    PCB,
    PVC,
    SALTED,
    STEEL,
    ZINC,
)
from .bodies import Body, Part
from .cloth import board, sheet
from .outlines import circle, curve, ribbon, rounded
from .rotations import turn
from .shapes import ALONG_X, Rng, pick, space, uniform, wandering
from .solids import Box, Cylinder, Ellipsoid, Prism, Shell
from .tubes import Tube


def bottle(rng: Rng) -> Body:
    """Return a bottle with liquid: plastic, glass or metal."""
    radius, half = uniform(rng, 2.6, 4.2), uniform(rng, 6, 11)
    wall, thick = ((ORGANIC, 0.08), (GLASS, 0.3), (ALUMINIUM, 0.12), (STEEL, 0.05))[
        rng.choice(4, p=[0.5, 0.15, 0.2, 0.15])
    ]
    fill = uniform(rng, 0.2, 1)
    shell = Shell(Cylinder(radius, radius, half), Cylinder(radius - thick, radius - thick, half - thick))
    neck = Shell(
        Cylinder(radius * 0.4, radius * 0.4, 1.8), Cylinder(radius * 0.4 - thick, radius * 0.4 - thick, 1.8)
    )
    parts = [
        Part(shell, wall),
        Part(neck, wall, (0, 0, half + 1.6)),
        Part(
            Cylinder(radius * 0.45, radius * 0.45, 0.9),
            pick(rng, ORGANIC, ORGANIC, ALUMINIUM),
            (0, 0, half + 3),
        ),
        Part(Cylinder(radius - thick, radius - thick, half * fill), ORGANIC, (0, 0, -half * (1 - fill))),
    ]
    if rng.random() < 0.5:
        parts.append(Part(Ellipsoid((radius, radius, 2.4)), ORGANIC, (0, 0, half)))
    return tuple(Part(p.solid, p.material, (p.offset[2], 0, 0), ALONG_X) for p in parts)


def flask(rng: Rng) -> Body:
    """Return a vacuum flask: two steel walls."""
    radius, half = uniform(rng, 3, 4), uniform(rng, 8, 12)
    parts = [
        Part(
            Shell(Cylinder(radius, radius, half), Cylinder(radius - 0.035, radius - 0.035, half - 0.08)),
            STEEL,
            (0, 0, 0),
            ALONG_X,
        ),
        Part(
            Shell(
                Cylinder(radius - 0.6, radius - 0.6, half - 0.7),
                Cylinder(radius - 0.63, radius - 0.63, half - 0.75),
            ),
            STEEL,
            (0, 0, 0),
            ALONG_X,
        ),
        Part(Cylinder(radius * 0.9, radius * 0.9, 1.6), PVC.times(0.7), (half + 1.2, 0, 0), ALONG_X),
    ]
    if rng.random() < 0.6:
        parts.append(
            Part(Cylinder(radius - 0.7, radius - 0.7, half * 0.6), ORGANIC, (-half * 0.3, 0, 0), ALONG_X)
        )
    return tuple(parts)


def can(rng: Rng) -> Body:
    """Return a can."""
    radius, half = uniform(rng, 2.5, 3.5), uniform(rng, 4, 7)
    wall, thick = (ALUMINIUM, 0.05) if rng.random() < 0.6 else (STEEL, 0.03)
    shell = Shell(Cylinder(radius, radius, half), Cylinder(radius - thick, radius - thick, half - thick * 2))
    return (Part(shell, wall), Part(Cylinder(radius - thick, radius - thick, half * 0.9), ORGANIC))


def spray(rng: Rng) -> Body:
    """Return a spray."""
    radius, half = uniform(rng, 1.6, 2.8), uniform(rng, 5, 8)
    shell = Shell(Cylinder(radius, radius, half), Cylinder(radius - 0.05, radius - 0.05, half - 0.1))
    return (
        Part(shell, ALUMINIUM if rng.random() < 0.5 else STEEL.times(0.6), (0, 0, 0), ALONG_X),
        Part(Ellipsoid((1.2, radius, radius)), ALUMINIUM.times(0.4), (half, 0, 0)),
        Part(Cylinder(radius * 0.6, radius * 0.6, 1.3), ORGANIC, (half + 1.8, 0, 0), ALONG_X),
        Part(Cylinder(radius - 0.06, radius - 0.06, half * 0.6), ORGANIC, (-half * 0.35, 0, 0), ALONG_X),
    )


def shoe(rng: Rng) -> Body:
    """Return a shoe."""
    length = uniform(rng, 23, 30)
    sole = np.array(
        [
            (-0.5, -0.1),
            (-0.46, -0.14),
            (-0.1, -0.11),
            (0.25, -0.19),
            (0.45, -0.12),
            (0.5, 0),
            (0.44, 0.12),
            (0.2, 0.15),
            (-0.1, 0.1),
            (-0.44, 0.13),
        ]
    )
    outline = curve(np.concatenate([sole, sole[:1]]) * length, 3)
    parts = [
        Part(Prism(outline, uniform(rng, 0.5, 1.1)), pick(rng, SALTED.times(0.6), PVC.times(0.4), ORGANIC)),
        Part(sheet(rng, length * 0.55, 8, 0.7, 0.5), LEATHER, (length * 0.2, 0, 2)),
        Part(Prism(outline * 0.96 + (-0.2, 0), 3.0, (outline * 0.88 + (-0.2, 0),)), LEATHER, (0, 0, 3)),
    ]
    if rng.random() < 0.4:
        parts.append(
            Part(
                Prism(ribbon(np.array([(-0.25, 0.0), (0.1, 0.0)]) * length, np.array([0.8, 0.6])), 0.06),
                STEEL,
            )
        )
    for k in range(int(rng.integers(0, 5))):
        for side in (1, -1):
            ring = space(circle(length * 0.02 + k * 1.3, side * 1.6, 0.4, 12), 4)
            parts.append(Part(Tube(ring, 0.07), ALUMINIUM))
    return tuple(parts)


def laptop(rng: Rng) -> Body:
    """Return a laptop."""
    w, h = uniform(rng, 28, 38), uniform(rng, 20, 26)
    parts = [
        Part(Box((w / 2, h / 2, 0.35)), ALUMINIUM.times(0.35)),
        Part(Box((w / 2, h / 2, 0.15)), GLASS.times(0.6), (0, 0, 1.2)),
        Part(Box((w * 0.42, h * 0.16, 0.3)), PVC.times(1.2), (0, h * 0.3, 0.3)),
    ]
    parts += circuit(rng, w * 0.55, h * 0.5, 30, (uniform(rng, -4, 4), -h * 0.15, 0.3))
    parts += [
        Part(Box((w * 0.06, h * 0.22, 0.4)), PVC.times(1.5), (w * (k - 2.5) * 0.14, h * 0.32, 0.4))
        for k in range(6)
    ]
    parts += [
        Part(Cylinder(2.2, 2.2, 0.4), ALUMINIUM.times(0.6), (w * 0.33, -h * 0.25, 0)),
        Part(Cylinder(0.8, 0.8, 0.5), COPPER.times(0.3), (w * 0.33, -h * 0.25, 0)),
    ]
    return tuple(parts)


def circuit(rng: Rng, w: float, h: float, chips: int, at: tuple[float, float, float]) -> list[Part]:
    """Return a circuit board with chips, capacitors and connectors."""
    parts = [
        Part(Box((w / 2, h / 2, 0.09)), PCB.times(1.3), at),
        Part(board(rng, w, h, uniform(rng, 0.05, 0.14)), COPPER.times(0.6), at),
    ]
    for _ in range(min(chips // 3, 4)):
        x, y = at[0] + uniform(rng, -0.46, 0.46) * w, at[1] + uniform(rng, -0.46, 0.46) * h
        kind = rng.integers(5)
        if kind < 2:
            parts.append(
                Part(
                    Box((uniform(rng, 0.2, 0.8), uniform(rng, 0.2, 0.7), 0.12)),
                    COPPER.times(uniform(rng, 0.1, 0.5)),
                    (x, y, at[2] + 0.2),
                )
            )
        elif kind == 2:
            r = uniform(rng, 0.15, 0.6)
            parts.append(
                Part(Cylinder(r, r, uniform(rng, 0.3, 0.9)), ALUMINIUM.times(1.5), (x, y, at[2] + 0.5))
            )
        elif kind == 3:
            parts.append(
                Part(
                    Box((uniform(rng, 0.5, 1.6), 0.12, 0.3)),
                    COPPER.times(0.45),
                    (x, y, at[2] + 0.3),
                    turn(2, float(rng.choice([0, np.pi / 2]))),
                )
            )
        else:
            parts.append(Part(Cylinder(0.12, 0.12, 0.5), STEEL, (x, y, at[2])))
    return parts


def electronics(rng: Rng) -> Body:
    """Return a board in a plastic or metal case."""
    w, h, d = uniform(rng, 6, 20), uniform(rng, 5, 13), uniform(rng, 1, 5)
    case = Shell(Box((w / 2, h / 2, d / 2)), Box((w / 2 - 0.2, h / 2 - 0.2, d / 2 - 0.2)))
    return (
        Part(case, pick(rng, ORGANIC, PVC, ALUMINIUM.times(0.6))),
        *circuit(rng, w * 0.9, h * 0.9, int(w * h / 6), (0, 0, 0)),
    )


def phone(rng: Rng) -> Body:
    """Return a phone."""
    w, h = uniform(rng, 6, 8), uniform(rng, 12, 16)
    return (
        Part(Prism(rounded(w, h, 0.8), 0.4), ALUMINIUM.times(0.55)),
        Part(Box((w * 0.4, h * 0.3, 0.22)), PVC.times(2), (0, h * 0.1, 0)),
        *circuit(rng, w * 0.85, h * 0.3, 9, (0, -h * 0.3, 0)),
    )


def charger(rng: Rng) -> Body:
    """Return a charger."""
    w = uniform(rng, 3, 7)
    coil = Part(Box((w * 0.2, w * 0.2, 0.9)), COPPER.times(0.35), (-w * 0.1, 0, 0))
    lead = wandering(rng, int(rng.integers(8, 20)), 4, uniform(rng, 5, 12))
    return (
        Part(Box((w / 2, w * 0.3, 1.3)), PVC.times(0.5)),
        coil,
        *circuit(rng, w * 0.8, w * 0.5, 8, (0, 0, 0.3)),
        Part(Tube(lead, 0.11), COPPER.times(0.45)),
        Part(Tube(lead, 0.25), PVC.times(0.7)),
    )


def cable(rng: Rng) -> Body:
    """Return a cable."""
    lead = wandering(rng, int(rng.integers(10, 34)), 3.2, uniform(rng, 4, 12))
    wire = uniform(rng, 0.06, 0.16)
    plug = tuple(float(v) for v in lead[-1])
    return (
        Part(Tube(lead, wire), COPPER.times(0.5)),
        Part(Tube(lead, wire * 2.4), PVC.times(0.6)),
        Part(
            Box((0.9, 0.5, 0.3)), STEEL.times(0.4), (plug[0], plug[1], plug[2]), turn(2, uniform(rng, 0, 6))
        ),
    )


def coil(rng: Rng) -> Body:
    """Return a cable wound up."""
    turns, radius = int(rng.integers(4, 12)), uniform(rng, 4, 7)
    angle = np.linspace(0, turns * 2 * np.pi, turns * 20)
    r = radius + 0.5 * np.sin(angle * 0.13 + 1) + 0.05 * angle / np.pi
    path = np.stack([r * np.cos(angle), 0.6 * r * np.sin(angle), 0.8 * np.sin(angle * 0.31)], 1)
    return (Part(Tube(path, 0.12), COPPER.times(0.6)), Part(Tube(path, 0.32), PVC.times(0.7)))


def computer(rng: Rng) -> Body:
    """Return an opened computer or instrument: boards, drives, ribbon cables, in a sheet-metal case."""
    w, h = uniform(rng, 14, 32), uniform(rng, 12, 24)
    parts = [
        Part(
            Shell(Box((w / 2, h / 2, 2.5)), Box((w / 2 - 0.04, h / 2 - 0.04, 2.48))),
            pick(rng, STEEL, ALUMINIUM.times(2.5), PVC),
        )
    ]
    parts += circuit(rng, w * 0.95, h * 0.95, 16, (0, 0, -1.5))
    for _ in range(int(rng.integers(2, 7))):
        bw, bh = uniform(rng, 3, w * 0.6), uniform(rng, 3, h * 0.6)
        at = (uniform(rng, -0.5, 0.5) * (w - bw), uniform(rng, -0.5, 0.5) * (h - bh), uniform(rng, -1, 2))
        parts += circuit(rng, bw, bh, 8, at)
        if rng.random() < 0.4:
            parts.append(
                Part(
                    Box((bw * 0.4, bh * 0.4, uniform(rng, 0.3, 1.2))),
                    pick(rng, ALUMINIUM, PVC, STEEL.times(0.1)),
                    at,
                )
            )
    return tuple(parts) + wires(rng)


def wires(rng: Rng) -> Body:
    """Return a bundle of straight rods or wires: knitting needles, welding rods, brushes, tent pegs."""
    length, spread, count = uniform(rng, 9, 24), uniform(rng, 0.3, 1.6), int(rng.integers(4, 16))
    material, radius = pick(rng, STEEL, ALUMINIUM, COPPER.times(0.8), ORGANIC), uniform(rng, 0.05, 0.22)
    ends = rng.normal(0, spread, (count, 2, 2))
    return tuple(
        Part(
            Tube(
                np.array([(-length / 2 * uniform(rng, 0.7, 1), *a), (length / 2 * uniform(rng, 0.7, 1), *b)]),
                radius,
            ),
            material,
        )
        for a, b in ends
    )


def umbrella(rng: Rng) -> Body:
    """Return a folded umbrella: a shaft, ribs, a grip."""
    length = uniform(rng, 18, 32)
    parts = [
        Part(Cylinder(0.4, 0.4, length / 2), STEEL.times(0.35), (0, 0, 0), ALONG_X),
        Part(Cylinder(2.0, 2.0, length / 2), FABRIC.times(0.6), (0, 0, 0), ALONG_X),
        Part(Cylinder(1.5, 1.5, 3), pick(rng, ORGANIC, PVC), (-length / 2 - 2, 0, 0), ALONG_X),
    ]
    for _ in range(8):
        y, z = uniform(rng, -1.4, 1.4), uniform(rng, -1.4, 1.4)
        rib = np.array([(-length * 0.42, y * 0.6, z), (0, y, z), (length * 0.46, y * 0.4, z * 0.4)])
        parts.append(Part(Tube(rib, 0.13), STEEL))
    return tuple(parts)


def book(rng: Rng) -> Body:
    """Return a book."""
    w, h, d = uniform(rng, 9, 19), uniform(rng, 13, 26), uniform(rng, 0.4, 2.6)
    return (Part(Box((w / 2, h / 2, d / 2)), ORGANIC.times(uniform(rng, 0.6, 0.9))),)


def box(rng: Rng) -> Body:
    """Return a box."""
    w, h, d = uniform(rng, 4, 15), uniform(rng, 4, 11), uniform(rng, 1.5, 5)
    return (
        Part(Shell(Box((w / 2, h / 2, d / 2)), Box((w / 2 - 0.15, h / 2 - 0.15, d / 2 - 0.15))), ORGANIC),
        Part(
            Box((w * 0.45, h * 0.45, d * uniform(rng, 0.1, 0.45))),
            pick(rng, ORGANIC, FABRIC, SALTED, SALTED.times(0.6)),
        ),
    )


def clothes(rng: Rng) -> Body:
    """Return clothes."""
    layers = int(rng.integers(1, 5))
    w, h = uniform(rng, 14, 34), uniform(rng, 10, 26)
    parts = [
        Part(
            sheet(rng, w * uniform(rng, 0.7, 1.1), h * uniform(rng, 0.7, 1.1), uniform(rng, 0.4, 1.6)),
            FABRIC,
            (uniform(rng, -2, 2), uniform(rng, -2, 2), uniform(rng, -2, 2)),
        )
        for _ in range(layers)
    ]
    if rng.random() < 0.4:
        parts += [
            Part(
                Cylinder(0.55, 0.55, 0.1),
                pick(rng, ORGANIC, ZINC.times(0.5)),
                (uniform(rng, -w, w) * 0.3, uniform(rng, -h, h) * 0.3, 0),
            )
            for _ in range(5)
        ]
    return tuple(parts)


def food(rng: Rng) -> Body:
    """Fruit, soap, snacks: round organic lumps."""
    n, r = int(rng.integers(1, 7)), uniform(rng, 1.6, 4.2)
    flat = uniform(rng, 0.5, 1)
    return tuple(
        Part(
            Ellipsoid((r, r * uniform(rng, 0.7, 1), r * flat)),
            ORGANIC.times(uniform(rng, 0.6, 1.1)),
            (uniform(rng, -1, 1) * r * n**0.5 * 1.3, uniform(rng, -1, 1) * r * n**0.5, uniform(rng, -1, 1)),
        )
        for _ in range(n)
    )


def jars(rng: Rng) -> Body:
    """Return tins or jars in a row."""
    n, r, half = int(rng.integers(2, 5)), uniform(rng, 1.8, 3.2), uniform(rng, 1, 3)
    wall = pick(rng, GLASS, ALUMINIUM, ORGANIC)
    fill = pick(rng, SALTED, ORGANIC, SALTED)
    parts: list[Part] = []
    for k in range(n):
        at = ((k - n / 2) * 2.1 * r, 0.0, 0.0)
        parts.append(Part(Shell(Cylinder(r, r, half), Cylinder(r - 0.25, r - 0.25, half - 0.1)), wall, at))
        parts.append(Part(Cylinder(r - 0.3, r - 0.3, half * 0.8), fill, at))
    return tuple(parts)


def toiletries(rng: Rng) -> Body:
    """Return a tube of paste: a wedge of salted organics with a cap."""
    length = uniform(rng, 9, 16)
    outline = ribbon(np.array([(0.0, 0.0), (length * 0.9, 0), (length, 0)]), np.array([2.3, 1.7, 0.9]))
    return (
        Part(Prism(outline, 1.0), SALTED),
        Part(Cylinder(1.1, 1.1, 0.9), ORGANIC, (length + 0.9, 0, 0), ALONG_X),
    )


def keys(rng: Rng) -> Body:
    """Return a ring with keys."""
    parts = [Part(Tube(space(circle(0, 0, 1.4, 20)), 0.09), STEEL)]
    for _ in range(int(rng.integers(2, 6))):
        length, bow = uniform(rng, 2.2, 3.6), uniform(rng, 0.8, 1.2)
        material = pick(rng, COPPER.times(0.85), STEEL, ZINC.times(0.7))
        spin = turn(2, uniform(rng, 0, 6.28)) @ turn(0, uniform(rng, -0.5, 0.5))
        blade = np.array(
            [(2.4, -0.35), (2.4 + length, -0.35), (2.4 + length, 0.1), (2.4 + length * 0.7, 0.3), (2.4, 0.35)]
        )
        parts.append(
            Part(Prism(circle(1.6, 0, bow, 16), 0.11, (circle(1.0, 0, 0.25, 8),)), material, (0, 0, 0), spin)
        )
        parts.append(Part(Prism(blade, 0.11), material, (0, 0, 0), spin))
    return tuple(parts)


def coins(rng: Rng) -> Body:
    """Return coins."""
    return tuple(
        Part(
            Cylinder(r := uniform(rng, 0.8, 1.3), r, 0.09),
            pick(rng, COPPER, ZINC, STEEL),
            (uniform(rng, -3, 3), uniform(rng, -3, 3), uniform(rng, -1, 1)),
            turn(0, uniform(rng, -1, 1)) @ turn(1, uniform(rng, -1, 1)),
        )
        for _ in range(int(rng.integers(2, 11)))
    )


def spring(rng: Rng) -> Body:
    """Return a spring."""
    radius, turns, pitch = uniform(rng, 0.4, 1.6), int(rng.integers(8, 22)), uniform(rng, 0.25, 0.6)
    angle = np.linspace(0, turns * 2 * np.pi, turns * 14)
    path = np.stack([pitch * (angle / 6.28 - turns / 2), radius * np.cos(angle), radius * np.sin(angle)], 1)
    return (Part(Tube(path, uniform(rng, 0.06, 0.14)), STEEL),)


def belt(rng: Rng) -> Body:
    """Return a belt."""
    turns, radius = uniform(rng, 1.5, 3.5), uniform(rng, 3, 5)
    angle = np.linspace(0, turns * 2 * np.pi, 50)
    r = radius + 0.35 * angle / 6.28
    points = np.stack([r * np.cos(angle), r * np.sin(angle)], 1)
    band = Prism(ribbon(points, np.full(50, 0.18)), 1.6)
    end = (float(points[-1, 0]), float(points[-1, 1]), 0.0)
    frame = Prism(rounded(4.2, 3.6, 0.5), 0.2, (rounded(3.2, 2.7, 0.3),))
    return (Part(band, LEATHER), Part(frame, ZINC, end, turn(0, 1.3)))


def toy(rng: Rng) -> Body:
    """Return a toy car or figure: plastic body, wheels, a little motor."""
    length = uniform(rng, 7, 14)
    parts = [
        Part(Ellipsoid((length / 2, 2.2, 1.6)), ORGANIC.times(0.5)),
        Part(Box((length * 0.3, 1.8, 1.2)), ORGANIC.times(0.5), (0, 0, 1.2)),
        Part(Cylinder(0.9, 0.9, 1.3), STEEL.times(0.35), (length * 0.1, 0, 0), ALONG_X),
    ]
    for x in (-0.3, 0.3):
        parts.append(Part(Cylinder(1.3, 1.3, 0.4), PVC, (x * length, 2.2, -1), turn(0, np.pi / 2)))
        parts.append(Part(Cylinder(1.3, 1.3, 0.4), PVC, (x * length, -2.2, -1), turn(0, np.pi / 2)))
        parts.append(Part(Cylinder(0.12, 0.12, 2.6), STEEL, (x * length, 0, -1), turn(0, np.pi / 2)))
    return tuple(parts)


def batteries(rng: Rng) -> Body:
    """Return batteries."""
    n = int(rng.integers(2, 7))
    return tuple(
        part
        for k in range(n)
        for part in (
            Part(Cylinder(0.7, 0.7, 2.5), ZINC.times(0.28), (0, (k - n / 2) * 1.5, 0), ALONG_X),
            Part(Cylinder(0.3, 0.3, 2.3), STEEL.times(0.5), (0.1, (k - n / 2) * 1.5, 0), ALONG_X),
        )
    )


def powerbank(rng: Rng) -> Body:
    """Return a powerbank."""
    w, h = uniform(rng, 6, 8), uniform(rng, 9, 15)
    cells = [Part(Box((w * 0.2, h * 0.38, 0.5)), PVC.times(2.2), (x * w, h * 0.06, 0)) for x in (-0.24, 0.24)]
    return (
        Part(Prism(rounded(w, h, 0.8), 0.8), ORGANIC),
        *cells,
        *circuit(rng, w * 0.8, h * 0.12, 5, (0, -h * 0.4, 0)),
    )


def glasses(rng: Rng) -> Body:
    """Return glasses."""
    parts: list[Part] = []
    for side in (1, -1):
        lens = circle(side * 3.3, 0, 2.5, 20, 0.75)
        parts.append(Part(Prism(lens, 0.12), pick(rng, GLASS, ORGANIC)))
        parts.append(Part(Tube(space(np.concatenate([lens, lens[:1]])), 0.12), pick(rng, STEEL, ZINC)))
        arm = np.array([(side * 5.8, -0.5, 0.0), (side * 2.0, -1.2, 1.0), (side * -4.5, -0.8, 1.2)])
        parts.append(Part(Tube(curve(arm), 0.1), STEEL))
    return tuple(parts)


def cup(rng: Rng) -> Body:
    """Return a cup."""
    r, half = uniform(rng, 3.4, 4.5), uniform(rng, 4, 6)
    wall, material = (0.35, CERAMIC) if rng.random() < 0.5 else (0.08, STEEL)
    handle = np.stack(
        [r + 2.2 * np.sin(np.linspace(0, np.pi, 12)), 0 * np.ones(12), np.linspace(-2.4, 2.4, 12)], 1
    )
    return (
        Part(Shell(Cylinder(r, r, half), Cylinder(r - wall, r - wall, half)), material),
        Part(Cylinder(r, r, wall / 2), material, (0, 0, -half)),
        Part(Tube(handle, max(wall, 0.25)), material),
    )


def tin(rng: Rng) -> Body:
    """Return a flat sheet-metal box."""
    w, h, d = uniform(rng, 6, 15), uniform(rng, 5, 10), uniform(rng, 1.2, 4)
    shell = Shell(Box((w / 2, h / 2, d / 2)), Box((w / 2 - 0.03, h / 2 - 0.03, d / 2 - 0.03)))
    return (Part(shell, STEEL), Part(Box((w * 0.4, h * 0.4, d * 0.3)), pick(rng, ORGANIC, SALTED)))


def weights(rng: Rng) -> Body:
    """Return dense metal: sinkers, a padlock's body, machine parts."""
    material = pick(rng, LEAD.times(0.5), ZINC, STEEL, COPPER)
    n = int(rng.integers(1, 4))
    solids = (
        Cylinder(uniform(rng, 0.8, 2.2), 1.4, uniform(rng, 0.4, 2)),
        Box((uniform(rng, 0.8, 3), uniform(rng, 0.8, 2), uniform(rng, 0.3, 0.9))),
        Ellipsoid((1.2, 1.2, uniform(rng, 1, 2))),
    )
    return tuple(
        Part(
            solids[rng.integers(3)],
            material,
            (uniform(rng, -3, 3), uniform(rng, -3, 3), 0),
            turn(2, uniform(rng, 0, 6)),
        )
        for _ in range(n)
    )


def padlock(rng: Rng) -> Body:
    """Return a padlock."""
    w = uniform(rng, 2.5, 5)
    shackle = np.array(
        [
            (-w * 0.35, 0, 0),
            (-w * 0.35, w * 0.6, 0),
            (0, w * 0.95, 0),
            (w * 0.35, w * 0.6, 0),
            (w * 0.35, 0, 0),
        ]
    )
    return (
        Part(Box((w / 2, w * 0.42, 0.8)), COPPER.times(0.7), (0, -w * 0.4, 0)),
        Part(Tube(curve(shackle), w * 0.09), STEEL),
    )


def chain(rng: Rng) -> Body:
    """Return a chain."""
    path = wandering(rng, int(rng.integers(6, 16)), 2.0, 7)
    links = path[:: max(1, len(path) // 40)]
    return tuple(
        Part(
            Tube(space(circle(0, 0, 0.55, 12, 0.6)), 0.1),
            STEEL,
            (float(p[0]), float(p[1]), float(p[2])),
            turn(2, uniform(rng, 0, 6)) @ turn(0, uniform(rng, 0, 3)),
        )
        for p in links[:24]
    )


def towel(rng: Rng) -> Body:
    """Return a rolled towel or sweater."""
    radius, half = uniform(rng, 3, 6), uniform(rng, 8, 15)
    stuff = FABRIC.times(uniform(rng, 0.5, 1.0))
    wound = [
        Part(
            Shell(Cylinder(r, r * 0.8, half), Cylinder(r - 0.7, (r - 0.7) * 0.8, half)),
            stuff,
            (0, 0, 0),
            ALONG_X,
        )
        for r in np.arange(radius, 1.2, -1.1)
    ]
    return (*wound, Part(sheet(rng, 2.1 * half, 2 * radius, 0.8), stuff))


def garments(rng: Rng) -> Body:
    """Return folded garments: a stack of sheets with one straight edge each, a zip in the top one."""
    w, h = uniform(rng, 16, 32), uniform(rng, 12, 24)
    parts = [
        Part(
            sheet(rng, w * uniform(rng, 0.8, 1), h * uniform(rng, 0.8, 1), uniform(rng, 0.5, 1.4)),
            FABRIC,
            (0, uniform(rng, -2, 2), z),
        )
        for z in range(int(rng.integers(1, 4)))
    ]
    zipper = np.array([(-w * 0.4, 0.0, 2), (0, uniform(rng, -2, 2), 2), (w * 0.4, 0, 2)])
    return (*parts, Part(Tube(zipper, 0.14), pick(rng, COPPER.times(0.3), PVC)))


def folder(rng: Rng) -> Body:
    """Return papers in a ring binder, the sheets fanned out."""
    w, h = uniform(rng, 14, 21), uniform(rng, 18, 27)
    papers = [
        Part(
            Box((w / 2, h / 2, uniform(rng, 0.1, 0.5))),
            ORGANIC.times(0.9),
            (0, 0, k * 0.6),
            turn(2, rng.normal(0, 0.08)),
        )
        for k in range(int(rng.integers(2, 5)))
    ]
    rings = [
        Part(Tube(space(circle(0, 0, 1.3, 16)), 0.14), STEEL, (-w * 0.48, y * h, 0.6), turn(0, np.pi / 2))
        for y in (-0.2, 0.2)
    ]
    return (*papers, *rings)


def radio(rng: Rng) -> Body:
    """Return a radio or a speaker: a magnet, a cone, a board, an aerial."""
    w, h = uniform(rng, 8, 18), uniform(rng, 6, 11)
    magnet = uniform(rng, 0.9, 2.0)
    return (
        Part(Shell(Box((w / 2, h / 2, 2)), Box((w / 2 - 0.25, h / 2 - 0.25, 1.75))), ORGANIC.times(1.1)),
        Part(Cylinder(magnet, magnet, 0.6), STEEL.times(0.6), (-w * 0.22, 0, 0.6)),
        Part(
            Shell(Cylinder(h * 0.36, h * 0.36, 0.8), Cylinder(h * 0.34, h * 0.34, 0.8)),
            STEEL.times(0.4),
            (-w * 0.22, 0, 1),
        ),
        *circuit(rng, w * 0.45, h * 0.8, 14, (w * 0.22, 0, 0)),
        Part(Cylinder(0.2, 0.2, w * 0.4), STEEL.times(0.7), (0, -h * 0.46, 0), ALONG_X),
    )


def snacks(rng: Rng) -> Body:
    """Return packets: flat pillows of granular food, some in foil."""
    parts: list[Part] = []
    for _ in range(int(rng.integers(1, 5))):
        w, h = uniform(rng, 3, 7), uniform(rng, 2.5, 5)
        at = (uniform(rng, -6, 6), uniform(rng, -5, 5), uniform(rng, -1, 1))
        stuff = pick(rng, ORGANIC.times(0.5), SALTED.times(0.7), ORGANIC)
        parts.append(Part(Ellipsoid((w, h, uniform(rng, 0.7, 2))), stuff, at, turn(2, uniform(rng, 0, 6))))
    return tuple(parts)


def carton(rng: Rng) -> Body:
    """Return a drink carton, a box lined with foil, filled."""
    w, h, d = uniform(rng, 4, 9), uniform(rng, 7, 17), uniform(rng, 3, 7)
    return (
        Part(
            Shell(Box((w / 2, h / 2, d / 2)), Box((w / 2 - 0.05, h / 2 - 0.05, d / 2 - 0.05))),
            ALUMINIUM.times(0.4),
        ),
        Part(Box((w / 2 - 0.05, h * 0.4, d / 2 - 0.05)), ORGANIC, (0, h * 0.07, 0)),
        Part(Cylinder(1.1, 1.1, 0.6), ORGANIC, (0, -h / 2 - 0.3, 0), turn(0, np.pi / 2)),
    )


def sandal(rng: Rng) -> Body:
    """Return a sandal: a wedge of foam, straps with a buckle."""
    length = uniform(rng, 20, 28)
    path = np.array([(-0.5, 0.0), (-0.35, 0.0), (0.0, 0.01), (0.3, 0.02), (0.5, 0.0)]) * length
    sole = ribbon(
        curve(path, 4), np.interp(np.linspace(0, 1, 17), [0, 0.1, 0.5, 0.8, 1], [1.8, 3.2, 2.8, 4.4, 2.2])
    )
    straps = [
        Part(
            Tube(np.array([(x * length, -3.6, 0.5), (x * length + 1, 0, 4), (x * length, 3.6, 0.5)]), 0.5),
            LEATHER,
        )
        for x in (-0.3, 0.15, 0.3)
    ]
    frame = Prism(rounded(1.8, 1.6, 0.2), 0.12, (rounded(1.1, 0.9, 0.1),))
    return (
        Part(Prism(sole, uniform(rng, 0.8, 1.8)), pick(rng, ORGANIC.times(0.6), SALTED.times(0.5))),
        *straps,
        Part(frame, ZINC, (-0.3 * length, 3.2, 1)),
    )


def console(rng: Rng) -> Body:
    """Return a router, a console, a radio set: stacked boards under a finned heat sink."""
    w, h = uniform(rng, 14, 30), uniform(rng, 10, 20)
    parts = [
        Part(
            Shell(Box((w / 2, h / 2, 2)), Box((w / 2 - 0.2, h / 2 - 0.2, 1.8))),
            pick(rng, PVC.times(0.8), ALUMINIUM.times(0.8), STEEL.times(0.25)),
        )
    ]
    for z in range(int(rng.integers(1, 4))):
        parts += circuit(rng, w * uniform(rng, 0.5, 0.95), h * uniform(rng, 0.5, 0.95), 14, (0, 0, z - 1.0))
    fins = int(rng.integers(5, 12))
    parts += [
        Part(Box((w * 0.12, 0.06, 0.8)), ALUMINIUM.times(1.5), (w * 0.2, (k - fins / 2) * 0.45, 0.8))
        for k in range(fins)
    ]
    parts += [
        Part(Cylinder(0.35, 0.35, h * 0.4), ORGANIC, (x * w, -h * 0.8, 0), turn(0, np.pi / 2))
        for x in (-0.4, 0.4)
    ]
    return tuple(parts)


def tent_pegs(rng: Rng) -> Body:
    """Return pegs and skewers in a loose heap, each with a hook or an eye."""
    parts: list[Part] = []
    for _ in range(int(rng.integers(3, 9))):
        length, spin = uniform(rng, 8, 18), turn(2, rng.normal(0, 0.5))
        at = (uniform(rng, -2, 2), uniform(rng, -2, 2), 0.0)
        stem = np.array(
            [(-length / 2, 0.0, 0), (length / 2 - 1, 0, 0), (length / 2, 0.5, 0), (length / 2 - 0.4, 1.2, 0)]
        )
        parts.append(Part(Tube(curve(stem), uniform(rng, 0.1, 0.25)), pick(rng, STEEL, ALUMINIUM), at, spin))
    return tuple(parts)
