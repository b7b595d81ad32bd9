"""Guns, with what shows inside them. Sizes in cm, the barrel along x."""

import numpy as np

from .beam import ALUMINIUM, COPPER, LEAD, ORGANIC, PVC, STEEL, Material
from .bodies import Body, Part
from .outlines import Outline, curve, ribbon
from .rotations import turn
from .shapes import ALONG_X, Rng, centred, hollow, inset, pick, points, space, uniform
from .solids import Box, Cylinder, Ellipsoid, Prism, Shell
from .tubes import Tube, strands


def _grip(rng: Rng, x: float, y: float, length: float, width: float, slant: float) -> Outline:
    """Return a pistol grip that hangs from (x, y), y down."""
    foot, back = x - slant * length, uniform(rng, -0.5, 0.5)
    return points(
        (x, y),
        (x + width, y),
        (foot + width * 1.05 + slant, y + length * 0.55),
        (foot + width + uniform(rng, -0.2, 0.5), y + length),
        (foot - 0.1, y + length + uniform(rng, -0.4, 0.2)),
        (foot + slant * 0.8 + back * 0.6, y + length * 0.5),
        (x - 0.45, y + 0.5),
    )


def _guard(rng: Rng, x: float, y: float, width: float, drop: float) -> Prism:
    square = uniform(rng, 0.55, 0.95)
    outer = np.concatenate(
        [
            points((x, y)),
            curve(
                points(
                    (x, y + drop * 0.6),
                    (x + width * 0.3, y + drop),
                    (x + width * 0.8, y + drop * square),
                    (x + width, y),
                )
            ),
        ]
    )
    return Prism(outer, 0.35, (inset(outer, uniform(rng, 0.68, 0.8)),))


def _trigger(x: float, y: float) -> Part:
    path = curve(points((x, y), (x + 0.5, y + 0.8), (x + 0.2, y + 1.6)))
    return Part(Prism(ribbon(path, np.full(13, 0.22)), 0.3), STEEL)


def _spring(x0: float, x1: float, y: float, radius: float, wire: float) -> Part:
    """Return a coil spring along x, seen from its side as a zigzag."""
    turns = max(int((x1 - x0) / 0.5), 2)
    x = np.linspace(x0, x1, 2 * turns + 1)
    path = np.stack([x, y + radius * np.where(np.arange(len(x)) % 2, 1.0, -1.0), np.zeros(len(x))], 1)
    return Part(Tube(path, wire), STEEL)


def _cartridges(rng: Rng, x: float, y: float, slant: float, pitch: float, count: int) -> list[Part]:
    """Return a column of cartridges that hangs from (x, y): brass cases with lead tips."""
    tilt, half, ahead = turn(2, uniform(rng, -0.25, 0.1)), uniform(rng, 0.6, 0.85), uniform(rng, 0.3, 0.45)
    parts: list[Part] = []
    for k in range(count):
        at = (x - slant * k * pitch, y + k * pitch, 0.25 if k % 2 else -0.25)
        tip = tilt.of((half + ahead * 0.8, 0.0, 0.0))
        parts.append(Part(Cylinder(0.4, 0.4, half), COPPER.times(0.3), at, tilt @ ALONG_X))
        nose = Ellipsoid((ahead, 0.34, 0.34))
        parts.append(Part(nose, LEAD.times(0.2), (at[0] + tip[0], at[1] + tip[1], at[2]), tilt))
    return parts


def _barrel(x0: float, x1: float, y: float, radius: float, bore: float, steel: Material) -> Part:
    half = (x1 - x0) / 2
    return Part(
        Shell(Cylinder(radius, radius, half), Cylinder(bore, bore, half)), steel, (x0 + half, y, 0), ALONG_X
    )


