"""BMPs of every header, depth and mask: the right colors, or a refusal; never other ones."""

import io
import struct
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pictures import HEIGHT, WIDTH, bag, fault, saved
from PIL import Image

from gbad_batch.engine.decode import DecodeLimits, Decoder
from gbad_batch.engine.row import Row

ORANGE = (255, 128, 0)


@pytest.fixture(scope="module")
def decode() -> Decoder:
    return Decoder(None, DecodeLimits())


def header(size: int, width: int, height: int, bits: int, compression: int = 0, masks: bytes = b"") -> bytes:
    """Write a DIB header of so many bytes; masks that it has no room for follow it."""
    if size == 12:
        return struct.pack("<IHHHH", size, width, height, 1, bits)
    whole = struct.pack("<IiiHHIIiiII", size, width, height, 1, bits, compression, 0, 0, 0, 0, 0) + masks
    return whole[:size].ljust(size, b"\0") + (masks if size == 40 else b"")


def bmp(head: bytes, data: bytes, palette: bytes = b"") -> bytes:
    start = 14 + len(head) + len(palette)
    return b"BM" + struct.pack("<IHHI", start + len(data), 0, 0, start) + head + palette + data


def read(decode: Decoder, blob: bytes) -> tuple[NDArray[np.uint8], Row]:
    row = Row("x")
    pixels = decode(row, blob)
    assert pixels is not None, row
    assert row.format == "bmp"
    return pixels, row


def lines_of(pixels: NDArray[Any]) -> bytes:
    """Store [H, W, C] from the bottom up, each line filled to 4 bytes."""
    return b"".join(line + b"\0" * (-len(line) % 4) for line in (row.tobytes() for row in pixels[::-1]))


@pytest.mark.parametrize("size", [12, 16, 40, 52, 56, 64, 108, 124])
def test_every_header_gives_the_same_pixels(decode: Decoder, size: int) -> None:
    data = lines_of(bag()[..., ::-1])
    head = header(size, WIDTH, HEIGHT, 24)
    for blob in (bmp(head, data), head + data):  # with a file header, and as the clipboard has it
        pixels, row = read(decode, blob)
        assert (pixels == bag()).all()
        assert (row.width, row.height, row.bit_depth, row.color) == (WIDTH, HEIGHT, 8, "rgb")
    assert fault(decode, bmp(head, data)[:-1])[0] == "truncated"


def test_a_header_of_no_known_size_is_refused(decode: Decoder) -> None:
    blob = bmp(header(40, 4, 4, 24).replace(b"\x28", b"\x4a", 1), bytes(64))
    assert fault(decode, blob) == ("unsupported", "a BMP with a header of 74 bytes is not supported")


