"""Check of a data set: what it holds and what is wrong with it, before hours of training."""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..row import THREATS, Row, threat_names
from ..system.progress import ProgressCallback, silent
from . import read_labels
from .duplicates import Prints, fingerprints, look_alikes, merged
from .joining import AMBIGUOUS, MISSING, Matches, find_images, match
from .labels import Labels

SHOWN = 5  # examples of each kind
SURE = 0.95  # that the share of false matches is no larger


@dataclass(frozen=True)
class CheckSettings:
    """Settings of a check."""

    dataset: Path  # the folder of the images, or a label file beside them
    labels: Path | None = None  # None: what the data set says itself
    form: str = "auto"
    class_map: Path | None = None
    tests: tuple[Path, ...] = ()  # folders of other sets, or lists of images below the same folder


@dataclass(frozen=True)
class ListFindings:
    """Findings on one list: its labels, and which of its images exist."""

    name: str  # 'data', 'test', 'test 2'
    source: str  # the label file or folder
    images: int  # that it names
    positives: int
    positive_rate: float
    benign_per_positive: float | None  # None without a positive
    labels: dict[str, int]  # images that hold each threat
    unknown: dict[str, int]  # images of which it is unknown whether they do, for each class that has such
    labels_per_positive: float | None
    combinations: dict[str, int]  # 'gun + knife', the most frequent first
    splits: dict[str, int]  # images of each split that the list names
    missing: int  # named, but not on disk
    missing_names: tuple[str, ...]  # runs of names that follow each other in the list, the longest first
    ambiguous: int  # names that fit several images
    ambiguous_names: tuple[str, ...]  # some
    repeated: int  # names of an image that an earlier name has
    unreadable: dict[str, int]  # images that cannot be decoded, by the status that a scan would give
    unreadable_images: tuple[str, ...]  # some, with the reason


@dataclass(frozen=True)
class Duplicates:
    """Groups of images that are duplicates."""

    groups: int
    images: int  # in those groups
    largest: int  # images of the largest group
    crossing: dict[str, int]  # groups with images of several splits or lists, 'data + test'
    conflicting: int  # groups whose images differ in their labels
    examples: tuple[tuple[str, ...], ...]  # paths of some groups, those that cross first


@dataclass(frozen=True)
class Findings:
    """Findings of a check."""

    lists: tuple[ListFindings, ...]
    unlisted: int  # images on disk that no list names
    exact: Duplicates  # the same bytes
    near: Duplicates  # the same bytes, or alike
    unlike_pairs: int  # pairs of pictures whose labels differ: hardly any can be one bag
    unlike_matched: int  # of these, pairs that were taken for one
    false_match_rate: float | None  # their share is at most this, 95 % sure; None without pairs


class _Listed(NamedTuple):
    """A list and the paths of its images."""

    name: str
    source: Path
    labels: Labels
    on_disk: list[Path]
    matches: Matches

    def there(self) -> list[tuple[int, Path]]:
        """Return the labels whose image exists, and its path."""
        position = self.matches.position.tolist()
        repeated = set(self.matches.repeated)
        return [(k, self.on_disk[at]) for k, at in enumerate(position) if at >= 0 and k not in repeated]


class _Images(NamedTuple):
    """Existing images of all lists, one list after the other."""

    paths: list[Path]
    labels: NDArray[np.bool_]  # [n, 5]
    parts: list[str]  # the split of each, or its list where that names none
    lists: list[str]  # the list of each


def check(settings: CheckSettings, progress: ProgressCallback = silent) -> Findings:
    """Read the lists, find and decode their images, and compare the images with each other.

    Images that are missing or cannot be decoded are findings. Raises Refused for a label file that cannot be
    read, or a path that is not a folder.
    """
    listed = _look_up(settings)
    images = _images(listed)
    prints = fingerprints(images.paths, progress)
    exact, near, pairs, matched = _compared(prints, images)
    named = set(images.paths)
    return Findings(
        lists=tuple(_findings(one, _faults(one.name, images, prints)) for one in listed),
        unlisted=len({path for one in listed for path in one.on_disk} - named),
        exact=_duplicates(exact, images),
        near=_duplicates(near, images),
        unlike_pairs=pairs,
        unlike_matched=matched,
        false_match_rate=_at_most(matched, pairs) if pairs else None,
    )


def _look_up(settings: CheckSettings) -> list[_Listed]:
    """Read every list before looking for images; a test list refers to the data set's own images."""
    sources = [settings.labels or settings.dataset, *settings.tests]
    lists = [read_labels(source, settings.form, settings.class_map) for source in sources]
    names = ["data", *("test" if k == 1 else f"test {k}" for k in range(1, len(sources)))]
    home = settings.dataset if settings.dataset.is_dir() else settings.dataset.parent
    folders = [home, *(test if test.is_dir() else home for test in settings.tests)]
    on_disk = {folder: find_images(folder) for folder in set(folders)}
    return [
        _Listed(name, source, labels, on_disk[at], match(labels, [str(path) for path in on_disk[at]]))
        for name, source, labels, at in zip(names, sources, lists, folders, strict=True)
    ]


