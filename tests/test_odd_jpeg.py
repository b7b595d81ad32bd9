"""JPEGs that are sound but odd, and those that are cut but end as if they were whole."""

import io
import struct
from itertools import pairwise

import numpy as np
import pytest
import simplejpeg
from pictures import bag, fault, saved
from PIL import Image

from gbad_batch.engine.decode import DecodeLimits, Decoder
from gbad_batch.engine.row import Row


@pytest.fixture(scope="module")
def decode() -> Decoder:
    return Decoder(None, DecodeLimits())


def segment(marker: int, data: bytes) -> bytes:
    return bytes((0xFF, marker)) + (len(data) + 2).to_bytes(2) + data


def flat(factors: tuple[tuple[int, int], ...], ids: tuple[int, ...] = (1, 2, 3)) -> bytes:
    """Write a JPEG of flat blocks, 4 x 4 units of any sampling factors."""
    across, down = max(h for h, _ in factors), max(v for _, v in factors)
    components = b"".join(bytes((i, h << 4 | v, 0)) for i, (h, v) in zip(ids, factors, strict=False))
    frame = struct.pack(">BHHB", 8, 32 * down, 32 * across, len(factors)) + components
    lengths = bytes((0, 1, 5, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0, 0, 0, 0))
    codes = ("00", "010", "011", "100", "101", "110", "1110", "11110", "111110")  # by size
    bits, last = "", [0] * len(factors)
    for unit in range(16):
        for component, (h, v) in enumerate(factors):
            for _ in range(h * v):
                value = unit * 7 % 60 - 30 if component == 0 else 10 * component
                step, last[component] = value - last[component], value
                size = abs(step).bit_length()
                low = f"{step if step > 0 else step + (1 << size) - 1:0{size}b}" if size else ""
                bits += codes[size] + low + "0"
    bits += "1" * (-len(bits) % 8)
    scan = b"".join(bytes((i, 0)) for i in ids[: len(factors)])
    return b"".join(
        (
            b"\xff\xd8",
            segment(0xDB, b"\0" + b"\x08" * 64),
            segment(0xC0, frame),
            segment(0xC4, b"\0" + lengths + bytes(range(12))),
            segment(0xC4, b"\x10" + bytes((1, *[0] * 15, 0))),
            segment(0xDA, bytes((len(factors),)) + scan + b"\0\x3f\0"),
            int(bits, 2).to_bytes(len(bits) // 8).replace(b"\xff", b"\xff\0"),
            b"\xff\xd9",
        )
    )


def pillow(blob: bytes) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    return np.asarray(Image.open(io.BytesIO(blob)).convert("RGB")).astype(np.int64)


PLAIN = flat(((1, 1),) * 3)


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        (segment(0xE2, b"ICC_PROFILE\0\0\1" + bytes(99)), "bad ICC marker"),
        (segment(0xE2, b"ICC_PROFILE\0\1\1"), "bad ICC marker"),
        (segment(0xE2, b"ICC_PROFILE\0\1\2" + bytes(9)) * 2, "bad ICC marker"),
        (b"\0\1\2\3\4", "5 extraneous bytes"),
        (segment(0xEE, b"Adobe\0\x64\0\0\0\0\2"), "Adobe color transform code 2"),
        (segment(0xEE, b"Adobe\0\x64\0\0"), None),
        (segment(0xE1, b"Exif\0\0nonsense"), None),
        (segment(0xE0, b"JFXX\0\x10"), None),
    ],
)
@pytest.mark.parametrize("form", ["baseline", "progressive", "gray"])
def test_what_is_odd_in_a_header_but_no_pixel_is_said(
    decode: Decoder, extra: bytes, said: str | None, form: str
) -> None:
    whole = PLAIN
    if form != "baseline":
        picture = Image.fromarray(bag()).convert("L" if form == "gray" else "RGB")
        whole = saved(picture, "JPEG", progressive=form == "progressive")
    frame = whole.index(b"\xff\xc2" if form == "progressive" else b"\xff\xc0")
    row, odd = Row("plain"), Row("odd")
    exact, pixels = decode(row, whole), decode(odd, whole[:frame] + extra + whole[frame:])
    assert exact is not None
    assert pixels is not None, odd
    assert (pixels == exact).all()
    assert row.warnings is None
    if form == "baseline" or "Adobe" not in str(said):  # beside a JFIF segment libjpeg does not ask Adobe's
        assert (said or "None") in str(odd.warnings)