def _handle(
    rng: Rng, at: tuple[float, float], length: float, width: float, slant: float, frame: Material
) -> list[Part]:
    """Return a hollow grip with its magazine: cartridges, or only the spring of an empty one."""
    x, y = at
    outline = _grip(rng, x, y, length, width, slant)
    parts = hollow(outline, uniform(rng, 0.8, 0.88), 1.3, frame, uniform(rng, 0.12, 0.3))
    if rng.random() < 0.15:  # no magazine
        return parts
    inner = inset(outline, 0.74)
    parts += hollow(inner, 0.9, 0.85, STEEL, 0.1)
    count = int(rng.integers(0, 9))
    pitch = min(0.95, length * 0.8 / max(count, 1))
    parts += _cartridges(rng, x + width * 0.36, y + 0.9, slant, pitch, count)
    if count < 7:
        y0, y1 = y + 1.2 + count * pitch, y + length - 0.5
        steps = np.linspace(y0, y1, 11)
        sides = np.where(np.arange(11) % 2, 0.8, -0.8) * width * 0.3
        path = np.stack([x + width * 0.5 - slant * (steps - y) + sides, steps], 1)
        parts.append(Part(Tube(space(path), 0.09), STEEL))
    if rng.random() < 0.4:  # panels
        parts.append(Part(Prism(inset(outline, 0.8), 0.4), pick(rng, ORGANIC, ORGANIC.times(1.4), PVC)))
    return parts


def _slide(rng: Rng, length: float, height: float) -> Outline:
    """Return a slide's outline from (0, 0), with a square, a chamfered or a stepped nose."""
    nose, drop = uniform(rng, 0.1, 1.2), uniform(rng, 0, 0.4) * height
    return points(
        (0, uniform(rng, 0, 0.5)), (0.4, 0), (length - nose, 0), (length, drop),
        (length, height - uniform(rng, 0, 0.3)), (length - 0.2, height), (0, height),
    )  # fmt: skip


def _pistol(
    rng: Rng, length: float, height: float, grip: float, frame: Material, open_top: bool = False
) -> Body:
    """Return a pistol: a slide round the barrel, its spring and the chamber; frame, grip, guard."""
    width, slant, back = uniform(rng, 3.0, 4.6), uniform(rng, 0.08, 0.4), uniform(rng, 0.2, 1.0)
    steel = STEEL.times(uniform(rng, 0.55, 1))
    middle, long = height * 0.42, length * uniform(rng, 0.86, 1.02)
    outline = _slide(rng, length, height)
    parts = hollow(outline, uniform(rng, 0.84, 0.92), 1.15, steel, uniform(rng, 0.08, 0.28))
    if open_top:
        port = points(
            (length * 0.35, -0.1), (length * 0.85, -0.1), (length * 0.85, 0.6), (length * 0.35, 0.6)
        )
        parts.append(Part(Prism(port, 1.15), steel.times(-0.85)))
    parts.append(
        _barrel(length * 0.24, long, middle, uniform(rng, 0.62, 0.85), uniform(rng, 0.38, 0.5), steel)
    )
    parts.append(
        Part(
            Shell(Cylinder(0.95, 0.95, 1.2), Cylinder(0.5, 0.5, 1.2)),
            STEEL,
            (length * 0.3, middle, 0),
            ALONG_X,
        )
    )
    if rng.random() < 0.6:
        parts += _cartridges(rng, length * 0.28, middle, 0, 1, 1)
    parts.append(_spring(length * 0.42, length * 0.93, height * 0.85, 0.35, uniform(rng, 0.06, 0.12)))
    parts.append(_barrel(length * 0.42, length * 0.93, height * 0.85, 0.3, 0.18, STEEL))
    under = points(
        (0, height), (length * 0.95, height), (length * uniform(rng, 0.75, 0.95), height + 1.0),
        (length * 0.45, height + 1.2), (width, height + 1.2), (0, height + 1.0),
    )  # fmt: skip
    parts += hollow(under, 0.82, 1.1, frame, uniform(rng, 0.1, 0.3))
    parts += _handle(rng, (back, height + 0.6), grip, width, slant, frame)
    x, y = back + width, height + 1.0
    parts += [
        Part(_guard(rng, x - 0.2, y, uniform(rng, 2.8, 4.0), uniform(rng, 1.9, 2.7)), frame),
        _trigger(x + 0.9, y + 0.2),
        Part(Prism(points((0.1, 0), (0.5, -0.5), (0.9, 0)), 0.2), STEEL),
        Part(Prism(points((length - 1, 0), (length - 0.6, -0.5), (length - 0.4, 0)), 0.15), STEEL),
    ]
    if rng.random() < 0.6:  # a hammer
        parts.append(Part(Prism(points((-0.6, 0.2), (-0.2, -0.4), (0.3, 0.5), (0, 1.4)), 0.3), STEEL))
    pins = [(length * 0.5, y - 0.4), (x + 0.2, y - 0.3), (1.0, y - 0.2)]
    parts += [Part(Cylinder(0.2, 0.2, 1.1), STEEL, (*pin, 0.0)) for pin in pins]
    if rng.random() < 0.7:  # serrations
        lines = [
            np.array([(k * 0.35 + 0.5, 0.4, 1.1), (k * 0.35 + 0.4, height - 0.3, 1.1)]) for k in range(6)
        ]
        parts.append(Part(strands(lines, 0.07), STEEL))
    return centred(parts, length * 0.45, height + 1.5)


