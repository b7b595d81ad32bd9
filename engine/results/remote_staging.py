"""An output in an object store: built in a local folder, uploaded at the end, whole or not at all.

Parts that survive a kill need locks, renames and flushes, which a disk has and an object store has not. So an
unfinished scan is local, by the code of every scan, and the store sees one upload, in parts that it joins at
once. Until that has succeeded nothing local is removed: the same command uploads again.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from fnmatch import fnmatchcase
from pathlib import Path
from tempfile import TemporaryDirectory

from ..errors import Refused, Stopped
from ..settings import StrPath, local_path
from ..system import objects
from ..system.durable import TEMPORARY, make_folder
from ..system.objects import Location, ObjectFault
from .staging import Staging


def staging_for(out: StrPath, state_dir: StrPath | None = None) -> Staging:
    """Return where an output is built: a file, a folder (with a slash at its end), or an object."""
    local = local_path(out, state_dir)
    if objects.is_url(out):
        return RemoteStaging(local, objects.located(os.fspath(out)))
    return Staging(local, os.fspath(out).endswith("/"))


@contextmanager
def local_copies(names: Sequence[StrPath]) -> Iterator[list[tuple[str, Path]]]:
    """Give the files of some names: objects are fetched into a folder that goes afterwards.

    The last part of an address may be a pattern. Raises Refused for what cannot be read.
    """
    with TemporaryDirectory(prefix="gbad-batch-") as folder:
        found: list[tuple[str, Path]] = []
        for name in names:
            if not objects.is_url(name):
                found.append((os.fspath(name), Path(name)))
                continue
            try:
                for at, etag in _matching(objects.located(os.fspath(name))):
                    copy = Path(folder) / f"{len(found)}.parquet"
                    objects.fetch(at, etag, copy)
                    found.append((at.url, copy))
            except ObjectFault as fault:
                raise Refused(f"{os.fspath(name)} cannot be read: {fault}") from None
        yield found


def _matching(at: Location) -> list[tuple[Location, str | None]]:
    """Look at an object, or at all whose names match in their last part; raises ObjectFault, Refused."""
    above, _, pattern = at.key.rpartition("/")
    if not any(mark in pattern for mark in "*?["):
        return [(at, objects.entry_at(at).etag)]
    found = [
        (Location(at.root, entry.key), entry.etag)
        for entry in objects.entries_below(Location(at.root, above))
        if entry.key.rpartition("/")[0] == above and fnmatchcase(entry.key.rpartition("/")[2], pattern)
    ]
    if not found:
        raise Refused(f"the pattern {at.url} matches nothing; check it")
    return found


class RemoteStaging(Staging):
    """`target` is the local copy of the object: as it was before the scan, then as it is to be uploaded."""

    def __init__(self, local: Path, at: Location):
        super().__init__(local, is_folder=False)
        self.at = at
        self._before: tuple[int, int] | None = None  # what identifies the copy of the object as it was

    def check_target(self) -> None:
        """Fetch the object if there is one; raises Refused if it, or the local folder, cannot be written."""
        folder = self.target.parent
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            make_folder(folder, mode=0o700)
            if not self.exists:  # else a scan is under way, or has died: the copy that it has made counts
                self.target.unlink(missing_ok=True)
            self._prepare(fetch=not self.exists)
        except OSError as error:
            raise Refused(
                f"the folder {folder} for unfinished rows cannot be used ({error.strerror}): name another "
                "with --state-dir"
            ) from None
        super().check_target()

    def remove(self) -> None:
        """Upload what was installed, then remove the folder; raises Stopped, and keeps it, if that fails."""
        if self.target.exists() and self._identity() != self._before:
            try:
                objects.write(self.at, self.target)
            except ObjectFault as fault:
                raise Stopped(
                    f"the results cannot be written: {fault.reason}; finished rows are kept in "
                    f"{self.folder}: {fault.advice}, and run the same command again"
                ) from None
        super().remove()

    def leave(self) -> None:
        """Release the lock; removes the local copy, unless a scan is unfinished."""
        super().leave()
        if not self.exists:
            self.target.unlink(missing_ok=True)
            with suppress(OSError):
                self.target.parent.rmdir()

    def _prepare(self, fetch: bool) -> None:
        """Check the right to write, and fetch the object as it is; raises Refused."""
        try:
            objects.check_writable(self.at)
            if fetch:
                self._fetch()
        except ObjectFault as fault:
            raise Refused(f"--out {self.at.url} cannot be written: {fault}") from None

    def _fetch(self) -> None:
        try:
            entry = objects.entry_at(self.at, objects.AT_FIRST)
        except ObjectFault as fault:
            if fault.kind == "missing":
                return
            raise
        temporary = self.target.with_name(self.target.name + TEMPORARY)
        objects.fetch(self.at, entry.etag, temporary)
        temporary.rename(self.target)
        self._before = self._identity()

    def _identity(self) -> tuple[int, int]:
        now = self.target.stat()
        return now.st_ino, now.st_mtime_ns
