"""Where the bytes of a candidate lie: a file in a folder, a member of a tar, or already in memory.

Each storage reads (`read`) and judges errors (`verdict`): a fault of the file is an ImageFault, a fault of
the machine is Stopped. All of it may be called by many threads at once, and may be pickled: it reads the
same bytes in another process of this machine.
"""

import os
import stat
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any, Protocol

from ..errors import Stopped
from ..row import ImageFault, Row, dated
from ..tar.streams import ArchiveFault, Readable
from .beneath import LastFolder, open_folder
from .faults import is_confined, is_readable, reason_of, retry_transient, status_of
from .uris import shown

_READ = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK  # a FIFO that took a file's name must not block
_CHUNK = 1 << 16
_WAKE_S = 0.2  # how often a wait checks whether the scan was stopped
_MAX_OPEN = 32  # tars whose descriptor stays open
_LAST_FOLDER = LastFolder()
_FREE_SLOTS = deque(range(_MAX_OPEN))  # a deque, unlike a lock, is safe in __del__

_elsewhere = False  # whether another machine has listed, where a network disk has another device number

Identity = tuple[int, int, int, int]  # device, inode, bytes, mtime in ns


def read_elsewhere() -> None:
    """Have this process read what another machine has listed: device numbers mean nothing here."""
    global _elsewhere
    _elsewhere = True


class Storage(Protocol):
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
        now = retry_transient(os.stat, path)
        return cls(path, now.st_dev, now.st_ino)

    def require(self) -> None:
        """Raise Stopped unless the same folder is still there (an unmounted disk leaves another one)."""
        try:
            now = os.stat(self.path)
        except OSError:
            now = None
        if now is None or not _same_device(now.st_dev, self.device) or now.st_ino != self.inode:
            raise source_gone(self.path)


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
        now = retry_transient(os.stat, path)
        return cls(path, now.st_dev, now.st_ino, root, follow)

    @classmethod
    def at(cls, fd: int, path: bytes, root: Root | None) -> "Folder":
        """Describe an open folder of a walk; raises OSError."""
        now = os.fstat(fd)
        return cls(path, now.st_dev, now.st_ino, root, follow=False)

    def require(self) -> None:
        """Raise Stopped if a file is missing because the whole disk or source of this folder is gone."""
        if self.root:
            self.root.require()
        path = self.path
        while (device := self._device(path)) is None and path != b"/":
            path = os.path.dirname(path)
        if device is None or not _same_device(device, self.device):
            raise source_gone(self.path)

    def verdict(self, path: bytes, error: OSError) -> ImageFault:
        """Return the fault of the file or folder at `path`; raises Stopped if the machine is at fault."""
        status = status_of(error)
        if status == "vanished":
            self.require()
        elif status is None and is_confined(error, path):
            status = "unreadable"
        if status is None:
            raise Stopped(
                f"{shown(path)} could not be read, and neither could other files ({reason_of(error)}); "
                "run the same command again when the disk works"
            ) from error
        return ImageFault(status, f"it could not be read: {reason_of(error)}")

    def open(self, path: bytes) -> tuple[int, os.stat_result]:
        """Open a file of this folder; raises OSError, or ImageFault if it is not a regular file."""
        if self.follow:
            return _regular(os.open(path, _READ))
        handle = open_folder(self.path, base_of(self.path, self.root))
        try:
            return _regular(os.open(os.path.basename(path), _READ | os.O_NOFOLLOW, dir_fd=handle))
        finally:
            os.close(handle)

    def _open_in_turn(self, path: bytes) -> tuple[int, os.stat_result]:
        """Open a file as `open` does; the folder stays open for the thread's next file."""
        if self.follow:
            return _regular(os.open(path, _READ))
        last = _LAST_FOLDER
        if last.key is not self:
            last.enter(self, self.path, base_of(self.path, self.root))
        return _regular(os.open(path[path.rfind(b"/") + 1 :], _READ | os.O_NOFOLLOW, dir_fd=last.fd))

    def _device(self, path: bytes) -> int | None:
        try:
            if self.follow:
                return os.stat(path).st_dev
            handle = open_folder(path, base_of(path, self.root))
        except OSError:
            return None
        try:
            return os.fstat(handle).st_dev
        finally:
            os.close(handle)

    def read(self, path: bytes, row: Row, max_bytes: int) -> bytes:  # noqa: ARG002 - one signature for every storage
        """Return the whole file; raises ImageFault (empty, too_large, unreadable, vanished) or Stopped."""
        try:
            return self._read(path, max_bytes)
        except (OSError, MemoryError):
            return self._read_again(path, max_bytes)

    def _read_again(self, path: bytes, max_bytes: int) -> bytes:
        """Read a file that could not be read at once; raises ImageFault or Stopped."""
        _LAST_FOLDER.leave()  # it may have been made anew
        try:
            return retry_transient(self._read, path, max_bytes)
        except FileNotFoundError:
            self.require()
        except OSError as error:
            raise self.verdict(path, error) from error
        try:  # once more: the source may have been away for a moment
            return retry_transient(self._read, path, max_bytes)
        except OSError as error:
            raise self.verdict(path, error) from error

    def _read(self, path: bytes, max_bytes: int) -> bytes:
        fd, now = self._open_in_turn(path)
        try:
            size = now.st_size
            if size > max_bytes:
                raise too_large(size, max_bytes)
            data = os.read(fd, size or _CHUNK)
            if len(data) < size or not size:  # a file that grows, shrinks, or whose size the system hides
                data = _read_on(fd, data, size or max_bytes + 1)
        finally:
            os.close(fd)
        check_length(len(data), max_bytes)
        return data


