"""One WebDataset shard: a plain tar that is written whole or not at all, and the list of what it holds."""

import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ..system.durable import TEMPORARY, open_regular, rename
from ..tar.headers import BLOCK, members
from ..tar.streams import PlainStream

END = 2 * BLOCK  # zeros that end a tar
RECORD = 20 * BLOCK  # a tar's size is a multiple of it


class Packed(NamedTuple):
    """One member of a shard."""

    name: bytes
    size: int
    mtime: int  # us since the epoch


class ShardWriter:
    """Writes members into a tar (POSIX.1-2001, pax) that gets its name on `close`."""

    def __init__(self, path: Path):
        self.path = path
        self.members = 0
        self._temporary = path.with_name(path.name + TEMPORARY)
        self._file = self._temporary.open("wb")

    @property
    def size(self) -> int:
        """Bytes so far."""
        return self._file.tell()

    def add(self, member: Packed, content: bytes) -> None:
        """Append a member; raises OSError of the disk."""
        info = tarfile.TarInfo(os.fsdecode(member.name))
        info.size, info.mtime, info.mode = len(content), member.mtime // 1_000_000, 0o644
        if member.mtime % 1_000_000:
            info.pax_headers = {"mtime": _seconds(member.mtime)}
        self._file.write(info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape"))
        self._file.write(content)
        self._file.write(bytes(-len(content) % BLOCK))
        self.members += 1

    def close(self) -> None:
        """Write the end of the tar, and give it its name once it is durable; raises OSError."""
        self._file.write(bytes(END + -(self.size + END) % RECORD))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        rename(self._temporary, self.path)

    def abandon(self) -> None:
        """Remove what was written; a second call does nothing, nor does one after `close`."""
        if not self._file.closed:
            self._file.close()
            self._temporary.unlink(missing_ok=True)


def packed_in(path: Path) -> Iterator[Packed]:
    """List a shard by its headers alone; raises ArchiveFault where it is damaged, OSError."""
    with open_regular(path, follow=False) as file:

        def pread(size: int, offset: int) -> bytes:
            return os.pread(file.fileno(), size, offset)

        for member in members(PlainStream(pread, os.fstat(file.fileno()).st_size)):
            yield Packed(member.name, member.size, member.mtime or 0)


def room_for(member: Packed) -> int:
    """Return the bytes that a member takes in a tar, a little more if its name is short."""
    headers = 3 * BLOCK + -(-len(member.name) // BLOCK) * BLOCK
    return headers + -(-member.size // BLOCK) * BLOCK


def _seconds(microseconds: int) -> str:
    """Write a time as pax does: decimal seconds, exactly."""
    whole, part = divmod(abs(microseconds), 1_000_000)
    return f"{'-' if microseconds < 0 else ''}{whole}.{part:06d}"
