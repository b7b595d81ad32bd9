"""Synthetic images beside a site's own, in phase I: they teach the classes that the site's labels do not."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..datasets.labels import Gathered
from ..row import THREATS
from ..synth import SynthSettings
from ..system.progress import ProgressCallback
from .data import Index, Labelled
from .drawing import draw_set, gather_set

FOLDER = "synthetic"  # in the run folder
SEED = 1 << 33  # of pictures that are in no set of the default bundle
LONGEST = 2  # sides of the network's input: a longer side of a picture is drawn smaller
# more of the scarce classes than bags hold
CLASS_SHARES = (0.30, 0.28, 0.28, 0.34, 0.24)
FEWEST = 10  # images that hold a class, below which a site's labels do not teach it


def synthetic_images(folder: Path, count: int, seed: int, size: int, progress: ProgressCallback) -> Labelled:
    """Draw images with boxes into a folder of arrays, half of them with threats; keeps what is there."""
    settings = SynthSettings(count, SEED + seed, 0.5, class_shares=CLASS_SHARES, longest=LONGEST * size)
    draw_set(folder / FOLDER, settings, size, progress)
    gathered = Gathered()
    gather_set(folder / FOLDER, settings, size, "train", gathered)
    labels = gathered.labels(folder)
    paths = tuple(folder / name for name in labels.names)
    return Labelled(paths, labels.labels, labels.groups, labels.splits, labels.boxes)


def believed(labelled: Labelled, train: Index) -> NDArray[np.bool_]:
    """Return which labels [n, 5] a training may believe.

    Whoever labels guns and knives only often writes 0 for pliers, not a blank. So where fewer than FEWEST
    training images hold a class, its absence is believed of bags without any threat, not of those with
    another one.
    """
    scarce = labelled.labels[train].sum(axis=0) < FEWEST
    return labelled.known & (labelled.labels | ~scarce | ~labelled.positive[:, None])


def unknown_classes(known: NDArray[np.bool_]) -> dict[str, int]:
    """Count the images whose label is not known, for each class that has such."""
    counts = (~known).sum(axis=0).tolist()
    return {threat: count for threat, count in zip(THREATS, counts, strict=True) if count}
