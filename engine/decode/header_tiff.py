"""The header gate of TIFF 6.0 and BigTIFF: what the first directory says of the picture, checked."""

import struct
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np

from ..row import Row
from .coded_image import (
    CodedImage,
    DecodeLimits,
    Layout,
    orientation_warnings,
    raise_truncated,
    raise_undecodable,
    raise_unsupported,
    set_size,
)
from .tiff_pixels import LUMA, Picture, read_tiff

MAX_VALUES = 1 << 20  # of a tag: strips or tiles of a picture, colors of a palette

_TYPES = {1: "B", 2: "B", 3: "H", 4: "I", 6: "B", 7: "B", 8: "H", 9: "I", 13: "I", 16: "Q"}
_ENDIAN: dict[str, Literal["little", "big"]] = {"<": "little", ">": "big"}
_PIXEL_TAGS = frozenset(
    (256, 257, 258, 259, 262, 266, 273, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323, 324, 325, 332, 338)
) | {339, 347, 529, 530, 532}
_COMPRESSIONS = {
    1: "none", 2: "fax", 3: "fax", 4: "fax", 5: "LZW", 7: "JPEG", 8: "deflate", 32773: "PackBits",
    32946: "deflate", 50000: "Zstandard",
}  # fmt: skip
_COLORS = {0: "gray", 1: "gray", 2: "rgb", 3: "palette", 5: "cmyk", 6: "rgb"}
_SAMPLES = {"gray": 1, "palette": 1, "rgb": 3, "cmyk": 4}  # of a pixel, without alpha


@dataclass(slots=True)
class _Directory:
    order: str
    entries: dict[int, bytes]  # raw entries by tag, as stored
    blob: bytes
    big: bool

    def get(self, tag: int, default: int) -> int:
        return next(iter(self.values(tag)), default)

    def values(self, tag: int) -> tuple[int, ...]:
        entry = self.entries.get(tag)
        if entry is None:
            return ()
        kind, count = struct.unpack_from(self.order + ("HQ" if self.big else "HI"), entry, 2)
        code = _TYPES.get(kind)
        if code is None or count == 0:
            raise_undecodable(f"the TIFF's tag {tag} has no usable value")
        if count > MAX_VALUES:
            raise_undecodable(f"the TIFF's tag {tag} has {count} values")
        size = count * struct.calcsize(code)
        if size <= (8 if self.big else 4):
            return struct.unpack_from(f"{self.order}{count}{code}", entry, 12 if self.big else 8)
        start = int.from_bytes(entry[12:20] if self.big else entry[8:12], _ENDIAN[self.order])
        if start + size > len(self.blob):
            raise_truncated(f"inside the TIFF's tag {tag}")
        return struct.unpack_from(f"{self.order}{count}{code}", self.blob, start)

    def fractions(self, tag: int) -> tuple[float, ...]:
        """Return values that are stored as fractions (type 5), as far as they lie inside the file."""
        entry = self.entries[tag]
        kind, count = struct.unpack_from(self.order + ("HQ" if self.big else "HI"), entry, 2)
        start = int.from_bytes(entry[12:20] if self.big else entry[8:12], _ENDIAN[self.order])
        if kind != 5 or not 0 < count < 100 or start + 8 * count > len(self.blob):
            return ()
        numbers = struct.unpack_from(f"{self.order}{2 * count}I", self.blob, start)
        return tuple(above / max(below, 1) for above, below in zip(numbers[::2], numbers[1::2], strict=True))


def tiff(row: Row, blob: bytes, limits: DecodeLimits) -> CodedImage:
    """Read the header of a TIFF."""
    directory, more = _read_directory(blob)
    depths, samples = directory.values(258) or (1,), directory.get(277, 1)
    photometric, warnings = _photometric(directory, samples)
    row.color, row.bit_depth = _COLORS.get(photometric), depths[0] if depths[0] <= 64 else None
    set_size(row, directory.get(256, 0), directory.get(257, 0), limits)
    _check_kind(row, directory, depths, photometric)
    layout, used = _layout(row, directory, samples)
    if samples > used:
        left = samples - used
        warnings += (f"the TIFF has {samples} samples a pixel; the last {left} are left out",)
    warnings += orientation_warnings(directory.get(274, 1))
    if more:
        warnings += ("the TIFF holds more than one page; the first is read",)
    picture = _picture(row, directory, depths[0], samples, photometric)
    if (extra := len(picture.offsets) - picture.pieces * picture.planes) > 0:
        warnings += (f"the TIFF lists {extra} strips or tiles more than its size needs",)
    read = partial(read_tiff, picture, used)
    depth = 8 if photometric == 3 else max(8, depths[0])
    return CodedImage(b"", layout, depth=depth, warnings=warnings, read=read)


