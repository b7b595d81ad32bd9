"""A picture: bags on the belt, what is in them, and the beam through all of it."""

from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import numpy as np

from ..row import THREATS
from .bag import Bag, bounds_of, half_sizes, moved_to, new_bag
from .beam import ALUMINIUM, COPPER, FABRIC, PVC, STEEL, transmit
from .bodies import Body, Part, Pose, Shadow, add, cast, extent, silhouette
from .cloth import Sheet, folded, sheet, weaves
from .clutter import everyday_thing, look_alike
from .field import Field
from .looks import LOOKS, Look, belt, draw_look, paint
from .outlines import rounded
from .rotations import UPRIGHT, Rotation, random_rotation, turn
from .shapes import Rng
from .shells import closed, fabric, shell
from .solids import Patch, Prism
from .threats import threat
from .tubes import Tube

SHARES = (0.39, 0.24, 0.27, 0.49, 0.12)  # of positives that hold each class, as in SIXray

SHORTEST, LONGEST = 194, 1536  # pixels of a side

SIZES = {
    "gun": (0.58, 0.18),
    "knife": (0.95, 0.2),
    "wrench": (0.73, 0.36),
    "pliers": (0.71, 0.33),
    "scissors": (0.62, 0.38),
}


@dataclass(frozen=True)
class SynthSettings:
    """What to generate."""

    count: int = 100  # images
    seed: int = 0  # of everything; image k depends on (seed, k) alone
    positive: float = 0.1  # share of images with threats
    objects: Literal["train", "test"] = "train"  # the pool of threat and clutter shapes; disjoint
    looks: tuple[str, ...] = LOOKS  # scanners that may occur; leave one out for a held-out look
    class_shares: tuple[float, ...] = SHARES  # weight of each class among positives, in THREATS' order
    difficulty: Literal["plain", "covered", "thin", "hard"] = "plain"  # hard: covered or thin
    longest: int = LONGEST  # pixels of the longest side: what would be larger is drawn smaller
    workers: int = 1  # processes


class ThreatBox(NamedTuple):
    """One threat in a picture."""

    name: str  # of THREATS
    box: tuple[int, int, int, int]  # x, y, width, height, pixels
    mask: np.ndarray  # bool [height, width]
    bag: tuple[int, int, int, int]  # its bag's x, y, width, height, pixels
    covered: float  # share of it behind other bodies of low-bin optical depth 1 or more


class Picture(NamedTuple):
    """A rendered picture."""

    pixels: np.ndarray  # uint8 [H, W, 3], RGB
    labels: tuple[int, ...]  # 1 or 0 for each of THREATS
    boxes: list[ThreatBox]
    bags: int  # bags in the picture
    look: str


def render_bag(rng: Rng, settings: SynthSettings, positive: bool | None = None) -> Picture:
    """Render one picture; `positive` None draws it with the settings' share."""
    if positive is None:
        positive = bool(rng.random() < settings.positive)
    look = draw_look(settings.looks[rng.choice(len(settings.looks), p=_look_shares(settings.looks))], rng)
    bags, canvas = _layout(look.name, rng)
    if (share := settings.longest / max(canvas)) < 1:
        bags, canvas, look = _smaller(bags, canvas, look, share)
    picture = Field(*canvas, weaves()[rng.integers(8)])
    for bag in bags:
        for height, body in shell(bag, rng):
            add(picture, cast(body, bag.pose((0.0, 0.0, height), UPRIGHT, canvas), canvas))
        _fill(picture, bag, settings, rng)
    boxes = _featured_all(picture, bags, positive, settings, rng)
    pixels = paint(transmit(picture.depth, look.beam, rng), look, rng)
    belt(pixels, look, rng)
    held = {box.name for box in boxes}
    return Picture(pixels, tuple(int(name in held) for name in THREATS), boxes, len(bags), look.name)


