"""Entries of a tar in order, each hard link with the place of the bytes that it stands for.

A hard link is a file like others: it has the bytes of the last member before it of its target's name. In a
compressed tar these have passed by when the link is met, so its links come after everything else, in the
order of their bytes, which a second pass reads.
"""

import struct
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import NamedTuple

from ..row import ImageFault
from ..tar.headers import Member, members
from ..tar.streams import ArchiveFault, GzipStream, PlainStream, Readable
from .storage import Tar
from .uris import shown

MAX_WAITING = 32_000_000  # bytes of the names of a compressed tar's links, which wait until its end
_LINK_BYTES = 300  # of a link, besides its name
_PLACE = struct.Struct("=qqq")  # hash of a name; offset; size, inverted where the bytes cannot be read
_SHARDS = 1 << 10
_FAULTS = {
    "sparse": ImageFault("unsupported", "its archive stores it as a sparse file"),
    "rest": ImageFault("unsupported", "its archive holds only its end, which began in another volume"),
    "unsized": ImageFault("undecodable", "its header in the archive has no usable size"),
}
_TOO_MANY_LINKS = ImageFault("unsupported", "its archive is compressed and has too many hard links")

Pread = Callable[[int, int], bytes]  # size, offset


class Entry(NamedTuple):
    """One entry of a tar and the stream that its bytes are read from next."""

    stream: Readable
    member: Member
    fault: ImageFault | None  # why they are not to be read


def entries(archive: Tar, reads_whole: Callable[[bytes], bool]) -> Iterator[Entry | ImageFault]:
    """Yield the entries of a tar, and last the fault of the tar itself, if any; raises Stopped.

    `reads_whole` is asked whether the tar at a path is to be read, if its members are not read by offsets.
    """
    try:
        if not archive.rereads and not reads_whole(archive.path):
            return
        with archive.reader() as read:
            compressed = read(2, 0) == b"\x1f\x8b"
            if not compressed or not archive.rereads or reads_whole(archive.path):
                yield from _entries(read, archive.size, compressed)
    except OSError as error:
        yield archive.verdict_on_all(error)
    except ImageFault as fault:
        yield fault


def _entries(read: Pread, size: int, compressed: bool) -> Iterator[Entry | ImageFault]:
    stream = GzipStream(read) if compressed else PlainStream(read, size)
    places, waiting, damage = _Places(), _Waiting(), None
    try:
        for member in members(stream):
            fault, is_link = _FAULTS.get(member.kind), member.kind == "hard link"
            if is_link:
                member, fault = places.resolved(member)
            if member.kind in ("file", "sparse", "rest", "unsized"):
                places.add(member, fault is None)
            if is_link and compressed and fault is None:
                if waiting.take(member):
                    continue
                fault = _TOO_MANY_LINKS
            yield Entry(_at(member.offset, read, size) if is_link else stream, member, fault)
    except ArchiveFault as error:
        damage = error
    yield from waiting.entries(read)
    if damage:
        rest = (
            "what can be read behind that was read" if damage.went_on else "what follows in it was not read"
        )
        yield ImageFault("archive_truncated", f"{damage}; {rest}")


def _at(offset: int, read: Pread, size: int) -> PlainStream:
    """Return a stream that stands at an offset of a tar that is not compressed."""
    stream = PlainStream(read, size)
    stream.position = offset
    return stream


class _Places:
    """Where the members of a tar lie, by name; 24 bytes each."""

    def __init__(self) -> None:
        self._shards: defaultdict[int, bytearray] = defaultdict(bytearray)

    def add(self, member: Member, readable: bool) -> None:
        """Note a member, in place of an earlier one of its name."""
        key = hash(member.name.lstrip(b"/"))  # 64 bits, of a key that nobody outside knows
        size = member.size if readable else ~member.size
        self._shards[key % _SHARDS] += _PLACE.pack(key, member.offset, size)

    def resolved(self, link: Member) -> tuple[Member, ImageFault | None]:
        """Return a hard link as the file that it is, or the fault that it has none."""
        key = hash(link.target.lstrip(b"/"))
        shard, start = self._shards[key % _SHARDS], key.to_bytes(8, "little", signed=True)
        at = shard.rfind(start)
        while at >= 0 and at % _PLACE.size:
            at = shard.rfind(start, 0, at + len(start) - 1)
        name = shown(link.target)
        if at < 0:
            return link, ImageFault("vanished", f"it is a hard link to {name}, which is not before it")
        _, offset, size = _PLACE.unpack_from(shard, at)
        member = replace(link, kind="file", offset=offset, size=max(size, ~size))
        if size >= 0:
            return member, None
        return member, ImageFault("unsupported", f"it is a hard link to {name}, which cannot be read")


class _Waiting:
    """Hard links of a compressed tar, until all of it has been listed."""

    def __init__(self) -> None:
        self._links: list[Member] = []
        self._room = MAX_WAITING

    def take(self, link: Member) -> bool:
        """Keep a resolved link; False if there are too many."""
        self._room -= len(link.name) + _LINK_BYTES
        if self._room < 0:
            return False
        self._links.append(replace(link, target=b""))
        return True

    def entries(self, read: Pread) -> Iterator[Entry]:
        """Yield the links by the place of their bytes, each with a stream that rereads the same bytes."""
        stream, target = GzipStream(read), None
        for link in sorted(self._links, key=lambda link: link.offset):
            if target is None or target.position != link.offset:
                target = _Target(stream, link.offset)
            yield Entry(target, link, None)


class _Target:
    """The bytes of one member of a compressed tar, for each of its links in turn."""

    def __init__(self, stream: GzipStream, position: int):
        self.position = position
        self._stream = stream
        self._data: bytes | None = None

    def read(self, size: int) -> bytes:
        """Return the first `size` bytes, always the same; raises ArchiveFault on damage."""
        if self._data is None:
            self._stream.seek(self.position)
            self._data = self._stream.read(size)
        return self._data
