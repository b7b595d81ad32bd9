"""Exclusive lock of an output, which names its holder and is freed when the holder dies."""

import fcntl
import json
import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from ..errors import Refused
from ..text import timestamp

NOTE_SIZE = 512  # bytes; written whole, so that a reader never meets half of a longer note


class OutputLock:
    """A `flock` on a file; the kernel frees it when its process ends, however it ends."""

    def __init__(self, path: Path):
        self.path = path
        self._handle = -1
        self._told = 0.0
        self._started = timestamp()

    @property
    def held(self) -> bool:
        """Whether this process holds the lock."""
        return self._handle >= 0

    def acquire(self, output: Path) -> None:
        """Take the lock; raises Refused, naming the holder, if another scan has it."""
        while not self.held:
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                holder = _holder(handle)
                os.close(handle)
                raise Refused(f"{output} is being written by {holder}: wait for it, or stop it") from None
            except OSError as error:
                os.close(handle)
                raise Refused(f"{self.path} cannot be locked here: {error.strerror}") from None
            if self._is_current(handle):
                self._handle = handle
            else:
                os.close(handle)  # the former holder has removed the file since it was opened
        self._note({"rows": 0})

    def tell(self, rows: int) -> None:
        """Note how many rows are done, at most once a second, for commands that find the lock held."""
        if time.monotonic() - self._told >= 1:
            self._note({"rows": rows})

    def release(self) -> None:
        """Release the lock; a second call does nothing."""
        if self.held:
            os.close(self._handle)
            self._handle = -1

    def _is_current(self, handle: int) -> bool:
        try:
            return os.path.samestat(os.fstat(handle), self.path.stat())
        except FileNotFoundError:
            return False

    def _note(self, progress: dict[str, Any]) -> None:
        self._told = time.monotonic()
        note = {"host": socket.gethostname(), "pid": os.getpid(), "start": self._started, **progress}
        with suppress(OSError):  # a full disk must not end a scan over a courtesy
            os.pwrite(self._handle, json.dumps(note).encode().ljust(NOTE_SIZE), 0)


def _holder(handle: int) -> str:
    try:
        note = json.loads(os.pread(handle, NOTE_SIZE, 0))
        return (
            f"a scan on {note['host']} (process {note['pid']}, started {note['start']}, "
            f"{note['rows']} rows so far)"
        )
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return "another scan"
