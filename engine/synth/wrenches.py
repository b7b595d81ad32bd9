"""Wrenches, the shank along x. Sizes in cm."""

import numpy as np

from .beam import STEEL
from .bodies import Body, Part
from .outlines import circle, ribbon
from .rotations import turn
from .shapes import ALONG_X, Rng, arc, points, spun, uniform
from .solids import Box, Cylinder, Prism, Shell
from .tubes import Tube


def _jaw(size: float, angle: float) -> np.ndarray:
    """Return an open-end head around (0, 0) that opens towards +x, turned by an angle."""
    bulge = size * 1.02
    outer = arc(0, 0, bulge, 0.62, 2 * np.pi - 0.62, 20) * (1, 1.0)
    slot = points(
        (bulge * 1.02, -size * 0.5),
        (-size * 0.15, -size * 0.48),
        (-size * 0.4, 0),
        (-size * 0.15, size * 0.48),
        (bulge * 1.02, size * 0.5),
    )
    return spun(np.concatenate([outer, slot]), angle)


def _ring(x: float, radius: float) -> Prism:
    return Prism(circle(x, 0, radius), 0.55, (circle(x, 0, radius * 0.62, 12),))


def _shank(length: float, half: float, waist: float = 0.8) -> np.ndarray:
    x = np.linspace(-length / 2, length / 2, 9)
    return ribbon(np.stack([x, 0 * x], 1), half * np.interp(np.abs(x), [0, length / 2], [waist, 1.0]))


def combination_wrench(rng: Rng) -> Body:
    """Return a combination wrench."""
    length = uniform(rng, 13, 27)
    head = length * uniform(rng, 0.08, 0.115)
    steel = STEEL.times(uniform(rng, 0.75, 1))
    parts = [
        Part(
            Prism(_shank(length - head * 2.2, head * uniform(rng, 0.48, 0.7)), uniform(rng, 0.2, 0.35)), steel
        ),
        Part(Prism(_jaw(head, 0.26) + np.array((length / 2, 0)), 0.4), steel),
        Part(_ring(-length / 2, head * 0.92), steel),
    ]
    return tuple(parts)


def double_open_wrench(rng: Rng) -> Body:
    """Return a double open wrench."""
    length = uniform(rng, 12, 27)
    head, other = length * uniform(rng, 0.08, 0.12), length * uniform(rng, 0.07, 0.105)
    parts = [
        Part(
            Prism(_shank(length - head * 2, head * uniform(rng, 0.46, 0.62)), uniform(rng, 0.18, 0.3)), STEEL
        ),
        Part(Prism(_jaw(head, 0.26) + np.array((length / 2, 0)), 0.35), STEEL),
        Part(Prism(_jaw(other, np.pi + 0.26) - (length / 2, 0), 0.35), STEEL),
    ]
    return tuple(parts)


def adjustable_wrench(rng: Rng) -> Body:
    """Return an adjustable wrench."""
    length = uniform(rng, 15, 27)
    head = length * uniform(rng, 0.11, 0.14)
    shank = ribbon(
        points((-length / 2, 0), (-length * 0.1, 0), (length * 0.32, 0)), np.array([0.5, 0.36, 0.5]) * head
    )
    top = (
        points(
            (-1.2, -0.5),
            (-0.5, -1.0),
            (0.6, -1.0),
            (1.3, -0.75),
            (1.2, -0.25),
            (0.1, -0.2),
            (-0.1, 0.45),
            (-0.9, 0.5),
        )
        * head
    )
    gap = uniform(rng, 0.15, 0.5)
    lower = (
        points((0.0, -0.15), (1.15, -0.05), (1.0, 0.35), (0.5, 0.6), (-0.1, 0.7), (-0.4, 0.5))
        + np.array((0, gap))
    ) * head
    at = (length * 0.42, 0, 0)
    parts = [
        Part(Prism(shank, 0.35, (circle(-length * 0.46, 0, head * 0.18, 10),)), STEEL.times(0.9)),
        Part(Prism(top, 0.6), STEEL.times(0.9), at),
        Part(Prism(lower, 0.5), STEEL.times(0.9), at),
        Part(Cylinder(0.35, 0.35, head * 0.3), STEEL, (length * 0.4, head * 0.3, 0), ALONG_X),
    ]
    return tuple(parts)


def ring_wrench(rng: Rng) -> Body:
    """Return rings at both ends, cranked out of the shank's plane."""
    length = uniform(rng, 14, 25)
    head, lift = length * uniform(rng, 0.07, 0.095), uniform(rng, 0.2, 1.4)
    parts = [
        Part(Prism(_shank(length - head * 1.8, head * 0.45), 0.3), STEEL),
        Part(_ring(length / 2, head), STEEL, (0, 0, lift)),
        Part(_ring(-length / 2, head * 0.85), STEEL, (0, 0, lift)),
    ]
    return tuple(parts)


def pipe_wrench(rng: Rng) -> Body:
    """Return a pipe wrench."""
    length = uniform(rng, 17, 27)
    head = length * 0.13
    hook = (
        points(
            (-0.8, -0.3),
            (0.4, -0.3),
            (0.9, -1.3),
            (0.2, -1.9),
            (-1.2, -1.8),
            (-1.3, -1.3),
            (-0.2, -1.3),
            (-0.3, -0.6),
        )
        * head
    )
    parts = [
        Part(
            Prism(
                ribbon(
                    points((-length / 2, 0), (0, 0), (length * 0.4, 0)), np.array([0.5, 0.35, 0.55]) * head
                ),
                0.6,
            ),
            STEEL.times(0.8),
        ),
        Part(Prism(spun(hook, np.pi / 2), 0.55), STEEL.times(0.8), (length * 0.38, 0, 0)),
        Part(
            Prism(points((-0.5, -0.6), (0.6, -0.6), (0.6, 0.6), (-0.5, 0.6)) * head, 0.6),
            STEEL.times(0.7),
            (length * 0.38, 0, 0),
        ),
        Part(Cylinder(0.5, 0.5, head * 0.3), STEEL, (length * 0.33, head * 0.3, 0)),
    ]
    return tuple(parts)


