"""What a bag itself is made of: cloth and folds, seams and zips, frames, rails, wheels, straps."""

import numpy as np

from .bag import Bag
from .beam import ALUMINIUM, COPPER, FABRIC, LEATHER, ORGANIC, PVC, SALTED, STEEL, ZINC, Material
from .bodies import Body, Part
from .cloth import Sheet, blob, sheet
from .outlines import Outline, circle, curve, ribbon, rounded
from .rotations import Rotation, random_rotation, turn
from .shapes import ALONG_X, Rng, pick, space, uniform, wandering
from .solids import Box, Cylinder, Prism, Shell
from .tubes import Tube, strands

Layer = tuple[float, Body]  # a height in the bag, cm, and what lies there


def shell(bag: Bag, rng: Rng) -> list[Layer]:
    """Return everything of the bag but its contents, in layers: each is seen as large as it is near."""
    depth, stuff = bag.size[2], fabric(rng)
    layers = _faces(bag, stuff, rng) + _frames(bag, stuff, rng)
    layers.append((uniform(rng, -0.3, 0.3) * depth, _folds(bag, stuff, rng)))
    layers.append((uniform(rng, -0.5, 0.5) * depth, _fittings(bag, rng)))
    layers.append((0.0, _straps(bag, rng)))
    if bag.kind == "trolley":
        layers += [(-depth / 2 + 1, _rails(bag, rng)), (-depth / 4, _wheels(bag, rng))]
    if bag.kind in ("trolley", "case") or rng.random() < 0.2:
        layers.append((-depth / 2, _screws(bag, rng)))
    return [layer for layer in layers if layer[1]]


def fabric(rng: Rng) -> Material:
    """Return a bag's cloth or board: plain, or coated, which looks green."""
    return pick(rng, FABRIC, FABRIC, SALTED.times(0.3), PVC.times(0.16), ORGANIC.times(0.5))


def closed(outline: Outline, z: float) -> np.ndarray:
    """Return an outline as a closed path in space at a height z."""
    return space(np.concatenate([outline, outline[:1]]), z)


def _faces(bag: Bag, stuff: Material, rng: Rng) -> list[Layer]:
    """Front and back, pockets, and the pads of a back or a base."""
    w, h, d = bag.size
    soft = bag.kind in ("backpack", "pouch", "handbag")
    strength = uniform(rng, 0.6, 1.1) if soft else uniform(rng, 0.1, 0.5)
    thick = uniform(rng, 0.12, 0.4) if bag.kind == "pouch" else uniform(rng, 0.25, 0.8)
    layers: list[Layer] = []
    for z in (-d / 2, d / 2):
        outline = bag.outline * rng.uniform(0.96, 1.0, 2)
        start = (int(rng.integers(512)), int(rng.integers(512)))
        parts = [Part(Sheet(outline, thick, int(rng.integers(3)), start, strength), stuff)]
        for _ in range(int(rng.integers(0, 3))):
            pocket = sheet(
                rng, w * uniform(rng, 0.3, 0.85), h * uniform(rng, 0.3, 0.8), uniform(rng, 0.1, 0.4), strength
            )
            at = (uniform(rng, -0.15, 0.15) * w, uniform(rng, -0.15, 0.15) * h, 0.0)
            parts.append(Part(pocket, stuff, at))
            parts.append(Part(Tube(closed(pocket.outline, 0), uniform(rng, 0.05, 0.13)), stuff.times(2), at))
        layers.append((z, tuple(parts)))
    if rng.random() < (0.6 if bag.kind == "backpack" else 0.2):
        foam = pick(rng, SALTED.times(0.35), PVC.times(0.3), ORGANIC.times(0.5))
        count = int(rng.integers(1, 4))
        pads = []
        for k in range(count):
            pad = blob(rng, w * 0.8 / count, h * uniform(rng, 0.3, 0.6), 0.04)
            at = ((k - (count - 1) / 2) * w * 0.85 / count, uniform(rng, -0.1, 0.1) * h, 0.0)
            pads.append(Part(Prism(pad, uniform(rng, 0.3, 0.9)), foam, at))
        layers.append((-d / 2, tuple(pads)))
    return layers


