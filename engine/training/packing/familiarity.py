"""Typicality of a bundle: fitted on features of images that its network was not trained on."""

import logging
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save
from sklearn.covariance import LedoitWolf
from sklearn.model_selection import KFold

from ...bundle import Bundle, check_vacant, write_bundle
from ...errors import Refused
from ...model.typicality import PREFIX, SMALLEST_VARIANCE, Typicality
from ...system.machine import installed
from ...system.progress import ProgressCallback, silent
from .card import with_typicality
from .reduced import open_network, score_images

log = logging.getLogger(__name__)

DIRECTIONS = 64
BEYOND = 0.005  # share of images like those it was fitted on that may lie beyond the limit
FOLDS = 5  # the distance of an image is that to the images of the other folds
FEWEST = 100  # images; fewer say little of a share of BEYOND

Features = NDArray[np.float32]
Index = NDArray[np.intp]


def fit_typicality(x: Features) -> tuple[Typicality, dict[str, Any]] | None:
    """Fit a typicality on features x [n, d] of known images; returns it and its provenance.

    The covariance is Ledoit and Wolf's (2004), whose shrinkage suits few images of many features. The
    DIRECTIONS of its largest variances are kept, and the mean of the other variances. The limit is set on
    distances of images that the fit had not seen. None, with a warning, for fewer than FEWEST images.
    """
    if len(x) < FEWEST:
        log.warning(
            "the bundle has no typicality: %d images are fewer than the %d that it takes", len(x), FEWEST
        )
        return None
    unseen = np.empty(len(x))
    for seen, held in KFold(FOLDS, shuffle=True, random_state=0).split(x):
        unseen[held] = _fit(x[seen]).distance(x[held])
    limit = np.array([np.quantile(unseen, 1 - BEYOND)], np.float32)
    fitted = replace(_fit(x), limit=limit)
    told = {"images": len(x), "directions": len(fitted.variances), "beyond": BEYOND}
    return fitted, told | {"versions": installed(("scikit-learn", "numpy"))}


def known_images(validation: Index, calibration: Index) -> Index:
    """Return the images to fit a typicality on: validation, and as many of the benign ones of calibration.

    More of these would make threats, which the model has seen as well, look strange.
    """
    step = max(1, len(calibration) // max(1, len(validation)))
    return np.concatenate([validation, calibration[::step][: len(validation)]])


def _fit(x: Features) -> Typicality:
    """Fit mean and covariance; the limit is still 1."""
    model = LedoitWolf().fit(x.astype(np.float64))
    variances, vectors = np.linalg.eigh(model.covariance_)
    variances, vectors = np.maximum(variances[::-1], 2 * SMALLEST_VARIANCE), vectors[:, ::-1]
    kept = min(DIRECTIONS, len(variances) - 1)
    return Typicality(
        mean=model.location_.astype(np.float32),
        directions=np.ascontiguousarray(vectors[:, :kept].T, np.float32),
        variances=variances[:kept].astype(np.float32),
        rest=variances[kept:].mean(keepdims=True).astype(np.float32),
        limit=np.ones(1, np.float32),
    )


def add_typicality(
    bundle: Bundle, images: Sequence[Path], out: Path, progress: ProgressCallback = silent
) -> Bundle:
    """Write a copy of `bundle` that knows the typicality of images to the new folder `out`.

    `images` are bags like those that it was trained on, with and without threats, that it was not trained on.
    Nothing else changes but its card and hash. Raises Refused where fewer than FEWEST can be decoded.
    """
    check_vacant(out)
    with closing(open_network(bundle, "fp32", bundle.network_onnx)) as runner:
        x = score_images(bundle, runner, images, progress).x
    fitted = fit_typicality(x)
    if fitted is None:
        raise Refused(f"only {len(x)} images can be decoded, and typicality takes {FEWEST}: name more")
    typicality, told = fitted
    arrays = {name: array for name, array in bundle.tensors().items() if not name.startswith(PREFIX)}
    text = with_typicality(bundle.files["README.md"].decode(errors="replace"), told)
    files = {
        **bundle.files,
        "weights.safetensors": save(arrays | typicality.tensors()),
        "README.md": text.encode(),
    }
    provenance = {**bundle.manifest.provenance, "typicality": told}
    return write_bundle(out, replace(bundle.manifest, provenance=provenance).document(), files)