def service_pistol(rng: Rng) -> Body:
    """Return a service pistol of steel or alloy."""
    frame = pick(rng, STEEL.times(0.6), STEEL, ALUMINIUM.times(1.5))
    return _pistol(
        rng, uniform(rng, 14, 20), uniform(rng, 2.7, 3.8), uniform(rng, 9.5, 12), frame, rng.random() < 0.2
    )


def polymer_pistol(rng: Rng) -> Body:
    """Return a pistol whose frame is plastic."""
    frame = pick(rng, PVC, ORGANIC.times(1.3), PVC.times(1.5))
    return _pistol(rng, uniform(rng, 13, 19), uniform(rng, 2.6, 3.4), uniform(rng, 9, 11.5), frame)


def pocket_pistol(rng: Rng) -> Body:
    """Return a small flat pistol."""
    frame = pick(rng, STEEL.times(0.6), ALUMINIUM.times(1.5), ORGANIC.times(1.3))
    return _pistol(rng, uniform(rng, 9.5, 13), uniform(rng, 2.1, 3), uniform(rng, 6, 8), frame)


def compact_pistol(rng: Rng) -> Body:
    """Return a compact pistol, its slide cut open over the barrel."""
    frame = pick(rng, ALUMINIUM.times(1.5), STEEL.times(0.6), PVC)
    return _pistol(
        rng, uniform(rng, 11, 15), uniform(rng, 2.4, 3.2), uniform(rng, 7, 9), frame, open_top=True
    )


