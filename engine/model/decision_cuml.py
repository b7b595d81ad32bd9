"""A decision with support vectors, scored on a GPU by cuML's SVC from the arrays of its bundle."""

from importlib.util import find_spec
from threading import Lock
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ..errors import how_to_install
from .decision import BLOCK, Decision, Scores, inputs, padded, weighted

ROWS = 4 * BLOCK  # of a call: one fixed shape, so that no score depends on its neighbours
PROBES = 200  # support vectors that are scored by NumPy as well
ALIKE = 1e-9  # difference of a score, as a share of the sum of all coefficients' sizes


class CumlDecision:
    """Scores like `Decision.score`, in float64, the kernel by cuML; raises ValueError if cuML differs.

    What lies beyond the range of training is added where the losses are: a few multiplications an image.
    """

    def __init__(self, decision: Decision, device: str):
        import cuml.svm

        self._decision = decision
        self._number = int(device.partition(":")[2])
        self._turn = Lock()  # cuML promises nothing to threads
        with self._gpu():
            self._machine = cuml.svm.SVC.from_sklearn(as_sklearn(decision))
        self._compare()

    def score(
        self, reconstruction_loss: ArrayLike, feature_matching_loss: ArrayLike, logits: ArrayLike
    ) -> Scores:
        """Return scores [n] float64 of losses [n], [n] and logits [n, 5]; higher is more anomalous."""
        name = self._decision.name
        return self.score_inputs(inputs(name, reconstruction_loss, feature_matching_loss, logits))

    def score_inputs(self, values: Scores) -> Scores:
        """Return scores [n] of inputs [n, d] as `inputs` returns them."""
        own = self._decision
        u = padded((values - own.mean) / own.std, ROWS)
        inside = np.clip(u, own.low, own.high)
        with self._turn, self._gpu():
            kernel = [self._machine.decision_function(rows) for rows in np.split(inside, len(u) // ROWS)]
        beyond = weighted(u - inside, own.weights)
        return (np.concatenate(kernel) + beyond)[: len(values)]

    def _gpu(self) -> Any:
        import cupy

        return cupy.cuda.Device(self._number)

    def _compare(self) -> None:
        """Score support vectors, and inputs far beyond them, by NumPy as well."""
        own = self._decision
        assert own.support is not None
        assert own.coefficients is not None
        rows = own.support[:: -(-len(own.support) // PROBES)]
        values = np.concatenate([rows, 10 * rows]) * own.std + own.mean
        off = np.abs(self.score_inputs(values) - own.score_inputs(values)).max()
        if not off <= ALIKE * max(1.0, np.abs(own.coefficients).sum()):
            raise ValueError(f"its scores differ from NumPy's by {off:.2g}")


def as_sklearn(decision: Decision) -> Any:
    """Return the kernel of a decision as a fitted `sklearn.svm.SVC`, which cuML takes over.

    scikit-learn keeps coefficients and intercept of two classes twice, once with the other sign.
    """
    from sklearn.svm import SVC

    assert decision.support is not None
    assert decision.coefficients is not None
    assert decision.gamma is not None
    m, d = decision.support.shape
    gamma = float(decision.gamma[0])
    machine: Any = SVC(kernel="rbf", gamma=gamma)  # pyright: ignore[reportArgumentType] - a number too
    fitted = {
        "support_": np.arange(m, dtype=np.int32),
        "support_vectors_": np.ascontiguousarray(decision.support),
        "_n_support": np.array([m, 0], np.int32),
        "dual_coef_": decision.coefficients[None].copy(),
        "_dual_coef_": -decision.coefficients[None],
        "intercept_": decision.intercept.copy(),
        "_intercept_": -decision.intercept,
        "_probA": np.empty(0),
        "_probB": np.empty(0),
        "_effective_probability": False,
        "_gamma": gamma,
        "_sparse": False,
        "classes_": np.array([False, True]),
        "class_weight_": np.ones(2),
        "fit_status_": 0,
        "n_features_in_": d,
        "n_iter_": np.zeros(1, np.int32),
        "shape_fit_": (m, d),
    }
    for name, value in fitted.items():
        setattr(machine, name, value)
    return machine


def cuml_unusable() -> str | None:
    """Return why cuML cannot be used here, or None if it can.

    It imports without a GPU and fails at the first call: so the device is tried, not the import.
    """
    for package in ("cuml", "cupy"):
        if find_spec(package) is None:
            return f"{package} is not installed ({how_to_install('gpu')})"
    try:
        from cupy.cuda import runtime
    except ImportError as error:
        return f"cuPy, which drives it, cannot be loaded ({error!s:.100})"
    try:
        return None if runtime.getDeviceCount() else "cuPy finds no GPU"
    except runtime.CUDARuntimeError as error:
        return f"cuPy finds no GPU ({error!s:.100})"
