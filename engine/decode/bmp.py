"""BMP, and DIB without a file header: the gate, and the reader of its pixels.

The headers of Windows (40 bytes, and its versions 2 to 5), of OS/2 1.x (12 bytes) and of OS/2 2.x (16 to 64
bytes); palettes, run lengths, and any masks of 16 and 32 bits. Alpha is what a mask of its own says.
"""

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from ..row import ImageFault, Row
from .coded_image import (
    CodedImage,
    DecodeLimits,
    raise_truncated,
    raise_undecodable,
    raise_unsupported,
    set_size,
)
from .resize import Pixels
from .samples import unpacked

_FILE_HEADER = 14  # bytes
_WINDOWS = (40, 52, 56, 108, 124)  # bytes of its headers, version 1 to 5
_RAW, _RLE8, _RLE4, _FIELDS, _ALPHA_FIELDS = 0, 1, 2, 3, 6  # compressions
_MASKS = {16: (0x7C00, 0x3E0, 0x1F, 0), 32: (0xFF0000, 0xFF00, 0xFF, 0)}  # red, green, blue, alpha


@dataclass(frozen=True, slots=True)
class _Header:
    size: int  # bytes
    width: int
    height: int  # below 0 where the first line is the upper one
    bits: int  # a pixel
    compression: int
    colors: int  # entries of the palette; 0: as many as the bits allow
    planes: int  # must be 1

    @property
    def stride(self) -> int:
        return (self.width * self.bits + 31) // 32 * 4

    @property
    def entry(self) -> int:
        return 3 if self.size == 12 else 4  # bytes of a palette's color


def bmp(row: Row, blob: bytes, limits: DecodeLimits) -> CodedImage:
    """Read the header of a BMP file."""
    (data_start,) = struct.unpack_from("<I", blob, 10)
    return _gate(row, blob, _FILE_HEADER, data_start, limits)


def dib(row: Row, blob: bytes, limits: DecodeLimits) -> CodedImage:
    """Read the header of a BMP that lacks the header of its file, as the clipboard has it."""
    return _gate(row, blob, 0, 0, limits)


def is_dib(blob: bytes) -> bool:
    """Tell whether content begins as a BMP that lacks the header of its file."""
    if int.from_bytes(blob[:4], "little") not in (12, 16, 64, *_WINDOWS) or len(blob) < 16:
        return False
    planes, bits = struct.unpack_from("<HH", blob, 8 if blob[0] == 12 else 12)
    return planes == 1 and bits in (1, 4, 8, 16, 24, 32)


