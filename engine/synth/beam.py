"""The beam: two energy bins, attenuation by material, scatter and photon noise.

Optical depths of overlapping bodies add, bin by bin, before anything saturates (Beer-Lambert:
I = I0 exp(-sum mu t)); only then come the detectors' mix of bins, the scatter floor and the noise.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

DEEPEST = 12  # optical depth beyond which nothing passes: the scatter floor is hundreds of times as bright
DEPTH_STEPS = 2048  # a unit of optical depth in the table of exp(-depth)
NOISE = 1 << 21  # normal numbers kept
STRIP = 16_384  # pixels that are worked on at a time


@dataclass(frozen=True)
class Material:
    """What a part is made of: linear attenuation in the low (60 keV) and the high (110 keV) bin."""

    low: float  # 1/cm
    high: float  # 1/cm

    def times(self, share: float) -> "Material":
        """Return the same material at a share of its density: fabric, foam, a hollow casting."""
        return Material(self.low * share, self.high * share)


# NIST XCOM mass attenuation times density, rounded.
ORGANIC = Material(0.20, 0.165)  # polymers, food, liquids
FABRIC = ORGANIC.times(0.35)
LEATHER = Material(0.24, 0.175)
SALTED = Material(0.30, 0.20)  # PVC-filled plastics, soap, cosmetics: between organic and mixed
PVC = Material(0.46, 0.25)
PCB = Material(0.62, 0.36)  # glass fibre with copper foil
GLASS = Material(0.64, 0.39)
CERAMIC = Material(0.80, 0.46)
ALUMINIUM = Material(0.75, 0.455)
TITANIUM = Material(3.4, 1.25)
STEEL = Material(9.5, 2.7)
ZINC = Material(11.0, 3.1)
COPPER = Material(14.3, 3.7)
LEAD = Material(57.0, 40.0)


@dataclass(frozen=True)
class Beam:
    """A tube and its detector pair."""

    photons: float  # counted by one detector pixel without an object
    scatter: float  # share of the open beam that reaches a detector whatever stands in the way
    crosstalk: float  # share of the other bin that each detector sees
    banding: float  # standard deviation of the detectors' residual gain


def transmit(depth: np.ndarray, beam: Beam, rng: np.random.Generator) -> np.ndarray:
    """Return what the two detectors measure, as shares of the open beam: float32 [2, H, W], > 0.

    Photon counts are Poisson; with the scatter floor every pixel counts hundreds, where the normal
    law of the same mean and variance is indistinguishable.
    """
    _, height, width = depth.shape
    gain = (1 + beam.banding * rng.standard_normal((2, 1, width))).astype(np.float32)
    least, spread = beam.scatter / 4 + 1e-4, beam.photons**-0.5
    measured = np.empty_like(depth)
    for rows in strips(height, width):
        low, high = decayed(depth[0, rows]), decayed(depth[1, rows])
        other = (high - low) * (beam.crosstalk * (1 - beam.scatter))
        low *= 1 - beam.scatter
        low += beam.scatter
        low += other
        high *= 1 - beam.scatter
        high += beam.scatter
        high -= other
        for k, signal in enumerate((low, high)):
            noise = np.sqrt(signal)
            start = int(rng.integers(NOISE - noise.size))
            noise *= noises()[start : start + noise.size].reshape(noise.shape)
            noise *= spread
            signal += noise
            signal *= gain[k]
            np.maximum(signal, least, out=measured[k, rows])
    return measured


def strips(height: int, width: int) -> Iterator[slice]:
    """Yield rows that fit a core's cache together with a few sheets of their size."""
    step = max(STRIP // width, 1)
    for start in range(0, height, step):
        yield slice(start, min(start + step, height))


def decayed(depth: np.ndarray) -> np.ndarray:
    """Return exp(-depth), float32, from a table: fast, and the same on every processor."""
    return _decays().take((depth * DEPTH_STEPS).astype(np.int32), mode="clip")


@lru_cache(maxsize=1)
def _decays() -> np.ndarray:
    depths = (np.arange(DEPTH_STEPS * DEEPEST) + 0.5) / DEPTH_STEPS
    return np.exp(-depths).astype(np.float32)


@lru_cache(maxsize=1)
def noises() -> np.ndarray:
    """Return normal noise, float32 [NOISE], of which each picture takes pieces at places of its own."""
    return np.random.default_rng(18_951_108).standard_normal(NOISE, np.float32)
