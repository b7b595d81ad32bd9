"""Room on the disk: what a result is sure to need, compared with what is free."""

import os
from collections.abc import Iterable
from pathlib import Path

from ..errors import Refused
from ..text import disk_size
from .parts import files_of

ROW_BYTES = 300  # of a row in a part, as Parquet compresses it
LEAST_BYTES = 1 << 14  # that any scan needs, for some rows of its own


def bytes_of(files: Iterable[Path]) -> int:
    """Add up the sizes of files; raises OSError."""
    return sum(path.stat().st_size for path in files)


def free_bytes(folder: Path) -> int:
    """Return how many bytes a user may still write in the folder's file system; raises OSError."""
    status = os.statvfs(folder)
    return status.f_bavail * status.f_frsize


def estimated_bytes(rows: int, *, is_folder: bool, x_size: int | None) -> int:
    """Estimate the disk that a scan of so many rows takes until its parts are removed.

    A file is written beside its parts, a folder of parts is not. `x_size` is the length of stored features,
    which are float16, or None.
    """
    row = ROW_BYTES * (1 if is_folder else 2)
    return rows * (row + (2 * x_size if x_size else 0))


def check_room(output: Path, parts: Path, *, is_folder: bool, copies_finished: bool, extra: int = 0) -> None:
    """Raise Refused unless the disk has room for the rows that are there already, and for some new ones.

    `parts` holds those of an unfinished scan; `copies_finished` says that the rows of the finished output
    become the first part. A file is then written once more, beside the parts that it is made of. `extra`
    bytes are for other files beside the parts.
    """
    held = bytes_of(parts.glob("*.parquet")) if parts.is_dir() else 0
    copied = bytes_of(files_of(output)) if copies_finished and not held else 0
    need = copied + (0 if is_folder else held + copied) + extra + LEAST_BYTES
    free = free_bytes(output.parent)
    if need > free:
        raise Refused(
            f"the results at {output} need at least {disk_size(need)}, and the disk of {output.parent} has "
            f"{disk_size(free)} free: "
            + ("free some; finished rows are kept" if held else "free some, or name an output elsewhere")
        )
