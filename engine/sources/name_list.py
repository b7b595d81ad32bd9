"""Read the list of --files-from, as it arrives."""

import os
import select
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from threading import Event
from typing import cast

from ..errors import Stopped
from .faults import reason_of
from .uris import shown

WAKE_S = 0.2  # how often a wait for names checks whether the scan was stopped
UTF8_MARK = b"\xef\xbb\xbf"  # the byte-order mark that Windows tools begin a text with
UTF16_MARKS = (b"\xff\xfe", b"\xfe\xff")
MAX_NAME = 65_536  # bytes of one line; the system takes no path above 4,096


def names_in_list(name: str, null: bool, stopped: Event | None) -> Iterator[bytes]:
    """Yield the names of a list as they arrive, except empty ones; raises Stopped.

    `name` is the file of the list, `-` for standard input. `stopped` ends the wait for more names.
    """
    end, hint = (b"\0", "") if null else (b"\n", "; if names are separated by NUL bytes, add --null")
    rest, is_start = b"", True
    for chunk in _chunks(name, stopped):
        rest += chunk
        if is_start:
            if _may_be_marked(rest) and end not in rest and len(rest) <= MAX_NAME:
                continue  # the whole first line tells
            rest, is_start = _unmarked(rest, end, name), False
        *names, rest = rest.split(end)
        for line in names:
            yield from _checked(line, null, name)
        if len(rest) > MAX_NAME:
            raise Stopped(f"the list {shown(os.fsencode(name))} has a line longer than any path{hint}")
    yield from _checked(_unmarked(rest, end, name) if is_start else rest, null, name)


def is_utf16(start: bytes) -> bool:
    """Tell whether a text begins as UTF-16 does, with its mark or with many characters of a zero byte."""
    halves = start[::2].count(0), start[1::2].count(0)
    return start.startswith(UTF16_MARKS) or max(halves) * 4 > len(start)


def _may_be_marked(start: bytes) -> bool:
    marks = (UTF8_MARK, *UTF16_MARKS)
    return start.startswith(marks) or any(mark.startswith(start) for mark in marks)


def _unmarked(start: bytes, end: bytes, name: str) -> bytes:
    """Remove a byte-order mark, unless a file's name begins with it; raises Stopped for one of UTF-16."""
    line = start.partition(end)[0].removesuffix(b"\r")
    if not _may_be_marked(start) or (b"\0" not in line and os.path.lexists(line)):
        return start
    if start.startswith(UTF16_MARKS):
        raise Stopped(f"the list {shown(os.fsencode(name))} is UTF-16: save it as UTF-8")
    return start.removeprefix(UTF8_MARK)


def _checked(line: bytes, null: bool, name: str) -> Iterator[bytes]:
    if not null:
        line = line.removesuffix(b"\r")
    if b"\0" in line:
        raise Stopped(
            f"the list {shown(os.fsencode(name))} holds a NUL byte; if they separate names, add --null"
        )
    if line:
        yield line


def _chunks(name: str, stopped: Event | None) -> Iterator[bytes]:
    """Read a list as it arrives; raises Stopped where `stopped` is set while nothing does."""
    try:
        with _open_list(name) as file:
            while True:
                while stopped and not select.select([file], [], [], WAKE_S)[0]:
                    if stopped.is_set():
                        raise Stopped("the scan was stopped; run the same command again to continue")
                if not (chunk := file.read1(MAX_NAME)):
                    return
                yield chunk
    except OSError as error:
        raise Stopped(
            f"the list {shown(os.fsencode(name))} could not be read ({reason_of(error)}); "
            "run the same command again once it can be read"
        ) from error


@contextmanager
def _open_list(name: str) -> Iterator[BufferedReader]:
    if name == "-":
        yield cast("BufferedReader", sys.stdin.buffer)
        return
    with Path(name).open("rb") as file:
        yield file
