"""The optical depth of everything in a picture, and how cloth, drawn at half the resolution, joins it."""

from collections.abc import Iterator

import numpy as np

from .beam import Material, strips
from .solids import Dots, Patch


class Field:
    """The optical depth of everything in one picture: float32 [2, H, W], low and high bin.

    `weave` is a texture float32 [h, w] that the cloth is multiplied by; it repeats.
    """

    def __init__(self, height: int, width: int, weave: np.ndarray | None = None):
        self._depth = np.zeros((2, height, width), np.float32)
        self._cloth = np.zeros((2, (height + 1) // 2 + 2, (width + 1) // 2 + 2), np.float32)
        self._joined = True
        self._weave = np.ones((1, 1), np.float32) if weave is None else weave

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self._depth.shape[1], self._depth.shape[2]

    @property
    def depth(self) -> np.ndarray:
        """The optical depth of all that was added, float32 [2, H, W]."""
        if not self._joined:
            for depth, cloth in zip(self._depth, self._cloth, strict=True):
                _join(depth, cloth, self._weave)
            self._cloth[:] = 0
            self._joined = True
        return self._depth

    def add(self, patch: Patch | Dots, material: Material) -> None:
        """Add a body's path lengths (cm) as optical depth."""
        shares = material.low, material.high
        if isinstance(patch, Dots):
            for depth, share in zip(self._depth, shares, strict=True):
                np.add.at(depth.reshape(-1), patch.place, patch.path * share)
            return
        y, x, path, coarse = patch
        if coarse:
            self._joined, y, x = False, y + 1, x + 1
        for depth, share in zip(self._cloth if coarse else self._depth, shares, strict=True):
            depth[y : y + path.shape[0], x : x + path.shape[1]] += path * share


def _join(depth: np.ndarray, cloth: np.ndarray, weave: np.ndarray) -> None:
    """Add cloth, given at half the resolution with one sample around it, times a weave."""
    width = depth.shape[1]
    for rows in strips(cloth.shape[0] - 2, 2 * width):
        middle = cloth[rows.start + 1 : rows.stop + 1] * 0.75
        full = np.empty((2 * len(middle), 2 * (cloth.shape[1] - 2)), np.float32)
        for k, near in ((0, cloth[rows.start : rows.stop]), (1, cloth[rows.start + 2 : rows.stop + 2])):
            row = near * 0.25
            row += middle
            own = row[:, 1:-1] * 0.75
            row *= 0.25
            np.add(own, row[:, :-2], out=full[k::2, 0::2])
            np.add(own, row[:, 2:], out=full[k::2, 1::2])
        top = 2 * rows.start
        part = depth[top : top + len(full)]
        for at, tile_rows in wrapped(len(part), top, weave.shape[0]):
            for across, tile_columns in wrapped(width, 0, weave.shape[1]):
                full[at, across] *= weave[tile_rows, tile_columns]
        part += full[: len(part), :width]


def wrapped(length: int, start: int, tile: int) -> Iterator[tuple[slice, slice]]:
    """Yield the pieces of a length, and where each lies in a tile that repeats, from a start in it."""
    if tile == 1:
        yield slice(length), slice(1)
        return
    done = 0
    while done < length:
        place = (start + done) % tile
        step = min(tile - place, length - done)
        yield slice(done, done + step), slice(place, place + step)
        done += step
