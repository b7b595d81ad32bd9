"""Benign kit of workshop, kitchen, bath and desk, some of it with the outline of a threat. Sizes in cm."""

import numpy as np

from .beam import ALUMINIUM, CERAMIC, COPPER, FABRIC, GLASS, ORGANIC, PVC, SALTED, STEEL, ZINC
from .bodies import Body, Part
from .outlines import circle, curve, ribbon, rounded
from .rotations import turn
from .shapes import ALONG_X, Rng, arc, hollow, pick, points, space, spun, uniform
from .solids import Box, Cylinder, Ellipsoid, Prism, Shell
from .tubes import Tube, strands


def socket_set(rng: Rng) -> Body:
    """Return sockets in rows of falling size, bits and an extension bar in a moulded case."""
    w, h = uniform(rng, 16, 30), uniform(rng, 9, 18)
    case = pick(rng, ORGANIC, ORGANIC.times(0.7), PVC.times(0.4))
    parts = hollow(rounded(w, h, 1.5), 0.95, 1.6, case, 0.35)
    lying = rng.random() < 0.5
    for row in range(int(rng.integers(1, 3))):
        count, size = int(rng.integers(4, 10)), uniform(rng, 0.7, 1.1)
        for k in range(count):
            r = size * (1 - 0.05 * k)
            at = ((k - count / 2) * 2.1 * size, (row - 0.8) * h * 0.4, 0.0)
            socket = Shell(Cylinder(r, r, 1.2), Cylinder(r * 0.55, r * 0.55, 1.2))
            parts.append(Part(socket, STEEL.times(0.8), at, turn(0, np.pi / 2) if lying else turn(0, 0.2)))
    if rng.random() < 0.6:
        parts.append(Part(Cylinder(0.5, 0.5, w * 0.3), STEEL.times(0.9), (0, h * 0.3, 0), ALONG_X))
    return tuple(parts)


def drill_bits(rng: Rng) -> Body:
    """Return drill bits or screwdriver bits side by side in a holder."""
    count, long = int(rng.integers(4, 12)), uniform(rng, 4, 9)
    parts = [Part(Box((count * 0.55, 1.2, 0.6)), pick(rng, ORGANIC, PVC.times(0.5)), (0, long * 0.4, 0))]
    for k in range(count):
        thick = 0.12 + 0.03 * k
        y = np.linspace(-long / 2, long / 2, 13) * (0.6 + 0.04 * k)
        path = np.stack([(k - count / 2) + 0.05 * np.resize((1, -1), 13), y, np.zeros(13)], 1)
        parts.append(Part(Tube(path, thick), STEEL))
    return tuple(parts)


def wine(rng: Rng) -> Body:
    """Return a bottle of glass with shoulders and a neck, full."""
    radius, half = uniform(rng, 3, 4.2), uniform(rng, 7, 10)
    glass = GLASS.times(uniform(rng, 0.8, 1.2))
    neck = Shell(Cylinder(1.5, 1.5, 3.5), Cylinder(1.1, 1.1, 3.5))
    shoulder = Shell(Ellipsoid((radius, radius, 4)), Ellipsoid((radius - 0.35, radius - 0.35, 3.6)))
    body = Shell(Cylinder(radius, radius, half), Cylinder(radius - 0.35, radius - 0.35, half - 0.4))
    parts = (
        (body, glass, 0.0),
        (shoulder, glass.times(0.6), half),
        (neck, glass, half + 5),
        (Cylinder(radius - 0.35, radius - 0.35, half * 0.97), ORGANIC, 0.0),
        (Cylinder(1.2, 1.2, 2), pick(rng, ORGANIC.times(0.4), ALUMINIUM), half + 7.5),
    )
    return tuple(Part(solid, stuff, (at, 0.0, 0.0), ALONG_X) for solid, stuff, at in parts)