def _read_directory(blob: bytes) -> tuple[_Directory, bool]:
    order = "<" if blob.startswith(b"II") else ">"
    big = blob[2:4] in (b"+\0", b"\0+")
    (start,) = struct.unpack_from(order + ("Q" if big else "I"), blob, 8 if big else 4)
    if start + 2 > len(blob):
        raise_truncated("before the TIFF's directory")
    (count,) = struct.unpack_from(order + ("Q" if big else "H"), blob, start)
    size, head = (20, 8) if big else (12, 2)
    end = start + head + count * size
    if end > len(blob):
        raise_truncated("inside the TIFF's directory")
    entries: dict[int, bytes] = {}
    for position in range(start + head, end, size):
        (tag,) = struct.unpack_from(order + "H", blob, position)
        entry = blob[position : position + size]
        if entries.setdefault(tag, entry) != entry and tag in _PIXEL_TAGS:
            raise_undecodable(f"the TIFF's tag {tag} stands there twice")
    return _Directory(order, entries, blob, big), any(blob[end : end + (8 if big else 4)])


def _photometric(directory: _Directory, samples: int) -> tuple[int, tuple[str, ...]]:
    """Return what the samples mean; where the obligatory tag is missing, what libtiff assumes."""
    if meanings := directory.values(262):
        several = f"the TIFF's tag 262 says {len(meanings)} things about its samples; the first counts"
        return meanings[0], (several,) if len(meanings) > 1 else ()
    fax = _COMPRESSIONS.get(directory.get(259, 1)) == "fax"
    assumed = 0 if fax else 2 if samples >= 3 else 1
    words = {0: "gray with 0 as white", 1: "gray with 0 as black", 2: "RGB"}[assumed]
    return assumed, (f"the TIFF does not say what its samples mean (tag 262); they are read as {words}",)


def _check_kind(row: Row, directory: _Directory, depths: tuple[int, ...], photometric: int) -> None:
    """Refuse what the reader cannot read exactly."""
    number, bits = directory.get(259, 1), depths[0]
    compression, predictor = _COMPRESSIONS.get(number), directory.get(317, 1)
    if compression is None:
        raise_unsupported(f"TIFF with compression {number}")
    if row.color is None:
        raise_unsupported(f"TIFF with photometric interpretation {photometric}")
    if any(form != 1 for form in directory.values(339)) or bits > 16 or len(set(depths)) > 1:
        raise_unsupported(f"TIFF of {bits}-bit samples that are not plain unsigned numbers")
    if bits < 1:
        raise_undecodable("the TIFF's samples have no bits")
    if directory.get(266, 1) not in (1, 2) or directory.get(284, 1) not in (1, 2):
        raise_unsupported("TIFF with this order of bits or planes")
    predicted = compression in ("LZW", "deflate", "Zstandard") and predictor != 1
    if predicted and (predictor != 2 or bits not in (8, 16) or photometric == 6):
        raise_unsupported(f"TIFF of {bits}-bit samples with predictor {predictor}")
    if (photometric == 6 or compression == "JPEG") and bits != 8:
        raise_unsupported(f"TIFF with {bits}-bit YCbCr or JPEG")
    if photometric == 6 and compression != "JPEG":
        for tag, usual in ((529, LUMA), (532, (0, 255, 128, 255, 128, 255))):
            if tag in directory.entries and not np.allclose(directory.fractions(tag) or 0, usual, atol=0.01):
                raise_unsupported(f"TIFF with an unusual form of YCbCr (tag {tag})")
    if compression == "fax" and (directory.get(292, 0) | directory.get(293, 0)) & 2:
        raise_unsupported("TIFF with parts of a fax that are not compressed")
    if compression == "fax" and (bits != 1 or row.color != "gray"):
        raise_undecodable("the TIFF's fax compression is of more than one bit a pixel")


