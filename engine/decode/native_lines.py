"""Lines that native decoders write to standard error, caught for the row of the image that they are about.

They come from libtiff, libpng and whatever else these libraries use, bear no name, and are all that some of
them say about damage.
"""

import fcntl
import os
import sys

_ROOM = 1 << 16  # bytes; what is written beyond is lost
_SHOWN = 500  # characters of one image's lines

_file: int | None = None  # that descriptor 2 writes to, once lines are caught


def catch() -> None:
    """Catch what native code of this process writes to standard error; lines of Python's own pass.

    Does nothing in a process that was started without standard error: descriptor 2 may be any file there.
    """
    global _file
    if _file is not None or sys.stderr is None:
        return
    _file = os.memfd_create("native lines", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(_file, _ROOM)
    fcntl.fcntl(_file, fcntl.F_ADD_SEALS, fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK)
    sys.stderr.flush()
    sys.stderr = os.fdopen(os.dup(2), "w", buffering=1, errors="backslashreplace")
    os.dup2(_file, 2)


def written() -> int:
    """Return how much has been written since the lines were last taken; 0 where they are not caught."""
    return 0 if _file is None else os.lseek(_file, 0, os.SEEK_CUR)


def take() -> str:
    """Return the lines written so far, joined and shortened, and forget them."""
    if _file is None or written() == 0:
        return ""
    text = os.pread(_file, written(), 0).decode(errors="backslashreplace")
    os.lseek(_file, 0, os.SEEK_SET)
    lines = (line.strip().removeprefix("tempfile.tif: ") for line in text.splitlines())  # Pillow's name
    whole = "; ".join(dict.fromkeys(line for line in lines if line))
    return whole if len(whole) <= _SHOWN else whole[:_SHOWN] + " ..."
