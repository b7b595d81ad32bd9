"""Mutants of tars, listed by the scan and by GNU tar: what GNU tar reads, we must have as rows."""

import io
import random
import re
import shutil
import subprocess
import tarfile
from bisect import bisect_left
from pathlib import Path

from gbad_batch.engine.errors import GbadError, Refused
from gbad_batch.engine.sources import ListingCounts, SourceSettings, find

from .mutating import BLIND, number
from .tally import Tally

BLOCK = 512
SETS = 16  # of sound tars
GNU_S = 600  # that GNU tar may take, on a machine that pauses
FIELDS = {  # of a header: place and size
    "name": (0, 100),
    "mode": (100, 8),
    "size": (124, 12),
    "mtime": (136, 12),
    "checksum": (148, 8),
    "kind": (156, 1),
    "link": (157, 100),
    "magic": (257, 8),
    "prefix": (345, 155),
}
PLACED = re.compile(rb"(?:block \d+: )*block (\d+): ")  # before a damaged header it says one more
LISTED = re.compile(rb"(?:block \d+: )*block (\d+): (?:(-)\S{9} .*\.jpg|h\S{9} .*\.jpg link to .*)$")


class TarMutants:
    """Makes mutants of tars by number, and compares their listing with GNU tar's."""

    counted = "tar_mutants"

    def __init__(self, seed: int, folder: Path):
        self._seed, self._folder = seed, folder
        self._sound = sound_tars(random.Random(seed % SETS))
        found = shutil.which("tar")
        if (
            found is None
            or b"GNU tar" not in subprocess.run([found, "--version"], capture_output=True).stdout
        ):
            raise Refused("there is no GNU tar to compare with")
        self._tar = found

    def mutant(self, number_: int) -> bytes:
        """Give the bytes of a mutant."""
        luck = random.Random(f"{self._seed}/{number_}")
        data = bytearray(luck.choice(self._sound))
        for _ in range(luck.choice((1, 1, 1, 2, 3))):
            mutate = luck.choice(BLIND) if luck.random() < 0.25 else luck.choice(STRUCTURED)
            try:
                mutate(luck, data)
            except (IndexError, ValueError):
                continue
            if not data:
                break
        return bytes(data)

    def __call__(self, number_: int, tally: Tally) -> None:
        """List one mutant twice."""
        data = self.mutant(number_)
        path = self._folder / "mutant.tar"
        path.write_bytes(data)
        tally.counts["tar_mutants"] += 1
        where = {"seed": self._seed, "number": number_}
        settings = SourceSettings((path,), hidden=True)
        try:
            rows = [candidate.row for candidate in find(settings, ListingCounts(), lambda _: True)]
        except GbadError as error:
            tally.find("unhandled", f"a tar's fault ends the listing: {error}", **where)
            return
        except Exception as error:  # noqa: BLE001 - whatever it is, it should have become a row
            tally.find("unhandled", repr(error), **where)
            return
        ours = sorted(row.offset for row in rows if row.kind == "image" and row.offset is not None)
        if len(set(ours)) < len([row for row in rows if row.kind == "image" and row.bytes]):
            tally.counts["tars with members at one place"] += 1
        theirs, links = self._listed(path)
        tally.counts["members by GNU tar"] += len(theirs) + links
        tally.counts["members by us"] += len(ours)
        missing = sum(not _between(ours, begin, end) for begin, end in theirs)
        missing = max(missing, len(theirs) + links - sum(row.kind == "image" for row in rows))
        if missing:
            said = [f"{row.status}: {row.error}" for row in rows if row.kind == "container"]
            kind = "tar_members_lost" if not said else "tar_members_behind_a_fault"
            what = f"{missing} of {len(theirs) + links} images of GNU tar have no row; containers: {said}"
            tally.find(kind, what, **where)

    def _listed(self, path: Path) -> tuple[list[tuple[int, int]], int]:
        """Give where the header of each image, and the next one, begins; count hard links."""
        words = [self._tar, "-tvRf", path, "--quoting-style=escape"]
        done = subprocess.run(
            words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=GNU_S, env={"LC_ALL": "C"}
        )
        places: list[int] = []
        wanted: list[int] = []
        links = 0
        for line in done.stdout.splitlines():
            if not (match := PLACED.match(line)):
                continue
            places.append(int(match[1]))
            listed = LISTED.match(line)
            if listed and listed[2]:
                wanted.append(int(match[1]))
            elif listed:
                links += 1
        places.sort()
        ends = [*places, 1 << 60]
        return [(at * BLOCK, ends[bisect_left(places, at + 1)] * BLOCK) for at in wanted], links


def _between(ours: list[int], begin: int, end: int) -> bool:
    """Say whether a row's data begin behind one header, and not behind the next."""
    at = bisect_left(ours, begin + 1)
    return at < len(ours) and ours[at] <= end


