"""Keeps built engines, and measurements that go with them, in a folder of this user.

It stands beside the runners since what it keeps is theirs: every exporter stores in it, every scan loads from
it. File names are hashes of everything that an entry depends on. A compiled engine can be code, so the folder
must belong to this user and be closed to all others; a recorded hash detects damaged files. An unusable cache
is not an error: engines are then built in memory.
"""

import errno
import hashlib
import json
import logging
import os
import re
import shutil
import stat
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

LAYOUT = 3  # version of what is stored; part of every key
LARGEST_ENTRY = 4 << 30  # bytes
# kinds of entry, each the suffix of its file name; timings are TensorRT's measurements of kernels
ENGINE, TIMING, PLAN = "engine", "timing", "plan"
INSTEAD = {
    ENGINE: "it will be rebuilt",
    TIMING: "kernels will be timed again",
    PLAN: "the default settings are used",
}
# names of the cache's own files: key and kind, also while one is being written
KINDS = f"({ENGINE}|{TIMING}|{PLAN})"
OURS = re.compile(rf"[0-9a-f]{{64}}\.{KINDS}|\.[0-9a-f]{{64}}\.{KINDS}\.\d+")
BENCHMARKS = "benchmarks"  # a folder of archives and environments, which the benchmarks fill
UNUSED = "the cache %s is not used: %s; engines are built in memory"


@dataclass(frozen=True)
class Entry:
    """A stored blob and its record."""

    blob: bytes  # empty if the record is all there is
    record: Mapping[str, Any]


@dataclass(frozen=True)
class Stored:
    """A file of the cache."""

    name: str
    bytes: int
    written: float  # seconds since 1970


