"""Real files of every format in, exact pixels out; bad files by name; nothing shared between threads."""

import io
import os
import struct
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import simplejpeg
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pictures import (
    HEIGHT,
    SIZE,
    WIDTH,
    bag,
    check,
    chunk,
    expected,
    fault,
    on_white,
    packed_bits,
    png,
    saved,
    tiff,
)
from PIL import Image

from gbad_batch.engine.decode import DecodeLimits, Decoder
from gbad_batch.engine.decode.budget import PixelBudget
from gbad_batch.engine.row import Row


@pytest.fixture(scope="module")
def decode() -> Decoder:
    return Decoder(SIZE, DecodeLimits())


# --- each format, against exact arithmetic


@pytest.mark.parametrize("progressive", [False, True])
@pytest.mark.parametrize("subsampling", [0, 1, 2])
def test_jpeg(decode: Decoder, progressive: bool, subsampling: int) -> None:
    blob = saved(Image.fromarray(bag()), "JPEG", progressive=progressive, subsampling=subsampling, quality=90)
    pixels = np.asarray(Image.open(io.BytesIO(blob)))
    row = check(decode, blob, pixels, format="jpeg", width=WIDTH, height=HEIGHT, bit_depth=8, color="rgb")
    assert row.warnings is None


def test_gray_jpeg_has_three_equal_channels(decode: Decoder) -> None:
    blob = saved(Image.fromarray(bag(channels=1)[..., 0]), "JPEG")
    check(decode, blob, np.asarray(Image.open(io.BytesIO(blob))), color="gray", format="jpeg")


def test_cmyk_jpeg_is_converted_without_a_profile(decode: Decoder) -> None:
    blob = saved(Image.fromarray(bag(channels=4), "CMYK"), "JPEG", quality=95)
    check(decode, blob, np.asarray(Image.open(io.BytesIO(blob)).convert("RGB")), color="cmyk")


@pytest.mark.parametrize(
    ("mode", "color", "depth"), [("RGB", "rgb", 8), ("L", "gray", 8), ("1", "gray", 1), ("P", "palette", 8)]
)
def test_png(decode: Decoder, mode: str, color: str, depth: int) -> None:
    picture = Image.fromarray(bag()).convert(mode)
    exact = np.asarray(picture.convert("RGB"))
    check(decode, saved(picture, "PNG"), exact, format="png", color=color, bit_depth=depth)


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_png_of_few_bits(decode: Decoder, bits: int) -> None:
    picture = Image.fromarray(bag()).quantize(1 << bits)
    blob = saved(picture, "PNG", bits=bits)
    check(decode, blob, np.asarray(picture.convert("RGB")), color="palette", bit_depth=bits)
    gray = bag(depth=bits, channels=1)[..., 0]
    lines = b"".join(b"\0" + packed_bits(line[None], bits) for line in gray)
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", WIDTH, HEIGHT, bits, 0, 0, 0, 0))
    blob = b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    check(decode, blob, gray, (1 << bits) - 1, color="gray", bit_depth=bits)
    clear = np.where(gray == 1, (1 << bits) - 1, gray)
    blob = blob.replace(header, header + chunk(b"tRNS", b"\0\1"))
    check(decode, blob, clear, (1 << bits) - 1, color="gray")


@pytest.mark.parametrize("interlaced", [False, True])
@pytest.mark.parametrize(("channels", "color"), [(1, 0), (3, 2)])
@pytest.mark.parametrize("depth", [8, 16])
def test_png_of_8_and_16_bits(
    decode: Decoder, depth: int, channels: int, color: int, interlaced: bool
) -> None:
    pixels = bag(depth, channels)
    check(decode, png(pixels, depth, color, interlaced=interlaced), pixels, (1 << depth) - 1, bit_depth=depth)


@pytest.mark.parametrize("channels", [2, 4])
@pytest.mark.parametrize("depth", [8, 16])
def test_alpha_is_composited_on_white(decode: Decoder, depth: int, channels: int) -> None:
    top, pixels = (1 << depth) - 1, bag(depth, 4)[..., :channels]
    blob = png(pixels, depth, {2: 4, 4: 6}[channels])
    color = {2: "gray+alpha", 4: "rgba"}[channels]
    check(decode, blob, on_white(pixels[..., :-1], pixels[..., -1:], top), top, color=color)


