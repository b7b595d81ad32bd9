"""Reads the headers of a tar, one after the other, in bounded memory, whoever made it.

Understands V7, ustar, GNU (long names, base-256 numbers, sparse) and PAX (path, size, mtime, sparse).
POSIX.1-2017, pax, "ustar Interchange Format"; GNU tar manual, "Basic Tar Format".
"""

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, Protocol

MemberKind = Literal["file", "link", "special", "folder", "sparse", "other"]

BLOCK = 512
MAX_EXTENDED = 1 << 20  # bytes of a PAX header or a long name: real ones have some hundreds
MAX_NAME = 1 << 15  # bytes: the system's longest path has 4096
MAX_PADDING = 1 << 20  # bytes of zeros after the end mark, then what follows is not looked at
CHUNK = 1 << 18  # bytes of a compressed stream at a time
_INT64_MAX = 2**63 - 1
_DATES = range(-62_135_596_800 * 10**6, 253_402_300_800 * 10**6)  # us; the years 1 to 9999

_KINDS: dict[bytes, MemberKind] = {
    b"0": "file",
    b"\0": "file",
    b"7": "file",
    b"1": "link",
    b"2": "link",
    b"3": "special",
    b"4": "special",
    b"6": "special",
    b"5": "folder",
    b"S": "sparse",
}
_WITHOUT_DATA = b"123456V"


class ArchiveFault(Exception):
    """The archive ends early or is damaged: what follows in it cannot be read."""


@dataclass(frozen=True, slots=True)
class Member:
    """One entry of a tar."""

    name: bytes  # as stored, a leading `./` and trailing `/` removed
    kind: MemberKind
    size: int  # bytes of the file; of a sparse one when expanded
    offset: int  # of the data in the (decompressed) stream
    end: int  # of the data in the stream
    mtime: int | None  # us since the epoch, None where it is missing or out of range


class TarStream(Protocol):
    """The bytes of a tar, read forwards."""

    position: int  # of the next byte

    def read(self, size: int) -> bytes:
        """Return the next `size` bytes, fewer only at the end."""
        ...

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
        self._raw = b""  # compressed, read, not yet used
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
        if not self._raw and not self._load():
            if self._begun:
                raise ArchiveFault(f"its gzip stream ends early, after {self._raw_position} bytes")
            return False
        self._begun = True
        try:
            self._ready = memoryview(self._inflate.decompress(self._raw, CHUNK))
        except zlib.error as error:
            raise ArchiveFault(f"its gzip stream is damaged before byte {self._raw_position}") from error
        self._raw = self._inflate.unused_data if self._inflate.eof else self._inflate.unconsumed_tail
        return True

    def _next_gzip_member(self) -> bool:
        """Start on what follows a finished gzip member; padding and trailing garbage are skipped."""
        self._raw = self._raw.lstrip(b"\0")
        while not self._raw:
            if not self._load():
                return False
            self._raw = self._raw.lstrip(b"\0")
        if len(self._raw) == 1:
            self._load()
        if not self._raw.startswith(b"\x1f\x8b"):
            return False
        self._inflate = zlib.decompressobj(wbits=31)
        self._begun = False
        return True

    def _load(self) -> bool:
        data = self._pread(CHUNK, self._raw_position)
        self._raw_position += len(data)
        self._raw += data
        return bool(data)


