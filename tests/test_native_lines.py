"""What libtiff, libpng and their like print is a warning of its row, and no line on a terminal."""

import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from pictures import HEIGHT, WIDTH, bag, chunk, png, saved
from PIL import Image

from gbad_batch.engine.bundle import Bundle

COMMAND = str(Path(sys.executable).with_name("gbad-batch"))
LINES = b"".join(b"\0" + line.tobytes() for line in bag())


def png_of(data: bytes) -> bytes:
    whole = png(bag(), 8, 2)
    start = whole.index(b"IDAT") - 4
    return whole[:start] + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def lzw_with_noise() -> bytes:
    blob = bytearray(saved(Image.fromarray(bag()), "TIFF", compression="tiff_lzw"))
    blob[200:260] = b"\xff" * 60
    return bytes(blob)


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    folder = tmp_path / "archive"
    folder.mkdir()
    for number in range(12):
        picture = Image.fromarray(bag()).rotate(number)
        picture.save(folder / f"sound{number}.{('png', 'tif', 'webp', 'jpg')[number % 4]}")
    (folder / "surplus.png").write_bytes(png_of(zlib.compress(LINES + bytes(500))))
    (folder / "tail.png").write_bytes(png_of(zlib.compress(LINES) + b"abcdef"))
    (folder / "filter.png").write_bytes(png_of(zlib.compress(b"\7" + LINES[1:])))
    (folder / "noise.tif").write_bytes(lzw_with_noise())
    return folder


def test_lines_of_native_code_are_warnings(archive: Path, tiny_bundle: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "r.parquet"
    words = [
        COMMAND,
        "scan",
        archive,
        "--out",
        out,
        "--model",
        tiny_bundle.path,
        "--device",
        "cpu",
        "--quiet",
    ]
    done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (3, "", "")
    rows: dict[str, Any] = {Path(row["uri"]).name: row for row in pq.read_table(out).to_pylist()}
    said = {name: (row["status"], row["warnings"]) for name, row in rows.items() if row["warnings"]}
    assert said == {
        "surplus.png": ("ok", "libpng warning: IDAT: Too much image data"),
        "tail.png": ("ok", "libpng warning: IDAT: Extra compressed data"),
        "filter.png": ("undecodable", "libpng error: bad adaptive filter value"),
        "noise.tif": ("undecodable", said["noise.tif"][1]),
    }
    assert "LZW" in said["noise.tif"][1] or "code" in said["noise.tif"][1]
    assert [row["width"] for row in rows.values()] == [WIDTH] * len(rows)
    assert [row["height"] for row in rows.values()] == [HEIGHT] * len(rows)


def test_lines_are_bounded_and_belong_to_one_image() -> None:
    script = """
import os, sys
from gbad_batch.engine.decode import native_lines
native_lines.catch()
native_lines.catch()
os.write(2, b"libx: one\\nlibx: one\\n  \\xff two\\n")
assert native_lines.written()
print(ascii(native_lines.take()), repr(native_lines.take()))
for _ in range(10_000):
    try:
        os.write(2, b"a line that comes again and again: %d\\n" % _)
    except OSError:
        pass
print(len(native_lines.take()), native_lines.written())
print("of Python", file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "'libx: one; \\\\xff two' ''\n504 0\n"
    assert done.stderr == "of Python\n"
