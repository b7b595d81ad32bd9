"""Rivals of the BiGAN on cases that a hand can work out, and on a set that each must tell apart."""

import numpy as np
import pytest
from benchmarks.quality import skip_ganomaly
from benchmarks.quality.ganomaly import PIXELS
from benchmarks.quality.rivals import COMPONENTS, RIVALS, fit, standardization
from sklearn.metrics import roc_auc_score


def features(n: int, d: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(n, d)).astype(np.float32)


def crossed() -> np.ndarray:
    """Four points that are their own standardized form: in each dimension the mean is 0, the std 1."""
    return np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]], np.float32)


def test_l1_norm_is_the_mean_size_of_standardized_features():
    score = fit("l1_norm", crossed(), 0)
    np.testing.assert_allclose(score(np.array([[0, 0], [3, -1], [-2, 0]], np.float32)), [0, 2, 1])


def test_features_are_clipped_as_in_the_bigan():
    assert fit("l1_norm", crossed(), 0)(np.array([[1000, -1000]], np.float32)) == 10


def test_dead_features_are_floored_as_in_the_bigan():
    benign = features(100, 8)
    benign[:, 0] = 0
    scale = 0.1 * np.median(benign.std(axis=0))
    s = standardization(benign)(np.full((1, 8), scale, np.float32))
    assert s[0, 0] == pytest.approx(1, rel=1e-5)


def test_pca_misses_what_leaves_the_space_of_benign_features_and_no_more():
    basis = features(COMPONENTS, 100)
    benign = features(500, COMPONENTS, 1) @ basis
    inside, step = features(3, COMPONENTS, 2) @ basis, features(3, 100, 3)
    score, s = fit("pca", benign, 0), standardization(benign)
    directions = (s(basis) - s(np.zeros_like(basis))).T  # [100, 8]
    moved = (s(inside + step) - s(inside)).T
    missed = moved - directions @ np.linalg.lstsq(directions, moved, rcond=None)[0]
    np.testing.assert_allclose(score(inside), 0, atol=1e-4)
    np.testing.assert_allclose(score(inside + step), np.abs(missed).mean(axis=0), rtol=1e-3)


def test_mahalanobis_divides_by_the_spread_along_each_axis():
    benign = features(20_000, 3) @ np.diag([1.0, 5.0, 1.0]).astype(np.float32)
    score = fit("mahalanobis", benign, 0)
    found = score(np.array([[2, 0, 0], [0, 10, 0], [2, 0, 2]], np.float32))
    np.testing.assert_allclose(found, [4, 4, 8], rtol=0.1)


def test_neighbours_give_the_mean_of_the_five_nearest_distances():
    benign = np.repeat(crossed(), 5, axis=0)
    score = fit("neighbours", benign, 0)
    np.testing.assert_allclose(score(np.array([[1, 1], [4, 5]], np.float32)), [0, 5], atol=1e-6)


def test_the_forest_ranks_by_remoteness_and_keeps_to_its_seed():
    benign = features(1000, 4)
    far = np.array([[0, 0, 0, 0], [1.5, 1.5, 1.5, 1.5], [4, 4, 4, 4]], np.float32)
    found = fit("isolation_forest", benign, 1)(far)
    assert found[0] < found[1] < found[2]
    np.testing.assert_array_equal(found, fit("isolation_forest", benign, 1)(far))
    assert not np.array_equal(found, fit("isolation_forest", benign, 2)(far))


@pytest.mark.parametrize("name", RIVALS)
def test_each_tells_far_features_from_benign_ones_it_has_not_seen(name: str):
    far = features(100, 16, 2) * 3
    score = fit(name, features(400, 16), 0)
    seen = np.concatenate([score(features(100, 16, 1)), score(far)])
    assert seen.dtype == np.float64
    assert roc_auc_score(np.arange(200) >= 100, seen) > 0.95


@pytest.mark.slow
def test_skip_ganomaly_copies_what_it_knows_and_tells_other_images_by_what_it_misses():
    random = np.random.default_rng(0)

    def images(count: int) -> np.ndarray:
        """Squares on white, of one colour each."""
        out = np.full((count, PIXELS, PIXELS, 3), 250, np.uint8)
        for image in out:
            top, left, side = random.integers(4, 40), random.integers(4, 40), random.integers(8, 20)
            image[top : top + side, left : left + side] = random.integers(60, 200, 3)
        return out

    noise = images(20)
    noise[:, 16:48, 16:48] = random.integers(0, 255, (20, 32, 32, 3))
    score = skip_ganomaly.fit(images(16), 40, 1)
    known, other = score(images(20)), score(noise)
    assert known.dtype == np.float64
    assert roc_auc_score(np.arange(40) >= 20, np.concatenate([known, other])) > 0.95
