"""Figures of a network on samples of images while it trains, which the report plots by epoch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score, precision_recall_fscore_support
from torch import nn

from ...model.architecture import MAP_LSE, MAP_MAX
from ...model.gbad import GBAD
from ...model.network import Network, normalize
from ..data import Labelled
from ..pixels import decoded

AT_ONCE = 32  # images
AVERAGES = ("micro", "macro")


class Sample(NamedTuple):
    """Images that a network is observed on."""

    images: Labelled
    size: int  # pixels a side


@dataclass(frozen=True)
class Observed:
    """Figures on a sample of training images and one of validation images, at p >= 0.5."""

    training: dict[str, float]
    validation: dict[str, float]
    validation_map: float  # mean over classes of average precision; NaN without positives

    def line(self) -> dict[str, float | None]:
        """Return the figures by name, undefined ones as None."""
        both = {"training": self.training, "validation": self.validation}
        figures = {f"{kind}_{key}": value for kind, values in both.items() for key, value in values.items()}
        return {key: round(value, 5) if np.isfinite(value) else None for key, value in figures.items()}


def observe(network: nn.Module, model: GBAD, samples: Sequence[Sample]) -> Observed:
    """Run the network on both samples (training, validation)."""
    was_training = network.training
    network.eval()
    training, validation = (
        class_figures(images, probabilities(network, model, images.paths, size)) for images, size in samples
    )
    network.train(was_training)
    return Observed(training, validation, validation["map"])


@torch.no_grad()
def probabilities(network: nn.Module, model: GBAD, paths: Sequence[Path], size: int) -> NDArray[np.float32]:
    """Return sigmoids [n, 5] of images decoded as a scan decodes them; NaN for those that cannot be."""
    device = next(network.parameters()).device
    out = np.full((len(paths), 5), np.nan, np.float32)
    for index, pixels in _batches(paths, size):
        images = normalize(torch.from_numpy(pixels), model.pixel_mean, model.pixel_std)
        out[index] = network(images.to(device))[1].float().sigmoid().cpu().numpy()
    return out


def choose_head(network: Network, model: GBAD, sample: Sample) -> dict[str, float]:
    """Give a class map the pooling with the better mAP on a validation sample; returns the mAP of each.

    The maximum, with which it was trained, stays unless the other one is better.
    """
    images, size = sample
    found = {}
    for network.head in (MAP_MAX, MAP_LSE):
        value = class_figures(images, probabilities(network, model, images.paths, size))["map"]
        found[network.head] = value if np.isfinite(value) else 0.0
    network.head = max(found, key=lambda head: found[head])
    return found


def class_figures(images: Labelled, predicted: NDArray[np.float32]) -> dict[str, float]:
    """Return micro and macro precision, recall and F1 at p >= 0.5, and mAP over classes with positives.

    An image takes no part in the figures of a class whose label is unknown.
    """
    readable = np.flatnonzero(np.isfinite(predicted).all(axis=1))
    labels, known, predicted = images.labels[readable], images.known[readable], predicted[readable]
    figures: dict[str, float] = {}
    for average in AVERAGES:
        precision, recall, f1, _ = precision_recall_fscore_support(
            labels, (predicted >= 0.5) & known, average=average, zero_division=cast("str", 0.0)
        )
        figures |= {
            f"precision_{average}": float(precision),
            f"recall_{average}": float(recall),
            f"f1_{average}": float(f1),
        }
    present = np.flatnonzero(labels.any(axis=0))
    aps = [average_precision_score(labels[known[:, k], k], predicted[known[:, k], k]) for k in present]
    return figures | {"map": float(np.mean(aps)) if aps else float("nan")}


def _batches(paths: Sequence[Path], size: int) -> Iterator[tuple[list[int], NDArray[np.uint8]]]:
    for start in range(0, len(paths), AT_ONCE):
        images = list(enumerate(decoded(paths[start : start + AT_ONCE], size), start))
        whole = [(k, image) for k, image in images if image is not None]
        if whole:
            yield [k for k, _ in whole], np.stack([image for _, image in whole])
