"""The bytes of a tar, plain or compressed, read forwards."""

import re
import zlib
from collections.abc import Callable
from typing import Protocol

CHUNK = 1 << 18  # bytes of a compressed stream at a time
FIRST_PIECE = 64  # bytes of a gzip member that are fed to zlib first: it copies what follows the member
_NOT_ZERO = re.compile(rb"[^\0]")


class ArchiveFault(Exception):
    """The archive ends early or is damaged: members of it are lost."""

    def __init__(self, message: str, went_on: bool = False):
        super().__init__(message)
        self.went_on = went_on  # what could be read behind the damage was read


class Readable(Protocol):
    """Bytes that are read from a position on."""

    position: int  # of the next byte

    def read(self, size: int) -> bytes:
        """Return the next `size` bytes, fewer only at the end; raises ArchiveFault on damage."""
        ...


class TarStream(Readable, Protocol):
    """The bytes of a tar, read forwards."""

    def seek(self, position: int) -> None:
        """Go forwards to `position`; raises ArchiveFault where that is past the end."""
        ...

    def finish(self) -> None:
        """Check what reading the members did not; raises ArchiveFault."""
        ...


class PlainStream:
    """A tar that is not compressed."""

    def __init__(self, pread: Callable[[int, int], bytes], size: int):
        """Read by `pread(size, offset)` from a file of `size` bytes."""
        self.position = 0
        self._pread, self.size = pread, size

    def read(self, size: int) -> bytes:
        """Return the next `size` bytes, fewer only at the end."""
        data = self._pread(size, self.position)
        self.position += len(data)
        return data

    def seek(self, position: int) -> None:
        """Go to `position`; raises ArchiveFault where that is past the end."""
        if position > self.size:
            raise ArchiveFault(f"it ends at byte {self.size}, inside a member that reaches to {position}")
        self.position = position

    def finish(self) -> None:
        """Do nothing: there is no checksum of the whole."""


class GzipStream:
    """A tar inside a gzip file of one or more gzip members; checks their checksums."""

    def __init__(self, pread: Callable[[int, int], bytes]):
        """Read compressed bytes by `pread(size, offset)`."""
        self.position = 0  # in the decompressed stream
        self._pread = pread
        self._raw_position = 0
        self._raw = b""  # compressed, read
        self._used = 0  # bytes of it
        self._piece = FIRST_PIECE  # bytes that are fed next, twice as many each time: so copies stay linear
        self._inflate = zlib.decompressobj(wbits=31)
        self._begun = False  # this gzip member has been fed something
        self._ready = memoryview(b"")

    def read(self, size: int) -> bytes:
        """Return the next `size` bytes, fewer only at the end; raises ArchiveFault on damage."""
        pieces: list[memoryview] = []
        while size > 0 and (piece := self._take(size)):
            pieces.append(piece)
            size -= len(piece)
        return bytes(pieces[0]) if len(pieces) == 1 else b"".join(pieces)

    def seek(self, position: int) -> None:
        """Go forwards to `position`; raises ArchiveFault where the stream ends before it."""
        while self.position < position:
            if not self._take(position - self.position):
                raise ArchiveFault(f"its stream ends at byte {self.position}, inside a member")

    def finish(self) -> None:
        """Read to the end, where the checksum is; raises ArchiveFault."""
        while self._take(CHUNK):
            pass

    def _take(self, size: int) -> memoryview:
        """Return 1 to `size` bytes, none at the end."""
        while not self._ready:
            if not self._fill():
                return self._ready
        piece, self._ready = self._ready[:size], self._ready[size:]
        self.position += len(piece)
        return piece

    def _fill(self) -> bool:
        """Decompress some more; False at the end of the file."""
        if self._inflate.eof and not self._next_gzip_member():
            return False
        if self._used == len(self._raw) and not self._load():
            if self._begun:
                raise ArchiveFault(f"its gzip stream ends early, after {self._raw_position} bytes")
            return False
        self._begun = True
        piece = self._raw[self._used : self._used + self._piece]
        self._piece = min(2 * self._piece, CHUNK)
        try:
            self._ready = memoryview(self._inflate.decompress(piece, CHUNK))
        except zlib.error as error:
            raise ArchiveFault(f"its gzip stream is damaged before byte {self._raw_position}") from error
        left = self._inflate.unused_data if self._inflate.eof else self._inflate.unconsumed_tail
        self._used += len(piece) - len(left)
        return True

    def _next_gzip_member(self) -> bool:
        """Start on what follows a finished gzip member; padding and trailing garbage are skipped."""
        while not (start := _NOT_ZERO.search(self._raw, self._used)):
            self._used = len(self._raw)
            if not self._load():
                return False
        self._used = start.start()
        if self._used + 1 == len(self._raw):
            self._load()
        if not self._raw.startswith(b"\x1f\x8b", self._used):
            return False
        self._inflate = zlib.decompressobj(wbits=31)
        self._begun, self._piece = False, FIRST_PIECE
        return True

    def _load(self) -> bool:
        """Read on, behind what is not used yet: a byte at most."""
        data = self._pread(CHUNK, self._raw_position)
        self._raw_position += len(data)
        self._raw, self._used = self._raw[self._used :] + data, 0
        return bool(data)
