"""Images of the same bag: equal bytes, or so alike that one side of a split would reveal the other.

Two perceptual hashes of imagehash must agree, both of the pixels that a scan sees. The difference hash
(dHash, 64 bits) finds candidates, 10 bits or fewer apart. By itself it errs on two in a thousand pairs of
unlike bags, because one bag on white air is much like another at 9 x 8 pixels. The DCT hash (pHash, 256
bits) then confirms them, 68 bits or fewer apart. Both hashes confused none of 519,690 pairs of synthetic
bags, so at most 6 in a million; `python -m benchmarks duplicates` measures that, and which altered copies
are found. Mirrored and rotated copies are not looked for.
"""

import hashlib
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..decode import DecodeLimits, Decoder
from ..row import ImageFault, Row
from ..sources import MAX_FILE_SIZE
from ..sources.storage import Folder
from ..system.machine import usable_cores
from ..system.progress import ProgressCallback, silent
from .arrays import is_row, read_row

COARSE_BITS, FINE_BITS = 10, 68  # at most so far apart: of 64 in the dHash, of 256 in the pHash
SIZE = 256  # pixels a side that images are decoded to
ROWS, COLUMNS = 64, 4_096  # of a tile of pairs, which then stays in the cache
Pairs = tuple[NDArray[np.intp], NDArray[np.intp]]


@dataclass(frozen=True)
class Prints:
    """Fingerprints of images, in the order of their paths."""

    digest: tuple[bytes | None, ...]  # SHA-256 of the file; None where it could not be read
    hashes: NDArray[np.uint64]  # [n, 5], the dHash and behind it the four words of the pHash
    faults: dict[int, Row]  # rows, with status and error, of those that cannot be decoded

    def pictures(self) -> NDArray[np.intp]:
        """Return for each image the first one with an equal hash, [n]; itself if it cannot be decoded."""
        first = np.arange(len(self.digest))
        whole = np.array([k for k in range(len(self.digest)) if k not in self.faults], np.intp)
        if len(whole):
            _, at, inverse = np.unique(self.hashes[whole], axis=0, return_index=True, return_inverse=True)
            first[whole] = whole[at[inverse.ravel()]]
        return first

    def distinct(self) -> NDArray[np.intp]:
        """Return the images that could be decoded, only the first of equal hashes, sorted."""
        return np.array([k for k in np.unique(self.pictures()) if k not in self.faults], np.intp)


def fingerprints(paths: Sequence[Path], progress: ProgressCallback = silent) -> Prints:
    """Decode every image as a scan does, and hash it; images that cannot be decoded are recorded."""
    decoder = Decoder(SIZE, DecodeLimits())
    rows: list[Row] = []
    hashes = np.zeros((len(paths), 5), np.uint64)
    pool = ThreadPoolExecutor(usable_cores())
    try:
        for k, (row, fingerprint) in enumerate(pool.map(lambda path: _fingerprint(decoder, path), paths)):
            rows.append(row)
            hashes[k] = fingerprint
            progress("look at images", k + 1, len(paths), {})
    finally:
        pool.shutdown(cancel_futures=True)  # an interrupt waits for no image that is not begun
    faults = {k: row for k, row in enumerate(rows) if row.status != "ok"}
    return Prints(tuple(row.sha256 for row in rows), hashes, faults)


def _fingerprint(decoder: Decoder, path: Path) -> tuple[Row, NDArray[np.uint64]]:
    """Return the row of one image, and its two hashes, uint64 [5]; zeros if it cannot be decoded."""
    from imagehash import dhash, phash
    from PIL import Image

    row = Row(uri=str(path))
    pixels = _decoded(decoder, path, row)
    if pixels is None:
        return row, np.zeros(5, np.uint64)
    image = Image.fromarray(pixels)
    bits = np.concatenate([dhash(image, 8).hash.ravel(), phash(image, 16).hash.ravel()])  # 64 + 256
    return row, np.packbits(bits).view(np.uint64)


def _decoded(decoder: Decoder, path: Path, row: Row) -> NDArray[np.uint8] | None:
    """Return the pixels of an image and note its digest; None if it cannot be decoded."""
    if is_row(path):
        pixels = read_row(path)
        row.sha256, row.status = hashlib.sha256(pixels.data).digest(), "ok"
        return pixels
    try:
        blob = _read(path, row)
        row.sha256 = hashlib.sha256(blob).digest()
        return decoder(row, blob)
    except ImageFault as fault:
        row.fail(fault)
        return None


def _read(path: Path, row: Row) -> bytes:
    """Read a file as a scan does; raises ImageFault for its faults, Stopped or OSError for the machine's."""
    folder = Folder.of(os.fsencode(path.parent), None, follow=True)
    return folder.read(os.fsencode(path), row, MAX_FILE_SIZE)


def look_alikes(prints: Prints) -> Iterator[Pairs]:
    """Yield every pair of distinct images that look alike, i < j, in batches; all pairs are compared.

    A hundred thousand images are five thousand million pairs, some ten seconds of one core: decoding them
    takes longer. An index by bands of the hash would visit as many, for at 10 of 64 bits its bands are short,
    and bags on white air crowd into few of them.
    """
    images = prints.distinct()
    coarse, fine = prints.hashes[images, 0], prints.hashes[images, 1:]
    for top in range(0, len(images), ROWS):
        pairs = list(_candidates(coarse, top))
        i, j = (np.concatenate(side) for side in zip(*pairs, strict=True))
        near = np.bitwise_count(fine[i] ^ fine[j]).sum(axis=1, dtype=np.intp) <= FINE_BITS
        if near.any():
            yield images[i[near]], images[j[near]]


def _candidates(coarse: NDArray[np.uint64], top: int) -> Iterator[Pairs]:
    """Yield the pairs of the rows from `top` on, and later images, whose dHash agrees."""
    rows = coarse[top : top + ROWS, None]
    for left in range(top, len(coarse), COLUMNS):
        near = np.bitwise_count(rows ^ coarse[None, left : left + COLUMNS]) <= COARSE_BITS
        i, j = np.divmod(np.flatnonzero(near), near.shape[1])  # np.nonzero takes four times as long
        later = i + top < j + left
        yield i[later] + top, j[later] + left


def merged(group: NDArray[np.intp], pairs: Pairs) -> NDArray[np.intp]:
    """Merge the groups of each pair; returns for each image the first image of its group, [n]."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    ends = group[np.stack(pairs)]
    ends = ends[:, ends[0] != ends[1]]
    if not ends.size:
        return group
    members, node = np.unique(ends, return_inverse=True)
    i, j = node.reshape(ends.shape)
    graph = coo_array((np.ones(len(i), np.int8), (i, j)), shape=(len(members), len(members)))
    _, component = connected_components(graph, directed=False)
    first = np.full(component.max() + 1, len(group), np.intp)
    np.minimum.at(first, component, members)
    renamed = np.arange(len(group))
    renamed[members] = first[component]
    return renamed[group]


def groups_of(prints: Prints) -> NDArray[np.intp]:
    """Return for each image the first image of its group of near-duplicates, [n]."""
    group = prints.pictures()
    for pairs in look_alikes(prints):
        group = merged(group, pairs)
    return group


def duplicate_groups(paths: Sequence[Path], progress: ProgressCallback = silent) -> NDArray[np.intp]:
    """Return a number for each image, [n]: the same for images that are duplicates or near-duplicates.

    A split that keeps each group whole leaks no bag from one part to another. An image that cannot be
    decoded is a group by itself.
    """
    return groups_of(fingerprints(paths, progress))
