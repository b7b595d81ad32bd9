"""Decisions: named functions from an image's two losses and class scores to its `anomaly_score`.

NumPy only. The score of an image belongs to that image: rows are computed in blocks of one fixed shape,
without matrix products, so neither their number nor their neighbours change a bit.
"""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from ..errors import BundleError

if TYPE_CHECKING:
    from .decision_cuml import CumlDecision
    from .decision_torch import TorchDecision

log = logging.getLogger(__name__)

# what each decision looks at, in the order of its arrays
INPUTS = {
    "gbad": ("log_reconstruction_loss", "log_feature_matching_loss"),
    "classes": ("largest_logit",),
    "combined": ("log_reconstruction_loss", "log_feature_matching_loss", "largest_logit"),
}
SMALLEST_LOSS = 1e-12  # a loss of zero has no logarithm
LARGEST = 1e30  # of a number in an array: what follows from such numbers stays finite
SMALLEST_STD = 1e-12
MOST_SUPPORT = 1 << 17  # support vectors; a block of rows has a kernel of 64 MB with so many
BLOCK = 64  # rows; a multiple of every vector length, so that no row falls into a scalar remainder

Scores = NDArray[np.float64]


@dataclass(frozen=True)
class Decision:
    """A support vector machine on standardized inputs u, linear or with an RBF kernel.

    linear: score = weights . u + intercept. RBF: with c = u clipped to [low, high], the range of training,
    score = sum_i coefficients_i exp(-gamma ||c - support_i||^2) + weights . (u - c) + intercept, so that
    beyond the training data, where a kernel falls back to its intercept, the linear term keeps order.
    """

    name: str
    mean: Scores  # [d] of the inputs in training
    std: Scores  # [d]
    weights: Scores  # [d], none below zero
    intercept: Scores  # [1]
    support: Scores | None = None  # [m, d] support vectors
    coefficients: Scores | None = None  # [m] label times dual coefficient
    gamma: Scores | None = None  # [1]
    low: Scores | None = None  # [d] range of u in training
    high: Scores | None = None  # [d]

    def __post_init__(self) -> None:
        """Check that the arrays fit each other; raises BundleError."""
        d = len(INPUTS[self.name])
        shapes = {"mean": (d,), "std": (d,), "weights": (d,), "intercept": (1,)}
        if self.support is not None:
            m = self.support.size // d
            shapes |= {"support": (m, d), "coefficients": (m,), "gamma": (1,), "low": (d,), "high": (d,)}
        for field, shape in shapes.items():
            array = getattr(self, field)
            if array is None or array.shape != shape or not (np.abs(array) <= LARGEST).all():
                raise BundleError(f"the array {field!r} of the decision {self.name!r} is missing or unusable")
        if not (self.std >= SMALLEST_STD).all():
            raise BundleError(f"the decision {self.name!r} divides by a standard deviation of zero")
        if self.support is not None and len(self.support) > MOST_SUPPORT:
            raise BundleError(f"the decision {self.name!r} has more than {MOST_SUPPORT} support vectors")

    @classmethod
    def from_tensors(cls, name: str, tensors: Mapping[str, np.ndarray]) -> "Decision":
        """Read a decision from a bundle's arrays `decision.NAME.*`; raises BundleError if there is none."""
        prefix = f"decision.{name}."
        arrays = {key.removeprefix(prefix): tensors[key] for key in tensors if key.startswith(prefix)}
        if name not in INPUTS or not arrays:
            raise BundleError(f"the bundle holds no decision {name!r}; it may hold {', '.join(INPUTS)}")
        if (
            not {"mean", "std", "weights", "intercept"}
            <= arrays.keys()
            <= cls.__dataclass_fields__.keys() - {"name"}
        ):
            raise BundleError(f"the decision {name!r} has missing or unknown arrays")
        return cls(name, **{key: array.astype(np.float64) for key, array in arrays.items()})

    def tensors(self) -> dict[str, np.ndarray]:
        """Return the decision as a bundle's arrays, float64."""
        fields = {key: getattr(self, key) for key in self.__dataclass_fields__ if key != "name"}
        return {f"decision.{self.name}.{key}": array for key, array in fields.items() if array is not None}

    def score(
        self, reconstruction_loss: ArrayLike, feature_matching_loss: ArrayLike, logits: ArrayLike
    ) -> Scores:
        """Return scores [n] float64 of losses [n], [n] and logits [n, 5]; higher is more anomalous."""
        return self.score_inputs(inputs(self.name, reconstruction_loss, feature_matching_loss, logits))

    def score_inputs(self, values: Scores) -> Scores:
        """Return scores [n] of inputs [n, d] as `inputs` returns them."""
        u = (values - self.mean) / self.std
        if self.support is None:  # sums and products, which are exact to the last bit wherever a row stands
            return weighted(u, self.weights) + self.intercept
        rows = padded(u, BLOCK)
        return np.concatenate([self._block(block) for block in rows.reshape(-1, BLOCK, u.shape[1])])[: len(u)]

    def _block(self, u: Scores) -> Scores:
        """Return scores [BLOCK] of standardized inputs u [BLOCK, d]."""
        assert self.support is not None
        assert self.coefficients is not None
        assert self.gamma is not None
        inside = np.clip(u, self.low, self.high)
        distance = np.zeros((len(u), len(self.support)))  # [BLOCK, m], squared
        for j in range(u.shape[1]):
            distance += np.square(inside[:, j, None] - self.support[:, j])
        kernel = np.exp(-self.gamma * distance)
        beyond = weighted(u - inside, self.weights)
        return (kernel * self.coefficients).sum(axis=1) + beyond + self.intercept