def cache_key(facts: Mapping[str, Any]) -> str:
    """Return the SHA-256 (hex) of everything that an entry depends on, such as bundle, backend and device."""
    text = json.dumps({"layout": LAYOUT, **facts}, sort_keys=True, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _digest(record: Mapping[str, Any], blob: bytes) -> str:
    """Return the SHA-256 (hex) of record and blob."""
    hashed = hashlib.sha256(json.dumps(record, sort_keys=True, allow_nan=False).encode())
    hashed.update(blob)
    return hashed.hexdigest()


def _parsed(data: bytes) -> Entry:
    """Split a stored file into record (a line of JSON) and blob; raises ValueError if it is damaged."""
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
    """Return the user's cache folder for this program, by the XDG base directory specification.

    Raises OSError if this user has no home folder.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    if Path(base).is_absolute():
        return Path(base) / "gbad-batch"
    try:
        return Path.home() / ".cache" / "gbad-batch"
    except RuntimeError:
        raise OSError(errno.ENOENT, "this user has no home folder: give one with --cache-dir") from None


class EngineCache:
    """A cache folder, held open so that the folder that was checked is the one that is read and written."""

    def __init__(self, path: Path, descriptor: int):
        self.path = path
        self._folder = descriptor

    @classmethod
    def open(cls, path: Path | None = None, *, warn: bool = True) -> "EngineCache | None":
        """Open the cache at `path` (None: the user's own), creating it if missing; None if it is not safe.

        The folder must belong to this user, have mode 0700 and not be a link; otherwise a warning says why it
        is not used.
        """
        level = logging.WARNING if warn else logging.DEBUG
        try:
            path = path or default_cache_dir()
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
            cache = cls(path, os.open(path, flags))
        except OSError as error:
            is_link = path and os.path.islink(path)  # noqa: PTH114 - false without permission
            reason = "it is a link or not a folder" if is_link else error.strerror
            log.log(level, UNUSED, path or "folder", reason)
            return None
        reason = cache._unsafe()
        if reason:
            log.log(level, UNUSED, path, reason)
            cache.close()
            return None
        return cache

    def _unsafe(self) -> str | None:
        status = os.fstat(self._folder)
        if status.st_uid != os.geteuid():
            return "it belongs to another user"
        if stat.S_IMODE(status.st_mode) & 0o077:
            return f"others may enter it (mode {stat.S_IMODE(status.st_mode):04o}; chmod 700 closes it)"
        if not os.access(".", os.W_OK, dir_fd=self._folder):
            return "it cannot be written"
        return None

    def load(self, key: str, kind: str = ENGINE) -> Entry | None:
        """Return what is stored under `key`; None if it is missing or damaged."""
        try:
            return _parsed(self._read(f"{key}.{kind}"))
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            log.warning("the cached %s %s is not used: %s; %s", kind, key[:12], error, INSTEAD[kind])
            return None

    def store(self, key: str, blob: bytes, record: Mapping[str, Any], kind: str = ENGINE) -> bool:
        """Store a blob and its record in one file; False, with a warning, if it cannot be written."""
        line = json.dumps({**record, "sha256": _digest(record, blob)}, sort_keys=True, allow_nan=False)
        try:
            self._write(f"{key}.{kind}", line.encode() + b"\n" + blob)
        except OSError as error:
            log.warning("the %s could not be stored in the cache %s: %s", kind, self.path, error.strerror)
            return False
        return True

    def contents(self) -> list[Stored]:
        """List the files of the cache, oldest first; files of other programs are left out."""
        files = []
        for name in filter(OURS.fullmatch, os.listdir(self._folder)):  # noqa: PTH208 - a descriptor
            with suppress(FileNotFoundError):  # another process has just renamed it
                status = os.stat(name, dir_fd=self._folder, follow_symlinks=False)
                files.append(Stored(name, status.st_size, status.st_mtime))
        return sorted(files, key=lambda stored: stored.written)

    def of_benchmarks(self) -> int:
        """Count the bytes of the folder that `python -m benchmarks` keeps here."""
        total = 0
        with suppress(FileNotFoundError):  # there is none, or a benchmark is removing files
            for _, _, names, folder in os.fwalk(BENCHMARKS, dir_fd=self._folder):  # it follows no link
                total += sum(os.stat(name, dir_fd=folder, follow_symlinks=False).st_size for name in names)
        return total

    def empty(self) -> list[Stored]:
        """Remove all files of the cache and return their list, also the benchmarks'; engines stay usable."""
        shutil.rmtree(BENCHMARKS, ignore_errors=True, dir_fd=self._folder)
        removed = self.contents()
        for stored in removed:
            with suppress(FileNotFoundError):
                os.unlink(stored.name, dir_fd=self._folder)
        return removed

    def close(self) -> None:
        """Close the folder; safe to call twice."""
        if self._folder >= 0:
            os.close(self._folder)
            self._folder = -1

    def _read(self, name: str) -> bytes:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
        with open(os.open(name, flags, dir_fd=self._folder), "rb") as file:  # noqa: PTH123 - a descriptor
            status = os.fstat(file.fileno())
            if (
                not stat.S_ISREG(status.st_mode)
                or status.st_uid != os.geteuid()
                or status.st_size > LARGEST_ENTRY
            ):
                raise ValueError(f"it is not a regular file of this user of at most {LARGEST_ENTRY} bytes")
            return file.read(status.st_size)  # Python allocates the size that it is given

    def _write(self, name: str, data: bytes) -> None:
        """Write to a temporary name of this process, flush, rename."""
        temporary = f".{name}.{os.getpid()}"
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            with open(os.open(temporary, flags, 0o600, dir_fd=self._folder), "wb") as file:  # noqa: PTH123
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.rename(temporary, name, src_dir_fd=self._folder, dst_dir_fd=self._folder)
            os.fsync(self._folder)
        except OSError:
            self._unlink(temporary)
            raise

    def _unlink(self, name: str) -> None:
        try:
            os.unlink(name, dir_fd=self._folder)
        except OSError:
            log.debug("%s could not be removed from the cache %s", name, self.path)
