"""Images that are kept as rows of an array: the path `FILE.npy/K` names row K of a uint8 array [n, S, S, 3].

A training that draws its own images keeps them so: nothing is decoded again, and memory mapping reads only
what is asked for.
"""

from functools import lru_cache
from pathlib import Path
from typing import cast

import numpy as np
from numpy.typing import NDArray

from ..errors import Refused

SUFFIX = ".npy"
OPEN_FILES = 256  # mapped at once

Pixels = NDArray[np.uint8]  # [H, W, 3]


def is_row(path: Path) -> bool:
    """Tell whether a path names a row of an array, not a file."""
    return path.parent.suffix == SUFFIX


def read_row(path: Path) -> Pixels:
    """Return the pixels [S, S, 3] of a row, which are mapped and cannot be written; raises Refused."""
    images = _mapped(path.parent)
    if not path.name.isdecimal() or int(path.name) >= len(images):
        raise Refused(f"{path.parent} has no row {path.name}: it holds {len(images)} images")
    return images[int(path.name)]


def rows_below(folder: Path) -> list[Path]:
    """Return the rows of every array of images below a folder; other arrays are passed over."""
    files = [file for file in sorted(folder.rglob(f"*{SUFFIX}")) if file.is_file()]
    return [file / str(k) for file in files if _holds_images(array := _open(file)) for k in range(len(array))]


@lru_cache(maxsize=OPEN_FILES)
def _mapped(file: Path) -> NDArray[np.uint8]:
    images = _open(file)
    if not _holds_images(images):
        raise Refused(
            f"{file} holds no images: it is {images.dtype} {list(images.shape)}, not uint8 [n, S, S, 3]"
        )
    return images


def _open(file: Path) -> NDArray[np.uint8]:
    try:
        return cast("NDArray[np.uint8]", np.load(file, mmap_mode="r", allow_pickle=False))
    except (OSError, ValueError) as error:
        raise Refused(f"{file} cannot be read as an array ({error}): remove it") from error


def _holds_images(array: NDArray[np.uint8]) -> bool:
    return array.dtype == np.uint8 and array.ndim == 4 and array.shape[3] == 3
