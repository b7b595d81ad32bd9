"""The beam: two energy bins, attenuation by material, scatter and photon noise.

Optical depths of overlapping bodies add, bin by bin, before anything saturates (Beer-Lambert:
I = I0 exp(-sum mu t)); only then come the detectors' mix of bins, the scatter floor and the noise.
"""

from dataclasses import dataclass

import numpy as np

from .solids import Patch


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


class Field:
    """The optical depth of everything in one picture: float32 [2, H, W], low and high bin."""

    def __init__(self, height: int, width: int):
        self.depth = np.zeros((2, height, width), np.float32)

    @property
    def shape(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.depth.shape[1], self.depth.shape[2]

    def add(self, patch: Patch, material: Material) -> None:
        """Add a body's path lengths (cm) as optical depth."""
        rows = slice(patch.y, patch.y + patch.path.shape[0])
        columns = slice(patch.x, patch.x + patch.path.shape[1])
        self.depth[0, rows, columns] += patch.path * np.float32(material.low)
        self.depth[1, rows, columns] += patch.path * np.float32(material.high)


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
    law of the same mean and variance is indistinguishable and twenty times as fast.
    """
    low, high = np.exp(-depth)
    mix, floor = np.float32(beam.crosstalk), np.float32(beam.scatter)
    signal = np.stack([low + mix * (high - low), high + mix * (low - high)])
    signal += floor * (1 - signal)
    noise = rng.standard_normal(signal.shape, np.float32)
    signal += noise * np.sqrt(signal / np.float32(beam.photons))
    gain = 1 + beam.banding * rng.standard_normal((2, 1, depth.shape[2]), np.float32)
    signal *= gain.astype(np.float32)
    return np.maximum(signal, floor / 4 + np.float32(1e-4), out=signal)