def test_transparent_palette_entries_are_composited_on_white(decode: Decoder) -> None:
    picture = Image.fromarray(bag()).quantize(40)
    alphas = bytes(range(0, 240, 6))
    blob = saved(picture, "PNG", transparency=alphas)
    exact = np.asarray(Image.open(io.BytesIO(blob)).convert("RGBA"))
    check(decode, blob, on_white(exact[..., :3], exact[..., 3:]), color="palette")


@pytest.mark.parametrize("depth", [8, 16])
@pytest.mark.parametrize(("channels", "color"), [(1, 0), (3, 2)])
def test_the_transparent_color_becomes_white(decode: Decoder, depth: int, channels: int, color: int) -> None:
    pixels = bag(depth, channels)
    key = pixels[20, 20]
    exact = pixels.copy()
    exact[(pixels == key).all(axis=2)] = (1 << depth) - 1
    blob = png(pixels, depth, color, chunk(b"tRNS", key.astype(">u2").tobytes()))
    check(decode, blob, exact, (1 << depth) - 1)


@pytest.mark.parametrize("mode", ["RGB", "L", "1", "P", "RGBA"])
def test_bmp(decode: Decoder, mode: str) -> None:
    picture = Image.fromarray(bag()).convert(mode)
    check(decode, saved(picture, "BMP"), np.asarray(picture.convert("RGB")), format="bmp")


def test_bmp_from_the_top_down(decode: Decoder) -> None:
    blob = bytearray(saved(Image.fromarray(bag()), "BMP"))
    blob[22:26] = struct.pack("<i", -HEIGHT)
    check(decode, bytes(blob), bag()[::-1], height=HEIGHT)


@pytest.mark.parametrize(
    "options", [{"lossless": True}, {"quality": 80}, {"quality": 80, "exif": b"Exif\0\0"}]
)
@pytest.mark.parametrize("channels", [3, 4])
def test_webp(decode: Decoder, options: dict[str, Any], channels: int) -> None:
    blob = saved(Image.fromarray(bag(channels=channels)), "WEBP", **options)
    exact = np.asarray(Image.open(io.BytesIO(blob)).convert("RGBA"))
    color = {3: "rgb", 4: "rgba"}[channels]
    check(decode, blob, on_white(exact[..., :3], exact[..., 3:]), format="webp", bit_depth=8, color=color)


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "I;16"])
@pytest.mark.parametrize("irreversible", [False, True])
def test_jpeg_2000(decode: Decoder, mode: str, irreversible: bool) -> None:
    pixels = bag(16, 1)[..., 0] if mode == "I;16" else np.asarray(Image.fromarray(bag()).convert(mode))
    if mode == "RGBA":
        pixels = bag(channels=4)
    blob = saved(Image.fromarray(pixels), "JPEG2000", irreversible=irreversible)
    exact = np.asarray(Image.open(io.BytesIO(blob)))
    if mode == "RGBA":
        exact = on_white(exact[..., :3], exact[..., 3:])
    depth = 16 if mode == "I;16" else 8
    check(
        decode, blob, exact, (1 << depth) - 1, format="jpeg2000", width=WIDTH, height=HEIGHT, bit_depth=depth
    )


def test_raw_jpeg_2000_codestream(decode: Decoder) -> None:
    check(decode, saved(Image.fromarray(bag()), "JPEG2000", no_jp2=True), bag(), format="jpeg2000")


@pytest.mark.parametrize("compression", ["raw", "tiff_lzw", "tiff_adobe_deflate", "packbits", "zstd"])
@pytest.mark.parametrize("mode", ["L", "RGB", "P", "I;16"])
def test_tiff(decode: Decoder, mode: str, compression: str) -> None:
    pixels = bag(16, 1)[..., 0] if mode == "I;16" else bag()
    picture = Image.fromarray(pixels) if mode == "I;16" else Image.fromarray(pixels).convert(mode)
    exact = pixels if mode == "I;16" else np.asarray(picture.convert("RGB"))
    top, depth = (65535, 16) if mode == "I;16" else (255, 8)
    check(decode, saved(picture, "TIFF", compression=compression), exact, top, format="tiff", bit_depth=depth)


