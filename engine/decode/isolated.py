"""Decoding of suspects in a child process, which may crash or hang without harm.

The child serves one image at a time over its pipes. A request is the length of the file (8 bytes,
little-endian), the limit of CPU seconds (a double) and the file's bytes; an answer is the length of a JSON
object (4 bytes), the object with the row's fields, and the pixels if the status is ok.
"""

import json
import math
import os
import resource
import signal
import struct
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import IO, Any, Self

import numpy as np
import numpy.typing as npt

from ..errors import Stopped
from ..results.in_flight import PATIENCE
from ..row import ImageFault, Row
from ..text import one_line, signal_name
from . import DecodeLimits, Decoder, native_lines
from .native import NoDecoder

REQUEST = struct.Struct("<Qd")
START_S = 120  # for the child to load its libraries, on a machine under load
READY = b"ready\n"
FIELDS = ("format", "width", "height", "bit_depth", "color", "status", "error", "warnings")
BASE_BYTES = 2 << 30  # of memory for the child before the first pixel
BYTES_A_PIXEL = 32  # decoder's copy, ours, and the resizer's, of 16-bit RGBA


class IsolatedDecoder:
    """Decodes like `Decoder`, with the same bits, but survives images that crash or hang the decoder."""

    def __init__(self, input_size: int, limits: DecodeLimits, timeout_s: float):
        self.input_size = input_size
        self.limits = limits
        self.timeout_s = timeout_s
        self._child: subprocess.Popen[bytes] | None = None
        self._lock = threading.Lock()

    def __call__(self, row: Row, blob: bytes) -> npt.NDArray[np.uint8] | None:
        """Decode one file to RGB pixels [input_size, input_size, 3]; None for a bad image.

        Fills the row as `Decoder` does, and also decoder_crash and decoder_timeout. Raises Stopped
        if the child does not start, or if the machine may have ended it.
        """
        with self._lock:
            try:
                try:
                    fields, pixels = self._ask(blob)
                except _Killed:
                    fields, pixels = self._ask(blob)
            except _Killed:
                raise Stopped(
                    "the decoder's process was killed twice, which the system does when memory is short; "
                    "finished rows are kept: free memory and run the same command again"
                ) from None
            except ImageFault as fault:
                row.fail(fault)
                pixels = None
            else:
                for name in FIELDS:
                    setattr(row, name, fields[name])
        if row.status == "decoder_crash":
            self._check_limit()
        return pixels

    def _check_limit(self) -> None:
        """Raise Stopped where the child, which inherits our limit, had less memory than an image may take."""
        allowed, most = resource.getrlimit(resource.RLIMIT_AS)[0], _most_bytes(self.limits)
        if allowed != resource.RLIM_INFINITY and allowed < most:
            raise Stopped(
                f"a decoder died, and with {allowed >> 20} MB for each process (ulimit -v) nobody can tell "
                f"whether the image or a lack of memory ended it; finished rows are kept: raise the limit "
                f"to {most >> 20} MB or more, or lift it, and run the same command again"
            )

    def _ask(self, blob: bytes) -> tuple[dict[str, Any], npt.NDArray[np.uint8] | None]:
        child, expired, answer = self._running(), threading.Event(), None
        try:
            with _time_limit(child, PATIENCE * self.timeout_s, expired):
                answer = self._exchange(child, blob)
        except (BrokenPipeError, EOFError):
            child.wait()
        finally:
            if answer is None or expired.is_set():  # dead, or interrupted in the middle of an answer
                self.close()
        if answer is not None:
            return answer
        if expired.is_set():
            seconds = PATIENCE * self.timeout_s
            raise ImageFault("decoder_timeout", f"the image was not decoded within {seconds:g} s")
        if child.returncode == -signal.SIGPROF:
            raise ImageFault(
                "decoder_timeout", f"the image was not decoded within {self.timeout_s:g} s of CPU time"
            )
        if child.returncode == -signal.SIGKILL:  # not by us: the kernel does it where memory ends
            raise _Killed
        raise ImageFault("decoder_crash", f"the decoder was ended by {_cause(child.returncode)}")

    def _exchange(
        self, child: "subprocess.Popen[bytes]", blob: bytes
    ) -> tuple[dict[str, Any], npt.NDArray[np.uint8] | None]:
        assert child.stdin is not None
        assert child.stdout is not None
        child.stdin.write(REQUEST.pack(len(blob), self.timeout_s))
        child.stdin.write(blob)
        child.stdin.flush()
        (length,) = struct.unpack("<I", _exactly(child.stdout, 4))
        fields = json.loads(_exactly(child.stdout, length))
        if fields["status"] != "ok":
            return fields, None
        shape = (self.input_size, self.input_size, 3)
        return fields, np.frombuffer(_exactly(child.stdout, math.prod(shape)), np.uint8).reshape(shape)

    def _running(self) -> "subprocess.Popen[bytes]":
        if self._child is not None and self._child.poll() is not None:
            self.close()  # it died between two images
        if self._child is None:
            numbers = (self.input_size, self.limits.max_pixels, self.limits.max_file_size)
            self._child = subprocess.Popen(  # noqa: S603 - our own module; -P: never from the current folder
                [sys.executable, "-P", "-m", __spec__.name, *map(str, numbers)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                process_group=0,  # a Ctrl-C is for the parent; the child ends with its pipe
                env=os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
            )
            assert self._child.stdout is not None
            with _time_limit(self._child, START_S, threading.Event()):
                answer = self._child.stdout.read(len(READY))
            if answer != READY:
                code = self._child.wait()
                self.close()
                raise Stopped(
                    f"the decoder's child process does not start (ended by {_cause(code)}); try "
                    f"`{sys.executable} -m {__spec__.name} 256 1000 1000` to see why"
                )
        return self._child

    def close(self) -> None:
        """End the child, if there is one."""
        if self._child is not None:
            self._child.kill()
            self._child.wait()
            for pipe in (self._child.stdin, self._child.stdout):
                assert pipe is not None
                with suppress(BrokenPipeError):  # bytes buffered for a dead child
                    pipe.close()
            self._child = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class _Killed(Exception):
    """The child was killed from outside: no fault of the file."""


@contextmanager
def _time_limit(child: "subprocess.Popen[bytes]", seconds: float, expired: threading.Event) -> Iterator[None]:
    """Kill the child unless the block ends in time; the event says that it was killed."""

    def end() -> None:
        expired.set()
        child.kill()

    timer = threading.Timer(seconds, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()
        timer.join()


def _exactly(pipe: IO[bytes], count: int) -> bytes:
    data = pipe.read(count)
    if len(data) < count:
        raise EOFError
    return data


def _cause(code: int) -> str:
    """Say in words how a process ended."""
    if code >= 0:
        return f"exit code {code}"
    return f"signal {signal_name(-code)}"


def _most_bytes(limits: DecodeLimits) -> int:
    """Give the memory that the child may take."""
    return BASE_BYTES + BYTES_A_PIXEL * max(limits.max_pixels, 64_000_000) + 2 * limits.max_file_size


def serve(input_size: int, limits: DecodeLimits) -> None:
    """Answer requests until the parent closes the pipe; the child's main loop.

    SIGPROF ends an image at its limit of CPU time, an alarm a decoder that hangs when the parent is gone.
    """
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what native code prints must not get between the answers
    native_lines.catch()
    decode = Decoder(input_size, limits)
    most = _most_bytes(limits)
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    answers.write(READY)
    answers.flush()
    while head := requests.read(REQUEST.size):
        length, limit_s = REQUEST.unpack(head)
        blob = requests.read(length)
        row = Row(uri="")
        signal.setitimer(signal.ITIMER_PROF, max(limit_s, 0.001))
        signal.alarm(math.ceil(PATIENCE * limit_s) + 5)
        try:
            pixels = decode(row, blob)
        except (MemoryError, NoDecoder) as error:  # of this process, which may take less than the machine has
            pixels = None
            needs = f"the decoder needs more than {most >> 20} MB of memory"
            reason = one_line(error) if isinstance(error, NoDecoder) else needs
            row.fail(ImageFault("decoder_crash", reason))
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.alarm(0)
        fields = json.dumps({name: getattr(row, name) for name in FIELDS}).encode()
        answers.write(struct.pack("<I", len(fields)) + fields)
        if pixels is not None:
            answers.write(np.ascontiguousarray(pixels).data)
        answers.flush()


if __name__ == "__main__":
    _size, _pixels, _bytes = map(int, sys.argv[1:])
    serve(_size, DecodeLimits(max_pixels=_pixels, max_file_size=_bytes))
