"""Check headers: what a file is and whether it is whole, before anything is allocated or decoded.

Each parser reads the few fields that fix an image's size and form, fills format, width, height,
bit_depth and color of the row, refuses what is not supported, too large or cut short, and returns the
`CodedImage` that the decoder gets: only the parts that define pixels, so that no profile, comment,
thumbnail, further page or animation frame ever reaches native code.
"""

import struct
import zlib

from ..row import ImageFault, Row
from .bmp import bmp, dib, is_dib
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
from .header_jpeg import jpeg
from .header_jpeg2000 import codestream, jp2
from .header_tiff import tiff


def inspect(row: Row, blob: bytes, limits: DecodeLimits) -> CodedImage:
    """Read the header of an image file.

    Fills format, width, height, bit_depth and color of the row as far as they are known. Raises
    ImageFault: empty, not_an_image, unsupported, too_large, truncated or undecodable.
    """
    if not blob:
        raise ImageFault("empty", "the file has no bytes")
    if len(blob) > limits.max_file_size:
        raise ImageFault("too_large", f"the file has {len(blob)} bytes; the limit is {limits.max_file_size}")
    parsers = ((b"", "bmp", dib),) if is_dib(blob) else _PARSERS
    for signature, name, parser in parsers:
        if blob.startswith(signature) or (len(blob) < len(signature) and signature.startswith(blob)):
            row.format = name
            try:
                return parser(row, blob, limits)
            except (struct.error, IndexError):
                raise_truncated("inside its header")
            except ImageFault as fault:
                if fault.status == "not_an_image":
                    row.format = None
                raise
    raise _foreign(row, blob)


# --- content that is not an image, or of a format not read here


def _foreign(row: Row, blob: bytes) -> ImageFault:
    for offset, signature, name in _FOREIGN:
        if blob.startswith(signature, offset):
            row.format = name.lower().replace(" ", "")
            return ImageFault("unsupported", f"{name} is not supported")
    if not blob.strip(b"\0"):
        return ImageFault("not_an_image", f"all {len(blob)} bytes are zero")
    if blob.startswith(b"PK\x03\x04"):
        return ImageFault(
            "not_an_image", "the content is a zip archive, which is not read: unpack it, or repack it as .tar"
        )
    start = ascii(blob[:12])[1:]
    return ImageFault("not_an_image", f"the content is not of a known image format; it begins with {start}")


_FOREIGN = (
    (0, b"GIF87a", "GIF"),
    (0, b"GIF89a", "GIF"),
    (128, b"DICM", "DICOM"),
    (4, b"ftypheic", "HEIC"),
    (4, b"ftypheix", "HEIC"),
    (4, b"ftyphevc", "HEIC"),
    (4, b"ftypmif1", "HEIC"),
    (4, b"ftypmsf1", "HEIC"),
    (4, b"ftypavif", "AVIF"),
    (4, b"ftypavis", "AVIF"),
    (0, b"\xff\x0a", "JPEG XL"),
    (0, b"\x00\x00\x00\x0cJXL \r\n\x87\n", "JPEG XL"),
    (0, b"8BPS", "PSD"),
    (0, b"v/1\x01", "OpenEXR"),
    (0, b"P5", "PNM"),
    (0, b"P6", "PNM"),
    (0, b"\x00\x00\x01\x00", "ICO"),
)


# --- PNG (ISO/IEC 15948)

_PNG_COLORS = {0: "gray", 2: "rgb", 3: "palette", 4: "gray+alpha", 6: "rgba"}
_PNG_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
_PNG_PIXEL_CHUNKS = (b"IDAT", b"IHDR", b"PLTE", b"tRNS")
_CHUNK = struct.Struct(">I4s")