def test_tiff_with_jpeg_inside(decode: Decoder) -> None:
    blob = saved(Image.fromarray(bag()), "TIFF", compression="jpeg")
    check(decode, blob, np.asarray(Image.open(io.BytesIO(blob))), format="tiff", color="rgb")


@pytest.mark.parametrize("big", [False, True])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("depth", "channels"), [(8, 1), (8, 3), (16, 1), (16, 3)])
def test_tiff_of_both_byte_orders_and_sizes(
    decode: Decoder, depth: int, channels: int, order: str, big: bool
) -> None:
    pixels = bag(depth, channels)
    tags: dict[int, int | tuple[int, ...]] = {258: (depth,) * channels, 277: channels}
    tags[262] = 1 if channels == 1 else 2
    blob = tiff(pixels.astype(f"{order}u{depth // 8}").tobytes(), tags, order, big)
    check(decode, blob, pixels, (1 << depth) - 1, bit_depth=depth)


@pytest.mark.parametrize("bits", [1, 2, 4, 8, 10, 12, 14, 16])
@pytest.mark.parametrize("white_is_zero", [False, True])
def test_gray_tiff_of_any_depth(decode: Decoder, bits: int, white_is_zero: bool) -> None:
    pixels, top = bag(bits, 1)[..., 0], (1 << bits) - 1
    data = pixels.astype("<u2").tobytes() if bits == 16 else packed_bits(pixels, bits)
    blob = tiff(data, {258: bits, 262: 0 if white_is_zero else 1})
    check(decode, blob, top - pixels if white_is_zero else pixels, top, color="gray", bit_depth=bits)


def test_one_bit_tiff_that_leaves_its_depth_out(decode: Decoder) -> None:
    blob = saved(Image.fromarray(bag()).convert("1"), "TIFF")
    check(decode, blob, np.asarray(Image.open(io.BytesIO(blob)).convert("L")), bit_depth=1)


@pytest.mark.parametrize("compression", ["group3", "group4"])
def test_fax_tiff(decode: Decoder, compression: str) -> None:
    picture = Image.fromarray(bag()).convert("1")
    check(decode, saved(picture, "TIFF", compression=compression), np.asarray(picture.convert("L")))


@pytest.mark.parametrize("kind", [1, 2, 0])
def test_alpha_in_tiff(decode: Decoder, kind: int) -> None:
    pixels = bag(channels=4)
    if kind == 1:
        pixels[..., :3] = np.minimum(pixels[..., :3], pixels[..., 3:])
    exact = {
        0: pixels[..., :3],  # of unsaid meaning: left out
        1: pixels[..., :3] + (255.0 - pixels[..., 3:]),
        2: on_white(pixels[..., :3], pixels[..., 3:]),
    }[kind]
    blob = tiff(pixels.tobytes(), {258: (8,) * 4, 262: 2, 277: 4, 338: kind})
    check(decode, blob, exact, color="rgb" if kind == 0 else "rgba")


def test_the_first_page_of_a_tiff_is_read_and_the_others_said(decode: Decoder) -> None:
    pages = [Image.fromarray(bag()), Image.fromarray(255 - bag())]
    row = check(decode, saved(pages[0], "TIFF", save_all=True, append_images=pages[1:]), bag())
    assert row.warnings == "the TIFF holds more than one page; the first is read"


