"""Decisions keep order, and the score of an image is its own."""

from typing import Any

import numpy as np
import pytest
import torch
from fake_cuml import FakeCuml
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from gbad_batch.engine.errors import BundleError
from gbad_batch.engine.model import decision_torch
from gbad_batch.engine.model.decision import INPUTS, Decision, on_device
from gbad_batch.engine.model.decision_cuml import CumlDecision, as_sklearn, cuml_unusable
from gbad_batch.engine.model.decision_torch import TorchDecision

D = {name: len(inputs) for name, inputs in INPUTS.items()}


def linear(name: str, seed: int = 0) -> Decision:
    random = np.random.default_rng(seed)
    d = D[name]
    return Decision(
        name, random.normal(size=d), random.uniform(0.1, 2, d), random.uniform(0, 3, d), random.normal(size=1)
    )


def rbf(name: str, seed: int = 0, m: int = 137) -> Decision:
    """Make a machine that rises along every axis: wide bumps, negative below, positive above."""
    random = np.random.default_rng(seed)
    d = D[name]
    support = random.uniform(-2, 2, (m, d))
    return Decision(
        name,
        mean=random.normal(size=d),
        std=random.uniform(0.5, 2, d),
        weights=np.ones(d),
        intercept=np.array([-0.1]),
        support=support,
        coefficients=support.sum(axis=1),
        gamma=np.array([0.01]),
        low=np.full(d, -2.0),
        high=np.full(d, 2.0),
    )


def outputs(n: int, seed: int = 1) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    losses = random.gamma(2, 0.4, (2, n)).astype(np.float32)
    return losses[0], losses[1], random.normal(size=(n, 5)).astype(np.float32)


@pytest.mark.parametrize("make", [linear, rbf])
@pytest.mark.parametrize("name", INPUTS)
def test_scores_equal_the_formula(make, name: str):
    decision = make(name)
    reconstruction, matching, logits = outputs(70)
    columns = {
        "log_reconstruction_loss": np.log(reconstruction.astype(np.float64)),
        "log_feature_matching_loss": np.log(matching.astype(np.float64)),
        "largest_logit": logits.max(axis=1).astype(np.float64),
    }
    u = (np.stack([columns[each] for each in INPUTS[name]], axis=1) - decision.mean) / decision.std
    wanted = u @ decision.weights + decision.intercept
    if decision.support is not None:
        inside = np.clip(u, decision.low, decision.high)
        squared = np.square(inside[:, None] - decision.support[None]).sum(axis=2)
        kernel = np.exp(-decision.gamma * squared) @ decision.coefficients
        wanted = kernel + (u - inside) @ decision.weights + decision.intercept
    got = decision.score(reconstruction, matching, logits)
    assert got.dtype == np.float64
    assert np.allclose(got, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("make", [linear, rbf])
@pytest.mark.parametrize("name", INPUTS)
@settings(deadline=None, max_examples=30)
@given(start=st.integers(0, 199), count=st.integers(1, 200))
def test_a_score_is_bit_equal_whatever_its_neighbours(make, name: str, start: int, count: int):
    decision = make(name)
    everything = outputs(200)
    whole = decision.score(*everything)
    part = decision.score(*(each[start : start + count] for each in everything))
    assert np.array_equal(part, whole[start : start + count])
    backwards = decision.score(*(each[::-1] for each in everything))
    assert np.array_equal(backwards[::-1], whole)


@pytest.mark.parametrize("make", [linear, rbf])
@pytest.mark.parametrize("name", ["gbad", "combined"])
def test_the_score_never_falls_when_a_loss_rises(make, name: str):
    decision = make(name)
    losses = np.geomspace(1e-6, 1e6, 121)  # far beyond any training range, both ways
    r, m = (axis.ravel() for axis in np.meshgrid(losses, losses, indexing="ij"))
    scores = decision.score(r, m, np.zeros((r.size, 5))).reshape(121, 121)
    assert (np.diff(scores, axis=0) >= -1e-9).all()
    assert (np.diff(scores, axis=1) >= -1e-9).all()
    if make is rbf:
        assert (
            np.diff(np.diagonal(scores)[-20:]) > 0
        ).all()  # still telling the extreme from the more extreme


DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")],
    ),
]