def _frames(bag: Bag, stuff: Material, rng: Rng) -> list[Layer]:
    """Zips, piping and frame wires that run round the bag, each at a height of its own."""
    d, hard = bag.size[2], bag.kind in ("trolley", "case")
    layers: list[Layer] = []
    for _ in range(int(rng.integers(2, 7))):
        ring = bag.outline * rng.uniform(0.93, 1.0, 2)
        if not hard:
            angle = np.linspace(0, 2 * np.pi, len(ring), endpoint=False)[:, None]
            ring = ring * (1 + 0.015 * np.sin(angle * rng.integers(2, 7) + uniform(rng, 0, 6)))
        material = (STEEL.times(0.7), COPPER.times(0.2), SALTED, STEEL.times(0.25), PVC, stuff.times(2.5))[
            rng.choice(
                6, p=[0.2, 0.08, 0.16, 0.12, 0.22, 0.22] if hard else [0.01, 0.08, 0.19, 0.06, 0.2, 0.46]
            )
        ]
        radius = uniform(rng, 0.05, 0.13) if material.low > 2 else uniform(rng, 0.07, 0.22)
        layers.append((uniform(rng, -d, d) / 2, (Part(Tube(closed(ring, 0), radius), material),)))
    if hard and rng.random() < 0.6:  # a rim of board, or of two shells
        rim = bag.outline * 0.985
        wall = stuff.times(pick(rng, 0.5, 1.0))
        band = ribbon(np.concatenate([rim, rim[:1]]), np.full(len(rim) + 1, uniform(rng, 0.3, 1.1)))
        layers.append((uniform(rng, -0.4, 0.4) * d, (Part(Prism(band, uniform(rng, 0.4, 1.4)), wall),)))
    if bag.kind == "trolley" and rng.random() < 0.35:  # a ribbed hard shell
        w, h, _ = bag.size
        lines = np.arange(-0.45, 0.45, uniform(rng, 0.03, 0.09)) * h
        ribs = [np.array([(-w * 0.46, y, 0.0), (w * 0.46, y, 0.0)]) for y in lines]
        plastic = ORGANIC.times(uniform(rng, 0.5, 1.2))
        layers.append((d / 2, (Part(strands(ribs, uniform(rng, 0.08, 0.25)), plastic),)))
    return layers


