"""Images for phase I: each is cut, resized, moved, turned and repainted by random numbers of its own."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..model.network import normalize
from .data import Index
from .look import Look, air_of, draw_look, repaint
from .pixels import Pixels, WholeImages, resized
from .settings import Augmentation

T = TypeVar("T")

BATCHES_AHEAD = 2  # prepared while the network learns from the one before


@dataclass(frozen=True)
class Draw:
    """Random numbers of one image, which depend only on the seed, the epoch and the image."""

    affine: NDArray[np.float32]  # [2, 3], pixels of the output to pixels of the input
    mirror: bool  # left and right are exchanged
    upended: bool = False  # top and bottom, after that
    transposed: bool = False  # rows and columns, after that
    look: Look | None = None


def draw(augmentation: Augmentation, size: int, key: Sequence[int]) -> Draw:
    """Draw the map of one image of `size` pixels a side, and its look; equal keys draw equal ones."""
    random = np.random.default_rng(key)
    mirror = bool(random.random() < augmentation.flip)
    angle, shear, scale, *shift = random.uniform(-1, 1, 5)
    angle, shear = np.deg2rad([angle * augmentation.rotation, shear * augmentation.shear])
    cos, sin = np.cos(angle), np.sin(angle)
    turn = np.array([[cos, -sin], [sin, cos]]) @ np.array([[1, np.tan(shear)], [0, 1]])
    turn /= 1 + scale * augmentation.scale
    centre = np.full(2, size / 2)
    moved = centre + np.array(shift) * augmentation.shift * size - turn @ centre
    affine = np.concatenate([turn, moved[:, None]], axis=1).astype(np.float32)
    upended, transposed, repainted = random.random(3) < (
        augmentation.turn,
        augmentation.turn,
        augmentation.look,
    )
    return Draw(affine, mirror, bool(upended), bool(transposed), draw_look(random) if repainted else None)


@dataclass(frozen=True)
class ImageSettings:
    """How an image is prepared."""

    size: int  # pixels a side
    mean: tuple[float, ...]  # of RGB in [0, 1]: the bundle's constants
    std: tuple[float, ...]
    augmentation: Augmentation | None  # None: only decoded, resized and normalized
    seed: int
    device: str = "cpu"  # of torch
    threads: int = 2

    def drawn(self, epoch: int, position: int) -> Draw | None:
        """Draw what an image is changed by in an epoch; None without augmentation."""
        if self.augmentation is None:
            return None
        return draw(self.augmentation, self.size, (self.seed, epoch, position))


def training_images(
    paths: Sequence[Path],
    batches: Sequence[Index],
    epoch: int,
    settings: ImageSettings,
    parts: NDArray[np.float32] | None = None,
) -> Iterator[tuple[Index, Tensor]]:
    """Yield positions [n] and images float32 [n, 3, S, S] (channels last) of each batch, in order.

    `parts` [., 4]: left, top, width and height of the visible part of each image, as shares of it; None for
    whole images. Images are resized by the scan's filter. Raises Stopped for one that cannot be decoded.
    On a GPU, DALI does this (`augment_dali`). On a CPU it is not used, because its CPU operator for resizing
    is 15 times slower than the scan's resizer, and 3 times slower than Pillow.
    """
    if settings.device != "cpu":
        from .augment_dali import dali_images

        yield from dali_images(paths, batches, epoch, settings, parts)
        return
    read = WholeImages()
    mean, std = (torch.tensor(each, device=settings.device) for each in (settings.mean, settings.std))

    def one(k: int) -> Pixels:
        part = None if parts is None else parts[k]
        return prepared(read(paths[k]), settings.size, part, settings.drawn(epoch, k))

    pool = ThreadPoolExecutor(settings.threads, thread_name_prefix="augment")
    try:
        for index, begun in ahead(batches, lambda index: [pool.submit(one, k) for k in index.tolist()]):
            pixels = np.stack([each.result() for each in begun])
            yield index, normalize(torch.from_numpy(pixels).to(settings.device), mean, std)
    finally:
        pool.shutdown(cancel_futures=True)


def ahead(batches: Sequence[Index], begin: Callable[[Index], T]) -> Iterator[tuple[Index, T]]:
    """Yield each batch with what `begin` returned for it; the next BATCHES_AHEAD have been begun by then."""
    begun: deque[T] = deque()
    for number, index in enumerate(batches):
        for following in batches[number + len(begun) : number + BATCHES_AHEAD + 1]:
            begun.append(begin(following))
        yield index, begun.popleft()


def prepared(pixels: Pixels, size: int, part: NDArray[np.float32] | None, drawn: Draw | None) -> Pixels:
    """Return a part (left, top, width, height as shares) of an image, augmented: [size, size, 3]."""
    shown = resized(pixels if part is None else _cut(pixels, part), size)
    if drawn is None:
        return shown
    shown = _moved(shown, drawn.affine)
    if drawn.mirror:
        shown = shown[:, ::-1]
    if drawn.upended:
        shown = shown[::-1]
    if drawn.transposed:
        shown = shown.transpose(1, 0, 2)
    return shown if drawn.look is None else repaint(shown, drawn.look, air_of(pixels))


def _cut(pixels: Pixels, part: NDArray[np.float32]) -> Pixels:
    """Return a part (left, top, width, height as shares) of an image."""
    top, left, down, across = cut_of((pixels.shape[0], pixels.shape[1]), part)
    return pixels[top : top + down, left : left + across]


def cut_of(shape: tuple[int, int], part: NDArray[np.float32]) -> tuple[int, int, int, int]:
    """Return top, left, height and width of a part of an image of a shape (height, width), in whole pixels.

    So a window at its image's own scale is not resampled.
    """
    height, width = shape
    across, down = (
        max(1, round(float(share) * side)) for share, side in zip(part[2:], (width, height), strict=True)
    )
    left = min(round(float(part[0]) * width), width - across)
    top = min(round(float(part[1]) * height), height - down)
    return top, left, down, across


def _moved(pixels: Pixels, affine: NDArray[np.float32]) -> Pixels:
    """Move an image [S, S, 3]; at its border the edge is repeated: scanners leave air around a bag."""
    if np.array_equal(affine, np.eye(2, 3, dtype=np.float32)):
        return pixels
    size = len(pixels)
    corners = affine[:, :2] @ np.array([[0, size, 0, size], [0, 0, size, size]]) + affine[:, 2:]
    margin = int(np.ceil(max(0.0, -corners.min(), corners.max() - size)))
    wide = Image.fromarray(np.pad(pixels, ((margin, margin), (margin, margin), (0, 0)), mode="edge"))
    inside = affine.astype(float)
    inside[:, 2] += margin
    moved = wide.transform(
        (size, size), Image.Transform.AFFINE, tuple(inside.ravel().tolist()), Image.Resampling.BILINEAR
    )
    return np.asarray(moved)
