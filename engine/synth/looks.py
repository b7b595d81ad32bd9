"""How scanners paint what they measure: dual-energy pseudo-colour in several looks.

The brightness follows the transmission, the hue the ratio of the two bins' optical depths (organic
about 1.2, light metals and salts 1.6, steel above 2.3; what is too thick to see through drifts back
and turns black). Each look has palettes fitted to pictures of real scanners; each image draws its own
transfer curve, edge enhancement, saturation, belt lines and noise around them.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from .beam import Beam, strips

LOOKS = ("white", "grey", "vivid")
RATIOS, LEVELS = 64, 256
RATIO_RANGE = (0.9, 3.1)
SIGNALS, SIGNAL_STEPS = 32_768, 28_672  # entries of the tables by signal, and steps a unit of it
TAU_STEPS = 256  # a unit of optical depth in the table of brightness
REACH = 2  # pixels that the unsharp mask sees each way
Stops = tuple[tuple[int, int, int], ...]  # RGB from opaque to air, at equal steps of brightness

# Rows: organic, mixed, light metal, steel. Brightness 0, 32, 64, 96, 128, 160, 192, 224, 255 of 255.
WHITE: tuple[Stops, ...] = (
    ((12, 38, 20), (46, 56, 22), (105, 80, 26), (152, 112, 39), (202, 147, 46),
     (223, 174, 95), (234, 209, 161), (248, 236, 214), (255, 255, 255)),
    ((10, 44, 22), (14, 70, 22), (24, 112, 34), (38, 146, 44), (86, 180, 62),
     (136, 204, 98), (194, 224, 164), (228, 244, 212), (255, 255, 255)),
    ((6, 40, 42), (10, 66, 66), (22, 102, 104), (44, 134, 136), (79, 168, 163),
     (121, 192, 186), (179, 221, 220), (226, 248, 248), (255, 255, 255)),
    ((10, 36, 60), (14, 60, 98), (18, 94, 152), (40, 126, 192), (77, 155, 215),
     (136, 184, 217), (187, 216, 236), (221, 239, 253), (255, 255, 255)),
)  # fmt: skip
GREY: tuple[Stops, ...] = (
    ((4, 26, 4), (48, 42, 8), (101, 76, 32), (152, 110, 28), (186, 138, 58),
     (203, 170, 108), (217, 192, 156), (227, 209, 192), (240, 236, 232)),
    ((2, 34, 6), (10, 70, 28), (28, 106, 44), (66, 134, 58), (112, 162, 88),
     (156, 190, 130), (190, 212, 174), (213, 224, 205), (238, 240, 236)),
    ((0, 34, 34), (4, 68, 66), (16, 100, 98), (34, 138, 134), (84, 164, 158),
     (140, 190, 184), (190, 214, 210), (214, 228, 226), (236, 240, 240)),
    ((0, 24, 54), (4, 50, 110), (14, 88, 156), (40, 122, 182), (100, 148, 178),
     (150, 180, 196), (196, 212, 222), (216, 226, 232), (236, 238, 242)),
)  # fmt: skip
VIVID: tuple[Stops, ...] = (
    ((30, 10, 2), (96, 40, 8), (150, 72, 16), (206, 104, 30), (238, 140, 52),
     (250, 176, 92), (254, 208, 150), (255, 234, 206), (255, 254, 250)),
    ((10, 30, 8), (26, 72, 22), (54, 110, 34), (96, 150, 44), (140, 186, 62),
     (176, 210, 104), (208, 230, 156), (234, 246, 212), (255, 255, 250)),
    ((6, 26, 30), (14, 60, 84), (26, 92, 130), (46, 124, 172), (80, 156, 204),
     (126, 190, 224), (176, 216, 238), (220, 240, 250), (254, 255, 255)),
    ((6, 6, 36), (16, 28, 96), (26, 54, 146), (40, 90, 196), (76, 126, 224),
     (126, 164, 238), (178, 202, 246), (220, 232, 252), (254, 254, 255)),
)  # fmt: skip


@dataclass(frozen=True)
class Look:
    """One image's way of painting."""

    name: str
    air: tuple[float, float, float]  # RGB of the empty belt, 0-255
    table: np.ndarray  # uint32 [RATIOS * LEVELS], bytes R, G, B and one unused
    power: float  # brightness falls with optical depth to this power: below 1, thin things show
    span: float  # optical depth that paints black
    bin_weight: float  # share of the low bin in the brightness
    edges: float  # unsharp mask's strength
    opaque: float  # brightness below which the look shows saturation
    opaque_rgb: tuple[int, int, int] | None  # its colour; None: the palette's darkest
    lines: float  # standard deviation of the brightness of the screen's lines, of 255
    beam: Beam