@pytest.mark.parametrize("form", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_orientation_is_said_and_not_applied(decode: Decoder, form: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[274] = orientation
    options = {"lossless": True} if form == "WEBP" else {}
    blob = saved(Image.fromarray(bag()), form, exif=exif, **options)
    plain = saved(Image.fromarray(bag()), form, **options)
    exact = np.asarray(Image.open(io.BytesIO(plain)))
    row = check(decode, blob, exact, width=WIDTH, height=HEIGHT)
    said = f"orientation {orientation} is noted in the file and not applied"
    assert row.warnings == (None if orientation == 1 else said)


def test_16_bits_are_never_scaled_by_what_the_pixels_hold(decode: Decoder) -> None:
    dark = np.full((SIZE, SIZE, 1), 300, np.uint16)
    for blob in (png(dark, 16, 0), saved(Image.fromarray(dark[..., 0]), "TIFF")):
        pixels = decode(Row("dark"), blob)
        assert pixels is not None
        assert (pixels == 1).all()  # 300 / 257, where Pillow's convert("RGB") makes it white


def test_an_image_of_the_input_size_is_not_resized(decode: Decoder) -> None:
    pixels = np.random.default_rng(3).integers(0, 256, (SIZE, SIZE, 3), np.uint8)
    out = decode(Row("x"), png(pixels, 8, 2))
    assert out is not None
    assert (out == pixels).all()


def test_pixels_are_written_where_the_caller_wants_them() -> None:
    for size, blob in ((SIZE, WHOLE["jpeg"]()), (SIZE, WHOLE["16-bit png"]()), (HEIGHT, GRAY_SQUARE)):
        decode = Decoder(size, DecodeLimits())
        chunk = np.full((3, size, size, 3), 77, np.uint8)
        new = decode(Row("x"), blob)
        assert new is not None
        assert decode(Row("x"), blob, chunk[1]) is not None
        assert (chunk[1] == new).all()
        assert (chunk[::2] == 77).all()
        assert decode(Row("x"), blob[:-3], chunk[2]) is None


# --- bad files

GRAY_SQUARE = png(bag(channels=1)[:, :HEIGHT], 8, 0)


WHOLE: dict[str, Callable[[], bytes]] = {
    "jpeg": lambda: saved(Image.fromarray(bag()), "JPEG"),
    "progressive jpeg": lambda: saved(Image.fromarray(bag()), "JPEG", progressive=True),
    "png": lambda: saved(Image.fromarray(bag()), "PNG"),
    "16-bit png": lambda: png(bag(16), 16, 2),
    "tiff": lambda: saved(Image.fromarray(bag()), "TIFF"),
    "lzw tiff": lambda: saved(Image.fromarray(bag()), "TIFF", compression="tiff_lzw"),
    "bmp": lambda: saved(Image.fromarray(bag()), "BMP"),
    "webp": lambda: saved(Image.fromarray(bag()), "WEBP"),
    "lossless webp": lambda: saved(Image.fromarray(bag(channels=4)), "WEBP", lossless=True),
    "jp2": lambda: saved(Image.fromarray(bag()), "JPEG2000"),
    "j2k": lambda: saved(Image.fromarray(bag()), "JPEG2000", no_jp2=True),
}


@pytest.mark.parametrize("form", WHOLE)
def test_a_file_cut_anywhere_is_truncated(decode: Decoder, form: str) -> None:
    blob = WHOLE[form]()
    places = [16, 40, len(blob) // 4, len(blob) // 2, len(blob) * 9 // 10, len(blob) - 60, len(blob) - 2]
    assert {fault(decode, blob[:place])[0] for place in places} == {"truncated"}


@pytest.mark.parametrize("form", WHOLE)
def test_bytes_after_the_end_do_no_harm(decode: Decoder, form: str) -> None:
    row, with_tail = Row("x"), Row("x")
    pixels, same = decode(row, WHOLE[form]()), decode(with_tail, WHOLE[form]() + b"\0" * 100)
    assert (row.status, with_tail.status) == ("ok", "ok")
    assert pixels is not None
    assert same is not None
    assert (pixels == same).all()


@pytest.mark.parametrize(
    "blob",
    [
        b"<!DOCTYPE html><html>404</html>",
        b"name,Gun,Knife\nP00001,1,-1\n",
        b"\0" * 5000,
        b"PK\x03\x04 an archive",
        b"BM is how this note begins, and it goes on for more than eighteen bytes",
        b"RIFF\x10\0\0\0WAVEfmt a sound",
        b"%PDF-1.7",
    ],
)
def test_what_is_no_image_is_said(decode: Decoder, blob: bytes) -> None:
    row = Row("x.jpg")
    assert decode(row, blob) is None
    assert (row.status, row.format, row.width) == ("not_an_image", None, None)


def test_an_empty_file(decode: Decoder) -> None:
    assert fault(decode, b"") == ("empty", "the file has no bytes")


@pytest.mark.parametrize(
    ("blob", "name"),
    [
        (saved(Image.new("P", (9, 9)), "GIF"), "GIF"),
        (saved(Image.new("RGB", (64, 64)), "AVIF"), "AVIF"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"\0" * 128 + b"DICM" + b"\0" * 50, "DICOM"),
        (b"\xff\x0a\xfa\x7f", "JPEG XL"),
        (saved(Image.new("RGB", (9, 9)), "PPM"), "PNM"),
    ],
)
def test_a_known_foreign_format_is_unsupported_by_content(decode: Decoder, blob: bytes, name: str) -> None:
    assert fault(decode, blob) == ("unsupported", f"{name} is not supported")


def test_forms_that_no_decoder_reads_exactly_are_unsupported(decode: Decoder) -> None:
    jpeg = WHOLE["jpeg"]()
    frame = jpeg.index(b"\xff\xc0")
    pictures = [Image.fromarray(bag()), Image.fromarray(255 - bag())]
    gray = bag(channels=1)[..., 0]
    for blob, said in (
        (jpeg[: frame + 1] + b"\xc9" + jpeg[frame + 2 :], "arithmetic"),
        (jpeg[: frame + 1] + b"\xc3" + jpeg[frame + 2 :], "lossless"),
        (jpeg[: frame + 4] + b"\x0c" + jpeg[frame + 5 :], "12-bit"),
        (saved(pictures[0], "WEBP", save_all=True, append_images=pictures[1:]), "animated"),
        (saved(Image.fromarray(gray.astype(np.float32)), "TIFF"), "32-bit"),
        (saved(Image.fromarray(gray.astype(np.int32)), "TIFF"), "32-bit"),
        (tiff(bag().tobytes(), {258: (8, 8, 8), 262: 2, 277: 3, 259: 34925}), "compression 34925"),
        (saved(Image.fromarray(gray).convert("LA"), "JPEG2000"), "2 components"),
        (png(bag(), 8, 2, chunk(b"CgBI", b"\x50\0\x20\2")), "'CgBI'"),
    ):
        status, error = fault(decode, blob)
        assert status == "unsupported", (said, error)
        assert said in error


def test_a_progressive_jpeg_of_endless_scans_is_refused(decode: Decoder) -> None:
    blob = WHOLE["progressive jpeg"]()
    scan = blob[blob.rindex(b"\xff\xda") : -2]
    assert fault(decode, blob[:-2] + scan * 600 + blob[-2:])[0] == "undecodable"
    assert decode(Row("x"), blob[:-2] + scan * 3 + blob[-2:]) is not None


def test_too_many_pixels_are_refused_from_the_header_alone(decode: Decoder) -> None:
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(b"\0" * 100_000)) + chunk(b"IEND", b"")
    jpeg = WHOLE["jpeg"]()
    frame = jpeg.index(b"\xff\xc0")
    for blob in (
        b"\x89PNG\r\n\x1a\n" + header + body,
        tiff(b"\0" * 100, {256: 60_000, 257: 60_000, 258: 8, 262: 1}),
        jpeg[: frame + 5] + struct.pack(">HH", 60_000, 60_000) + jpeg[frame + 9 :],
        b"BM" + struct.pack("<IIIIiiHHI", 100, 0, 54, 40, 60_000, 60_000, 1, 24, 0) + b"\0" * 60,
    ):
        row = Row("bomb")
        assert decode(row, blob) is None
        assert (row.status, row.width, row.height) == ("too_large", 60_000, 60_000)
        assert row.error == "the image has 60000 x 60000 pixels; the limit is 64000000 pixels"


def test_a_tiff_that_lists_millions_of_values_is_refused(decode: Decoder) -> None:
    blob = tiff(b"\0" * 5_000_000, {258: 8, 262: 1})
    entry = blob.rindex(struct.pack("<HHI", 258, 3, 1))
    many = blob[:entry] + struct.pack("<HHII", 258, 1, 4_000_000, 8) + blob[entry + 12 :]
    assert fault(decode, many) == ("undecodable", "the TIFF's tag 258 has 4000000 values")


def test_the_limits_are_the_users() -> None:
    blob = WHOLE["png"]()
    status, error = fault(Decoder(SIZE, DecodeLimits(max_file_size=len(blob) - 1)), blob)
    assert (status, error) == ("too_large", f"the file has {len(blob)} bytes; the limit is {len(blob) - 1}")
    assert fault(Decoder(SIZE, DecodeLimits(max_pixels=WIDTH * HEIGHT - 1)), blob)[0] == "too_large"
    assert Decoder(SIZE, DecodeLimits(max_pixels=WIDTH * HEIGHT))(Row("x"), blob) is not None


def test_chunks_that_explode_are_never_unpacked(decode: Decoder) -> None:
    bomb = zlib.compress(b"\0" * 300_000_000, 9)
    extra = (chunk(b"iCCP", b"x\0\0" + bomb), chunk(b"zTXt", b"x\0\0" + bomb), chunk(b"acTL", b"\0" * 8))
    check(decode, png(bag(), 8, 2, *extra), bag())
    script = (
        "import resource, sys\n"
        "from gbad_batch.engine.decode import DecodeLimits, Decoder\n"
        "from gbad_batch.engine.row import Row\n"
        "d = Decoder(32, DecodeLimits()); blob = sys.stdin.buffer.read()\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "assert d(Row('x'), blob) is not None\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], input=png(bag(), 8, 2, *extra), capture_output=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) < 50_000  # kB


def test_damaged_jpeg_data_is_decoded_and_said(decode: Decoder) -> None:
    blob = bytearray(saved(Image.fromarray(bag()), "JPEG", quality=95))
    start = len(blob) // 2
    blob[start : start + 200] = np.random.default_rng(5).integers(0, 255, 200, np.uint8).tobytes()
    row = Row("damaged")
    pixels = decode(row, bytes(blob))
    assert pixels is not None
    assert row.status == "ok"
    assert row.error is None
    assert row.warnings
    assert "Corrupt JPEG data" in row.warnings
    lenient = simplejpeg.decode_jpeg(bytes(blob), strict=False)
    assert np.abs(pixels - expected(lenient)).max() <= 1


@pytest.mark.parametrize("form", ["png", "16-bit png"])
def test_damaged_png_data_are_undecodable(decode: Decoder, form: str) -> None:
    blob = bytearray(WHOLE[form]())
    blob[blob.index(b"IDAT") + 100] ^= 1
    assert fault(decode, bytes(blob)) == ("undecodable", "the checksum of the PNG's chunk IDAT is wrong")


def test_png_whose_data_stop_early_is_not_scored(decode: Decoder) -> None:
    blob = png(bag(), 8, 2)
    start = blob.index(b"IDAT") + 4
    length = struct.unpack_from(">I", blob, start - 8)[0]
    for share in (0.02, 0.5, 0.95):
        half = blob[start : start + int(length * share)]
        cut = blob[: start - 8] + chunk(b"IDAT", half) + chunk(b"IEND", b"")
        assert fault(decode, cut)[0] in ("undecodable", "truncated")


@pytest.mark.parametrize("form", WHOLE)
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.tuples(st.integers(2, 400), st.integers(0, 255)), min_size=1, max_size=4))
def test_no_change_of_a_header_escapes(decode: Decoder, form: str, changes: list[tuple[int, int]]) -> None:
    blob = bytearray(WHOLE[form]())
    for position, value in changes:
        blob[position % len(blob)] = value
    row = Row("x")
    pixels = decode(row, bytes(blob))
    assert row.status in ("ok", "not_an_image", "unsupported", "too_large", "truncated", "undecodable")
    assert (pixels is None) == (row.status != "ok")
    assert (row.error is None) == (row.status == "ok")


