"""What benign bags hold, in pools: everyday things, and each threat class's look-alikes."""

import numpy as np

from . import everyday, kit, lookalikes
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
        (0.7, kit.socket_set),
        (0.4, kit.drill_bits),
        (0.8, kit.wine),
        (0.7, kit.cosmetics),
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
        (0.8, kit.lunch),
        (0.6, kit.crockery),
    ),
}
LOOK_ALIKES: dict[str, dict[str, tuple[Family, ...]]] = {
    "train": {
        "gun": (lookalikes.hair_dryer, lookalikes.camera, kit.spray_trigger),
        "knife": (lookalikes.pen, lookalikes.cutlery, lookalikes.toothbrush, kit.nail_file),
        "wrench": (lookalikes.spanner_bar, lookalikes.bolts, kit.door_handle),
        "pliers": (lookalikes.nail_clipper, lookalikes.compass, kit.stapler),
        "scissors": (everyday.glasses, lookalikes.spectacles_case_rings, kit.joined_hoops),
    },
    "test": {
        "gun": (lookalikes.drill, lookalikes.glue_gun, kit.label_gun, kit.styler),
        "knife": (lookalikes.ruler, lookalikes.umbrella_ribs, kit.comb, kit.chopsticks),
        "wrench": (lookalikes.rail, lookalikes.screwdriver, kit.crank),
        "pliers": (lookalikes.hinge, lookalikes.curler, kit.tongs),
        "scissors": (lookalikes.headphones, lookalikes.hanger),
    },
}


def everyday_thing(pool: str, rng: Rng) -> Body:
    """Return an everyday thing from the 'train' or the 'test' pool."""
    sums = np.cumsum([weight for weight, _ in EVERYDAY[pool]])
    return EVERYDAY[pool][int(np.searchsorted(sums, rng.random() * sums[-1], side="right"))][1](rng)


def look_alike(name: str, pool: str, rng: Rng) -> Body:
    """Return a benign thing with the outline of a threat class."""
    families = LOOK_ALIKES[pool][name]
    return families[rng.integers(len(families))](rng)
