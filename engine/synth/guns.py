"""Guns, in several families each for the train and the test pool. Sizes in cm, the barrel along x."""

import numpy as np

from .beam import ALUMINIUM, ORGANIC, PVC, STEEL, Material
from .bodies import Body, Part
from .outlines import curve, ribbon
from .shapes import ALONG_X, Rng, arc, centred, points, uniform
from .solids import Box, Cylinder, Prism


def _grip(x: float, y: float, length: float, width: float, slant: float) -> np.ndarray:
    """Return a pistol grip that hangs from (x, y), y down."""
    foot = x - slant * length
    return points(
        (x, y),
        (x + width, y),
        (foot + width * 1.05 + slant, y + length * 0.55),
        (foot + width, y + length),
        (foot - 0.1, y + length),
        (foot + slant * 0.8, y + length * 0.5),
        (x - 0.45, y + 0.5),
    )


def _guard(x: float, y: float, width: float, drop: float) -> Prism:
    outer = np.concatenate([points((x, y)), arc(x + width / 2, y, width / 2, np.pi, 0) * 1.0])
    outer[:, 1] = y + (y - outer[:, 1]) * -(2 * drop / width)
    outer = np.concatenate(
        [
            points((x, y), (x, y + drop * 0.6)),
            curve(
                points(
                    (x, y + drop * 0.6),
                    (x + width * 0.3, y + drop),
                    (x + width * 0.8, y + drop * 0.9),
                    (x + width, y),
                )
            ),
        ]
    )
    middle = outer.mean(0) - np.array((0, 0.1))
    return Prism(outer, 0.35, (middle + (outer - middle) * 0.72,))


def _pistol(rng: Rng, length: float, height: float, grip: float, steel: Material, frame: Material) -> Body:
    width = uniform(rng, 3.4, 4.6)
    slant = uniform(rng, 0.12, 0.38)
    back = uniform(rng, 0.3, 0.9)
    slide = points((0, 0.2), (0.3, 0), (length - 0.4, 0), (length, 0.4), (length, height), (0, height))
    under = points(
        (0, height), (length * 0.93, height), (length * 0.9, height + 1.0), (length * 0.45, height + 1.3),
        (width, height + 1.2), (0, height + 1.0),
    )  # fmt: skip
    parts = [
        Part(Prism(slide, 1.15), steel.times(0.42)),
        Part(
            Cylinder(0.75, 0.75, length * 0.42), steel.times(0.8), (length * 0.55, height * 0.45, 0), ALONG_X
        ),
        Part(Prism(under, 0.8), frame),
        Part(Prism(_grip(back, height + 0.6, grip, width, slant), 1.0), frame),
        Part(Prism(_grip(back + 0.5, height + 0.8, grip * 0.94, width - 1.1, slant), 0.6), steel.times(0.35)),
        Part(_guard(back + width - 0.2, height + 1.0, uniform(rng, 2.8, 3.8), uniform(rng, 2.0, 2.7)), frame),
        Part(
            Prism(
                ribbon(
                    curve(
                        points(
                            (back + width + 1, height + 1.2),
                            (back + width + 1.5, height + 2),
                            (back + width + 1.2, height + 2.8),
                        )
                    ),
                    np.full(13, 0.25),
                ),
                0.3,
            ),
            STEEL,
        ),
        Part(Prism(points((0.1, 0), (0.5, -0.5), (0.9, 0)), 0.2), STEEL),
        Part(Prism(points((-0.6, 0.2), (-0.2, -0.4), (0.3, 0.5), (0, 1.4)), 0.3), STEEL),
        Part(Cylinder(0.4, 0.4, length * 0.3), STEEL.times(0.6), (length * 0.6, height + 0.4, 0), ALONG_X),
    ]
    return centred(parts, length * 0.45, height + 1.5)


def service_pistol(rng: Rng) -> Body:
    """Return a service pistol."""
    frame = STEEL.times(0.3) if rng.random() < 0.6 else PVC
    return _pistol(rng, uniform(rng, 10.5, 14.5), uniform(rng, 2.9, 4.0), uniform(rng, 9.5, 12), STEEL, frame)


def compact_pistol(rng: Rng) -> Body:
    """Return a compact pistol."""
    frame = ALUMINIUM if rng.random() < 0.5 else STEEL.times(0.25)
    return _pistol(rng, uniform(rng, 10.5, 14), uniform(rng, 2.4, 3.2), uniform(rng, 7, 9), STEEL, frame)