def on_device(decision: Decision, device: str) -> "Decision | CumlDecision | TorchDecision":
    """Return the decision for a device, `cpu` or `cuda:N`.

    A linear one stays on the CPU: three multiplications an image, on losses that lie there for the rows of
    the output, take less time than a GPU needs to be called. One with support vectors is scored by cuML, or
    by torch where cuML cannot be used.
    """
    if device == "cpu" or decision.support is None:
        return decision
    from .decision_cuml import CumlDecision, cuml_unusable

    reason = cuml_unusable()
    if reason is None:
        try:
            return CumlDecision(decision, device)
        except (ImportError, RuntimeError, ValueError) as error:
            log.warning("torch scores the decision %r on %s, not cuML: %s", decision.name, device, error)
    else:
        log.info("torch scores the decision %r on %s, not cuML: %s", decision.name, device, reason)
    from .decision_torch import TorchDecision

    return TorchDecision(decision, device)


def inputs(
    name: str, reconstruction_loss: ArrayLike, feature_matching_loss: ArrayLike, logits: ArrayLike
) -> Scores:
    """Return the inputs of the decision `name`, [n, d] float64: logarithms of losses, the largest logit."""
    largest = np.asarray(logits, np.float64).max(axis=1)
    columns = {
        "log_reconstruction_loss": lambda: _log(reconstruction_loss),
        "log_feature_matching_loss": lambda: _log(feature_matching_loss),
        "largest_logit": lambda: largest,
    }
    return np.stack([columns[column]() for column in INPUTS[name]], axis=1)


def _log(loss: ArrayLike) -> Scores:
    values = np.maximum(np.asarray(loss, np.float64), SMALLEST_LOSS)
    return np.log(padded(values[:, None], BLOCK)[:, 0])[: len(values)]


def padded(rows: Scores, block: int) -> Scores:
    """Pad rows [n, d] with ones to a multiple of `block`, at least one block."""
    blocks = max(1, -(-len(rows) // block))
    filled = np.ones((blocks * block, rows.shape[1]))
    filled[: len(rows)] = rows
    return filled


def weighted(u: Scores, weights: Scores) -> Scores:
    """Sum over j of weights_j u[:, j], without a matrix product."""
    total = np.zeros(len(u))
    for j, weight in enumerate(weights):
        # zero times an infinite loss would be NaN
        total += weight * u[:, j] if weight else 0.0
    return total


def sigmoid(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return the probabilities [n, 5] float32 of logits [n, 5], in float64 so that none overflows."""
    return (1 / (1 + np.exp(-logits.astype(np.float64)))).astype(np.float32)
