"""What is being decoded right now, in a file that outlives a crash of the process.

Each image that is in a decoder has a slot of a memory-mapped file. The supervising parent reads the slots
for images that take too long; the next scan reads those that a dead one left and decodes these images apart.
"""

import mmap
import os
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path

from ..errors import DeviceLost
from ..system.durable import write_whole

SLOTS = 8192  # threads that decode one image each, and the images of a batch
KEY_SIZE = 16  # bytes, as `index.key_of` gives
SLOT = struct.Struct("=16sQ")  # key, start in monotonic ns (0: idle); the start is written last


class Journal:
    """The slots of one scan; made empty, so read what a dead scan left before.

    Never closed: a thread that still decodes when its scan ends must find its slot.
    """

    def __init__(self, path: Path):
        self._local = threading.local()
        self._numbers = count()
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            _write_all(handle, bytes(SLOTS * SLOT.size))  # real blocks: a hole met on a full disk is SIGBUS
            self._slots = mmap.mmap(handle, SLOTS * SLOT.size)
        finally:
            os.close(handle)

    def begin(self, slot: int, key: bytes) -> None:
        """Note that the image of this key is being decoded from now on."""
        at = slot * SLOT.size
        self._slots[at : at + KEY_SIZE] = key
        self._slots[at + KEY_SIZE : at + SLOT.size] = struct.pack("=Q", time.monotonic_ns())

    def end(self, slot: int) -> None:
        """Note that this slot's image is not being decoded any more."""
        at = slot * SLOT.size
        self._slots[at + KEY_SIZE : at + SLOT.size] = bytes(8)

    @contextmanager
    def decoding(self, *keys: bytes) -> Iterator[None]:
        """Journal images while the block runs, in slots of the calling thread's own.

        Where it raises DeviceLost they stay: nobody knows which of them it was.
        """
        if not hasattr(self._local, "slots"):
            self._local.slots = []
        slots: list[int] = self._local.slots
        while len(slots) < len(keys):
            slots.append(next(self._numbers))
        for slot, key in zip(slots, keys, strict=False):
            self.begin(slot, key)
        lost = False
        try:
            yield
        except DeviceLost:
            lost = True
            raise
        finally:
            for slot in slots[: 0 if lost else len(keys)]:
                self.end(slot)


def _write_all(handle: int, content: bytes) -> None:
    """Write from the start of a file; on a disk that fills up only the next write raises OSError."""
    written = 0
    while written < len(content):
        written += os.pwrite(handle, content[written:], written)


def running(path: Path) -> list[tuple[bytes, int]]:
    """Read (key, start in monotonic ns) of every image being decoded, from any process."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return []
    whole = len(content) // SLOT.size * SLOT.size
    return [(key, started) for key, started in SLOT.iter_unpack(content[:whole]) if started]


def take_suspects(journal: Path, suspects: Path) -> set[bytes]:
    """Move what a dead scan was decoding from its journal to the file of suspects; returns all of these.

    A suspect stays in the file until `keep_suspects` drops it. Raises OSError.
    """
    known = suspects.read_bytes() if suspects.exists() else b""
    keys = {known[at : at + KEY_SIZE] for at in range(0, len(known), KEY_SIZE)}
    keys.update(key for key, _ in running(journal))
    keep_suspects(suspects, keys)
    journal.unlink(missing_ok=True)
    return keys


def keep_suspects(suspects: Path, keys: set[bytes]) -> None:
    """Make the file of suspects hold exactly these keys, durably; raises OSError."""
    content = b"".join(sorted(keys))
    if content != (suspects.read_bytes() if suspects.exists() else b""):
        write_whole(suspects, content)
