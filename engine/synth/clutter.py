"""What benign bags hold, in pools: everyday things, and each threat class's look-alikes."""

import numpy as np

from . import everyday, lookalikes
from .bodies import Body
from .shapes import Family, Rng

EVERYDAY: dict[str, tuple[tuple[float, Family], ...]] = {  # families with their weights
    "train": (
        (3, everyday.bottle),
        (3, everyday.clothes),
        (2, everyday.cable),
        (2, everyday.box),
        (2, everyday.electronics),
        (2, everyday.food),
        (1.5, everyday.book),
        (1, everyday.phone),
        (1, everyday.charger),
        (1.2, everyday.shoe),
        (0.8, everyday.umbrella),
        (1, everyday.keys),
        (1, everyday.coins),
        (0.7, everyday.spray),
        (0.8, everyday.toiletries),
        (0.6, everyday.laptop),
        (0.6, everyday.weights),
        (0.6, everyday.belt),
        (0.6, everyday.glasses),
        (0.6, everyday.spring),
        (0.6, everyday.batteries),
        (1.0, everyday.computer),
        (0.5, everyday.wires),
    ),
    "test": (
        (0.7, everyday.flask),
        (1.5, everyday.garments),
        (2, everyday.towel),
        (0.8, everyday.coil),
        (3, everyday.carton),
        (2, everyday.radio),
        (2, everyday.snacks),
        (1.5, everyday.folder),
        (1.2, everyday.sandal),
        (1.2, everyday.can),
        (1.2, everyday.jars),
        (1, everyday.toy),
        (1, everyday.powerbank),
        (1, everyday.cup),
        (1, everyday.tin),
        (0.6, everyday.padlock),
        (0.8, everyday.chain),
        (1.6, everyday.console),
        (0.6, everyday.tent_pegs),
        (0.6, lookalikes.headphones),
    ),
}
LOOK_ALIKES: dict[str, dict[str, tuple[Family, ...]]] = {
    "train": {
        "gun": (lookalikes.hair_dryer, lookalikes.camera),
        "knife": (lookalikes.pen, lookalikes.cutlery, lookalikes.toothbrush),
        "wrench": (lookalikes.spanner_bar, lookalikes.bolts),
        "pliers": (lookalikes.nail_clipper, lookalikes.compass),
        "scissors": (everyday.glasses, lookalikes.spectacles_case_rings),
    },
    "test": {
        "gun": (lookalikes.drill, lookalikes.glue_gun),
        "knife": (lookalikes.ruler, lookalikes.umbrella_ribs),
        "wrench": (lookalikes.rail, lookalikes.screwdriver),
        "pliers": (lookalikes.hinge, lookalikes.curler),
        "scissors": (lookalikes.headphones, lookalikes.hanger),
    },
}


def everyday_thing(pool: str, rng: Rng) -> Body:
    """Return an everyday thing from the 'train' or the 'test' pool."""
    weights = np.array([weight for weight, _ in EVERYDAY[pool]])
    return EVERYDAY[pool][rng.choice(len(weights), p=weights / weights.sum())][1](rng)


def look_alike(name: str, pool: str, rng: Rng) -> Body:
    """Return a benign thing with the outline of a threat class."""
    families = LOOK_ALIKES[pool][name]
    return families[rng.integers(len(families))](rng)
