"""The machine of phase III by two libraries: the same arrays, the same signs."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from sklearn.svm import SVC
from stubs import unknown_names

from gbad_batch.engine.training.phases.svm import (
    FittedSvm,
    choose_fitter,
    cuml_unusable,
    fit_by_cuml,
    fit_by_sklearn,
)

# the solver of each library stops within 1e-3 of the optimum, by a path of its own
AGREE = 0.02  # of the standard deviation of the scores, cuML against scikit-learn


def data(n: int = 600) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    random = np.random.default_rng(5)
    positive = random.random(n) < 0.2
    return random.normal(size=(n, 2)) + 1.5 * positive[:, None], positive


def scores(machine: FittedSvm, u: NDArray[np.float64], gamma: float | None) -> NDArray[np.float64]:
    if gamma is None:
        return u @ machine.weights + machine.intercept
    squared = np.square(u[:, None] - machine.support[None]).sum(axis=2)
    return np.exp(-gamma * squared) @ machine.coefficients + machine.intercept


@pytest.mark.parametrize("gamma", [None, 0.3])
def test_the_arrays_score_as_the_machine_does(gamma: float | None) -> None:
    u, positive = data()
    machine = fit_by_sklearn(u, positive, 1.0, gamma)
    kernel = {"kernel": "linear"} if gamma is None else {"gamma": gamma}
    wanted = SVC(C=1.0, class_weight="balanced", **kernel).fit(u, positive).decision_function(u)  # pyright: ignore
    found = scores(machine, u, gamma)
    np.testing.assert_allclose(found, wanted, atol=1e-9)
    assert found[positive].mean() > 0 > found[~positive].mean()


def test_scikit_learn_fits_where_no_gpu_is() -> None:
    library, fitter = choose_fitter("cpu")
    assert library.startswith("scikit-learn 1.")
    assert fitter is fit_by_sklearn


@pytest.mark.skipif(cuml_unusable() is None, reason="cuML can be used here")
def test_training_on_a_gpu_without_cuml_says_why(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("INFO"):
        library, _ = choose_fitter("cuda:0")
    assert library.startswith("scikit-learn")
    assert "scikit-learn fits the SVM of phase III on the CPU: cu" in caplog.text


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available() or cuml_unusable() is not None, reason="needs cuML on a GPU"
)
@pytest.mark.parametrize("gamma", [None, 0.3])
def test_cuml_agrees_with_scikit_learn(gamma: float | None) -> None:
    import cuml.svm

    u, positive = data()
    machine = fit_by_cuml(u, positive, 1.0, gamma)
    found = scores(machine, u, gamma)
    wanted = scores(fit_by_sklearn(u, positive, 1.0, gamma), u, gamma)
    np.testing.assert_allclose(found, wanted, atol=AGREE * wanted.std())
    # signs: the arrays score as cuML itself does
    kernel = "linear" if gamma is None else "rbf"
    own = cuml.svm.SVC(C=1.0, class_weight="balanced", kernel=kernel, gamma=gamma or 1.0, output_type="numpy")
    np.testing.assert_allclose(found, own.fit(u, positive.astype(np.int32)).decision_function(u), atol=1e-6)


@pytest.mark.parametrize("module", ["cuml", "cuml.svm", "cupy", "cupy.cuda", "cupy.cuda.runtime"])
def test_what_the_type_checker_knows_of_cuml_is_there(module: str) -> None:
    pytest.importorskip(module.partition(".")[0])
    assert unknown_names(module) == []
