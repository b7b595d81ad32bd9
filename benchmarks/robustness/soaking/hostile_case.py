"""One kind of hostile input: its files, and what is right for each row."""

from dataclasses import dataclass, field

import numpy as np

from gbad_batch.engine.row import Row

from .images import LEVELS
from .seeds_of_images import Array

OK = frozenset({"ok"})
DAMAGED = frozenset({"truncated", "undecodable", "ok"})  # ok with a warning, where that is said


@dataclass(frozen=True)
class Right:
    """A file, and what its row may say."""

    data: bytes
    statuses: frozenset[str] = OK
    pixels: Array | None = field(default=None, repr=False)  # [h, w, 3], where it is ok
    warned: bool = False  # where it is ok, a warning says what is wrong
    or_warned: bool = False  # other pixels are right if a warning says so

    def wrong(self, row: Row, pixels: Array | None) -> str | None:
        """Say what is wrong with a row; None where it is right."""
        if row.status not in self.statuses:
            return f"{row.status}: {row.error}"
        if row.status != "ok":
            return None
        if self.warned and not row.warnings:
            return "ok without a warning"
        if self.pixels is None or pixels is None or (self.or_warned and row.warnings):
            return None
        if pixels.shape != self.pixels.shape:
            return f"{pixels.shape} instead of {self.pixels.shape}"
        apart = float(np.abs(pixels.astype(int) - self.pixels.astype(int)).mean())
        return None if apart <= LEVELS else f"ok, {apart:.1f} levels off"


@dataclass(frozen=True)
class Case:
    """A kind, with its files by name."""

    kind: str
    files: dict[str, Right]
