"""Benign things with the outline of a threat. Sizes in cm."""

import numpy as np

from .beam import ALUMINIUM, COPPER, GLASS, ORGANIC, PVC, STEEL, ZINC
from .bodies import Body, Part
from .everyday import circuit
from .outlines import circle, curve, ribbon, rounded
from .rotations import turn
from .shapes import ALONG_X, Rng, pick, space, uniform
from .solids import Box, Cylinder, Ellipsoid, Prism, Shell
from .tubes import Tube


def hair_dryer(rng: Rng) -> Body:
    """Return a hair dryer."""
    length = uniform(rng, 11, 17)
    grip = ribbon(np.array([(0.0, 1.5), (-1.2, 10.5)]), np.array([1.7, 1.5]))
    return (
        Part(
            Shell(Cylinder(3, 3, length / 2), Cylinder(2.8, 2.8, length / 2)),
            ORGANIC,
            (length * 0.15, 0, 0),
            ALONG_X,
        ),
        Part(Cylinder(1.4, 1.4, 1.6), STEEL.times(0.5), (-length * 0.1, 0, 0), ALONG_X),
        Part(Cylinder(1.9, 1.9, 2.6), STEEL.times(0.08), (length * 0.3, 0, 0), ALONG_X),
        Part(Prism(grip, 1.2), ORGANIC.times(0.5)),
        Part(Box((0.6, 1.6, 0.5)), COPPER.times(0.3), (-0.7, 4.5, 0)),
    )


def drill(rng: Rng) -> Body:
    """Return a drill."""
    length = uniform(rng, 14, 19)
    grip = ribbon(np.array([(-1.0, 2.0), (-2.5, 11.0)]), np.array([2.0, 1.8]))
    return (
        Part(Cylinder(2.4, 2.4, length * 0.3), PVC.times(0.4), (0, 0, 0), ALONG_X),
        Part(Cylinder(1.7, 1.7, length * 0.18), STEEL.times(0.45), (-length * 0.1, 0, 0), ALONG_X),
        Part(Cylinder(1.1, 1.1, 1.8), STEEL.times(0.7), (length * 0.38, 0, 0), ALONG_X),
        Part(Cylinder(0.3, 0.3, uniform(rng, 2, 5)), STEEL, (length * 0.6, 0, 0), ALONG_X),
        Part(Prism(grip, 1.5), PVC.times(0.4)),
        Part(Box((3.2, 1.8, 1.8)), ZINC.times(0.2), (-2.6, 11.5, 0)),
    )


def camera(rng: Rng) -> Body:
    """Return a camera."""
    w = uniform(rng, 9, 13)
    return (
        Part(Shell(Box((w / 2, 3.6, 2)), Box((w / 2 - 0.2, 3.4, 1.8))), ALUMINIUM),
        Part(Shell(Cylinder(2.8, 2.8, 3), Cylinder(2.4, 2.4, 3)), ALUMINIUM, (w * 0.1, 0.2, 3)),
        Part(Cylinder(2.3, 2.3, 0.6), GLASS.times(1.3), (w * 0.1, 0.2, 4)),
        *circuit(rng, w * 0.8, 5, 22, (0, 0, 0)),
        Part(Box((1.4, 2.6, 0.8)), PVC.times(2), (-w * 0.36, 0, 0)),
    )


def glue_gun(rng: Rng) -> Body:
    """Return a glue gun."""
    grip = ribbon(np.array([(-3.0, 1.5), (-4.6, uniform(rng, 7, 10))]), np.array([1.5, 1.4]))
    return (
        Part(Cylinder(1.6, 1.6, 5.5), PVC.times(0.5), (0, 0, 0), ALONG_X),
        Part(Cylinder(0.7, 0.7, 3), ALUMINIUM.times(2), (4, 0, 0), ALONG_X),
        Part(Cylinder(0.5, 0.5, 1.2), COPPER.times(0.7), (7.6, 0, 0), ALONG_X),
        Part(Prism(grip, 1.1), PVC.times(0.5)),
        Part(
            Prism(ribbon(np.array([(-1.5, 2.0), (-1.8, 4.5)]), np.array([0.5, 0.5])), 0.3), STEEL.times(0.5)
        ),
    )


