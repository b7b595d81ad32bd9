"""Where the bytes of a candidate lie: a file in a folder, a member of a tar, or already in memory.

Each place reads (`read`) and judges errors (`verdict`): a fault of the file is an ImageFault, a fault of
the machine is Stopped. All of it may be called by many threads at once.
"""

import os
import stat
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Protocol

from ..errors import Stopped
from ..row import ImageFault, Row
from .faults import only_this_one, patiently, reads, reason_of, status_of
from .tarstream import ArchiveFault, Stream
from .uris import shown

_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK  # a FIFO that took a file's name must not block
_CHUNK = 1 << 16
_WAKE_S = 0.2  # how often a wait looks whether it is still wanted
_KEPT_OPEN = deque(range(32))  # places for tars whose descriptor stays open; a deque is safe in __del__


class Place(Protocol):
    """Where a candidate's bytes come from."""

    def read(self, path: bytes, row: Row, max_bytes: int) -> bytes:
        """Return the bytes of the candidate at `path`; raises ImageFault or Stopped."""
        ...


@dataclass(frozen=True, slots=True)
class Root:
    """A folder that a walk began at, remembered so that its disappearance is noticed."""

    path: bytes
    device: int
    inode: int

    @classmethod
    def of(cls, path: bytes) -> "Root":
        """Remember the folder that is at `path` now; raises OSError."""
        now = patiently(lambda: os.stat(path))
        return cls(path, now.st_dev, now.st_ino)

    def require(self) -> None:
        """Raise Stopped unless the same folder is still there (an unmounted disk leaves another one)."""
        try:
            now = os.stat(self.path)
        except OSError:
            now = None
        if now is None or (now.st_dev, now.st_ino) != (self.device, self.inode):
            raise gone(self.path)


@dataclass(frozen=True, slots=True)
class Folder:
    """A folder whose files are candidates."""

    path: bytes
    device: int
    inode: int
    root: Root | None  # that must still be there where a file is missing
    follow: bool  # whether a file of it may be a symlink

    @classmethod
    def of(cls, path: bytes, root: Root | None, follow: bool) -> "Folder":
        """Look at the folder at `path`; raises OSError."""
        now = patiently(lambda: os.stat(path))
        return cls(path, now.st_dev, now.st_ino, root, follow)

    def require(self) -> None:
        """Raise Stopped where what is missing below this folder is missing with its whole disk or source."""
        if self.root:
            self.root.require()
        path = self.path
        while (device := _device(path)) is None and path != b"/":
            path = os.path.dirname(path)
        if device != self.device:
            raise gone(self.path)

    def verdict(self, path: bytes, error: OSError) -> ImageFault:
        """Return the fault of the file or folder at `path`; raises Stopped where it is the machine's."""
        status = status_of(error)
        if status == "vanished":
            self.require()
        elif status is None and only_this_one(error, path):
            status = "unreadable"
        if status is None:
            raise Stopped(
                f"{shown(path)} could not be read, and it is not this file alone ({reason_of(error)}); "
                "run the same command again when that is mended"
            ) from error
        return ImageFault(status, f"it could not be read: {reason_of(error)}")

    def open(self, path: bytes) -> tuple[int, os.stat_result]:
        """Open a file of this folder; raises OSError, or ImageFault where it is no regular file."""
        fd = os.open(path, _READ if self.follow else _READ | os.O_NOFOLLOW)
        now = os.fstat(fd)
        if not stat.S_ISREG(now.st_mode):
            os.close(fd)
            raise ImageFault("unreadable", "it is no regular file any more")
        return fd, now

    def read(self, path: bytes, row: Row, max_bytes: int) -> bytes:  # noqa: ARG002 - one shape for all places
        """Return the whole file; raises ImageFault (empty, too_large, unreadable, vanished) or Stopped."""
        try:
            return patiently(lambda: self._read(path, max_bytes))
        except FileNotFoundError:
            self.require()
        except OSError as error:
            raise self.verdict(path, error) from error
        try:  # once more: the source may have been away for a moment
            return patiently(lambda: self._read(path, max_bytes))
        except OSError as error:
            raise self.verdict(path, error) from error

    def _read(self, path: bytes, max_bytes: int) -> bytes:
        fd, now = self.open(path)
        try:
            size = now.st_size
            check_size(size, max_bytes)
            data = os.read(fd, size or _CHUNK)
            if len(data) < size or not size:  # a file that grows, shrinks, or whose size the system hides
                data = _read_on(fd, data, size or max_bytes + 1)
        finally:
            os.close(fd)
        check_size(len(data), max_bytes)
        check_not_empty(len(data))
        return data


