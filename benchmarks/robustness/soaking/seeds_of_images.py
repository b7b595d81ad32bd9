"""Sound images of every format and kind, small, from which mutants are made."""

import io
import struct
import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

Array = np.ndarray[Any, Any]


def sound_images(rng: np.random.Generator) -> list[tuple[str, bytes]]:
    """Give (format, file) of every kind, with sides and colours by luck."""
    made: list[tuple[str, bytes]] = []
    for make in (_jpegs, _pngs, _tiffs, _bmps, _webps, _jpeg2000s):
        made += make(rng)
    return made


def _colours(rng: np.random.Generator, channels: int = 3) -> Array:
    """Give smooth colours [h, w, channels], both sides 8 to 40 pixels."""
    height, width = (int(side) for side in rng.integers(8, 41, 2))
    coarse = rng.integers(0, 256, (5, 5, channels), np.uint8)
    bands = [
        np.asarray(Image.fromarray(coarse[..., band]).resize((width, height), Image.Resampling.BILINEAR))
        for band in range(channels)
    ]
    return np.stack(bands, axis=2)


def _saved(image: Image.Image, form: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, form, **options)
    return out.getvalue()


def _modes(rng: np.random.Generator, *modes: str) -> list[Image.Image]:
    """Give one picture of each of Pillow's modes."""
    found = []
    for mode in modes:
        if mode == "I;16":
            wide = _colours(rng, 1)[..., 0].astype(np.uint16) * 257
            found.append(Image.fromarray(wide))
        elif mode in ("RGBA", "CMYK", "LA"):
            colours = _colours(rng, len(mode))
            found.append(Image.fromarray(colours, mode))
        else:
            found.append(Image.fromarray(_colours(rng)).convert(mode))
    return found


def _jpegs(rng: np.random.Generator) -> list[tuple[str, bytes]]:
    rgb, gray, cmyk = _modes(rng, "RGB", "L", "CMYK")
    ways: list[tuple[Image.Image, dict[str, Any]]] = [
        (rgb, {"quality": 90, "subsampling": 0}),
        (rgb, {"quality": 75, "subsampling": 2}),
        (rgb, {"quality": 75, "progressive": True}),
        (rgb, {"quality": 60, "restart_marker_blocks": 2}),
        (gray, {"quality": 80}),
        (gray, {"quality": 80, "progressive": True}),
        (cmyk, {"quality": 85}),
    ]
    return [("jpeg", _saved(image, "JPEG", **options)) for image, options in ways]


def _pngs(rng: np.random.Generator) -> list[tuple[str, bytes]]:
    images = _modes(rng, "RGB", "L", "RGBA", "LA", "P", "1", "I;16")
    made = [_saved(image, "PNG") for image in images]
    made.append(_saved(images[4], "PNG", bits=4))
    made.append(_saved(images[4], "PNG", transparency=3))
    made.append(_saved(images[0], "PNG", transparency=(1, 2, 3)))
    return [("png", data) for data in [*made, interlaced(_colours(rng))]]