def pen(rng: Rng) -> Body:
    """Return a pen."""
    length, radius = uniform(rng, 12, 15), uniform(rng, 0.4, 0.6)
    return (
        Part(
            Cylinder(radius, radius, length / 2),
            pick(rng, ORGANIC, ALUMINIUM, STEEL.times(0.4)),
            (0, 0, 0),
            ALONG_X,
        ),
        Part(Cylinder(0.15, 0.15, length * 0.4), COPPER.times(0.6), (0, 0, 0), ALONG_X),
        Part(Prism(ribbon(np.array([(0.0, 0.8), (length * 0.4, 0.8)]), np.full(2, 0.15)), 0.1), STEEL),
        Part(Cylinder(radius * 0.5, 0.1, 0.7), STEEL, (-length / 2 - 0.5, 0, 0), ALONG_X),
    )


def cutlery(rng: Rng) -> Body:
    """Return a spoon or a fork."""
    length = uniform(rng, 15, 20)
    x = np.linspace(0, 1, 14)
    spoon = np.interp(x, [0, 0.1, 0.62, 0.7, 0.85, 0.97, 1], [0.75, 0.8, 0.28, 0.45, 2.1, 1.2, 0.2])
    outline = ribbon(np.stack([x * length - length / 2, 0 * x], 1), spoon)
    holes = ()
    if rng.random() < 0.5:
        tines = [
            ribbon(np.array([(length * 0.36, y), (length * 0.52, y)]), np.full(2, 0.22))
            for y in (-0.75, 0.0, 0.75)
        ]
        holes = tuple(tines)
    return (Part(Prism(outline, uniform(rng, 0.08, 0.14), holes), STEEL),)


def ruler(rng: Rng) -> Body:
    """Return a ruler."""
    length, width = uniform(rng, 15, 26), uniform(rng, 1.2, 1.8)
    return (
        Part(
            Prism(rounded(length, 2 * width, 0.1), 0.06, (circle(length * 0.47, 0, 0.3, 10),)),
            pick(rng, STEEL, ALUMINIUM.times(1.4)),
        ),
    )


def toothbrush(rng: Rng) -> Body:
    """Return an electric toothbrush or a shaver: a rod with a motor and a cell."""
    length = uniform(rng, 14, 20)
    return (
        Part(Cylinder(1.3, 1.3, length / 2), ORGANIC.times(0.6), (0, 0, 0), ALONG_X),
        Part(Cylinder(0.7, 0.7, 2.4), ZINC.times(0.35), (-length * 0.22, 0, 0), ALONG_X),
        Part(Cylinder(0.8, 0.8, 1.4), STEEL.times(0.5), (length * 0.12, 0, 0), ALONG_X),
        Part(Cylinder(0.15, 0.15, 4), STEEL, (length * 0.6, 0, 0), ALONG_X),
    )


def spanner_bar(rng: Rng) -> Body:
    """Return a flat bar with round ends: a bracket, a strut, a car part."""
    length, head = uniform(rng, 12, 24), uniform(rng, 0.9, 1.8)
    bar = ribbon(np.array([(-length / 2, 0.0), (length / 2, 0.0)]), np.full(2, head * uniform(rng, 0.4, 0.9)))
    hole = uniform(rng, 0.15, 0.45)
    return (
        Part(Prism(bar, 0.17), STEEL),
        Part(Prism(circle(-length / 2, 0, head), 0.2, (circle(-length / 2, 0, head * hole, 10),)), STEEL),
        Part(Prism(circle(length / 2, 0, head), 0.2, (circle(length / 2, 0, head * hole, 10),)), STEEL),
    )


