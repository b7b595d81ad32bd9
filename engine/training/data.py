"""Labelled images for training, and their division into four disjoint splits."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..datasets import Box, find_images, join, read_labels
from ..datasets.arrays import is_row, rows_below
from ..errors import Refused
from ..row import THREATS
from .settings import Shares

Index = NDArray[np.intp]


@dataclass(frozen=True)
class Labelled:
    """Paths of images and their labels."""

    paths: tuple[Path, ...]
    labels: NDArray[np.bool_]  # [n, 5] in the order of THREATS; a benign image has none
    groups: tuple[str, ...]  # bag of each image; '' where none is known
    splits: tuple[str, ...]  # the split that the labels name; '' where they name none
    boxes: tuple[tuple[Box, ...], ...] = ()  # of each image's threats; empty where the labels have none
    # [n, 5] whether a label is known; an unknown one is False in `labels`; empty: all are known
    known: NDArray[np.bool_] = field(default_factory=lambda: np.empty((0, len(THREATS)), np.bool_))

    def __post_init__(self) -> None:
        """Take labels for known where nothing else is said."""
        if not len(self.known):
            object.__setattr__(self, "known", np.ones_like(self.labels))

    @property
    def positive(self) -> NDArray[np.bool_]:
        """Tell which images hold a threat, [n]."""
        return np.any(self.labels, axis=1)

    def take(self, index: Index) -> "Labelled":
        """Return the images at these positions."""
        return Labelled(
            tuple(self.paths[i] for i in index),
            self.labels[index],
            tuple(self.groups[i] for i in index),
            tuple(self.splits[i] for i in index),
            tuple(self.boxes[i] for i in index) if self.boxes else (),
            self.known[index],
        )

    def concatenated(self, more: "Labelled") -> "Labelled":
        """Return these images followed by others."""
        return Labelled(
            self.paths + more.paths,
            np.concatenate([self.labels, more.labels]),
            self.groups + more.groups,
            self.splits + more.splits,
            (self.boxes or ((),) * len(self.paths)) + (more.boxes or ((),) * len(more.paths)),
            np.concatenate([self.known, more.known]),
        )

    def digest(self, folder: Path) -> str:
        """Return the SHA-256 of the data set: paths relative to a folder, labels and splits."""
        paths = [os.path.relpath(path, folder) for path in self.paths]
        labels = [
            [flag if sure else None for flag, sure in zip(*both, strict=True)]
            for both in zip(self.labels.tolist(), self.known.tolist(), strict=True)
        ]
        lines = zip(paths, labels, self.groups, self.splits, strict=True)
        return hashlib.sha256("\n".join(str(line) for line in lines).encode()).hexdigest()

    def boxes_digest(self) -> str:
        """Return the SHA-256 of the boxes."""
        return hashlib.sha256(repr(self.boxes).encode()).hexdigest()


@dataclass(frozen=True)
class Splits:
    """Disjoint positions in one data set, each sorted."""

    train: Index
    validation: Index  # stops phase I, chooses the decision
    calibration: Index  # benign only: sets operating points
    test: Index  # gives the card's figures


def load_labelled(
    labels: Path, image_folder: Path, form: str = "auto", class_map: Path | None = None
) -> Labelled:
    """Read labels in any format and find their images below a folder; raises Refused if that fails."""
    read = read_labels(labels, form, class_map)
    paths = find_images(image_folder)
    if any(is_row(Path(name)) for name in read.names):
        paths += rows_below(image_folder)
    position = join(read, [str(path) for path in paths])
    boxes = read.boxes if any(read.boxes) else ()
    found = tuple(paths[i] for i in position)
    return Labelled(found, read.labels, read.groups, read.splits, boxes, read.known)


def split(labelled: Labelled, alike: Index, shares: Shares, seed: int) -> Splits:
    """Divide images into four parts, with all images of a group in one.

    A group is a bag, or images with the same number in `alike` [n]; it is positive if one of its images is.
    If the labels name splits, these are used, and images without one are left out. Raises Refused if a part
    lacks positive or benign images that it needs.
    """
    given = any(labelled.splits)
    parts = _given(labelled) if given else _dealt(labelled, alike, shares, seed)
    _check(labelled, parts, None if given else shares)
    return parts


def _given(labelled: Labelled) -> Splits:
    by_name = np.array(labelled.splits)
    parts = {part.name: np.flatnonzero(by_name == part.name) for part in fields(Splits)}
    parts["calibration"] = parts["calibration"][~labelled.positive[parts["calibration"]]]
    return Splits(**parts)


def _dealt(labelled: Labelled, alike: Index, shares: Shares, seed: int) -> Splits:
    random = np.random.default_rng((seed, 1))
    group = group_numbers(labelled.groups, alike)
    positive = np.zeros(len(group), np.bool_)
    np.logical_or.at(positive, group, labelled.positive)
    part = np.zeros(len(group), np.intp)  # of each group: 0 train, 1 validation, 2 calibration, 3 test
    sizes = np.bincount(group, minlength=len(group))
    for kind in (True, False):
        members = random.permutation(np.flatnonzero((positive == kind) & (sizes > 0)))
        before = np.cumsum(sizes[members]) - sizes[members]
        bounds = _bounds(shares, kind, sizes[members].sum())
        part[members] = (np.searchsorted(bounds, before, "right") + 1) % 4
    return Splits(*(np.flatnonzero(part[group] == k) for k in range(4)))


def _bounds(shares: Shares, positive: bool, images: int) -> NDArray[np.float64]:
    """Return where validation, calibration and test end among images of one kind; the rest trains."""
    held = np.cumsum([shares.validation, 0.0 if positive else shares.calibration, shares.test])
    return np.round(held * float(images)).astype(np.float64)


def _fewest(shares: Shares, positive: bool) -> int:
    """Return how many images of one kind give each split that needs some at least one."""
    needs = [0, 3] if positive else [0, 1, 3]  # validation, calibration, and what trains
    for images in range(1, 10_000):
        bounds = _bounds(shares, positive, images)
        if np.diff([0, *bounds, images])[needs].min() >= 1:
            return images
    raise Refused(f"the shares {shares} leave a split without an image: make the smallest larger")


def group_numbers(bags: Sequence[str], alike: Index) -> Index:
    """Join images by bag and likeness; returns the first image of each image's group, [n]."""
    group = alike.copy()
    first: dict[str, int] = {}
    for k, bag in enumerate(bags):
        if bag:
            one, other = group[k], group[first.setdefault(bag, k)]
            group[group == max(one, other)] = min(one, other)
    return group


