"""Sheets with a texture: crumpled fabric and circuit boards.

The folds of a fabric show since a ray crosses a steep part of a sheet at a slant, and twice where the
sheet is doubled.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from .solids import Outline, Patch, View, drawn, rays, window_of

TILE = 512  # pixels; tiles wrap


@lru_cache(maxsize=1)
def tiles() -> np.ndarray:
    """Return three tiles of 1 / cos(slope) of crumpled sheets, mean 1: float32 [3, TILE, TILE].

    The relief is ridged noise of several octaves; the same in every process, so that an image depends
    on its own seed alone.
    """
    rng = np.random.default_rng(20_110_510)
    return np.stack([_crumpled(rng, octaves) for octaves in ((3, 5, 9), (3, 6, 12, 24), (4, 8, 18))])


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


@dataclass(frozen=True)
class Sheet:
    """A crumpled sheet with an outline in the xy plane."""

    outline: Outline
    thickness: float  # mean path along its normal, cm
    tile: int  # which relief
    start: tuple[int, int]  # row and column of the relief at the window's corner
    strength: float  # share of the relief: 0 smooth, 1 as the tile

    def extent(self, rotation: np.ndarray) -> np.ndarray:
        """Return its bounds under a rotation."""
        ring = self.outline @ rotation[:2, :2].T
        return np.stack([ring.min(0), ring.max(0)])

    def seen(self, view: View) -> Patch | None:
        """Return the outline's mask times thickness times the relief's slant."""
        window = window_of(view, self.extent(view.rotation))
        if window is None:
            return None
        mask = drawn([self.outline @ view.rotation[:2, :2].T], view, window)
        rows = (np.arange(mask.shape[0]) + self.start[0]) % TILE
        columns = (np.arange(mask.shape[1]) + self.start[1]) % TILE
        relief = tiles()[self.tile][rows[:, None], columns[None, :]]
        mask *= np.float32(self.thickness) * (
            relief * np.float32(self.strength) + np.float32(1 - self.strength)
        )
        return Patch(window[0], window[2], mask)


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

    def extent(self, rotation: np.ndarray) -> np.ndarray:
        """Return its bounds under a rotation."""
        half = np.abs(rotation[:2, :2]) @ np.array(self.half)
        return np.stack([-half, half])

    def seen(self, view: View) -> Patch | None:
        """Return the texture looked up in the plate's own frame, over the cosine to the ray."""
        plane = view.rotation[:2, :2]
        window = window_of(view, self.extent(view.rotation))
        if window is None or abs(np.linalg.det(plane)) < 0.1:
            return None  # edge-on its plain board shows already
        u, v = rays(view, window)
        back = np.linalg.inv(plane).astype(np.float32)
        x, y = back[0, 0] * u + back[0, 1] * v, back[1, 0] * u + back[1, 1] * v
        inside = (np.abs(x) < self.half[0]) & (np.abs(y) < self.half[1])
        column = (x * self.fineness).astype(np.int32) + (TILE * 4 + self.start[0])
        row = (y * self.fineness).astype(np.int32) + (TILE * 4 + self.start[1])
        path = layouts()[self.tile][row % TILE, column % TILE] * inside
        return Patch(window[0], window[2], path * np.float32(self.thickness / abs(np.linalg.det(plane))))


def board(rng: np.random.Generator, width: float, height: float, thickness: float) -> Board:
    """Return a random circuit board's copper and parts, width x height cm."""
    start = (int(rng.integers(TILE)), int(rng.integers(TILE)))
    return Board((width / 2, height / 2), thickness, int(rng.integers(2)), start, float(rng.uniform(9, 18)))


def blob(rng: np.random.Generator, width: float, height: float, rough: float = 0.15) -> Outline:
    """Return a soft random outline, about width x height cm."""
    angle = np.linspace(0, 2 * np.pi, 40, endpoint=False)
    radius = np.ones_like(angle)
    for wave in range(2, 7):
        radius += rough * rng.normal() / wave * np.cos(wave * angle + rng.uniform(0, 2 * np.pi))
    corner = (np.abs(np.cos(angle)) ** 4 + np.abs(np.sin(angle)) ** 4) ** -0.25
    return np.stack([np.cos(angle), np.sin(angle)], 1) * (radius * corner)[:, None] * (width / 2, height / 2)


def sheet(
    rng: np.random.Generator, width: float, height: float, thickness: float, strength: float = 1.0
) -> Sheet:
    """Return a random sheet of about width x height cm."""
    start = (int(rng.integers(TILE)), int(rng.integers(TILE)))
    return Sheet(blob(rng, width, height), thickness, int(rng.integers(3)), start, strength)
