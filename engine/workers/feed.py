"""Candidates for the workers, listed ahead by a thread."""

import os
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import suppress

from ..errors import Stopped
from ..sources import Candidate
from .progress import Progress

AHEAD = 16_384  # candidates that are listed ahead of the workers
CLOCK_EVERY = 256  # candidates between two readings of the clock


class Feed:
    """Lists in a background thread; `take` returns the next candidates. A context manager."""

    def __init__(self, candidates: Iterator[Candidate], progress: Progress):
        self._candidates = candidates
        self._progress = progress
        self._listed: deque[Candidate] = deque()
        self._room = threading.Event()
        self._ended = False
        self._closed = False
        self._error: BaseException | None = None
        self._awaited = False
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._thread = threading.Thread(target=self._list, name="list", daemon=True)
        try:
            self._thread.start()
        except RuntimeError as error:
            raise Stopped(
                f"no more threads can be started ({error}); finished rows are kept: raise the limits on "
                "processes and memory, and run the same command again"
            ) from error

    @property
    def has_some(self) -> bool:
        """Whether there is a candidate to take."""
        return bool(self._listed)

    @property
    def is_empty(self) -> bool:
        """Whether everything is listed and taken; raises the error that ended the listing."""
        if self._listed or not self._ended:
            return False
        if self._error is not None:
            raise self._error
        return True

    def take(self, count: int, most_bytes: int, at_once: bool) -> list[Candidate]:
        """Take the next `count` candidates; fewer only where files are large, at the end, or if `at_once`."""
        listed = self._listed
        if len(listed) < count and not (at_once or self._ended):
            return []
        taken, held = list[Candidate](), 0
        while listed and len(taken) < count and (not taken or held + _size(listed[0]) <= most_bytes):
            held += _size(listed[0])
            taken.append(listed.popleft())
        if len(listed) <= AHEAD // 2:
            self._room.set()
        return taken

    def fileno(self) -> int:
        """Return a descriptor that becomes readable when something is listed after `await_more`."""
        return self._wake

    def await_more(self) -> None:
        """Make the descriptor readable at the next candidate."""
        with suppress(BlockingIOError):
            os.eventfd_read(self._wake)
        self._awaited = True

    def _list(self) -> None:
        """List until the end, an error, or `close`; the main function of the thread."""
        began, waited = time.perf_counter(), 0.0
        try:
            for number, candidate in enumerate(self._candidates):
                self._listed.append(candidate)
                if self._awaited:
                    self._tell()
                if number % CLOCK_EVERY == 0:
                    self._note(time.perf_counter() - began - waited)
                if len(self._listed) >= AHEAD:
                    waited += self._wait_for_room()
                if self._closed:
                    return
        except BaseException as error:  # noqa: BLE001 - `is_empty` raises it, whatever it is
            self._error = error
        finally:
            self._note(time.perf_counter() - began - waited)
            self._ended = True
            self._tell()

    def _wait_for_room(self) -> float:
        began = time.perf_counter()
        self._room.clear()
        while len(self._listed) >= AHEAD and not self._closed:
            self._room.wait(0.2)
        return time.perf_counter() - began

    def _note(self, seconds: float) -> None:
        self._progress.seconds["list"] = seconds
        self._progress.thread_cpu_seconds["list"] = time.thread_time()

    def _tell(self) -> None:
        self._awaited = False
        os.eventfd_write(self._wake, 1)

    def __enter__(self) -> "Feed":
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._closed = True
        self._room.set()


def _size(candidate: Candidate) -> int:
    return candidate.row.bytes or 0