class Tar(Protocol):
    """A tar that is being listed."""

    path: bytes
    rereads: bool  # members are read later, at their offsets; otherwise when they are listed

    @property
    def size(self) -> int:
        """Bytes of the file."""
        ...

    @property
    def mtime(self) -> int | None:
        """Time of the last change, us since the epoch."""
        ...

    @property
    def etag(self) -> str | None:
        """Version of an object in a store."""
        ...

    def reader(self) -> AbstractContextManager[Callable[[int, int], bytes]]:
        """Lend a function that reads `size` bytes at `offset`, fewer only at the end."""
        ...

    def verdict(self, path: bytes, error: OSError) -> ImageFault:
        """Return the fault of one spot in it; raises Stopped for the machine's."""
        ...

    def verdict_on_all(self, error: OSError) -> ImageFault:
        """Return the fault of the whole; raises Stopped for the machine's."""
        ...


class Archive:
    """A tar that is not compressed, read at the offsets of its members.

    It is opened when it is first read. The descriptor stays open as long as this object lives, for 32
    archives at once; the others are opened for each read. Each time it is opened, the file must still be
    the one that was listed. A process that unpickles candidates of the same archive again and again gets
    the same object for them, so that it does not open the archive for each message.
    """

    rereads = True
    etag = None

    def __init__(self, path: bytes, folder: Folder, identity: Identity):
        """Refer to the file at `path` as it was listed; `Archive.open` lists it."""
        self.path, self.folder = path, folder
        self._identity = identity
        self._kept: int | None = None
        self._slot: int | None = None
        self._lock = threading.Lock()

    @classmethod
    def open(cls, path: bytes, folder: Folder) -> "Archive":
        """Open the archive at `path`; raises OSError, or ImageFault where it is not a regular file."""
        fd, now = retry_transient(folder.open, path)
        archive = cls(path, folder, _identity(now))
        if not archive._keep(fd):
            os.close(fd)
        return archive

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self._identity[2]

    @property
    def mtime(self) -> int | None:
        """Time of the last change, us since the epoch."""
        return dated(self._identity[3] // 1000)

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled_archive, (self.path, self.folder, self._identity)

    def __del__(self) -> None:
        if self._kept is not None:
            os.close(self._kept)
        if self._slot is not None:
            _FREE_SLOTS.append(self._slot)

    @contextmanager
    def descriptor(self) -> Iterator[int]:
        """Lend a descriptor of the archive; raises OSError, or ImageFault where the file was replaced."""
        if self._kept is not None:
            yield self._kept
            return
        fd, now = retry_transient(self.folder.open, self.path)
        kept = False
        try:
            device, *rest = self._identity
            if not _same_device(now.st_dev, device) or _identity(now)[1:] != tuple(rest):
                raise ImageFault("vanished", "its archive was changed while it was scanned")
            kept = self._keep(fd)
            yield fd
        finally:
            if not kept:
                os.close(fd)

    @contextmanager
    def reader(self) -> Iterator[Callable[[int, int], bytes]]:
        """Lend a function that reads `size` bytes at `offset`; raises as `descriptor` does."""
        with self.descriptor() as fd:
            yield partial(pread, fd)

    def _keep(self, fd: int) -> bool:
        """Keep a descriptor open where there is a free slot for it; tell whether it is kept."""
        with self._lock:
            if self._kept is not None:
                return False
            try:
                self._slot = _FREE_SLOTS.pop()
            except IndexError:
                return False
            self._kept = fd
            return True

    def read(self, path: bytes, row: Row, max_bytes: int) -> bytes:
        """Return the whole member; raises ImageFault or Stopped."""
        size, offset = row.bytes or 0, row.offset or 0
        check_length(size, max_bytes)
        try:
            if self._kept is not None:
                data = pread(self._kept, size, offset)
            else:
                with self.descriptor() as fd:
                    data = pread(fd, size, offset)
        except OSError as error:
            raise self.verdict(path, error) from error
        if len(data) < size:
            raise ImageFault("truncated", f"its archive ends after {len(data)} of its {size} bytes")
        return data

    def verdict(self, path: bytes, error: OSError) -> ImageFault:
        """Return the fault of the archive, or of one spot in it; raises Stopped for the machine's."""
        if status_of(error) is None and is_readable(path):
            return ImageFault("unreadable", f"this part of its archive could not be read: {reason_of(error)}")
        return self.folder.verdict(path, error)

    def verdict_on_all(self, error: OSError) -> ImageFault:
        """Return the fault of the archive; raises Stopped for the machine's."""
        return self.folder.verdict(self.path, error)


class ByteBudget:
    """Bounds the bytes that are read ahead and not yet taken over; one read of any size always fits."""

    def __init__(self, limit: int):
        self._limit = limit
        self._used = 0
        self._freed = threading.Condition()  # on an RLock: release() may be called by the collector

    def acquire(self, size: int, stopped: threading.Event | None) -> None:
        """Wait until `size` bytes fit; raises Stopped if `stopped` is set meanwhile."""
        with self._freed:
            while not self._fits(size):
                if stopped and stopped.is_set():
                    raise Stopped("the scan was stopped; run the same command again to continue")
                self._freed.wait(_WAKE_S)
            self._used += size

    def try_acquire(self, size: int) -> bool:
        """Take `size` bytes if they fit now."""
        with self._freed:
            fits = self._fits(size)
            self._used += size if fits else 0
            return fits

    def _fits(self, size: int) -> bool:
        return not self._used or self._used + size <= self._limit

    def release(self, size: int) -> None:
        """Give `size` bytes back."""
        with self._freed:
            self._used -= size
            self._freed.notify_all()


class BufferedMember:
    """The bytes of one member of a compressed tar, which cannot be read again.

    Pickling copies them: a worker that dies leaves its candidates to another. The budget gets them back when
    this object goes.
    """

    def __init__(self, size: int, budget: ByteBudget | None, data: bytes | None = None):
        """Take over `size` bytes that `budget` was asked for; it gets them back on `read` or disposal."""
        self._size = size
        self._budget = budget
        self._data = data

    def __del__(self) -> None:
        self._release()

    def __reduce__(self) -> tuple[Any, ...]:
        assert self._data is not None, "the bytes of a compressed tar's member are read only once"
        return BufferedMember, (len(self._data), None, self._data)

    def fill(self, stream: Readable, row: Row) -> None:
        """Read the bytes, or fail the row where the archive does not hold them; raises OSError."""
        try:
            self._data = stream.read(self._size)
            missing = self._size - len(self._data)
        except ArchiveFault as fault:
            row.fail(ImageFault("truncated", f"its archive is truncated or damaged here: {fault}"))
            return
        if missing:
            row.fail(ImageFault("truncated", f"its archive ends {missing} bytes before it does"))

    def read(self, path: bytes, row: Row, max_bytes: int) -> bytes:  # noqa: ARG002 - one signature for every storage
        """Hand the bytes over; raises ImageFault."""
        data = self._hand_over()
        check_length(len(data), max_bytes)
        return data

    def _hand_over(self) -> bytes:
        data, self._data = self._data, None
        assert data is not None, "the bytes of a compressed tar's member are handed over only once"
        self._release()
        return data

    def _release(self) -> None:
        size, self._size = self._size, 0
        if size and self._budget:
            self._budget.release(size)


def check_length(size: int, max_bytes: int) -> None:
    """Raise ImageFault unless there are 1 to `max_bytes` bytes."""
    if size > max_bytes:
        raise too_large(size, max_bytes)
    if not size:
        raise empty()


def too_large(size: int, max_bytes: int) -> ImageFault:
    """Make the fault of a file that is larger than the limit."""
    return ImageFault("too_large", f"it has {size} bytes, more than the limit of {max_bytes}")


def empty() -> ImageFault:
    """Make the fault of a file in which there is nothing to read."""
    return ImageFault("empty", "it holds no bytes")


def pread(fd: int, size: int, offset: int) -> bytes:
    """Read `size` bytes at `offset`, fewer only at the end of the file; raises OSError."""
    data = retry_transient(os.pread, fd, size, offset)
    while data and len(data) < size:  # a signal, or more than one call may return
        more = retry_transient(os.pread, fd, size - len(data), offset + len(data))
        if not more:
            break
        data += more
    return data


def base_of(path: bytes, root: Root | None) -> bytes:
    """Return where the way to a folder of a walk begins: its source, or `/` for what a link led to."""
    if root and (path == root.path or path.startswith(root.path.rstrip(b"/") + b"/")):
        return root.path
    return b"/"


def _regular(fd: int) -> tuple[int, os.stat_result]:
    """Return a descriptor and what it is of; raises ImageFault, and closes it, if that is no regular file."""
    now = os.fstat(fd)
    if not stat.S_ISREG(now.st_mode):
        os.close(fd)
        raise ImageFault("unreadable", "it is no longer a regular file")
    return fd, now


def _read_on(fd: int, data: bytes, limit: int) -> bytes:
    pieces = [data]
    left = limit - len(data)
    while left > 0 and pieces[-1]:
        pieces.append(os.read(fd, min(left, _CHUNK)))
        left -= len(pieces[-1])
    return b"".join(pieces)


def _same_device(one: int, other: int) -> bool:
    return _elsewhere or one == other


def _identity(now: os.stat_result) -> Identity:
    return now.st_dev, now.st_ino, now.st_size, now.st_mtime_ns


@lru_cache(maxsize=_MAX_OPEN)
def _unpickled_archive(path: bytes, folder: Folder, identity: Identity) -> Archive:
    """Return the archive of a pickled candidate, the same object for each of the last ones met."""
    return Archive(path, folder, identity)


def source_gone(path: bytes) -> Stopped:
    """Make the error that ends a scan whose source went away."""
    return Stopped(f"the source {shown(path)} is gone; run the same command again when it is back")