def _gate(row: Row, blob: bytes, start: int, data_start: int, limits: DecodeLimits) -> CodedImage:
    header = _header(blob, start)
    bits, compression = header.bits, header.compression
    row.color, row.bit_depth = ("palette", bits) if bits <= 8 else ("rgb", 8)
    set_size(row, header.width, abs(header.height), limits)
    packed = compression in (_RLE8, _RLE4)
    masks, after = _masks(header, blob, start)
    if masks is not None:
        widths = [mask.bit_count() for mask in masks]
        row.bit_depth = min(width for width in widths[:3] if width)
        row.color = "rgba" if masks[3] else "rgb"
    size = header.stride * abs(header.height)
    most = min(header.colors or 1 << bits, 1 << bits) if bits <= 8 else 0
    behind = after + most * header.entry
    inside = data_start == after < behind and not packed and len(blob) >= behind + size
    if data_start < after or inside:
        first, colors = behind, most
    else:
        first, colors = data_start, min(most, (data_start - after) // header.entry)
    if most and not colors:
        raise_undecodable("the BMP has no palette")
    palette = blob[after : after + colors * header.entry]
    if len(blob) < (first + 1 if packed else first + size):
        raise_truncated("before the BMP's last line")
    if packed:
        read = partial(_read_runs, header, palette, blob, first)
    else:
        read = partial(_read_lines, header, palette, masks, blob, first)
    warnings: tuple[str, ...] = ()
    if 0 < data_start < after or inside:  # writers fill the field in wrong
        warnings = ("the BMP's pixels are read from behind its header, not inside it as it says",)
    if header.planes != 1:
        warnings += (f"the BMP's header says {header.planes} planes",)
    return CodedImage(b"", "rgba" if row.color == "rgba" else "rgb", warnings=warnings, read=read)


def _header(blob: bytes, start: int) -> _Header:
    (size,) = struct.unpack_from("<I", blob, start)
    compression = colors = 0
    if size == 12:
        width, height, planes, bits = struct.unpack_from("<HHHH", blob, start + 4)
    elif 16 <= size <= 64 or size in _WINDOWS:
        fields = blob[start + 4 : start + min(size, 40)]
        if len(blob) < start + size:
            raise_truncated("inside its header")
        width, height, planes, bits, compression, _, _, _, colors, _ = struct.unpack(
            "<iiHHIIiiII", fields.ljust(36, b"\0")
        )
    elif size < 1000:
        raise_unsupported(f"a BMP with a header of {size} bytes")
    else:
        raise ImageFault("not_an_image", "the content begins with BM but is not a BMP image")
    if bits not in (1, 2, 4, 8, 16, 24, 32):
        raise_undecodable(f"the BMP's header says {planes} planes of {bits} bits")
    forms = {(_RAW, bits), (_RLE8, 8), (_RLE4, 4)}
    if size in _WINDOWS:
        forms |= {(fields, depth) for fields in (_FIELDS, _ALPHA_FIELDS) for depth in (16, 32)}
    if (compression, bits) not in forms:
        raise_unsupported(f"a BMP of {bits} bits with a header of {size} bytes and compression {compression}")
    return _Header(size, width, height, bits, compression, colors, planes)


def _masks(header: _Header, blob: bytes, start: int) -> tuple[tuple[int, ...] | None, int]:
    """Return the masks of red, green, blue and alpha, and where the header with its masks ends."""
    end = start + header.size
    if header.bits not in _MASKS:
        return None, end
    if header.compression == _RAW:
        return _MASKS[header.bits], end
    count = 4 if header.compression == _ALPHA_FIELDS or header.size >= 56 else 3
    masks = struct.unpack_from(f"<{count}I", blob, start + 40)
    for mask in masks:
        low = mask & -mask
        if mask >> header.bits or (mask and (mask + low) & (mask + low - 1)):
            raise_unsupported("a BMP whose masks are not of consecutive bits")
    if not any(masks[:3]):
        raise_undecodable("the BMP's masks are empty")
    return (*masks, 0)[:4], max(end, start + 40 + 4 * count)


def _read_lines(
    header: _Header,
    palette: bytes,
    masks: tuple[int, ...] | None,
    blob: bytes,
    start: int,
    pixels: Pixels,
) -> tuple[str, ...]:
    """Fill pixels [height, width, 3 or 4] from lines that are not compressed."""
    size = header.stride * abs(header.height)
    lines = np.frombuffer(blob, np.uint8, size, start).reshape(-1, header.stride)
    if header.height > 0:
        pixels = pixels[::-1]
    width, bits = header.width, header.bits
    if masks is not None:
        words = lines.view("<u2" if bits == 16 else "<u4")[:, :width]
        for channel in range(pixels.shape[2]):
            pixels[..., channel] = _channel(words, masks[channel])
        return ()
    if bits == 24:
        pixels[...] = lines[:, : 3 * width].reshape(-1, width, 3)[..., ::-1]
        return ()
    return _colored(unpacked(lines, width, bits), palette, header.entry, pixels)


def _channel(words: npt.NDArray[np.uint16 | np.uint32], mask: int) -> npt.NDArray[np.uint8]:
    """Take the bits of a mask from each pixel, spread over 0 to 255; without bits, 0."""
    if mask == 0:
        return np.zeros(words.shape, np.uint8)
    shift, width = (mask & -mask).bit_length() - 1, mask.bit_count()
    values = (words & words.dtype.type(mask)) >> words.dtype.type(shift + max(0, width - 16))
    if width == 8:
        return values.astype(np.uint8)
    top = (1 << min(width, 16)) - 1
    table = (np.arange(top + 1) * 255 + top // 2) // top
    return table.astype(np.uint8)[values]


def _colored(indices: Pixels, palette: bytes, entry: int, pixels: Pixels) -> tuple[str, ...]:
    """Fill pixels [height, width, 3] with the palette's colors; those that it lacks are black."""
    colors = np.zeros((256, 3), np.uint8)
    known = len(palette) // entry
    colors[:known] = np.frombuffer(palette, np.uint8, known * entry).reshape(-1, entry)[:, 2::-1]
    pixels[...] = colors[indices]
    most = int(indices.max())
    return (f"color {most} is not in the BMP's palette of {known}",) if most >= known else ()


def _read_runs(header: _Header, palette: bytes, blob: bytes, start: int, pixels: Pixels) -> tuple[str, ...]:
    """Fill pixels [height, width, 3] from run lengths; what these leave out has the palette's first color."""
    width, height = header.width, abs(header.height)
    indices = np.zeros((height, width), np.uint8)
    covered = 0
    for line, column, run in _runs(blob, start, header.bits, height):
        if column < width:
            part = run[: width - column]  # lines may be padded
            indices[line, column : column + len(part)] = np.frombuffer(part, np.uint8)
            covered += len(part)
    if header.height > 0:
        pixels = pixels[::-1]
    left = width * height - covered
    warnings = (f"the BMP says nothing of {left} of its pixels",) if left > 0 else ()
    return _colored(indices, palette, header.entry, pixels) + warnings


def _runs(blob: bytes, position: int, bits: int, height: int) -> Iterator[tuple[int, int, bytes]]:
    """Yield (line, column, indices) of a picture's runs, up to its end mark or last line."""
    line = column = 0
    fast = bits == 8
    while line < height:
        if position + 2 > len(blob):
            raise_truncated("before the BMP's last line")
        count, value = blob[position], blob[position + 1]
        position += 2
        if count:
            pair = bytes((value,)) if fast else bytes((value >> 4, value & 15))
            run = pair * count if fast else (pair * (count + 1 >> 1))[:count]
        elif value > 2:
            size = value if fast else value + 1 >> 1
            run = blob[position : position + size]
            if len(run) < size:
                raise_truncated("before the BMP's last line")
            if not fast:
                run = bytes(half for byte in run for half in (byte >> 4, byte & 15))[:value]
            position += size + size % 2
        elif value == 0:
            line, column = line + 1, 0
            continue
        elif value == 1:
            return
        else:
            if position + 2 > len(blob):
                raise_truncated("before the BMP's last line")
            column, line = column + blob[position], line + blob[position + 1]
            position += 2
            continue
        yield line, column, run
        column += len(run)
