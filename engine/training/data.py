"""Labelled images for training, and their division into four disjoint splits."""

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, fields
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
        )

    def concatenated(self, more: "Labelled") -> "Labelled":
        """Return these images followed by others."""
        return Labelled(
            self.paths + more.paths,
            np.concatenate([self.labels, more.labels]),
            self.groups + more.groups,
            self.splits + more.splits,
            (self.boxes or ((),) * len(self.paths)) + (more.boxes or ((),) * len(more.paths)),
        )

    def digest(self, folder: Path) -> str:
        """Return the SHA-256 of the data set: paths relative to a folder, labels and splits."""
        paths = [os.path.relpath(path, folder) for path in self.paths]
        lines = zip(paths, self.labels.tolist(), self.groups, self.splits, strict=True)
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
    return Labelled(tuple(paths[i] for i in position), read.labels, read.groups, read.splits, boxes)


def split(labelled: Labelled, alike: Index, shares: Shares, seed: int) -> Splits:
    """Divide images into four parts, with all images of a group in one.

    A group is a bag, or images with the same number in `alike` [n]; it is positive if one of its images is.
    If the labels name splits, these are used, and images without one are left out. Raises Refused if a part
    lacks positive or benign images that it needs.
    """
    parts = _given(labelled) if any(labelled.splits) else _dealt(labelled, alike, shares, seed)
    _check(labelled, parts)
    return parts


def _given(labelled: Labelled) -> Splits:
    by_name = np.array(labelled.splits)
    parts = {field.name: np.flatnonzero(by_name == field.name) for field in fields(Splits)}
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
        held = np.cumsum([shares.validation, 0.0 if kind else shares.calibration, shares.test])
        before = np.cumsum(sizes[members]) - sizes[members]
        bounds = np.round(held * sizes[members].sum())
        part[members] = (np.searchsorted(bounds, before, "right") + 1) % 4
    return Splits(*(np.flatnonzero(part[group] == k) for k in range(4)))


def group_numbers(bags: Sequence[str], alike: Index) -> Index:
    """Join images by bag and likeness; returns the first image of each image's group, [n]."""
    group = alike.copy()
    first: dict[str, int] = {}
    for k, bag in enumerate(bags):
        if bag:
            one, other = group[k], group[first.setdefault(bag, k)]
            group[group == max(one, other)] = min(one, other)
    return group


def _check(labelled: Labelled, parts: Splits) -> None:
    needs = {"train": (True, True), "validation": (True, True), "calibration": (False, True)}
    for name, needed in needs.items():
        positive = labelled.positive[getattr(parts, name)]
        for kind, present, wanted in zip(
            ("positive", "benign"), (positive.any(), not positive.all()), needed, strict=True
        ):
            if wanted and not (present and len(positive)):
                raise Refused(
                    f"of {len(labelled.paths)} images too few are {kind}: the {name} split gets none; add "
                    "images, or name the splits in a column `split` of the labels"
                )


def counts(labels: NDArray[np.bool_]) -> dict[str, int]:
    """Count images, benign images and labels of each class."""
    by_class = dict(zip(THREATS, labels.sum(axis=0).tolist(), strict=True))
    return {"images": len(labels), "benign": int((~labels.any(axis=1)).sum()), **by_class}


def batches(index: Index, size: int) -> Sequence[Index]:
    """Divide positions into whole batches; a shorter rest is left out."""
    return [index[start : start + size] for start in range(0, len(index) - size + 1, size)]
