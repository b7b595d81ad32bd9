"""Solids and the path lengths of rays through them.

A solid lives in its own frame, in cm. Seen under a rotation (object to view: x right, y down, z along
the ray) it gives a Patch: for each pixel of its window, the length of the ray inside it. Ellipsoids,
cylinders and boxes intersect analytically; a prism is its outline integrated along the projected
extrusion; a tube is the arc length along its path, spread over a disc (for a straight tube this is
the chord 2 sqrt(r^2 - d^2) over the sine of the angle to the ray, exactly).
"""

from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
from PIL import Image, ImageDraw

STEEP = 0.1  # smallest cosine between a prism's axis and the ray: a plate seen edge-on stays drawable
Outline = np.ndarray  # float [n, 2], cm


class Patch(NamedTuple):
    """Path lengths of a window of the picture."""

    y: int  # first row, pixels
    x: int  # first column, pixels
    path: np.ndarray  # float32 [h, w], cm


class View(NamedTuple):
    """How a solid is seen."""

    rotation: np.ndarray  # float [3, 3], object to view
    centre: tuple[float, float]  # x, y in pixels
    scale: float  # pixels a cm, the fan beam's magnification included
    canvas: tuple[int, int]  # height, width in pixels


class Solid(Protocol):
    """Anything that a ray can cross."""

    def extent(self, rotation: np.ndarray) -> np.ndarray:
        """Return its bounds under a rotation: float [2, 2], low and high x, y in cm."""
        ...

    def seen(self, view: View) -> Patch | None:
        """Return the path lengths, or None outside the canvas."""
        ...


def window_of(view: View, bounds: np.ndarray) -> tuple[int, int, int, int] | None:
    """Return y0, y1, x0, x1 of the canvas around bounds [2, 2] given in cm from the centre."""
    (cx, cy), (height, width), scale = view.centre, view.canvas, view.scale
    x0, y0 = int(cx + bounds[0, 0] * scale) - 2, int(cy + bounds[0, 1] * scale) - 2
    x1, y1 = int(cx + bounds[1, 0] * scale) + 3, int(cy + bounds[1, 1] * scale) + 3
    x0, y0, x1, y1 = max(x0, 0), max(y0, 0), min(x1, width), min(y1, height)
    return (y0, y1, x0, x1) if y1 > y0 and x1 > x0 else None


def _symmetric(half: np.ndarray) -> np.ndarray:
    return np.stack([-half, half])


