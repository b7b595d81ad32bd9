"""Sources in an object store: single objects, and tars that are read forwards by ranges."""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import islice
from typing import NoReturn

from ..errors import Refused, Stopped
from ..row import ImageFault, Row
from ..system import objects
from ..system.objects import AT_FIRST, Entry, Location, ObjectFault
from .patterns import Patterns, has_magic
from .storage import check_length, empty
from .uris import shown

FIRST_WINDOW = 1 << 16  # bytes of a range: a header, and often more
LAST_WINDOW = 8 << 20  # of one range where all is read forwards
AHEAD = 4  # ranges that are asked for before they are needed, where all is read forwards


def check_remote(source: bytes) -> None:
    """Ask for what a source names, before anything is read; raises Refused."""
    at, glob = split(source)
    try:
        there = _is_object(at) if at.root.startswith("http") else _has_some(at, is_named=glob is None)
    except ObjectFault as fault:
        raise Refused(f"the source {shown(source)} cannot be read: {fault}") from None
    if not there and at.root.startswith("http"):
        raise Refused(
            f"{shown(source)} is not there, or a folder, which a web server does not list: name images and "
            "tars, or give --files-from"
        )
    if not there:
        raise Refused(f"nothing is at {shown(source)}: check the name")


def _has_some(at: Location, is_named: bool) -> bool:
    """Tell whether something is below a prefix, or, if `is_named`, at it.

    Listing comes first: its answer says what is wrong; that to a question about one object has no words.
    """
    try:
        if next(objects.entries_below(at, AT_FIRST), None) is not None:
            return True
    except ObjectFault as fault:
        if fault.kind == "denied" and is_named and at.key:
            with suppress(ObjectFault):
                if _is_object(at):
                    return True
        raise
    return is_named and _is_object(at)


def _is_object(at: Location) -> bool:
    return bool(at.key) and _entry_or_none(at, AT_FIRST) is not None


def split(source: bytes) -> tuple[Location, Patterns | None]:
    """Split an address into where its listing begins and the pattern of what is below, if it has one."""
    at = objects.located(source)
    if not has_magic(at.key.encode()) or at.root.startswith("http"):
        return at, None
    parts = at.key.split("/")
    first = next(i for i, part in enumerate(parts) if has_magic(part.encode()))
    return Location(at.root, "/".join(parts[:first])), Patterns(["/".join(parts[first:])], anchored=True)


def named_object(at: Location) -> Entry | None:
    """Look at what is named; None if it is no object. Raises Stopped."""
    try:
        return _entry_or_none(at) if at.key else None
    except ObjectFault as fault:
        raise _stopped(fault) from None


def below(at: Location) -> Iterator[Entry]:
    """List the objects below a prefix, in the store's order; raises Stopped."""
    try:
        yield from objects.entries_below(at)
    except ObjectFault as fault:
        raise _stopped(fault) from None


@dataclass(frozen=True, slots=True)
class Bucket:
    """The storage of single objects; all of one source share it."""

    root: str

    def read(self, path: bytes, row: Row, max_bytes: int) -> bytes:
        """Return the whole object, as it was listed; raises ImageFault or Stopped."""
        check_length(row.bytes or 0, max_bytes)
        try:
            return objects.read(location(self.root, path), row.etag)
        except ObjectFault as fault:
            raise_fault(self.root, fault)


class RemoteTar:
    """A tar in a store, read forwards by ranges that grow as long as all of it is wanted.

    Raises ImageFault where it was replaced since it was listed, Stopped if the store is at fault.
    """

    rereads = False  # members are read when they are listed: so no byte is asked for twice

    def __init__(self, root: str, path: bytes, entry: Entry):
        self.path, self.size, self.mtime = path, entry.size, entry.mtime
        self._root, self._etag = root, entry.etag
        self._at = location(root, path)
        if not self.size:
            raise empty()

    @contextmanager
    def reader(self) -> Iterator[Callable[[int, int], bytes]]:
        """Lend a function that returns so many bytes from an offset on, fewer only at the end."""
        yield _Windows(self._fetch, self.size).read

    @property
    def etag(self) -> str | None:
        """Version of the tar that is read."""
        return self._etag

    def verdict(self, path: bytes, error: OSError) -> NoReturn:  # noqa: ARG002 - as of other archives
        """Raise the error: none is of the store, for those are told otherwise."""
        raise error

    def verdict_on_all(self, error: OSError) -> NoReturn:
        """Raise the error."""
        raise error

    def _fetch(self, start: int, end: int) -> bytes:
        try:
            return objects.read(self._at, self._etag, start, end)
        except ObjectFault as fault:
            raise_fault(self._root, fault)


