"""Pliers: two levers on a pivot at the origin, jaws towards x. Sizes in cm."""

import numpy as np

from .beam import ORGANIC, PVC, STEEL, Material
from .bodies import Body, Part
from .outlines import curve, ribbon
from .shapes import Rng, points, spun, uniform
from .solids import Cylinder, Prism


def _levers(
    jaw: np.ndarray, handle: np.ndarray, half: np.ndarray, angle: float, deep: float, coat: Material | None
) -> Body:
    """Return two mirrored levers crossing at a pivot; each is jaw + handle, opened by an angle."""
    parts: list[Part] = [Part(Cylinder(0.55, 0.55, deep * 1.5), STEEL)]
    for side in (1, -1):
        mirror = np.array([1.0, side])
        parts.append(Part(Prism(spun(jaw, angle / 2) * mirror, deep), STEEL.times(0.9)))
        arm = spun(ribbon(handle, half), angle / 2) * mirror
        parts.append(Part(Prism(arm, deep * 0.75), STEEL.times(0.8)))
        if coat is not None:
            cut = len(handle) // 3
            sleeve = spun(ribbon(handle[cut:], half[cut:] * 1.5), angle / 2) * mirror
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
    half = np.interp(np.linspace(0, 1, len(handle)), [0, 0.2, 0.5, 1], [0.62, 0.53, 0.36, 0.34])
    coat = (None, PVC, PVC.times(1.4), ORGANIC)[rng.integers(4)]
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
