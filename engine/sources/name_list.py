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
MAX_NAME = 65_536  # bytes of one line; the system takes no path above 4,096


def names_in_list(name: str, null: bool, stopped: Event | None) -> Iterator[bytes]:
    """Yield the names of a list as they arrive, except empty ones; raises Stopped.

    `name` is the file of the list, `-` for standard input. `stopped` ends the wait for more names.
    """
    end, hint = (b"\0", "") if null else (b"\n", "; if names are separated by NUL bytes, add --null")
    rest = b""
    for chunk in _chunks(name, stopped):
        *names, rest = (rest + chunk).split(end)
        for line in names:
            yield from _checked(line, null, name)
        if len(rest) > MAX_NAME:
            raise Stopped(f"the list {shown(os.fsencode(name))} has a line longer than any path{hint}")
    yield from _checked(rest, null, name)


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