def cosmetics(rng: Rng) -> Body:
    """Return a wash bag: tubes, jars, a compact with its mirror, clips."""
    parts: list[Part] = [Part(Prism(rounded(18, 11, 3), 2.5, (rounded(17.7, 10.7, 2.8),)), FABRIC)]
    for _ in range(int(rng.integers(3, 8))):
        at = (uniform(rng, -6, 6), uniform(rng, -3, 3), uniform(rng, -1, 1))
        r, half, spin = uniform(rng, 0.6, 2.2), uniform(rng, 1, 5), turn(2, uniform(rng, 0, 6))
        case = Shell(Cylinder(r, r, half), Cylinder(r - 0.12, r - 0.12, half - 0.1))
        parts.append(Part(case, pick(rng, ORGANIC, PVC, ALUMINIUM, GLASS), at, spin @ ALONG_X))
        parts.append(
            Part(Cylinder(r - 0.12, r - 0.12, half * 0.7), pick(rng, SALTED, ORGANIC), at, spin @ ALONG_X)
        )
    mirror = (uniform(rng, -5, 5), uniform(rng, -3, 3), 1.0)
    parts.append(Part(Cylinder(2.6, 2.6, 0.15), GLASS, mirror))
    parts.append(Part(Shell(Cylinder(2.9, 2.9, 0.5), Cylinder(2.7, 2.7, 0.4)), ZINC.times(0.2), mirror))
    return tuple(parts)


def lunch(rng: Rng) -> Body:
    """Return a lunch box: a thin wall, lumps of food, cutlery across."""
    w, h = uniform(rng, 12, 19), uniform(rng, 9, 13)
    parts = hollow(rounded(w, h, 2), 0.96, 2.5, pick(rng, ORGANIC, ALUMINIUM.times(0.5)), 0.3)
    for _ in range(int(rng.integers(2, 6))):
        at = (uniform(rng, -0.3, 0.3) * w, uniform(rng, -0.3, 0.3) * h, 0.0)
        lump = Ellipsoid((uniform(rng, 1, 3.5), uniform(rng, 1, 3), uniform(rng, 0.8, 2)))
        parts.append(Part(lump, pick(rng, ORGANIC, SALTED.times(0.8)), at))
    return tuple(parts)


def crockery(rng: Rng) -> Body:
    """Return plates and bowls, one in another."""
    stuff, count = pick(rng, CERAMIC, GLASS, STEEL.times(0.1)), int(rng.integers(1, 5))
    parts: list[Part] = []
    for k in range(count):
        r = uniform(rng, 6, 10)
        parts.append(Part(Cylinder(r, r, 0.2), stuff, (uniform(rng, -1, 1), uniform(rng, -1, 1), 0.9 * k)))
        rim = Shell(Cylinder(r, r, 0.6), Cylinder(r - 0.3, r - 0.3, 0.6))
        parts.append(Part(rim, stuff, (0.0, 0.0, 0.9 * k + 0.5)))
    return tuple(parts)


def spray_trigger(rng: Rng) -> Body:
    """Return the head of a spray bottle on its bottle: a nozzle, a trigger, a spring, a dip tube."""
    half = uniform(rng, 5, 8)
    head = points((-2.5, -1), (3.5, -1), (4.2, -0.2), (3.2, 0.8), (1, 1), (0.8, 3), (-1, 3), (-2.5, 1))
    trigger = ribbon(curve(points((2.4, 0.6), (2.2, 2.2), (3.2, 4))), np.full(13, 0.35))
    bottle = Shell(Cylinder(3.2, 2.4, half), Cylinder(3.05, 2.25, half - 0.1))
    upright = turn(0, np.pi / 2)
    return (
        *hollow(head, 0.82, 0.9, ORGANIC, 0.35),
        Part(Prism(trigger, 0.7), ORGANIC),
        Part(
            Shell(Cylinder(0.5, 0.5, 1.2), Cylinder(0.3, 0.3, 1.2)), STEEL.times(0.3), (0.4, 0.6, 0), ALONG_X
        ),
        Part(bottle, ORGANIC, (-0.2, 4 + half, 0), upright),
        Part(Cylinder(3.05, 2.25, half * 0.6), ORGANIC, (-0.2, 4 + half * 1.35, 0), upright),
        Part(Tube(np.array([(0, 2, 0), (0.2, 2 + half, 0), (0.6, 3.5 + 2 * half, 0.0)]), 0.25), ORGANIC),
    )


