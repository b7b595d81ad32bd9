"""The header gate of TIFF 6.0 and BigTIFF: one directory, written anew without what is not pixels."""

import struct
from dataclasses import dataclass
from typing import Literal

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

MAX_VALUES = 1 << 20  # of a tag: strips or tiles of a picture, colors of a palette

_TIFF_TYPES = {1: "B", 2: "B", 3: "H", 4: "I", 6: "B", 7: "B", 8: "H", 9: "I", 13: "I", 16: "Q"}
_TIFF_PIXEL_TAGS = (
    *(256, 257, 258, 259, 262, 273, 277, 278, 279, 284, 292, 293, 317, 320, 322, 323, 324, 325),
    *(338, 339, 347, 530, 532),
)
_TIFF_COMPRESSIONS = {
    1: "none", 2: "CCITT", 3: "CCITT", 4: "CCITT", 5: "LZW", 7: "JPEG", 8: "deflate",
    32773: "PackBits", 32946: "deflate", 50000: "Zstandard",
}  # fmt: skip
_TIFF_COLORS = {0: "gray", 1: "gray", 2: "rgb", 3: "palette", 5: "cmyk", 6: "rgb"}


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
        code = _TIFF_TYPES.get(kind)
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


_ENDIAN: dict[str, Literal["little", "big"]] = {"<": "little", ">": "big"}


def tiff(row: Row, blob: bytes, limits: DecodeLimits) -> CodedImage:
    """Read the header of a TIFF."""
    directory, more = _tiff_directory(blob)
    width, height = directory.get(256, 0), directory.get(257, 0)
    depths, samples = directory.values(258) or (1,), directory.get(277, 1)
    photometric = directory.get(262, 1)
    row.bit_depth, row.color = depths[0], _TIFF_COLORS.get(photometric)
    set_size(row, width, height, limits)
    layout = _tiff_layout(row, directory, depths, samples, photometric)
    _tiff_data(directory, width, height, depths[0] * samples)
    warnings = orientation_warnings(directory.get(274, 1))
    if more:
        warnings += ("the TIFF holds more than one page; the first is read",)
    return CodedImage(
        _rewrite_tiff(directory, depths, samples, photometric),
        layout,
        depth=16 if depths[0] > 8 else 8,
        invert=photometric == 0,
        warnings=warnings,
    )


def _tiff_directory(blob: bytes) -> tuple[_Directory, bool]:
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
        if entries.setdefault(tag, blob[position : position + size]) != blob[position : position + size]:
            raise_undecodable(f"the TIFF's tag {tag} stands there twice")
    return _Directory(order, entries, blob, big), any(blob[end : end + (8 if big else 4)])


def _tiff_layout(
    row: Row, directory: _Directory, depths: tuple[int, ...], samples: int, photometric: int
) -> Layout:
    """Refuse what the decoder cannot read exactly, and say what it hands out."""
    compression, extra = directory.get(259, 1), directory.get(338, 0)
    if compression not in _TIFF_COMPRESSIONS:
        raise_unsupported(f"TIFF with compression {compression}")
    if row.color is None:
        raise_unsupported(f"TIFF with photometric interpretation {photometric}")
    if directory.get(339, 1) != 1 or depths[0] > 16 or len(set(depths)) > 1:
        raise_unsupported(f"TIFF of {depths[0]}-bit samples that are not plain unsigned numbers")
    packed = compression == 32773 or 322 in directory.entries  # runs over two lines, tiles: libtiff fails
    if directory.get(266, 1) != 1 or (packed and depths[0] not in (8, 16)):
        raise_unsupported("TIFF with this order or packing of bits")
    if directory.get(284, 1) != 1 and samples > 1:
        raise_unsupported("TIFF with planes stored apart")
    plain = {"gray": 1, "palette": 1, "rgb": 3, "cmyk": 4}[row.color]
    if (row.color == "cmyk" or photometric == 6) and depths[0] != 8:
        raise_unsupported(f"TIFF in {row.color} of {depths[0]} bits")
    if samples == plain:
        return "gray" if row.color == "gray" else "rgb"
    if row.color == "gray" and samples == 2:
        row.color = "gray+alpha"
    if photometric != 2 or samples != 4:
        raise_unsupported(f"TIFF in {row.color} with {samples} samples a pixel")
    if extra == 0:
        return "rgb"  # a fourth channel of unsaid meaning is left out
    row.color = "rgba"
    if depths[0] != 8:
        raise_unsupported(f"TIFF with alpha of {depths[0]} bits")
    return "premultiplied"


def _tiff_data(directory: _Directory, width: int, height: int, bits: int) -> None:
    """Find out whether all strips or tiles lie inside the file."""
    tiled = 322 in directory.entries
    tile_width, tile_height = width, min(directory.get(278, height), height)
    if tiled:
        tile_width, tile_height = directory.get(322, 0), directory.get(323, 0)
    room = 4 * width * height + (1 << 22)  # a decoder holds a whole tile, however small the picture
    if tile_width < 1 or tile_height < 1 or (tiled and tile_width * tile_height > room):
        raise_undecodable(f"the TIFF's tiles have {tile_width} x {tile_height} pixels")
    needed = -(-width // tile_width) * -(-height // tile_height)
    offsets, sizes = directory.values(324 if tiled else 273), directory.values(325 if tiled else 279)
    if len(offsets) < needed or len(sizes) < needed:
        raise_undecodable(f"the TIFF does not list where its {needed} pieces are")
    total = len(directory.blob)
    if any(offset + size > total for offset, size in zip(offsets, sizes, strict=False)):
        raise_truncated("inside the TIFF's picture")
    if directory.get(259, 1) == 1 and sum(sizes) * 8 < width * bits * height:
        raise_truncated("before the TIFF's last line")


def _rewrite_tiff(directory: _Directory, depths: tuple[int, ...], samples: int, photometric: int) -> bytes:
    """Append a directory of the tags that define pixels, with 0 as black, and point the header at it."""
    order, big, blob = directory.order, directory.big, directory.blob
    kept = {tag: entry for tag, entry in directory.entries.items() if tag in _TIFF_PIXEL_TAGS}
    form = order + ("HHQH6x" if big else "HHIH2x")
    kept[262] = struct.pack(form, 262, 3, 1, 1 if photometric == 0 else photometric)
    kept[277] = struct.pack(form, 277, 3, 1, samples)
    if 258 not in kept:
        kept[258] = struct.pack(form, 258, 3, 1, depths[0])
    start = len(blob) + len(blob) % 2
    colors = b""
    if photometric == 3:
        colors = _tiff_colors(directory)
        kept[320] = struct.pack(order + ("HHQQ" if big else "HHII"), 320, 3, len(colors) // 2, start)
    count = struct.pack(order + ("Q" if big else "H"), len(kept))
    tail = count + b"".join(kept[tag] for tag in sorted(kept)) + bytes(8 if big else 4)
    pointer = struct.pack(order + ("Q" if big else "I"), start + len(colors))
    head = blob[:8] + pointer if big else blob[:4] + pointer
    return b"".join((head, blob[len(head) :], bytes(len(blob) % 2), colors, tail))


def _tiff_colors(directory: _Directory) -> bytes:
    """Bring a palette to multiples of 257, as everyone reads it: the upper byte, or all of a small one."""
    colors = directory.values(320)
    if len(colors) != 3 << directory.get(258, 1):
        raise_undecodable("the TIFF's palette is missing or broken")
    shift = 0 if max(colors) < 256 else 8
    return struct.pack(f"{directory.order}{len(colors)}H", *((color >> shift) * 257 for color in colors))
