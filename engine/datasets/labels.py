"""Labels of a data set, as every reader returns them."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..errors import Refused
from ..row import THREATS

SPLITS = ("train", "validation", "calibration", "test")


@dataclass(frozen=True)
class Box:
    """Position of a threat, in pixels from the upper left corner."""

    threat: str  # one of THREATS
    x: float
    y: float
    width: float
    height: float


@dataclass(frozen=True)
class Labels:
    """Labels of the images of a data set, in the order of its files."""

    names: tuple[str, ...]  # as written: perhaps with folders, perhaps without an extension
    labels: NDArray[np.bool_]  # [n, 5] in the order of THREATS; a benign image has none
    origins: tuple[str, ...]  # where each label stands, 'labels.csv, line 12', for errors
    groups: tuple[str, ...]  # bag or other group of each image, '' where none is known
    splits: tuple[str, ...]  # one of SPLITS, '' where none is known
    boxes: tuple[tuple[Box, ...], ...]  # of each image; one with labels may lack them
    known: NDArray[np.bool_]  # [n, 5] whether the label is known; an unknown one is False in `labels`

    @property
    def unknown(self) -> dict[str, int]:
        """Count the images whose label is unknown, for each class that has such."""
        counts = (~self.known).sum(axis=0).tolist()
        return {threat: count for threat, count in zip(THREATS, counts, strict=True) if count}

    @property
    def positive(self) -> NDArray[np.bool_]:
        """Tell which images hold a threat, [n]."""
        return np.any(self.labels, axis=1)

    def take(self, index: Sequence[int]) -> "Labels":
        """Return the images at these positions."""
        return Labels(
            tuple(self.names[i] for i in index),
            self.labels[list(index)],
            tuple(self.origins[i] for i in index),
            tuple(self.groups[i] for i in index),
            tuple(self.splits[i] for i in index),
            tuple(self.boxes[i] for i in index),
            self.known[list(index)],
        )


class _Entry(NamedTuple):
    name: str
    threats: tuple[bool, ...]
    origin: str
    group: str
    split: str
    boxes: tuple[Box, ...]
    known: tuple[bool, ...]


class Gathered:
    """Collects labels, one image at a time."""

    def __init__(self) -> None:
        self._entries: list[_Entry] = []

    def add(  # noqa: PLR0913
        self,
        name: str,
        threats: Collection[str],
        origin: str,
        group: str = "",
        split: str = "",
        boxes: Sequence[Box] = (),
        unknown: Collection[str] = (),
    ) -> None:
        """Add one image with its threats, and the classes of which nothing is known.

        Raises Refused for an empty name or an unknown split.
        """
        name = name.strip()
        if not name:
            raise Refused(f"{origin}: the image has no name; give the name of its file")
        if split and split not in SPLITS:
            raise Refused(f"{origin}: the split {split!r} is unknown; write {', '.join(SPLITS)} or nothing")
        flags = tuple(threat in threats for threat in THREATS)
        known = tuple(threat not in unknown for threat in THREATS)
        self._entries.append(_Entry(name, flags, origin, group, split, tuple(boxes), known))

    def labels(self, path: Path) -> Labels:
        """Return the labels collected from `path`; raises Refused for none, or a name listed twice."""
        if not self._entries:
            raise Refused(f"{path} names no image; list images with their labels")
        self._check_once()
        entries = self._entries
        return Labels(
            tuple(entry.name for entry in entries),
            np.array([entry.threats for entry in entries], dtype=np.bool_),
            tuple(entry.origin for entry in entries),
            tuple(entry.group for entry in entries),
            tuple(entry.split for entry in entries),
            tuple(entry.boxes for entry in entries),
            np.array([entry.known for entry in entries], dtype=np.bool_),
        )

    def _check_once(self) -> None:
        first: dict[str, _Entry] = {}
        twice = [entry for entry in self._entries if first.setdefault(entry.name, entry) is not entry]
        if twice:
            also = f", as are {len(twice) - 1} other names" if len(twice) > 1 else ""
            raise Refused(
                f"{twice[0].origin}: {twice[0].name!r} is listed twice{also}; it is first in "
                f"{first[twice[0].name].origin}; list each image once"
            )
