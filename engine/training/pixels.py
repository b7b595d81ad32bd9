"""Pixels of images, of files and of rows of arrays, as a scan decodes them."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ..datasets.arrays import is_row, read_row
from ..decode import DecodeLimits, Decoder
from ..errors import Stopped
from ..row import Row
from ..system.machine import usable_cores

AHEAD = 64  # images decoded before they are asked for

Pixels = NDArray[np.uint8]  # [H, W, 3]


def decoded(paths: Sequence[Path], size: int) -> Iterator[Pixels | None]:
    """Yield the pixels [size, size, 3] of each image in order, or None if it cannot be decoded."""
    decoder = Decoder(size, DecodeLimits())

    def decode(path: Path) -> Pixels | None:
        if is_row(path):
            return resized(read_row(path), size)
        return decoder(Row(uri=str(path)), path.read_bytes())

    with ThreadPoolExecutor(usable_cores(), thread_name_prefix="decode") as pool:
        waiting = [pool.submit(decode, path) for path in paths[:AHEAD]]
        for k in range(len(paths)):
            if k + AHEAD < len(paths):
                waiting.append(pool.submit(decode, paths[k + AHEAD]))
            yield waiting[k].result()
            waiting[k] = None  # type: ignore[call-overload]  # its pixels are not kept


class WholeImages:
    """Reads images at the size at which they are stored; safe to call from many threads at once."""

    def __init__(self) -> None:
        self._decoder = Decoder(None, DecodeLimits())

    def __call__(self, path: Path) -> Pixels:
        """Return pixels [height, width, 3]; raises Stopped for an image that can no longer be decoded."""
        if is_row(path):
            return read_row(path)
        row = Row(uri=str(path))
        pixels = self._decoder(row, path.read_bytes())
        if pixels is None:
            raise Stopped(f"{path} cannot be decoded any more ({row.error}): restore it, and run again")
        return pixels


def resized(pixels: Pixels, size: int) -> Pixels:
    """Return pixels [size, size, 3], by the scan's filter; the same array if they have that size already."""
    if pixels.shape[:2] == (size, size):
        return pixels
    image = Image.fromarray(np.ascontiguousarray(pixels))
    return np.asarray(image.resize((size, size), Image.Resampling.BILINEAR))
