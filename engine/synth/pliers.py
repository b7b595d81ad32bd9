"""Pliers: two levers on a pivot at the origin, jaws towards x. Sizes in cm."""

import numpy as np

from .beam import ORGANIC, PVC, STEEL, Material
from .bodies import Body, Part
from .outlines import curve, ribbon
from .shapes import ALONG_X, Rng, pick, points, spun, uniform
from .solids import Cylinder, Prism
from .tubes import Tube


def _levers(
    jaw: np.ndarray, handle: np.ndarray, half: np.ndarray, angle: float, deep: float, coat: Material | None
) -> Body:
    """Return two mirrored levers crossing at a pivot; each is jaw + handle, opened by an angle."""
    pivot, sleeve_from = 0.35 + deep * 0.5, len(handle) // 3
    parts: list[Part] = [Part(Cylinder(pivot, pivot, deep * 1.5), STEEL)]
    for side in (1, -1):
        mirror = np.array([1.0, side])
        parts.append(Part(Prism(spun(jaw, angle / 2) * mirror, deep), STEEL.times(0.9)))
        arm = spun(ribbon(handle, half), angle / 2) * mirror
        parts.append(Part(Prism(arm, deep * 0.75), STEEL.times(0.8)))
        if coat is not None:
            cut = sleeve_from
            sleeve = spun(ribbon(handle[cut:], half[cut:] * 1.6), angle / 2) * mirror
            parts.append(Part(Prism(sleeve, deep * 1.3), coat))
    return tuple(parts)


def _plier(rng: Rng, jaw: np.ndarray, reach: float, spread: float, deep: float, opening: float) -> Body:
    """Return pliers: the jaw ahead of the pivot (x > 0), handles behind, bowed out by `spread`."""
    handle = curve(
        points(
            (0.6, 0.5),
            (-0.8, -0.7),
            (-reach * 0.35, -spread),
            (-reach * 0.7, -spread * 0.95),
            (-reach, -spread * uniform(rng, 0.5, 1.0)),
        )
    )
    end = uniform(rng, 0.25, 0.5)
    half = np.interp(
        np.linspace(0, 1, len(handle)), [0, 0.2, 0.5, 1], [0.62, 0.53, uniform(rng, 0.3, 0.45), end]
    )
    coat = pick(rng, None, None, PVC, PVC.times(1.4), ORGANIC, ORGANIC.times(1.4))
    scale = uniform(rng, 0.85, 1.15)
    return _levers(jaw * scale, handle * scale, half * scale, opening, deep, coat)


def _gape(rng: Rng) -> float:
    """Return how far pliers stand open, in radians: mostly closed."""
    return 0.75 * float(rng.random()) ** 1.7


def combination_pliers(rng: Rng) -> Body:
    """Return combination pliers."""
    reach = uniform(rng, 3.2, 4.8)
    jaw = points(
        (-0.8, -0.6), (-0.5, 0.9), (0.8, 1.15), (reach * 0.6, 0.95), (reach, 0.6), (reach, 0.04), (0.5, 0.04)
    )
    return _plier(rng, jaw, uniform(rng, 10, 14), uniform(rng, 0.8, 1.7), uniform(rng, 0.4, 0.6), _gape(rng))


def needle_pliers(rng: Rng) -> Body:
    """Return needle pliers."""
    reach = uniform(rng, 5, 8)
    jaw = points(
        (-0.8, -0.6), (-0.5, 0.85), (0.8, 0.95), (reach * 0.45, 0.6), (reach, 0.2), (reach, 0.03), (0.5, 0.03)
    )
    return _plier(rng, jaw, uniform(rng, 9, 12.5), uniform(rng, 0.8, 1.7), uniform(rng, 0.3, 0.5), _gape(rng))


def cutting_pliers(rng: Rng) -> Body:
    """Return cutting pliers."""
    reach = uniform(rng, 2.0, 3.0)
    jaw = points(
        (-0.8, -0.6), (-0.6, 0.9), (0.4, 1.25), (reach * 0.7, 0.95), (reach, 0.2), (reach, 0.03), (0.4, 0.1)
    )
    return _plier(rng, jaw, uniform(rng, 8, 11), uniform(rng, 0.9, 1.7), uniform(rng, 0.35, 0.55), _gape(rng))


def pump_pliers(rng: Rng) -> Body:
    """Return water pump pliers: jaws set at an angle to long handles."""
    body = combination_pliers(rng)
    neck = Prism(ribbon(points((-0.5, 0), (2.0, -0.8), (3.5, -2.2)), np.array([1.0, 1.1, 0.6])), 0.5)
    return (*body, Part(neck, STEEL.times(0.9), (2.0, 0, 0)))