def assert_each_by_itself(found: Any, name: str, everything: Any, scores: NDArray[np.float64]) -> None:
    """Hold a score to its own bits, whatever stands beside it; no images and any loss are scored, too."""
    part = found.score(*(each[300:301] for each in everything))
    assert np.array_equal(part, scores[300:301])
    assert found.score([], [], np.zeros((0, 5))).shape == (0,)
    if name != "classes":
        zero, large, infinite = found.score([0.0, 1e30, np.inf], [0.0, 1e30, np.inf], np.zeros((3, 5)))
        assert zero < large < infinite == np.inf


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", INPUTS)
def test_torch_scores_as_numpy_does(name: str, device: str):
    decision = rbf(name)
    everything = outputs(700)
    wanted = decision.score(*everything)
    found = TorchDecision(decision, device)
    scores = found.score(*everything)
    assert scores.dtype == np.float64
    np.testing.assert_allclose(scores, wanted, rtol=1e-12, atol=1e-11)
    assert_each_by_itself(found, name, everything, scores)


def test_a_gpu_takes_over_only_what_costs():
    assert isinstance(on_device(linear("gbad"), "cuda:0"), Decision)
    assert isinstance(on_device(rbf("gbad"), "cpu"), Decision)


@pytest.fixture
def cuml(monkeypatch: pytest.MonkeyPatch) -> FakeCuml:
    world = FakeCuml()
    world.install(monkeypatch)
    return world


@pytest.mark.parametrize("name", INPUTS)
def test_cuml_scores_as_numpy_does_in_batches_of_one_shape(name: str, cuml: FakeCuml):
    decision = rbf(name)
    everything = outputs(700)
    found = on_device(decision, "cuda:3")
    before = len(cuml.shapes)
    scores = found.score(*everything)
    assert cuml.shapes[before:] == [(256, D[name])] * 3
    assert set(cuml.gpus) == {3}
    assert scores.dtype == np.float64
    np.testing.assert_allclose(scores, decision.score(*everything), rtol=1e-10, atol=1e-9)
    assert_each_by_itself(found, name, everything, scores)


def test_what_cuml_takes_over_scores_in_scikit_learn_as_in_numpy():
    """By libsvm itself: signs, order and gamma of the machine that cuML reads are right."""
    decision = rbf("combined")
    inside = np.random.default_rng(4).uniform(-2, 2, (50, 3))
    wanted = decision.score_inputs(inside * decision.std + decision.mean)
    np.testing.assert_allclose(as_sklearn(decision).decision_function(inside), wanted, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("off", [1e-3, np.nan])
def test_cuml_that_differs_from_numpy_is_not_used(
    cuml: FakeCuml, off: float, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    cuml.off = off
    monkeypatch.setattr(decision_torch, "TorchDecision", lambda decision, _: TorchDecision(decision, "cpu"))
    found = on_device(rbf("gbad"), "cuda:0")
    assert isinstance(found, TorchDecision)
    assert "not cuML: its scores differ from NumPy's by" in caplog.text


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available() or cuml_unusable() is not None, reason="needs cuML on a GPU"
)
@pytest.mark.parametrize("name", INPUTS)
def test_cuml_itself_scores_as_numpy_does(name: str):
    decision = rbf(name)
    everything = outputs(700)
    scores = CumlDecision(decision, "cuda:0").score(*everything)
    np.testing.assert_allclose(scores, decision.score(*everything), rtol=1e-8, atol=1e-8)


def test_extreme_losses_still_have_an_order():
    for decision in (linear("gbad"), rbf("gbad")):
        zero, large, infinite = decision.score([0.0, 1e30, np.inf], [0.0, 1e30, np.inf], np.zeros((3, 5)))
        assert np.isfinite([zero, large]).all()
        assert zero < large < infinite == np.inf


@pytest.mark.parametrize("make", [linear, rbf])
def test_a_decision_survives_its_arrays(make):
    decision = make("combined")
    again = Decision.from_tensors("combined", decision.tensors() | linear("gbad").tensors())
    everything = outputs(10)
    assert np.array_equal(again.score(*everything), decision.score(*everything))
    assert all(array.dtype == np.float64 for array in decision.tensors().values())


def test_an_empty_batch_has_no_scores():
    assert rbf("gbad").score([], [], np.zeros((0, 5))).shape == (0,)


def test_arrays_that_are_no_decision_are_refused():
    good = rbf("gbad").tensors()
    wrong = [
        {},
        {key: array for key, array in good.items() if not key.endswith("mean")},
        {key: array for key, array in good.items() if not key.endswith("gamma")},
        good | {"decision.gbad.surplus": np.ones(1)},
        good | {"decision.gbad.std": np.zeros(2)},
        good | {"decision.gbad.weights": np.ones(3)},
        good | {"decision.gbad.intercept": np.array([np.nan])},
    ]
    for tensors in wrong:
        with pytest.raises(BundleError):
            Decision.from_tensors("gbad", tensors)
    with pytest.raises(BundleError, match="no decision 'other'"):
        Decision.from_tensors("other", good)