def bolts(rng: Rng) -> Body:
    """Return bolts."""
    length = uniform(rng, 6, 16)
    return (
        Part(Cylinder(0.5, 0.5, length / 2), STEEL, (0, 0, 0), ALONG_X),
        Part(Cylinder(1.0, 1.0, 0.4), STEEL, (length / 2, 0, 0), ALONG_X),
        Part(
            Shell(Cylinder(1.0, 1.0, 0.45), Cylinder(0.5, 0.5, 0.45)), STEEL, (-length * 0.3, 0, 0), ALONG_X
        ),
    )


def screwdriver(rng: Rng) -> Body:
    """Return a screwdriver."""
    length = uniform(rng, 7, 15)
    return (
        Part(Cylinder(0.33, 0.33, length / 2), STEEL, (length / 2, 0, 0), ALONG_X),
        Part(Cylinder(1.3, 1.3, 4.5), pick(rng, ORGANIC, PVC), (-4.5, 0, 0), ALONG_X),
        Part(Prism(ribbon(np.array([(length, 0.0), (length + 1, 0)]), np.array([0.3, 0.5])), 0.1), STEEL),
    )


def rail(rng: Rng) -> Body:
    """Return a drawer slide or a ruler-like profile with holes."""
    length = uniform(rng, 14, 26)
    holes = tuple(circle(x * length, 0, 0.3, 8) for x in (-0.4, -0.2, 0.05, 0.3, 0.42))
    return (
        Part(Prism(rounded(length, 2.2, 0.3), 0.15, holes), STEEL),
        Part(Prism(rounded(length, 0.4, 0.1), 0.4), STEEL, (0, 0.9, 0)),
    )


def nail_clipper(rng: Rng) -> Body:
    """Return a nail clipper."""
    length, tilt = uniform(rng, 5.5, 8.5), uniform(rng, 0.1, 0.3)
    arm = ribbon(
        np.array([(-length / 2, 0.0), (length * 0.3, 0.0), (length / 2, 0)]), np.array([0.55, 0.75, 0.4])
    )
    return (
        Part(Prism(arm, 0.12), STEEL, (0, 0, 0.2)),
        Part(Prism(arm, 0.12), STEEL, (0, 0, -0.2), turn(1, tilt)),
        Part(Prism(arm * 0.9, 0.1), STEEL, (0, 0, 0.8), turn(1, -tilt)),
        Part(Cylinder(0.25, 0.25, 1.0), STEEL, (length * 0.38, 0, 0)),
    )


def hinge(rng: Rng) -> Body:
    """Return a hinge."""
    w, h, angle = uniform(rng, 2.5, 5), uniform(rng, 4, 9), uniform(rng, 0.1, 1.2)
    leaf = np.array([(0.0, -h / 2), (w, -h / 2), (w, h / 2), (0, h / 2)])
    holes = tuple(circle(w * 0.6, y * h, 0.3, 8) for y in (-0.3, 0, 0.3))
    return (
        Part(Prism(leaf, 0.12, holes), STEEL, (0, 0, 0), turn(1, angle)),
        Part(
            Prism(leaf * (-1, 1), 0.12, tuple(hole * (-1, 1) for hole in holes)),
            STEEL,
            (0, 0, 0),
            turn(1, -angle),
        ),
        Part(Cylinder(0.4, 0.4, h / 2), STEEL, (0, 0, 0), turn(0, np.pi / 2)),
    )


def compass(rng: Rng) -> Body:
    """Return a drawing compass, tongs, tweezers: two straight legs from one hinge."""
    length, opening = uniform(rng, 9, 17), uniform(rng, 0.08, 0.7)
    legs: list[Part] = [Part(Cylinder(0.7, 0.7, 0.5), ZINC)]
    for side in (1, -1):
        leg = ribbon(np.array([(0.0, 0.0), (length * 0.4, 0.2), (length, 0.0)]), np.array([0.45, 0.55, 0.15]))
        legs.append(
            Part(Prism(leg, 0.25), pick(rng, STEEL, ZINC.times(0.7)), (0, 0, 0), turn(2, side * opening / 2))
        )
    return tuple(legs)