def _smaller(
    bags: list[Bag], canvas: tuple[int, int], look: Look, share: float
) -> tuple[list[Bag], tuple[int, int], Look]:
    """Return a picture's bags, size and look as if it were resized: its pixels hold more, its edges less."""
    bags = [
        replace(b, centre=(b.centre[0] * share, b.centre[1] * share), scale=b.scale * share) for b in bags
    ]
    beam = replace(look.beam, photons=look.beam.photons / share**2)
    height, width = (max(round(side * share), 1) for side in canvas)
    return bags, (height, width), replace(look, edges=look.edges * share, beam=beam)


def _look_shares(looks: tuple[str, ...]) -> np.ndarray:
    shares = np.array([{"white": 0.45, "grey": 0.45, "vivid": 0.1}[name] for name in looks])
    return shares / shares.sum()


def _layout(look: str, rng: Rng) -> tuple[list[Bag], tuple[int, int]]:
    """Lay bags on the belt: the bags in place, and the picture's height and width."""
    if look != "grey" or rng.random() < 0.5:
        return _single(look, rng)
    count = int(rng.choice([2, 3, 4, 5], p=[0.5, 0.25, 0.15, 0.1]))
    scale = rng.uniform(230, 420) * (0.8 if count > 3 else 1)
    bags, x = [], 0.0
    for _ in range(count):
        bag = new_bag(rng, scale * rng.uniform(0.75, 1.1), True)
        half = half_sizes(bag)
        bags.append(moved_to(bag, (x + half[0], rng.normal(0, 0.15) * scale)))
        x += 2 * half[0] + rng.uniform(-0.08, 0.12) * scale
    margin = rng.uniform(0.0, 0.2, 4) * scale
    margin[2] += rng.uniform(0, 0.8) * scale
    return _framed(bags, margin)


def _single(look: str, rng: Rng) -> tuple[list[Bag], tuple[int, int]]:
    bag = new_bag(rng, float(np.clip(np.exp(rng.normal(6.35, 0.25)), 260, 1050)), False)
    if look == "grey":
        bag = new_bag(rng, float(np.clip(np.exp(rng.normal(6.05, 0.25)), 200, 800)), False)
        margin = rng.uniform(0.02, 0.35, 4) * half_sizes(bag).max()
    else:
        margin = rng.uniform(0.0, 0.09, 4) * half_sizes(bag).max()
    return _framed([bag], margin)


def _framed(bags: list[Bag], margin: np.ndarray) -> tuple[list[Bag], tuple[int, int]]:
    """Shift bags into a picture with margins (left, right, top, bottom) in pixels."""
    low = np.min([np.array(b.centre) - half_sizes(b) for b in bags], 0) - margin[[0, 2]]
    high = np.max([np.array(b.centre) + half_sizes(b) for b in bags], 0) + margin[[1, 3]]
    width, height = np.clip((high - low).astype(int), SHORTEST, LONGEST)
    placed = [moved_to(b, (b.centre[0] - float(low[0]), b.centre[1] - float(low[1]))) for b in bags]
    return placed, (int(height), int(width))


