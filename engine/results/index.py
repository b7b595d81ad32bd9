"""Index of one scan's candidates: which are finished, and the position of each in this run's listing.

A candidate's key is 16 bytes: ten of its identity (uri, offset), six of its stamp (bytes, mtime); 80 bits
of identity keep ten million candidates apart but for a chance of 4e-11. Entries of 16 bytes are spread over
65,536 small byte strings by the key's first two bytes, where the C search for some bytes beats a sorted
array and nothing is ever moved to insert.
"""

from array import array
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, Literal
from zlib import crc32

from ..errors import Stopped
from ..row import Kind, Row, identity_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

Claim = Literal["new", "finished", "duplicate"]

# An entry of a shard; the key's first two bytes name the shard.
IDENTITY = slice(2, 10)  # of a key
UNCHANGED = slice(2, 14)  # identity and stamp, of a key; two different stamps look the same once in 4e9
POSITION_AT = 12  # of an entry: the position in this run's listing, 29 bits, little-endian, then three flags
FLAGS_AT = 15
ENTRY_SIZE = 16

NOT_LISTED = 0x80  # flag: its row was written by an earlier run, and this run has not listed it so far
ROW_TAKEN = 0x40
FEATURES_TAKEN = 0x20
MAX_LISTED = 1 << 29

# What `take_rows` gives in place of a position
GONE = -1  # this run did not list the candidate
REPLACED = -2  # this run listed the candidate with another size or time
TAKEN = -3  # a row of this key was taken before