def test_a_jpeg_2000_tile_of_no_width_does_not_end_the_process(decode: Decoder) -> None:
    blob = bytearray(WHOLE["j2k"]())
    blob[24:28] = b"\0\0\0\0"  # XTsiz; nvImageCodec 0.9 divides by it
    assert fault(decode, bytes(blob))[0] == "undecodable"


@pytest.mark.parametrize(
    "options", [{"codeblock_size": (4, 4)}, {"precinct_size": (8, 8), "num_resolutions": 1}, {"tile": 8}]
)
def test_a_jpeg_2000_of_countless_pieces_is_refused_from_its_header(
    decode: Decoder, options: dict[str, Any]
) -> None:
    tile = options.pop("tile", None)
    blob = bytearray(saved(Image.fromarray(bag()), "JPEG2000", no_jp2=True, **options))
    check(decode, bytes(blob), bag())
    blob[8:16] = struct.pack(">II", 7_000, 7_000)  # Xsiz, Ysiz
    blob[24:32] = struct.pack(">II", tile or 7_000, tile or 7_000)  # XTsiz, YTsiz
    status, error = fault(decode, bytes(blob))
    assert (status, "cut into pieces" in error) == ("unsupported", True)


# --- many at once


def test_four_threads_give_the_pixels_of_one(decode: Decoder) -> None:
    generator = np.random.default_rng(11)
    blobs = []
    for index in range(12):
        pixels = np.roll(bag(), index * 5, axis=index % 2) ^ generator.integers(0, 8, (1, 1, 3), np.uint8)
        picture = Image.fromarray(pixels)
        blobs += [saved(picture, form) for form in ("JPEG", "PNG", "TIFF", "WEBP", "JPEG2000", "BMP")]
        blobs.append(png(pixels.astype(np.uint16) * 257, 16, 2))
    alone = [decode(Row("x"), blob) for blob in blobs]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            together = list(pool.map(lambda blob: decode(Row("x"), blob), blobs))
            assert all(np.array_equal(one, other) for one, other in zip(alone, together, strict=True))  # type: ignore[arg-type]