def pincers(rng: Rng) -> Body:
    """Return end cutters: jaws that curve round and meet ahead."""
    jaw = ribbon(
        curve(points((-0.4, 0.1), (0.6, 1.2), (2.0, 1.5), (3.0, 0.9), (3.3, 0.08))),
        np.interp(np.linspace(0, 1, 25), [0, 0.4, 1], [0.7, 0.45, 0.15]),
    )
    return _plier(rng, jaw, uniform(rng, 9, 14), uniform(rng, 1.0, 1.8), 0.5, _gape(rng))


def flat_pliers(rng: Rng) -> Body:
    """Return flat pliers."""
    reach = uniform(rng, 3.5, 5.5)
    jaw = points((-0.8, -0.6), (-0.4, 0.7), (0.6, 0.75), (1.2, 0.6), (reach, 0.5), (reach, 0.02), (0.5, 0.02))
    return _plier(rng, jaw, uniform(rng, 9, 13), uniform(rng, 0.8, 1.5), uniform(rng, 0.3, 0.45), _gape(rng))


def locking_pliers(rng: Rng) -> Body:
    """Return locking pliers: one hollow fixed handle with a screw and a spring, one lever on links."""
    reach, angle = uniform(rng, 2.5, 4), _gape(rng) * 0.5 + 0.1
    jaw = points(
        (-0.8, -0.6), (-0.5, 0.9), (0.8, 1.1), (reach * 0.6, 0.9), (reach, 0.5), (reach, 0.04), (0.5, 0.04)
    )
    long = uniform(rng, 10, 14)
    fixed = ribbon(curve(points((0.5, 0.8), (-2, 1.4), (-long * 0.6, 1.3), (-long, 0.9))), np.full(19, 0.6))
    lever = ribbon(
        curve(points((0.3, -0.6), (-2, -1.6), (-long * 0.6, -1.9), (-long * 0.95, -1.6))), np.full(19, 0.45)
    )
    spring = np.stack([np.linspace(-long * 0.7, -2, 15), 0.8 + 0.3 * np.resize((1, -1), 15), np.zeros(15)], 1)
    return (
        Part(Prism(jaw, 0.5), STEEL.times(0.9)),
        Part(Prism(spun(jaw * (1, -1), -angle), 0.45), STEEL.times(0.9)),
        Part(Prism(fixed, 0.7, (fixed * (0.96, 1) * 0.92 + (-0.3, 0.08),)), STEEL.times(0.5)),
        Part(Prism(fixed, 0.15), STEEL),
        Part(Prism(spun(lever, angle * 0.5), 0.5), STEEL.times(0.4)),
        Part(Prism(spun(lever, angle * 0.5), 0.12), STEEL),
        Part(Tube(spring, 0.1), STEEL),
        Part(Cylinder(0.6, 0.6, 0.7), STEEL, (-long - 0.6, 0.9, 0), ALONG_X),
        Part(Cylinder(0.4, 0.4, 0.8), STEEL),
    )


def wire_strippers(rng: Rng) -> Body:
    """Return flat strippers: thin plates with notches, sleeves, an opening spring."""
    reach = uniform(rng, 4, 7)
    jaw = points(
        (-0.8, -0.5), (-0.5, 1.0), (0.8, 1.1), (reach, 0.7), (reach, 0.05), (reach * 0.8, 0.05),
        (reach * 0.75, 0.35), (reach * 0.7, 0.05), (reach * 0.5, 0.05), (reach * 0.45, 0.3),
        (reach * 0.4, 0.05),
    )  # fmt: skip
    return _plier(
        rng, jaw, uniform(rng, 9, 12), uniform(rng, 1.2, 2.0), uniform(rng, 0.16, 0.28), 0.1 + _gape(rng)
    )


def joint_pliers(rng: Rng) -> Body:
    """Return slip-joint pliers: curved jaws with a gap behind their tips."""
    reach = uniform(rng, 3, 4.5)
    jaw = points(
        (-0.8, -0.6), (-0.6, 1.0), (0.6, 1.3), (reach * 0.7, 1.0), (reach, 0.5), (reach, 0.03),
        (reach * 0.6, 0.05), (reach * 0.4, 0.5), (reach * 0.15, 0.05),
    )  # fmt: skip
    return _plier(rng, jaw, uniform(rng, 10, 13), uniform(rng, 1.0, 1.7), uniform(rng, 0.4, 0.6), _gape(rng))


def bolt_cutter(rng: Rng) -> Body:
    """Return a small bolt cutter: short beaked jaws before a toggle, long straight arms."""
    reach = uniform(rng, 1.8, 2.6)
    jaw = points((-1.4, -0.5), (-1.0, 0.9), (0.4, 1.2), (reach, 0.5), (reach * 1.1, 0.03), (0.3, 0.03))
    return _plier(rng, jaw, uniform(rng, 13, 18), uniform(rng, 1.0, 1.6), uniform(rng, 0.45, 0.6), _gape(rng))