@pytest.mark.parametrize(
    "factors",
    [
        ((2, 2), (2, 1), (1, 1)),
        ((2, 2), (1, 2), (1, 2)),
        ((1, 3), (1, 1), (1, 1)),
        ((3, 1), (1, 1), (1, 1)),
        ((4, 1), (2, 1), (1, 1)),
        ((1, 1), (2, 2), (1, 1)),
    ],
)
def test_any_sampling_is_read_as_libjpeg_does(decode: Decoder, factors: tuple[tuple[int, int], ...]) -> None:
    row = Row("x")
    pixels = decode(row, flat(factors))
    assert pixels is not None, row
    assert np.abs(pixels - pillow(flat(factors))).max() <= 2
    small = Decoder(32, DecodeLimits())(Row("x"), flat(factors))
    assert small is not None
    stretched = Image.fromarray(pixels).resize((32, 32), Image.Resampling.BILINEAR)
    assert np.abs(small.astype(int) - np.asarray(stretched)).max() <= 1


@pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
def test_cmyk_is_inverted_with_and_without_adobes_marker(decode: Decoder, subsampling: str) -> None:
    """As Pillow, libvips and browsers read it."""
    blob = saved(Image.fromarray(bag(channels=4), "CMYK"), "JPEG", quality=95, subsampling=subsampling)
    start = blob.index(b"\xff\xee\0\x0eAdobe")
    for each in (blob, blob[:start] + blob[start + 16 :]):
        row = Row("x")
        pixels = decode(row, each)
        assert pixels is not None
        assert np.abs(pixels - pillow(each)).max() <= 1
        assert row.color == "cmyk"


@pytest.mark.parametrize("transform", [1, 3])
def test_cmyk_with_a_transform_that_nobody_knows_is_read_as_ycck(decode: Decoder, transform: int) -> None:
    blob = bytearray(saved(Image.fromarray(bag(channels=4), "CMYK"), "JPEG", quality=95))
    blob[blob.index(b"Adobe") + 11] = transform
    row = Row("x")
    pixels = decode(row, bytes(blob))
    assert pixels is not None, row
    assert np.abs(pixels - pillow(bytes(blob))).max() <= 2
    assert "Adobe" in str(row.warnings)


# --- cut, but with an end marker


def scans(blob: bytes) -> list[bytes]:
    """Divide a progressive JPEG into what precedes its scans, each scan, and the end marker."""
    starts = [at for at in range(len(blob) - 1) if blob[at : at + 2] in (b"\xff\xda", b"\xff\xd9")]
    return [blob[a:b] for a, b in pairwise([0, *starts, len(blob)])]


def progressive(mode: str, **options: int) -> bytes:
    pixels = bag(channels=4) if mode == "CMYK" else np.asarray(Image.fromarray(bag()).convert(mode))
    return saved(Image.fromarray(pixels, mode), "JPEG", progressive=True, **options)


