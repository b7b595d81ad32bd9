"""Builds shim.c, and steers it: which call of a scan fails, and how, and how far its clock is off."""

import mmap
import shutil
import struct
import subprocess
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from gbad_batch.engine.errors import Refused

KINDS = ("write", "fsync", "rename", "open")
LAYOUT = struct.Struct("=9Qq4000s")
CLOCK_AT = 9 * 8  # of the seconds that are added to the clock


@dataclass(frozen=True)
class Fault:
    """The nth call of a kind fails, and then each of `every` more; all from then on where that is 1."""

    kind: str
    nth: int
    error: int  # errno; 0: half of the bytes are written
    every: int = 0


class Shim:
    """The library, and the memory that it shares with this process; raises Refused without a compiler."""

    def __init__(self, folder: Path, below: Path):
        """Keep the shared memory in `folder`; calls on paths below `below` count, where the library lies."""
        folder.mkdir(exist_ok=True)
        self._below = bytes(below)
        self._library = built(below)
        self._file = folder / "shim.shared"
        self._file.write_bytes(bytes(LAYOUT.size))
        with self._file.open("r+b") as file:
            self._shared = mmap.mmap(file.fileno(), LAYOUT.size)
        self.arm(None)

    @property
    def environment(self) -> dict[str, str]:
        """The environment of a process that shall be disturbed."""
        return {"LD_PRELOAD": str(self._library), "SOAK_SHIM": str(self._file)}

    def arm(self, fault: Fault | None) -> None:
        """Count calls from 0, and let this one fail."""
        how = (0,) * 4 if fault is None else (KINDS.index(fault.kind), fault.nth, fault.every, fault.error)
        self._shared[:] = LAYOUT.pack(0, 0, 0, 0, 0, *how, 0, self._below)

    def set_clock(self, seconds: int) -> None:
        """Put the clock forward by so much, or back."""
        struct.pack_into("=q", self._shared, CLOCK_AT, seconds)

    @property
    def calls(self) -> dict[str, int]:
        """Calls so far, by kind."""
        return dict(zip(KINDS, LAYOUT.unpack_from(self._shared)[:4], strict=True))

    @property
    def fired(self) -> int:
        """Faults so far."""
        return LAYOUT.unpack_from(self._shared)[4]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._shared.close()


def built(folder: Path) -> Path:
    """Compile the library into a folder, where it is not there yet; raises Refused."""
    library = folder / "shim.so"
    if library.exists():
        return library
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        raise Refused(
            "there is no C compiler: install one (Debian: gcc and libc6-dev), or leave out these parts"
        )
    source, own = Path(__file__).with_name("shim.c"), folder / f"shim-{threading.get_ident()}.so"
    words = [compiler, "-O1", "-shared", "-fPIC", "-o", str(own), str(source), "-ldl"]
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode:
        raise Refused(f"the shim of libc does not compile here: {done.stderr.strip()[:500]}")
    return own.rename(library)
