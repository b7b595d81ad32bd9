"""Files that survive a power cut: written aside, flushed, renamed, and the folder flushed."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import Stopped

TEMPORARY = ".tmp"  # the end of a name that holds nothing durable yet


def flush(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on disk; raises OSError."""
    handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


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