def _check(labelled: Labelled, parts: Splits, shares: Shares | None) -> None:
    """Raise Refused for a split that lacks images; `shares` are those by which they were dealt, if any."""
    needs = {"train": (True, True), "validation": (True, True), "calibration": (False, True)}
    for name, needed in needs.items():
        positive = labelled.positive[getattr(parts, name)]
        for kind, present, wanted in zip(
            ("positive", "benign"), (positive.any(), not positive.all()), needed, strict=True
        ):
            if wanted and not (present and len(positive)):
                has = int((labelled.positive == (kind == "positive")).sum())
                needed = f"at least {_fewest(shares, kind == 'positive')}" if shares else "one there"
                raise Refused(
                    f"{has} of {len(labelled.paths)} images are {kind}, and the {name} split has none: "
                    f"have {needed}, of different bags, or name other splits in the labels' column `split`"
                )


def counts(labels: NDArray[np.bool_]) -> dict[str, int]:
    """Count images, benign images and labels of each class."""
    by_class = dict(zip(THREATS, labels.sum(axis=0).tolist(), strict=True))
    return {"images": len(labels), "benign": int((~labels.any(axis=1)).sum()), **by_class}


def batches(index: Index, size: int) -> Sequence[Index]:
    """Divide positions into whole batches; a shorter rest is left out."""
    return [index[start : start + size] for start in range(0, len(index) - size + 1, size)]
