"""Regions of a class map: places beside each other at which a class reaches its threshold."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..row import THREATS

Places = NDArray[np.float32]  # [5, h, w] probabilities
Mask = NDArray[np.bool_]  # [h, w]


@dataclass(frozen=True)
class Region:
    """One region of a class, in pixels of the picture as it is stored."""

    threat: str
    probability: float  # at its hottest place
    hottest: tuple[float, float]  # x, y of the middle of that place
    box: tuple[float, float, float, float]  # x, y, width, height


def regions_of(places: Places, thresholds: Sequence[float], size: tuple[int, int]) -> list[Region]:
    """Return the regions of a picture of `size` (width, height), the most probable first."""
    found = [
        _region(threat, np.where(mask, place, 0), mask, size)
        for threat, place, threshold in zip(THREATS, places, thresholds, strict=True)
        for mask in _connected(place >= threshold)
    ]
    return sorted(found, key=lambda region: -region.probability)


def _region(threat: str, within: NDArray[np.floating], mask: Mask, size: tuple[int, int]) -> Region:
    height, width = mask.shape
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    wide, high = size[0] / width, size[1] / height  # of a place, in pixels
    left, top = round(columns[0] * wide, 1), round(rows[0] * high, 1)
    right, bottom = round((columns[-1] + 1) * wide, 1), round((rows[-1] + 1) * high, 1)
    box = (left, top, round(right - left, 1), round(bottom - top, 1))
    return Region(threat, float(within.max()), hottest(within, size), box)


def hottest(place: NDArray[np.floating], size: tuple[int, int]) -> tuple[float, float]:
    """Return x and y of the middle of the hottest place of a map [h, w], in a picture of `size`."""
    row, column = divmod(int(place.argmax()), place.shape[1])
    return (
        round((column + 0.5) * size[0] / place.shape[1], 1),
        round((row + 0.5) * size[1] / place.shape[0], 1),
    )


def _connected(mask: Mask) -> list[Mask]:
    """Split a mask into its parts that touch, at corners too."""
    parts = []
    left = mask.copy()
    while left.any():
        part = np.zeros_like(left)
        part[np.unravel_index(left.argmax(), left.shape)] = True
        while (grown := _grown(part) & left).sum() > part.sum():
            part = grown
        parts.append(part)
        left &= ~part
    return parts


def _grown(part: Mask) -> Mask:
    """Add to a mask the eight neighbours of each of its places."""
    height, width = part.shape
    padded = np.pad(part, 1)
    shifted = [padded[y : y + height, x : x + width] for y in range(3) for x in range(3)]
    return np.logical_or.reduce(shifted)