def test_pixels_in_flight_are_bounded_and_served_in_turn() -> None:
    budget, order = PixelBudget(100), []
    first, release = threading.Event(), threading.Event()

    def hold(name: str, pixels: int, wait: bool = False) -> None:
        budget.take(pixels)
        order.append(name)
        if wait:
            first.set()
            release.wait(10)
        budget.give(pixels)

    threads = [threading.Thread(target=hold, args=("small", 60, True))]
    threads[0].start()
    assert first.wait(10)
    threads += [threading.Thread(target=hold, args=("huge", 500))]
    threads[1].start()
    threads[1].join(0.2)
    assert order == ["small"]  # the huge one waits for an empty house, and gets it
    release.set()
    for thread in threads:
        thread.join(10)
    assert order == ["small", "huge"]


def test_nothing_is_written_to_standard_error_by_the_libraries() -> None:
    script = (
        "import sys\n"
        "from gbad_batch.engine.decode import DecodeLimits, Decoder\n"
        "from gbad_batch.engine.row import Row\n"
        "print(Decoder(32, DecodeLimits())(Row('x'), sys.stdin.buffer.read()).shape)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], input=WHOLE["png"](), capture_output=True, check=True
    )
    assert (done.stdout.strip(), done.stderr) == (b"(32, 32, 3)", b"")


