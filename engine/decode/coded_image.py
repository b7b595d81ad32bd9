"""What the header parsers share: limits, the coded image for the decoder, and the ways to refuse a file."""

import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, NoReturn

from ..row import ImageFault, Row
from .resize import Pixels

Layout = Literal["gray", "rgb", "rgba", "premultiplied", "cmyk", "inverted cmyk"]


@dataclass(frozen=True)
class DecodeLimits:
    """Limits for one image, checked against its header."""

    max_pixels: int = 64_000_000  # width x height
    max_file_size: int = 256_000_000  # bytes as stored


@dataclass(slots=True)
class CodedImage:
    """The part of a file that defines its pixels, and how they are stored."""

    data: Any  # bytes, or an array of them in memory that another process shares
    layout: Layout  # of the pixels that the decoder hands out
    depth: int = 8  # bits a sample of the pixels that the decoder hands out: 8, or 9 to 16 in uint16
    key: tuple[int, ...] | None = None  # the one transparent value, at the stored depth
    warnings: tuple[str, ...] = ()
    read: Callable[[Pixels], tuple[str, ...]] | None = None  # fills pixels where no native decoder does
    nvjpeg: bool = False  # a JPEG of the kind that nvJPEG decodes as libjpeg does
    coarse: bool = False  # a JPEG without its last scans, in which no other damage is stepped over


def raise_truncated(where: str) -> NoReturn:
    """Refuse a file that ends early."""
    raise ImageFault("truncated", f"the file ends {where}")


def raise_undecodable(what: str) -> NoReturn:
    """Refuse a file that contradicts itself or its format."""
    raise ImageFault("undecodable", what)


def raise_unsupported(what: str) -> NoReturn:
    """Refuse an intact file of a kind that is not read here."""
    raise ImageFault("unsupported", f"{what} is not supported")


def set_size(row: Row, width: int, height: int, limits: DecodeLimits) -> None:
    """Fill in the width and height of the row, and refuse an empty image or one above the limit."""
    if max(width, height) < 1 << 63:  # a BigTIFF may say more than any column holds
        row.width, row.height = width, height
    if width < 1 or height < 1:
        raise_undecodable(f"the header says {width} x {height} pixels")
    if width * height > limits.max_pixels:
        raise ImageFault(
            "too_large", f"the image has {width} x {height} pixels; the limit is {limits.max_pixels} pixels"
        )


def orientation_warnings(orientation: int | None) -> tuple[str, ...]:
    """Warn of an orientation that is noted in the file, since it is not applied."""
    if orientation is None or orientation == 1:
        return ()
    return (f"orientation {orientation} is noted in the file and not applied",)


def exif_orientation(exif: bytes) -> int | None:
    """Read tag 274 of the first directory; anything odd reads as no orientation."""
    order = {b"II": "<", b"MM": ">"}.get(exif[:2])
    if order is None or len(exif) < 8:
        return None
    (directory,) = struct.unpack_from(order + "I", exif, 4)
    if directory + 2 > len(exif):
        return None
    (count,) = struct.unpack_from(order + "H", exif, directory)
    for entry in range(directory + 2, min(directory + 2 + 12 * count, len(exif) - 11), 12):
        tag, kind, _, value = struct.unpack_from(order + "HHIH", exif, entry)
        if tag == 274 and kind == 3 and 1 <= value <= 8:
            return value
    return None
