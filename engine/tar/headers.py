"""Reads the headers of a tar, one after the other, in bounded memory, whoever made it.

Understands V7, ustar, GNU (long names, base-256 numbers, sparse) and PAX (path, linkpath, size, mtime,
sparse). Goes on behind a damaged header, as GNU tar does.
POSIX.1-2017, pax, "ustar Interchange Format"; GNU tar manual, "Basic Tar Format".
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from ..row import dated
from .streams import ArchiveFault, TarStream

MemberKind = Literal[
    "file", "hard link", "symlink", "special", "folder", "sparse", "rest", "label", "unsized"
]

BLOCK = 512
MAX_EXTENDED = 1 << 20  # bytes of the PAX headers and long names of one entry: real ones have some hundreds
MAX_NAME = 4096  # bytes: the system's longest path
MAX_SEARCH = 1 << 26  # bytes at the start of an archive in which its first header is searched
MAX_PADDING = 1 << 20  # bytes of zeros after the end mark, then what follows is not looked at
_INT64_MAX = 2**63 - 1

_KINDS: dict[bytes, MemberKind] = {  # POSIX: what is not listed is a regular file
    b"1": "hard link",
    b"2": "symlink",
    b"3": "special",
    b"4": "special",
    b"6": "special",
    b"5": "folder",
    b"D": "folder",  # GNU, with the names of what is in it
    b"S": "sparse",
    b"M": "rest",  # GNU, of a file that begins in another volume
    b"V": "label",  # GNU, of the volume
}
_WITHOUT_DATA = b"123456V"
_PAX_KEYS = frozenset((b"path", b"linkpath", b"size", b"mtime"))
_SPARSE_KEYS = frozenset((b"GNU.sparse.name", b"GNU.sparse.realsize", b"GNU.sparse.size"))
_SPARSE = b"GNU.sparse."


class _Damaged(Exception):
    """A header cannot be used; the next one may be."""


@dataclass(frozen=True, slots=True)
class Member:
    """One entry of a tar."""

    name: bytes  # as stored, a leading `./` and trailing `/` removed
    kind: MemberKind
    size: int  # bytes of the file; of a sparse one when expanded
    offset: int  # of the data in the (decompressed) stream
    end: int  # of the data in the stream
    mtime: int | None  # us since the epoch, None where it is missing or out of range
    target: bytes = b""  # of a hard link: the name of an earlier member


def members(stream: TarStream) -> Iterator[Member]:
    """Yield the entries of a tar in order; the stream stands at the member's data when it is yielded.

    Whoever reads data from the stream need not read all of it. Archives joined by `cat` are read as one.
    Raises ArchiveFault where the archive ends without its end mark, and, after the last entry that can be
    read, where a header or one of its records is damaged; OSError where the stream cannot be read.
    """
    headers = _Headers(stream)
    try:
        yield from headers.members()
        stream.finish()
    except ArchiveFault as fault:
        raise (ArchiveFault(headers.damage, went_on=False) if headers.damage else fault) from None
    if headers.damage:
        raise ArchiveFault(headers.damage, went_on=True)


class _Headers:
    """One pass over the headers of a tar; `damage` is the first that did not end it."""

    def __init__(self, stream: TarStream):
        self.damage = ""
        self._stream = stream
        self._common: dict[bytes, bytes] = {}  # of PAX global headers

    def members(self) -> Iterator[Member]:
        """Yield the entries up to the end mark; raises ArchiveFault where there is none."""
        stream, zeros, seeking, begun = self._stream, 0, False, False
        while True:
            at = stream.position
            block = stream.read(BLOCK)
            if block.count(0) == len(block):  # also none at all
                if len(block) < BLOCK or zeros >= MAX_PADDING:
                    if not zeros:
                        raise ArchiveFault(f"it ends at byte {stream.position} without an end mark")
                    return
                zeros += BLOCK
                continue
            if not _is_header(block):
                if zeros and not seeking:  # garbage after the end mark
                    return
                self._note(_damaged_header(at, block))
                if len(block) < BLOCK or (at > MAX_SEARCH and not begun):
                    raise ArchiveFault(self.damage)
                zeros, seeking = 0, True
                continue
            zeros, seeking, begun = 0, False, True
            try:
                member = self._entry(block)
            except _Damaged as damage:
                self._note(str(damage))
                seeking = True
                continue
            if member:
                yield member
                stream.seek(-(-member.end // BLOCK) * BLOCK)

    def _note(self, damage: str) -> None:
        self.damage = self.damage or damage

    def _entry(self, block: bytes) -> Member | None:
        """Read one entry with the extended headers before it; None if they describe none.

        As in GNU tar the last PAX header counts, not those before it, and more than a long name does.
        """
        long: dict[bytes, bytes] = {}
        extended: dict[bytes, bytes] = {}
        room = MAX_EXTENDED
        while (flag := block[156:157]) in (b"x", b"X", b"g", b"L", b"K"):
            data = self._extended_data(block, room)
            room -= len(data)
            if flag == b"g":
                self._common.update(self._records(data))
                if not long and not extended:  # it may well be the last header
                    return None
            elif flag in (b"x", b"X"):
                extended = self._records(data)
            else:
                long[b"path" if flag == b"L" else b"linkpath"] = data.partition(b"\0")[0]
            at = self._stream.position
            block = self._stream.read(BLOCK)
            if not _is_header(block):
                raise _Damaged(_damaged_header(at, block))
        return self._member(block, {**self._common, **long, **extended})

    def _extended_data(self, block: bytes, room: int) -> bytes:
        """Read an extended header; one that is too large is passed over."""
        stream, size = self._stream, _number(block[124:136])
        if size is None or size < 0:
            raise _Damaged(f"an extended header before byte {stream.position} has no usable size")
        padded = -(-size // BLOCK) * BLOCK
        if size > room:
            self._note(f"an extended header before byte {stream.position} claims {size} bytes")
            stream.seek(stream.position + padded)
            return b""
        data = stream.read(padded)
        if len(data) < size:
            raise ArchiveFault(f"it ends at byte {stream.position}, inside an extended header")
        return data[:size]

    def _records(self, data: bytes) -> dict[bytes, bytes]:
        """Split `length key=value` lines, as far as they add up; keep those that are used."""
        records: dict[bytes, bytes] = {}
        at = 0
        while at < len(data) and data[at]:
            digits, blank, _ = data[at : at + 20].partition(b" ")
            length = _decimal(digits) or 0
            record = data[at + len(digits) + 1 : at + length]
            key, equals, value = record.partition(b"=")
            if not (blank and equals and value.endswith(b"\n")) or at + length > len(data):
                self._note(f"an extended header before byte {self._stream.position} is damaged")
                break
            if key in _PAX_KEYS or key in _SPARSE_KEYS:
                records[key] = value[:-1]
            elif key.startswith(_SPARSE):
                records[_SPARSE] = b""
            at += length
        return records

    def _member(self, block: bytes, pax: dict[bytes, bytes]) -> Member | None:
        """Make the member of a header and its records; one with an endless name is passed over."""
        stream, flag = self._stream, block[156:157]
        name = pax.get(b"GNU.sparse.name") or pax.get(b"path") or _name(block)
        kind = _KINDS.get(flag, "file")
        if kind == "file" and name.endswith(b"/"):  # V7 has no type for folders
            kind = "folder"
        stored = _decimal(pax.get(b"size"))
        stored = _number(block[124:136]) if stored is None else stored
        if flag in _WITHOUT_DATA and (stored is None or stored < 0):
            stored = 0  # what holds no data needs no size
        if stored is None or not 0 <= stored <= _INT64_MAX >> 1:
            self._note(f"the header before byte {stream.position} has no usable size")
            stored, kind = 0, "unsized"  # where its data end is where the next header is found
        size = stored
        if kind == "sparse":
            size = _number(block[483:495]) or 0
            self._skip_sparse_map(block)
        elif any(key.startswith(_SPARSE) for key in pax) and kind != "unsized":
            kind = "sparse"
            size = _decimal(pax.get(b"GNU.sparse.realsize") or pax.get(b"GNU.sparse.size")) or 0
        offset = stream.position
        end = offset + (0 if flag in _WITHOUT_DATA else stored)
        target = (pax.get(b"linkpath") or block[157:257].partition(b"\0")[0]) if kind == "hard link" else b""
        if len(name) > MAX_NAME or len(target) > MAX_NAME:
            self._note(f"the header before byte {offset} has a name of {max(len(name), len(target))} bytes")
            stream.seek(-(-end // BLOCK) * BLOCK)
            return None
        size = max(0, min(size, _INT64_MAX))
        return Member(_tidy(name), kind, size, offset, end, _mtime(block, pax), _tidy(target))

    def _skip_sparse_map(self, block: bytes) -> None:
        """Skip the blocks that continue the map of an old GNU sparse member."""
        more = block[482]
        while more:
            block = self._stream.read(BLOCK)
            if len(block) < BLOCK:
                raise ArchiveFault(f"it ends at byte {self._stream.position}, inside a sparse header")
            more = block[504]


def _damaged_header(at: int, block: bytes) -> str:
    return f"the header at byte {at} is {'truncated' if len(block) < BLOCK else 'damaged'}"


def _mtime(block: bytes, pax: dict[bytes, bytes]) -> int | None:
    return _microseconds(pax[b"mtime"]) if b"mtime" in pax else _whole_seconds(_number(block[136:148]))


def _is_header(block: bytes) -> bool:
    """Check the checksum, which some old writers made of signed bytes."""
    if len(block) < BLOCK:
        return False
    stored = _number(block[148:156])
    if stored is None:
        return False
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
    return None if seconds is None else dated(seconds * 10**6)


def _microseconds(text: bytes) -> int | None:
    """Read PAX's decimal seconds exactly, as a float could not; -1.5 is 1.5 s before the epoch."""
    sign = -1 if text.startswith(b"-") else 1
    whole, _, fraction = text.lstrip(b"-").partition(b".")
    seconds, part = _decimal(whole), _decimal((fraction + b"0" * 6)[:6])
    return None if seconds is None or part is None else dated(sign * (seconds * 10**6 + part))
