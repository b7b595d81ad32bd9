"""Ways to change bytes: blind ones for any file, and those that know a format's fields."""

import struct
import zlib
from collections.abc import Callable
from random import Random

from .seeds_of_images import png_chunk

NUMBERS = (0, 1, 2, 3, 7, 8, 15, 16, 31, 32, 64, 127, 128, 255, 256, 1000, 32767, 32768, 65535)
LARGE = (65536, 2**24 - 1, 2**24, 2**31 - 1, 2**31, 2**32 - 2, 2**32 - 1)

Mutate = Callable[[Random, bytearray], None]


def mutated(luck: Random, data: bytes, form: str) -> bytes:
    """Change a file once to three times, mostly by its format's structure."""
    changed = bytearray(data)
    for _ in range(luck.choice((1, 1, 1, 2, 3))):
        own = STRUCTURES.get(form)
        mutate = own if own and luck.random() < 0.65 else luck.choice(BLIND)
        try:
            mutate(luck, changed)
        except (struct.error, IndexError, ValueError, zlib.error):
            continue  # an earlier change has taken the structure away
        if not changed:
            return b""
    return bytes(changed)


def number(luck: Random, size: int) -> int:
    """Draw a number that is likely to be at some limit, of `size` bytes."""
    drawn = luck.choice((*NUMBERS, *LARGE, luck.getrandbits(8 * size), luck.randrange(64)))
    return drawn % (1 << 8 * size)


