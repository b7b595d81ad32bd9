"""Defines a candidate, which is one image or container, and the counts of a listing."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from ..row import Kind, Row, Status
from ..text import counted
from .storage import Storage

MAX_FILE_SIZE = 256_000_000  # bytes
MAX_REASONS = 1_000  # different extensions that are counted apart

LEFT_OUT = {  # nouns for the reasons, and what takes these things in
    "symlink": ("symbolic link", " (--follow-links follows them)"),
    "symlink to nowhere": ("broken symbolic link", ""),
    "symlink loop": ("symbolic link", " that lead in a circle"),
    "hidden": ("hidden file or folder", " (--hidden includes them)"),
    "excluded": ("file", " that --include or --exclude leaves out"),
    "no extension": ("other file", " without an extension"),
    "folder marker": ("empty object", " without an extension, as some tools make for folders"),
    "unfinished results": ("folder", " of unfinished results"),
    "tar special": ("special file", " in a tar"),
    ".zip": (".zip file", " (zip archives are not read: unpack them, or repack them as .tar)"),
    "other extensions": ("file", " of other extensions"),
}

_Identity = tuple[str, Kind, int | None, int | None, int | None, str | None]  # of a row: uri to etag


class Enough(Exception):
    """Raised by `accept` to end the listing."""


@dataclass
class ListingCounts:
    """Counts of what a listing met; `skipped` things are not candidates and have no row."""

    images: int = 0  # candidates of kind image, before `accept` is asked
    containers: int = 0  # folders and archives with a row of their own, likewise
    folders: int = 0  # listed
    archives: int = 0  # opened
    skipped: Counter[str] = field(default_factory=Counter)  # by extension (.xml) or reason (symlink, FIFO)
    elsewhere: int = 0  # candidates of other shards, which `images` and `containers` leave out
    in_archives: int = 0  # of all these, members of archives, and archives that are faulty
    in_archive: int = 0  # of these, in the archive being listed
    digest: int = 0  # of what every shard lists: 64 bits

    def skip(self, reason: str) -> None:
        """Count one thing that is not a candidate."""
        if len(self.skipped) >= MAX_REASONS and reason not in self.skipped:
            reason = "other extensions"
        self.skipped[reason] += 1

    @property
    def files(self) -> int:
        """Number of files and archives met: the same in every shard, unlike the members that it looks at."""
        return self.images + self.containers + self.elsewhere - self.in_archives + self.archives

    @property
    def place(self) -> int:
        """Place of the last candidate in the listing, the same in every shard; places ascend."""
        return self.files << 32 | self.in_archive


def left_out(reason: str, number: int) -> str:
    """Say what a listing skipped, by extension or reason, with the option that takes it in."""
    noun, rest = LEFT_OUT.get(reason, (f"{reason} file" if reason.startswith(".") else reason, ""))
    return counted(number, noun) + rest


@dataclass(slots=True)
class Candidate:
    """One row to be filled, and where its bytes lie; one whose row has a status is not read.

    Pickles as it was listed: of the row, the identity and the status that the listing gave it.
    """

    row: Row
    path: bytes  # of the file, or of the tar that holds it
    storage: Storage | None = None  # None where there is nothing to read
    key: bytes = b""  # of its row, once it was claimed

    def __reduce__(self) -> tuple[Any, ...]:
        row = self.row
        if row.status is None:
            listed = row.uri, row.bytes, row.mtime, row.offset, row.etag
            return _unread, (*listed, self.path, self.storage, self.key)
        return _judged, (
            (row.uri, row.kind, row.bytes, row.mtime, row.offset, row.etag),
            row.status,
            row.error,
            self.path,
            self.key,
        )

    def read(self, max_bytes: int = MAX_FILE_SIZE) -> bytes:
        """Return the bytes, from any thread; those of a compressed tar's member only once.

        Raises ImageFault (empty, truncated, unreadable, vanished, too_large) for a fault of the file,
        Stopped for one of the machine, after some seconds of trying.
        """
        assert self.storage is not None, "a candidate whose row has a status is not read"
        return self.storage.read(self.path, self.row, max_bytes)


def _unread(  # noqa: PLR0913 - a tuple for them would be one more object to pickle
    uri: str,
    size: int | None,
    mtime: int | None,
    offset: int | None,
    etag: str | None,
    path: bytes,
    storage: Storage,
    key: bytes,
) -> Candidate:
    """Unpickle a candidate that is to be read."""
    return Candidate(Row(uri, "image", size, mtime, offset, etag), path, storage, key)


def _judged(identity: _Identity, status: Status, error: str, path: bytes, key: bytes) -> Candidate:
    """Unpickle a candidate that the listing has judged."""
    return Candidate(Row(*identity, status=status, error=error), path, None, key)


Accept = Callable[[Candidate], bool]