def _table(
    palette: tuple[Stops, ...], air: np.ndarray, hues: tuple[float, ...], rng: np.random.Generator
) -> np.ndarray:
    """Return the colours of every (ratio, brightness): palettes at ratio anchors, blended.

    `hues` are the ratios of depths at which the four palettes stand pure.
    """
    anchors = np.array(hues) + rng.normal(0, 0.03, 4)
    level = np.linspace(0, 8, LEVELS)
    stops = np.array(palette, float)  # 4 9 3
    stops[:, :8] *= 1 + rng.normal(0, 0.03, (4, 1, 3))
    stops[:, 8] = air
    curves = np.stack(
        [np.stack([np.interp(level, np.arange(9), row[:, c]) for c in range(3)], 1) for row in stops]
    )  # 4 L 3
    ratio = np.linspace(*RATIO_RANGE, RATIOS)
    place = np.interp(ratio, anchors, np.arange(4))
    lower = np.minimum(place.astype(int), 2)
    share = (place - lower)[:, None, None]
    blend = curves[lower] * (1 - share) + curves[lower + 1] * share
    packed = np.zeros((RATIOS * LEVELS, 4), np.uint8)
    packed[:, :3] = np.clip(blend, 0, 255).reshape(-1, 3)
    return packed.view(np.uint32)[:, 0]


def _beam(rng: np.random.Generator, photons: tuple[float, float]) -> Beam:
    return Beam(
        photons=float(np.exp(rng.uniform(*np.log(photons)))),
        scatter=float(rng.uniform(0.004, 0.015)),
        crosstalk=float(rng.uniform(0.08, 0.16)),
        banding=float(rng.uniform(0.0003, 0.0015)),
    )


def draw_look(name: str, rng: np.random.Generator) -> Look:
    """Return a look of this name ('white', 'grey', 'vivid') with this image's own settings."""
    u = rng.uniform
    if name == "white":
        air, palette, blue, hues = np.array([255.0, 255, 255]), WHITE, None, (1.16, 1.34, 1.72, 2.2)
        curve, edges, opaque, photons = (
            (u(0.46, 0.6), u(4.8, 6.4), u(0.6, 0.75)),
            u(0.7, 1.5),
            0.0,
            (1e4, 5e4),
        )
    elif name == "grey":
        tint = np.array([(226, 226, 226), (224, 229, 228), (222, 208, 224), (230, 228, 226)])
        air, palette = tint[rng.choice(4, p=[0.45, 0.3, 0.1, 0.15])] + u(-3, 3), GREY
        hues = (1.25, 1.42, 1.75, 2.15)
        blue = (int(u(0, 8)), int(u(0, 14)), int(u(165, 250)))
        curve, edges, opaque, photons = (
            (u(0.42, 0.54), u(2.8, 4.0), u(0.55, 0.7)),
            u(0.7, 1.4),
            u(0.02, 0.07),
            (2e4, 8e4),
        )
    else:
        air, palette = np.array([255.0, 254, u(244, 252)]), VIVID
        hues = (1.2, 1.42, 1.75, 2.15)
        blue = (int(u(0, 20)), int(u(0, 30)), int(u(90, 150)))
        curve, edges, opaque, photons = (
            (u(0.5, 0.65), u(3.6, 5.0), u(0.55, 0.7)),
            u(0.9, 2.0),
            u(0.05, 0.1),
            (1e4, 5e4),
        )
    return Look(
        name, tuple(air), _table(palette, air, hues, rng), *curve, edges, opaque, blue,
        0.7 if name == "grey" else 0.0, _beam(rng, photons),
    )  # fmt: skip


@lru_cache(maxsize=1)
def _depths() -> tuple[np.ndarray, np.ndarray]:
    """Return the optical depth of every signal, float32 [SIGNALS], and its place in a table of brightness."""
    tau = -np.log((np.arange(SIGNALS) + 0.5) / SIGNAL_STEPS)
    return tau.astype(np.float32), np.maximum(np.round(tau * TAU_STEPS), 0).astype(np.int32)


def _brightness(look: Look) -> np.ndarray:
    """Return the brightness of every signal, float32 [SIGNALS]: 1 for air to 0 at the look's span.

    The noise of the empty belt stays below the knee.
    """
    knee, power, place = 0.012, look.power, _depths()[1]
    tau = np.maximum(np.arange(int(place[0]) + 1) / TAU_STEPS - 0.008, 0)
    rise = ((tau + knee) ** power - knee**power) / ((look.span + knee) ** power - knee**power)
    return (1 - rise).astype(np.float32).take(place)