def sound_tars(luck: random.Random) -> list[bytes]:
    """Write tars of every form, with long names, links, folders, and extended headers."""
    made = []
    for form in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        for links in (False, True):
            out = io.BytesIO()
            with tarfile.open(fileobj=out, mode="w", format=form, encoding="utf-8") as tar:
                _fill(tar, luck, links)
            made.append(out.getvalue()[: -(-out.tell() // BLOCK) * BLOCK][: len(out.getvalue())])
    made.append(made[0] + made[2])  # joined by cat
    return made


def _fill(tar: tarfile.TarFile, luck: random.Random, links: bool) -> None:
    for number_ in range(6):
        long = number_ == 3
        member = tarfile.TarInfo(("d" * 60 + "/") * (2 if long else 0) + f"bag{number_}.jpg")
        member.mtime = 1_750_000_000 + (0.5 if tar.format == tarfile.PAX_FORMAT and number_ % 2 else 0)
        data = luck.randbytes(luck.choice((0, 10, 512, 700)))
        member.size = len(data)
        tar.addfile(member, io.BytesIO(data))
        if number_ == 1:
            folder = tarfile.TarInfo("folder/")
            folder.type = tarfile.DIRTYPE
            tar.addfile(folder)
        if links and number_ == 4:
            for kind, name in ((tarfile.LNKTYPE, "hard.jpg"), (tarfile.SYMTYPE, "soft.jpg")):
                link = tarfile.TarInfo(name)
                link.type, link.linkname = kind, "bag0.jpg"
                tar.addfile(link)


def _headers(data: bytearray) -> list[int]:
    return [at for at in range(0, len(data) - BLOCK + 1, BLOCK) if data[at + 257 : at + 262] == b"ustar"]


def _field(luck: random.Random, data: bytearray) -> None:
    """Change a field of a header, and mostly make its checksum right again."""
    at = luck.choice(_headers(data))
    name, (place, size) = luck.choice(list(FIELDS.items()))
    if name == "kind":
        content = luck.choice(
            (b"0", b"\0", b"1", b"2", b"5", b"7", b"x", b"g", b"L", b"K", b"S", b"V", b"Z", b"9")
        )
    elif name in ("size", "mtime", "mode"):
        content = _numeric(luck, size)
    else:
        content = luck.choice(
            (b"", b"/", b"../a.jpg", b"a\n.jpg", b"\xff.jpg", b"x" * size, luck.randbytes(size))
        )
    data[at + place : at + place + size] = content.ljust(size, b"\0")[:size]
    if name != "checksum" and luck.random() < 0.85:
        checked(data, at)


def _numeric(luck: random.Random, size: int) -> bytes:
    drawn = number(luck, 8)
    ways = (
        b"%0*o" % (size - 1, drawn % 8 ** (size - 1)),
        b"%*o " % (size - 1, luck.randrange(2000)),
        (b"\x80" + drawn.to_bytes(size - 1, "big")[-size + 1 :]) if size > 8 else b"\x80" + bytes(size - 1),
        b"\xff" * (size - 8) + drawn.to_bytes(8, "big") if size >= 8 else b"",
        b"-1",
        b"0" * size,
        b"9" * size,
    )
    return luck.choice(ways)


def checked(data: bytearray, at: int) -> None:
    """Make a header's checksum right."""
    block = data[at : at + BLOCK]
    total = sum(block) - sum(block[148:156]) + 8 * 32
    data[at + 148 : at + 156] = b"%06o\0 " % total


def _record(luck: random.Random, data: bytearray) -> None:
    """Change a record of a PAX header, or put a PAX header before a member."""
    pax = [at for at in _headers(data) if data[at + 156 : at + 157] in (b"x", b"g")]
    if pax and luck.random() < 0.4:
        at = luck.choice(pax) + BLOCK
        place = at + luck.randrange(80)
        data[place : place + 1] = luck.choice((b"\0", b"=", b"\n", b" ", b"9", b"-", b"\xff"))
        return
    key = luck.choice(
        (
            b"path",
            b"size",
            b"mtime",
            b"linkpath",
            b"GNU.sparse.size",
            b"GNU.sparse.name",
            b"GNU.sparse.major",
            b"comment",
        )
    )
    value = luck.choice(
        (b"new.jpg", b"0", b"10", b"-1", b"9" * 30, b"1e5", b"1.5", b"", b"a\0b.jpg", b"x/" * 200 + b".jpg")
    )
    body = b" " + key + b"=" + value + b"\n"
    length = len(body) + 2
    length += len(b"%d" % length) - 2
    wrong = luck.choice((0, 0, 0, 0, -1, 1, 1000, -length))
    record = b"%d" % (length + wrong) + body
    header = bytearray(BLOCK)
    header[0:6] = b"pax.hd"
    header[100:108], header[124:136] = b"0000644\0", b"%011o\0" % len(record)
    header[136:148], header[156:157], header[257:265] = (
        b"0" * 11 + b"\0",
        luck.choice((b"x", b"x", b"g")),
        b"ustar\x0000",
    )
    checked(header, 0)
    at = luck.choice(_headers(data))
    data[at:at] = header + record.ljust(-(-len(record) // BLOCK) * BLOCK, b"\0")


def _blocks(luck: random.Random, data: bytearray) -> None:
    """Leave out, repeat, exchange or clear whole blocks."""
    one, other = (BLOCK * luck.randrange(len(data) // BLOCK) for _ in range(2))
    what = luck.randrange(4)
    if what == 0:
        del data[one : one + BLOCK]
    elif what == 1:
        data[one:one] = data[other : other + BLOCK]
    elif what == 2:
        data[one : one + BLOCK], data[other : other + BLOCK] = (
            data[other : other + BLOCK],
            data[one : one + BLOCK],
        )
    else:
        data[one : one + BLOCK] = bytes(BLOCK)


STRUCTURED = (_field, _field, _field, _record, _record, _blocks)