@pytest.mark.parametrize("size", [40, 52, 56, 108, 124])
@pytest.mark.parametrize(
    ("bits", "masks"),
    [
        (32, (0xFF0000, 0xFF00, 0xFF)),
        (32, (0xFF, 0xFF00, 0xFF0000)),
        (32, (0xFF000000, 0xFF0000, 0xFF00)),
        (32, (0x3FF00000, 0xFFC00, 0x3FF)),
        (32, (0xFFFF0000, 0xFF00, 0xFF)),
        (16, (0x7C00, 0x3E0, 0x1F)),
        (16, (0xF800, 0x7E0, 0x1F)),
        (16, (0xF00, 0xF0, 0xF)),
    ],
)
def test_masks_are_obeyed_and_white_is_255(
    decode: Decoder, size: int, bits: int, masks: tuple[int, ...]
) -> None:
    def pixel(color: tuple[int, ...]) -> int:
        tops = [mask // (mask & -mask) for mask in masks]
        parts = zip(color, tops, masks, strict=True)
        return sum(round(value * top / 255) * (mask & -mask) for value, top, mask in parts)

    code = "<2H" if bits == 16 else "<2I"
    data = b"".join(struct.pack(code, pixel(ORANGE), pixel((255, 255, 255))) for _ in range(2))
    pixels, _ = read(decode, bmp(header(size, 2, 2, bits, 3, struct.pack("<3I", *masks)), data))
    assert (pixels[:, 1] == 255).all()
    few = min(mask.bit_count() for mask in masks)
    assert np.abs(pixels[:, 0].astype(int) - ORANGE).max() <= (0 if few >= 8 else 255 >> few)


def test_16_bits_without_masks_are_five_a_channel(decode: Decoder) -> None:
    data = struct.pack("<2H", 0x7FFF, 31 << 10 | 16 << 5)
    pixels, row = read(decode, bmp(header(40, 2, 1, 16), data))
    assert pixels.tolist() == [[[255, 255, 255], [255, 132, 0]]]
    assert row.bit_depth == 5


@pytest.mark.parametrize(("size", "compression"), [(56, 3), (108, 3), (124, 3), (40, 6)])
def test_alpha_of_a_mask_is_composited_on_white(decode: Decoder, size: int, compression: int) -> None:
    masks = struct.pack("<4I", 0xFF0000, 0xFF00, 0xFF, 0xFF000000)
    data = struct.pack("<3I", 0xFF000000, 0, 0x80000000)
    pixels, row = read(decode, bmp(header(size, 3, 1, 32, compression, masks), data))
    assert pixels[0, :, 0].tolist() == [0, 255, 127]
    assert row.color == "rgba"


def test_a_fourth_byte_without_a_mask_is_left_out(decode: Decoder) -> None:
    for size in (40, 124):
        pixels, row = read(decode, bmp(header(size, 1, 1, 32), struct.pack("<I", 0x00FF8000)))
        assert (pixels.tolist(), row.color) == ([[list(ORANGE)]], "rgb")


@pytest.mark.parametrize("masks", [(0xF0F000, 0xFF, 0xF00), (0, 0, 0)])
def test_masks_that_no_reader_obeys_are_refused(decode: Decoder, masks: tuple[int, ...]) -> None:
    blob = bmp(header(40, 1, 1, 32, 3, struct.pack("<3I", *masks)), bytes(4))
    assert fault(decode, blob)[0] in ("unsupported", "undecodable")


@pytest.mark.parametrize("bits", [1, 4, 8])
@pytest.mark.parametrize("entry", [3, 4])
def test_palettes(decode: Decoder, bits: int, entry: int) -> None:
    picture = Image.fromarray(bag()).quantize(1 << bits)
    colors = np.asarray(picture.getpalette(), np.uint8).reshape(-1, 3)
    blob = saved(picture, "BMP")
    if entry == 3:
        index = np.asarray(picture)
        shifted = index.astype(np.uint8)[..., None] >> np.arange(bits)[::-1] & 1
        packed = np.packbits(shifted.reshape(HEIGHT, -1).astype(np.uint8), axis=1)
        palette = colors[: 1 << bits, ::-1].tobytes().ljust(3 << bits, b"\0")
        blob = bmp(header(12, WIDTH, HEIGHT, bits), lines_of(packed), palette)
    pixels, row = read(decode, blob)
    assert (pixels == np.asarray(picture.convert("RGB"))).all()
    assert (row.bit_depth, row.warnings) == (bits if entry == 3 else row.bit_depth, None)


def test_a_color_that_the_palette_lacks_is_said(decode: Decoder) -> None:
    palette = b"\xff\xff\xff\0" * 2
    _, row = read(decode, bmp(header(40, 4, 1, 8), b"\0\1\2\0", palette))
    assert row.warnings == "color 2 is not in the BMP's palette of 2"


def test_a_wrong_number_of_planes_is_said(decode: Decoder) -> None:
    blob = bytearray(bmp(header(40, WIDTH, HEIGHT, 24), lines_of(bag()[..., ::-1])))
    blob[26:28] = struct.pack("<H", 30_000)
    pixels, row = read(decode, bytes(blob))
    assert (pixels == bag()).all()
    assert row.warnings == "the BMP's header says 30000 planes"


def test_pixels_that_are_said_to_begin_where_the_palette_does(decode: Decoder) -> None:
    blob = bytearray(saved(Image.fromarray(bag()).convert("P"), "BMP"))
    (wanted, _) = read(decode, bytes(blob))
    blob[10:14] = struct.pack("<I", 54)
    pixels, _ = read(decode, bytes(blob))
    assert (pixels == wanted).all()
    assert fault(decode, bytes(blob[:-1])) == ("undecodable", "the BMP has no palette")


# --- run lengths

PALETTE = bytes(channel for level in range(256) for channel in (level, level, level, 0))


def runs(lines: list[bytes], width: int, height: int, bits: int = 8, end: bytes = b"\0\1") -> bytes:
    compression = 1 if bits == 8 else 2
    palette = PALETTE if bits == 8 else b"".join(PALETTE[68 * i : 68 * i + 4] for i in range(16))
    return bmp(header(40, width, height, bits, compression), b"\0\0".join(lines) + end, palette)


def test_run_lengths_with_padded_lines(decode: Decoder) -> None:
    """Each line is filled to a multiple of four pixels by its encoder; what exceeds the width is no pixel."""
    lines = [bytes((3, 10 * n, 0, 4, 1, 2, 3, 9, 1, 77)) for n in range(4)]  # 8 pixels, of a width of 7
    pixels, row = read(decode, runs(lines, 7, 4))
    assert pixels[::-1, :, 0].tolist() == [[10 * n] * 3 + [1, 2, 3, 9] for n in range(4)]
    assert row.warnings is None


def test_run_lengths_of_4_bits(decode: Decoder) -> None:
    pixels, _ = read(decode, runs([bytes((3, 0x12, 0, 5, 0x34, 0x56, 0x70, 0))], 8, 1, bits=4))
    assert (pixels[0, :, 0] // 17).tolist() == [1, 2, 1, 3, 4, 5, 6, 7]


def test_run_lengths_against_pillow(decode: Decoder) -> None:
    index = np.asarray(Image.fromarray(bag()).convert("L"))
    lines = [b"".join(bytes((1, value)) for value in line.tolist()) for line in index[::-1]]
    blob = runs(lines, WIDTH, HEIGHT)
    pixels, row = read(decode, blob)
    assert (pixels == np.asarray(Image.open(io.BytesIO(blob)).convert("RGB"))).all()
    assert row.warnings is None


def test_pixels_that_run_lengths_leave_out_are_said(decode: Decoder) -> None:
    for lines in ([b"\2\5"], [b"\2\5", b"\0\2\2\0\2\5"]):
        _, row = read(decode, runs(lines, 4, 2))
        assert "the BMP says nothing of" in str(row.warnings)
    for place in (-1, -3, -4):
        blob = runs([b"\4\5", b"\0\4\1\2\3\4"], 4, 3, end=b"\0\0\4")
        assert fault(decode, blob[:place])[0] == "truncated"


def test_a_bmp_cut_anywhere_is_truncated(decode: Decoder) -> None:
    for mode in ("L", "1", "RGB", "RGBA"):
        blob = saved(Image.fromarray(bag()).convert(mode), "BMP")
        for place in (20, 50, 60, len(blob) // 2, len(blob) - 1):
            assert fault(decode, blob[:place])[0] == "truncated"
