"""The header gate of JPEG 2000 (ITU-T T.800): a JP2 file's boxes, and the codestream inside."""

import struct

from ..row import Row
from .coded_image import (
    CodedImage,
    DecodeLimits,
    Layout,
    raise_truncated,
    raise_undecodable,
    raise_unsupported,
    set_size,
)

MAX_TILES = 1 << 13  # each costs OpenJPEG some 10 kB
MAX_PIECES = 1 << 18  # precincts, code blocks: some 500 bytes each, for each component

_BOX = struct.Struct(">I4s")


def jp2(row: Row, blob: bytes, limits: DecodeLimits) -> CodedImage:
    """Read the header of a JP2 file."""
    boxes = {kind: (start, end) for kind, start, end in _boxes(blob, 0, len(blob))}
    if b"jp2c" not in boxes:
        raise_truncated("before the JPEG 2000 picture")
    alpha = False
    for kind, start, end in _boxes(blob, *boxes.get(b"jp2h", (0, 0))):
        if kind == b"pclr":
            row.color = "palette"
            raise_unsupported("JPEG 2000 with a palette")
        if kind == b"colr" and blob[start] == 1 and blob[start + 3 : start + 7] not in _JP2_SPACES:
            raise_unsupported("JPEG 2000 in a color space other than sRGB and gray")
        if kind == b"cdef":
            entries = struct.iter_unpack(">HHH", blob[start + 2 : start + 2 + (end - start - 2) // 6 * 6])
            alpha = any(channel_type == 1 for _, channel_type, _ in entries)
    start, end = boxes[b"jp2c"]
    return codestream(row, blob[start:end], limits, alpha)


_JP2_SPACES = (b"\0\0\0\x10", b"\0\0\0\x11")  # sRGB, gray


def _boxes(blob: bytes, position: int, end: int) -> "list[tuple[bytes, int, int]]":
    """List (type, start, end) of a JP2 file's boxes; only the picture's may reach past the end."""
    boxes = []
    while position + 8 <= end and len(boxes) < 1000:
        length, kind = _BOX.unpack_from(blob, position)
        head = 8
        if length == 1:
            length, head = int.from_bytes(blob[position + 8 : position + 16]), 16
        stop = end if length == 0 else position + length
        if length and length < head:
            raise_undecodable("a JPEG 2000 box is shorter than its own header")
        if stop > end and kind != b"jp2c":
            raise_truncated("inside a JPEG 2000 box")
        boxes.append((kind, position + head, stop))
        position = stop
    return boxes


def codestream(row: Row, data: bytes, limits: DecodeLimits, alpha: bool = False) -> CodedImage:
    """Read the header of a JPEG 2000 codestream; alpha says that the last component is one."""
    if not data.startswith(b"\xff\x4f\xff\x51"):
        raise_undecodable("the JPEG 2000 picture does not begin as one")
    right, bottom, left, top = struct.unpack_from(">IIII", data, 8)
    tile_width, tile_height, tile_left, tile_top, components = struct.unpack_from(">IIIIH", data, 24)
    row.color = {1: "gray", 2: "gray+alpha", 3: "rgb", 4: "rgba" if alpha else "rgb"}.get(components)
    depths = {data[42 + 3 * index] for index in range(min(components, 4))}
    row.bit_depth = min(depths, default=0) % 128 + 1
    set_size(row, right - left, bottom - top, limits)
    if components not in (1, 3, 4):
        raise_unsupported(f"JPEG 2000 of {components} components")
    sampling = {data[43 + 3 * index : 45 + 3 * index] for index in range(components)}
    if sampling != {b"\x01\x01"} or len(depths) != 1:
        raise_unsupported("JPEG 2000 whose components differ in size or depth")
    if not 7 <= min(depths) <= 15:  # the bits less one; 128 is added for signed samples
        raise_unsupported("JPEG 2000 of signed samples, or of less than 8 or more than 16 bits")
    if left or top or tile_left or tile_top:
        raise_unsupported("JPEG 2000 with an offset")
    if tile_width < 1 or tile_height < 1:  # nvImageCodec 0.9 divides by them
        raise_undecodable(f"the JPEG 2000 tiles have {tile_width} x {tile_height} pixels")
    _bound(row, tile_width * tile_height, MAX_TILES)
    _walk(row, data)
    layout: Layout = "gray" if components == 1 else "rgba" if alpha else "rgb"
    unsaid = ("what the fourth component of the JPEG 2000 means is unsaid; it is left out",)
    warnings = unsaid if components == 4 and not alpha else ()
    return CodedImage(data, layout, depth=8 if row.bit_depth <= 8 else row.bit_depth, warnings=warnings)


def _walk(row: Row, data: bytes) -> None:
    """Go from marker to marker and tile to tile, to the end marker."""
    position = _walk_header(row, data, 2, b"\xff\x90")
    while data[position : position + 2] == b"\xff\x90":
        (length,) = struct.unpack_from(">I", data, position + 6)
        if length == 0:
            position = len(data) - 2
            break
        if length < 14:
            raise_undecodable("a JPEG 2000 tile is shorter than its own header")
        _walk_header(row, data, position + 12, b"\xff\x93")
        position += length
    if data[position : position + 2] != b"\xff\xd9":
        raise_truncated("before the JPEG 2000 end marker")


def _walk_header(row: Row, data: bytes, position: int, last: bytes) -> int:
    """Go over marker segments up to the last, checking those that say how finely a picture is cut."""
    while data[position : position + 2] != last:
        if data[position] != 0xFF:
            raise_undecodable("the JPEG 2000 header is broken")
        segment = data[position + 4 : position + 2 + int.from_bytes(data[position + 2 : position + 4])]
        if data[position + 1] == 0x52:  # COD: style, progression, layers, transform; then as in COC
            _check_style(row, segment[0], segment[5:])
        elif data[position + 1] == 0x53:  # COC: component, style (at most 256 components)
            _check_style(row, segment[1], segment[2:])
        position += 4 + len(segment)
    return position


def _check_style(row: Row, style: int, fields: bytes) -> None:
    """Refuse pieces so small that the decoder's lists of them would take gigabytes."""
    levels = fields[0]
    _bound(row, 1 << (fields[1] & 15) + (fields[2] & 15) + 4, MAX_PIECES)
    if style & 1:
        for level, sizes in enumerate(fields[5:]):  # of the resolutions, the smallest first
            _bound(row, 1 << (sizes & 15) + (sizes >> 4) + 2 * max(levels - level, 0), MAX_PIECES)


def _bound(row: Row, piece: int, most: int) -> None:
    assert row.width is not None
    assert row.height is not None
    if row.width * row.height > piece * most:
        raise_unsupported(f"JPEG 2000 cut into pieces of {piece} pixels at this size")
