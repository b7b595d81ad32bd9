"""Stands in for cuML and CuPy, in tests alone: NumPy computes what cuML's SVC would on a GPU.

It is no cuML: of the real one (26.10, `cuml/svm/svc.py` and `svm_base.pyx`) it has the reading of a fitted
scikit-learn machine, attribute by attribute, and the formula of its decision function. It raises where a
batch has another shape than those before, since that may change a score, and where no GPU is the current one.
"""

import sys
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import sklearn.svm

# what `_params_from_cpu` and `_attrs_from_cpu` read of a machine that was not fitted on sparse data
PARAMETERS = ("kernel", "degree", "gamma", "coef0", "tol", "C", "cache_size", "max_iter", "epsilon")
PARAMETERS += ("random_state", "class_weight", "decision_function_shape")
FITTED = ("dual_coef_", "support_vectors_", "intercept_", "support_", "_gamma", "_sparse", "fit_status_")
FITTED += ("shape_fit_", "n_iter_", "n_features_in_", "classes_", "class_weight_")


class FakeCuml:
    """What tests look at, and what they break."""

    def __init__(self) -> None:
        self.current: list[int] = []  # GPUs, the last one in use
        self.shapes: list[tuple[int, ...]] = []  # of the batches that were scored
        self.gpus: list[int] = []  # that scored them
        self.off = 0.0  # that each score is wrong by

    def install(self, patch: pytest.MonkeyPatch) -> None:
        """Have `import cuml` and `import cupy` find this."""
        world = self

        class SVC:
            @classmethod
            def from_sklearn(cls, model: Any) -> "SVC":
                assert type(model) is sklearn.svm.SVC
                assert world.current
                made = cls()
                for name in (*PARAMETERS, *FITTED):
                    setattr(made, name, getattr(model, name))
                return made

            def decision_function(self, rows: Any) -> Any:
                own: Any = self
                assert own.kernel == "rbf"
                assert not own._sparse
                assert len(own.classes_) == 2
                assert rows.dtype == own.support_vectors_.dtype == np.float64
                assert rows.shape[1] == own.shape_fit_[1] == own.n_features_in_
                world.shapes.append(rows.shape)
                world.gpus.append(world.current[-1])
                assert len(set(world.shapes)) == 1
                a, b = rows, own.support_vectors_
                squared = np.square(a).sum(1)[:, None] + np.square(b).sum(1) - 2 * a @ b.T
                scores = np.exp(-own._gamma * squared) @ own.dual_coef_[0] + own.intercept_[0]
                return scores + world.off

        class Device:
            def __init__(self, device: int):
                self._number = device

            def __enter__(self) -> "Device":
                world.current.append(self._number)
                return self

            def __exit__(self, *_: object) -> None:
                world.current.pop()

        class CUDARuntimeError(RuntimeError): ...

        modules = {
            "cuml": {"__version__": "26.10"},
            "cuml.svm": {"SVC": SVC},
            "cupy": {},
            "cupy.cuda": {"Device": Device},
            "cupy.cuda.runtime": {"getDeviceCount": lambda: 1, "CUDARuntimeError": CUDARuntimeError},
        }
        for name, content in modules.items():
            module: Any = ModuleType(name)
            module.__spec__ = ModuleSpec(name, None)
            module.__path__ = []
            vars(module).update(content)
            patch.setitem(sys.modules, name, module)
            above, _, last = name.rpartition(".")
            if above:
                setattr(sys.modules[above], last, module)
