"""TIFFs of every layout and compression, against what was stored; what is missing is never scored."""

import io
import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from pictures import HEIGHT, WIDTH, bag, fault, packed_bits, saved
from PIL import Image

from gbad_batch.engine.decode import DecodeLimits, Decoder
from gbad_batch.engine.row import Row


@pytest.fixture(scope="module")
def decode() -> Decoder:
    return Decoder(None, DecodeLimits())


def packbits(data: bytes) -> bytes:
    return b"".join(
        bytes((len(data[i : i + 100]) - 1,)) + data[i : i + 100] for i in range(0, len(data), 100)
    )


def lzw(data: bytes) -> bytes:
    """Write literals only, with a clear code before codes grow past 9 bits."""
    codes = [code for i, byte in enumerate(data) for code in ((256,) if i % 200 == 0 else ()) + (byte,)]
    bits = "".join(f"{code:09b}" for code in [*codes, 257])
    bits += "0" * (-len(bits) % 8)
    return int(bits, 2).to_bytes(len(bits) // 8)


CODECS: dict[int, Callable[[bytes], bytes]] = {
    1: bytes,
    5: lzw,
    8: zlib.compress,
    32946: zlib.compress,
    32773: packbits,
}


def whole(_: int, piece: bytes) -> bytes:
    return piece


@dataclass
class Writer:
    """Writes a TIFF in pieces, strips or tiles, from samples [H, W, C] of any depth."""

    bits: int = 8
    compression: int = 1
    planar: bool = False
    tile: tuple[int, int] | None = None  # width, height
    lines: int = 9  # of a strip
    predictor: int = 1
    reverse: bool = False  # bits in bytes
    order: str = "<"
    tags: dict[int, tuple[int, ...]] = field(default_factory=dict)
    change: Callable[[int, bytes], bytes] = whole

    def __call__(self, samples: NDArray[Any]) -> bytes:
        height, width, channels = samples.shape
        planes = np.moveaxis(samples, 2, 0)[..., None] if self.planar else samples[None]
        pieces = [self._packed(piece) for plane in planes for piece in self._pieces(plane)]
        pieces = [self.change(number, piece) for number, piece in enumerate(pieces)]
        tags = {256: (width,), 257: (height,), 258: (self.bits,) * channels, 259: (self.compression,)}
        tags |= {262: (2 if channels >= 3 else 1,), 277: (channels,), 284: (2 if self.planar else 1,)}
        tags |= {317: (self.predictor,)} if self.predictor != 1 else {}
        tags |= {266: (2,)} if self.reverse else {}
        return tiff(pieces, tags | self.tags, self.tile or self.lines, self.order)

    def _pieces(self, plane: NDArray[Any]) -> list[NDArray[Any]]:
        height, width = plane.shape[:2]
        if self.tile is None:
            return [plane[line : line + self.lines] for line in range(0, height, self.lines)]
        across, down = self.tile
        padded = np.pad(plane, ((0, -height % down), (0, -width % across), (0, 0)))
        corners = [(y, x) for y in range(0, height, down) for x in range(0, width, across)]
        return [padded[y : y + down, x : x + across] for y, x in corners]

    def _packed(self, piece: NDArray[Any]) -> bytes:
        if self.predictor == 2:
            piece = np.diff(piece, axis=1, prepend=np.zeros_like(piece[:, :1]))
        flat = piece.reshape(len(piece), -1)
        if self.bits == 16:
            data = flat.astype(f"{self.order}u2").tobytes()
        else:
            data = flat.tobytes() if self.bits == 8 else packed_bits(flat, self.bits)
        data = CODECS[self.compression](data)
        return bytes(int(f"{byte:08b}"[::-1], 2) for byte in data) if self.reverse else data


def tiff(
    pieces: list[bytes], tags: dict[int, tuple[int, ...]], form: int | tuple[int, int], order: str = "<"
) -> bytes:
    """Write pieces and their directory; values are LONGs. `form` is a strip's lines or a tile's sides."""
    blob = bytearray(struct.pack(order + "2sHI", b"II" if order == "<" else b"MM", 42, 0))
    offsets = []
    for piece in pieces:
        offsets.append(len(blob))
        blob += piece
    places = {324: tuple(offsets), 325: tuple(map(len, pieces))}
    if isinstance(form, int):
        places = {273: places[324], 279: places[325], 278: (form,)}
    else:
        places |= {322: (form[0],), 323: (form[1],)}
    entries = b""
    for tag, values in sorted((places | tags).items()):
        packed = struct.pack(f"{order}{len(values)}I", *values)
        if len(values) > 1:
            start = len(blob)
            blob += packed
            packed = struct.pack(order + "I", start)
        entries += struct.pack(order + "HHI", tag, 4, len(values)) + packed
    struct.pack_into(order + "I", blob, 4, len(blob))
    return bytes(blob) + struct.pack(order + "H", len(entries) // 12) + entries + bytes(4)


def read(decode: Decoder, blob: bytes) -> tuple[NDArray[np.uint8], Row]:
    row = Row("x")
    pixels = decode(row, blob)
    assert pixels is not None, row
    return pixels, row


def level(samples: NDArray[Any], bits: int) -> NDArray[np.int64]:
    """Bring samples to 0 to 255, gray to three channels."""
    spread = np.rint(samples.astype(np.float64) * 255 / ((1 << bits) - 1)).astype(np.int64)
    return spread.repeat(3 // spread.shape[2], 2)


@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("tile", [None, (16, 16), (96, 32)])
@pytest.mark.parametrize("compression", CODECS)
@pytest.mark.parametrize("bits", [1, 2, 4, 6, 8, 12, 16])
@pytest.mark.parametrize("channels", [1, 3])
def test_every_layout(
    decode: Decoder, bits: int, channels: int, compression: int, tile: tuple[int, int] | None, planar: bool
) -> None:
    samples = bag(bits, channels)
    pixels, row = read(decode, Writer(bits, compression, planar, tile)(samples))
    assert np.abs(pixels - level(samples, bits)).max() <= 1
    assert (row.bit_depth, row.warnings) == (bits, None)


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("compression", [5, 8])
@pytest.mark.parametrize("tile", [None, (32, 16)])
@pytest.mark.parametrize("planar", [False, True])
def test_differences_between_neighbors(
    decode: Decoder, order: str, bits: int, compression: int, tile: tuple[int, int] | None, planar: bool
) -> None:
    samples = bag(bits, 3)
    writer = Writer(bits, compression, planar, tile, predictor=2, order=order)
    pixels, _ = read(decode, writer(samples))
    assert np.abs(pixels - level(samples, bits)).max() <= 1


@pytest.mark.parametrize("compression", CODECS)
@pytest.mark.parametrize("bits", [1, 8])
def test_bytes_whose_lowest_bit_comes_first(decode: Decoder, compression: int, bits: int) -> None:
    samples = bag(bits, 1)
    pixels, _ = read(decode, Writer(bits, compression, reverse=True)(samples))
    assert (pixels == level(samples, bits)).all()


@pytest.mark.parametrize("bits", [8, 16])
@pytest.mark.parametrize("kind", [1, 2])
@pytest.mark.parametrize("channels", [2, 4])
def test_alpha_is_composited_on_white(decode: Decoder, bits: int, kind: int, channels: int) -> None:
    samples, top = bag(bits, channels), (1 << bits) - 1
    alpha = samples[..., -1:].astype(np.int64)
    if kind == 1:
        samples[..., :-1] = np.minimum(samples[..., :-1], samples[..., -1:])
    color = samples[..., :-1].astype(np.int64)
    exact = color + top - alpha if kind == 1 else top - (top - color) * alpha / top
    pixels, row = read(decode, Writer(bits, tags={338: (kind,)})(samples))
    assert np.abs(pixels - level(exact, bits)).max() <= 1
    assert row.color == ("gray+alpha" if channels == 2 else "rgba")
    assert row.warnings is None


@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("extra", [{}, {338: (0,)}])
def test_of_two_energies_the_first_is_read_and_the_other_said(
    decode: Decoder, planar: bool, extra: dict[int, tuple[int, ...]]
) -> None:
    samples = bag(16, 2)
    pixels, row = read(decode, Writer(16, 5, planar, tags=extra)(samples))
    assert np.abs(pixels - level(samples[..., :1], 16)).max() <= 1
    assert (row.color, row.bit_depth) == ("gray", 16)
    assert row.warnings == "the TIFF has 2 samples a pixel; the last 1 are left out"


def test_palettes_of_up_to_16_bits(decode: Decoder) -> None:
    for bits, depth in ((4, 16), (8, 8), (8, 16), (16, 16)):
        index = bag(bits, 1)
        colors = np.random.default_rng(bits).integers(0, 1 << depth, 3 << bits)
        pixels, row = read(decode, Writer(bits, 5, tags={262: (3,), 320: tuple(colors.tolist())})(index))
        table = (colors >> depth - 8).reshape(3, -1).T
        assert (pixels == table[index[..., 0]]).all()
        assert row.color == "palette"


def test_white_is_zero(decode: Decoder) -> None:
    for bits in (1, 4, 8, 12, 16):
        samples = bag(bits, 1)
        pixels, _ = read(decode, Writer(bits, tags={262: (0,)})(samples))
        assert np.abs(pixels - (255 - level(samples, bits))).max() <= 1


def test_cmyk(decode: Decoder) -> None:
    ink = bag(channels=4)
    pixels, row = read(decode, Writer(tags={262: (5,)})(ink))
    exact = (255.0 - ink[..., :3]) * (255.0 - ink[..., 3:]) / 255
    assert np.abs(pixels - exact).max() <= 1
    assert row.color == "cmyk"


@pytest.mark.parametrize("factors", [(1, 1), (2, 1), (2, 2), (4, 2)])
@pytest.mark.parametrize("compression", [1, 5])
def test_ycbcr_that_is_no_jpeg(decode: Decoder, factors: tuple[int, int], compression: int) -> None:
    across, down = factors
    ycc = np.asarray(Image.fromarray(bag()).convert("YCbCr"))
    whole = np.pad(ycc, ((0, -HEIGHT % down), (0, -WIDTH % across), (0, 0)), "edge")
    coarse = whole[::down, ::across, 1:].repeat(down, 0).repeat(across, 1)
    stored = np.dstack((whole[..., 0], coarse))
    blocks = whole[..., 0].reshape(-1, down, whole.shape[1] // across, across).swapaxes(1, 2)
    units = np.dstack((blocks.reshape(*blocks.shape[:2], -1), whole[::down, ::across, 1:]))
    lines = 8 // down
    pieces = [CODECS[compression](units[i : i + lines].tobytes()) for i in range(0, len(units), lines)]
    tags = {256: (WIDTH,), 257: (HEIGHT,), 258: (8, 8, 8), 259: (compression,), 262: (6,), 277: (3,)}
    pixels, _ = read(decode, tiff(pieces, tags | {530: factors}, 8))
    exact = Image.fromarray(stored[:HEIGHT, :WIDTH], "YCbCr").convert("RGB")
    assert np.abs(pixels - np.asarray(exact).astype(int)).max() <= 2


def test_a_missing_meaning_of_samples_is_assumed_as_libtiff_does(decode: Decoder) -> None:
    for samples, said in ((bag(channels=1), "gray with 0 as black"), (bag(), "RGB")):
        blob = Writer()(samples)
        entry = blob.index(struct.pack("<HHI", 262, 4, 1))
        blob = blob[:entry] + struct.pack("<H", 263) + blob[entry + 2 :]
        pixels, row = read(decode, blob)
        assert (pixels == samples).all()
        assert said in str(row.warnings)


@pytest.mark.parametrize("compression", ["group3", "group4"])
def test_a_fax_without_the_meaning_of_its_bits_has_0_as_white(decode: Decoder, compression: str) -> None:
    picture = Image.fromarray(bag()).convert("1")
    blob = saved(picture, "TIFF", compression=compression, tiffinfo={262: 0})
    entry = blob.index(struct.pack("<HHI", 262, 3, 1))
    silent = blob[:entry] + struct.pack("<H", 263) + blob[entry + 2 :]
    for each in (blob, silent):
        pixels, row = read(decode, each)
        assert (pixels[..., 0] == np.asarray(picture.convert("L"))).all()
    assert "tag 262" in str(row.warnings)


def repeated(tag: int) -> bytes:
    """Write a TIFF in which a tag stands twice with different values."""
    blob = Writer(tags={tag: (2,)})(bag(channels=1))
    (start,) = struct.unpack_from("<I", blob, 4)
    (count,) = struct.unpack_from("<H", blob, start)
    entries = blob[start + 2 : start + 2 + 12 * count]
    twice = struct.pack("<H", count + 1) + entries + struct.pack("<HHII", tag, 4, 1, 3) + bytes(4)
    return blob[:start] + twice


def test_only_tags_that_define_pixels_may_not_stand_twice(decode: Decoder) -> None:
    for tag in (305, 306, 34675, 65000):
        pixels, _ = read(decode, repeated(tag))
        assert (pixels == bag(channels=1)).all()
    for tag in (256, 262, 317):
        assert fault(decode, repeated(tag)) == ("undecodable", f"the TIFF's tag {tag} stands there twice")


def test_values_that_no_column_holds_stay_out_of_the_row(decode: Decoder) -> None:
    for bits in (65, 1 << 31, (1 << 32) - 1):
        row = Row("x")
        assert decode(row, Writer(tags={258: (bits,)})(bag(channels=1))) is None
        assert (row.status, row.bit_depth) == ("unsupported", None)
    directory = b"".join(struct.pack("<HHQQ", tag, 16, 1, (1 << 64) - 1) for tag in (256, 257))
    row = Row("x")
    assert decode(row, struct.pack("<2sHHHQQ", b"II", 43, 8, 0, 16, 2) + directory + bytes(8)) is None
    assert (row.status, row.width, row.height) == ("too_large", None, None)


# --- damage


def lost(number: int, piece: bytes) -> bytes:
    return bytes(len(piece)) if number == 2 else piece


def halved(number: int, piece: bytes) -> bytes:
    return piece[: len(piece) // 2] if number == 2 else piece


def emptied(number: int, piece: bytes) -> bytes:
    return b"" if number == 2 else piece


def noise(number: int, piece: bytes) -> bytes:
    return np.random.default_rng(1).bytes(len(piece)) if number == 2 else piece


@pytest.mark.parametrize("change", [lost, halved, emptied, noise])
@pytest.mark.parametrize("tile", [None, (16, 16)])
@pytest.mark.parametrize("planar", [False, True])
@pytest.mark.parametrize("bits", [1, 8, 16])
@pytest.mark.parametrize("compression", [5, 8, 32773])
def test_a_damaged_piece_is_never_scored(
    decode: Decoder,
    compression: int,
    bits: int,
    planar: bool,
    tile: tuple[int, int] | None,
    change: Callable[[int, bytes], bytes],
) -> None:
    if compression == 32773 and change is noise:
        pytest.skip("runs of any bytes make some picture")
    writer = Writer(bits, compression, planar, tile, change=change)
    assert fault(decode, writer(bag(bits, 3)))[0] == "undecodable"


FAXES = {"tiff_ccitt": 2, "group3": 3, "group4": 4}


@pytest.mark.parametrize("form", FAXES)
@pytest.mark.parametrize("options", [0, 1, 4, 5])
def test_faxes(decode: Decoder, form: str, options: int) -> None:
    """Runs of every length, in both colors, and lines that are told by the one above."""
    steps = np.arange(0, 2700, 7)[:, None]
    place = np.arange(5400)
    runs = (place < steps) | ((place >= 2 * steps) & (place < 3 * steps))
    for bits in (runs, ~runs, bag(channels=1)[..., 0] > 128, bag(channels=1)[:, :1, 0] > 200):
        tags = {292: options} if form == "group3" else {}
        pixels, row = read(decode, saved(Image.fromarray(bits), "TIFF", compression=form, tiffinfo=tags))
        assert (pixels[..., 0] == np.where(bits, 255, 0)).all()
        assert row.warnings is None


def test_runs_of_no_length_are_told_by_as_libtiff_does(decode: Decoder) -> None:
    """The second line passes over a black run of no length in the first, which an encoder has written."""
    first = "001011100001101111"  # across: 2 white, 0 black; then to the end
    second = "0001001000111111"  # pass; across: 1 white, 2 black; then to the end
    end = "000000000001" * 2
    bits = (first + second + end).ljust(64, "0")
    data = int(bits, 2).to_bytes(len(bits) // 8)
    values = {256: 8, 257: 2, 258: 1, 259: 4, 262: 0, 273: 8, 277: 1, 278: 2, 279: len(data)}
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in values.items())
    blob = struct.pack("<2sHI", b"II", 42, 8 + len(data)) + data
    blob += struct.pack("<H", len(values)) + entries + bytes(4)
    pixels, _ = read(decode, blob)
    assert (pixels[0] == 255).all()
    assert np.flatnonzero(pixels[1, :, 0] == 0).tolist() == [3, 4]
    assert (pixels[..., 0] == np.where(np.asarray(Image.open(io.BytesIO(blob))), 255, 0)).all()


@pytest.mark.parametrize("form", FAXES)
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_fax_that_is_cut_is_never_scored(decode: Decoder, form: str, share: float) -> None:
    blob = saved(Image.fromarray(bag()).convert("1"), "TIFF", compression=form)
    tags = Image.open(io.BytesIO(blob)).tag_v2  # pyright: ignore
    (start,), (size,) = tags[273], tags[279]
    middle = start + int(size * share)
    zeroed = blob[:middle] + bytes(start + size - middle) + blob[start + size :]
    cut = blob.replace(struct.pack("<HHII", 279, 4, 1, size), struct.pack("<HHII", 279, 4, 1, middle - start))
    for damaged in (zeroed, cut):
        status, error = fault(decode, damaged)
        assert (status, "a fax" in error) == ("undecodable", True)


# lines of 8 pixels: white; 2 white, 3 black and 3 white; 2 white, 3 black and no code
EOL, WHITE, BLACK, BROKEN = "000000000001", "10011", "0111101000", "0111" + "10" + "0000000001"


def group3(codes: str, lines: int, options: int = 0) -> bytes:
    codes += "0" * (-len(codes) % 8)
    data = int(codes, 2).to_bytes(len(codes) // 8)
    tags = {256: (8,), 257: (lines,), 258: (1,), 259: (3,), 262: (0,), 277: (1,), 292: (options,)}
    return tiff([data], tags, lines)


def test_a_damaged_line_of_a_fax_is_read_in_part_and_said(decode: Decoder) -> None:
    codes = "".join(EOL + line for line in (WHITE, BLACK, BROKEN, BLACK, WHITE)) + EOL * 6
    pixels, row = read(decode, group3(codes, 5))
    assert row.warnings == "the TIFF's fax is damaged in line 3 of 5"
    black = [np.flatnonzero(line == 0).tolist() for line in pixels[..., 0]]
    assert black == [[], [2, 3, 4], [2, 3, 4], [2, 3, 4], []]
    codes = "".join(EOL + line for line in (WHITE, BLACK, WHITE + BLACK, BLACK, WHITE)) + EOL
    pixels, row = read(decode, group3(codes, 5))
    assert row.warnings == "the TIFF's fax is damaged in line 3 of 5"
    assert (pixels[[0, 2, 4]] == 255).all()
    assert (pixels[[1, 3]] == pixels[1]).all()
    codes = "".join(EOL + line for line in (BROKEN, BLACK) * 3) + EOL
    pixels, row = read(decode, group3(codes, 6))
    assert row.warnings == "the TIFF's fax is damaged in 3 lines of 6"


def test_damage_in_a_line_of_a_fax_changes_no_other(decode: Decoder) -> None:
    """The damaged line is as libtiff has it, which often loses the one behind."""
    sound = bag(channels=1)[..., 0] > 128
    blob = saved(Image.fromarray(sound), "TIFF", compression="group3")
    tags = Image.open(io.BytesIO(blob)).tag_v2  # pyright: ignore
    (start,), (size,) = tags[273], tags[279]
    read_in_part = 0
    for place in range(start + 2, start + size, 3):
        damaged = bytearray(blob)
        damaged[place] ^= 0x24
        pixels = decode(row := Row("x"), bytes(damaged))
        if pixels is None or row.warnings is None:
            continue
        read_in_part += 1
        said = re.fullmatch(r"the TIFF's fax is damaged in line (\d+) of 61", row.warnings)
        assert said is not None, row.warnings
        line, bits = int(said[1]) - 1, pixels[..., 0] == 255
        assert (np.delete(bits, line, 0) == np.delete(sound, line, 0)).all()
        assert (bits[line] == np.asarray(Image.open(io.BytesIO(damaged)))[line]).all()
    assert read_in_part > 20


@pytest.mark.parametrize(
    ("lines", "options"),
    [
        ((WHITE, BLACK, BROKEN, BROKEN, WHITE), 0),  # the reader is not sure of its place
        ((WHITE, BLACK, BROKEN, WHITE), 0),  # one is missing
        ((WHITE, BLACK, BROKEN, BLACK, WHITE, WHITE), 0),  # what is damaged may have been two
        ((*["1" + line for line in (WHITE, BLACK, BROKEN, BLACK, WHITE)],), 1),  # others may be told by it
    ],
)
def test_a_damaged_fax_is_not_scored_where_other_lines_may_be_lost(
    decode: Decoder, lines: tuple[str, ...], options: int
) -> None:
    codes = "".join(EOL + line for line in lines) + EOL
    assert fault(decode, group3(codes, 5, options))[0] == "undecodable"
    codes = "".join(EOL + line for line in (WHITE, BLACK, BLACK, BLACK)) + BROKEN
    for unmarked in (codes + EOL, codes, codes.replace(EOL, "")):
        assert fault(decode, group3(unmarked, 5, options))[0] == "undecodable"


def test_a_changed_bit_under_a_sum_is_never_scored(decode: Decoder) -> None:
    blob = bytearray(Writer(compression=8, lines=HEIGHT)(bag()))
    for place in range(40, 4000, 97):
        blob[place] ^= 16
        assert fault(decode, bytes(blob))[0] == "undecodable"
        blob[place] ^= 16


def test_a_last_strip_that_is_filled_to_the_lines_of_the_others(decode: Decoder) -> None:
    filled = np.concatenate([bag(), bag()[:7]])
    for compression in CODECS:
        blob = Writer(compression=compression, lines=17, tags={257: (HEIGHT,)})(filled)
        pixels, row = read(decode, blob)
        assert (pixels == bag()).all()
        assert row.warnings is None


def test_one_piece_of_unsaid_size_reaches_to_the_end(decode: Decoder) -> None:
    for compression in CODECS:
        pixels, _ = read(decode, Writer(compression=compression, lines=HEIGHT, tags={279: (0,)})(bag()))
        assert (pixels == bag()).all()


def test_tiles_whose_places_stand_in_the_tags_of_strips(decode: Decoder) -> None:
    blob = Writer(compression=5, tile=(32, 16))(bag())
    for tile, strip in ((324, 273), (325, 279)):
        blob = blob.replace(struct.pack("<HH", tile, 4), struct.pack("<HH", strip, 4))
    pixels, _ = read(decode, blob)
    assert (pixels == bag()).all()


def test_pieces_that_say_too_few_bytes_are_refused(decode: Decoder) -> None:
    for change in (halved, emptied):
        assert fault(decode, Writer(change=change)(bag()))[0] == "undecodable"


# --- JPEGs inside


def jpegs(pixels: NDArray[np.uint8], side: tuple[int, int], **options: Any) -> list[bytes]:
    """Divide a picture into JPEGs of width x height."""
    width, height = side
    tall, wide = pixels.shape[:2]
    whole = np.pad(pixels, ((0, -tall % height), (0, -wide % width), (0, 0)), "edge")
    return [
        saved(Image.fromarray(whole[y : y + height, x : x + width].squeeze()), "JPEG", quality=95, **options)
        for y in range(0, tall, height)
        for x in range(0, wide, width)
    ]


JPEG_TAGS = {256: (WIDTH,), 257: (HEIGHT,), 258: (8, 8, 8), 259: (7,), 262: (6,), 277: (3,)}


@pytest.mark.parametrize("form", [(32, 16), 16])
@pytest.mark.parametrize("options", [{}, {"subsampling": 0}, {"progressive": True}])
def test_jpegs_in_strips_and_tiles(
    decode: Decoder, form: tuple[int, int] | int, options: dict[str, Any]
) -> None:
    side = form if isinstance(form, tuple) else (WIDTH, form)
    blob = tiff(jpegs(bag(), side, **options), JPEG_TAGS, form)
    pixels, row = read(decode, blob)
    assert np.abs(pixels - np.asarray(Image.open(io.BytesIO(blob)).convert("RGB")).astype(int)).mean() <= 2
    assert np.abs(pixels - bag().astype(int)).mean() < 12
    assert row.warnings is None


def test_the_directory_says_the_color_space_of_its_jpegs(decode: Decoder) -> None:
    rgb = [
        saved(Image.fromarray(bag()), "JPEG", quality=95, subsampling=0, keep_rgb=True),
        saved(Image.fromarray(bag()), "JPEG", quality=95, subsampling=0, keep_rgb=True),
    ]
    for blob in rgb[:1]:
        pixels, _ = read(decode, tiff([blob], JPEG_TAGS | {262: (2,)}, HEIGHT))
        assert np.abs(pixels - bag().astype(int)).mean() < 3
    gray = saved(Image.fromarray(bag(channels=1)[..., 0]), "JPEG", quality=95)
    pixels, _ = read(decode, tiff([gray], JPEG_TAGS | {258: (8,), 262: (0,), 277: (1,)}, HEIGHT))
    assert np.abs(pixels - (255.0 - bag(channels=1))).mean() < 3


@pytest.mark.parametrize("side", [(WIDTH // 2, HEIGHT), (WIDTH, HEIGHT // 2), (WIDTH * 2, HEIGHT)])
@pytest.mark.parametrize("tile", [False, True])
def test_a_jpeg_of_another_size_than_its_piece_is_never_scored(
    decode: Decoder, side: tuple[int, int], tile: bool
) -> None:
    """What the JPEG does not fill would be whatever stood in memory."""
    blob = saved(Image.fromarray(bag()).resize(side), "JPEG")
    status, error = fault(decode, tiff([blob], JPEG_TAGS, (WIDTH, HEIGHT) if tile else HEIGHT))
    assert (status, "is a JPEG of" in error) == ("undecodable", True) or status == "too_large"


def test_jpegs_of_other_samples_or_none_are_never_scored(decode: Decoder) -> None:
    gray = saved(Image.fromarray(bag()).convert("L"), "JPEG")
    assert fault(decode, tiff([gray], JPEG_TAGS, HEIGHT))[0] == "undecodable"
    assert fault(decode, tiff([bytes(500)], JPEG_TAGS, HEIGHT))[0] == "undecodable"


def test_damage_in_a_jpeg_piece_is_said_or_refused(decode: Decoder) -> None:
    pieces = jpegs(bag(), (WIDTH, 16))
    whole = bytearray(pieces[1])
    middle = len(whole) - 120
    whole[middle : middle + 60] = np.random.default_rng(5).integers(0, 255, 60, np.uint8).tobytes()
    row = Row("x")
    decode(row, tiff([pieces[0], bytes(whole), *pieces[2:]], JPEG_TAGS, 16))
    assert row.status != "ok" or row.warnings
    cut = pieces[1][: len(pieces[1]) * 3 // 4]
    assert fault(decode, tiff([pieces[0], cut, *pieces[2:]], JPEG_TAGS, 16))[0] == "truncated"
    _, row = read(decode, tiff([pieces[0], cut + b"\xff\xd9", *pieces[2:]], JPEG_TAGS, 16))
    assert "premature end" in str(row.warnings)


def test_a_jpeg_piece_without_its_last_scans_is_coarser_and_says_so(decode: Decoder) -> None:
    pieces = jpegs(bag(), (WIDTH, 16), progressive=True)
    scans = [at for at in range(len(pieces[1])) if pieces[1][at : at + 2] == b"\xff\xda"]
    blob = tiff([pieces[0], pieces[1][: scans[4]] + b"\xff\xd9", *pieces[2:]], JPEG_TAGS, 16)
    pixels, row = read(decode, blob)
    assert row.warnings == "the JPEG's scans after number 4 are missing: its picture is coarser than it was"
    assert np.abs(pixels - np.asarray(Image.open(io.BytesIO(blob)).convert("RGB")).astype(int)).mean() <= 2


@pytest.mark.parametrize("compression", [1, 5, 7, 8, 32773])
@pytest.mark.parametrize("seed", range(20))
def test_every_pixel_that_is_scored_was_written(compression: int, seed: int) -> None:
    """A decoder that leaves something out shows what its memory held: the pattern of the picture before."""
    generator = np.random.default_rng(seed)
    if compression == 7:
        blob = tiff(jpegs(bag(), (WIDTH, 16)), JPEG_TAGS, 16)
    else:
        blob = Writer(compression=compression)(bag())
    blob = bytearray(blob)
    for place in generator.integers(8, len(blob), 4):
        blob[place] = generator.integers(256)
    decode = Decoder(32, DecodeLimits())
    results = []
    for pattern in (0xA5, 0x3C):
        decode(Row("pattern"), Writer()(np.full((200, 200, 3), pattern, np.uint8)))
        results.append(decode(Row("x"), bytes(blob)))
    if results[0] is not None:
        assert (results[0] == results[1]).all()  # type: ignore[comparison-overlap]