def label_gun(rng: Rng) -> Body:
    """Return a price labeller or a bar-code reader: a hollow head with a board, a grip with a lever."""
    long, grip = uniform(rng, 10, 15), uniform(rng, 7, 10)
    head = points((0, 0), (long, uniform(rng, -1, 1)), (long, 4), (4, 4.5), (0, 3.5))
    handle = ribbon(points((2.2, 4), (1, 4 + grip)), np.array([1.7, 1.4]))
    shell = pick(rng, ORGANIC, PVC.times(0.6))
    return (
        *hollow(head, 0.92, 2, shell, 0.4),
        *hollow(handle, 0.85, 1.5, shell, 0.4),
        Part(Cylinder(1.5, 1.5, 1), pick(rng, ORGANIC, ZINC.times(0.3)), (long * 0.5, 2, 0)),
        Part(Box((long * 0.25, 1.2, 0.1)), COPPER.times(0.2), (long * 0.6, 2, 0.5)),
        Part(Prism(ribbon(points((4.2, 4.6), (3.6, 7.5)), np.full(2, 0.3)), 0.6), STEEL.times(0.3)),
        Part(Tube(np.array([(1, 4 + grip, 0), (0, 7 + grip, 1), (3, 9 + grip, 0.0)]), 0.3), PVC),
    )


def styler(rng: Rng) -> Body:
    """Return a hot-air styler: a barrel with a motor, a grille of wires and a folding grip."""
    long = uniform(rng, 12, 18)
    fold = uniform(rng, 0.0, 1.2)
    grip = spun(ribbon(points((0, 1.5), (-0.5, 10)), np.array([1.6, 1.3])), fold, (0, 1.5))
    shell = pick(rng, ORGANIC, PVC.times(0.5))
    coils = [space(arc(x, 0, 1.6, 0, 2 * np.pi, 16)) for x in np.linspace(2, long * 0.55, 5)]
    return (
        *hollow(
            rounded(long, 5.4, 2) + np.array((long * 0.2, 0)),
            0.93,
            2.5,
            shell,
            0.4,
        ),
        *hollow(grip, 0.86, 1.3, ORGANIC, 0.4),
        Part(Cylinder(1.3, 1.3, 1.7), STEEL.times(0.35), (-long * 0.12, 0, 0), ALONG_X),
        Part(strands(coils, 0.07), STEEL.times(0.7)),
    )


def nail_file(rng: Rng) -> Body:
    """Return a file or a spatula: a thin tapering blade on a slender handle."""
    long, wide = uniform(rng, 12, 20), uniform(rng, 0.8, 1.6)
    x = np.linspace(0, 1, 14)
    half = wide / 2 * np.interp(x, [0, 0.35, 0.42, 0.9, 1], [0.9, 1, 0.6, 0.9, 0.3])
    path = np.stack([x * long - long / 2, 0 * x], 1)
    return (
        Part(Prism(ribbon(path, half), uniform(rng, 0.04, 0.1)), STEEL),
        Part(Prism(ribbon(path[:5], half[:5]), uniform(rng, 0.3, 0.6)), pick(rng, ORGANIC, PVC, ALUMINIUM)),
    )


def comb(rng: Rng) -> Body:
    """Return a comb or a brush: a back with a row of teeth."""
    long, teeth = uniform(rng, 12, 20), uniform(rng, 1.5, 3)
    stuff = pick(rng, ORGANIC, PVC, ALUMINIUM, STEEL.times(0.5))
    lines = [np.array([(x, 0.2, 0), (x, teeth, 0.0)]) for x in np.arange(-long * 0.45, long * 0.2, 0.45)]
    back = ribbon(points((-long / 2, 0), (long / 2, 0)), np.array([0.6, uniform(rng, 0.4, 0.9)]))
    return (Part(Prism(back, 0.2), stuff), Part(strands(lines, 0.11), stuff))


def chopsticks(rng: Rng) -> Body:
    """Return sticks, skewers or straws of steel, two or more nearly parallel."""
    long, count = uniform(rng, 18, 25), int(rng.integers(2, 5))
    stuff, thick = pick(rng, STEEL, ORGANIC.times(1.3), ALUMINIUM.times(1.5)), uniform(rng, 0.2, 0.4)
    ends = rng.normal(0, 0.8, (count, 2))
    sticks = [np.array([(-long / 2, a, 0.3 * k), (long / 2, b, 0.3 * k)]) for k, (a, b) in enumerate(ends)]
    return (Part(strands(sticks, thick), stuff),)