def interlaced(pixels: Array) -> bytes:
    """Write an RGB PNG in Adam7's seven passes."""
    height, width, _ = pixels.shape
    lines = b""
    for x, y, dx, dy in (
        (0, 0, 8, 8),
        (4, 0, 8, 8),
        (0, 4, 4, 8),
        (2, 0, 4, 4),
        (0, 2, 2, 4),
        (1, 0, 2, 2),
        (0, 1, 1, 2),
    ):
        for line in pixels[y::dy, x::dx]:
            lines += b"\0" + line.tobytes() if line.size else b""
    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 1)
    chunks = [(b"IHDR", head), (b"IDAT", zlib.compress(lines)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(png_chunk(*chunk) for chunk in chunks)


def png_chunk(kind: bytes, data: bytes) -> bytes:
    """Write a chunk with its right checksum."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def _tiffs(rng: np.random.Generator) -> list[tuple[str, bytes]]:
    rgb, gray, rgba, palette, bits, wide, cmyk = _modes(rng, "RGB", "L", "RGBA", "P", "1", "I;16", "CMYK")
    ways: list[tuple[Image.Image, str | None]] = [
        *((rgb, way) for way in (None, "tiff_deflate", "tiff_lzw", "packbits", "jpeg")),
        *((gray, way) for way in (None, "tiff_lzw", "packbits")),
        (rgba, "tiff_deflate"),
        (palette, "tiff_lzw"),
        *((bits, way) for way in (None, "group3", "group4", "tiff_ccitt")),
        *((wide, way) for way in (None, "tiff_deflate")),
        (cmyk, None),
    ]
    made = [_saved(image, "TIFF", compression=way, strip_size=600) for image, way in ways]
    made += [
        tiff(_colours(rng), order, tiled=tiled, planar=planar, deflate=deflate)
        for order, tiled, planar, deflate in (
            (">", False, False, False),
            ("<", True, False, False),
            ("<", True, False, True),
            ("<", False, True, False),
            (">", False, True, True),
        )
    ]
    return [("tiff", data) for data in made]


def tiff(pixels: Array, order: str, *, tiled: bool, planar: bool, deflate: bool) -> bytes:
    """Write RGB as a TIFF by hand: either byte order, strips or tiles of 16, chunky or planar."""
    height, width, channels = pixels.shape
    pack: Callable[[bytes], bytes] = zlib.compress if deflate else bytes
    planes = [pixels[..., c : c + 1] for c in range(channels)] if planar else [pixels]
    pieces = []
    for plane in planes:
        if tiled:
            padded = np.pad(plane, ((0, -height % 16), (0, -width % 16), (0, 0)))
            for y in range(0, height, 16):
                pieces += [pack(padded[y : y + 16, x : x + 16].tobytes()) for x in range(0, width, 16)]
        else:
            pieces += [pack(plane[y : y + 8].tobytes()) for y in range(0, height, 8)]
    return tiff_file(order, _tags(width, height, channels, tiled, planar, deflate), pieces, tiled)


def _tags(
    width: int, height: int, channels: int, tiled: bool, planar: bool, deflate: bool
) -> dict[int, list[int]]:
    tags = {
        256: [width],
        257: [height],
        258: [8] * channels,
        259: [8 if deflate else 1],
        262: [2],
        277: [channels],
    }
    return tags | {284: [2 if planar else 1]} | ({322: [16], 323: [16]} if tiled else {278: [8]})


def tiff_file(order: str, tags: dict[int, list[int]], pieces: list[bytes], tiled: bool) -> bytes:
    """Lay out a TIFF: header, pieces, then the directory with its arrays behind it."""
    offsets, data = [], b""
    for piece in pieces:
        offsets.append(8 + len(data))
        data += piece + b"\0" * (len(piece) % 2)
    places, lengths = (324, 325) if tiled else (273, 279)
    tags = dict(sorted((tags | {places: offsets, lengths: [len(piece) for piece in pieces]}).items()))
    at = 8 + len(data)
    behind, entries = b"", struct.pack(order + "H", len(tags))
    for tag, values in tags.items():
        kind, letter = (4, "I") if tag in (places, lengths) else (3, "H")
        packed = struct.pack(f"{order}{len(values)}{letter}", *values)
        if len(packed) > 4:
            where = at + 2 + 12 * len(tags) + 4 + len(behind)
            behind += packed + b"\0" * (len(packed) % 2)
            packed = struct.pack(order + "I", where)
        entries += struct.pack(order + "HHI", tag, kind, len(values)) + packed.ljust(4, b"\0")
    mark = b"II*\0" if order == "<" else b"MM\0*"
    return mark + struct.pack(order + "I", at) + data + entries + bytes(4) + behind


def _bmps(rng: np.random.Generator) -> list[tuple[str, bytes]]:
    images = _modes(rng, "RGB", "L", "P", "1", "RGBA")
    made = [_saved(image, "BMP") for image in images]
    made += [bmp(_colours(rng), bits, masks, size) for bits, masks, size in BMP_KINDS]
    return [("bmp", data) for data in made]


BMP_KINDS: tuple[tuple[int, tuple[int, ...], int], ...] = (  # bits, masks, bytes of the header
    (32, (0xFF0000, 0xFF00, 0xFF), 40),
    (32, (0xFF, 0xFF00, 0xFF0000), 40),
    (32, (0xFF000000, 0xFF0000, 0xFF00), 40),
    (32, (0xFF0000, 0xFF00, 0xFF, 0xFF000000), 108),
    (16, (0xF800, 0x7E0, 0x1F), 40),
    (16, (0x7C00, 0x3E0, 0x1F), 40),
    (16, (0x7C00, 0x3E0, 0x1F, 0x8000), 108),
)


def bmp(pixels: Array, bits: int, masks: tuple[int, ...], size: int) -> bytes:
    """Write RGB (opaque) as a BMP with bit fields."""
    height, width, _ = pixels.shape
    colours = np.dstack([pixels, np.full((height, width), 255, np.uint8)]).astype(np.uint64)
    packed = np.zeros((height, width), np.uint64)
    for band, mask in enumerate(masks):
        low = (mask & -mask).bit_length() - 1
        packed |= (colours[..., band] * (mask >> low) + 127) // 255 << np.uint64(low)
    stored = packed.astype(np.uint32 if bits == 32 else np.uint16)[::-1]
    lines = b"".join(line.tobytes() + b"\0" * (-width * bits // 8 % 4) for line in stored)
    extra = struct.pack(f"<{len(masks)}I", *masks)
    extra = extra if size == 40 else extra.ljust(size - 40, b"\0")
    offset = 14 + 40 + len(extra)
    info = struct.pack("<IiiHHIIiiII", size, width, height, 1, bits, 3, len(lines), 2835, 2835, 0, 0)
    return struct.pack("<2sIHHI", b"BM", offset + len(lines), 0, 0, offset) + info + extra + lines


def _webps(rng: np.random.Generator) -> list[tuple[str, bytes]]:
    rgb, rgba = _modes(rng, "RGB", "RGBA")
    ways: list[tuple[Image.Image, dict[str, Any]]] = [
        (rgb, {"quality": 80}),
        (rgb, {"lossless": True}),
        (rgba, {"quality": 80}),
        (rgba, {"lossless": True}),
    ]
    return [("webp", _saved(image, "WEBP", **options)) for image, options in ways]


def _jpeg2000s(rng: np.random.Generator) -> list[tuple[str, bytes]]:
    rgb, gray, rgba, wide = _modes(rng, "RGB", "L", "RGBA", "I;16")
    ways: list[tuple[Image.Image, dict[str, Any]]] = [
        (rgb, {}),
        (rgb, {"no_jp2": True}),
        (rgb, {"irreversible": True, "quality_layers": [20]}),
        (rgb, {"tile_size": (16, 16)}),
        (gray, {}),
        (rgba, {}),
        (wide, {}),
    ]
    return [("jpeg2000", _saved(image, "JPEG2000", **options)) for image, options in ways]
