"""Judge an OSError: a fault of the file becomes a row, a fault of the machine stops the scan."""

import errno
import logging
import os
import time
from collections.abc import Callable, Iterator
from itertools import islice
from typing import ParamSpec, TypeVar

from ..row import Status

log = logging.getLogger(__name__)

P = ParamSpec("P")
T = TypeVar("T")

DELAYS_S = (0.1, 0.5, 2.0)  # waits before a call that failed by a fault of the machine is repeated

_OF_THE_FILE: dict[int, Status] = {
    errno.ENOENT: "vanished",
    errno.ENOTDIR: "vanished",
    errno.EACCES: "unreadable",
    errno.EPERM: "unreadable",
    errno.ELOOP: "unreadable",
    errno.EISDIR: "unreadable",
    errno.ENXIO: "unreadable",
    errno.ENAMETOOLONG: "unreadable",
    errno.EOVERFLOW: "unreadable",
}
_EXHAUSTED = frozenset(
    {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC, errno.EDQUOT, errno.ENOBUFS, errno.EAGAIN}
)
_PROBES = 16  # neighbours that are tried to see whether the disk still answers


def status_of(error: OSError) -> Status | None:
    """Return the status of the row that an error makes, or None where the machine is at fault.

    An error number that is not known to be the file's counts as the machine's, so no row is invented.
    """
    return _OF_THE_FILE.get(error.errno or 0)


def reason_of(error: OSError) -> str:
    """Describe what went wrong in the system's own words, without the file's name."""
    return os.strerror(error.errno) if error.errno else str(error)


def retry_transient(action: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """Call `action`, again after each of DELAYS_S while the machine is at fault or out of memory.

    Raises an OSError that is the file's at once, and what the machine raises after the last attempt.
    """
    for delay in DELAYS_S:
        try:
            return action(*args, **kwargs)
        except OSError as error:
            if status_of(error):
                raise
            reason = str(error)
        except MemoryError:
            reason = "out of memory"  # other threads may free some
        log.debug("%s; trying again in %g s", reason, delay)
        time.sleep(delay)
    return action(*args, **kwargs)


def is_confined(error: OSError, path: bytes) -> bool:
    """Tell whether a lasting I/O error is confined to one file: another file near it can still be read.

    Files of the same folder are tried, or, if it has no others, those of the folders beside and above it.
    """
    if error.errno in _EXHAUSTED:
        return False
    return any(is_readable(other) for other in islice(_neighbours(path), _PROBES))


def is_readable(path: bytes) -> bool:
    """Tell whether the first byte of a regular file comes from its disk, not from the page cache."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        os.posix_fadvise(fd, 0, 4096, os.POSIX_FADV_DONTNEED)
        return len(os.read(fd, 1)) == 1
    except OSError:
        return False
    finally:
        os.close(fd)


def _neighbours(path: bytes) -> Iterator[bytes]:
    folder = os.path.dirname(path)
    has_files = False
    for entry in _entries(folder):
        if entry.path != path and entry.is_file(follow_symlinks=False):
            has_files = True
            yield entry.path
    if has_files:
        return
    for entry in _entries(os.path.dirname(folder)):
        if entry.is_file(follow_symlinks=False):
            yield entry.path
        elif entry.path != folder and entry.is_dir(follow_symlinks=False):
            yield from (e.path for e in _entries(entry.path) if e.is_file(follow_symlinks=False))


def _entries(folder: bytes) -> Iterator[os.DirEntry[bytes]]:
    try:
        with os.scandir(folder) as entries:
            yield from entries
    except OSError:
        return
