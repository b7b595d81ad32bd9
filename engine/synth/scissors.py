"""Scissors: two blades on a pivot, finger loops behind. Sizes in cm."""

import numpy as np

from .beam import ALUMINIUM, ORGANIC, PVC, STEEL
from .bodies import Body, Part
from .outlines import curve, ribbon
from .shapes import Rng, arc, centred, pick, points, space, spun, uniform
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
            parts.append(
                Part(
                    Tube(space(ring), uniform(rng, 0.4, 0.55)),
                    pick(rng, PVC, ORGANIC).times(uniform(rng, 0.8, 1.6)),
                )
            )
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


def kitchen_scissors(rng: Rng) -> Body:
    """Return kitchen scissors: broad blades, bows of unlike size, a toothed opening between the shanks."""
    body = _shear(
        rng,
        uniform(rng, 8, 11),
        uniform(rng, 3, 4.5),
        (uniform(rng, 2, 3), uniform(rng, 1.3, 1.7)),
        _opening(rng),
        True,
    )
    teeth = np.stack([np.linspace(-3, -1, 9), 0.5 + 0.25 * np.resize((1, -1), 9), np.zeros(9)], 1)
    metal = [Part(Tube(teeth * (1, side, 1), 0.15), STEEL) for side in (1, -1)]
    return (*body, *metal)


def thread_snips(rng: Rng) -> Body:
    """Return snips: two short blades on one bow of spring steel."""
    blade, width, opening = uniform(rng, 3, 5), uniform(rng, 0.5, 0.9), uniform(rng, 0.1, 0.35)
    long, bend = uniform(rng, 6, 8), uniform(rng, 1.2, 1.8)
    bow = curve(
        points(
            (0, 0.4),
            (-long * 0.5, bend),
            (-long * 0.9, bend * 0.8),
            (-long, 0),
            (-long * 0.9, -bend * 0.8),
            (-long * 0.5, -bend),
            (0, -0.4),
        )
    )
    parts = [Part(Prism(ribbon(bow, np.full(len(bow), uniform(rng, 0.15, 0.3))), 0.4), STEEL.times(0.8))]
    edge = points((-0.5, -width * 0.4), (blade, 0), (-0.5, width * 0.6))
    parts += [
        Part(Prism(spun(edge, side * opening / 2) * (1, side) + (0, 0.3 * side), 0.1), STEEL)
        for side in (1, -1)
    ]
    return centred(parts, -long * 0.3)


def pruning_shears(rng: Rng) -> Body:
    """Return secateurs: a curved blade against a hook, a spring between thick sleeved handles."""
    blade, long, opening = uniform(rng, 4.5, 6), uniform(rng, 10, 13), uniform(rng, 0.15, 0.6)
    cut = points((-0.8, -0.5), (-0.5, 0.9), (blade * 0.5, 1.0), (blade, 0.1), (0.4, -0.1))
    hook = ribbon(
        curve(points((-0.6, 0.2), (1.5, 0.9), (blade * 0.8, 0.5), (blade, -0.2))), np.linspace(0.7, 0.3, 19)
    )
    parts = [
        Part(Prism(spun(cut, opening / 2), 0.15), STEEL),
        Part(Prism(spun(hook, opening / 2) * (1, -1), 0.3), STEEL.times(0.8)),
    ]
    for side in (1, -1):
        arm = curve(points((-0.4, 0.2), (-3, 1.3), (-long * 0.7, 1.5), (-long, 1.0)))
        place = spun(ribbon(arm, np.full(len(arm), 0.55)), -opening / 2) * (1, side)
        parts += [
            Part(Prism(place, 0.3), STEEL.times(0.7)),
            Part(Prism(place, 0.9), pick(rng, PVC, ORGANIC, ALUMINIUM)),
        ]
    coil = np.stack(
        [
            0.4 * np.cos(np.linspace(0, 40, 50)) - 3,
            np.linspace(-1, 1, 50),
            0.4 * np.sin(np.linspace(0, 40, 50)),
        ],
        1,
    )
    parts += [Part(Tube(coil, 0.1), STEEL), Part(Cylinder(0.6, 0.6, 0.8), STEEL)]
    return centred(parts, -long * 0.25)
