"""The pictures of a report: read from where the scan found them, and only if they are still the same."""

import hashlib
import io
import os
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from ..decode import DecodeLimits, Decoder
from ..errors import Stopped
from ..explain import Explainer
from ..explain.regions import Places
from ..row import ImageFault, Row
from ..sources.storage import Archive, Folder, check_length, pread
from ..sources.uris import parts_of
from ..system.objects import is_url
from ..tar.streams import ArchiveFault, GzipStream, PlainStream
from ..text import one_line

SIDE = 720  # pixels of the longer side, at most
QUALITY = 80  # of WebP
LIMITS = DecodeLimits()  # what is larger is said to be: whoever wrote the result does not set this machine's


@dataclass(frozen=True, eq=False)
class Picture:
    """One picture as the page shows it."""

    webp: bytes
    size: tuple[int, int]  # width and height
    places: Places | None  # [5, h, w] probabilities of the classes, where the model has a class map


def pictures_of(rows: Sequence[Row], explainer: Explainer | None) -> Iterator[tuple[int, Picture | str]]:
    """Yield position and picture of each row, or why there is none; in the order that archives are read."""
    decode = Decoder(None, LIMITS)
    for position, content in _contents(rows):
        if isinstance(content, bytes):
            content = _picture(rows[position], content, decode, explainer)
        yield position, content


def _picture(row: Row, blob: bytes, decode: Decoder, explainer: Explainer | None) -> Picture | str:
    if hashlib.sha256(blob).digest() != row.sha256:
        return "the file has changed since the scan: its SHA-256 differs"
    fresh, places = Row(row.uri), None
    try:
        if explainer is None:
            pixels = decode(fresh, blob)
        else:
            explanation = explainer(fresh, blob)
            pixels = None if explanation is None else explanation.pixels
            places = None if explanation is None else explanation.places
    except MemoryError:
        return "there was no memory to decode it"
    if pixels is None:
        return f"it cannot be decoded: {fresh.error}"
    return _reduced(pixels, places)


def _reduced(pixels: NDArray[np.uint8], places: Places | None) -> Picture:
    """Reduce pixels [H, W, 3], and encode them as WebP."""
    from PIL import Image

    picture = Image.fromarray(pixels)
    picture.thumbnail((SIDE, SIDE), Image.Resampling.BILINEAR, reducing_gap=2.0)
    out = io.BytesIO()
    picture.save(out, "WEBP", quality=QUALITY, method=2)
    return Picture(out.getvalue(), picture.size, places)


def _contents(rows: Sequence[Row]) -> Iterator[tuple[int, bytes | str]]:
    """Yield position and bytes of each row, or why they cannot be read; each archive is opened once."""
    members: defaultdict[bytes, list[int]] = defaultdict(list)
    for position, row in enumerate(rows):
        try:
            path, _ = parts_of(row.uri, row.offset is not None)
            if is_url(path):  # whoever wrote the result does not choose what this machine asks a network for
                yield position, "it lies in an object store, which a report does not ask for pictures"
            elif row.offset is None:
                folder = Folder.of(os.path.dirname(path), None, follow=True)  # noqa: PTH120 - bytes
                yield position, folder.read(path, row, LIMITS.max_file_size)
            else:
                members[path].append(position)
        except (ImageFault, OSError, Stopped, ValueError) as error:
            yield position, _reason("the file", error)
    for path, positions in members.items():
        yield from _members(path, sorted(positions, key=lambda position: rows[position].offset or 0), rows)


def _members(path: bytes, positions: list[int], rows: Sequence[Row]) -> Iterator[tuple[int, bytes | str]]:
    """Yield the members of one tar, which is read forwards once, as a compressed one must be."""
    left = list(positions)
    try:
        archive = Archive.open(path, Folder.of(os.path.dirname(path), None, follow=True))  # noqa: PTH120 - bytes
        with archive.descriptor() as fd:
            read = partial(pread, fd)
            stream = GzipStream(read) if read(2, 0) == b"\x1f\x8b" else PlainStream(read, archive.size)
            last: tuple[int | None, bytes | str] = (None, b"")
            while left:
                row = rows[left[0]]
                if row.offset != last[0]:  # else a hard link to the member before it
                    last = row.offset, _member(stream, row)
                yield left.pop(0), last[1]
    except (ArchiveFault, ImageFault, OSError, Stopped, ValueError) as error:
        for position in left:
            yield position, _reason("its archive", error)


def _member(stream: GzipStream | PlainStream, row: Row) -> bytes | str:
    size = row.bytes or 0
    try:
        check_length(size, LIMITS.max_file_size)
    except ImageFault as fault:
        return str(fault)
    stream.seek(row.offset or 0)
    return stream.read(size)


def _reason(what: str, error: Exception) -> str:
    if isinstance(error, FileNotFoundError) or (isinstance(error, ImageFault) and error.status == "vanished"):
        return f"{what} is no longer there"
    if isinstance(error, OSError) and error.strerror:
        return f"{what} cannot be read: {error.strerror}"
    return f"{what} cannot be read: {one_line(error)}"
