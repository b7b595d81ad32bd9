"""Threat image projection: a threat's transmission multiplied into a picture of a bag.

X-rays are attenuated by factors (Beer-Lambert: I = I0 exp(-mu t)), so a body that lies in the way multiplies
what comes through the others; mixing colours instead would make it glow through dense things. Scanners show
the transmission by a curve of their own, whose products are near enough to those of the pictures' channels.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ...datasets import Box
from ...synth import air_of

Pixels = NDArray[np.uint8]  # [H, W, 3]
Transmission = NDArray[np.float32]  # [h, w, 3] in [0, 1], 1 where nothing is
Mask = NDArray[np.bool_]

SEEN = 0.85  # a threat lies where less than this share of the light comes through
# share of the bag's bounding box that the outline of a real threat takes: 5 %, median and 95 % of SIXray's
AREAS = {
    "gun": (0.006, 0.020, 0.042),
    "knife": (0.016, 0.037, 0.097),
    "wrench": (0.003, 0.015, 0.058),
    "pliers": (0.003, 0.013, 0.047),
    "scissors": (0.003, 0.011, 0.049),
}
LARGEST_SCALE = 1.6  # more would show that it was blown up
LONGEST = 0.85  # of the bag's longer side
LEAST_PIXELS = 60  # of an outline: less is no threat that anyone could see
TRIES = 60  # of a place
ON_BAG, ON_THINGS = 0.98, 0.6  # share of the outline that lies on the bag, and on what is darker than air
DARKER = 6  # levels below air
PATCHY = 0.4  # share of darker pixels around one that is no speck
GRID = 256  # pixels on which bags are told from the belt
SMALLEST_BAG = 0.03  # of the picture


@dataclass(frozen=True)
class Threat:
    """An object cut out of its surroundings."""

    name: str  # one of THREATS, or what else it is
    transmission: Transmission

    @cached_property
    def outline(self) -> Mask:
        """Mask of the object, [h, w], holes filled."""
        from scipy.ndimage import binary_fill_holes

        return np.asarray(binary_fill_holes(self.transmission.min(axis=2) < SEEN), np.bool_)

    def box(self, at: tuple[int, int]) -> Box:
        """Return the box of the outline in a picture, for an upper left corner at row and column."""
        rows, columns = (np.flatnonzero(self.outline.any(axis=axis)).tolist() for axis in (1, 0))
        top, left = at[0] + rows[0], at[1] + columns[0]
        return Box(self.name, left, top, columns[-1] - columns[0] + 1, rows[-1] - rows[0] + 1)


@dataclass(frozen=True)
class Bag:
    """A bag in a picture."""

    mask: Mask  # [H, W]
    things: Mask  # [H, W], what is darker than air
    size: tuple[int, int]  # height and width of its bounding box, pixels


def project(bag: Pixels, threat: Threat, at: tuple[int, int]) -> Pixels:
    """Multiply a threat into a picture, its upper left corner at row and column; what sticks out is cut off.

    No pixel gets brighter, and none changes where nothing of the threat is.
    """
    shape = threat.transmission.shape
    rows, columns = (slice(max(a, 0), max(a + n, 0)) for a, n in zip(at, shape[:2], strict=True))
    window = bag[rows, columns]
    top, left = max(-at[0], 0), max(-at[1], 0)
    part = threat.transmission[top : top + window.shape[0], left : left + window.shape[1]]
    projected = bag.copy()
    projected[rows, columns] = np.rint(window * part)
    return projected


def bags_of(picture: Pixels) -> list[Bag]:
    """Separate the bags in a picture from the belt, the largest first; ignores straps and specks."""
    from scipy import ndimage as nd

    difference = picture.astype(np.int16) - air_of(picture).astype(np.int16)
    things = np.abs(difference).max(axis=2) > DARKER
    step = -(-max(things.shape) // GRID)
    # the belt has specks that are darker, but no patches
    dense = nd.uniform_filter(things.astype(np.float32), 2 * step + 3)[::step, ::step] > PATCHY
    grown = nd.binary_dilation(dense, iterations=3)
    # one step more than it grew, for the grid's cells reach over the edge
    whole = nd.binary_erosion(nd.binary_fill_holes(grown), iterations=4, border_value=1)
    region, _ = nd.label(nd.binary_opening(whole, iterations=3))  # type: ignore[misc]
    bags = []
    for number, place in enumerate(nd.find_objects(region), start=1):
        mask = region == number
        if mask.mean() >= SMALLEST_BAG:
            fine = mask.repeat(step, axis=0).repeat(step, axis=1)[: things.shape[0], : things.shape[1]]
            height, width = ((each.stop - each.start) * step for each in place)
            bags.append(Bag(fine, things, (height, width)))
    return sorted(bags, key=lambda bag: -bag.mask.sum())


def varied(threat: Threat, bag: Bag, areas: Sequence[float], random: np.random.Generator) -> Threat | None:
    """Mirror, rotate and scale a threat at random for its bag; None if it becomes too small.

    `areas` are the 5 %, median and 95 % of the outline's share of the bag's bounding box.
    """
    mirrored = threat.transmission[:, ::-1] if random.random() < 0.5 else threat.transmission
    turned = _turned(mirrored, random.uniform(0, 360))
    share = np.exp(np.interp(random.uniform(0.05, 0.95), (0.05, 0.5, 0.95), np.log(areas)))
    whole = Threat(threat.name, turned)
    pixels = int(whole.outline.sum())
    if not pixels:
        return None
    scale = np.sqrt(share * bag.size[0] * bag.size[1] / pixels)
    scale = min(scale, LARGEST_SCALE, LONGEST * max(bag.size) / max(turned.shape))
    sized = Threat(threat.name, resized(turned, scale))
    return sized if sized.outline.sum() >= LEAST_PIXELS else None


def _turned(transmission: Transmission, angle: float) -> Transmission:
    planes = [Image.fromarray(np.ascontiguousarray(plane)) for plane in np.moveaxis(transmission, 2, 0)]
    bilinear = Image.Resampling.BILINEAR
    planes = [plane.rotate(angle, bilinear, expand=True, fillcolor=1) for plane in planes]
    turned = np.stack([np.asarray(plane) for plane in planes], axis=2)
    visible = turned.min(axis=2) < 1
    rows, columns = np.flatnonzero(visible.any(axis=1)), np.flatnonzero(visible.any(axis=0))
    return turned[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1] if len(rows) else turned


def resized(transmission: Transmission, scale: float) -> Transmission:
    """Scale a transmission, antialiased."""
    height, width = (max(1, round(n * scale)) for n in transmission.shape[:2])
    planes = [Image.fromarray(np.ascontiguousarray(plane)) for plane in np.moveaxis(transmission, 2, 0)]
    bilinear = Image.Resampling.BILINEAR
    stretched = [np.asarray(plane.resize((width, height), bilinear)) for plane in planes]
    return np.clip(np.stack(stretched, axis=2), 0, 1)


def find_position(threat: Threat, bag: Bag, random: np.random.Generator) -> tuple[int, int] | None:
    """Draw the upper left corner (row, column) of a threat inside the bag; None if there is no room."""
    rows, columns = np.nonzero(bag.mask)
    height, width = threat.outline.shape
    for k in random.integers(len(rows), size=TRIES).tolist():
        top, left = int(rows[k]) - height // 2, int(columns[k]) - width // 2
        if top < 0 or left < 0 or top + height > bag.mask.shape[0] or left + width > bag.mask.shape[1]:
            continue
        window = slice(top, top + height), slice(left, left + width)
        on_bag, on_things = (each[window][threat.outline].mean() for each in (bag.mask, bag.things))
        if on_bag >= ON_BAG and on_things >= ON_THINGS:
            return top, left
    return None
