"""Pictures for tests: a bag, forms that Pillow cannot write, and what exact arithmetic makes of them."""

import io
import struct
import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from gbad_batch.engine.decode import Decoder
from gbad_batch.engine.row import Row

HEIGHT, WIDTH, SIZE = 61, 83, 32


def bag(depth: int = 8, channels: int = 3) -> NDArray[Any]:
    """Draw dark shapes and grain on white, [HEIGHT, WIDTH, channels], over the full range."""
    picture = Image.new("RGB", (WIDTH, HEIGHT), "white")
    draw = ImageDraw.Draw(picture)
    draw.ellipse((8, 9, 60, 50), fill=(210, 150, 60))
    draw.rectangle((30, 5, 77, 33), fill=(30, 60, 190))
    draw.line((0, 60, 82, 0), fill=(5, 5, 5), width=4)
    grain = np.random.default_rng(7).integers(-20, 21, (HEIGHT, WIDTH, 4))
    pixels = np.dstack([np.asarray(picture), np.asarray(picture)[..., 1]]).astype(np.int64) + grain
    exact = np.clip(pixels, 0, 255) * ((1 << depth) - 1) / 255
    return np.rint(exact[..., :channels]).astype(np.uint8 if depth <= 8 else np.uint16)


def saved(picture: Image.Image, form: str, **options: Any) -> bytes:
    file = io.BytesIO()
    picture.save(file, form, **options)
    return file.getvalue()


def expected(pixels: NDArray[Any], top: int = 255) -> NDArray[np.float64]:
    """Stretch by Pillow in float, as exact arithmetic on the scale of 0 to 255; [SIZE, SIZE, 3]."""
    if pixels.ndim == 2:
        pixels = pixels[..., None]
    planes = [
        Image.fromarray((plane.astype(np.float64) * 255 / top).astype(np.float32)).resize(
            (SIZE, SIZE), Image.Resampling.BILINEAR
        )
        for plane in np.moveaxis(pixels, 2, 0)
    ]
    return np.repeat(np.stack([np.asarray(plane) for plane in planes], -1), 3 // len(planes), 2)


def on_white(pixels: NDArray[Any], alpha: NDArray[Any], top: int = 255) -> NDArray[np.float64]:
    return np.rint(top - (top - pixels.astype(np.float64)) * (alpha.astype(np.float64) / top))


def check(decode: Decoder, blob: bytes, exact: NDArray[Any], top: int = 255, **fields: Any) -> Row:
    row = Row("image")
    pixels = decode(row, blob)
    assert row.status == "ok", row
    assert pixels is not None
    assert (pixels.dtype, pixels.shape) == (np.uint8, (SIZE, SIZE, 3))
    assert np.abs(pixels - expected(exact, top)).max() <= 1
    assert {name: getattr(row, name) for name in fields} == fields
    return row


def fault(decode: Decoder, blob: bytes) -> tuple[str | None, str]:
    row = Row("image")
    assert decode(row, blob) is None
    assert row.error
    return row.status, row.error


# --- writers of what Pillow cannot write


def chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(pixels: NDArray[Any], depth: int, color: int, *extra: bytes, interlaced: bool = False) -> bytes:
    height, width = pixels.shape[:2]
    passes = [pixels[y::dy, x::dx] for x, y, dx, dy in ADAM7] if interlaced else [pixels]
    lines = b"".join(b"\0" + line.astype(f">u{depth // 8}").tobytes() for part in passes for line in part)
    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, int(interlaced))
    parts = (chunk(b"IHDR", header), *extra, chunk(b"IDAT", zlib.compress(lines)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))


def tiff(
    data: bytes,
    tags: dict[int, int | tuple[int, ...]],
    order: str = "<",
    big: bool = False,
) -> bytes:
    """Write one strip and its directory; values are SHORT where they fit, else LONG."""
    head = 16 if big else 8
    tags = {256: WIDTH, 257: HEIGHT, 259: 1, 277: 1, 278: HEIGHT} | tags
    tags |= {273: head, 279: len(data)}
    entries, values, end = b"", b"", head + len(data)
    for tag, value in sorted(tags.items()):
        numbers = value if isinstance(value, tuple) else (value,)
        kind, code = (3, "H") if max(numbers) < 65536 and tag != 273 else (4, "I")
        packed = struct.pack(f"{order}{len(numbers)}{code}", *numbers)
        room = 8 if big else 4
        if len(packed) > room:
            packed, values = struct.pack(order + ("Q" if big else "I"), end + len(values)), values + packed
        count = struct.pack(order + ("HHQ" if big else "HHI"), tag, kind, len(numbers))
        entries += count + packed.ljust(room, b"\0")
    start = end + len(values)
    mark = b"II" if order == "<" else b"MM"
    magic = struct.pack(order + ("HHHQ" if big else "HI"), *((43, 8, 0, start) if big else (42, start)))
    directory = struct.pack(order + ("Q" if big else "H"), len(tags)) + entries
    return mark + magic + data + values + directory + bytes(8 if big else 4)


def packed_bits(samples: NDArray[Any], bits: int) -> bytes:
    planes = (samples[..., None] >> np.arange(bits - 1, -1, -1)) & 1
    return np.packbits(planes.reshape(len(samples), -1).astype(np.uint8), axis=1).tobytes()
