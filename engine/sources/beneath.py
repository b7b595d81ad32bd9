"""Opens folders below a source by way of real folders only: no link that appears later leads out of it."""

import os
import threading

_STEP = os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC


def open_folder(path: bytes, base: bytes, flags: int = os.O_PATH) -> int:
    """Open the folder at `path`, which is `base` or below it; links are followed in `base` only.

    Returns a descriptor with `flags`, O_PATH or O_RDONLY. Raises OSError: ENOTDIR where a link stands.
    """
    names = [name for name in path[len(base) :].split(b"/") if name]
    handle = os.open(base, _STEP if names else _STEP & ~os.O_PATH | flags)
    for number, name in enumerate(names, 1):
        last = number == len(names)
        try:
            inner = os.open(
                name, (_STEP & ~os.O_PATH | flags if last else _STEP) | os.O_NOFOLLOW, dir_fd=handle
            )
        finally:
            os.close(handle)
        handle = inner
    return handle


class LastFolder(threading.local):
    """The folder that a thread has opened last: files of one folder are read in a row."""

    key: object = None  # what stands for the folder, None if there is none
    fd = -1
    _handle: "_Handle | None" = None

    def enter(self, key: object, path: bytes, base: bytes) -> None:
        """Make `fd` that of the folder which `key` stands for, until another is entered; raises OSError.

        An equal key of the next chunk is another object: its folder may have been moved.
        """
        self.leave()
        self._handle = _Handle(open_folder(path, base))
        self.fd, self.key = self._handle.fd, key

    def leave(self) -> None:
        """Close it: the next folder is opened anew, even if it is the same."""
        self.key = self._handle = None


class _Handle:
    """A descriptor that is closed with its last reference, as when its thread ends."""

    def __init__(self, fd: int):
        self.fd = fd

    def __del__(self) -> None:
        os.close(self.fd)
