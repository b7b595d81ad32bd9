"""Another look for an image in training: as another scanner, or another export of it, might show it.

Synthetic images, or those of a single site, have few looks. What differs between scanners and says nothing
of threats is drawn at random: the curve from transmission to brightness, hue and saturation, the background,
edge enhancement or blur, noise, resampling, and JPEG compression. A few milliseconds an image.
"""

from dataclasses import dataclass

import numpy as np
import simplejpeg
from numpy.typing import NDArray
from PIL import Image, ImageFilter

Pixels = NDArray[np.uint8]  # [S, S, 3]

BACKGROUNDS = np.array([(255, 255, 255), (226, 226, 226), (224, 229, 228), (232, 208, 226), (255, 254, 248)])
BRIGHT = 160  # level from which on the commonest colour of an image's rim is taken for its background
LUMA = np.array([0.299, 0.587, 0.114])


@dataclass(frozen=True)
class Look:
    """One image's look."""

    gamma: float  # of the curve
    background: tuple[float, float, float] | None  # RGB; None keeps the image's own
    hue: float  # radians about the grey axis
    saturation: float
    sharpness: float  # 1 leaves it; below it is blurred, above its edges are enhanced
    resampled: float  # share of the side that it is reduced to and enlarged from; 1 leaves it
    noise: float  # standard deviation, levels
    quality: int  # of JPEG; 0 leaves it out
    seed: int  # of the noise


def draw_look(random: np.random.Generator) -> Look:
    """Draw a look."""
    background = None
    if random.random() < 0.6:
        shade = BACKGROUNDS[random.integers(len(BACKGROUNDS))] + random.normal(0, 3, 3)
        background = tuple(np.clip(shade, 0, 255).tolist())
    return Look(
        gamma=float(np.exp(random.normal(0, 0.22))),
        background=background,
        hue=float(random.normal(0, 0.18)),
        saturation=float(np.exp(random.normal(0, 0.25))),
        sharpness=float(random.uniform(0, 2.5)),
        resampled=float(random.uniform(0.5, 1)) if random.random() < 0.25 else 1.0,
        noise=float(random.uniform(0, 6)) if random.random() < 0.5 else 0.0,
        quality=int(random.integers(30, 96)) if random.random() < 0.3 else 0,
        seed=int(random.integers(1 << 32)),
    )


def repaint(pixels: Pixels, look: Look, air: NDArray[np.float64]) -> Pixels:
    """Return an image [S, S, 3] with the background `air` (RGB) in another look, the same for equal looks."""
    image = Image.fromarray(np.ascontiguousarray(pixels))
    size = image.size
    if look.resampled < 1:
        small = max(1, round(size[0] * look.resampled)), max(1, round(size[1] * look.resampled))
        image = image.resize(small, Image.Resampling.BILINEAR).resize(size, Image.Resampling.BILINEAR)
    image = Image.blend(image.filter(ImageFilter.SMOOTH), image, look.sharpness)
    image = image.convert("RGB", tuple(colour_matrix(look).ravel().tolist())).point(_curves(air, look))
    painted = np.asarray(image)
    if look.noise:
        grain = np.random.default_rng(look.seed).standard_normal((*painted.shape[:2], 1), np.float32)
        levels = np.rint(grain * np.float32(look.noise)).astype(np.int16)
        painted = np.clip(painted + levels, 0, 255).astype(np.uint8)
    if look.quality:
        coded = simplejpeg.encode_jpeg(np.ascontiguousarray(painted), look.quality, "RGB", "420")
        painted = simplejpeg.decode_jpeg(coded)
    return painted


def air_of(pixels: Pixels) -> NDArray[np.float64]:
    """Return the colour of an image's background, RGB: the median of its rim; white if a bag fills that."""
    return air_of_rim(np.concatenate([pixels[0], pixels[-1], pixels[:, 0], pixels[:, -1]]))


def air_of_rim(rim: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Return the background's colour from the pixels [n, 3] of all four edges of an image."""
    air = np.median(rim, axis=0)
    return air if air.min() >= BRIGHT else np.full(3, 255.0)


def colour_matrix(look: Look) -> NDArray[np.float64]:
    """Return the matrix [3, 4] that turns hues about the grey axis, and scales distances from it."""
    axis = np.full(3, 3**-0.5)
    across = np.cross(np.eye(3), axis)
    cos, sin = np.cos(look.hue), np.sin(look.hue)
    turned = cos * np.eye(3) + sin * across.T + (1 - cos) * np.outer(axis, axis)
    grey = np.tile(LUMA, (3, 1))
    return np.concatenate([(grey + look.saturation * (np.eye(3) - grey)) @ turned, np.zeros((3, 1))], axis=1)


def _curves(air: NDArray[np.float64], look: Look) -> list[int]:
    """Return 256 levels for each channel: air goes to the background, what is darker along the curve."""
    background = np.array(air if look.background is None else look.background)
    light = np.arange(256) / air[:, None]  # [3, 256]: 1 is air
    return np.clip(np.rint(background[:, None] * light**look.gamma), 0, 255).astype(int).ravel().tolist()
