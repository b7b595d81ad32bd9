"""Sheets with a texture: crumpled fabric and circuit boards.

The folds of a fabric show since a ray crosses a steep part of a sheet at a slant, and twice where the
sheet is doubled.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from .field import wrapped
from .outlines import Outline, rounded
from .solids import Bounds, Patch, View, drawn, ramps, window_of

TILE = 512  # pixels; tiles wrap


@lru_cache(maxsize=1)
def tiles() -> np.ndarray:
    """Return three tiles of 1 / cos(slope) of crumpled sheets, mean 1: float32 [3, TILE, TILE].

    The relief is ridged noise of several octaves; the same in every process, so that an image depends
    on its own seed alone.
    """
    rng = np.random.default_rng(20_110_510)
    return np.stack([_crumpled(rng, octaves) for octaves in ((6, 10, 18), (6, 12, 24, 48), (8, 16, 36))])


def _crumpled(rng: np.random.Generator, octaves: tuple[int, ...]) -> np.ndarray:
    relief, creases = np.zeros((TILE, TILE)), np.zeros((TILE, TILE))
    for waves in octaves:
        band = _band(rng, waves)
        slope = np.sqrt(_slope(band)) + 1e-6
        relief += (1 - np.abs(band)) / waves
        doubled = np.exp(-((band / (slope * rng.uniform(0.9, 1.5))) ** 2))  # a line of constant width
        creases += doubled * (np.roll(band, TILE // 3, 0) > 0.2) * (4 / waves) ** 0.5
    slope = _slope(relief)
    secant = np.sqrt(1 + slope * (1.2 / np.mean(slope))) + 0.9 * creases
    return np.clip(secant / secant.mean(), 0.5, 4).astype(np.float32)


def _slope(relief: np.ndarray) -> np.ndarray:
    """Return the squared slope of a relief that wraps."""
    down, right = (np.roll(relief, 1, axis) - np.roll(relief, -1, axis) for axis in (0, 1))
    return (down**2 + right**2) / 4


def _band(rng: np.random.Generator, waves: int) -> np.ndarray:
    """Return noise of about this many waves a tile, standard deviation 1."""
    frequency = np.fft.fftfreq(TILE, 1 / TILE)
    radius = np.hypot(frequency[:, None], frequency[None, :])
    window = np.exp(-(((radius - waves) / (0.5 * waves)) ** 2))
    noise = np.fft.ifft2(np.fft.fft2(rng.standard_normal((TILE, TILE))) * window).real
    return noise / noise.std()


@lru_cache(maxsize=1)
def weaves() -> np.ndarray:
    """Return tiles of the threads and fine folds of cloth, mean 1: float32 [8, TILE, TILE].

    Each has streaks in a direction of its own; half of them the threads of a coarse weave, too.
    """
    rng = np.random.default_rng(20_240_607)
    frequency = np.fft.fftfreq(TILE, 1 / TILE)
    fy, fx = frequency[:, None], frequency[None, :]
    tiles = np.ones((8, TILE, TILE))
    for k, tile in enumerate(tiles):
        angle = k * np.pi / 8
        across, along = np.cos(angle) * fx + np.sin(angle) * fy, np.cos(angle) * fy - np.sin(angle) * fx
        window = np.exp(-(((np.abs(across) - 70) / 50) ** 2) - (along / 14) ** 2)
        if k % 2:
            window += 0.35 * np.exp(-(((np.hypot(fy, fx) - 128) / 10) ** 2))
        noise = np.fft.ifft2(np.fft.fft2(rng.standard_normal((TILE, TILE))) * window).real
        tile += 0.09 * noise / noise.std()
    return tiles.clip(0.7, 1.4).astype(np.float32)


@dataclass(frozen=True)
class Sheet:
    """A crumpled sheet with an outline in the xy plane."""

    outline: Outline
    thickness: float  # mean path along its normal, cm
    tile: int  # which relief
    start: tuple[int, int]  # row and column of the relief at the window's corner
    strength: float  # share of the relief: 0 smooth, 1 as the tile

    def bounds(self) -> Bounds:
        """Return its bounds in its own frame."""
        (x0, y0), (x1, y1) = self.outline.min(0).tolist(), self.outline.max(0).tolist()
        return (x0, y0, 0.0), (x1, y1, 0.0)

    def seen(self, view: View) -> Patch | None:
        """Return the outline's mask times thickness times the relief's slant, at half the resolution."""
        height, width = view.canvas
        view = View(
            view.rotation,
            (view.centre[0] / 2, view.centre[1] / 2),
            view.scale / 2,
            ((height + 1) // 2, (width + 1) // 2),
        )
        ring = view.rotation.flat(self.outline)
        (left, top), (right, bottom) = ring.min(0).tolist(), ring.max(0).tolist()
        window = window_of(view, left, top, right, bottom)
        if window is None:
            return None
        mask = drawn([ring], view, window)
        path = np.empty(mask.shape, np.float32)
        relief, share = tiles()[self.tile], self.thickness * self.strength / 255
        smooth = (1 - self.strength) / max(self.strength, 1e-3)
        for rows, tile_rows in wrapped(mask.shape[0], self.start[0], TILE):
            for columns, tile_columns in wrapped(mask.shape[1], self.start[1], TILE):
                block = relief[tile_rows, tile_columns] + smooth
                block *= share
                np.multiply(mask[rows, columns], block, out=path[rows, columns])
        return Patch(window[0], window[2], path, coarse=True)


@lru_cache(maxsize=1)
def layouts() -> np.ndarray:
    """Return two tiles of a circuit board's copper and parts, 0 to 1: float32 [2, TILE, TILE]."""
    rng = np.random.default_rng(19_951_108)
    return np.stack([_layout(rng, parts) for parts in (260, 420)])