def _fill(picture: Field, bag: Bag, settings: SynthSettings, rng: Rng) -> None:
    """Pack a bag: fabric first, then things. Benign and positive bags draw from this one law."""
    w, h, _ = bag.size
    room, full = (w * h / 1500) ** 0.8, float(rng.random())
    if rng.random() < 0.55 * full + 0.15:  # clothes from rim to rim
        start = (int(rng.integers(512)), int(rng.integers(512)))
        cover = bag.outline * rng.uniform(0.8, 0.97, 2)
        thick, tile = rng.uniform(1, 8) * full, int(rng.integers(3))
        packed = (Part(Sheet(cover, thick, tile, start, rng.uniform(0.3, 0.9)), FABRIC),)
        add(picture, cast(packed, bag.pose((0.0, 0.0, 0.0), UPRIGHT, picture.shape), picture.shape))
    for _ in range(int(rng.poisson((1 + 9 * full) * room**0.5))):
        width, height = (np.array((w, h)) * rng.uniform(0.15, 0.75, 2)).tolist()
        thick, strength = rng.uniform(0.4, 4.0), rng.uniform(0.5, 1.2)
        make = sheet if rng.random() < 0.6 else folded
        cloth = make(rng, width, height, thick, strength)
        stuff = fabric(rng)
        body: Body = (Part(cloth, stuff),)
        if rng.random() < 0.5:
            body = (*body, Part(Tube(closed(cloth.outline, 0), rng.uniform(0.06, 0.16)), stuff.times(2)))
        lies = turn(2, rng.normal(0, 0.25)) @ turn(0, rng.normal(0, 0.2))
        pose = bag.pose(_spot(bag, extent(body, lies), rng), lies, picture.shape)
        add(picture, cast(body, pose, picture.shape))
    for _ in range(2 + int(rng.poisson(rng.uniform(1, 15) * room))):
        body, turned = everyday_thing(settings.objects, rng), _resting(rng)
        bounds = extent(body, turned)
        if (bounds[1] - bounds[0]).max() < w:
            pose = bag.pose(_spot(bag, bounds, rng), turned, picture.shape)
            add(picture, cast(body, pose, picture.shape))


def _resting(rng: Rng) -> Rotation:
    """Return how a thing lies: any turn about the ray, tilted a little, now and then anyhow."""
    if rng.random() < 0.2:
        return random_rotation(rng)
    flip = turn(0, np.pi) if rng.random() < 0.5 else UPRIGHT
    angle = rng.uniform(0, 2 * np.pi)
    if rng.random() < 0.35:  # along a side of the bag
        angle = rng.integers(4) * np.pi / 2 + rng.normal(0, 0.12)
    return turn(2, angle) @ turn(0, rng.normal(0, 0.35)) @ turn(1, rng.normal(0, 0.3)) @ flip


def _spot(bag: Bag, bounds: np.ndarray, rng: Rng) -> tuple[float, float, float]:
    """Return a place in the bag, in its frame, such that bounds [2, 2] keep within it where they can."""
    half = np.array(bag.size[:2]) * (0.42 if bag.kind in ("backpack", "pouch") else 0.47)
    low, high = -half - bounds[0], half - bounds[1]
    middle, free = (low + high) / 2, np.maximum(high - low, 0) / 2
    x, y = middle + free * rng.uniform(-1, 1, 2)
    return float(x), float(y), float(rng.uniform(-0.45, 0.45) * bag.size[2])


def _featured_all(
    picture: Field, bags: list[Bag], positive: bool, settings: SynthSettings, rng: Rng
) -> list[ThreatBox]:
    """Put the featured things in: threats in positives, look-alikes in their stead in benign ones."""
    boxes: list[ThreatBox] = []
    while positive and not boxes:
        for name in _names(settings, rng):
            box = _feature(picture, bags[rng.integers(len(bags))], name, positive, settings, rng)
            boxes += [box] if box else []
    if not positive:
        for name in _names(settings, rng):
            _feature(picture, bags[rng.integers(len(bags))], name, positive, settings, rng)
    if rng.random() < 0.5:  # positives hold benign look-alikes too
        extra = THREATS[rng.integers(len(THREATS))]
        _feature(picture, bags[rng.integers(len(bags))], extra, False, settings, rng)
    return boxes


def _names(settings: SynthSettings, rng: Rng) -> list[str]:
    """Return the classes of one bag's featured things: most often one, sometimes two or three."""
    weights = np.array(settings.class_shares, float)
    many = min(int(rng.choice([1, 2, 3], p=[0.64, 0.28, 0.08])), int((weights > 0).sum()))
    chosen = rng.choice(len(THREATS), many, replace=False, p=weights / weights.sum())
    return [THREATS[k] for k in chosen for _ in range(1 + int(rng.random() < 0.25))]


