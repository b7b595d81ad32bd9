"""Engines that were built before: a folder of this user's own, under names that say what each depends on.

A compiled engine can be code, so the folder must be this user's and closed to all others; a recorded hash
finds what the disk has lost. A cache that cannot be used is no error: engines are built in memory then.
"""

import errno
import hashlib
import json
import logging
import os
import re
import stat
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

LAYOUT = 1  # of what is stored; part of every key
LARGEST_ENTRY = 4 << 30  # bytes
ENGINE, TIMING = "engine", "timing"  # what is kept: engines, and what TensorRT learned of kernels' speed
# names that are ours: a key and a kind, and the same while it is being written
OURS = re.compile(rf"[0-9a-f]{{64}}\.({ENGINE}|{TIMING})|\.[0-9a-f]{{64}}\.({ENGINE}|{TIMING})\.\d+")


@dataclass(frozen=True)
class Entry:
    """An engine as stored, and what its record says of it."""

    blob: bytes
    record: Mapping[str, Any]


@dataclass(frozen=True)
class Stored:
    """A file of the cache."""

    name: str
    bytes: int
    written: float  # seconds since 1970


def cache_key(facts: Mapping[str, Any]) -> str:
    """SHA-256 (hex) of all that an engine depends on: bundle, backend, device, precision, sizes."""
    text = json.dumps({"layout": LAYOUT, **facts}, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _digest(record: Mapping[str, Any], blob: bytes) -> str:
    """SHA-256 (hex) of what the record says and of the engine."""
    hashed = hashlib.sha256(json.dumps(record, sort_keys=True, allow_nan=False).encode())
    hashed.update(blob)
    return hashed.hexdigest()


def _parsed(data: bytes) -> Entry:
    """Split a stored file into record (a line of JSON) and engine; raises ValueError where it is damaged."""
    line, _, blob = data.partition(b"\n")
    try:
        record = json.loads(line)
        digest = record.pop("sha256")
    except (ValueError, AttributeError, KeyError, TypeError, RecursionError):
        raise ValueError("it is damaged, its record cannot be read") from None
    if _digest(record, blob) != digest:
        raise ValueError("it is damaged, its hash differs")
    return Entry(blob, record)


def default_cache_dir() -> Path:
    """Give the user's cache folder for this program, by the XDG base directory specification.

    Raises OSError where this user has no home.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    if Path(base).is_absolute():
        return Path(base) / "gbad-batch"
    try:
        return Path.home() / ".cache" / "gbad-batch"
    except RuntimeError:
        raise OSError(errno.ENOENT, "this user has no home folder, and --cache-dir names no other") from None


class EngineCache:
    """A cache folder, held open: what is checked at opening is what is read and written later."""

    def __init__(self, path: Path, descriptor: int):
        self.path = path
        self._folder = descriptor

    @classmethod
    def open(cls, path: Path | None = None) -> "EngineCache | None":
        """Open the cache at `path` (None: the user's), made where it is missing; None where it is not safe.

        The folder must be this user's own, mode 0700 and no link; otherwise a warning says what is wrong.
        """
        try:
            path = path or default_cache_dir()
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            cache = cls(path, os.open(path, flags))
        except OSError as error:
            is_link = path and os.path.islink(path)  # noqa: PTH114 - false where it may not be looked at
            reason = "it is a link or no folder" if is_link else error.strerror
            log.warning("the cache %s is not used: %s; engines are built in memory", path or "folder", reason)
            return None
        reason = cache._unsafe()
        if reason:
            log.warning("the cache %s is not used: %s; engines are built in memory", path, reason)
            cache.close()
            return None
        return cache

    def _unsafe(self) -> str | None:
        found = os.fstat(self._folder)
        if found.st_uid != os.geteuid():
            return "it belongs to another user"
        if stat.S_IMODE(found.st_mode) & 0o077:
            return f"others may enter it (mode {stat.S_IMODE(found.st_mode):04o}; chmod 700 closes it)"
        if not os.access(".", os.W_OK, dir_fd=self._folder):
            return "it cannot be written"
        return None

    def load(self, key: str, kind: str = ENGINE) -> Entry | None:
        """Give what is stored under `key` if it is whole, else None."""
        try:
            return _parsed(self._read(f"{key}.{kind}"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            log.warning("the cached %s %s is not used and is built again: %s", kind, key[:12], error)
            return None

    def store(self, key: str, blob: bytes, record: Mapping[str, Any], kind: str = ENGINE) -> None:
        """Keep a blob and its record in one file; where the disk does not take it, warn and no more."""
        line = json.dumps({**record, "sha256": _digest(record, blob)}, sort_keys=True, allow_nan=False)
        try:
            self._write(f"{key}.{kind}", line.encode() + b"\n" + blob)
        except OSError as error:
            log.warning("the %s is not kept in the cache %s: %s", kind, self.path, error.strerror)

    def contents(self) -> list[Stored]:
        """List what the cache holds, the oldest first; files that are not its own are left out."""
        found = []
        for name in filter(OURS.fullmatch, os.listdir(self._folder)):  # noqa: PTH208 - a descriptor
            with suppress(FileNotFoundError):  # another process has just renamed it
                seen = os.stat(name, dir_fd=self._folder, follow_symlinks=False)
                found.append(Stored(name, seen.st_size, seen.st_mtime))
        return sorted(found, key=lambda stored: stored.written)

    def empty(self) -> list[Stored]:
        """Remove what the cache holds and give what that was; an engine that is open stays usable."""
        removed = self.contents()
        for stored in removed:
            with suppress(FileNotFoundError):
                os.unlink(stored.name, dir_fd=self._folder)
        return removed

    def close(self) -> None:
        """Let go of the folder; calling twice is allowed."""
        if self._folder >= 0:
            os.close(self._folder)
            self._folder = -1

    def _read(self, name: str) -> bytes:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        with open(os.open(name, flags, dir_fd=self._folder), "rb") as file:  # noqa: PTH123 - a descriptor
            found = os.fstat(file.fileno())
            if (
                not stat.S_ISREG(found.st_mode)
                or found.st_uid != os.geteuid()
                or found.st_size > LARGEST_ENTRY
            ):
                raise ValueError(f"it is no plain file of this user of at most {LARGEST_ENTRY} bytes")
            return file.read(found.st_size)  # no more: Python allocates what it is asked for

    def _write(self, name: str, data: bytes) -> None:
        """Write under a name of this process's own, flush, rename."""
        fresh = f".{name}.{os.getpid()}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            with open(os.open(fresh, flags, 0o600, dir_fd=self._folder), "wb") as file:  # noqa: PTH123
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.rename(fresh, name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
            os.fsync(self._folder)
        except OSError:
            self._discard(fresh)
            raise

    def _discard(self, name: str) -> None:
        try:
            os.unlink(name, dir_fd=self._folder)
        except OSError:
            log.debug("%s could not be removed from the cache %s", name, self.path)