def _png(row: Row, blob: bytes, limits: DecodeLimits) -> CodedImage:
    length, kind = _CHUNK.unpack_from(blob, 8)
    if kind != b"IHDR" or length != 13:
        raise_undecodable("the PNG does not begin with its header")
    width, height, depth, color, _, _, interlace = struct.unpack_from(">IIBBBBB", blob, 16)
    if depth not in _PNG_DEPTHS.get(color, ()) or interlace > 1:
        raise_undecodable(f"the PNG's header says color type {color} with {depth} bits")
    row.bit_depth, row.color = depth, _PNG_COLORS[color]
    set_size(row, width, height, limits)
    chunks = _png_chunks(blob)
    layout: Layout = "rgba" if color in (4, 6) else "gray" if color == 0 else "rgb"
    return CodedImage(
        _rewrite_png(chunks, color),
        layout,
        depth=16 if depth == 16 else 8,
        key=_transparent_color(chunks.get(b"tRNS", b""), color, depth),
        warnings=orientation_warnings(exif_orientation(chunks.get(b"eXIf", b""))),
    )


def _rewrite_png(chunks: dict[bytes, bytes], color: int) -> bytes:
    """Keep what defines pixels; a palette gets its transparency composited on white."""
    parts = [b"\x89PNG\r\n\x1a\n", _png_chunk(b"IHDR", chunks[b"IHDR"])]
    if color == 3:
        palette = _flat_palette(chunks.get(b"PLTE", b""), chunks.get(b"tRNS", b""))
        parts.append(_png_chunk(b"PLTE", palette))
    return b"".join((*parts, chunks[b"IDAT"], _png_chunk(b"IEND", b"")))


def _transparent_color(key: bytes, color: int, depth: int) -> tuple[int, ...] | None:
    """Read the one transparent color of gray or RGB, on the scale of the decoded pixels."""
    samples = {0: 1, 2: 3}.get(color, 0)
    if not key or not samples:
        return None
    if len(key) != 2 * samples:
        raise_undecodable("the PNG's transparent color is broken")
    top = (1 << depth) - 1
    spread = 1 if depth >= 8 else 255 // top
    return tuple((value & top) * spread for value in struct.unpack(f">{samples}H", key))


def _png_chunks(blob: bytes) -> dict[bytes, bytes]:
    """Collect the chunks that define pixels; IDAT holds its whole chunks, with lengths and checksums."""
    chunks: dict[bytes, bytes] = {}
    view, position, kind = memoryview(blob), 8, b""
    data_start = data_end = 0
    while kind != b"IEND":
        if position + 12 > len(blob):
            raise_truncated("before the PNG's end chunk")
        length, kind = _CHUNK.unpack_from(blob, position)
        start, position = position, position + 12 + length
        if position > len(blob):
            raise_truncated("before the PNG's end chunk")
        if kind not in _PNG_PIXEL_CHUNKS:
            if kind == b"eXIf":
                chunks[kind] = blob[start + 8 : position - 4]
            elif kind[0] < 0x60 and kind != b"IEND":  # a capital letter: must be understood
                raise_unsupported(f"PNG with a chunk {ascii(kind)[1:]}")
            continue
        if zlib.crc32(view[start + 4 : position - 4]) != int.from_bytes(view[position - 4 : position]):
            raise_undecodable(f"the checksum of the PNG's chunk {kind.decode()} is wrong")
        if kind == b"IDAT":
            if data_end not in (0, start):
                raise_undecodable("the PNG's data chunks are not consecutive")
            data_start, data_end = data_start or start, position
        elif kind in chunks or (data_end and kind in (b"PLTE", b"tRNS")):
            raise_undecodable(f"the PNG's chunk {kind.decode()} is misplaced")
        else:
            chunks[kind] = blob[start + 8 : position - 4]
    if not data_end:
        raise_undecodable("the PNG holds no picture")
    chunks[b"IDAT"] = blob[data_start:data_end]
    return chunks


def _png_chunk(kind: bytes, data: bytes) -> bytes:
    return _CHUNK.pack(len(data), kind) + data + zlib.crc32(kind + data).to_bytes(4)


