"""What an evaluation says, as one value."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .bootstrap import Figures


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation says; every figure stands in `figures` by its name."""

    about: Mapping[str, Any]  # the results, the labels, the model and its operating point
    counts: Mapping[str, Any]  # of rows, images and failures
    confusion: Mapping[str, int]  # of alarm against truth
    figures: Figures
    without_ignored: Figures | None  # the same without the images of `ignore`
    notes: tuple[str, ...]  # what a reader must know to trust the figures

    def to_json(self) -> dict[str, Any]:
        """Give plain values: each figure under its name, and its interval under `intervals`."""
        document = {**_values(self.figures), "about": self.about, "counts": self.counts}
        document |= {"confusion": self.confusion, "notes": self.notes}
        if self.without_ignored:
            document["without_ignored"] = _values(self.without_ignored)
        return document


def _values(found: Figures) -> dict[str, Any]:
    intervals = {name: [figure.low, figure.high] for name, figure in found.items() if figure.low is not None}
    return {**{name: figure.value for name, figure in found.items()}, "intervals": intervals}
