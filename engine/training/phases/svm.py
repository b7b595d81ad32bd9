"""The support vector machine of phase III: by cuML on an NVIDIA GPU, by scikit-learn elsewhere.

Both use the same names and signs, so one set of arrays describes a machine: the score of u is the sum over i
of coefficients_i k(support_i, u) + intercept, above zero for positives.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

import numpy as np
import sklearn
import sklearn.svm
from numpy.typing import NDArray

from ...model.decision import Scores
from ...model.decision_cuml import cuml_unusable

log = logging.getLogger(__name__)

CACHE = 500  # MB of kernel values kept while fitting


@dataclass(frozen=True)
class FittedSvm:
    """A fitted machine as arrays."""

    support: Scores  # [m, d] support vectors
    coefficients: Scores  # [m] label times dual coefficient
    intercept: Scores  # [1]

    @property
    def weights(self) -> Scores:
        """Return the weights [d] of a linear machine."""
        return (self.coefficients[None] @ self.support)[0]


# standardized inputs [n, d], positives [n], C, and gamma of an RBF kernel or None for a linear one
Fitter = Callable[[Scores, NDArray[np.bool_], float, float | None], FittedSvm]


def choose_fitter(device: str) -> tuple[str, Fitter]:
    """Return the name and version of the library that fits machines on torch's `device`, and its function."""
    if device != "cpu":
        reason = cuml_unusable()
        if reason is None:
            import cuml

            return f"cuML {cuml.__version__}", partial(fit_by_cuml, device=int(device.partition(":")[2]))
        log.info("scikit-learn fits the SVM of phase III on the CPU: %s", reason)
    return f"scikit-learn {sklearn.__version__}", fit_by_sklearn


def fit_by_sklearn(u: Scores, positive: NDArray[np.bool_], cost: float, gamma: float | None) -> FittedSvm:
    """Fit a class-weighted machine on the CPU."""
    machine = sklearn.svm.SVC(
        C=cost,
        kernel="linear" if gamma is None else "rbf",
        gamma=gamma or "scale",  # pyright: ignore[reportArgumentType] - a number too
        class_weight="balanced",
        cache_size=CACHE,
    )
    return _arrays(machine.fit(u, positive))


def fit_by_cuml(
    u: Scores, positive: NDArray[np.bool_], cost: float, gamma: float | None, device: int = 0
) -> FittedSvm:
    """Fit the same machine on a GPU, in float64 as on the CPU."""
    import cuml.svm
    import cupy

    with cupy.cuda.Device(device):
        machine = cuml.svm.SVC(
            C=cost,
            kernel="linear" if gamma is None else "rbf",
            gamma=gamma or "scale",
            class_weight="balanced",
            cache_size=CACHE,
            output_type="numpy",
        )
        return _arrays(machine.fit(u, positive.astype(np.int32)))


class _Fitted(Protocol):
    """Attributes that the machines of both libraries have."""

    support_vectors_: Any  # [m, d]
    dual_coef_: Any  # [1, m]
    intercept_: Any  # [1]


def _arrays(machine: _Fitted) -> FittedSvm:
    return FittedSvm(
        support=np.ascontiguousarray(machine.support_vectors_, np.float64),
        coefficients=np.array(machine.dual_coef_[0], np.float64),
        intercept=np.array(machine.intercept_, np.float64),
    )