def put(luck: Random, data: bytearray, at: int, size: int, order: str) -> None:
    """Overwrite a number, or move it a little."""
    if at + size > len(data):
        raise IndexError
    how = "little" if order == "<" else "big"
    before = int.from_bytes(data[at : at + size], how)
    near = (before + luck.choice((-1, 1, 2, -2, before, -(before // 2)))) % (1 << 8 * size)
    data[at : at + size] = (near if luck.random() < 0.4 else number(luck, size)).to_bytes(size, how)


# --- blind


def _flip(luck: Random, data: bytearray) -> None:
    for _ in range(luck.choice((1, 1, 2, 8))):
        data[luck.randrange(len(data))] ^= 1 << luck.randrange(8)


def _overwrite(luck: Random, data: bytearray) -> None:
    at, size = luck.randrange(len(data)), luck.choice((1, 2, 4, 16, 64))
    fill = luck.choice((b"\0" * size, b"\xff" * size, luck.randbytes(size)))
    data[at : at + size] = fill[: len(data) - at]


def _cut(luck: Random, data: bytearray) -> None:
    del data[luck.randrange(len(data)) :]


def _leave_out(luck: Random, data: bytearray) -> None:
    at = luck.randrange(len(data))
    del data[at : at + luck.choice((1, 2, 4, 100))]


def _repeat(luck: Random, data: bytearray) -> None:
    at = luck.randrange(len(data))
    data[at:at] = data[at : at + luck.choice((1, 4, 30, 300))]


def _some_number(luck: Random, data: bytearray) -> None:
    put(luck, data, luck.randrange(len(data)), luck.choice((1, 2, 4, 8)), luck.choice("<>"))


BLIND: tuple[Mutate, ...] = (_flip, _flip, _overwrite, _cut, _leave_out, _repeat, _some_number)


# --- by format


def _tiff(luck: Random, data: bytearray) -> None:
    """Change a field of an entry of the directory, or which entries there are, or a strip's length."""
    order = "<" if data[:1] == b"I" else ">"
    (directory,) = struct.unpack_from(order + "I", data, 4)
    (count,) = struct.unpack_from(order + "H", data, directory)
    entry = directory + 2 + 12 * luck.randrange(count)
    what = luck.randrange(9)
    if what < 4:  # tag, type, number of values, value or place
        at, size = ((0, 2), (2, 2), (4, 4), (8, luck.choice((2, 4))))[what]
        put(luck, data, entry + at, size, order)
    elif what == 4:  # one entry twice, one lost
        other = directory + 2 + 12 * luck.randrange(count)
        data[entry : entry + 12] = data[other : other + 12]
    elif what == 5:
        put(luck, data, directory, 2, order)
    elif what == 6:
        put(luck, data, directory + 2 + 12 * count, 4, order)
    else:  # values that stand elsewhere: places and lengths of strips among them
        kinds = {3: 2, 4: 4, 5: 8}
        _, kind, values, place = struct.unpack_from(order + "HHII", data, entry)
        put(
            luck, data, place + kinds.get(kind, 1) * luck.randrange(max(1, values)), kinds.get(kind, 1), order
        )


def _bmp(luck: Random, data: bytearray) -> None:
    """Change a field of the headers, a mask, or a colour of the palette."""
    fields = [
        (2, 4),
        (10, 4),
        (14, 4),
        (18, 4),
        (22, 4),
        (26, 2),
        (28, 2),
        (30, 4),
        (34, 4),
        (46, 4),
        (50, 4),
    ]
    fields += [(54, 4), (58, 4), (62, 4), (66, 4)]
    put(luck, data, *luck.choice(fields), "<")


def _png(luck: Random, data: bytearray) -> None:
    """Change, leave out, repeat, exchange or add a chunk, its checksum right."""
    chunks, at = [], 8
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        chunks.append([bytes(data[at + 4 : at + 8]), bytearray(data[at + 8 : at + 8 + length])])
        at += 12 + length
    one = luck.randrange(len(chunks))
    kind, body = chunks[one]
    what = luck.randrange(8)
    if what < 2 and kind == b"IDAT":
        lines = bytearray(zlib.decompress(body))
        luck.choice(BLIND)(luck, lines)
        body[:] = zlib.compress(bytes(lines))
    elif what < 4 and body:
        put(luck, body, luck.randrange(len(body)), luck.choice((1, 2, 4)), ">")
    elif what == 4:
        del chunks[one]
    elif what == 5:
        chunks.insert(luck.randrange(len(chunks) + 1), chunks[one])
    elif what == 6:
        other = luck.randrange(len(chunks))
        chunks[one], chunks[other] = chunks[other], chunks[one]
    else:
        added = luck.choice((b"tRNS", b"PLTE", b"gAMA", b"acTL", b"eXIf", b"tEXt", b"IHDR", b"abCd", b"ABCD"))
        chunks.insert(
            luck.randrange(len(chunks)), [added, luck.randbytes(luck.choice((0, 1, 2, 6, 13, 768)))]
        )
    data[8:] = b"".join(png_chunk(kind, bytes(body)) for kind, body in chunks)


def _jpeg(luck: Random, data: bytearray) -> None:
    """Change a segment's kind, length or field, leave out or repeat it, put bytes or an end between."""
    segments, at = [], 2
    while at + 4 <= len(data) and data[at] == 0xFF:
        (length,) = struct.unpack_from(">H", data, at + 2)
        segments.append((at, 2 + length))
        at += 2 + length
        if data[segments[-1][0] + 1] == 0xDA:
            at = next(
                (i for i in range(at, len(data) - 1) if data[i] == 0xFF and _begins(data[i + 1])), len(data)
            )
    at, size = luck.choice(segments)
    what = luck.randrange(9)
    if what < 4:
        put(luck, data, at + luck.randrange(2, size), luck.choice((1, 1, 2)), ">")
    elif what == 4:
        data[at + 1] = luck.choice(
            (0xC0, 0xC1, 0xC2, 0xC3, 0xC4, 0xC9, 0xD8, 0xD9, 0xDA, 0xDB, 0xDD, 0xE0, 0xEE, 0xFE)
        )
    elif what == 5:
        del data[at : at + size]
    elif what == 6:
        data[at:at] = data[at : at + size]
    elif what == 7:
        data[at:at] = luck.choice((b"\0", b"\xff", b"\xff\xd9", b"\xff\xd0", luck.randbytes(5)))
    else:  # cut, anywhere or before a segment, the end marker kept
        del data[luck.choice((at, luck.randrange(segments[-1][0], len(data)))) :]
        data += b"\xff\xd9"


def _begins(marker: int) -> bool:
    return marker != 0 and not 0xD0 <= marker <= 0xD7


def _webp(luck: Random, data: bytearray) -> None:
    """Change a chunk's kind, length or first fields, leave it out or repeat it; the file's size is right."""
    chunks, at = [], 12
    while at + 8 <= len(data):
        (length,) = struct.unpack_from("<I", data, at + 4)
        chunks.append((at, 8 + length + length % 2))
        at += 8 + length + length % 2
    at, size = luck.choice(chunks)
    what = luck.randrange(8)
    if what < 4:
        put(luck, data, at + luck.randrange(8, max(9, min(size, 24))), luck.choice((1, 2, 3, 4)), "<")
    elif what == 4:
        data[at : at + 4] = luck.choice((b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"EXIF", b"abcd"))
    elif what == 5:
        put(luck, data, at + 4, 4, "<")
    elif what == 6:
        del data[at : at + size]
    else:
        data[at:at] = data[at : at + size]
    if luck.random() < 0.7:
        struct.pack_into("<I", data, 4, len(data) - 8)


def _jpeg2000(luck: Random, data: bytearray) -> None:
    """Change a field of a marker segment of the codestream, or of a box."""
    marker = luck.choice(
        (b"\xff\x51", b"\xff\x52", b"\xff\x5c", b"\xff\x90", b"ihdr", b"colr", b"jp2c", b"cdef")
    )
    at = data.find(marker)
    if at < 0:
        raise IndexError
    put(luck, data, at + luck.randrange(-4 if len(marker) == 4 else 2, 44), luck.choice((1, 2, 4)), ">")


STRUCTURES: dict[str, Mutate] = {
    "tiff": _tiff,
    "bmp": _bmp,
    "png": _png,
    "jpeg": _jpeg,
    "webp": _webp,
    "jpeg2000": _jpeg2000,
}