def _layout(rng: np.random.Generator, parts: int) -> np.ndarray:
    board = np.full((TILE, TILE), 0.12)
    for _ in range(parts):  # tracks: bundles of parallel lines
        y, x = rng.integers(TILE, size=2)
        length, lines = rng.integers(12, 90), rng.integers(1, 7)
        spot = (
            board[y : y + 3 * lines : 3, x : x + length]
            if rng.random() < 0.5
            else board[y : y + length, x : x + 3 * lines : 3]
        )
        spot += 0.12
    for _ in range(parts):  # chips, with rows of pins
        y, x = rng.integers(TILE - 24, size=2)
        h, w = rng.integers(3, 18, size=2)
        board[y : y + h, x : x + w] += rng.uniform(0.05, 0.5)
        if min(h, w) > 6:
            board[y - 1 : y + h + 1 : 2, x : x + w : max(w - 1, 1)] += 0.5
    for _ in range(parts):  # pads, screws, capacitors
        y, x = rng.integers(TILE - 8, size=2)
        board[y : y + 3, x : x + 3] += rng.uniform(0.2, 0.9)
    return np.clip(board, 0, 1.2).astype(np.float32)


@dataclass(frozen=True)
class Board:
    """A textured plate in the xy plane; the texture turns with it."""

    half: tuple[float, float]  # half sizes, cm
    thickness: float  # path at texture 1 along its normal, cm
    tile: int  # which layout
    start: tuple[int, int]  # of the tile, pixels
    fineness: float  # tile pixels a cm

    def bounds(self) -> Bounds:
        """Return its bounds in its own frame."""
        return (-self.half[0], -self.half[1], 0.0), (self.half[0], self.half[1], 0.0)

    def seen(self, view: View) -> Patch | None:
        """Return the texture looked up in the plate's own frame, over the cosine to the ray."""
        (a, b, _), (c, d, _) = view.rotation[:2]
        flat = a * d - b * c
        x, y = (abs(e) * self.half[0] + abs(f) * self.half[1] for e, f in ((a, b), (c, d)))
        window = window_of(view, -x, -y, x, y)
        if window is None or abs(flat) < 0.1:
            return None  # edge-on its plain board shows already
        fine = self.fineness / flat
        across, down = ramps(view, window, [(d * fine, -b * fine, 0.0), (-c * fine, a * fine, 0.0)])
        x, y = across + down
        inside = np.abs(x) < self.half[0] * self.fineness
        inside &= np.abs(y) < self.half[1] * self.fineness
        column = x.astype(np.int32) + (TILE * 4 + self.start[0])
        row = y.astype(np.int32) + (TILE * 4 + self.start[1])
        column &= TILE - 1
        row &= TILE - 1
        row *= TILE
        row += column
        path = layouts()[self.tile].take(row)
        path *= inside
        path *= self.thickness / abs(flat)
        return Patch(window[0], window[2], path)


def board(rng: np.random.Generator, width: float, height: float, thickness: float) -> Board:
    """Return a random circuit board's copper and parts, width x height cm."""
    start = (int(rng.integers(TILE)), int(rng.integers(TILE)))
    return Board((width / 2, height / 2), thickness, int(rng.integers(2)), start, float(rng.uniform(9, 18)))


def blob(rng: np.random.Generator, width: float, height: float, rough: float = 0.15) -> Outline:
    """Return a soft random outline, about width x height cm."""
    circle, waves, corner = _around()
    strength = rng.normal(0, rough, (2, 5)) / np.arange(2, 7)
    radius = 1 + strength.ravel() @ waves
    return circle * (radius * corner)[:, None] * (width / 2, height / 2)


@lru_cache(maxsize=1)
def _around() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return a circle [40, 2], waves 2 to 6 round it [10, 40], and the radius of a rounded square."""
    angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    circle = np.stack([np.cos(angle), np.sin(angle)], 1)
    waves = np.arange(2, 7)[:, None] * angle
    corner = (np.abs(circle) ** 4).sum(1) ** -0.25
    return circle, np.concatenate([np.cos(waves), np.sin(waves)]), corner


def sheet(
    rng: np.random.Generator, width: float, height: float, thickness: float, strength: float = 1.0
) -> Sheet:
    """Return a random sheet of about width x height cm."""
    start = (int(rng.integers(TILE)), int(rng.integers(TILE)))
    return Sheet(blob(rng, width, height), thickness, int(rng.integers(3)), start, strength)


def folded(
    rng: np.random.Generator, width: float, height: float, thickness: float, strength: float = 1.0
) -> Sheet:
    """Return a folded sheet, its sides straight, about width x height cm."""
    start = (int(rng.integers(TILE)), int(rng.integers(TILE)))
    ring = rounded(width, height, rng.uniform(0.3, 3), 4)
    ring = ring + rng.normal(0, 0.012, ring.shape) * (width, height)
    return Sheet(ring, thickness, int(rng.integers(3)), start, strength)