def _flat_palette(colors: bytes, alphas: bytes) -> bytes:
    """Composite each palette entry on white by its own transparency."""
    if not colors or len(colors) % 3:
        raise_undecodable("the PNG's palette is missing or broken")
    palette = bytearray(colors)
    for index, alpha in enumerate(alphas[: len(palette) // 3]):
        for channel in range(3 * index, 3 * index + 3):
            palette[channel] = 255 - ((255 - palette[channel]) * alpha + 127) // 255
    return bytes(palette)


# --- WebP (RFC 9649)


def _webp(row: Row, blob: bytes, limits: DecodeLimits) -> CodedImage:
    if not blob.startswith(b"WEBP"[: len(blob) - 8], 8):
        raise ImageFault("not_an_image", f"the content is a RIFF file of kind {ascii(blob[8:12])[1:]}")
    end = 8 + int.from_bytes(blob[4:8], "little")
    chunks: dict[bytes, bytes] = {}
    position = 12
    while position + 8 <= min(end, len(blob)):
        kind, length = (
            blob[position : position + 4],
            int.from_bytes(blob[position + 4 : position + 8], "little"),
        )
        if kind not in chunks:
            chunks[kind] = blob[position : position + 8 + length]
            _webp_size(row, kind, chunks[kind], limits)
        position += 8 + length + length % 2
    if len(blob) < end or len(blob) + 1 < position:
        raise_truncated("before the WebP's last chunk")
    body = chunks.get(b"VP8 ", chunks.get(b"VP8L"))
    if body is None:
        raise_undecodable("the WebP holds no picture")
    if b"VP8 " in chunks and b"ALPH" in chunks and row.color == "rgba":
        extended = struct.pack("<4sIB3x", b"VP8X", 10, 0x10)
        assert row.width is not None
        assert row.height is not None
        extended += (row.width - 1).to_bytes(3, "little") + (row.height - 1).to_bytes(3, "little")
        body = extended + _even(chunks[b"ALPH"]) + body
    body = _even(body)
    orientation = exif_orientation(chunks.get(b"EXIF", b"")[8:].removeprefix(b"Exif\0\0"))
    data = struct.pack("<4sI4s", b"RIFF", 4 + len(body), b"WEBP") + body
    data = data.ljust(32, b"\0")  # OpenCV looks at no less
    return CodedImage(
        data, "rgba" if row.color == "rgba" else "rgb", warnings=orientation_warnings(orientation)
    )


def _even(chunk: bytes) -> bytes:
    return chunk + b"\0" * (len(chunk) % 2)


def _webp_size(row: Row, kind: bytes, chunk: bytes, limits: DecodeLimits) -> None:
    if kind == b"VP8X":
        if chunk[8] & 0x02:
            raise_unsupported("animated WebP")
        width, height = 1 + int.from_bytes(chunk[12:15], "little"), 1 + int.from_bytes(chunk[15:18], "little")
        row.color = "rgba" if chunk[8] & 0x10 else "rgb"
    elif kind == b"VP8 ":
        if chunk[11:14] != b"\x9d\x01\x2a":
            raise_undecodable("the WebP's picture does not begin as one")
        width, height = (side & 0x3FFF for side in struct.unpack_from("<HH", chunk, 14))
        row.color = row.color or "rgb"
    elif kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", chunk, 9)
        if chunk[8] != 0x2F:
            raise_undecodable("the WebP's picture does not begin as one")
        width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
        row.color = "rgba" if bits >> 28 & 1 else "rgb"
    else:
        return
    if row.width is not None and (row.width, row.height) != (width, height):
        raise_undecodable("the WebP says two different sizes")
    row.bit_depth = 8
    set_size(row, width, height, limits)


_PARSERS = (
    (b"\xff\xd8\xff", "jpeg", jpeg),
    (b"\x89PNG\r\n\x1a\n", "png", _png),
    (b"II*\0", "tiff", tiff),
    (b"MM\0*", "tiff", tiff),
    (b"II+\0", "tiff", tiff),
    (b"MM\0+", "tiff", tiff),
    (b"RIFF", "webp", _webp),
    (b"\0\0\0\x0cjP  \r\n\x87\n", "jpeg2000", jp2),
    (b"\xff\x4f\xff\x51", "jpeg2000", codestream),
    (b"BM", "bmp", bmp),
)