def _revolver(rng: Rng, barrel: float, thick: float, grip: float) -> Body:
    drum = uniform(rng, 1.7, 2.1)
    frame = points(
        (-1, -1.2), (4.6, -1.2), (5, -0.2), (5, 1.6), (3.5, 2.3), (-0.6, 2.3), (-2.2, 1.4), (-2.0, 0)
    )
    handle = ribbon(
        curve(points((-1.3, 0.6), (-2.5, 2.6), (-3.0, 4.8), (-3.2 - grip * 0.1, 3.0 + grip * 0.85))),
        np.interp(np.linspace(0, 1, 19), [0, 0.5, 0.85, 1], [1.1, 1.4, 1.9, 1.6]),
    )
    parts = [
        Part(Prism(frame, 0.75, (points((0, -0.7), (4, -0.7), (4, 1.6), (0, 1.6)),)), STEEL.times(0.8)),
        Part(Cylinder(drum, drum, 2.0), STEEL.times(0.5), (2.0, 0.5, 0), ALONG_X),
        Part(Cylinder(thick, thick, barrel / 2), STEEL.times(0.7), (5 + barrel / 2, -0.4, 0), ALONG_X),
        Part(Prism(points((5, -1.2), (5 + barrel, -1.2), (5 + barrel, -0.8), (5, -0.6)), 0.25), STEEL),
        Part(Prism(points((4.2 + barrel, -1.2), (4.9 + barrel, -1.9), (5 + barrel, -1.2)), 0.15), STEEL),
        Part(Prism(handle, 0.9), ORGANIC.times(1.3)),
        Part(Prism(ribbon(curve(points((-1.3, 0.8), (-2.4, 2.8), (-3.2, 6))), np.full(13, 0.6)), 0.4), STEEL),
        Part(_guard(0.2, 2.1, 3.4, 2.3), STEEL.times(0.8)),
        Part(Prism(points((-1.4, -0.6), (-2.8, -1.9), (-2.2, -2.0), (-0.8, -1.0)), 0.3), STEEL),
        Part(Prism(points((1.7, 2.2), (2.1, 3.6), (1.8, 3.7), (1.3, 2.2)), 0.25), STEEL),
    ]
    for k in range(6):
        y, z = drum * 0.62 * np.sin(k * np.pi / 3), drum * 0.62 * np.cos(k * np.pi / 3)
        parts.append(Part(Cylinder(0.45, 0.45, 1.7), STEEL.times(-0.35), (2.0, 0.5 + y, z), ALONG_X))
    return centred(parts, barrel * 0.3 + 1, 1.8)


def long_revolver(rng: Rng) -> Body:
    """Return a long revolver."""
    return _revolver(rng, uniform(rng, 4.5, 13), uniform(rng, 0.9, 1.4), uniform(rng, 7, 9))


def snub_revolver(rng: Rng) -> Body:
    """Return a snub revolver."""
    return _revolver(rng, uniform(rng, 2, 4), uniform(rng, 0.8, 1.1), uniform(rng, 5, 7))


def toggle_pistol(rng: Rng) -> Body:
    """Return a thin bare barrel before a slanted grip."""
    barrel, grip = uniform(rng, 2, 9), uniform(rng, 9.5, 12)
    body = points((-6, 0), (3, -0.3), (4, 0.3), (4, 2.3), (1.5, 2.9), (-6, 1.9))
    parts = [
        Part(Cylinder(0.9, 0.9, barrel / 2), STEEL.times(0.6), (3.5 + barrel / 2, 0.9, 0), ALONG_X),
        Part(Prism(body, 0.95), STEEL.times(0.45)),
        Part(Prism(_grip(-5.4, 1.7, grip, 3.6, 0.35), 1.0), STEEL.times(0.25)),
        Part(Prism(_grip(-4.9, 1.9, grip * 0.92, 2.2, 0.35), 0.6), STEEL.times(0.4)),
        Part(_guard(-2.2, 2.4, 3.4, 2.3), STEEL.times(0.6)),
        Part(Cylinder(0.8, 0.8, 0.7), STEEL, (-4.5, 0.3, 0)),
        Part(Prism(points((2.6 + barrel, 0.2), (3.2 + barrel, -0.7), (3.5 + barrel, 0.2)), 0.2), STEEL),
    ]
    return centred(parts, barrel * 0.35, 3.0)


def machine_pistol(rng: Rng) -> Body:
    """Return a square receiver with the magazine ahead of the grip."""
    length = uniform(rng, 17, 23)
    magazine = points(
        (length * 0.52, 3), (length * 0.66, 3), (length * 0.66 + 0.8, 11), (length * 0.52 + 0.6, 11)
    )
    parts = [
        Part(Box((length / 2, 1.5, 1.2)), STEEL.times(0.3), (length / 2, 1.6, 0)),
        Part(Cylinder(0.6, 0.6, 3), STEEL, (length + 2, 1.2, 0), ALONG_X),
        Part(Prism(_grip(1.5, 2.9, uniform(rng, 7, 9), 3.2, 0.15), 1.1), STEEL.times(0.15)),
        Part(Prism(magazine, 0.7), STEEL.times(0.4)),
        Part(_guard(4.6, 3.0, 3.4, 2.2), STEEL.times(0.6)),
        Part(Cylinder(0.5, 0.5, length * 0.35), STEEL.times(0.6), (length * 0.5, 1.4, 0), ALONG_X),
    ]
    return centred(parts, length * 0.5, 4)
