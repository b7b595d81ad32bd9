"""Detectors that learn benign features only, as the BiGAN does: `fit(benign x, seed)` gives `score(x)`.

All see the features as the BiGAN does: standardized by the benign ones, floored and clipped.
"""

from collections.abc import Callable, Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from gbad_batch.engine.model.architecture import Architecture
from gbad_batch.engine.model.bigan import BiGAN
from gbad_batch.engine.training.phases.phase2 import set_standardization

Features = NDArray[np.float32]  # [n, d]
Scores = NDArray[np.float64]  # [n], higher is more anomalous
Score = Callable[[Features], Scores]
Fit = Callable[[Features, int], Score]

COMPONENTS = Architecture().latent  # of PCA: as many as the BiGAN's z has
NEIGHBOURS = 5
TREES = 200


def standardization(benign: Features) -> Callable[[Features], Features]:
    """Return x [n, d] -> s [n, d] by the mean and std of benign features."""
    bigan = BiGAN(Architecture(features=benign.shape[1]))
    set_standardization(bigan, benign)
    return lambda x: bigan.standardize(torch.from_numpy(x)).numpy()


def fit_l1_norm(_benign: Features, _seed: int) -> Score:
    """Mean |s|: no model but the standardization."""
    return lambda s: np.abs(s).mean(axis=1, dtype=np.float64)


def fit_pca(benign: Features, _seed: int) -> Score:
    """Mean |s - its projection on the first components|: the linear counterpart of `reconstruction_loss`."""
    from sklearn.decomposition import PCA

    model = PCA(min(COMPONENTS, *benign.shape), svd_solver="full").fit(benign)
    return lambda s: np.abs(s - model.inverse_transform(model.transform(s))).mean(axis=1, dtype=np.float64)


def fit_mahalanobis(benign: Features, _seed: int) -> Score:
    """Squared distance from the mean by the covariance shrunk as Ledoit and Wolf, 2004, do."""
    from sklearn.covariance import LedoitWolf

    return LedoitWolf().fit(benign.astype(np.float64)).mahalanobis


def fit_neighbours(benign: Features, _seed: int) -> Score:
    """Mean Euclidean distance to the nearest benign features."""
    from sklearn.neighbors import NearestNeighbors

    model = NearestNeighbors(n_neighbors=min(NEIGHBOURS, len(benign)), algorithm="brute").fit(benign)
    return lambda s: model.kneighbors(s)[0].mean(axis=1, dtype=np.float64)


def fit_forest(benign: Features, seed: int) -> Score:
    """How few random cuts set a point apart: Liu, Ting and Zhou, Isolation Forest, ICDM 2008."""
    from sklearn.ensemble import IsolationForest

    model = IsolationForest(n_estimators=TREES, random_state=seed).fit(benign)
    return lambda s: -model.score_samples(s).astype(np.float64)


_ON_STANDARDIZED: Mapping[str, Fit] = {
    "l1_norm": fit_l1_norm,
    "pca": fit_pca,
    "mahalanobis": fit_mahalanobis,
    "neighbours": fit_neighbours,
    "isolation_forest": fit_forest,
}
RIVALS = tuple(_ON_STANDARDIZED)
RANDOM = ("isolation_forest",)  # the others give every seed the same


def fit(name: str, benign: Features, seed: int) -> Score:
    """Fit one of RIVALS to benign features x [n, d]; its score takes x [m, d] to [m]."""
    standardized = standardization(benign)
    score = _ON_STANDARDIZED[name](standardized(benign), seed)
    return lambda x: score(standardized(x))