def paint(signal: np.ndarray, look: Look, rng: np.random.Generator) -> np.ndarray:
    """Return the picture uint8 [H, W, 3] of two detectors' signals float32 [2, H, W]."""
    height, width = signal.shape[1:]
    hue = np.empty((height, width), np.uint8)
    light = np.empty((height + 2 * REACH, width + 2 * REACH), np.float32)
    inner = light[REACH:-REACH, REACH:-REACH]
    brightness = _brightness(look)
    for rows in strips(height, width):
        hue[rows] = _hues(*signal[:, rows])
        mixed = signal[0, rows] * np.float32(look.bin_weight)
        mixed += signal[1, rows] * np.float32(1 - look.bin_weight)
        inner[rows] = brightness.take(_places(mixed), mode="clip")
    light[:, :REACH], light[:, -REACH:] = light[:, REACH : REACH + 1], light[:, -REACH - 1 : -REACH]
    light[:REACH], light[-REACH:] = light[REACH], light[-REACH - 1]
    shades = _lines(height, look, rng)
    packed = np.empty((height, width), np.uint32)
    for rows in strips(height, width):
        packed[rows] = _coloured(light[rows.start : rows.stop + 2 * REACH], hue[rows], shades[rows], look)
    pixels, painted = np.empty((height, width, 3), np.uint8), packed.view(np.uint8).reshape(height, width, 4)
    for channel in range(3):  # faster than all three at once
        pixels[:, :, channel] = painted[:, :, channel]
    return pixels


def _places(signal: np.ndarray) -> np.ndarray:
    return (signal * np.float32(SIGNAL_STEPS)).astype(np.int32)


def _hues(low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Return the row of the look's table: the ratio of the two optical depths."""
    tau = _depths()[0]
    thin = np.float32(0.012)  # keeps the hue of nearly empty rays from being all noise
    ratio = tau.take(_places(low), mode="clip")
    ratio += thin * np.float32(1.3)
    under = tau.take(_places(high), mode="clip")
    np.maximum(under, np.float32(-0.004), out=under)
    under += thin
    ratio /= under
    bottom, top = RATIO_RANGE
    ratio -= np.float32(bottom)
    ratio *= np.float32((RATIOS - 1) / (top - bottom))
    return np.clip(ratio, 0, RATIOS - 1, out=ratio).astype(np.uint8)


def _coloured(light: np.ndarray, hue: np.ndarray, shades: np.ndarray, look: Look) -> np.ndarray:
    """Sharpen a strip of brightness, given with REACH pixels around it, and look its colours up."""
    soft = _summed(_summed(light).T).T
    soft *= np.float32(1 / (2 * REACH + 1) ** 2)
    middle = light[REACH:-REACH, REACH:-REACH]
    detail = middle - soft
    sharp = detail * np.float32(look.edges)
    sharp += middle
    sharp += shades[:, None]
    sharp *= np.float32(LEVELS - 1)
    place = np.clip(sharp, 0, LEVELS - 1, out=sharp).astype(np.int32)
    place += hue.astype(np.int32) * LEVELS
    pixels = look.table.take(place)
    if look.opaque_rgb is not None:
        seen = soft < np.float32(look.opaque)
        seen &= detail > np.float32(-0.03)
        red, green, blue = look.opaque_rgb
        pixels[seen] = np.array([red, green, blue, 0], np.uint8).view(np.uint32)[0]
    return pixels


def _summed(image: np.ndarray) -> np.ndarray:
    """Return the sums of five neighbours down the columns, of rows that have two on either side."""
    two = image[:-1] + image[1:]
    five = two[:-3] + two[2:-1]
    five += image[4:]
    return five


def _lines(height: int, look: Look, rng: np.random.Generator) -> np.ndarray:
    """Return how much darker each line of the screen is, float32 [height]."""
    drift = rng.normal(0, 1.1, height).cumsum()
    shade = (drift - drift.mean()) * 0.05 + rng.normal(0, 1, height)
    return (-np.abs(shade.clip(-5, 5)) * (look.lines / 255)).astype(np.float32)


def belt(pixels: np.ndarray, look: Look, rng: np.random.Generator) -> None:
    """Draw in place what belongs to the screen and the belt: a line, a dotted seam, the cursor."""
    height = len(pixels)
    if look.name == "grey":
        if rng.random() < 0.35:
            pixels[int(rng.integers(height))] = np.clip(np.array(look.air) - (8, 12, 20), 0, 255)
        if rng.random() < 0.1:
            _seam(pixels, rng)
    if rng.random() < 0.1:
        _cursor(pixels, rng)


def _seam(pixels: np.ndarray, rng: np.random.Generator) -> None:
    height = len(pixels)
    top = int(rng.integers(max(height // 6, 1)))
    band = pixels[top : top + 8]
    dots = rng.random(band.shape[:2]) < np.array([0.1, 0.3, 0.5, 0.3, 0.2, 0.4, 0.3, 0.1])[: len(band), None]
    band[dots] = (band[dots] * 0.7).astype(np.uint8)


def _cursor(pixels: np.ndarray, rng: np.random.Generator) -> None:
    height, width, _ = pixels.shape
    y, x = int(rng.integers(max(height - 18, 1))), int(rng.integers(max(width - 12, 1)))
    for row in range(15):
        wide = row * 2 // 3 + 1 if row < 11 else 0
        line = pixels[y + row : y + row + 1, x : x + wide]
        line[:] = 255
        line[:, -1:] = 20
        line[:, :1] = 20