class _Asked(threading.Thread):
    """A range that was asked for; nobody waits for its thread when the program ends."""

    def __init__(self, fetch: Callable[[int, int], bytes], start: int, end: int):
        super().__init__(name="range", daemon=True)
        self.first, self.end = start, end
        self._fetch = fetch
        self._answer: bytes | Exception = b""
        self.start()

    def run(self) -> None:
        """Fetch the range."""
        try:
            self._answer = self._fetch(self.first, self.end)
        except Exception as error:  # noqa: BLE001 - raised to whoever reads it
            self._answer = error

    def result(self) -> bytes:
        """Wait for the bytes; raises what fetching them did."""
        self.join()
        if isinstance(self._answer, Exception):
            raise self._answer
        return self._answer


class _Windows:
    """Ranges of a file, the next ones asked for ahead as long as it is read forwards without gaps."""

    def __init__(self, fetch: Callable[[int, int], bytes], size: int):
        self._fetch, self._size = fetch, size
        self._start, self._data = 0, memoryview(b"")
        self._width = FIRST_WINDOW
        self._ahead: deque[_Asked] = deque()

    def read(self, size: int, offset: int) -> bytes:
        """Return `size` bytes from an offset on, fewer only at the end."""
        pieces: list[memoryview] = []
        while size > 0 and offset < self._size:
            if not self._start <= offset < self._start + len(self._data):
                self._load(offset)
            piece = self._data[offset - self._start :][:size]
            pieces.append(piece)
            offset, size = offset + len(piece), size - len(piece)
        return b"".join(pieces)

    def _load(self, offset: int) -> None:
        """Take the range that holds an offset; ask for the next ones if it follows the last."""
        is_next = offset == self._start + len(self._data)
        while self._ahead and self._ahead[0].end <= offset:
            self._ahead.popleft()
        if self._ahead and self._ahead[0].first <= offset:
            asked = self._ahead.popleft()
            self._start, self._data = asked.first, memoryview(asked.result())
        else:
            self._ahead.clear()
            self._width = min(2 * self._width, LAST_WINDOW) if is_next else FIRST_WINDOW
            end = min(offset + self._width, self._size)
            self._start, self._data = offset, memoryview(self._fetch(offset, end))
        if self._width > 4 * FIRST_WINDOW:
            self._ask_ahead()

    def _ask_ahead(self) -> None:
        end = self._ahead[-1].end if self._ahead else self._start + len(self._data)
        while len(self._ahead) < AHEAD and end < self._size:
            self._width = min(2 * self._width, LAST_WINDOW)
            start, end = end, min(end + self._width, self._size)
            self._ahead.append(_Asked(self._fetch, start, end))


def location(root: str, path: bytes) -> Location:
    """Return where the object is that a candidate's path names."""
    return Location(root, path[len(root) + 1 :].decode())


def raise_fault(root: str, fault: ObjectFault) -> NoReturn:
    """Raise the ImageFault of one object, or Stopped if the store is at fault: it cannot be listed either."""
    if fault.kind == "changed":
        raise ImageFault("vanished", "it was replaced while the archive was scanned") from None
    if fault.kind == "down" or not (root.startswith("http") or _is_listed(root)):
        raise _stopped(fault) from None
    status = "vanished" if fault.kind == "missing" else "unreadable"
    raise ImageFault(status, f"it could not be read: {fault.reason}") from None


def _is_listed(root: str) -> bool:
    """Tell whether a bucket still answers."""
    try:
        list(islice(objects.entries_below(Location(root, "")), 1))
    except ObjectFault:
        return False
    return True


def _entry_or_none(at: Location, most: int = len(objects.DELAYS_S)) -> Entry | None:
    try:
        return objects.entry_at(at, most)
    except ObjectFault as fault:
        if fault.kind != "missing":
            raise
        return None


def _stopped(fault: ObjectFault) -> Stopped:
    return Stopped(f"{fault.reason}; finished rows are kept: {fault.advice}, and run the same command again")