def members(stream: TarStream) -> Iterator[Member]:
    """Yield the entries of a tar in order; the stream stands at the member's data when it is yielded.

    Whoever reads data from the stream need not read all of it. Archives joined by `cat` are read as one.
    Raises ArchiveFault where the archive ends without its end mark or a header is damaged, OSError where
    the stream cannot be read.
    """
    common: dict[bytes, bytes] = {}  # of PAX global headers
    zeros = 0  # bytes of the end mark and its padding
    while True:
        at = stream.position
        block = stream.read(BLOCK)
        if block.count(0) == len(block):  # also none at all
            if len(block) < BLOCK or zeros >= MAX_PADDING:
                if not zeros:
                    raise ArchiveFault(f"it ends at byte {stream.position} without an end mark")
                break
            zeros += BLOCK
            continue
        if not _is_header(block):
            if zeros:  # garbage after the end mark
                break
            raise ArchiveFault(
                f"the header at byte {at} is {'truncated' if len(block) < BLOCK else 'damaged'}"
            )
        zeros = 0
        member = _entry(stream, block, common)
        if member:
            yield member
            stream.seek(-(-member.end // BLOCK) * BLOCK)
    stream.finish()


def _entry(stream: TarStream, block: bytes, common: dict[bytes, bytes]) -> Member | None:
    """Read one entry with the extended headers before it; None if they describe none."""
    extended: dict[bytes, bytes] = {}
    while (flag := block[156:157]) in (b"x", b"X", b"g", b"L", b"K"):
        data = _extended_data(stream, block)
        if flag == b"g":
            _limit(common, _pax_records(data))
            return None
        if flag in (b"x", b"X"):
            extended.update(_pax_records(data))
        elif flag == b"L":
            extended[b"path"] = data.partition(b"\0")[0]
        at = stream.position
        block = stream.read(BLOCK)
        if not _is_header(block):
            raise ArchiveFault(
                f"the header at byte {at} is {'truncated' if len(block) < BLOCK else 'damaged'}"
            )
    return _member(stream, block, {**common, **extended})


def _limit(common: dict[bytes, bytes], records: dict[bytes, bytes]) -> None:
    """Keep only the used records of a global header: they hold for the rest of the archive."""
    common.update({key: value for key, value in records.items() if key in (b"mtime", b"path", b"size")})


def _extended_data(stream: TarStream, block: bytes) -> bytes:
    size = _number(block[124:136])
    if size is None or not 0 <= size <= MAX_EXTENDED:
        raise ArchiveFault(f"an extended header before byte {stream.position} claims {size} bytes")
    data = stream.read(-(-size // BLOCK) * BLOCK)
    if len(data) < size:
        raise ArchiveFault(f"it ends at byte {stream.position}, inside an extended header")
    return data[:size]


def _member(stream: TarStream, block: bytes, pax: dict[bytes, bytes]) -> Member:
    flag = block[156:157]
    name = pax.get(b"GNU.sparse.name") or pax.get(b"path") or _name(block)
    if len(name) > MAX_NAME:
        raise ArchiveFault(f"the header before byte {stream.position} has a name of {len(name)} bytes")
    kind = _KINDS.get(flag, "other")
    if kind == "file" and name.endswith(b"/"):  # V7 has no type for folders
        kind = "folder"
    stored = _decimal(pax.get(b"size"))
    stored = _number(block[124:136]) if stored is None else stored
    if stored is None or not 0 <= stored <= _INT64_MAX >> 1:
        raise ArchiveFault(f"the header before byte {stream.position} has no usable size")
    size = stored
    if flag == b"S":
        size = _number(block[483:495]) or 0
        _skip_sparse_map(stream, block)
    elif any(key.startswith(b"GNU.sparse.") for key in pax):
        kind = "sparse"
        size = _decimal(pax.get(b"GNU.sparse.realsize") or pax.get(b"GNU.sparse.size")) or 0
    length = 0 if flag in _WITHOUT_DATA else stored
    mtime = _microseconds(pax[b"mtime"]) if b"mtime" in pax else _whole_seconds(_number(block[136:148]))
    offset = stream.position
    return Member(_tidy(name), kind, min(size, _INT64_MAX), offset, offset + length, mtime)


def _skip_sparse_map(stream: TarStream, block: bytes) -> None:
    """Skip the blocks that continue the map of an old GNU sparse member."""
    more = block[482]
    while more:
        block = stream.read(BLOCK)
        if len(block) < BLOCK:
            raise ArchiveFault(f"it ends at byte {stream.position}, inside a sparse header")
        more = block[504]


def _is_header(block: bytes) -> bool:
    """Check the checksum, which some old writers made of signed bytes."""
    if len(block) < BLOCK:
        return False
    stored = _number(block[148:156])
    rest = block[:148] + block[156:]
    unsigned = sum(rest) + 8 * 32
    if stored == unsigned:
        return True
    return stored == unsigned - 256 * sum(byte > 127 for byte in rest)


def _name(block: bytes) -> bytes:
    name = block[:100].partition(b"\0")[0]
    if block[257:263] == b"ustar\0":
        prefix = block[345:500].partition(b"\0")[0]
        if prefix:
            return prefix + b"/" + name
    return name


def _tidy(name: bytes) -> bytes:
    while name.startswith(b"./"):
        name = name[2:].lstrip(b"/")
    return name.rstrip(b"/")


def _number(field: bytes) -> int | None:
    """Read a header's number: octal text or GNU's base 256; None if it is neither."""
    if field[0] in (0x80, 0xFF):
        return int.from_bytes(field[1:], "big") - (256 ** (len(field) - 1) if field[0] == 0xFF else 0)
    text = field.partition(b"\0")[0].strip()
    try:
        return int(text, 8) if text else 0
    except ValueError:
        return None


def _decimal(text: bytes | None) -> int | None:
    return int(text) if text is not None and text.isdigit() and len(text) < 20 else None


def _whole_seconds(seconds: int | None) -> int | None:
    return None if seconds is None else _dated(seconds * 10**6)


def _microseconds(text: bytes) -> int | None:
    """Read PAX's decimal seconds exactly, as a float could not; -1.5 is 1.5 s before the epoch."""
    sign = -1 if text.startswith(b"-") else 1
    whole, _, fraction = text.lstrip(b"-").partition(b".")
    seconds, part = _decimal(whole), _decimal((fraction + b"0" * 6)[:6])
    return None if seconds is None or part is None else _dated(sign * (seconds * 10**6 + part))


def _dated(microseconds: int) -> int | None:
    return microseconds if microseconds in _DATES else None


def _pax_records(data: bytes) -> dict[bytes, bytes]:
    """Split `length key=value` lines; raises ArchiveFault where they do not add up."""
    records: dict[bytes, bytes] = {}
    at = 0
    while at < len(data) and data[at]:
        digits, blank, _ = data[at : at + 20].partition(b" ")
        length = _decimal(digits) or 0
        record = data[at + len(digits) + 1 : at + length]
        key, equals, value = record.partition(b"=")
        if not (blank and equals and value.endswith(b"\n")) or at + length > len(data):
            raise ArchiveFault("an extended header is damaged")
        records[key] = value[:-1]
        at += length
    return records
