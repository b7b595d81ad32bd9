"""One image or container that a listing met, and the settings and counts of a listing."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from os import PathLike

from ..row import Row
from ..settings import SourceSettings
from .places import Place

MAX_FILE_SIZE = 256_000_000  # bytes
MAX_REASONS = 1_000  # different extensions that a tally keeps apart


class Enough(Exception):
    """Raised by `wanted` to end the listing."""


@dataclass
class Tally:
    """What a listing met; `skipped` are things that are no candidate and have no row."""

    images: int = 0  # candidates of kind image, before `wanted` was asked
    containers: int = 0  # folders and archives with a row of their own, likewise
    folders: int = 0  # listed
    archives: int = 0  # opened
    skipped: Counter[str] = field(default_factory=Counter)  # by extension (.xml) or reason (symlink, FIFO)

    def skip(self, reason: str) -> None:
        """Count one thing that is no candidate."""
        if len(self.skipped) >= MAX_REASONS and reason not in self.skipped:
            reason = "other extensions"
        self.skipped[reason] += 1


@dataclass(slots=True)
class Candidate:
    """One row to be filled, and where its bytes lie; one whose row has a status is not read."""

    row: Row
    path: bytes  # of the file, or of the tar that holds it
    place: Place | None = None  # None where there is nothing to read
    key: bytes = b""  # of its row, once it was claimed

    def read(self, max_bytes: int = MAX_FILE_SIZE) -> bytes:
        """Return the bytes, from any thread; those of a compressed tar's member only once.

        Raises ImageFault (empty, truncated, unreadable, vanished, too_large) for a fault of the file,
        Stopped for one of the machine, after some seconds of trying.
        """
        assert self.place is not None, "a candidate whose row has a status is not read"
        return self.place.read(self.path, self.row, max_bytes)


Wanted = Callable[[Candidate], bool]
