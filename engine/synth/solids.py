"""Solids and the path lengths of rays through them.

A solid lives in its own frame, in cm. Seen under a rotation (object to view: x right, y down, z along
the ray) it gives a Patch: for each pixel of its window, the length of the ray inside it. Ellipsoids,
cylinders and boxes intersect analytically; a prism is its outline integrated along the projected
extrusion. Tubes, which are drawn pixel by pixel, have a module of their own.
"""

from dataclasses import dataclass
from math import sqrt
from typing import NamedTuple, Protocol

import numpy as np
from PIL import Image, ImageDraw

from .rotations import Rotation

STEEP = 0.1  # smallest cosine between a prism's axis and the ray: a plate seen edge-on stays drawable
SHIFTS = 24  # copies of an outline that a prism is swept over, at most
STEPS = np.arange(4096, dtype=np.float32)
Outline = np.ndarray  # float [n, 2], cm
Bounds = tuple[tuple[float, float, float], tuple[float, float, float]]  # low and high x, y, z, cm


class Patch(NamedTuple):
    """Path lengths of a window of the picture."""

    y: int  # first row, samples
    x: int  # first column, samples
    path: np.ndarray  # float32 [h, w], cm
    coarse: bool = False  # a sample is two pixels wide and high, not one

    def fine(self) -> "Patch":
        """Return the patch with a sample a pixel."""
        if not self.coarse:
            return self
        return Patch(2 * self.y, 2 * self.x, self.path.repeat(2, 0).repeat(2, 1))


class Dots(NamedTuple):
    """Path lengths of single pixels of the picture, which may be named more than once: their sum counts."""

    place: np.ndarray  # intp [n], row times the canvas's width plus column
    path: np.ndarray  # float32 [n], cm


class View(NamedTuple):
    """How a solid is seen."""

    rotation: Rotation  # object to view
    centre: tuple[float, float]  # x, y in pixels
    scale: float  # pixels a cm, the fan beam's magnification included
    canvas: tuple[int, int]  # height, width in pixels


class Solid(Protocol):
    """Anything that a ray can cross."""

    def bounds(self) -> Bounds:
        """Return its bounds in its own frame."""
        ...

    def seen(self, view: View) -> Patch | Dots | None:
        """Return the path lengths, or None outside the canvas."""
        ...


def window_of(
    view: View, left: float, top: float, right: float, bottom: float
) -> tuple[int, int, int, int] | None:
    """Return y0, y1, x0, x1 of the canvas around bounds given in cm from the centre."""
    (cx, cy), (height, width), scale = view.centre, view.canvas, view.scale
    x0, y0 = max(int(cx + left * scale) - 1, 0), max(int(cy + top * scale) - 1, 0)
    x1, y1 = min(int(cx + right * scale) + 2, width), min(int(cy + bottom * scale) + 2, height)
    return (y0, y1, x0, x1) if y1 > y0 and x1 > x0 else None


def ramps(
    view: View, window: tuple[int, int, int, int], along: list[tuple[float, float, float]]
) -> tuple[np.ndarray, np.ndarray]:
    """Return a u + b v + c for each (a, b, c), u and v the rays' offsets from the centre in cm, in two parts.

    The first, float32 [n, 1, w], and the second, [n, h, 1], add up to it.
    """
    y0, y1, x0, x1 = window
    a, b, c = np.array(along, np.float32).T[:, :, None]
    inverse = 1 / view.scale
    across = a * ((STEPS[: x1 - x0] + (x0 + 0.5 - view.centre[0])) * inverse)
    down = b * ((STEPS[: y1 - y0] + (y0 + 0.5 - view.centre[1])) * inverse)
    across += c
    return across[:, None, :], down[:, :, None]


def _nudged(part: float) -> float:
    """Keep a component of a direction away from zero, so that it may divide."""
    return part if abs(part) >= 1e-3 else (-1e-3 if part < 0 else 1e-3)


