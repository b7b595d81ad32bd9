"""The five threat classes in pools of families: what a test shows, no training image held."""

from . import guns, knives, pliers, scissors, wrenches
from .bodies import Body
from .shapes import Family, Rng

POOLS: dict[str, dict[str, tuple[Family, ...]]] = {
    "train": {
        "gun": (guns.service_pistol, guns.service_pistol, guns.long_revolver, guns.toggle_pistol),
        "knife": (
            knives.kitchen_knife,
            knives.kitchen_knife,
            knives.cleaver,
            knives.folding_knife,
            knives.dagger,
        ),
        "wrench": (wrenches.combination_wrench, wrenches.double_open_wrench, wrenches.adjustable_wrench),
        "pliers": (pliers.combination_pliers, pliers.needle_pliers, pliers.pump_pliers),
        "scissors": (scissors.office_scissors, scissors.tailor_scissors, scissors.nail_scissors),
    },
    "test": {
        "gun": (guns.compact_pistol, guns.snub_revolver, guns.machine_pistol),
        "knife": (knives.box_cutter, knives.curved_knife),
        "wrench": (wrenches.ring_wrench, wrenches.pipe_wrench, wrenches.socket_wrench),
        "pliers": (pliers.cutting_pliers, pliers.pincers, pliers.flat_pliers),
        "scissors": (scissors.surgical_scissors, scissors.craft_scissors, scissors.shop_scissors),
    },
}


def threat(name: str, pool: str, rng: Rng) -> Body:
    """Return a threat of a class ('gun' ...) from the 'train' or the 'test' pool."""
    families = POOLS[pool][name]
    return families[rng.integers(len(families))](rng)
