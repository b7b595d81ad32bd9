"""Files that survive a power cut: written aside, flushed, renamed, and the folder flushed."""

import errno
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ..errors import Refused, Stopped

MOST_READ = 64 << 20  # bytes
TEMPORARY = ".tmp"  # the end of a name that holds nothing durable yet


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on disk; raises OSError."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def open_regular(path: Path, follow: bool = True) -> BinaryIO:
    """Open a regular file for reading; a FIFO or device raises OSError, and does not make this wait."""
    flags = os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | (0 if follow else os.O_NOFOLLOW)
    handle = os.open(path, flags)
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise OSError(errno.EINVAL, "it is not a regular file", str(path))
    return open(handle, "rb")  # noqa: PTH123 - a descriptor


def read_whole(path: Path) -> bytes:
    """Read a small file of ours, at most MOST_READ bytes of it, following no link; raises OSError."""
    with open_regular(path, follow=False) as file:
        return file.read(MOST_READ)


def make_folder(path: Path, mode: int = 0o777) -> None:
    """Make a folder that may be there, and its name durable; raises OSError."""
    try:
        path.mkdir(mode=mode)
    except FileExistsError:
        if not path.is_dir():
            raise
    else:
        flush(path.parent)


def rename(source: Path, target: Path) -> None:
    """Rename a flushed file or folder and flush the folders concerned; raises OSError."""
    source.rename(target)
    flush(target.parent)
    if source.parent != target.parent:
        flush(source.parent)


def write_whole(target: Path, content: bytes) -> None:
    """Replace a small file at once: after a power cut it holds the old or the new content; raises OSError."""
    temporary = target.with_name(target.name + TEMPORARY)
    with temporary.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())
    rename(temporary, target)


def check_output(out: Path, what: str, is_ours: Callable[[Path], bool]) -> None:
    """Raise Refused unless `out` can be written: a new file, or an earlier one that `is_ours` knows."""
    if not out.parent.is_dir():
        raise Refused(
            f"the folder {out.parent} does not exist: make it first, or name another file with --out"
        )
    if out.is_dir():
        raise Refused(f"{out} is a folder: name a file with --out")
    if out.exists() and not is_ours(out):
        raise Refused(f"{out} is not {what} and is left as it is: name another file with --out")


@contextmanager
def written_aside(target: Path) -> Iterator[Path]:
    """Yield a temporary path to write, which then takes the name of `target`, or goes if anything fails."""
    temporary = target.with_name(target.name + TEMPORARY)
    try:
        yield temporary
        flush(temporary)
        rename(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def remove(path: Path) -> None:
    """Remove a file or a whole folder that may be absent; raises OSError."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@contextmanager
def disk_faults_stop(output: Path) -> Iterator[None]:
    """Turn an OSError of writing into Stopped; finished parts stay, and the same command resumes."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise Stopped(
            f"the results at {output} cannot be written: {reason}; finished rows are kept, "
            "mend the disk and run the same command again"
        ) from error
