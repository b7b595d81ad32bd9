"""The small parent process of the command: it outlives a decoder's crash and starts the scan again.

A decoder that dies takes its process with it, and a thread that hangs cannot be stopped. So the command
forks before anything heavy is loaded; the child scans, the parent watches the journal of what is being
decoded. When the child dies by a decoder's signal, has lost its GPU, or one image takes longer than the
limit, the parent starts it again: the new child finds the journalled images and decodes them apart
(`isolated.py`), on the CPU.
"""

import logging
import os
import select
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import Stopped
from .results.journal import running
from .system.machine import die_with
from .text import signal_name

log = logging.getLogger(__name__)

TICK_S = 0.25
PAUSE_S = 2.0  # a tick that takes longer: this process did not run
DECODER_SIGNALS = frozenset(
    {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGSYS}
)
OWN_CODES = frozenset({0, 1, 2, 3, 4, 130, 143})
LOST_CODE = 75  # of a child whose GPU answers it no more; ours, never the command's
MOST_LOSSES = 3  # of a command; where its GPU is lost more often, no image is to blame


def supervise(scan: Callable[[], int], journal: Path, decode_timeout_s: float, feed_stdin: bool) -> int:
    """Run `scan` in a child process until it ends by itself; returns its exit code.

    `feed_stdin`: the scan reads a list from standard input, which a second child must see whole.
    """
    feed = StdinFeed() if feed_stdin else None
    losses = 0
    while True:
        began = time.monotonic_ns()
        child = _start(scan, feed)
        with _forward_signals(child) as forwarded:
            ended, late = _watch(child, journal, began, decode_timeout_s, feed)
        lost = os.WIFEXITED(ended) and os.WEXITSTATUS(ended) == LOST_CODE
        if os.WIFEXITED(ended) and not lost:
            return _own_code(os.WEXITSTATUS(ended))
        if forwarded:  # it could not obey: the signal came before the scan, or an image hangs
            log.warning("stopped as asked; run the same command to go on")
            return 128 + forwarded[0]
        suspects = len(_decoding(journal, began))
        losses += lost
        cause = "the loss of its GPU" if lost else signal_name(os.WTERMSIG(ended))
        crashed = losses <= MOST_LOSSES if lost else os.WTERMSIG(ended) in DECODER_SIGNALS
        if not (suspects and (late or crashed)):
            log.error("the scan's process was ended by %s; run the same command to go on", cause)
            return 1
        reason = f"an image took over {decode_timeout_s:g} s" if late else f"the decoder was ended by {cause}"
        log.warning("%s; going on, with the %d images that were in decoders decoded apart", reason, suspects)


def _own_code(code: int) -> int:
    """Give a scan's exit code as it is; one that a library ended the process with means nothing to a user."""
    if code in OWN_CODES:
        return code
    log.error("the scan's process ended itself with code %d; run the same command to go on", code)
    return 1


def _start(scan: Callable[[], int], feed: "StdinFeed | None") -> int:
    parent = os.getpid()
    sys.stdout.flush()
    sys.stderr.flush()
    reader = feed.rewind() if feed else None
    child = os.fork()
    if child:
        if reader is not None:
            os.close(reader)
        return child
    code = 1
    try:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # until the scan can end in order
        die_with(parent)
        if feed and reader is not None:
            feed.become_stdin(reader)
        code = scan()
    except BaseException as error:  # noqa: BLE001 - told here: nothing gets past _exit
        sys.excepthook(type(error), error, error.__traceback__)
    finally:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):  # nobody reads it any more
                stream.flush()
        os._exit(code)  # a hanging decoder thread must not hold the exit up


def _watch(
    child: int, journal: Path, began: int, decode_timeout_s: float, feed: "StdinFeed | None"
) -> tuple[int, bool]:
    """Wait for the child; returns its wait status and whether it was ended for a late image."""
    late = False
    looked = resumed = began
    limit = decode_timeout_s * 1e9
    handle = os.pidfd_open(child)
    try:
        while True:
            if feed:
                feed.pump(handle)
            else:
                select.select([handle], [], [], TICK_S)
            pid, status = os.waitpid(child, os.WNOHANG)
            if pid:
                return status, late
            now = time.monotonic_ns()
            if now - looked > PAUSE_S * 1e9:
                resumed = now  # all of the scan stood still, as after Ctrl-Z: images get their time again
            looked = now
            if not late and any(max(started, resumed) < now - limit for started in _decoding(journal, began)):
                late = True
                os.kill(child, signal.SIGKILL)
    finally:
        os.close(handle)


def _decoding(journal: Path, began: int) -> list[int]:
    """Give the starts of what the child that began then is decoding; the rest is a former child's."""
    return [started for _, started in running(journal) if started > began]


class _forward_signals:  # noqa: N801 - used as a function
    """Pass SIGINT and SIGTERM on to the child, which ends in order and gives the exit code."""

    def __init__(self, child: int):
        self._child = child
        self._forwarded: list[int] = []

    def __enter__(self) -> list[int]:
        self._former = {s: signal.signal(s, self._send) for s in (signal.SIGINT, signal.SIGTERM)}
        return self._forwarded

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def _send(self, number: int, _frame: object) -> None:
        self._forwarded.append(number)
        with suppress(ProcessLookupError):
            os.kill(self._child, number)


class StdinFeed:
    """Keeps what came by standard input on disk, so that every child reads the list from its start."""

    def __init__(self) -> None:
        with _told_of_the_list():
            self._spool = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the command
        self._sent = 0
        self._kept = 0
        self._ended = False
        self._pipe: int | None = None

    def rewind(self) -> int:
        """Open a new pipe that will carry the whole list; returns its reading end."""
        self._close()
        reader, self._pipe = os.pipe()
        os.set_blocking(self._pipe, False)
        self._sent = 0
        return reader

    def become_stdin(self, reader: int) -> None:
        """In the child: read the pipe in place of standard input."""
        self._close()
        os.dup2(reader, 0)
        os.close(reader)

    def pump(self, child: int) -> None:
        """Move what can be moved now, from standard input to the spool to the child; waits one tick."""
        behind = self._sent < self._kept
        reads = [child] if behind or self._ended else [child, 0]
        writes = [self._pipe] if behind and self._pipe is not None else []
        readable, writable, _ = select.select(reads, writes, [], TICK_S)
        if 0 in readable:
            with _told_of_the_list():
                self._keep(os.read(0, 1 << 16))
        if writable:
            self._send()
        if self._ended and self._sent == self._kept:
            self._close()

    def _keep(self, chunk: bytes) -> None:
        self._ended = not chunk
        while chunk:
            written = os.pwrite(self._spool.fileno(), chunk, self._kept)
            self._kept += written
            chunk = chunk[written:]

    def _send(self) -> None:
        if self._pipe is None:
            return
        chunk = os.pread(self._spool.fileno(), 1 << 16, self._sent)
        try:
            with suppress(BlockingIOError):
                self._sent += os.write(self._pipe, chunk)
        except BrokenPipeError:
            self._close()  # the child is gone or has read enough

    def _close(self) -> None:
        if self._pipe is not None:
            os.close(self._pipe)
            self._pipe = None


@contextmanager
def _told_of_the_list() -> Iterator[None]:
    """Say where the list stood when the disk or standard input failed it."""
    try:
        yield
    except OSError as error:
        raise Stopped(
            f"the list on standard input could not be read, or kept in a temporary file: {error.strerror}; "
            "what is finished is kept: run the same command again, with TMPDIR naming a folder with room"
        ) from error