def _revolver(rng: Rng, barrel: float, thick: float, grip: float, opened: bool = False) -> Body:
    drum, steel = uniform(rng, 1.6, 2.2), STEEL.times(uniform(rng, 0.5, 0.9))
    chambers, half = int(rng.integers(5, 9)), uniform(rng, 1.7, 2.3)
    strap = uniform(rng, -1.5, -1.1)
    outline = points(
        (-1, strap), (4.6, strap), (5, -0.2), (5, 1.6), (3.5, 2.4), (-0.6, 2.4), (-2.2, 1.4), (-2.0, 0)
    )
    window = points((0, -0.8), (4.2, -0.8), (4.2, 1.7), (0, 1.7))
    handle = ribbon(
        curve(
            points(
                (-1.3, 0.6),
                (-2.5, 2.6),
                (-3.0 - uniform(rng, 0, 0.8), 4.8),
                (-3.2 - grip * 0.1, 3.0 + grip * 0.85),
            )
        ),
        np.interp(
            np.linspace(0, 1, 19),
            [0, 0.5, 0.85, 1],
            [1.1, uniform(rng, 1.1, 1.6), uniform(rng, 1.4, 2.1), 1.5],
        ),
    )
    bore = uniform(rng, 0.4, 0.6) * thick
    centre = (2.1, 0.5 + (uniform(rng, 2.2, 3.4) if opened else 0.0), 0.0)
    axis = (turn(2, uniform(rng, -0.2, 0.2)) if opened else turn(2, 0.0)) @ ALONG_X
    parts = [
        Part(Prism(outline, 0.8, (window,)), steel),
        Part(Cylinder(drum, drum, half), steel, centre, axis),
        _barrel(4.8, 5 + barrel, -0.4, thick, bore, steel),
        Part(Prism(points((5, -1.4), (5 + barrel, -1.4), (5 + barrel, -1), (5, -0.9)), 0.25), steel),
        Part(Prism(points((4.2 + barrel, -1.3), (4.9 + barrel, -2.0), (5 + barrel, -1.3)), 0.15), STEEL),
        _barrel(5, 5 + barrel * uniform(rng, 0.4, 0.9), 0.6, 0.3, 0.12, STEEL),  # the ejector's rod
        *hollow(handle, 0.78, 0.5, STEEL, 0.05),
        Part(
            Prism(handle, uniform(rng, 0.7, 1.2)),
            pick(rng, ORGANIC.times(1.3), ORGANIC, PVC.times(0.8), SOFT),
        ),
        Part(_guard(rng, 0.2, 2.2, uniform(rng, 3, 3.8), uniform(rng, 2.0, 2.6)), steel),
        _trigger(1.5, 2.2),
        Part(Prism(points((-1.4, -0.6), (-2.8, -1.9), (-2.2, -2.1), (-0.8, -1.0)), 0.3), STEEL),
        Part(Cylinder(0.3, 0.3, 1.0), STEEL, (-0.6, 1.6, 0.0)),
    ]
    loaded, spin = rng.random() < 0.6, uniform(rng, 0, 1)
    for k in range(chambers):
        angle = (k + spin) * 2 * np.pi / chambers
        y, z = drum * 0.64 * np.sin(angle), drum * 0.64 * np.cos(angle)
        at = (centre[0], centre[1] + y, z)
        parts.append(Part(Cylinder(0.48, 0.48, half), steel.times(-1), at, axis))
        if loaded:
            parts.append(Part(Cylinder(0.45, 0.45, half * 0.7), COPPER.times(0.3), at, axis))
    if opened:
        parts.append(
            Part(Tube(np.array([(4.4, 1.4, 0), (4.4, centre[1], 0), (2, centre[1], 0.0)]), 0.35), steel)
        )
    return centred(parts, barrel * 0.3 + 1, 1.8)


SOFT = ORGANIC.times(0.9)  # a rubber grip


def long_revolver(rng: Rng) -> Body:
    """Return a long revolver."""
    return _revolver(rng, uniform(rng, 5, 15), uniform(rng, 0.8, 1.3), uniform(rng, 7, 9))


def open_revolver(rng: Rng) -> Body:
    """Return a revolver with its cylinder swung out."""
    return _revolver(rng, uniform(rng, 4, 12), uniform(rng, 0.8, 1.2), uniform(rng, 6, 9), opened=True)


def snub_revolver(rng: Rng) -> Body:
    """Return a snub revolver."""
    return _revolver(rng, uniform(rng, 2, 4), uniform(rng, 0.8, 1.1), uniform(rng, 5, 7), rng.random() < 0.2)