def _images(listed: Sequence[_Listed]) -> _Images:
    there = [(one, k, path) for one in listed for k, path in one.there()]
    labels = [one.labels.labels[k] for one, k, _ in there]
    return _Images(
        [path for _, _, path in there],
        np.array(labels, np.bool_).reshape(-1, len(THREATS)),
        [one.labels.splits[k] or one.name for one, k, _ in there],
        [one.name for one, _, _ in there],
    )


def _faults(name: str, images: _Images, prints: Prints) -> list[Row]:
    return [row for k, row in prints.faults.items() if images.lists[k] == name]


def _findings(one: _Listed, faults: Sequence[Row]) -> ListFindings:
    labels, positives = one.labels, int(one.labels.positive.sum())
    missing, ambiguous = one.matches.where(MISSING), one.matches.where(AMBIGUOUS)
    return ListFindings(
        name=one.name,
        source=str(one.source),
        images=len(labels.names),
        positives=positives,
        positive_rate=positives / len(labels.names),
        benign_per_positive=(len(labels.names) - positives) / positives if positives else None,
        labels=dict(zip(THREATS, labels.labels.sum(axis=0).tolist(), strict=True)),
        unknown=labels.unknown,
        labels_per_positive=float(labels.labels.sum() / positives) if positives else None,
        combinations=_combinations(labels),
        splits=dict(Counter(split for split in labels.splits if split)),
        missing=len(missing),
        missing_names=runs(labels.names, missing),
        ambiguous=len(ambiguous),
        ambiguous_names=tuple(labels.names[k] for k in ambiguous[:SHOWN]),
        repeated=len(one.matches.repeated),
        unreadable=dict(Counter(str(row.status) for row in faults)),
        unreadable_images=tuple(f"{row.uri}: {row.error}" for row in faults[:SHOWN]),
    )


def _combinations(labels: Labels) -> dict[str, int]:
    rows, counts = np.unique(labels.labels, axis=0, return_counts=True)
    names = [" + ".join(threat_names(row)) or "benign" for row in rows]
    return dict(sorted(zip(names, counts.tolist(), strict=True), key=lambda pair: -pair[1]))


def runs(names: Sequence[str], chosen: NDArray[np.intp]) -> tuple[str, ...]:
    """Summarize names as runs of consecutive ones, by number, among all names.

    The longest come first, such as 'P08828..P08929 (102)'; a missing part of a download shows as one run.
    """
    order = sorted(range(len(names)), key=lambda k: _by_number(names[k]))
    picked = set(chosen.tolist())
    spans: list[list[str]] = []
    before = None
    for k in order:
        prefix = _by_number(names[k])[0]
        if k in picked and prefix == before:
            spans[-1].append(names[k])
        elif k in picked:
            spans.append([names[k]])
        before = prefix if k in picked else None
    spans.sort(key=len, reverse=True)
    return tuple(f"{run[0]}..{run[-1]} ({len(run)})" if len(run) > 1 else run[0] for run in spans)


def _by_number(name: str) -> tuple[str, int, str]:
    """Split a name into the text before its last number, and the number."""
    parts = re.fullmatch(r"(.*?)([0-9]{1,18})([^0-9]*)", name, re.DOTALL)
    return (parts[1], int(parts[2]), name) if parts else (name, 0, name)


def _compared(prints: Prints, images: _Images) -> tuple[NDArray[np.intp], NDArray[np.intp], int, int]:
    """Return groups of equal bytes, groups of look-alikes, pairs with unlike labels, and those matched."""
    exact, near = _same_bytes(prints), prints.pictures()
    matched = 0
    for i, j in look_alikes(prints):
        matched += int((images.labels[i] != images.labels[j]).any(axis=1).sum())
        near = merged(near, (i, j))
    near = merged(near, (exact, np.arange(len(exact))))
    _, counts = np.unique(images.labels[prints.distinct()], axis=0, return_counts=True)
    return exact, near, int(counts.sum() ** 2 - (counts**2).sum()) // 2, matched


def _at_most(matched: int, pairs: int) -> float:
    """Return the upper bound of the rate of a rare event, by Poisson's law: three in n if there was none."""
    from scipy.special import gammaincinv

    return min(float(gammaincinv(matched + 1, SURE)) / pairs, 1.0)


def _same_bytes(prints: Prints) -> NDArray[np.intp]:
    first: dict[bytes, int] = {}
    return np.array(
        [k if digest is None else first.setdefault(digest, k) for k, digest in enumerate(prints.digest)],
        np.intp,
    )


def _duplicates(group: NDArray[np.intp], images: _Images) -> Duplicates:
    members: dict[int, list[int]] = defaultdict(list)
    for k, number in enumerate(group.tolist()):
        members[number].append(k)
    several = [one for one in members.values() if len(one) > 1]
    crossing = [(one, " + ".join(sorted({images.parts[k] for k in one}))) for one in several]
    ordered = sorted(crossing, key=lambda pair: " + " not in pair[1])
    return Duplicates(
        groups=len(several),
        images=sum(map(len, several)),
        largest=max(map(len, several), default=0),
        crossing=dict(Counter(parts for _, parts in crossing if " + " in parts)),
        conflicting=sum(len(np.unique(images.labels[one], axis=0)) > 1 for one in several),
        examples=tuple(tuple(str(images.paths[k]) for k in one[:SHOWN]) for one, _ in ordered[:SHOWN]),
    )
