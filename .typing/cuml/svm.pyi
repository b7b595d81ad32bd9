# What this project calls of cuML 26.10, for the type checker: from cuml/svm/svc.py of its wheel.
from typing import Any, Literal

from numpy.typing import ArrayLike

class SVC:
    support_vectors_: Any
    dual_coef_: Any
    intercept_: Any

    def __init__(
        self,
        *,
        C: float = 1.0,
        kernel: Literal["linear", "poly", "rbf", "sigmoid", "precomputed"] = "rbf",
        degree: int = 3,
        gamma: float | Literal["scale", "auto"] = "scale",
        coef0: float = 0.0,
        tol: float = 1e-3,
        cache_size: float = 1024.0,
        max_iter: int = -1,
        nochange_steps: int = 1000,
        verbose: int | bool = False,
        output_type: Literal["input", "cupy", "numpy", "cudf", "pandas"] | None = None,
        random_state: int | None = None,
        class_weight: dict[Any, float] | Literal["balanced"] | None = None,
        decision_function_shape: Literal["ovo", "ovr"] = "ovo",
    ) -> None: ...
    @classmethod
    def from_sklearn(cls, model: Any) -> SVC: ...
    def fit(self, X: ArrayLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> SVC: ...
    def decision_function(self, X: ArrayLike) -> Any: ...