def toggle_pistol(rng: Rng) -> Body:
    """Return a thin bare barrel before a slanted grip."""
    barrel, grip, slant = uniform(rng, 4, 11), uniform(rng, 9, 12), uniform(rng, 0.3, 0.55)
    steel = STEEL.times(uniform(rng, 0.55, 0.9))
    body = points((-6, 0), (3, -0.3), (4, 0.3), (4, 2.3), (1.5, 2.9), (-6, 1.9))
    parts = [
        _barrel(0.5, 3.5 + barrel, 0.9, uniform(rng, 0.6, 0.9), 0.4, steel),
        *hollow(body, 0.86, 1.1, steel, uniform(rng, 0.1, 0.25)),
        *_handle(rng, (-5.4, 1.7), grip, uniform(rng, 3.2, 3.8), slant, pick(rng, steel, ALUMINIUM)),
        Part(_guard(rng, -2.2, 2.4, 3.4, uniform(rng, 2, 2.5)), steel),
        _trigger(-0.8, 2.5),
        Part(Shell(Cylinder(0.8, 0.8, 0.9), Cylinder(0.4, 0.4, 0.9)), STEEL, (-4.5, 0.3, 0)),
        Part(Shell(Cylinder(0.6, 0.6, 0.7), Cylinder(0.25, 0.25, 0.7)), STEEL, (-2.2, 0.2, 0)),
        Part(Prism(points((2.6 + barrel, 0.2), (3.2 + barrel, -0.7), (3.5 + barrel, 0.2)), 0.2), STEEL),
        *_cartridges(rng, 0.2, 0.9, 0, 1, 1),
    ]
    return centred(parts, barrel * 0.35, 3.0)


def machine_pistol(rng: Rng) -> Body:
    """Return a square receiver with the magazine ahead of the grip, a spring and a bolt inside."""
    length, steel = uniform(rng, 17, 23), STEEL.times(uniform(rng, 0.5, 0.8))
    magazine = points(
        (length * 0.52, 3), (length * 0.66, 3), (length * 0.66 + 0.8, 11), (length * 0.52 + 0.6, 11)
    )
    case = Shell(Box((length / 2, 1.5, 1.2)), Box((length / 2 - 0.2, 1.3, 1.1)))
    parts = [
        Part(case, steel, (length / 2, 1.6, 0)),
        Part(Box((2.2, 1.0, 0.8)), STEEL.times(0.6), (length * 0.45, 1.4, 0)),
        _barrel(length * 0.6, length + 5, 1.2, 0.6, 0.4, STEEL),
        _spring(1.0, length * 0.35, 1.2, 0.5, 0.1),
        *_handle(rng, (1.5, 2.9), uniform(rng, 7, 9), 3.2, 0.15, pick(rng, PVC, STEEL.times(0.4))),
        *hollow(magazine, 0.85, 0.8, STEEL, 0.1),
        *_cartridges(rng, length * 0.58, 3.6, -0.08, 0.95, int(rng.integers(2, 8))),
        Part(_guard(rng, 4.6, 3.0, 3.4, 2.2), steel),
        _trigger(6.0, 3.1),
    ]
    return centred(parts, length * 0.5, 4)


def target_pistol(rng: Rng) -> Body:
    """Return a target pistol: a long bare barrel on a low frame, a bulky wooden grip with a rest."""
    barrel, grip = uniform(rng, 14, 20), uniform(rng, 8, 10)
    wood = _grip(rng, -1.0, 1.2, grip, uniform(rng, 4, 5), uniform(rng, 0.1, 0.3))
    receiver = points((-1.5, -0.3), (6, -0.3), (6.5, 1.6), (3, 2.4), (-1.5, 1.8))
    steel = STEEL.times(uniform(rng, 0.6, 1))
    parts = [
        _barrel(3, barrel, 0, uniform(rng, 0.6, 0.8), 0.3, steel),
        *hollow(receiver, 0.8, 1.1, steel, 0.25),
        Part(Prism(wood, 1.7), ORGANIC.times(1.2)),
        *hollow(inset(wood, 0.45), 0.85, 0.6, STEEL, 0.08),
        *_cartridges(rng, 0.5, 2.2, 0.2, 0.7, int(rng.integers(0, 6))),
        Part(_guard(rng, 2.6, 1.9, 3.2, 2.0), steel),
        _trigger(3.8, 2.0),
        Part(Box((0.4, 0.5, 0.5)), STEEL, (-0.8, -0.9, 0)),
        Part(Prism(points((barrel - 1, -0.5), (barrel - 0.4, -1.3), (barrel - 0.2, -0.5)), 0.15), STEEL),
    ]
    return centred(parts, barrel * 0.4, 2.5)