def door_handle(rng: Rng) -> Body:
    """Return a lever with a hub on a plate with screw holes."""
    long = uniform(rng, 11, 16)
    lever = curve(points((0, 0), (long * 0.3, -0.4), (long * 0.8, 0.2), (long, 0.8)))
    plate = rounded(uniform(rng, 3, 5), uniform(rng, 5, 12), 1)
    holes = (circle(0, plate[:, 1].max() * 0.75, 0.3, 10), circle(0, -plate[:, 1].max() * 0.75, 0.3, 10))
    metal = pick(rng, STEEL, ZINC.times(0.7), COPPER.times(0.6), ALUMINIUM.times(2))
    return (
        Part(Tube(space(lever, 2.0), uniform(rng, 0.5, 0.9)), metal),
        Part(Prism(plate, 0.15, holes), metal),
        Part(Shell(Cylinder(1.3, 1.3, 1), Cylinder(0.5, 0.5, 1)), metal, (0, 0, 1)),
    )


def crank(rng: Rng) -> Body:
    """Return the crank of a bicycle: an arm with two eyes, a pedal's axle."""
    long = uniform(rng, 14, 19)
    arm = ribbon(points((-long / 2, 0), (long / 2, 0)), np.array([1.1, 0.8]))
    metal = pick(rng, ALUMINIUM.times(2.5), STEEL.times(0.7))
    return (
        Part(Prism(arm, 0.6), metal),
        Part(Prism(circle(-long / 2, 0, 1.9), 0.9, (circle(-long / 2, 0, 0.9, 8),)), metal),
        Part(Prism(circle(long / 2, 0, 1.2), 0.7, (circle(long / 2, 0, 0.5, 12),)), metal),
        Part(Cylinder(0.6, 0.6, 2.5), STEEL, (long / 2, 0, 2)),
    )


def stapler(rng: Rng) -> Body:
    """Return a stapler, opened a little: two long jaws on a hinge, a rail with staples, a spring."""
    long, opening = uniform(rng, 9, 15), uniform(rng, 0.05, 0.5)
    jaw = points((0, -0.5), (long * 0.2, -0.9), (long, -0.6), (long, 0.1), (0, 0.3))
    top = spun(jaw, -opening)
    return (
        Part(Prism(top, 0.8), pick(rng, ORGANIC, PVC, STEEL.times(0.2))),
        Part(Prism(spun(jaw * (1, 0.5), -opening * 0.7), 0.4), STEEL.times(0.5)),
        Part(Prism(jaw * (1, -0.5) + (0, 0.5), 0.7), STEEL.times(0.3)),
        Part(Cylinder(0.35, 0.35, 1), STEEL, (0.3, 0, 0)),
    )


def tongs(rng: Rng) -> Body:
    """Return tongs or tweezers: two springy arms joined at one end."""
    long, spread = uniform(rng, 9, 20), uniform(rng, 0.8, 2.5)
    tip = uniform(rng, 0.1, 0.6)
    path = curve(points((long, spread * tip), (long * 0.5, spread), (0.6, 0.4), (0, 0), (0.6, -0.4),
                        (long * 0.5, -spread), (long, -spread * tip)))  # fmt: skip
    half = np.full(len(path), uniform(rng, 0.12, 0.25))
    return (
        Part(
            Prism(ribbon(path - (long / 2, 0), half), uniform(rng, 0.2, 1.0)),
            pick(rng, STEEL, STEEL.times(0.5)),
        ),
    )


def joined_hoops(rng: Rng) -> Body:
    """Return two hoops joined by links: ear rings, snap hooks, a bridle's bit."""
    r, gap = uniform(rng, 1.6, 3.0), uniform(rng, 0.5, 2.5)
    hoops = [space(circle(side * (r + gap), 0, r, 22, uniform(rng, 0.7, 1))) for side in (1, -1)]
    hoops = [np.concatenate([hoop, hoop[:1]]) for hoop in hoops]
    bar = curve(np.array([(-gap, 0, 0), (0, 0.4, 0.2), (gap, 0, 0.0)]))
    metal = pick(rng, STEEL, ZINC, COPPER.times(0.7))
    return (Part(strands(hoops, uniform(rng, 0.15, 0.3)), metal), Part(Tube(bar, 0.25), metal))
