"""Typicality: how far an image's features x lie from those of the images that a model knows.

The distance is Mahalanobis's, as Lee et al. use it on a classifier's features (A Simple Unified Framework for
Detecting Out-of-Distribution Samples, NeurIPS 2018). The covariance has variances of its own along its
principal directions and one for all others (Tipping and Bishop, Probabilistic Principal Component Analysis,
1999): an image costs as many products as there are directions, not a square of features.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import BundleError

MOST_DIRECTIONS = 1024
LARGEST = 1e6  # typicality of an image at the very middle
BIGGEST = 1e30  # of a number in an array
SMALLEST_VARIANCE = 1e-12
FIELDS = ("mean", "directions", "variances", "rest", "limit")
PREFIX = "typicality."

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class Typicality:
    """Where known images lie among the features, and the limit beyond which an image is like none of them."""

    mean: Floats  # [d]
    directions: Floats  # [k, d], orthonormal
    variances: Floats  # [k], along the directions
    rest: Floats  # [1], variance along every other direction
    limit: Floats  # [1], distance that a share of known images exceeds

    def __post_init__(self) -> None:
        """Check that the arrays fit each other; raises BundleError."""
        d, k = self.mean.size, self.variances.size
        shapes = {"mean": (d,), "directions": (k, d), "variances": (k,), "rest": (1,), "limit": (1,)}
        for name, shape in shapes.items():
            array = getattr(self, name)
            if array.shape != shape or array.dtype != np.float32 or not (np.abs(array) <= BIGGEST).all():
                raise BundleError(f"the array 'typicality.{name}' is unusable")
        if min(self.variances.min(initial=1), self.rest[0], self.limit[0]) < SMALLEST_VARIANCE:
            raise BundleError("the arrays of typicality divide by zero")
        if k > MOST_DIRECTIONS:
            raise BundleError(f"typicality has {k} directions, above the limit of {MOST_DIRECTIONS}")

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, NDArray[np.generic]], features: int) -> "Typicality | None":
        """Read the arrays `typicality.*` of a bundle; None if it has none.

        Raises BundleError if they are unusable, or not of so many features.
        """
        arrays = {key.removeprefix(PREFIX): tensors[key] for key in tensors if key.startswith(PREFIX)}
        if not arrays:
            return None
        if arrays.keys() != set(FIELDS):
            raise BundleError("the arrays of typicality are not " + ", ".join(FIELDS))
        if arrays["mean"].shape != (features,):
            raise BundleError(f"the array 'typicality.mean' is not of {features} features")
        return cls(**arrays)  # type: ignore[arg-type]

    def tensors(self) -> dict[str, Floats]:
        """Return the arrays as a bundle holds them."""
        return {f"{PREFIX}{name}": getattr(self, name) for name in FIELDS}

    def distance(self, x: Floats, products: Floats | None = None) -> NDArray[np.float64]:
        """Return the Mahalanobis distances [n] of features x [n, d], divided by the root of d.

        `products` [n, k] are those of x - mean with the directions, if they are known. Else each is a sum of
        its own, so that the batch changes no bit of it.
        """
        centred = np.ascontiguousarray(x - self.mean)
        along = np.einsum("nd,kd->nk", centred, self.directions) if products is None else products
        along = np.square(along, dtype=np.float64)
        whole = np.einsum("nd,nd->n", centred, centred).astype(np.float64)
        total = whole / self.rest[0].astype(np.float64)
        for k, variance in enumerate(self.variances.astype(np.float64)):
            total += along[:, k] * (1 / variance - 1 / self.rest[0].astype(np.float64))
        return np.sqrt(np.maximum(total, 0) / self.mean.size)

    def of(self, x: Floats, products: Floats | None = None) -> Floats:
        """Return the typicality [n] of features x [n, d]: the limit over the distance, below 1 beyond it."""
        distance = np.maximum(self.distance(x, products), self.limit[0].astype(np.float64) / LARGEST)
        return (self.limit[0].astype(np.float64) / distance).astype(np.float32)
