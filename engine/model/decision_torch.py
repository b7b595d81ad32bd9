"""A decision with support vectors, scored on a GPU by torch from the arrays of its bundle."""

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from .decision import Decision, Scores, inputs

BLOCK = 256  # rows: batches of one fixed shape, so that no score depends on its neighbours


class TorchDecision:
    """Scores like `Decision.score`, in float64, with the same results up to the last bits.

    Each row is compared with thousands of support vectors. NumPy takes milliseconds for a batch, too long
    beside a GPU that scores tens of thousands of images a second.
    """

    def __init__(self, decision: Decision, device: str):
        self._decision = decision
        arrays = (decision.support, decision.coefficients, decision.gamma, decision.low, decision.high)
        self._arrays = [torch.tensor(array, device=device) for array in arrays]
        self._weights = torch.tensor(decision.weights, device=device)
        self._intercept = torch.tensor(decision.intercept, device=device)

    def score(
        self, reconstruction_loss: ArrayLike, feature_matching_loss: ArrayLike, logits: ArrayLike
    ) -> Scores:
        """Return scores [n] float64 of losses [n], [n] and logits [n, 5]; higher is more anomalous."""
        own = self._decision
        u = (inputs(own.name, reconstruction_loss, feature_matching_loss, logits) - own.mean) / own.std
        rows = np.zeros((-(-len(u) // BLOCK) * BLOCK, u.shape[1]))
        rows[: len(u)] = u
        blocks = torch.tensor(rows, device=self._weights.device).split(BLOCK)
        return np.concatenate([self._block(each).cpu().numpy() for each in blocks] or [rows[:, 0]])[: len(u)]

    def _block(self, u: Tensor) -> Tensor:
        """Return scores [BLOCK] of standardized inputs u [BLOCK, d]."""
        support, coefficients, gamma, low, high = self._arrays
        inside = u.clamp(low, high)
        distance = torch.zeros(len(u), len(support), dtype=u.dtype, device=u.device)  # [BLOCK, m], squared
        for j in range(u.shape[1]):
            distance += (inside[:, j, None] - support[:, j]).square()
        kernel = torch.exp(-gamma * distance)
        # zero times an infinite loss would be NaN
        beyond = torch.where(self._weights == 0, 0.0, self._weights * (u - inside))
        return (kernel * coefficients).sum(1) + beyond.sum(1) + self._intercept