def _folds(bag: Bag, stuff: Material, rng: Rng) -> Body:
    """Folds, quilting and inner seams: faint lines, many over a soft bag."""
    w, h, _ = bag.size
    soft = bag.kind in ("backpack", "pouch", "handbag")
    parts: list[Part] = []
    for _ in range(int(rng.integers(1, 4))):
        paths = []
        for _ in range(int(rng.integers(5, 22) if soft else rng.integers(2, 9))):
            n = len(bag.outline)
            if rng.random() < 0.6:  # along the rim
                step = int(rng.integers(n // 24 + 1, n // 9 + 2))
                along = bag.outline[(rng.integers(n) + np.arange(5) * step) % n]
                path = along * uniform(rng, 0.6, 1.0) + rng.normal(0, 0.012, (5, 2)) * (w, h)
            else:
                start, far = rng.uniform(-0.46, 0.46, (2, 2)) * (w, h)
                path = start + (far - start) * np.linspace(0, uniform(rng, 0.2, 1), 4)[:, None]
                path += rng.normal(0, 0.02, (4, 2)) * (w, h)
            paths.append(space(curve(path, 6)))
        parts.append(Part(strands(paths, uniform(rng, 0.04, 0.12)), stuff.times(uniform(rng, 1, 3.5))))
    return tuple(parts)


def _rails(bag: Bag, rng: Rng) -> Body:
    """Return the rails of a pull-out handle, telescoped, with its grip and cross bars."""
    w, h, _ = bag.size
    gap, half = h * uniform(rng, 0.1, 0.28), uniform(rng, 0.5, 1.3)
    metal = (
        ALUMINIUM.times(uniform(rng, 0.7, 1.5)) if rng.random() < 0.7 else STEEL.times(uniform(rng, 0.1, 0.3))
    )
    wall, long = uniform(rng, 0.1, 0.2), w * uniform(rng, 0.36, 0.48)
    parts: list[Part] = []
    for side in (1, -1):
        outer = Shell(Box((long, half, 0.7)), Box((long, half - wall, 0.5)))
        parts.append(Part(outer, metal, (w * 0.47 - long, side * gap, 0)))
        inner = Shell(Box((long * 0.9, half * 0.7, 0.45)), Box((long * 0.9, half * 0.7 - wall, 0.3)))
        if rng.random() < 0.7:
            parts.append(Part(inner, metal, (w * 0.47 - long * 0.9, side * gap, 0)))
        if rng.random() < 0.5:
            parts.append(
                Part(Prism(rounded(half * 2.6, half * 2.6, 0.4), 0.7), ORGANIC, (w * 0.44, side * gap, 0))
            )
    parts.append(Part(Box((1.1, gap, 1.0)), ORGANIC, (w * 0.47, 0, 0)))
    if rng.random() < 0.5:
        parts.append(Part(Box((0.5, gap, 0.15)), metal, (w * 0.47 - 1.9 * long, 0, 0)))
    return tuple(parts)


def _wheels(bag: Bag, rng: Rng) -> Body:
    """Wheels with their axles and brackets at one end, feet or two more at the other."""
    w, h, _ = bag.size
    radius, swivel = uniform(rng, 1.6, 2.9), uniform(rng, 0, np.pi)
    tyre = pick(rng, PVC.times(1.2), ORGANIC.times(1.3), SALTED.times(1.3))
    turns: Rotation = turn(0, swivel) if rng.random() < 0.5 else turn(1, swivel)
    ends = (1, -1) if rng.random() < 0.3 else (pick(rng, -1, 1),)
    parts: list[Part] = []
    for end in ends:
        for side in (1, -1):
            at = (end * (w / 2 + uniform(rng, -0.5, 0.8)), side * (h / 2 - 2.5), 0.0)
            if rng.random() < 0.3:
                turns = turn(2, uniform(rng, 0, np.pi)) @ turn(0, np.pi / 2)
            wheel = Shell(Cylinder(radius, radius, 1.1), Cylinder(radius * 0.55, radius * 0.55, 1.1))
            parts += [
                Part(wheel, tyre, at, turns),
                Part(Cylinder(radius * 0.9, radius * 0.9, 0.5), ORGANIC, at, turns),
                Part(Cylinder(0.4, 0.4, 1.9), STEEL, at, turns),
                Part(Box((1.2, 1.6, 0.12)), STEEL.times(0.5), (at[0] - end * 1.3, at[1], 0)),
                Part(Prism(rounded(4.5, 4.5, 1.5), 0.4), ORGANIC, (at[0] - end * 1.8, at[1], 0)),
            ]
    return tuple(parts)


def _screws(bag: Bag, rng: Rng) -> Body:
    """Screws and rivets: in rows along the rails and the rim, some anywhere."""
    w, h, _ = bag.size
    radius, metal = uniform(rng, 0.15, 0.35), pick(rng, STEEL, STEEL.times(0.6), ALUMINIUM.times(2))
    row, count = uniform(rng, 0.12, 0.48) * h, int(rng.integers(3, 9))
    places = [(x, side * row) for x in np.linspace(-0.45, 0.45, count) * w for side in (1, -1)]
    places += [
        (uniform(rng, -0.48, 0.48) * w, uniform(rng, -0.48, 0.48) * h) for _ in range(int(rng.integers(0, 7)))
    ]
    standing = turn(0, uniform(rng, 0.5, 1.5))
    parts = []
    for x, y in places:
        if rng.random() < 0.75:
            solid = (
                Cylinder(radius, radius, 0.3)
                if rng.random() < 0.6
                else Cylinder(radius * 0.5, radius * 0.5, 0.8)
            )
            parts.append(Part(solid, metal, (x + rng.normal(0, 0.3), y, 0.0), standing))
    return tuple(parts)


def _fittings(bag: Bag, rng: Rng) -> Body:
    """Zip pulls in pairs, D-rings, snap hooks, buckles and press studs along the rim."""
    parts: list[Part] = []
    for _ in range(int(rng.integers(2, 9))):
        x, y = (bag.outline[rng.integers(len(bag.outline))] * uniform(rng, 0.75, 1.04)).tolist()
        kind = int(rng.integers(6))
        metal = pick(rng, ZINC.times(0.7), STEEL.times(0.7), COPPER.times(0.6))
        if kind < 3:
            for _ in range(int(rng.integers(1, 3))):
                at, spin = (x + rng.normal(0, 1), y + rng.normal(0, 1), 0.0), _lying(rng)
                parts += _zip_pull(metal, at, spin, rng)
        else:
            parts += _buckle(kind, metal, (x, y, 0.0), _lying(rng), rng)
    return tuple(parts)


def _lying(rng: Rng) -> Rotation:
    return (
        random_rotation(rng)
        if rng.random() < 0.25
        else turn(2, uniform(rng, 0, 6.28)) @ turn(0, rng.normal(0, 0.5))
    )


def _zip_pull(metal: Material, at: tuple[float, float, float], spin: Rotation, rng: Rng) -> list[Part]:
    """Return a slider and its tab with a hole."""
    long, wide = uniform(rng, 1.8, 3.6), uniform(rng, 0.6, 1.0)
    hole = rounded(wide * 0.6, long * 0.35, wide * 0.3) + np.array((0, long * 0.22))
    tab = Prism(rounded(wide, long, wide * 0.45), 0.1, (hole,))
    return [
        Part(tab, metal, at, spin),
        Part(Box((0.45, 0.4, 0.3)), metal, spin_shift(at, spin, -long * 0.55), spin),
    ]


def spin_shift(at: tuple[float, float, float], spin: Rotation, along: float) -> tuple[float, float, float]:
    """Return a place moved along the y axis of something that is turned."""
    x, y, z = spin.of((0.0, along, 0.0))
    return at[0] + x, at[1] + y, at[2] + z


def _buckle(
    kind: int, metal: Material, at: tuple[float, float, float], spin: Rotation, rng: Rng
) -> list[Part]:
    size = uniform(rng, 1.0, 2.6)
    if kind == 3:  # a D-ring or a ladder
        bar = np.array([(-size / 2, 0, 0), (size / 2, 0, 0.0)])
        ring = closed(rounded(size, size * uniform(rng, 0.7, 1.4), 0.4), 0)
        return [Part(strands([ring, bar], uniform(rng, 0.1, 0.18)), metal, at, spin)]
    if kind == 4:  # a plastic clasp
        frame = Prism(rounded(size * 1.4, size, 0.3), 0.35, (rounded(size * 0.5, size * 0.6, 0.1),))
        return [Part(frame, pick(rng, PVC, SALTED, ORGANIC.times(1.2)), at, spin)]
    ring = Prism(circle(0, 0, size * 0.3), 0.12, (circle(0, 0, size * 0.17, 12),))
    return [Part(ring, metal, at, spin)]


def _straps(bag: Bag, rng: Rng) -> Body:
    """Return a carrying handle, and loose straps outside the outline."""
    w, h, _ = bag.size
    parts: list[Part] = []
    webbing = pick(rng, FABRIC.times(1.5), PVC.times(0.3), SALTED.times(0.4))
    if bag.kind in ("handbag", "trolley", "case") and rng.random() < 0.75:
        reach, half = h * uniform(rng, 0.06, 0.4), w * uniform(rng, 0.1, 0.28)
        top = curve(
            np.array(
                [(-half, -h / 2), (-half * 0.9, -h / 2 - reach * 0.7), (0, -h / 2 - reach),
                 (half * 0.9, -h / 2 - reach * 0.7), (half, -h / 2)]
            )
        )  # fmt: skip
        if rng.random() < 0.5:
            parts.append(
                Part(Tube(space(top), uniform(rng, 0.3, 0.8)), pick(rng, LEATHER, PVC.times(0.6), FABRIC))
            )
        else:
            parts.append(Part(Prism(ribbon(top, np.full(len(top), uniform(rng, 0.6, 1.6))), 0.12), webbing))
    if bag.kind in ("backpack", "handbag", "pouch"):
        for _ in range(int(rng.integers(0, 4))):
            path = wandering(rng, int(rng.integers(4, 10)), w * 0.12, w)
            start = bag.outline[rng.integers(len(bag.outline))] * 0.95
            band = ribbon(path[:, :2] * 0.8 + start, np.full(len(path), uniform(rng, 0.5, 2.2)))
            parts.append(Part(Prism(band, uniform(rng, 0.05, 0.15)), webbing))
            if rng.random() < 0.5:
                stitches = path * 0.8 + (*start, 0.0)
                parts.append(Part(Tube(stitches, 0.06), webbing.times(2)))
    if bag.kind in ("trolley", "case") and rng.random() < 0.3:  # straps that hold clothes down
        for side in (1, -1):
            strap = Prism(ribbon(np.array([(-w * 0.4, side * h * 0.4), (0.0, 0.0)]), np.full(2, 1.2)), 0.08)
            parts.append(Part(strap, webbing))
        parts.append(Part(Cylinder(0.5, 0.5, 1.5), PVC, (0, 0, 0), ALONG_X))
    return tuple(parts)
