"""Pictures that are no X-ray images of bags: photographs that scikit-image ships, and pages of text."""

from pathlib import Path

import numpy as np
import skimage
from PIL import Image, ImageDraw, ImageFont

PHOTOGRAPHS = (
    "astronaut", "brick", "camera", "cell", "chelsea", "clock_motion", "coffee", "coins", "grass", "gravel",
    "hubble_deep_field", "ihc", "logo", "microaneurysms", "moon", "motorcycle_left", "motorcycle_right",
    "retina", "rocket",
)  # fmt: skip
CROPS = 3  # of each photograph
SHARES = (0.4, 0.8)  # of each side of a photograph
PAGES = ((850, 1100), (1100, 850), (700, 500))  # pixels
WORDS = (
    "the", "of", "and", "scanner", "belt", "bag", "report", "invoice", "number", "date", "total", "item",
    "quantity", "airport", "passenger", "page", "form", "name", "address", "signature", "terms", "conditions",
)  # fmt: skip


def write_photographs(folder: Path) -> int:
    """Write every photograph, whole and in crops; returns the number of pictures."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(0)
    for name in PHOTOGRAPHS:
        (source,) = (Path(skimage.__file__).parent / "data").glob(f"{name}.*")
        with Image.open(source) as opened:
            picture = opened.convert("RGB")
        picture.save(folder / f"{name}.png")
        for k in range(CROPS):
            share = random.uniform(*SHARES)
            width, height = (int(side * share) for side in picture.size)
            left, top = (
                int(random.integers(0, a - b + 1)) for a, b in zip(picture.size, (width, height), strict=True)
            )
            picture.crop((left, top, left + width, top + height)).save(folder / f"{name}-{k}.png")
    return len(PHOTOGRAPHS) * (1 + CROPS)


def write_pages(folder: Path, count: int = 100) -> int:
    """Write pages of text, some with tables, on white and on yellowed paper; returns their number."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(1)
    for number in range(count):
        size = PAGES[number % len(PAGES)]
        page = Image.new("RGB", size, (255, 255, 255) if number % 4 else (245, 240, 225))
        _write_lines(ImageDraw.Draw(page), size, random, tables=number % 5 == 0)
        page.save(folder / f"{number:03d}.png")
    return count


def _write_lines(
    draw: ImageDraw.ImageDraw, size: tuple[int, int], random: np.random.Generator, *, tables: bool
) -> None:
    (width, height), points = size, int(random.integers(10, 28))
    font, top = ImageFont.load_default(points), 40
    while top < height - 50:
        if tables and random.random() < 0.15:
            for column in range(6):
                left = 50 + column * (width - 100) // 5
                draw.line((left, top, left, top + 4 * points), fill=0)
            for line in (top, top + 4 * points):
                draw.line((50, line, width - 50, line), fill=0)
            top += 5 * points
            continue
        text = ""
        while draw.textlength(text, font) < width - 160:
            text += f" {WORDS[random.integers(len(WORDS))]}"
        draw.text((50, top), text, fill=(0, 0, 0), font=font)
        top += int(points * (3.5 if random.random() < 0.1 else 1.5))
