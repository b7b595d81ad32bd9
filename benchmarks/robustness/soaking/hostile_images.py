"""Images that once were read wrong, refused though sound, or crashed something; made by hand."""

import io
import struct
import zlib
from collections.abc import Iterator

import numpy as np
from PIL import Image

from .hostile_case import DAMAGED, Case, Right
from .seeds_of_images import BMP_KINDS, Array, bmp, png_chunk, tiff, tiff_file

WIDE, HIGH = 40, 32
NOT_READ = frozenset({"unsupported", "undecodable", "truncated"})
OR_UNSUPPORTED = frozenset({"ok", "unsupported"})


def image_cases() -> Iterator[Case]:
    """Give each kind with its files and the right outcome of each."""
    yield from _bitmaps()
    yield from _jpegs()
    yield from _tiffs()
    yield from _kinds_of_tiff()
    yield from _others()


def picture(seed: int = 0) -> Array:
    """Draw smooth colours [HIGH, WIDE, 3]."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), np.uint8)
    return np.asarray(Image.fromarray(coarse).resize((WIDE, HIGH), Image.Resampling.BILINEAR))


def saved(pixels: Array, form: str, **options: object) -> bytes:
    """Encode pixels by Pillow."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, form, **options)
    return out.getvalue()


def read(data: bytes) -> Array:
    """Decode by Pillow."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def few_levels(pixels: Array, bits: tuple[int, ...]) -> Array:
    """Round each channel to so many bits, and spread it over the full range again."""
    tops = np.array([(1 << each) - 1 for each in bits])
    return np.rint(np.rint(pixels / 255 * tops) / tops * 255).astype(np.uint8)


# --- BMP


def _bitmaps() -> Iterator[Case]:
    pixels = picture()
    files = {}
    for number, (bits, masks, size) in enumerate(BMP_KINDS):
        depths = tuple(mask.bit_count() for mask in masks[:3])
        want = few_levels(pixels, depths)
        files[f"{number}.bmp"] = Right(bmp(pixels, bits, masks, size), OR_UNSUPPORTED, pixels=want)
    yield Case("BMP with masks, of 16 and 32 bits", files)
    white = np.full((HIGH, WIDE, 3), 255, np.uint8)
    fives = bmp(white, 16, (0x7C00, 0x3E0, 0x1F), 40)
    yield Case("BMP of 16 bits, all white", {"a.bmp": Right(fives, OR_UNSUPPORTED, pixels=white)})
    black = bmp(np.zeros((HIGH, WIDE, 3), np.uint8), 32, (0xFF0000, 0xFF00, 0xFF, 0xFF000000), 108)
    clear = black[:122] + bytes(len(black) - 122)  # all transparent
    yield Case(
        "BMP with an alpha mask", {"a.bmp": Right(clear, OR_UNSUPPORTED, pixels=white, or_warned=True)}
    )
    lines = b"".join(bytes([WIDE, row * 7 % 4, 0, 0]) for row in range(HIGH)) + b"\0\1"
    palette = b"".join(bytes([level, level, level, 0]) for level in (0, 80, 160, 255)) + bytes(4 * 252)
    gray = np.array([0, 80, 160, 255], np.uint8)[[row * 7 % 4 for row in reversed(range(HIGH))]]
    want = np.repeat(np.repeat(gray[:, None], WIDE, 1)[..., None], 3, 2)
    offset = 54 + len(palette)
    info = struct.pack("<IiiHHIIiiII", 40, WIDE, HIGH, 1, 8, 1, len(lines), 0, 0, 256, 0)
    rle = struct.pack("<2sIHHI", b"BM", offset + len(lines), 0, 0, offset) + info + palette + lines
    cut = rle[: offset + 60]
    yield Case(
        "BMP in run lengths, whole and cut",
        {"a.bmp": Right(rle, OR_UNSUPPORTED, pixels=want), "cut.bmp": Right(cut, DAMAGED | NOT_READ)},
    )
    plain = saved(pixels, "BMP")
    inside = plain[:10] + struct.pack("<I", 31) + plain[14:]
    begins = Right(inside, OR_UNSUPPORTED | NOT_READ, pixels=pixels, warned=True)
    yield Case("BMP: pixels that begin inside its header", {"a.bmp": begins})
    os2 = plain[:10] + struct.pack("<II", 78, 64) + plain[18:54] + bytes(24) + plain[54:]
    yield Case(
        "BMP of OS/2, and without the file's header",
        {
            "os2.bmp": Right(os2, OR_UNSUPPORTED, pixels=pixels),
            "bare.dib": Right(plain[14:], OR_UNSUPPORTED, pixels=pixels),
        },
    )


# --- JPEG


def _jpegs() -> Iterator[Case]:
    pixels = picture(1)
    plain = saved(pixels, "JPEG", quality=90, subsampling=0)
    want = read(plain)
    icc = b"\xff\xe2" + struct.pack(">H", 16) + b"ICC_PROFILE\0" + b"\x09\x02"
    adobe = b"\xff\xee" + struct.pack(">H", 14) + b"Adobe" + b"\0\x64\0\0\0\0\x02"
    yield Case(
        "JPEG: odd segments before its picture",
        {
            "icc.jpg": Right(plain[:20] + icc + plain[20:], pixels=want),
            "stray.jpg": Right(plain[:20] + b"\0\0\1" + plain[20:], pixels=want),
            "adobe.jpg": Right(plain[:20] + adobe + plain[20:], pixels=want),
        },
    )
    cmyk = np.dstack([pixels, pixels[..., :1] // 2])
    out = io.BytesIO()
    Image.fromarray(cmyk, "CMYK").save(out, "JPEG", quality=90, subsampling=2)
    yield Case(
        "JPEG: CMYK of 4:2:0", {"a.jpg": Right(out.getvalue(), OR_UNSUPPORTED, pixels=read(out.getvalue()))}
    )
    coded = out.getvalue()
    at = coded.index(b"\xff\xee")
    bare = coded[:at] + coded[at + 2 + int.from_bytes(coded[at + 2 : at + 4], "big") :]
    yield Case("JPEG: CMYK without Adobe's marker", {"a.jpg": Right(bare, OR_UNSUPPORTED, warned=True)})
    progressive = saved(np.kron(pixels, np.ones((4, 4, 1), np.uint8)), "JPEG", progressive=True, quality=90)
    second = progressive.index(b"\xff\xda", progressive.index(b"\xff\xda") + 2)
    half = plain[: len(plain) * 2 // 3]
    yield Case(
        "JPEG: cut, though its end looks whole",
        {
            "cut.jpg": Right(half, frozenset({"truncated"})),
            "end.jpg": Right(half + b"\xff\xd9", DAMAGED, warned=True),
            "another.jpg": Right(half + plain, DAMAGED, warned=True),
            "first_scan.jpg": Right(progressive[:second] + b"\xff\xd9", DAMAGED, warned=True),
        },
    )
    sizes = {}
    at = plain.index(b"\xff\xc0") + 5
    for number, (high, wide) in enumerate(((0xFFFF, 0xFFFF), (0, WIDE), (HIGH, 0), (HIGH * 4, WIDE))):
        data = plain[:at] + struct.pack(">HH", high, wide) + plain[at + 4 :]
        sizes[f"{number}.jpg"] = Right(data, DAMAGED | {"too_large", "unsupported"}, warned=True)
    yield Case("JPEG: other sizes than its picture", sizes)


# --- TIFF


def _tiffs() -> Iterator[Case]:
    pixels = picture(2)
    files = {}
    for way in ("tiff_deflate", "tiff_lzw", "packbits", "jpeg"):
        data = saved(pixels, "TIFF", compression=way, strip_size=WIDE * 3 * 8)
        files[f"{way}.tif"] = Right(data, pixels=read(data))
        for kind, bad in _damaged(data):
            files[f"{way}_{kind}.tif"] = Right(bad, DAMAGED | NOT_READ, warned=True)
    yield Case("TIFF: strips lost, halved or cleared", files)
    jpeg = saved(picture(), "JPEG")
    narrow = {256: [10_773], 257: [HIGH], 258: [8] * 3, 259: [7], 262: [6], 277: [3], 278: [HIGH], 284: [1]}
    short = narrow | {256: [WIDE], 257: [HIGH * 20], 278: [HIGH * 20]}
    yield Case(
        "TIFF: a JPEG in it is smaller than it says",
        {
            "narrow.tif": Right(tiff_file("<", narrow, [jpeg], tiled=False), NOT_READ),
            "short.tif": Right(tiff_file("<", short, [jpeg], tiled=False), NOT_READ),
        },
    )
    tags = {256: [WIDE], 257: [HIGH], 258: [8] * 3, 259: [1], 262: [2], 277: [3], 278: [HIGH], 284: [1]}
    plain = pixels.tobytes()
    huge = {}
    for number, (tag, value) in enumerate(
        ((258, 2**32 - 1), (277, 65535), (257, 2**32 - 1), (256, 2**31), (278, 0))
    ):
        huge[f"{number}.tif"] = Right(
            _with_long(tiff_file("<", tags, [plain], tiled=False), tag, value),
            DAMAGED | NOT_READ | {"ok", "too_large"},
        )
    yield Case("TIFF: huge bits, samples, sides", huge)
    two = Right(tiff_file("<", tags | {262: [2, 0]}, [plain], tiled=False), DAMAGED, warned=True)
    yield Case("TIFF: samples of two meanings", {"a.tif": two})
    text = tags | {305: [1, 2, 3]}
    data = bytearray(tiff_file("<", text | {306: [4]}, [plain], tiled=False))
    at = data.rindex(struct.pack("<HH", 306, 3))
    data[at : at + 2] = struct.pack("<H", 305)
    yield Case("TIFF: a text tag twice", {"a.tif": Right(bytes(data), pixels=pixels)})


def _kinds_of_tiff() -> Iterator[Case]:
    pixels = picture(5)
    planar = {
        f"{'d' if deflate else 'n'}.tif": Right(
            tiff(pixels, "<", tiled=False, planar=True, deflate=deflate), pixels=pixels
        )
        for deflate in (False, True)
    }
    yield Case("TIFF: planes stored apart", planar)
    dual = {
        256: [WIDE],
        257: [HIGH],
        258: [16] * 2,
        259: [1],
        262: [1],
        277: [2],
        278: [HIGH],
        284: [1],
        338: [0],
    }
    twice = np.dstack([pixels[..., 0].astype(np.uint16) * 257] * 2).tobytes()
    yield Case(
        "TIFF: two samples of 16 bits, as two energies give",
        {
            "a.tif": Right(
                tiff_file("<", dual, [twice], tiled=False),
                OR_UNSUPPORTED,
                pixels=np.dstack([pixels[..., 0]] * 3),
            )
        },
    )
    levels = [int(value) * 257 for band in range(3) for value in pixels[..., band].ravel()[:256]]
    painted = {256: [16], 257: [16], 258: [8], 259: [1], 262: [3], 277: [1], 278: [16], 284: [1], 320: levels}
    want = pixels.reshape(-1, 3)[:256].reshape(16, 16, 3)
    indices = bytes(range(256))
    yield Case(
        "TIFF: a palette, whole and short",
        {
            "a.tif": Right(tiff_file("<", painted, [indices], tiled=False), pixels=want),
            "short.tif": Right(
                tiff_file("<", painted | {320: levels[:300]}, [indices], tiled=False),
                DAMAGED | NOT_READ,
                warned=True,
            ),
        },
    )
    whole = tiff(pixels, "<", tiled=True, planar=False, deflate=True)
    yield Case(
        "TIFF: tiles, whole and damaged",
        {
            "whole.tif": Right(whole, pixels=pixels),
            "lower.tif": Right(_with_long(whole, 257, 16), DAMAGED, warned=True),
            **{f"{kind}.tif": Right(bad, NOT_READ | DAMAGED, warned=True) for kind, bad in _damaged(whole)},
        },
    )
    bits = Image.fromarray(picture(3)).convert("1")
    out = io.BytesIO()
    bits.save(out, "TIFF", compression="group4")
    nothing = bytearray(out.getvalue())
    at = nothing.rindex(struct.pack("<HHI", 262, 3, 1))
    nothing[at : at + 2] = struct.pack("<H", 266)  # FillOrder, of value 0 or 1
    yield Case(
        "TIFF: a fax that does not say what 0 is",
        {
            "a.tif": Right(
                bytes(nothing), frozenset({"ok", "undecodable", "unsupported"}), pixels=read(bytes(nothing))
            )
        },
    )


def _damaged(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Lose a TIFF's strip, halve one, or clear one, of a file that has several."""
    tag: dict[int, tuple[int, int, int]] = {}
    (directory,) = struct.unpack_from("<I", data, 4)
    (count,) = struct.unpack_from("<H", data, directory)
    for entry in range(directory + 2, directory + 2 + 12 * count, 12):
        name, kind, number, place = struct.unpack_from("<HHII", data, entry)
        tag[name] = kind, number, place
    names = (324, 325) if 324 in tag else (273, 279)
    places, lengths = ([_value(data, *tag[name], at) for at in range(tag[name][1])] for name in names)
    kind, _, at = tag[names[1]]
    size = 2 if kind == 3 else 4
    for name, length in (("lost", 0), ("halved", lengths[1] // 2)):
        changed = bytearray(data)
        changed[at + size : at + 2 * size] = length.to_bytes(size, "little")
        yield name, bytes(changed)
    changed = bytearray(data)
    changed[places[1] : places[1] + lengths[1]] = b"\x80" * lengths[1]  # of PackBits: no bytes at all
    if data.find(b"\xff\xd8", places[1], places[1] + 4) >= 0:  # a JPEG still begins as one
        changed[places[1] : places[1] + 4] = data[places[1] : places[1] + 4]
    yield "cleared", bytes(changed)


def _value(data: bytes, kind: int, _number: int, place: int, at: int) -> int:
    form, size = ("<H", 2) if kind == 3 else ("<I", 4)
    return struct.unpack_from(form, data, place + size * at)[0]


def _with_long(data: bytes, tag: int, value: int) -> bytes:
    """Make one tag of a TIFF a LONG of this value."""
    made = bytearray(data)
    (directory,) = struct.unpack_from("<I", made, 4)
    (count,) = struct.unpack_from("<H", made, directory)
    for entry in range(directory + 2, directory + 2 + 12 * count, 12):
        if struct.unpack_from("<H", made, entry)[0] == tag:
            struct.pack_into("<HHII", made, entry, tag, 4, 1, value)
    return bytes(made)


# --- PNG and WebP


def _others() -> Iterator[Case]:
    pixels = picture(4)
    plain = saved(pixels, "PNG")
    head, rest = plain[:33], plain[33:]
    exif = bytearray(png_chunk(b"eXIf", b"II*\0" + bytes(8)))
    exif[-1] ^= 1
    deep = png_chunk(b"tRNS", struct.pack(">HHH", 300, 300, 300))
    yield Case(
        "PNG: odd chunks that define no pixels",
        {
            "exif.png": Right(head + bytes(exif) + rest, pixels=pixels),
            "deep.png": Right(head + deep + rest, pixels=pixels),
        },
    )
    lines = zlib.compress(b"".join(b"\0" + line.tobytes() for line in pixels[: HIGH // 2]))
    cut = plain[:33] + png_chunk(b"IDAT", lines) + png_chunk(b"IEND", b"")
    wrong = bytearray(plain)
    wrong[plain.index(b"IDAT") + 30] ^= 0x10
    bomb = struct.pack(">IIBBBBB", 2**31 - 1, 2**31 - 1, 8, 2, 0, 0, 0)
    yield Case(
        "PNG: lines missing, damage, huge sides",
        {
            "half.png": Right(cut, DAMAGED | NOT_READ, warned=True),
            "wrong.png": Right(bytes(wrong), DAMAGED | NOT_READ, warned=True),
            "bomb.png": Right(plain[:8] + png_chunk(b"IHDR", bomb) + rest, frozenset({"too_large"})),
        },
    )
    tiny = saved(np.zeros((80, 100, 3), np.uint8), "WEBP", lossless=True)
    yield Case(f"WebP of {len(tiny)} bytes", {"a.webp": Right(tiny, pixels=np.zeros((80, 100, 3), np.uint8))})
    out = io.BytesIO()
    Image.fromarray(np.dstack([pixels, pixels[..., 0]]), "RGBA").save(out, "JPEG2000")
    unsaid = out.getvalue().replace(b"cdef", b"free")
    yield Case(
        "JPEG 2000: a fourth component of unsaid meaning",
        {"a.jp2": Right(unsaid, OR_UNSUPPORTED, pixels=pixels, warned=True)},
    )
    yield Case(
        "no image at all",
        {
            "empty.jpg": Right(b"", frozenset({"empty"})),
            "text.png": Right(b"hello", frozenset({"not_an_image"})),
            "noise.tif": Right(np.random.default_rng(0).bytes(5000), frozenset({"not_an_image"})),
            **{
                f"start{n}.jpg": Right(b"\xff\xd8\xff\xe0"[: n + 1], NOT_READ | {"not_an_image"})
                for n in range(4)
            },
        },
    )