class Archive:
    """A tar that is not compressed, read at the offsets of its members; opened by `Archive.open`.

    The descriptor stays open as long as a candidate refers to this object, for 32 archives at once; the
    others are opened for each read, after a check that the file is still the one that was listed.
    """

    def __init__(self, path: bytes, folder: Folder):
        self.path, self.folder = path, folder
        self._kept: int | None = None
        self._slot: int | None = None
        fd, now = patiently(lambda: folder.open(path))
        self.size, self.mtime = now.st_size, now.st_mtime_ns // 1000
        self._identity = _identity(now)
        try:
            self._slot = _KEPT_OPEN.pop()
            self._kept = fd
        except IndexError:
            os.close(fd)

    def __del__(self) -> None:
        if self._kept is not None:
            os.close(self._kept)
        if self._slot is not None:
            _KEPT_OPEN.append(self._slot)

    @contextmanager
    def descriptor(self) -> Iterator[int]:
        """Lend a descriptor of the archive; raises OSError, or ImageFault where the file was exchanged."""
        if self._kept is not None:
            yield self._kept
            return
        fd, now = patiently(lambda: self.folder.open(self.path))
        try:
            if _identity(now) != self._identity:
                raise ImageFault("vanished", "its archive was changed while it was scanned")
            yield fd
        finally:
            os.close(fd)

    def read(self, path: bytes, row: Row, max_bytes: int) -> bytes:
        """Return the whole member; raises ImageFault or Stopped."""
        size, offset = row.bytes or 0, row.offset or 0
        check_size(size, max_bytes)
        check_not_empty(size)
        try:
            with self.descriptor() as fd:
                data = pread(fd, size, offset)
        except OSError as error:
            raise self.verdict(path, error) from error
        if len(data) < size:
            raise ImageFault("truncated", f"its archive ends after {len(data)} of its {size} bytes")
        return data

    def verdict(self, path: bytes, error: OSError) -> ImageFault:
        """Return the fault of the archive, or of one spot in it; raises Stopped for the machine's."""
        if status_of(error) is None and reads(path):
            return ImageFault("unreadable", f"this part of its archive could not be read: {reason_of(error)}")
        return self.folder.verdict(path, error)


class ByteBudget:
    """Bounds the bytes that are read ahead and not yet taken over; one read of any size always fits."""

    def __init__(self, limit: int):
        self._limit = limit
        self._used = 0
        self._freed = threading.Condition()  # on an RLock: release() may be called by the collector

    def acquire(self, size: int, stopped: threading.Event | None) -> None:
        """Wait until `size` bytes fit; raises Stopped where that is to be waited for no longer."""
        with self._freed:
            while self._used and self._used + size > self._limit:
                if stopped and stopped.is_set():
                    raise Stopped("stopped on request; run the same command to go on")
                self._freed.wait(_WAKE_S)
            self._used += size

    def release(self, size: int) -> None:
        """Give `size` bytes back."""
        with self._freed:
            self._used -= size
            self._freed.notify_all()


class Held:
    """The bytes of one member of a compressed tar, which cannot be read again; handed over once."""

    def __init__(self, size: int, budget: ByteBudget):
        """Take over `size` bytes that `budget` was asked for; it gets them back on `read` or disposal."""
        self._size = size
        self._budget = budget
        self._data: bytes | None = None

    def __del__(self) -> None:
        self._release()

    def fill(self, stream: Stream, row: Row) -> None:
        """Read the bytes, or fail the row where the archive does not hold them; raises OSError."""
        try:
            self._data = stream.read(self._size)
            missing = self._size - len(self._data)
        except ArchiveFault as fault:
            row.fail(ImageFault("truncated", f"its archive is cut or damaged here: {fault}"))
            return
        if missing:
            row.fail(ImageFault("truncated", f"its archive ends {missing} bytes before it does"))

    def read(self, path: bytes, row: Row, max_bytes: int) -> bytes:  # noqa: ARG002 - one shape for all places
        """Hand the bytes over; raises ImageFault."""
        data, self._data = self._data, None
        assert data is not None, "the bytes of a compressed tar's member are handed over only once"
        self._release()
        check_size(len(data), max_bytes)
        check_not_empty(len(data))
        return data

    def _release(self) -> None:
        size, self._size = self._size, 0
        if size:
            self._budget.release(size)


def check_size(size: int, max_bytes: int) -> None:
    """Raise ImageFault where a file is larger than the limit."""
    if size > max_bytes:
        raise ImageFault("too_large", f"it has {size} bytes, more than the limit of {max_bytes}")


def check_not_empty(size: int) -> None:
    """Raise ImageFault where there is nothing to read."""
    if not size:
        raise ImageFault("empty", "it holds no bytes")


def pread(fd: int, size: int, offset: int) -> bytes:
    """Read `size` bytes at `offset`, fewer only at the end of the file; raises OSError."""
    data = patiently(lambda: os.pread(fd, size, offset))
    while data and len(data) < size:  # a signal, or more than one call may return
        at, left = offset + len(data), size - len(data)
        more = patiently(lambda left=left, at=at: os.pread(fd, left, at))
        if not more:
            break
        data += more
    return data


def _read_on(fd: int, data: bytes, limit: int) -> bytes:
    pieces = [data]
    left = limit - len(data)
    while left > 0 and pieces[-1]:
        pieces.append(os.read(fd, min(left, _CHUNK)))
        left -= len(pieces[-1])
    return b"".join(pieces)


def _device(path: bytes) -> int | None:
    try:
        return os.stat(path).st_dev
    except OSError:
        return None


def _identity(now: os.stat_result) -> tuple[int, int, int, int]:
    return now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns


def gone(path: bytes) -> Stopped:
    """Make the error that ends a scan whose source went away."""
    return Stopped(f"the source {shown(path)} is gone; run the same command again when it is back")