@pytest.mark.parametrize(("mode", "subsampling"), [("RGB", 0), ("RGB", 1), ("RGB", 2), ("L", 0), ("CMYK", 0)])
def test_a_progressive_jpeg_without_its_last_scans_is_coarser_and_says_so(
    decode: Decoder, mode: str, subsampling: int
) -> None:
    blob = progressive(mode, subsampling=subsampling)
    head, *parts, end = scans(blob)
    assert len(parts) > 4
    for kept in range(1, len(parts)):
        cut = head + b"".join(parts[:kept]) + end
        for whole in (cut, cut + blob):  # the second is another picture behind the end
            row = Row("x")
            pixels = decode(row, whole)
            assert pixels is not None, row
            assert np.abs(pixels - pillow(cut)).mean() <= 1
            assert row.status == "ok"
            missing = f"the JPEG's scans after number {kept} are missing"
            assert row.warnings == f"{missing}: its picture is coarser than it was"
    row = Row("x")
    assert decode(row, blob + blob[: len(blob) // 2]) is not None
    assert row.warnings is None


def test_a_coarser_jpeg_with_an_odd_header_says_both(decode: Decoder) -> None:
    head, first, *_, end = scans(progressive("RGB"))
    frame = head.index(b"\xff\xc2")
    icc = segment(0xE2, b"ICC_PROFILE\0\1\1")
    row = Row("x")
    pixels = decode(row, head[:frame] + icc + head[frame:] + first + end)
    assert pixels is not None, row
    assert np.abs(pixels - pillow(head + first + end)).mean() <= 1
    assert "after number 1 are missing" in str(row.warnings)
    assert "bad ICC marker" in str(row.warnings)


@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_a_progressive_jpeg_cut_inside_a_scan_is_truncated(decode: Decoder, mode: str) -> None:
    """With an end marker behind, or another JPEG; between scans only the other shows that it was cut."""
    blob = progressive(mode)
    head, *parts, end = scans(blob)
    for kept in range(len(parts) - 1):
        before = head + b"".join(parts[:kept])
        for share in (0.3, 0.6, 0.8):
            part = parts[kept][: int(len(parts[kept]) * share)].removesuffix(b"\xff")
            for tail in (end, blob):
                assert decode(row := Row("x"), before + part + tail) is None
                assert row.status == "truncated", (kept, share, row.error)
        assert fault(decode, before + parts[kept] + blob)[0] == "truncated"


def test_a_progressive_jpeg_without_all_data_of_a_color_is_truncated(decode: Decoder) -> None:
    """Its only scan is of the first color, not of three."""
    head, first, *_, end = scans(progressive("RGB"))
    alone = first[:2] + b"\0\x08\1" + first[5:7] + first[11:]
    assert fault(decode, head + alone + end) == ("truncated", "the file ends before the JPEG's last scan")


def test_a_coarser_jpeg_of_unusual_sampling_is_not_scored(decode: Decoder) -> None:
    """Damage in what is there would not be noticed."""
    head, *parts, end = scans(progressive("CMYK", subsampling=2))
    status, error = fault(decode, head + b"".join(parts[:-1]) + end)
    assert (status, error) == ("truncated", "the JPEG lacks scans, and those that it has may be cut")


def test_a_baseline_jpeg_without_the_scans_of_its_colors_is_truncated(decode: Decoder) -> None:
    """Each component has a scan of its own, and only the first is there."""
    blob = flat(((1, 1),) * 3)
    gray = flat(((1, 1),))
    scan = gray[gray.index(b"\xff\xda") :]
    assert fault(decode, blob[: blob.index(b"\xff\xda")] + scan)[0] == "truncated"


@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("restart", [0, 2])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.8])
@pytest.mark.parametrize("size", [None, 32])
def test_a_jpeg_cut_and_followed_by_an_end_or_another_is_truncated(
    mode: str, restart: int, share: float, size: int | None
) -> None:
    decode = Decoder(size, DecodeLimits())
    pixels = bag(channels=4) if mode == "CMYK" else np.asarray(Image.fromarray(bag()).convert(mode))
    blob = saved(
        Image.fromarray(pixels, mode), "JPEG", quality=90, subsampling=0, restart_marker_rows=restart
    )
    start = blob.index(b"\xff\xda") + 14
    cut = blob[: start + int((len(blob) - start) * share)].removesuffix(b"\xff")
    other = saved(Image.fromarray(255 - bag()), "JPEG")
    for tail in (b"\xff\xd9", blob, other):
        assert fault(decode, cut + tail) == ("truncated", "the JPEG's data end before its last line")


def test_a_hole_in_the_middle_is_scored_and_said(decode: Decoder) -> None:
    blob = saved(Image.fromarray(bag()), "JPEG", quality=95, restart_marker_rows=1)
    marks = [at for at in range(len(blob) - 1) if blob[at] == 0xFF and 0xD0 <= blob[at + 1] <= 0xD7]
    holed = blob[: marks[1] + 40] + blob[marks[2] :]
    row = Row("x")
    pixels = decode(row, holed)
    assert pixels is not None, row
    assert "Corrupt JPEG data" in str(row.warnings)
    assert (pixels == simplejpeg.decode_jpeg(holed, strict=False)).all()
