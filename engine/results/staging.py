"""The private folder in which an output is built, and the renames that put it in its place."""

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from ..errors import Refused, Stopped
from ..system.durable import TEMPORARY, make_folder, remove, rename
from .lock import OutputLock
from .schema import read_footer

STATE = "scan.json"
FOLDERS = ("data", "old", "sorting")
ATTEMPTS = 10


def staging_of(target: Path) -> Path:
    """Return the folder that holds the unfinished parts of an output; raises Refused for the root."""
    if not target.name:
        raise Refused(f"{target} cannot be an output: name a file or a folder in it")
    return target.with_name(target.name + ".parts")


class Staging:
    """`TARGET.parts/`: `data/` becomes a target that is a folder, `old/` is the target it replaces."""

    def __init__(self, target: Path, is_folder: bool):
        self.target = Path(os.path.abspath(target))  # noqa: PTH100 - links are not followed
        self.is_folder = is_folder
        self.folder = staging_of(self.target)
        self.data = self.folder / "data"
        self.old = self.folder / "old"
        self.sorting = self.folder / "sorting"  # rows on their way into listing order, during the finish
        self.state = self.folder / STATE
        self.lock = OutputLock(self.folder / "lock")

    @property
    def exists(self) -> bool:
        """Whether the path exists, even as a dangling link."""
        return os.path.lexists(self.folder)

    def check_target(self) -> None:
        """Raise Refused, without creating anything, if the target cannot be written."""
        parent = self.target.parent
        if not parent.is_dir():
            raise Refused(f"the folder {parent} does not exist: make it first, or name another output")
        if not os.access(parent, os.W_OK | os.X_OK) or os.statvfs(parent).f_flag & os.ST_RDONLY:
            raise Refused(f"the folder {parent} cannot be written: name an output elsewhere")
        if self.target.is_symlink():
            raise Refused(f"{self.target} is a symbolic link: name the file or folder itself")
        if not self.target.exists():
            return
        if self.is_folder and not self.target.is_dir():
            raise Refused(f"{self.target} is a file, not a folder: leave the last slash out, or name another")
        if self.target.is_dir() and not self.is_folder:
            raise Refused(
                f"{self.target} is a folder: add a slash for a folder of parts, or name a file in it"
            )
        if not self.is_folder and not self.target.is_file():
            raise Refused(f"{self.target} is neither a file nor a folder: name another output")

    def check_replaceable(self) -> None:
        """Raise Refused if the target is a folder that is not empty and was not written by a scan."""
        if self.target.is_dir() and read_footer(self.target) is None and any(self.target.iterdir()):
            raise Refused(f"{self.target} holds other files than results: name another output")

    def enter(self) -> None:
        """Create the folder, or check that nobody else can write to it, and lock it; raises Refused."""
        for attempt in range(ATTEMPTS):
            try:
                make_folder(self.folder, mode=0o700)
                self._check_private()
                self._check_entries()
                self.lock.acquire(self.target)
            except OSError as error:
                if isinstance(error, FileNotFoundError) and attempt + 1 < ATTEMPTS:
                    continue  # another scan has ended and removed it in this moment
                raise Refused(f"{self.folder} cannot be used: {os.strerror(error.errno or 0)}") from None
            return

    def leave(self) -> None:
        """Release the lock; removes the folder if no scan has begun in it."""
        if self.lock.held and self.is_empty:
            self._remove_folder()
        self.lock.release()

    @property
    def is_empty(self) -> bool:
        """Whether no scan has begun here."""
        return all(name == "lock" or name.endswith(TEMPORARY) for name in os.listdir(self.folder))  # noqa: PTH208

    def clear(self) -> None:
        """Remove everything but the lock, the file that identifies the scan last; raises OSError."""
        self.restore()
        for entry in sorted(self.folder.iterdir(), key=lambda path: path == self.state):
            if entry.name != "lock":
                remove(entry)

    def restore(self) -> None:
        """Move the replaced folder back after a crash in the middle of a replacement; raises OSError."""
        if self.old.exists() and not self.target.exists():
            rename(self.old, self.target)

    def install_file(self, file: Path, replace: bool) -> Iterator[str]:
        """Rename a durable file of this folder onto the target, yielding the name of each step done."""
        self._check_unchanged(replace)
        rename(file, self.target)
        yield "renamed"

    def install_data(self, replace: bool) -> Iterator[str]:
        """Rename `data/` to the target, yielding the name of each step done."""
        self._check_unchanged(replace)
        if self.target.exists() and any(self.target.iterdir()):
            rename(self.target, self.old)
            yield "aside"
        rename(self.data, self.target)
        yield "renamed"

    def remove(self) -> None:
        """Remove the whole folder with its lock, once the target is in place; raises OSError."""
        for entry in sorted(self.folder.iterdir(), key=lambda path: path == self.state):
            if entry.name != "lock":
                remove(entry)
        self._remove_folder()
        self.lock.release()

    def _remove_folder(self) -> None:
        for entry in self.folder.iterdir():
            entry.unlink()
        with suppress(OSError):  # another scan has just made its lock in it, and will find nothing begun
            self.folder.rmdir()

    def _check_unchanged(self, replace: bool) -> None:
        empty = self.target.is_dir() and not any(self.target.iterdir())
        if self.target.exists() and not replace and not empty:
            raise Stopped(
                f"{self.target} has appeared during the scan: move it away and run the command again"
            )

    def _check_private(self) -> None:
        handle = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            status = os.fstat(handle)
        finally:
            os.close(handle)
        if status.st_uid != os.geteuid():
            raise Refused(f"{self.folder} belongs to another user: name another output, or have it removed")
        if stat.S_IMODE(status.st_mode) & 0o022:
            raise Refused(f"others may write in {self.folder}: if you trust what it holds, chmod 700 it")

    def _check_entries(self) -> None:
        """Raise Refused for what no scan makes: a link or special file, or what belongs to another user."""
        with os.scandir(self.folder) as entries:
            for entry in entries:
                status = entry.stat(follow_symlinks=False)
                kind = stat.S_ISDIR if entry.name in FOLDERS else stat.S_ISREG
                if status.st_uid != os.geteuid() or not kind(status.st_mode):
                    raise Refused(f"{self.folder} holds other files than a scan's: remove or rename it")