def hanger(rng: Rng) -> Body:
    """Return a trouser hanger's clips and hook: wire bent and pegs."""
    hook = curve(np.array([(0, 0, 0), (0, -3, 0), (1.6, -4.6, 0), (3, -3.2, 0.0), (2.4, -2.0, 0)]))
    arms = curve(np.array([(-11, 4, 0), (-4, 1, 0), (0, 0, 0), (4, 1, 0), (11, 4.0, 0)]))
    return (Part(Tube(hook, 0.16), STEEL), Part(Tube(arms, uniform(rng, 0.16, 0.4)), STEEL))


def headphones(rng: Rng) -> Body:
    """Return headphones."""
    band = np.stack(
        [
            7 * np.cos(np.linspace(0, np.pi, 20)),
            -uniform(rng, 6, 9) * np.sin(np.linspace(0, np.pi, 20)),
            np.zeros(20),
        ],
        1,
    )
    cups = [
        Part(Shell(Ellipsoid((2.6, 3.2, 3.0)), Ellipsoid((2.3, 2.9, 2.7))), ORGANIC.times(1.2), (7 * s, 1, 0))
        for s in (1, -1)
    ]
    magnets = [Part(Cylinder(1.3, 1.3, 0.5), STEEL.times(0.7), (7 * s, 1, 0), ALONG_X) for s in (1, -1)]
    return (Part(Tube(band, 0.25), STEEL.times(0.5)), *cups, *magnets)


def spectacles_case_rings(rng: Rng) -> Body:
    """Return two rings and a stem: key rings with a bar, a bottle opener, a bit of harness."""
    r = uniform(rng, 1.1, 1.9)
    stem = ribbon(np.array([(0.0, 0.0), (uniform(rng, 4, 8), 0.0)]), np.array([0.8, 0.5]))
    rings = [
        Part(Tube(space(np.concatenate([c := circle(-r, s * r, r, 20), c[:1]])), 0.22), ZINC) for s in (1, -1)
    ]
    return (Part(Prism(stem, 0.2), STEEL), *rings)


def curler(rng: Rng) -> Body:
    """Return curling tongs: a hot rod, a clip, a grip."""
    length = uniform(rng, 9, 13)
    clip = ribbon(np.array([(0.0, 0.6), (length * 0.5, 1.2), (length, 0.8)]), np.full(3, 0.45))
    return (
        Part(
            Shell(Cylinder(1.1, 1.1, length / 2), Cylinder(0.95, 0.95, length / 2)),
            STEEL.times(0.7),
            (length / 2, 0, 0),
            ALONG_X,
        ),
        Part(Prism(clip, 0.5), STEEL.times(0.6)),
        Part(Cylinder(1.4, 1.4, 5), PVC.times(0.5), (-5, 0, 0), ALONG_X),
        Part(Box((1.4, 0.5, 0.3)), COPPER.times(0.3), (-3, 0, 0)),
    )


def umbrella_ribs(rng: Rng) -> Body:
    """Return the bare ribs of an umbrella on their shaft, half folded."""
    length, opening = uniform(rng, 16, 26), uniform(rng, 0.05, 0.3)
    parts = [Part(Cylinder(0.4, 0.4, length / 2), STEEL.times(0.5), (0, 0, 0), ALONG_X)]
    for k in range(8):
        y, z = np.sin(k * np.pi / 4) * opening, np.cos(k * np.pi / 4) * opening
        rib = np.array(
            [
                (length * 0.48, 0, 0),
                (length * 0.1, y * length * 0.4, z * length * 0.4),
                (-length * 0.42, y * length, z * length),
            ]
        )
        parts.append(Part(Tube(curve(rib, 4), 0.12), STEEL))
    return tuple(parts)
