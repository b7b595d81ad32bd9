"""The five threat classes in pools of families: what a test shows, no training image held."""

from . import guns, knives, pliers, scissors, wrenches
from .bodies import Body
from .shapes import Family, Rng

POOLS: dict[str, dict[str, tuple[Family, ...]]] = {
    "train": {
        "gun": (
            guns.service_pistol,
            guns.polymer_pistol,
            guns.pocket_pistol,
            guns.long_revolver,
            guns.open_revolver,
            guns.toggle_pistol,
        ),
        "knife": (
            knives.kitchen_knife,
            knives.kitchen_knife,
            knives.cleaver,
            knives.folding_knife,
            knives.dagger,
            knives.table_knife,
            knives.hunting_knife,
        ),
        "wrench": (
            *2 * (wrenches.combination_wrench, wrenches.double_open_wrench, wrenches.adjustable_wrench),
            wrenches.flare_wrench,
            wrenches.ratchet_spanner,
            wrenches.hex_key,
        ),
        "pliers": (
            *2 * (pliers.combination_pliers, pliers.needle_pliers, pliers.pump_pliers),
            pliers.locking_pliers,
            pliers.wire_strippers,
        ),
        "scissors": (
            *2 * (scissors.office_scissors, scissors.tailor_scissors, scissors.nail_scissors),
            scissors.kitchen_scissors,
            scissors.thread_snips,
        ),
    },
    "test": {
        "gun": (guns.compact_pistol, guns.snub_revolver, guns.machine_pistol, guns.target_pistol),
        "knife": (knives.box_cutter, knives.curved_knife, knives.butterfly_knife, knives.many_blades),
        "wrench": (
            wrenches.ring_wrench,
            wrenches.pipe_wrench,
            wrenches.socket_wrench,
            wrenches.cross_wrench,
            wrenches.hook_spanner,
        ),
        "pliers": (
            pliers.cutting_pliers,
            pliers.pincers,
            pliers.flat_pliers,
            pliers.joint_pliers,
            pliers.bolt_cutter,
        ),
        "scissors": (
            scissors.surgical_scissors,
            scissors.craft_scissors,
            scissors.shop_scissors,
            scissors.pruning_shears,
        ),
    },
}


def threat(name: str, pool: str, rng: Rng) -> Body:
    """Return a threat of a class ('gun' ...) from the 'train' or the 'test' pool."""
    families = POOLS[pool][name]
    return families[rng.integers(len(families))](rng)
