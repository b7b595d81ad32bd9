"""The model card that a bundle carries as README.md."""

from collections.abc import Mapping
from typing import Any

from ..row import THREATS

DEMO = "**Trained on synthetic images, not for operational decisions.**\n\n"
TEXT = """# {name}

GBAD: a classifier of five threats, a BiGAN on its features of benign bags, and a decision on both.

{demo}## Images

Trained on {data}.

{counts}

## Figures

Plumbing, no figures: this bundle shows that training, export and scan fit together. It was not judged on a
frozen test set, so nothing is claimed about what it detects. Its operating points are what the benign
calibration images gave; `bundle.json` marks those that rest on too few of them as not supported.
{warnings}"""


def card(name: str, data: str, demo: bool, provenance: Mapping[str, Any]) -> str:
    """Write the card in Markdown: what the model saw, and what is not known of it."""
    return TEXT.format(
        name=name,
        demo=DEMO if demo else "",
        data=data,
        counts=_table(provenance["images"]),
        warnings="".join(f"\n- {warning}\n" for warning in provenance["warnings"]),
    )


def _table(images: Mapping[str, Mapping[str, int]]) -> str:
    """Count images and labels of each split."""
    head = [f"| split | images | benign | {' | '.join(THREATS)} |", "| --- " * (3 + len(THREATS)) + "|"]
    rows = [f"| {split} | {' | '.join(map(str, row.values()))} |" for split, row in images.items()]
    return "\n".join([*head, *rows])