class Index:
    """Candidates of one scan; `claim` decides what to do with each one as it is listed."""

    def __init__(self) -> None:
        self._shards = [bytearray() for _ in range(1 << 16)]
        self._new = array("i")  # positions of new candidates, kept only where some are finished
        self.listed = 0  # distinct candidates of this run: the number of rows that its result must have
        self.listed_containers = 0
        self.finished = 0  # rows that earlier runs left
        self.failed = 0  # of these, rows whose status is not ok
        self.alarms = 0  # of these
        self.by_content = (
            0  # the first so many of these: if they have a digest, no size and time matches them
        )
        self.skipped = 0  # of these, listed by this run as they were
        self.duplicates = 0  # listed more than once by this run
        self.places = array("q")  # in a shard: of each listed candidate, its place in the whole listing
        self.whole: dict[str, Any] = {}  # in a shard: what tells one listing of all shards from another

    @property
    def listed_images(self) -> int:
        """Number of distinct images that this run has listed."""
        return self.listed - self.listed_containers

    def claim(self, key: bytes, kind: Kind) -> Claim:
        """List a candidate: `new` is to be scanned, `finished` has its row, `duplicate` was listed before.

        Its position is the number of distinct candidates before it. Raises Stopped beyond 2**29 of them.
        """
        shard = self._shards[key[0] << 8 | key[1]]
        unchanged, at = -1, _find(shard, key[IDENTITY], 0)
        while at >= 0:
            if not shard[at + FLAGS_AT] & NOT_LISTED:
                self.duplicates += 1
                return "duplicate"
            if unchanged < 0 and shard[at : at + POSITION_AT] == key[UNCHANGED]:
                unchanged = at
            at = _find(shard, key[IDENTITY], at + ENTRY_SIZE)
        position = self.listed
        if position >= MAX_LISTED:
            raise Stopped(f"one scan lists at most {MAX_LISTED:,} images: divide its sources among several")
        self.listed = position + 1
        if kind == "container":
            self.listed_containers += 1
        if unchanged >= 0:
            shard[unchanged + POSITION_AT : unchanged + ENTRY_SIZE] = position.to_bytes(4, "little")
            self.skipped += 1
            return "finished"
        shard += key[UNCHANGED] + position.to_bytes(4, "little")
        if self.finished:
            self._new.append(position)
        return "new"

    def add_finished(self, keys: Iterable[bytes]) -> None:
        """Add the keys of rows that earlier runs wrote; before the first claim."""
        shards, flags = self._shards, bytes([0, 0, 0, NOT_LISTED])
        for key in keys:
            shards[key[0] << 8 | key[1]] += key[UNCHANGED] + flags
            self.finished += 1

    def new_positions(self, start: int, stop: int) -> "NDArray[np.int32]":
        """Return the positions of this run's new candidates, from one to another of their own count."""
        import numpy as np

        if self.finished:
            return np.array(self._new[start:stop], np.int32)
        return np.arange(start, min(stop, self.listed), dtype=np.int32)

    def is_new(self, key: bytes, number: int) -> bool:
        """Tell whether this key is that of this run's new candidate of that number, counted from 0."""
        return [self._take(key, 0)] == self.new_positions(number, number + 1).tolist()

    def take_rows(self, keys: Iterable[bytes]) -> "NDArray[np.int32]":
        """Return the position of each key's candidate, once; else GONE, REPLACED or TAKEN."""
        import numpy as np

        return np.fromiter(map(self._take_row, keys), np.int32)

    def take_features(self, keys: Iterable[bytes], keep_gone: bool = False) -> "NDArray[np.bool_]":
        """Tell for each key whether this run listed its candidate unchanged, or it is gone; once per key."""
        import numpy as np

        def is_kept(key: bytes) -> bool:
            position = self._take(key, FEATURES_TAKEN)
            return position >= 0 or (keep_gone and position == GONE and not self._is_listed(key))

        return np.fromiter(map(is_kept, keys), np.bool_)

    def __contains__(self, key: bytes) -> bool:
        return _find(self._shards[key[0] << 8 | key[1]], key[UNCHANGED], 0) >= 0

    def _take_row(self, key: bytes) -> int:
        position = self._take(key, ROW_TAKEN)
        return REPLACED if position == GONE and self._is_listed(key) else position

    def _take(self, key: bytes, flag: int) -> int:
        """Return the candidate's position and set the flag; TAKEN if it is set, GONE if it is not listed."""
        shard = self._shards[key[0] << 8 | key[1]]
        at = _find(shard, key[UNCHANGED], 0)
        if at < 0:
            return GONE
        flags = shard[at + FLAGS_AT]
        if flags & flag:
            return TAKEN
        shard[at + FLAGS_AT] = flags | flag
        if flags & NOT_LISTED:
            return GONE
        return int.from_bytes(shard[at + POSITION_AT : at + ENTRY_SIZE], "little") % MAX_LISTED

    def _is_listed(self, key: bytes) -> bool:
        """Tell whether this run has listed the candidate, with any size and time."""
        shard = self._shards[key[0] << 8 | key[1]]
        at = _find(shard, key[IDENTITY], 0)
        while at >= 0 and shard[at + FLAGS_AT] & NOT_LISTED:
            at = _find(shard, key[IDENTITY], at + ENTRY_SIZE)
        return at >= 0


def key_of(row: Row) -> bytes:
    """Return the 16-byte key of a candidate as it was listed."""
    return key_from(row.uri, row.offset, row.bytes, row.mtime)


def unmatched(key: bytes) -> bytes:
    """Return the key of the same identity with a stamp that its own file does not have."""
    return key[:10] + bytes(0xFF ^ byte for byte in key[10:14]) + key[14:]


def key_from(uri: str, offset: int | None, size: int | None, mtime: int | None) -> bytes:
    """Return the 16-byte key of a row's identity and stamp (bytes; us since the epoch)."""
    stamp = crc32(f"{size} {mtime}".encode()).to_bytes(6, "little")  # a checksum: nobody forges a time
    return identity_of(uri, offset) + stamp


def _find(shard: bytearray, start: bytes, at: int) -> int:
    """Return the offset of the next entry that starts with these bytes, or -1."""
    at = shard.find(start, at)
    while at >= 0 and at % ENTRY_SIZE:
        at = shard.find(start, at + 1)
    return at
