"""Scissors: two blades on a pivot, finger loops behind. Sizes in cm."""

import numpy as np

from .beam import PVC, STEEL
from .bodies import Body, Part
from .outlines import curve, ribbon
from .shapes import Rng, arc, centred, points, space, spun, uniform
from .solids import Cylinder, Prism
from .tubes import Tube


def _shear(
    rng: Rng, blade: float, shank: float, bow: tuple[float, float], opening: float, plastic: bool
) -> Body:
    """Return scissors: blades ahead of the pivot, shanks and finger loops behind."""
    width, bow = blade * uniform(rng, 0.11, 0.17), (bow[0] * 1.1, bow[1] * 1.15)
    edge = points(
        (-1.0, -width * 0.8),
        (0.3, -width),
        (blade * 0.5, -width * 0.75),
        (blade, 0),
        (0, 0.15 * width),
        (-1.0, 0.3),
    )
    loop = arc(0, 0, 1, 0, 2 * np.pi, 26) * bow
    parts: list[Part] = [Part(Cylinder(0.35, 0.35, 0.25), STEEL)]
    for side in (1, -1):
        mirror = np.array([1.0, side])
        turned = spun(edge, opening / 2) * mirror
        parts.append(Part(Prism(turned, 0.09), STEEL, (0, 0, 0.1 * side)))
        spread = bow[1] * uniform(rng, 0.9, 1.15)
        hub = points((-shank - bow[0], spread))
        arm = ribbon(
            curve(points((-0.6, 0), (-shank * 0.6, spread * 0.35), (-shank - 0.2, spread * 0.75))),
            np.full(13, width * 0.45),
        )
        place = spun(arm, -opening / 2) * mirror
        ring = (spun(loop + hub, -opening / 2)) * mirror
        parts.append(
            Part(Prism(place, 0.12 if not plastic else 0.2), STEEL if not plastic else STEEL.times(0.6))
        )
        if plastic:
            parts.append(Part(Tube(space(ring), uniform(rng, 0.4, 0.55)), PVC.times(uniform(rng, 0.8, 1.6))))
        else:
            parts.append(Part(Tube(space(ring), uniform(rng, 0.2, 0.32)), STEEL.times(0.8)))
    return centred(parts, (blade - shank) / 2 - bow[0])


def office_scissors(rng: Rng) -> Body:
    """Return office scissors."""
    bow = (uniform(rng, 1.6, 2.5), uniform(rng, 1.2, 1.7))
    return _shear(rng, uniform(rng, 7.5, 13), uniform(rng, 1.5, 3.5), bow, _opening(rng), plastic=True)


def _opening(rng: Rng) -> float:
    return 0.02 if rng.random() < 0.65 else float(rng.uniform(0.05, 0.7))


def tailor_scissors(rng: Rng) -> Body:
    """Return tailor scissors."""
    bow = (uniform(rng, 2.2, 3.4), uniform(rng, 1.3, 1.8))
    return _shear(rng, uniform(rng, 9, 14), uniform(rng, 2, 3.5), bow, _opening(rng), plastic=False)


def nail_scissors(rng: Rng) -> Body:
    """Return nail scissors."""
    bow = (uniform(rng, 1.1, 1.5), uniform(rng, 1.0, 1.3))
    return _shear(rng, uniform(rng, 3.5, 6), uniform(rng, 2.5, 4.5), bow, _opening(rng), plastic=False)


def surgical_scissors(rng: Rng) -> Body:
    """Return surgical scissors."""
    bow = (uniform(rng, 1.3, 1.8), uniform(rng, 1.0, 1.3))
    return _shear(rng, uniform(rng, 4, 7), uniform(rng, 5, 8), bow, _opening(rng), plastic=False)


def craft_scissors(rng: Rng) -> Body:
    """Return craft scissors."""
    bow = (uniform(rng, 1.7, 2.2), uniform(rng, 1.5, 2.0))
    return _shear(rng, uniform(rng, 5, 7.5), uniform(rng, 1.2, 2.0), bow, _opening(rng), plastic=True)


def shop_scissors(rng: Rng) -> Body:
    """Return shop scissors."""
    bow = (uniform(rng, 2.6, 3.6), uniform(rng, 1.2, 1.6))
    return _shear(
        rng, uniform(rng, 6, 10), uniform(rng, 3, 4), bow, _opening(rng), plastic=bool(rng.random() < 0.5)
    )
