"""How exact a scan's numbers are: pixels against Pillow and exact arithmetic, OpenVINO against torch."""

import argparse
import io
import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter

from gbad_batch.engine.decode import DecodeLimits, Decoder
from gbad_batch.engine.row import Row

from ..report import Report

SIZE = 256  # pixels a side, the network's input
SIDES = ((500, 700), (569, 818), (1080, 1920), (180, 211), (256, 300))  # height, width


def run(_: argparse.Namespace) -> Report:
    """Report the largest differences; needs torch and timm (the `train` extra) for the network's."""
    from .network_exactness import network_exactness

    report = Report("Exactness, against Pillow, exact arithmetic and torch")
    pixels, network = pixel_exactness(), network_exactness()
    report.add("pixels8_max", pixels["pixels8_max"], "levels", at_most=3)
    report.add("pixels8_mean", pixels["pixels8_mean"], "levels", at_most=0.3)
    report.add("pixels16_max", pixels["pixels16_max"], "levels", at_most=1)
    report.add("loss_rel_max", network["loss_rel_max"], "", at_most=1e-3)
    report.add("score_max", network["score_max"], "std", at_most=1e-3)
    return report


def pixel_exactness() -> dict[str, float]:
    """Compare decoded and resized pixels; differences in levels of 0 to 255.

    `pixels8_max` and `pixels8_mean` are against Pillow's decoder and BILINEAR, on drawn pictures and on
    the real ones where GBAD_REAL_DATA names their folder; `pixels16_max` is against the same filter in
    float64 on 16-bit pictures, divided by 257.
    """
    decode = Decoder(SIZE, DecodeLimits())
    differences8 = [np.abs(_decoded(decode, blob) - _by_pillow(blob)) for blob in _files_of_8_bits()]
    differences16 = [np.abs(_decoded(decode, blob) - exact) for blob, exact in _files_of_16_bits()]
    return {
        "pixels8_max": float(max(difference.max() for difference in differences8)),
        "pixels8_mean": float(np.mean([difference.mean() for difference in differences8])),
        "pixels16_max": float(max(difference.max() for difference in differences16)),
    }


def _decoded(decode: Decoder, blob: bytes) -> npt.NDArray[np.float64]:
    row = Row("picture")
    pixels = decode(row, blob)
    if pixels is None:
        raise RuntimeError(f"a good picture was not decoded: {row.error}")
    return pixels.astype(np.float64)


def _by_pillow(blob: bytes) -> npt.NDArray[np.float64]:
    picture = Image.open(io.BytesIO(blob)).convert("RGB")
    return np.asarray(picture.resize((SIZE, SIZE), Image.Resampling.BILINEAR), np.float64)


def _files_of_8_bits() -> Iterator[bytes]:
    for seed, (height, width) in enumerate(SIDES):
        picture = Image.fromarray((_drawn(height, width, seed) / 257).astype(np.uint8))
        for form in ("JPEG", "PNG", "TIFF", "BMP", "WEBP"):
            yield _saved(picture, form)
        yield _saved(picture.convert("L"), "JPEG")
    folder = os.environ.get("GBAD_REAL_DATA")
    if folder:
        for path in sorted(Path(folder, "sixray-samples").rglob("*.jpg")):
            yield path.read_bytes()


def _files_of_16_bits() -> Iterator[tuple[bytes, npt.NDArray[np.float64]]]:
    """Yield files and their exact pixels [SIZE, SIZE, 1] on the scale of 0 to 255."""
    for seed, (height, width) in enumerate(SIDES):
        stored = _drawn(height, width, seed)[..., 1]
        exact = _weights(height) @ stored.astype(np.float64) @ _weights(width).T / 257
        for form in ("PNG", "TIFF", "JPEG2000"):
            yield _saved(Image.fromarray(stored), form), exact[..., None]


def _drawn(height: int, width: int, seed: int) -> npt.NDArray[np.uint16]:
    """Draw a bag of sharp and soft shapes on white with grain, [height, width, 3] of the full 16 bits."""
    generator = np.random.default_rng(seed)
    picture = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(picture)
    for _ in range(60):
        left, top = generator.integers(0, (width, height))
        right, bottom = left + generator.integers(2, width // 3), top + generator.integers(2, height // 3)
        color = tuple(int(level) for level in generator.integers(0, 256, 3))
        draw.ellipse((left, top, right, bottom), fill=color, outline=(0, 0, 0))
    soft = np.asarray(picture.filter(ImageFilter.GaussianBlur(0.7)), np.float64) * 257
    return np.clip(soft + generator.normal(0, 900, soft.shape), 0, 65535).astype(np.uint16)


def _saved(picture: Image.Image, form: str) -> bytes:
    file = io.BytesIO()
    picture.save(file, form, **({"lossless": True} if form == "WEBP" else {}))
    return file.getvalue()


def _weights(source: int) -> npt.NDArray[np.float64]:
    """Give the weights [SIZE, source] of antialiased linear interpolation, each row summing to 1.

    A triangle around each target pixel's centre, as wide as the reduction, never under one source pixel.
    """
    scale = source / SIZE
    centers = (np.arange(SIZE) + 0.5) * scale
    distances = np.abs(np.arange(source) + 0.5 - centers[:, None]) / max(scale, 1.0)
    weights = np.maximum(0.0, 1.0 - distances)
    return weights / weights.sum(axis=1, keepdims=True)
