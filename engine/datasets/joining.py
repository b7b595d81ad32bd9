"""Match labels to images on disk: by path if the name holds a slash, else by the stem of the file."""

import os
import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray

from ..errors import Refused
from ..sources.names import IMAGE_EXTENSIONS, extension_of
from .labels import Labels

MISSING, AMBIGUOUS = -1, -2  # in place of a position
_INTO_ARCHIVE = re.compile(r"(\.(?:tar|tar\.gz|tgz))!", re.IGNORECASE)


class _Name(NamedTuple):
    """A name split for the join."""

    stem: str  # the last component, without an image's extension
    file: str  # the last component, whole
    folders: tuple[str, ...]

    def fits(self, other: "_Name") -> bool:
        """Tell whether this name's folders are the last folders of the other."""
        return not self.folders or self.folders == other.folders[-len(self.folders) :]


@dataclass(frozen=True)
class Matches:
    """Position of each label's image, and the labels without one."""

    position: NDArray[np.intp]  # [n] into the uris; MISSING or AMBIGUOUS
    repeated: tuple[int, ...]  # labels whose image an earlier label has

    def where(self, fault: int) -> NDArray[np.intp]:
        """Return the labels with this fault, MISSING or AMBIGUOUS."""
        return np.flatnonzero(self.position == fault)


def join(labels: Labels, uris: Sequence[str]) -> NDArray[np.intp]:
    """Return for each label the position of its image in `uris`, [n].

    A uri is a path, or what a scan writes (percent-encoded, `archive.tar!folder/bag.jpg`). A name with a
    slash must be the end of a path, in whole components; any other name is compared by stem, with case. An
    image's extension may be left out or differ. If several images fit, one with the same extension wins, and
    among paths one that is complete from a folder above all images. Raises Refused, with counts and the
    first example, if a name has no image, several images, or the image of another label.
    """
    found = match(labels, uris)
    missing, ambiguous = found.where(MISSING), found.where(AMBIGUOUS)
    counts = [
        f"{len(which)} {what}"
        for which, what in (
            (missing, "have no image"),
            (ambiguous, "fit several images"),
            (found.repeated, "name an image that is already named"),
        )
        if len(which)
    ]
    if counts:
        first = min(int(k) for k in (*missing, *ambiguous, *found.repeated))
        raise Refused(
            f"of {len(labels.names)} names, {', '.join(counts)}; the first is {labels.names[first]!r} "
            f"({labels.origins[first]}): {_remedy(found, first, labels, uris)}"
        )
    return found.position


def _remedy(found: Matches, first: int, labels: Labels, uris: Sequence[str]) -> str:
    if found.position[first] == MISSING:
        return "add the image or leave out the line; `gbad-batch data check` shows what is missing"
    if found.position[first] == AMBIGUOUS:
        name = _split_name(labels.names[first])
        some = [uri for uri in uris if _fits(name, _split_uri(uri))][:2]
        return f"write it with its folders, for it fits {' and '.join(some)}"
    before = int(np.flatnonzero(found.position == found.position[first])[0])
    return f"leave one out, for {labels.names[before]!r} ({labels.origins[before]}) is the same image"


def match(labels: Labels, uris: Sequence[str]) -> Matches:
    """Find the image of each label as `join` does, but return faults instead of raising them."""
    by_stem: dict[str, list[int]] = {}
    names = [_split_uri(uri) for uri in uris]
    above = _folders_above(names)
    for k, name in enumerate(names):
        by_stem.setdefault(name.stem, []).append(k)
    position = np.empty(len(labels.names), np.intp)
    for k, text in enumerate(labels.names):
        name = _split_name(text)
        position[k] = _choose(name, by_stem.get(name.stem, []), names, above)
    return Matches(position, _repeated(position))


def _choose(name: _Name, candidates: list[int], names: list[_Name], above: int) -> int:
    fitting = [k for k in candidates if name.fits(names[k])]
    if len(fitting) > 1:
        fitting = [k for k in fitting if names[k].file == name.file] or fitting
    if len(fitting) > 1 and name.folders:
        fitting = [k for k in fitting if len(names[k].folders) - len(name.folders) <= above] or fitting
    return fitting[0] if len(fitting) == 1 else AMBIGUOUS if fitting else MISSING


def _folders_above(names: list[_Name]) -> int:
    """Count the folders that all images lie below."""
    folders = [name.folders for name in names]
    pairs = zip(min(folders, default=()), max(folders, default=()), strict=False)
    return next((k for k, (a, b) in enumerate(pairs) if a != b), min(map(len, folders), default=0))


def _fits(name: _Name, other: _Name) -> bool:
    return name.stem == other.stem and name.fits(other)


def _repeated(position: NDArray[np.intp]) -> tuple[int, ...]:
    taken: set[int] = set()
    repeated = []
    for k, at in enumerate(position.tolist()):
        if at >= 0 and at in taken:
            repeated.append(k)
        taken.add(at)
    return tuple(repeated)


def _split_uri(uri: str) -> _Name:
    plain = unquote(uri, errors="surrogateescape") if "%" in uri else uri
    return _split_name(_INTO_ARCHIVE.sub(r"\1/", plain) if "!" in plain else plain)


def _split_name(name: str) -> _Name:
    *folders, file = name.split("/")
    stem, dot, extension = file.rpartition(".")
    known = dot and stem and extension.lower().encode(errors="replace") in IMAGE_EXTENSIONS
    if ".." in folders:
        folders = posixpath.normpath("/".join(folders)).split("/")
    return _Name(stem if known else file, file, tuple(f for f in folders if f not in ("", ".", "..")))


def find_images(folder: Path) -> list[Path]:
    """Return every image file below a folder, sorted by name, except hidden ones.

    Raises Refused if the path is not a folder, or cannot be listed.
    """
    if not folder.is_dir():
        raise Refused(f"the image folder {folder} does not exist; name the folder that holds the images")
    found = []
    for parent, folders, files in os.walk(folder, onerror=_unlistable):
        folders[:] = [name for name in folders if not name.startswith(".")]
        found += [Path(parent, name) for name in files if _is_image(name)]
    return sorted(found)


def _is_image(name: str) -> bool:
    return not name.startswith(".") and extension_of(os.fsencode(name)).lower() in IMAGE_EXTENSIONS


def _unlistable(error: OSError) -> None:
    raise Refused(f"the folder {error.filename} cannot be listed: {error.strerror}")