def socket_wrench(rng: Rng) -> Body:
    """Return a ratchet: round head, knurled grip."""
    length = uniform(rng, 14, 25)
    head = length * uniform(rng, 0.07, 0.1)
    parts = [
        Part(
            Prism(
                ribbon(
                    points((-length / 2, 0), (-length * 0.05, 0), (0, 0), (length / 2, 0)),
                    np.array([0.6, 0.62, 0.36, 0.5]) * head,
                ),
                0.4,
            ),
            STEEL,
        ),
        Part(Cylinder(head, head, 0.9), STEEL.times(0.8), (length / 2, 0, 0)),
        Part(Box((head * 0.35, head * 0.35, 1.3)), STEEL, (length / 2, 0, 0.8)),
    ]
    return tuple(parts)


def hex_key(rng: Rng) -> Body:
    """Return a bent key, alone or some in a row of growing size."""
    count = 1 if rng.random() < 0.4 else int(rng.integers(3, 8))
    parts: list[Part] = []
    for k in range(count):
        size = uniform(rng, 0.8, 1.2) * (1 - 0.09 * k)
        long, short, thick = 15 * size, 5 * size, uniform(rng, 0.28, 0.5) * (1 - 0.07 * k)
        bend = np.array(
            [(-long / 2, 0, 0), (long * 0.46, 0, 0), (long / 2, short * 0.08, 0), (long / 2, short, 0.0)]
        )
        parts.append(Part(Tube(bend, thick), STEEL, (0.0, k * 1.3, 0.0)))
    return tuple(parts)


def flare_wrench(rng: Rng) -> Body:
    """Return rings with a gap at both ends of a waisted shank."""
    length = uniform(rng, 13, 22)
    head = length * uniform(rng, 0.07, 0.1)
    parts = [
        Part(
            Prism(_shank(length - head * 2, head * uniform(rng, 0.45, 0.6), uniform(rng, 0.5, 0.8)), 0.25),
            STEEL,
        )
    ]
    for side, size in ((1, 1.0), (-1, uniform(rng, 0.75, 0.95))):
        r, gap = head * size, uniform(rng, 0.35, 0.6)
        ring = np.concatenate([arc(0, 0, r, gap, 6.28 - gap, 20), arc(0, 0, r * 0.6, 6.28 - gap, gap, 16)])
        parts.append(Part(Prism(ring * (side, 1) + (side * length / 2, 0), 0.5), STEEL))
    return tuple(parts)


def ratchet_spanner(rng: Rng) -> Body:
    """Return a flat spanner with a toothed ring in one head and an open jaw at the other."""
    length = uniform(rng, 14, 24)
    head = length * uniform(rng, 0.075, 0.1)
    at = (length / 2, 0, 0)
    teeth = circle(0, 0, head * 0.6, 24) * np.where(np.arange(24) % 2, 1.08, 0.95)[:, None]
    return (
        Part(Prism(_shank(length - head * 2, head * uniform(rng, 0.5, 0.7)), uniform(rng, 0.2, 0.35)), STEEL),
        Part(Prism(circle(0, 0, head), 0.5, (teeth,)), STEEL.times(0.9), at),
        Part(Prism(_jaw(head * 0.9, np.pi + 0.26) - (length / 2, 0), 0.4), STEEL),
        Part(Cylinder(0.2, 0.2, 0.7), STEEL, (length / 2 - head * 1.1, 0, 0)),
    )


def cross_wrench(rng: Rng) -> Body:
    """Return a cross of rods with sockets at their ends."""
    parts: list[Part] = []
    for k in range(2):
        half, thick = uniform(rng, 8, 13), uniform(rng, 0.5, 0.8)
        spin = turn(2, k * np.pi / 2)
        parts.append(Part(Cylinder(thick, thick, half), STEEL.times(0.8), (0, 0, 0), spin @ ALONG_X))
        for side in (1, -1):
            socket = Shell(Cylinder(thick * 1.9, thick * 1.9, 1.2), Cylinder(thick * 1.2, thick * 1.2, 1.2))
            parts.append(Part(socket, STEEL.times(0.9), spin.of((side * half, 0, 0)), spin @ ALONG_X))
    return tuple(parts)


def hook_spanner(rng: Rng) -> Body:
    """Return a hook spanner: a curved claw on a flat shank with a hole."""
    length = uniform(rng, 14, 24)
    radius = length * uniform(rng, 0.14, 0.22)
    claw = arc(length / 2 + radius, 0, radius, np.pi * 0.75, np.pi * 1.6, 14)
    wide = length * uniform(rng, 0.025, 0.04)
    return (
        Part(Prism(_shank(length, wide * 1.2), 0.3, (circle(-length * 0.46, 0, wide * 0.6, 10),)), STEEL),
        Part(Prism(ribbon(claw, np.full(14, wide)), 0.35), STEEL),
        Part(Box((wide * 0.6, wide * 1.4, 0.4)), STEEL, (float(claw[-1, 0]), float(claw[-1, 1]) + wide, 0)),
    )
