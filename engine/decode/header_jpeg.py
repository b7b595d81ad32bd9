"""The header gate of JPEG (ITU-T T.81)."""

import re
import struct

from ..row import Row
from .coded_image import (
    CodedImage,
    DecodeLimits,
    Layout,
    exif_orientation,
    orientation_warnings,
    raise_truncated,
    raise_undecodable,
    raise_unsupported,
    set_size,
)

MAX_SCANS = 500  # of a progressive JPEG; encoders write about ten, an attacker as many as fit

_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # SOF markers
_MARKER = re.compile(rb"\xff[\x02-\xcf\xd9-\xfe]")  # one that has a length, or the end
_NEXT_SCAN = re.compile(rb"\xff[\xd8-\xda]")  # or the end of the picture, or the start of another
_SAMPLINGS = {  # of the components, horizontal << 4 | vertical: gray, 4:4:4, 4:2:2, 4:2:0, 4:4:0
    *(b"\x11", b"\x11\x11\x11", b"\x21\x11\x11", b"\x22\x11\x11", b"\x12\x11\x11")
}


def jpeg(row: Row, blob: bytes, limits: DecodeLimits) -> CodedImage:
    """Read the header of a JPEG."""
    position, progressive, orientation, adobe, components = 2, False, None, None, b""
    while True:
        match = _MARKER.search(blob, position)  # libjpeg skips garbage between segments, too, and warns
        if match is None:
            raise_truncated("before the picture begins")
        position, marker = match.start(), blob[match.start() + 1]
        if marker == 0xD9:
            raise_undecodable("the JPEG holds no picture")
        start = position + 4
        position += 2 + int.from_bytes(blob[position + 2 : start])
        if marker == 0xDA:
            break
        if position > len(blob):
            raise_truncated("before the picture begins")
        if marker in _FRAMES:
            components = _jpeg_frame(row, marker, blob[start:position], limits)
            progressive = marker == 0xC2
        elif marker == 0xF7:
            raise_unsupported("JPEG-LS")
        elif marker == 0xE1 and blob.startswith(b"Exif\0\0", start):
            orientation = exif_orientation(blob[start + 6 : position])
        elif marker == 0xEE and blob.startswith(b"Adobe", start) and position - start >= 12:
            adobe = blob[start + 11]
    if row.color is None:
        raise_undecodable("the JPEG's picture begins before its size is said")
    if blob.rfind(b"\xff\xd9", position) < 0:
        raise_truncated("before the JPEG's end marker")
    several = progressive or 3 * blob[start] != len(components)
    coarse = _missing_scans(blob, start, components[::3], progressive) if several else ()
    layout: Layout = "gray" if row.color == "gray" else "inverted cmyk" if row.color == "cmyk" else "rgb"
    perhaps_rgb = adobe not in (None, 1) or components[::3] == b"RGB"  # not YCbCr: libjpeg looks closer
    nvjpeg = components[1::3] in _SAMPLINGS and not perhaps_rgb and not coarse
    warnings = orientation_warnings(orientation) + coarse
    return CodedImage(blob, layout, warnings=warnings, nvjpeg=nvjpeg, coarse=bool(coarse))


def _jpeg_frame(row: Row, marker: int, segment: bytes, limits: DecodeLimits) -> bytes:
    """Read a frame's header; returns 3 bytes for each component: its name, sampling and table."""
    if row.color is not None:
        raise_undecodable("the JPEG holds two frames")
    depth, height, width, components = struct.unpack_from(">BHHB", segment)
    row.bit_depth = depth
    if height == 0:
        raise_unsupported("a JPEG that says its height after the picture (DNL)")
    set_size(row, width, height, limits)
    row.color = {1: "gray", 3: "rgb", 4: "cmyk"}.get(components)
    if marker in (0xC3, 0xC5, 0xC6, 0xC7):
        raise_unsupported("lossless or hierarchical JPEG")
    if marker > 0xC7:
        raise_unsupported("arithmetic-coded JPEG")
    if depth != 8:
        raise_unsupported(f"{depth}-bit JPEG")
    if row.color is None:
        raise_unsupported(f"a JPEG of {components} components")
    return segment[6 : 6 + 3 * components]


def _missing_scans(blob: bytes, start: int, names: bytes, progressive: bool) -> tuple[str, ...]:
    """Find out whether the scans, the first of them at `start`, bring every coefficient to its last bit.

    libjpeg invents what is left out. Returns a warning where that only refines the picture: a progressive one
    with an end marker, of which all components have data for each block. Raises ImageFault, truncated, where
    more is missing.
    """
    left = dict.fromkeys(names, (1 << 64) - 1)  # coefficients of each component, a bit each
    unseen = set(names)  # components without the mean of each block
    scans = 1
    while True:
        if scans > MAX_SCANS:
            raise_undecodable(f"the JPEG has more than {MAX_SCANS} scans")
        end = start + 1 + 2 * blob[start]
        done = (2 << blob[end + 1]) - (1 << blob[end]) if progressive else -1
        if not progressive or blob[end + 2] & 15 == 0:  # bits that are left for later scans
            left |= {name: left.get(name, 0) & ~done for name in blob[start + 1 : end : 2]}
        if blob[end] == 0:
            unseen.difference_update(blob[start + 1 : end : 2])
        match = _NEXT_SCAN.search(blob, end)
        if match is None or match[0] != b"\xff\xda":
            break
        start = match.end() + 2
        scans += 1
    if not any(left.values()):
        return ()
    if not progressive or unseen or match is None or match[0] != b"\xff\xd9":
        raise_truncated("before the JPEG's last scan")
    return (f"the JPEG's scans after number {scans} are missing: its picture is coarser than it was",)
