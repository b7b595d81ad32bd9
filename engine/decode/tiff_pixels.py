"""The pixels of a TIFF, piece by piece, by codecs that tell what is missing or damaged.

A picture is cut into pieces, strips or tiles, and each must give all of its bytes. Deflate is unpacked by
zlib, which checks sums; JPEG by libjpeg-turbo; a fax by fax.py; the rest by Pillow's libtiff, which sees the
pieces as one picture of bytes. What the bytes mean is decided here.
"""

import io
import struct
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt

from ..row import Row
from ..text import one_line
from .coded_image import DecodeLimits, raise_undecodable
from .fax import DamagedFaxError, fax_lines
from .header_jpeg import jpeg
from .odd_jpeg import read_odd_jpeg, with_plain_header
from .resize import Pixels
from .samples import Samples, unpacked

Bytes = npt.NDArray[np.uint8]

_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
_CODEC_MEMORY = "decoder error -9"  # Pillow's sentence for a lack of memory
LUMA = (0.299, 0.587, 0.114)  # of red, green, blue (ITU-R BT.601, TIFF's default)


@dataclass(frozen=True, slots=True)
class Picture:
    """What a TIFF's directory says of its picture."""

    blob: bytes  # the whole file
    order: str  # of bytes, as struct names it
    width: int
    height: int
    bits: int  # a sample, 1 to 16
    samples: int  # a pixel
    planes: int  # 1, or as many as samples where these are stored apart
    photometric: int  # tag 262
    compression: str
    number: int  # of the compression, tag 259
    predictor: int  # tag 317
    reversed_bits: bool  # in each byte the lowest bit comes first
    tiled: bool
    piece_width: int  # pixels
    piece_height: int
    factors: tuple[int, int]  # pixels across and down that share one color, of YCbCr
    offsets: tuple[int, ...]  # of the pieces, plane after plane, line after line
    sizes: tuple[int, ...]
    tables: bytes  # that JPEG pieces share
    fax_options: int  # tag 292
    palette: tuple[int, ...]  # all reds, all greens, all blues, 16 bits each

    @property
    def across(self) -> int:
        """Pieces side by side."""
        return -(-self.width // self.piece_width)

    @property
    def pieces(self) -> int:
        """Pieces of a plane."""
        return self.across * -(-self.height // self.piece_height)

    @property
    def channels(self) -> int:
        """Samples of a pixel in one plane."""
        return self.samples if self.planes == 1 else 1

    @property
    def line_bytes(self) -> int:
        """Bytes of a piece's line, or of a line of its blocks where pixels share colors."""
        across, down = self.factors
        if self.factors != (1, 1):
            return -(-self.piece_width // across) * (across * down + 2)
        return -(-self.piece_width * self.channels * self.bits // 8)

    def lines(self, piece: int) -> int:
        """Lines of bytes of a piece."""
        rows = self.piece_height
        if not self.tiled:
            rows = min(rows, self.height - piece % self.pieces * rows)
        return -(-rows // self.factors[1])

    def size(self, piece: int) -> int:
        """Bytes of a piece when it is unpacked."""
        return self.lines(piece) * self.line_bytes


def read_tiff(picture: Picture, used: int, pixels: Pixels) -> tuple[str, ...]:
    """Fill pixels [height, width, C], 0 as black, from the first `used` samples; returns warnings.

    C is 1 or 3, without alpha; 4 with alpha, or for CMYK. Samples of fewer than 8 bits are spread over 0 to
    255, others stay as stored. Raises ImageFault and MemoryError.
    """
    warnings: dict[str, None] = {}
    planes = [_plane(picture, plane, warnings) for plane in range(used if picture.planes > 1 else 1)]
    channels = [plane[..., channel] for plane in planes for channel in range(plane.shape[2])][:used]
    if picture.photometric == 3:
        pixels[...] = _colors(picture)[channels[0]]
        return tuple(warnings)
    if picture.photometric == 6 and picture.compression != "JPEG":
        channels[:3] = _rgb(*channels[:3])
    channels = [_spread(channel, picture.bits) for channel in channels]
    if picture.photometric == 0:
        channels[0] = _spread(np.array((1 << picture.bits) - 1), picture.bits) - channels[0]
    if len(channels) == 2:
        channels[:1] = channels[:1] * 3  # gray with alpha
    for channel, samples in enumerate(channels):
        pixels[..., channel] = samples
    return tuple(warnings)


def _spread(samples: npt.NDArray[Any], bits: int) -> npt.NDArray[Any]:
    """Spread samples of fewer than 8 bits over 0 to 255."""
    if bits >= 8:
        return samples
    top = (1 << bits) - 1
    return ((np.arange(top + 1) * 255 + top // 2) // top).astype(np.uint8)[samples]


def _colors(picture: Picture) -> Bytes:
    """Bring a palette to [colors, 3] as everyone reads it: the upper byte, or all of a small one."""
    colors = np.array(picture.palette).reshape(3, -1).T
    return (colors if colors.max() < 256 else colors >> 8).astype(np.uint8)


def _rgb(luma: Samples, blue: Samples, red: Samples) -> list[Samples]:
    """Convert Y, Cb, Cr to R, G, B."""
    y, cb, cr = luma.astype(np.float32), blue - np.float32(128), red - np.float32(128)
    of_red, of_green, of_blue = LUMA
    r, b = y + (2 - 2 * of_red) * cr, y + (2 - 2 * of_blue) * cb
    g = (y - of_red * r - of_blue * b) / of_green
    return [np.rint(channel).clip(0, 255).astype(np.uint8) for channel in (r, g, b)]


def _plane(picture: Picture, plane: int, warnings: dict[str, None]) -> Samples:
    """Decode one plane into [height, width, C] as stored; adds to the warnings."""
    if picture.compression == "JPEG":
        return _from_jpegs(picture, plane, warnings)
    lines = _lines(picture, plane, warnings)
    wide, high, channels = picture.piece_width, picture.piece_height, picture.channels
    if picture.factors != (1, 1):
        samples = _from_blocks(picture, lines)
    else:
        samples = unpacked(lines, wide * channels, picture.bits, picture.order)
        samples = samples.reshape(-1, wide, channels)
    if picture.predictor == 2 and picture.compression in ("LZW", "deflate", "Zstandard"):
        samples = np.add.accumulate(samples, axis=1, dtype=samples.dtype)
    if picture.tiled:
        grid = samples.reshape(-1, picture.across, high, wide, samples.shape[2]).swapaxes(1, 2)
        samples = grid.reshape(-1, picture.across * wide, samples.shape[2])
    return samples[: picture.height, : picture.width]


def _from_blocks(picture: Picture, lines: Bytes) -> Samples:
    """Take blocks of some lumas, one blue and one red difference apart, into [lines, piece width, C]."""
    across, down = picture.factors
    blocks = lines.reshape(len(lines), -1, across * down + 2)
    luma = blocks[..., :-2].reshape(*blocks.shape[:2], down, across).swapaxes(1, 2)
    colors = blocks[..., -2:].repeat(down, 0).repeat(across, 1)
    samples = np.dstack((luma.reshape(colors.shape[:2]), colors))[:, : picture.piece_width]
    if not picture.tiled:
        return samples
    tiles = samples.reshape(picture.pieces, -1, *samples.shape[1:])
    return tiles[:, : picture.piece_height].reshape(-1, *samples.shape[1:])


def _lines(picture: Picture, plane: int, warnings: dict[str, None]) -> Bytes:
    """Unpack the pieces of a plane into lines of bytes, one piece below the other; adds to the warnings."""
    first = plane * picture.pieces
    pieces = range(first, first + picture.pieces)
    if picture.compression == "fax":
        damaged = list[int]()
        parts = [_from_fax(picture, piece, damaged) for piece in pieces]
        if damaged:
            which = f"line {damaged[0] + 1}" if len(damaged) == 1 else f"{len(damaged)} lines"
            warnings[f"the TIFF's fax is damaged in {which} of {picture.height}"] = None
    elif picture.compression in ("none", "deflate"):
        unpack = _stored if picture.compression == "none" else _inflated
        parts = [unpack(picture, piece) for piece in pieces]
    else:
        return _by_libtiff(picture, pieces)
    return np.frombuffer(b"".join(parts), np.uint8).reshape(-1, picture.line_bytes)


def _coded(picture: Picture, piece: int, size: int) -> bytes:
    """Return the first bytes of a piece as they are stored, the highest bit first."""
    start = picture.offsets[piece]
    data = picture.blob[start : start + size]
    return data.translate(_REVERSED) if picture.reversed_bits else data


def _stored(picture: Picture, piece: int) -> bytes:
    return _coded(picture, piece, picture.size(piece))


def _inflated(picture: Picture, piece: int) -> bytes:
    size, data = picture.size(piece), _coded(picture, piece, picture.sizes[piece])
    unpacker = zlib.decompressobj()
    whole = picture.piece_height * picture.line_bytes  # a last strip may be as long as the others,
    try:
        given = unpacker.decompress(data, whole + 1)  # and one more byte brings the sum to be checked
    except zlib.error as error:
        raise_undecodable(f"the TIFF's piece {piece} is damaged: {one_line(error)}")
    if len(given) < size or (len(given) > size and not unpacker.eof):
        words = "fewer" if len(given) < size else "more"
        raise_undecodable(f"the TIFF's piece {piece} has {words} than its {size} bytes")
    return given[:size]


def _from_fax(picture: Picture, piece: int, damaged: list[int]) -> bytes:
    """Decode a fax; adds to the damaged lines of the picture."""
    data = _coded(picture, piece, picture.sizes[piece])
    width, lines = picture.piece_width, picture.lines(piece)
    try:
        bits, lost = fax_lines(data, width, lines, picture.number, picture.fax_options)
    except DamagedFaxError as error:
        raise_undecodable(f"the TIFF's piece {piece}, a fax, {error}")
    first = piece % picture.pieces // picture.across * picture.piece_height
    damaged += [first + line for line in lost]
    return np.packbits(bits, axis=1).tobytes()


def _by_libtiff(picture: Picture, pieces: range) -> Bytes:
    """Let libtiff unpack pieces as strips of one picture of bytes."""
    from PIL.TiffImagePlugin import TiffImageFile

    try:
        with TiffImageFile(io.BytesIO(_as_strips(picture, pieces))) as strips:
            return np.asarray(strips)
    except (OSError, SyntaxError, ValueError) as error:
        if str(error) == _CODEC_MEMORY:
            raise MemoryError(str(error)) from error
        raise_undecodable(f"the TIFF's {picture.compression} data are damaged: {one_line(error)}")


def _as_strips(picture: Picture, pieces: range) -> bytes:
    """Write the file anew, as a BigTIFF of one gray sample a byte, with the pieces as its strips."""
    head = 16  # bytes; the old file follows, with its offsets moved by so many
    tags: dict[int, Sequence[int]] = {
        256: [picture.line_bytes],
        257: [sum(map(picture.lines, pieces))],
        258: [8],
        259: [picture.number],
        262: [1],
        266: [2 if picture.reversed_bits else 1],
        273: [picture.offsets[piece] + head for piece in pieces],
        277: [1],
        278: [picture.lines(pieces[0])],
        279: [picture.sizes[piece] for piece in pieces],
    }
    lists, entries = b"", b""
    start = head + len(picture.blob)
    for tag, values in sorted(tags.items()):
        packed = struct.pack(f"<{len(values)}Q", *values)
        if len(values) > 1:
            packed, lists = struct.pack("<Q", start + len(lists)), lists + packed
        entries += struct.pack("<HHQ", tag, 16, len(values)) + packed
    directory = struct.pack("<Q", len(tags)) + entries + bytes(8)
    return b"".join(
        (struct.pack("<2sHHHQ", b"II", 43, 8, 0, start + len(lists)), picture.blob, lists, directory)
    )


def _from_jpegs(picture: Picture, plane: int, warnings: dict[str, None]) -> Samples:
    """Decode pieces that are JPEGs into [height, width, C]; adds to the warnings."""
    pixels = np.empty((picture.height, picture.width, picture.channels), np.uint8)
    for piece in range(picture.pieces):
        line, column = divmod(piece, picture.across)
        line, column = line * picture.piece_height, column * picture.piece_width
        target = pixels[line : line + picture.piece_height, column : column + picture.piece_width]
        decoded = _from_jpeg(picture, plane * picture.pieces + piece, warnings)
        target[...] = decoded[: target.shape[0], : target.shape[1]]
    return pixels


def _from_jpeg(picture: Picture, piece: int, warnings: dict[str, None]) -> Bytes:
    """Decode one JPEG of a piece's size; it may have more lines than are left of the picture."""
    start = picture.offsets[piece]
    blob = picture.blob[start : start + picture.sizes[piece]]
    if not blob.startswith(b"\xff\xd8"):
        raise_undecodable(f"the TIFF's piece {piece} is no JPEG")
    if picture.tables:
        blob = b"\xff\xd8" + picture.tables[2:].removesuffix(b"\xff\xd9") + blob[2:]
    blob = with_plain_header(blob, 1 if picture.photometric == 6 else 0)
    row = Row(uri="")
    image = jpeg(row, blob, DecodeLimits(max_pixels=1 << 32))
    assert row.height is not None
    assert row.width is not None
    channels = {"gray": 1, "rgb": 3, "cmyk": 4}[str(row.color)]
    lines = picture.lines(piece)
    if (
        row.width != picture.piece_width
        or not lines <= row.height <= lines + picture.piece_height
        or channels != picture.channels
    ):
        raise_undecodable(
            f"the TIFF's piece {piece} is a JPEG of {row.width} x {row.height} pixels of {channels} samples"
        )
    pixels = np.empty((row.height, row.width, channels), np.uint8)
    space = {1: "GRAY", 3: "RGB", 4: "CMYK"}[channels]
    warnings |= dict.fromkeys(image.warnings)
    try:
        import_module("simplejpeg").decode_jpeg(image.data, space, buffer=pixels)
    except ValueError as refusal:
        warnings |= dict.fromkeys(read_odd_jpeg(image, space, pixels, refusal))
    return pixels