def _feature(
    picture: Field, bag: Bag, name: str, positive: bool, settings: SynthSettings, rng: Rng
) -> ThreatBox | None:
    """Put one threat, or in a benign bag its look-alike, into a bag."""
    body = threat(name, settings.objects, rng) if positive else look_alike(name, settings.objects, rng)
    hard = settings.difficulty
    if hard == "hard":
        hard = "thin" if rng.random() < 0.5 else "covered"
    seen = _featured(bag, body, name, hard == "thin", rng, picture.shape)
    if seen is None:
        return None
    shadow, shape = seen
    if hard == "covered":
        _cover(picture, bag, shape, 0.5, settings, rng)
    covered = _covered(picture, shape)
    add(picture, shadow)
    if not positive:
        return None
    h, w = shape.path.shape
    return ThreatBox(name, (shape.x, shape.y, w, h), shape.path > 0, bounds_of(bag, picture.shape), covered)


def _featured(
    bag: Bag, body: Body, name: str, thin: bool, rng: Rng, canvas: tuple[int, int]
) -> tuple[Shadow, Patch] | None:
    """Cast a threat or its look-alike where enough of it is seen; thin ones under 8 pixels at 256."""
    middle, spread = SIZES[name]
    longest = float(np.ptp(extent(body, UPRIGHT), axis=0).max())
    size = min(middle * float(np.exp(rng.normal(0, spread))), 0.85 * max(bag.size[:2]) / longest)
    for _ in range(8):
        turned = _resting(rng)
        pose = bag.pose(_spot(bag, extent(body, turned) * size, rng), turned, canvas)
        shadow = cast(body, _shrunk(pose, size), canvas)
        shape = silhouette(shadow, canvas)
        if shape is None or shape.path.sum() < 40:
            continue
        if not thin or _short_axis(shape.path > 0) * 256 / min(canvas) < 8:
            return shadow, shape
        size *= 0.85
    return None


def _shrunk(pose: Pose, size: float) -> Pose:
    return Pose(pose.rotation, pose.centre, pose.scale * size)


def _short_axis(mask: np.ndarray) -> float:
    """Return the least width over directions of a mask, in pixels."""
    y, x = np.nonzero(mask)
    angle = np.linspace(0, np.pi, 24, endpoint=False)
    spread = np.outer(np.cos(angle), x) + np.outer(np.sin(angle), y)
    return float(np.ptp(spread, axis=1).min() + 1)


def _cover(picture: Field, bag: Bag, shape: Patch, least: float, settings: SynthSettings, rng: Rng) -> None:
    """Lay dense things over a silhouette until a share of it lies behind optical depth 1."""
    dense = (STEEL.times(0.25), ALUMINIUM, PVC, COPPER.times(0.12))
    y = shape.y + shape.path.shape[0] / 2
    x = shape.x + shape.path.shape[1] / 2
    for _ in range(12):
        if _covered(picture, shape) >= least:
            return
        plate = rounded(rng.uniform(4, 12), rng.uniform(3, 9), 0.6)
        thick = rng.uniform(0.2, 0.9)
        holes = tuple(rounded(0.8, 0.8, 0.4) + rng.uniform(-2, 2, 2) for _ in range(3))
        body = (
            Part(Prism(plate, thick, holes), dense[rng.integers(4)]),
            *everyday_thing(settings.objects, rng),
        )
        near = (x + rng.normal(0, 0.25) * shape.path.shape[1], y + rng.normal(0, 0.25) * shape.path.shape[0])
        add(picture, cast(body, Pose(_resting(rng), near, bag.scale), picture.shape))


def _covered(picture: Field, shape: Patch) -> float:
    """Return the share of a silhouette behind bodies of low-bin optical depth 1 or more."""
    h, w = shape.path.shape
    behind = picture.depth[0, shape.y : shape.y + h, shape.x : shape.x + w]
    mask = shape.path > 0
    return float((behind[mask] >= 1).mean())