def rays(view: View, window: tuple[int, int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return the rays' offsets from the centre in cm: u [1, w], v [h, 1]."""
    y0, y1, x0, x1 = window
    u = (np.arange(x0, x1, dtype=np.float32) + np.float32(0.5 - view.centre[0])) / np.float32(view.scale)
    v = (np.arange(y0, y1, dtype=np.float32) + np.float32(0.5 - view.centre[1])) / np.float32(view.scale)
    return u[None, :], v[:, None]


def _nudged(direction: np.ndarray) -> np.ndarray:
    """Keep a direction's components away from zero, so that they may divide."""
    return np.where(np.abs(direction) < 1e-3, np.where(direction < 0, -1e-3, 1e-3), direction)


@dataclass(frozen=True)
class Ellipsoid:
    """An ellipsoid with half axes in cm."""

    radii: tuple[float, float, float]

    def extent(self, rotation: np.ndarray) -> np.ndarray:
        """Return its bounds under a rotation."""
        return _symmetric(np.sqrt(((rotation[:2] * self.radii) ** 2).sum(1)))

    def seen(self, view: View) -> Patch | None:
        """Return the chords: 2 sqrt(b^2 - ac) / a in the space where it is the unit ball."""
        radii = np.array(self.radii)
        window = window_of(view, self.extent(view.rotation))
        if window is None:
            return None
        u, v = rays(view, window)
        p, q, d = view.rotation / radii  # images of u, v and the ray in unit-ball space
        a, pd, qd = d @ d, p @ d, q @ d
        uu, uv, vv = pd * pd - a * (p @ p), pd * qd - a * (p @ q), qd * qd - a * (q @ q)
        inside = np.float32(uu) * u * u + np.float32(a) + np.float32(vv) * v * v + np.float32(2 * uv) * u * v
        chord = np.sqrt(np.maximum(inside, 0, out=inside), out=inside)
        chord *= np.float32(2 / a)
        return Patch(window[0], window[2], chord)


@dataclass(frozen=True)
class Cylinder:
    """A cylinder along z: half axes of its section and half its length, in cm."""

    rx: float
    ry: float
    half: float

    def extent(self, rotation: np.ndarray) -> np.ndarray:
        """Return its bounds under a rotation."""
        r = rotation[:2]
        section = np.sqrt((r[:, 0] * self.rx) ** 2 + (r[:, 1] * self.ry) ** 2)
        return _symmetric(section + np.abs(r[:, 2]) * self.half)

    def seen(self, view: View) -> Patch | None:
        """Return the overlap of the section's interval with the slab's."""
        r = view.rotation
        window = window_of(view, self.extent(r))
        if window is None:
            return None
        u, v = rays(view, window)
        p, q, d = r[:, :2] / (self.rx, self.ry)
        a, pd, qd = max(d @ d, 1e-6), p @ d, q @ d
        b = np.float32(pd) * u + np.float32(qd) * v
        c = np.float32(p @ p) * u * u + np.float32(2 * (p @ q)) * u * v + np.float32(q @ q) * v * v - 1
        inside = b * b - np.float32(a) * c
        root = np.sqrt(np.maximum(inside, 0))
        dz = float(_nudged(r[2:, 2])[0])
        z = np.float32(r[0, 2]) * u + np.float32(r[1, 2]) * v
        middle, reach = -z / np.float32(dz), np.float32(self.half / abs(dz))
        far = np.minimum((root - b) / np.float32(a), middle + reach)
        near = np.maximum((-root - b) / np.float32(a), middle - reach)
        path = np.where(inside > 0, np.maximum(far - near, 0), 0).astype(np.float32)
        return Patch(window[0], window[2], path)


@dataclass(frozen=True)
class Box:
    """A box with half sizes in cm."""

    half: tuple[float, float, float]

    def extent(self, rotation: np.ndarray) -> np.ndarray:
        """Return its bounds under a rotation."""
        return _symmetric(np.abs(rotation[:2]) @ np.array(self.half))

    def seen(self, view: View) -> Patch | None:
        """Return the overlap of the three slabs' intervals."""
        half = np.array(self.half)
        window = window_of(view, self.extent(view.rotation))
        if window is None:
            return None
        u, v = rays(view, window)
        direction = _nudged(view.rotation[2])
        far, near = np.float32(np.inf), np.float32(-np.inf)
        for axis in range(3):
            inverse = 1 / direction[axis]
            along_u, along_v = view.rotation[:2, axis] * -inverse
            middle = np.float32(along_u) * u + np.float32(along_v) * v
            reach = np.float32(half[axis] * abs(inverse))
            far, near = np.minimum(far, middle + reach), np.maximum(near, middle - reach)
        path = np.maximum(far - near, 0)
        return Patch(window[0], window[2], path)


@dataclass(frozen=True)
class Shell:
    """What an outer solid encloses and an inner one does not (same centre)."""

    outer: Solid
    inner: Solid

    def extent(self, rotation: np.ndarray) -> np.ndarray:
        """Return its bounds under a rotation."""
        return self.outer.extent(rotation)

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

    def extent(self, rotation: np.ndarray) -> np.ndarray:
        """Return its bounds under a rotation."""
        ring = self.outline @ rotation[:2, :2].T
        return np.stack([ring.min(0), ring.max(0)]) + _symmetric(np.abs(rotation[:2, 2]) * self.half)

    def seen(self, view: View) -> Patch | None:
        """Return the outline's mask summed over shifts along the projected axis."""
        plane, axis = view.rotation[:2, :2], view.rotation[:2, 2]
        cosine = max(abs(view.rotation[2, 2]), STEEP)
        drift = axis * self.half
        window = window_of(view, self.extent(view.rotation))
        if window is None:
            return None
        rings = [ring @ plane.T for ring in (self.outline, *self.holes)]
        mask = drawn(rings, view, window)
        path = _swept(mask, drift * view.scale)
        path *= np.float32(2 * self.half / cosine)
        return Patch(window[0], window[2], path)


def drawn(rings: list[np.ndarray], view: View, window: tuple[int, int, int, int]) -> np.ndarray:
    """Rasterize rings (cm, view plane; the first filled, the others cut out): float32 coverage."""
    y0, y1, x0, x1 = window
    fine = 3 if (y1 - y0) * (x1 - x0) < 60_000 else 2
    sheet = Image.new("L", ((x1 - x0) * fine, (y1 - y0) * fine))
    pen = ImageDraw.Draw(sheet)
    shift = np.array([view.centre[0] - x0, view.centre[1] - y0])
    for index, ring in enumerate(rings):
        points = ((ring * view.scale + shift) * fine - 0.5).ravel().tolist()
        pen.polygon(points, fill=0 if index else 255)
    return np.asarray(sheet.reduce(fine), np.float32) / np.float32(255)


def _swept(mask: np.ndarray, drift: np.ndarray) -> np.ndarray:
    """Average a mask over shifts from -drift to +drift (pixels x, y)."""
    steps = min(int(2 * np.abs(drift).max()) + 1, 48)
    if steps == 1:
        return mask
    height, width = mask.shape
    total = np.zeros_like(mask)
    for part in (np.arange(steps) + 0.5) * 2 / steps - 1:
        dx, dy = round(float(part * drift[0])), round(float(part * drift[1]))
        if abs(dx) >= width or abs(dy) >= height:
            continue
        into = total[max(dy, 0) : height + min(dy, 0), max(dx, 0) : width + min(dx, 0)]
        into += mask[max(-dy, 0) : height + min(-dy, 0), max(-dx, 0) : width + min(-dx, 0)]
    total /= np.float32(steps)
    return total


@dataclass(frozen=True)
class Tube:
    """A round wire along a path: float [n, 3] points and the radius, cm."""

    path: np.ndarray
    radius: float

    def extent(self, rotation: np.ndarray) -> np.ndarray:
        """Return its bounds under a rotation."""
        points = self.path @ rotation[:2].T
        return np.stack([points.min(0), points.max(0)]) + _symmetric(np.full(2, self.radius))

    def seen(self, view: View) -> Patch | None:
        """Return the arc length a pixel, spread over the wire's disc."""
        window = window_of(view, self.extent(view.rotation))
        if window is None:
            return None
        points = self.path @ view.rotation.T
        y0, y1, x0, x1 = window
        lengths, middles = _pieces(points, 0.8 / view.scale)
        middles = middles * view.scale + (view.centre[0] - x0 - 0.5, view.centre[1] - y0 - 0.5)
        density = _splat(middles, lengths, (y1 - y0, x1 - x0))
        return Patch(y0, x0, _disc_sum(density, self.radius * view.scale))


def _pieces(points: np.ndarray, step: float) -> tuple[np.ndarray, np.ndarray]:
    """Cut a polyline into pieces about a step long in projection: lengths [m] (3-D), middles [m, 2]."""
    legs = np.diff(points, axis=0)
    counts = np.maximum(np.ceil(np.hypot(legs[:, 0], legs[:, 1]) / step), 1).astype(int)
    lengths = np.repeat(np.sqrt((legs**2).sum(1)) / counts, counts)
    index = np.repeat(np.arange(len(legs)), counts)
    first = np.repeat(np.cumsum(counts) - counts, counts)
    share = (np.arange(len(index)) - first + 0.5) / counts[index]
    return lengths, points[index, :2] + legs[index, :2] * share[:, None]


def _splat(middles: np.ndarray, weights: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Spread weights bilinearly over a grid [h, w]; what falls outside is dropped."""
    height, width = shape
    corner = np.floor(middles).astype(int)
    share = middles - corner
    keep = (corner >= 0).all(1) & (corner[:, 0] < width - 1) & (corner[:, 1] < height - 1)
    (x, y), (fx, fy), w = corner[keep].T, share[keep].T, weights[keep]
    flat = y * width + x
    where = np.concatenate([flat, flat + 1, flat + width, flat + width + 1])
    amount = np.concatenate([(1 - fx) * (1 - fy), fx * (1 - fy), (1 - fx) * fy, fx * fy]) * np.tile(w, 4)
    return np.bincount(where, amount, height * width).reshape(height, width).astype(np.float32)


def _disc_sum(density: np.ndarray, radius: float) -> np.ndarray:
    """Convolve with a disc of this radius in pixels, by rows; below a pixel by its area alone."""
    if radius < 0.8:
        return density * np.float32(np.pi * radius * radius)
    reach = int(radius)
    height, width = density.shape
    sums = np.zeros((height, width + 2 * reach + 1), np.float32)
    np.cumsum(density, axis=1, out=sums[:, reach + 1 : reach + 1 + width])
    sums[:, reach + 1 + width :] = sums[:, reach + width : reach + width + 1]
    total = np.zeros_like(density)
    area = 0
    for dy in range(-reach, reach + 1):
        half = int(np.sqrt(max(radius * radius - dy * dy, 0)))
        area += 2 * half + 1
        row = sums[max(-dy, 0) : height + min(-dy, 0)]
        left = reach - half
        right = reach + half + 1
        into = total[max(dy, 0) : height + min(dy, 0)]
        into += row[:, right : right + width]
        into -= row[:, left : left + width]
    total *= np.float32(np.pi * radius * radius / area)
    return np.maximum(total, 0, out=total)


def turn(axis: int, angle: float) -> np.ndarray:
    """Return the rotation matrix about x, y or z (0, 1, 2) by an angle in radians."""
    c, s = np.cos(angle), np.sin(angle)
    i, j = (axis + 1) % 3, (axis + 2) % 3
    matrix = np.eye(3)
    matrix[i, i] = matrix[j, j] = c
    matrix[i, j], matrix[j, i] = -s, s
    return matrix


def random_rotation(rng: np.random.Generator) -> np.ndarray:
    """Return a rotation uniform over SO(3) (a random unit quaternion)."""
    w, x, y, z = (q := rng.standard_normal(4)) / np.sqrt(q @ q)
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)],
            [2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)],
            [2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)],
        ]
    )


def curve(points: np.ndarray, each: int = 6) -> np.ndarray:
    """Return a Catmull-Rom curve through points [n, d], with this many points a leg."""
    p = np.concatenate([2 * points[:1] - points[1:2], points, 2 * points[-1:] - points[-2:-1]])
    t = (np.arange(each) / each)[:, None, None]
    a, b, c, d = p[:-3], p[1:-2], p[2:-1], p[3:]
    legs = b + 0.5 * t * (c - a + t * (2 * a - 5 * b + 4 * c - d + t * (3 * (b - c) + d - a)))
    return np.concatenate([legs.transpose(1, 0, 2).reshape(-1, points.shape[1]), points[-1:]])


def ribbon(path: np.ndarray, half_widths: np.ndarray) -> Outline:
    """Return the outline of a band of varying half width (cm) around a path [n, 2]."""
    ahead = np.gradient(path, axis=0)
    normal = np.stack([-ahead[:, 1], ahead[:, 0]], 1)
    normal /= np.maximum(np.sqrt((normal**2).sum(1, keepdims=True)), 1e-9)
    side = normal * half_widths[:, None]
    return np.concatenate([path + side, (path - side)[::-1]])


def circle(x: float, y: float, radius: float, points: int = 24, squash: float = 1.0) -> Outline:
    """Return a circle's outline, its y axis squashed."""
    angle = np.arange(points) * (2 * np.pi / points)
    return np.stack([x + radius * np.cos(angle), y + squash * radius * np.sin(angle)], 1)


def rounded(width: float, height: float, corner: float, each: int = 6) -> Outline:
    """Return a rectangle's outline with round corners, centred, sizes in cm."""
    corner = min(corner, width / 2, height / 2)
    angle = np.linspace(0, np.pi / 2, each)
    arc = np.stack([np.cos(angle), np.sin(angle)], 1) * corner
    quarter = [(1, 1), (-1, 1), (-1, -1), (1, -1)]
    return np.concatenate(
        [
            arc[:: sx * sy] * (sx, sy) + (sx * (width / 2 - corner), sy * (height / 2 - corner))
            for sx, sy in quarter
        ]
    )
