"""A terminal of a test's own: what a program shows on it."""

import fcntl
import os
import struct
import subprocess
import termios
import threading
from collections.abc import Mapping, Sequence

from processes import PATIENCE_S


def on_a_terminal(
    words: Sequence[str], environment: Mapping[str, str] | None = None, columns: int | None = None
) -> tuple[int, str, str]:
    """Run with standard error on a terminal; returns exit code, stdout, what the terminal got."""
    mine, theirs = os.openpty()
    if columns is not None:
        fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    shown: list[bytes] = []

    def read() -> None:
        try:
            while chunk := os.read(mine, 65_536):
                shown.append(chunk)
        except OSError:
            return  # the other end is closed

    reader = threading.Thread(target=read)
    with subprocess.Popen(
        words, stdout=subprocess.PIPE, stderr=theirs, text=True, env=environment
    ) as process:
        os.close(theirs)
        reader.start()
        stdout, _ = process.communicate(timeout=PATIENCE_S)
    reader.join()
    os.close(mine)
    return process.returncode, stdout, b"".join(shown).decode()
