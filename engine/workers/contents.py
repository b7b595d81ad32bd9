"""Equal bytes are decoded and scored once: whatever else has them takes over the values of the first."""

import threading
from collections import OrderedDict
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path

from ..results.contents import CARRIED, KnownContents, Values
from ..row import Row
from ..stages import Batch

HELD = 1 << 15  # contents of this run that a worker remembers, in some 30 MB

_values_of = attrgetter(*CARRIED)


@dataclass
class _Content:
    """Bytes that a thread of this worker has begun to decode; `values` are there once `scored` is set."""

    scored: threading.Event = field(default_factory=threading.Event)
    values: Values = ()


@dataclass
class Recognized:
    """Rows of a chunk by what becomes of them; `count` of them are not decoded."""

    count: int = 0
    own: list[tuple[Row, _Content]] = field(default_factory=list)  # the first of their bytes
    waiting: list[tuple[Row, _Content]] = field(default_factory=list)  # the others


class Contents:
    """What is known of bytes: from the finished result before, and from what this worker has scored.

    Threads that meet the same bytes at the same time share the work of the first. Each shares its own before
    it waits for others, so that none waits for ever.
    """

    def __init__(self, folder: Path):
        self._known = KnownContents(folder) if KnownContents.is_in(folder) else None
        self._met: OrderedDict[bytes, _Content] = OrderedDict()
        self._lock = threading.Lock()

    def recognize(self, batch: Batch) -> Recognized:
        """Fill the rows whose bytes are known, and drop contents that need no decoding."""
        found = Recognized()
        known = self._known.of(batch.rows) if self._known else [None] * len(batch.rows)
        for at, (row, before) in enumerate(zip(batch.rows, known, strict=True)):
            if row.sha256 is None or row.status is not None:
                continue
            if before is not None:
                values, row.scanned_at = before
                _fill(row, values)
            else:
                content, is_first = self._meet(row.sha256)
                (found.own if is_first else found.waiting).append((row, content))
                if is_first:
                    continue
            batch.contents[at] = None
            found.count += 1
        return found

    def share(self, found: Recognized) -> None:
        """Make the values of a scored chunk known, then fill the rows that wait for theirs."""
        for row, content in found.own:
            content.values = _values_of(row)
            content.scored.set()
        for row, content in found.waiting:
            content.scored.wait()
            _fill(row, content.values)

    def _meet(self, digest: bytes) -> tuple[_Content, bool]:
        """Return the entry of these bytes, and whether nobody has met them before."""
        with self._lock:
            content = self._met.get(digest)
            if content is not None:
                self._met.move_to_end(digest)
                return content, False
            content = self._met[digest] = _Content()
            if len(self._met) > HELD:
                self._met.popitem(last=False)
            return content, True


def _fill(row: Row, values: Values) -> None:
    for name, value in zip(CARRIED, values, strict=True):
        setattr(row, name, value)