@pytest.mark.real
def test_real_pictures_against_pillow() -> None:
    folder = os.environ.get("GBAD_REAL_DATA")
    if not folder:
        pytest.skip("GBAD_REAL_DATA names no folder of real images")
    decode = Decoder(256, DecodeLimits())
    means = []
    for path in sorted(Path(folder, "sixray-samples").rglob("*.jpg")):
        row = Row(str(path))
        pixels = decode(row, path.read_bytes())
        assert (row.status, row.warnings) == ("ok", None)
        assert pixels is not None
        pillow = Image.open(path).convert("RGB").resize((256, 256), Image.Resampling.BILINEAR)
        difference = np.abs(pixels.astype(int) - np.asarray(pillow))
        assert difference.max() <= 1
        means.append(difference.mean())
    assert means
    assert np.mean(means) < 0.2


STARVED = """
import collections, os, resource, sys
from pathlib import Path
from gbad_batch.engine.decode import Decoder, DecodeLimits
from gbad_batch.engine.row import Row
from gbad_batch.engine.sources import faults

faults.DELAYS_S = ()
blob = Path(sys.argv[1]).read_bytes()
said = collections.Counter()
decode = Decoder(256, DecodeLimits())
for megabytes in range(0, 160, 5):
    now = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
    resource.setrlimit(resource.RLIMIT_AS, (now + (megabytes << 20), resource.RLIM_INFINITY))
    row = Row("x")
    try:
        decode(row, blob)
    except MemoryError:
        row.status = "MemoryError"
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    said[f"{row.status} {row.error} {row.warnings}"] += 1
print(sorted(said))
"""


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "BMP"])  # libtiff aborts: the supervisor's matter
def test_an_image_that_finds_no_memory_is_no_bad_image(form: str, tmp_path: Path) -> None:
    """At each of these limits, from none to plenty, another step of the decoder is the first to fail."""
    path = tmp_path / "image"
    noise = np.random.default_rng(3).integers(0, 256, (150, 200, 3), np.uint8)
    Image.fromarray(noise.repeat(12, 0).repeat(12, 1)).save(path, form)
    command = [sys.executable, "-c", STARVED, str(path)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout == "['MemoryError None None', 'ok None None']\n"
