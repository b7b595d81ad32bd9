"""The images that are in a decoder right now, in a file that outlives its process.

A worker notes an image before it decodes it, without a lock: each of its threads has slots in a memory-mapped
file. From the slots the coordinator learns which images take too long and which a dead worker was decoding; a
later run learns the same if the coordinator died as well. All of these images are then decoded apart.
"""

import mmap
import os
import struct
import threading
import time
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

from ..system.durable import read_whole, write_whole
from ..system.machine import thread_seconds

KEY_SIZE = 16  # bytes
SLOT = struct.Struct("=16sQQ")  # key, start in monotonic ns (0: idle), id of the thread that decodes it
PATIENCE = 10  # times the limit of CPU seconds that an image may take by the clock, on a busy machine
PAUSE_S = 2.0  # between two looks at the clock; what takes longer was a pause
SUSPECTS = "suspects"
PREFIX = "in_flight-"


class Slots:
    """Slots of one thread in its worker's file."""

    def __init__(self, slots: mmap.mmap, first: int, count: int):
        self._slots = slots
        self._first = first * SLOT.size
        self._count = count
        self._thread = 0

    def belong_to_this_thread(self) -> None:
        """Note with each image that the calling thread decodes it."""
        self._thread = threading.get_native_id()

    def begin(self, key: bytes) -> None:
        """Note that this image is being decoded from now on, in place of the one before."""
        SLOT.pack_into(self._slots, self._first, key, time.monotonic_ns(), self._thread)

    def begin_all(self, keys: Sequence[bytes]) -> None:
        """Note images that are decoded at once; no more than there are slots."""
        now = time.monotonic_ns()
        for slot, key in enumerate(keys[: self._count]):
            SLOT.pack_into(self._slots, self._first + slot * SLOT.size, key, now, self._thread)

    def end(self) -> None:
        """Note that nothing is being decoded here."""
        self._slots[self._first : self._first + self._count * SLOT.size] = bytes(self._count * SLOT.size)


def open_slots(path: Path, counts: Sequence[int]) -> list[Slots]:
    """Create a worker's file with `counts` slots for its threads; raises OSError.

    The mapping is never closed: a thread may still decode when its scan ends, and needs its slots.
    """
    size = sum(counts) * SLOT.size
    handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        _write_all(handle, bytes(size))  # real blocks: a hole met on a full disk is SIGBUS
        mapped = mmap.mmap(handle, size)
    finally:
        os.close(handle)
    firsts = [sum(counts[:thread]) for thread in range(len(counts))]
    return [Slots(mapped, first, count) for first, count in zip(firsts, counts, strict=True)]


def _write_all(handle: int, content: bytes) -> None:
    """Write all bytes from the start of a file; on a full disk only the next write raises OSError."""
    written = 0
    while written < len(content):
        written += os.pwrite(handle, content[written:], written)


class Decoding(NamedTuple):
    """An image that is being decoded."""

    key: bytes
    started: int  # monotonic ns
    thread: int  # that decodes it; 0 where it is unknown


def in_flight(path: Path) -> list[Decoding]:
    """Read what is being decoded, from any process."""
    try:
        content = read_whole(path)
    except FileNotFoundError:
        return []
    whole = len(content) // SLOT.size * SLOT.size
    found = (Decoding(*fields) for fields in SLOT.iter_unpack(content[:whole]))
    return [image for image in found if image.started]


class Pauses:
    """Notices that this process was paused, as by Ctrl-Z, by looks at the clock that lie far apart.

    Looks must follow each other closely.
    """

    def __init__(self) -> None:
        self._looked = self._resumed = time.monotonic_ns()

    def look(self) -> int:
        """Return when the last pause ended, in monotonic ns: images get their full time again from there."""
        now = time.monotonic_ns()
        if now - self._looked > PAUSE_S * 1e9:
            self._resumed = now
        self._looked = now
        return self._resumed


class LateImages:
    """Finds images that take too long: over a limit of CPU time, or PATIENCE times it by the clock.

    A machine under load gives a decoder little of its time, and that is no fault of a file. CPU time counts
    from the first look at an image, so looks must follow each other closely.
    """

    def __init__(self, limit_s: float):
        self._limit_s = limit_s
        self._first: dict[tuple[int, Decoding], float] = {}  # CPU seconds of the thread at the first look

    def among(self, process: int, images: Sequence[Decoding], resumed: int = 0) -> bool:
        """Look at a process's images; tell whether one of them is late.

        No time before `resumed`, in monotonic ns, counts by the clock.
        """
        now, seen = time.monotonic_ns(), dict[tuple[int, Decoding], float]()
        late = False
        for image in images:
            late |= now - max(image.started, resumed) > PATIENCE * self._limit_s * 1e9
            spent = thread_seconds(process, image.thread)
            if spent is not None:
                first = seen[process, image] = self._first.get((process, image), spent)
                late |= spent - first > self._limit_s
        others = {key: first for key, first in self._first.items() if key[0] != process}
        self._first = others | seen
        return late


def collect_suspects(folder: Path) -> set[bytes]:
    """Add what dead workers were decoding to the file of suspects; returns the keys of all suspects.

    A suspect stays in the file until `keep_suspects` drops it. Raises OSError.
    """
    file = folder / SUSPECTS
    known = read_whole(file) if file.exists() else b""
    whole = len(known) // KEY_SIZE * KEY_SIZE
    keys = {known[at : at + KEY_SIZE] for at in range(0, whole, KEY_SIZE)}
    left = list(folder.glob(f"{PREFIX}*"))
    for path in left:
        keys.update(image.key for image in in_flight(path))
    keep_suspects(folder, keys)
    for path in left:
        path.unlink(missing_ok=True)
    return keys


def keep_suspects(folder: Path, keys: Iterable[bytes]) -> None:
    """Make the file of suspects hold exactly these keys, durably; raises OSError."""
    content = b"".join(sorted(keys))
    file = folder / SUSPECTS
    if content != (read_whole(file) if file.exists() else b""):
        write_whole(file, content)
