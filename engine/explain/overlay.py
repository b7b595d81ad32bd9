"""Pictures with heat: where each class is, drawn over the image as it is stored."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from .regions import Places, Region

if TYPE_CHECKING:
    from PIL import Image

HEAT = (255, 0, 160)  # no colour of a scanner's: those are oranges, greens and blues
MOST = 0.65  # opacity where a class is certain, so that the picture stays legible below


def overlay(pixels: NDArray[np.uint8], places: Places, regions: Sequence[Region]) -> "Image.Image":
    """Draw on pixels [H, W, 3] the largest probability of any class at each place, and the regions' boxes."""
    from PIL import Image

    picture = Image.fromarray(pixels)
    heat = Image.fromarray((places.max(axis=0) * (255 * MOST)).round().astype(np.uint8))
    heat = heat.resize(picture.size, Image.Resampling.BILINEAR)  # the map is stretched as the network sees
    picture.paste(Image.new("RGB", picture.size, HEAT), mask=heat)
    for region in reversed(regions):  # the most probable on top
        _outline(picture, region)
    return picture


def _outline(picture: "Image.Image", region: Region) -> None:
    from PIL import ImageDraw, ImageFont

    draw = ImageDraw.Draw(picture)
    scale = max(1, max(picture.size) // 400)
    x, y, width, height = region.box
    draw.rectangle((x, y, x + width - 1, y + height - 1), outline=HEAT, width=2 * scale)
    words, font = f"{region.threat} {region.probability:.2f}", ImageFont.load_default(11 * scale)
    *_, wide, high = draw.textbbox((0, 0), words, font=font)
    left, top = min(x, max(0, picture.width - wide - 6)), max(0, y - high - 4)
    draw.rectangle((left, top, left + wide + 5, top + high + 3), fill=HEAT)
    draw.text((left + 3, top + 1), words, fill="white", font=font)
