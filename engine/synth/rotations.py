"""Rotations of space: small, made and multiplied by the hundred in every picture."""

from math import cos, sin, sqrt

import numpy as np

Point = tuple[float, float, float]


class Rotation(tuple[Point, Point, Point]):
    """A rotation matrix, by rows. Plain numbers: for nine of them NumPy takes longer."""

    __slots__ = ()

    def __matmul__(self, other: "Rotation") -> "Rotation":
        """Return the rotation that turns by `other` first, then by this one."""
        (a, b, c), (d, e, f), (g, h, i) = other
        return Rotation(
            [(x * a + y * d + z * g, x * b + y * e + z * h, x * c + y * f + z * i) for x, y, z in self]
        )

    def of(self, point: Point) -> Point:
        """Return a point turned."""
        a, b, c = point
        (ux, uy, uz), (vx, vy, vz), (wx, wy, wz) = self
        return ux * a + uy * b + uz * c, vx * a + vy * b + vz * c, wx * a + wy * b + wz * c

    def flat(self, points: np.ndarray) -> np.ndarray:
        """Return where points float [n, 2] of the xy plane are seen, or points [n, 3] of space: [n, 2]."""
        return points @ np.array([row[: points.shape[1]] for row in self[:2]]).T


UPRIGHT = Rotation([(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 1.0)])


def turn(axis: int, angle: float) -> Rotation:
    """Return the rotation about x, y or z (0, 1, 2) by an angle in radians."""
    c, s = cos(angle), sin(angle)
    if axis == 0:
        return Rotation([(1.0, 0.0, 0.0), (0.0, c, -s), (0.0, s, c)])
    if axis == 1:
        return Rotation([(c, 0.0, s), (0.0, 1.0, 0.0), (-s, 0.0, c)])
    return Rotation([(c, -s, 0.0), (s, c, 0.0), (0.0, 0.0, 1.0)])


def random_rotation(rng: np.random.Generator) -> Rotation:
    """Return a rotation uniform over SO(3) (a random unit quaternion)."""
    w, x, y, z = rng.standard_normal(4).tolist()
    length = sqrt(w * w + x * x + y * y + z * z)
    w, x, y, z = w / length, x / length, y / length, z / length
    return Rotation(
        [
            (1 - 2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
            (2 * (x * y + w * z), 1 - 2 * (x * x + z * z), 2 * (y * z - w * x)),
            (2 * (x * z - w * y), 2 * (y * z + w * x), 1 - 2 * (x * x + y * y)),
        ]
    )
