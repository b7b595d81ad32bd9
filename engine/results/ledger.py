"""Which candidates are finished and which this run has met, in under 20 bytes each.

A candidate's key is 16 bytes: ten of its identity (uri, offset), six of its stamp (bytes, mtime); 80 bits
of identity keep ten million candidates apart but for a chance of 4e-11. Keys are spread over 65,536 small
byte strings by their first two bytes, where the C search for eight bytes beats a sorted array and nothing
is ever moved to insert.
"""

from collections.abc import Iterable
from hashlib import blake2b
from typing import Literal

from ..row import Row

Claim = Literal["new", "finished", "duplicate"]

IDENTITY = slice(2, 10)  # of a key, in its shard: the first two bytes name the shard
STAMP = slice(10, 15)  # 40 of 48 bits: a change goes unseen once in 1e12
STATE_AT = 13  # of an entry: 8 bytes identity, 5 stamp, 1 state
ENTRY_SIZE = 14

FINISHED = 0  # by an earlier run, not met in this one
LISTED = 1  # met in this run
FEATURED = 2  # met, and its stored features found


class Ledger:
    """The candidates of one scan; `claim` says what to do with each as it is met."""

    def __init__(self) -> None:
        self._shards = [bytearray() for _ in range(1 << 16)]
        self.listed_images = 0  # distinct, met in this run
        self.listed_containers = 0
        self.finished = 0  # rows that earlier runs left
        self.duplicates = 0  # met again in this run

    @property
    def listed(self) -> int:
        """Distinct candidates met in this run: the number of rows that its result must have."""
        return self.listed_images + self.listed_containers

    def claim_key(self, key: bytes, kind: str) -> Claim:
        """Meet a candidate: `new` is to be scanned, `finished` has its row, `duplicate` was met before."""
        shard = self._shards[key[0] << 8 | key[1]]
        identity, stamp = key[IDENTITY], key[STAMP]
        unchanged = -1
        at = _find(shard, identity, 0)
        while at >= 0:
            if shard[at + STATE_AT] != FINISHED:
                self.duplicates += 1
                return "duplicate"
            if shard[at + 8 : at + STATE_AT] == stamp:
                unchanged = at
            at = _find(shard, identity, at + ENTRY_SIZE)
        if kind == "image":
            self.listed_images += 1
        else:
            self.listed_containers += 1
        if unchanged >= 0:
            shard[unchanged + STATE_AT] = LISTED
            return "finished"
        shard += identity + stamp + b"\x01"
        return "new"

    def add_finished(self, keys: Iterable[bytes]) -> None:
        """Take up the keys of rows that earlier runs left; before the first claim."""
        shards = self._shards
        for key in keys:
            shards[key[0] << 8 | key[1]] += key[2:15] + b"\x00"
            self.finished += 1

    def is_listed(self, key: bytes) -> bool:
        """Tell whether this run has met the candidate, as it was when its row was written."""
        return self._state(key) in (LISTED, FEATURED)

    def is_replaced(self, key: bytes) -> bool:
        """Tell whether this run has met the candidate with another size or time."""
        shard = self._shards[key[0] << 8 | key[1]]
        at = _find(shard, key[IDENTITY], 0)
        while at >= 0:
            if shard[at + STATE_AT] != FINISHED:
                return not self.is_listed(key)
            at = _find(shard, key[IDENTITY], at + ENTRY_SIZE)
        return False

    def take_features(self, key: bytes) -> bool:
        """Tell whether stored features of this key belong to a row of this run; True once a key."""
        shard = self._shards[key[0] << 8 | key[1]]
        at = _find(shard, key[2:15], 0)
        if at < 0 or shard[at + STATE_AT] != LISTED:
            return False
        shard[at + STATE_AT] = FEATURED
        return True

    def __contains__(self, key: bytes) -> bool:
        return self._state(key) is not None

    def _state(self, key: bytes) -> int | None:
        shard = self._shards[key[0] << 8 | key[1]]
        at = _find(shard, key[2:15], 0)
        return None if at < 0 else shard[at + STATE_AT]


def key_of(row: Row) -> bytes:
    """Return the 16-byte key of a candidate as it was listed."""
    return key_from(row.uri, row.offset, row.bytes, row.mtime)


def key_from(uri: str, offset: int | None, size: int | None, mtime: int | None) -> bytes:
    """Return the 16-byte key of a row's identity and stamp (bytes; us since the epoch)."""
    identity = blake2b(f"{uri}\0{offset}".encode(), digest_size=10).digest()
    return identity + blake2b(f"{size} {mtime}".encode(), digest_size=6).digest()


def _find(shard: bytearray, start: bytes, at: int) -> int:
    """Find the next entry that begins with these bytes, from an entry's edge on; -1 where there is none."""
    at = shard.find(start, at)
    while at >= 0 and at % ENTRY_SIZE:
        at = shard.find(start, at + 1)
    return at