def _section(
    view: View, window: tuple[int, int, int, int], p: list[float], q: list[float], d: list[float]
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return where the rays p u + q v + d t cross the unit ball or circle.

    That is half the length between the two crossings, float32 [h, w], 0 outside, and the middle between
    them as two parts to add, [1, w] and [h, 1].
    """
    a, pd, qd = max(_dot(d, d), 1e-6), _dot(p, d), _dot(q, d)
    # (b^2 - ac) / a^2 = 1 / a - (p - pd/a d)^2 u^2 - ... : a positive form, its square completed
    uu, vv, uv = (
        _dot(p, p) / a - (pd / a) ** 2,
        _dot(q, q) / a - (qd / a) ** 2,
        _dot(p, q) / a - pd * qd / a**2,
    )
    across, down = ramps(view, window, [(1.0, 1.0, 0.0), (-pd / a, -qd / a, 0.0)])
    u, v = across[0], down[0]
    inside = (v * (-2 * uv)) * u
    inside += 1 / a - uu * u * u
    inside -= vv * v * v
    np.maximum(inside, 0, out=inside)
    return np.sqrt(inside, out=inside), across[1], down[1]


def _dot(a: list[float], b: list[float]) -> float:
    return sum([x * y for x, y in zip(a, b, strict=True)])


@dataclass(frozen=True)
class Ellipsoid:
    """An ellipsoid with half axes in cm."""

    radii: tuple[float, float, float]

    def bounds(self) -> Bounds:
        """Return its bounds in its own frame."""
        return _symmetric(*self.radii)

    def seen(self, view: View) -> Patch | None:
        """Return the chords: 2 sqrt(b^2 - ac) / a in the space where it is the unit ball."""
        x, y = (
            sqrt(sum((e * r) ** 2 for e, r in zip(row, self.radii, strict=True))) for row in view.rotation[:2]
        )
        window = window_of(view, -x, -y, x, y)
        if window is None:
            return None  # images of u, v and the ray in unit-ball space:
        chord = _section(
            view, window, *([e / r for e, r in zip(row, self.radii, strict=True)] for row in view.rotation)
        )[0]
        chord *= 2
        return Patch(window[0], window[2], chord)


def _symmetric(x: float, y: float, z: float) -> Bounds:
    return (-x, -y, -z), (x, y, z)


@dataclass(frozen=True)
class Cylinder:
    """A cylinder along z: half axes of its section and half its length, in cm."""

    rx: float
    ry: float
    half: float

    def bounds(self) -> Bounds:
        """Return its bounds in its own frame."""
        return _symmetric(self.rx, self.ry, self.half)

    def seen(self, view: View) -> Patch | None:
        """Return the overlap of the section's interval with the slab's."""
        r = view.rotation
        x, y = (sqrt((e[0] * self.rx) ** 2 + (e[1] * self.ry) ** 2) + abs(e[2]) * self.half for e in r[:2])
        window = window_of(view, -x, -y, x, y)
        if window is None:
            return None
        half, across, down = _section(view, window, *([e[0] / self.rx, e[1] / self.ry] for e in r))
        middle = across + down
        near, far = middle - half, np.add(middle, half, out=half)
        dz = _nudged(r[2][2])
        reach = self.half / abs(dz)
        u, v = ramps(view, window, [(-r[0][2] / dz, -r[1][2] / dz, reach)])
        slab = np.add(u[0], v[0], out=middle)
        np.minimum(far, slab, out=far)
        slab -= 2 * reach
        far -= np.maximum(near, slab, out=near)
        return Patch(window[0], window[2], np.maximum(far, 0, out=far))


@dataclass(frozen=True)
class Box:
    """A box with half sizes in cm."""

    half: tuple[float, float, float]

    def bounds(self) -> Bounds:
        """Return its bounds in its own frame."""
        return _symmetric(*self.half)

    def seen(self, view: View) -> Patch | None:
        """Return the overlap of the three slabs' intervals."""
        (ux, uy, uz), (vx, vy, vz), ray = view.rotation
        a, b, c = self.half
        x, y = abs(ux) * a + abs(uy) * b + abs(uz) * c, abs(vx) * a + abs(vy) * b + abs(vz) * c
        window = window_of(view, -x, -y, x, y)
        if window is None:
            return None
        along = []
        for u, v, w, half in zip((ux, uy, uz), (vx, vy, vz), ray, self.half, strict=True):
            inverse = 1 / _nudged(w)
            reach = half * abs(inverse)
            along += [(-u * inverse, -v * inverse, reach), (-u * inverse, -v * inverse, -reach)]
        across, down = ramps(view, window, along)
        far, near = across[0] + down[0], across[1] + down[1]
        spare = np.empty_like(far)
        for k in (2, 4):
            np.minimum(far, np.add(across[k], down[k], out=spare), out=far)
            np.maximum(near, np.add(across[k + 1], down[k + 1], out=spare), out=near)
        far -= near
        return Patch(window[0], window[2], np.maximum(far, 0, out=far))


@dataclass(frozen=True)
class Shell:
    """What an outer solid encloses and an inner one does not (same centre)."""

    outer: Ellipsoid | Cylinder | Box
    inner: Ellipsoid | Cylinder | Box

    def bounds(self) -> Bounds:
        """Return its bounds in its own frame."""
        return self.outer.bounds()

    def seen(self, view: View) -> Patch | None:
        """Return the difference of the two path lengths."""
        outer, inner = self.outer.seen(view), self.inner.seen(view)
        if outer is None or inner is None:
            return outer
        path = outer.path
        y, x = inner.y - outer.y, inner.x - outer.x
        hole = path[y : y + inner.path.shape[0], x : x + inner.path.shape[1]]
        hole -= inner.path[: hole.shape[0], : hole.shape[1]]
        return Patch(outer.y, outer.x, np.maximum(path, 0, out=path))


@dataclass(frozen=True)
class Prism:
    """An outline with holes in the xy plane, extruded along z."""

    outline: Outline
    half: float  # half the height, cm
    holes: tuple[Outline, ...] = ()

    def bounds(self) -> Bounds:
        """Return its bounds in its own frame."""
        (x0, y0), (x1, y1) = self.outline.min(0).tolist(), self.outline.max(0).tolist()
        return (x0, y0, -self.half), (x1, y1, self.half)

    def seen(self, view: View) -> Patch | None:
        """Return the outline's mask summed over shifts along the projected axis."""
        outer = view.rotation.flat(self.outline)
        drift = [row[2] * self.half for row in view.rotation[:2]]
        (x0, y0), (x1, y1) = outer.min(0).tolist(), outer.max(0).tolist()
        x, y = abs(drift[0]), abs(drift[1])
        window = window_of(view, x0 - x, y0 - y, x1 + x, y1 + y)
        if window is None:
            return None
        mask = drawn([outer, *(view.rotation.flat(hole) for hole in self.holes)], view, window)
        path = _swept(mask, drift[0] * view.scale, drift[1] * view.scale)
        path *= np.float32(2 * self.half / max(abs(view.rotation[2][2]), STEEP) / 255)
        return Patch(window[0], window[2], path)


def drawn(rings: list[np.ndarray], view: View, window: tuple[int, int, int, int]) -> np.ndarray:
    """Rasterize rings (cm, view plane; the first filled, the others cut out): uint8 coverage, 255 full.

    Small ones are drawn finer and averaged; a large one has its edge pixels at half.
    """
    y0, y1, x0, x1 = window
    pixels = (y1 - y0) * (x1 - x0)
    fine = 3 if pixels < 1_500 else 2 if pixels < 20_000 else 1
    sheet = Image.new("L", ((x1 - x0) * fine, (y1 - y0) * fine))
    pen = ImageDraw.Draw(sheet)
    shift = ((view.centre[0] - x0) * fine - 0.5, (view.centre[1] - y0) * fine - 0.5)
    for index, ring in enumerate(rings):
        points = (ring * (view.scale * fine) + shift).ravel().tolist()
        pen.polygon(points, fill=0 if index else 255, outline=128 if fine == 1 else None)
    return np.asarray(sheet.reduce(fine) if fine > 1 else sheet)


def _swept(mask: np.ndarray, dx: float, dy: float) -> np.ndarray:
    """Average a mask over shifts from -(dx, dy) to (dx, dy) pixels: float32."""
    steps = min(int(2 * max(abs(dx), abs(dy))) + 1, SHIFTS)
    if steps == 1:
        return mask.astype(np.float32)
    height, width = mask.shape
    total = np.zeros(mask.shape, np.uint16)
    for step in range(steps):
        part = (step + 0.5) * 2 / steps - 1
        x, y = round(part * dx), round(part * dy)
        if abs(x) >= width or abs(y) >= height:
            continue
        into = total[max(y, 0) : height + min(y, 0), max(x, 0) : width + min(x, 0)]
        into += mask[max(-y, 0) : height + min(-y, 0), max(-x, 0) : width + min(-x, 0)]
    return total * np.float32(1 / steps)