def _layout(row: Row, directory: _Directory, samples: int) -> tuple[Layout, int]:
    """Return the layout of the pixels that the reader hands out, and how many samples of a pixel it takes."""
    assert row.color is not None
    color, plain = row.color, _SAMPLES[row.color]
    if not plain <= samples <= 64:
        raise_unsupported(f"TIFF in {color} with {samples} samples a pixel")
    layout: Layout = "gray" if color == "gray" else "cmyk" if color == "cmyk" else "rgb"
    alpha = directory.get(338, 0) if samples > plain else 0
    if alpha not in (1, 2):
        return layout, plain  # what further samples mean is unsaid, as where they are other energies
    if color not in ("gray", "rgb"):
        raise_unsupported(f"TIFF in {color} with alpha")
    row.color = "gray+alpha" if color == "gray" else "rgba"
    return "premultiplied" if alpha == 1 else "rgba", plain + 1


def _picture(row: Row, directory: _Directory, bits: int, samples: int, photometric: int) -> Picture:
    """Gather what the reader needs, and find out whether all strips or tiles lie inside the file."""
    assert row.width is not None
    assert row.height is not None
    width, height, blob = row.width, row.height, directory.blob
    tiled = 322 in directory.entries
    piece_width, piece_height = width, min(directory.get(278, height), height)
    if tiled:
        piece_width, piece_height = directory.get(322, 0), directory.get(323, 0)
    room = 4 * width * height + (1 << 22)  # a decoder holds a whole tile, however small the picture
    if piece_width < 1 or piece_height < 1 or (tiled and piece_width * piece_height > room):
        raise_undecodable(f"the TIFF's tiles have {piece_width} x {piece_height} pixels")
    offsets = directory.values(324 if 324 in directory.entries else 273)  # the tags of tiles, or of strips
    sizes = directory.values(325 if 325 in directory.entries else 279)
    compression = _COMPRESSIONS[directory.get(259, 1)]
    factors = (directory.values(530) or (2, 2)) if photometric == 6 and compression != "JPEG" else (1, 1)
    picture = Picture(
        blob=blob,
        order=directory.order,
        width=width,
        height=height,
        bits=bits,
        samples=samples,
        planes=samples if directory.get(284, 1) == 2 else 1,
        photometric=photometric,
        compression=compression,
        number=directory.get(259, 1),
        predictor=directory.get(317, 1),
        reversed_bits=directory.get(266, 1) == 2,
        tiled=tiled,
        piece_width=piece_width,
        piece_height=piece_height,
        factors=(factors[0], factors[-1]),
        offsets=offsets,
        sizes=(len(blob) - offsets[0],) if len(offsets) == 1 and sizes == (0,) else sizes,
        tables=bytes(directory.values(347)),
        fax_options=directory.get(292, 0),
        palette=directory.values(320) if photometric == 3 else (),
    )
    _check_pieces(picture)
    return picture


def _check_pieces(picture: Picture) -> None:
    """Refuse a picture whose pieces are not all there."""
    horizontal, vertical = picture.factors
    if not {horizontal, vertical} <= {1, 2, 4} or (picture.factors != (1, 1) and picture.planes > 1):
        raise_unsupported(f"TIFF whose colors are {horizontal} x {vertical} times coarser")
    if picture.piece_height % vertical and picture.piece_height < picture.height:
        raise_unsupported(
            f"TIFF in pieces of {picture.piece_height} lines, with colors {vertical} times coarser"
        )
    if picture.photometric == 3 and len(picture.palette) != 3 << picture.bits:
        raise_undecodable("the TIFF's palette is missing or broken")
    needed, total = picture.pieces * picture.planes, len(picture.blob)
    plain = picture.compression == "none"
    sizes = picture.sizes or (plain and tuple(map(picture.size, range(needed)))) or ()
    if len(picture.offsets) < needed or len(sizes) < needed:
        raise_undecodable(f"the TIFF does not list where its {needed} pieces are")
    for piece in range(needed):
        size = picture.size(piece) if plain else sizes[piece]
        if size < 1:
            raise_undecodable(f"the TIFF's piece {piece} is empty")
        if picture.offsets[piece] + size > total:
            raise_truncated("inside the TIFF's picture")
        if sizes[piece] < size:
            raise_undecodable(f"the TIFF's piece {piece} has {sizes[piece]} bytes, of {size}")
