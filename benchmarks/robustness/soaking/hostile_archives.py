"""Archives, lists, outputs and models that once ended a scan or lost images; made by hand, one kind each."""

import gzip
import json
import os
import struct
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from .commands import Ended, Running
from .hostile_images import picture, saved
from .place import Place, write_tiny_bundle
from .tars import BLOCK, checked

Rows = list[dict[str, object]]
DONE = (0, 3)


@dataclass(frozen=True)
class Trial:
    """A kind that has to do with a whole command: what it writes, and what must come of it."""

    kind: str
    inputs: int
    wrong: Callable[[Place], str | None]  # what is wrong, None where all is right


def archive_trials() -> Iterator[Trial]:
    """Give each kind; `wrong` writes its files below the place's scratch folder and runs the command."""
    for kind, members in _tars().items():
        yield Trial(f"tar: {kind}", 1, _Tar(*members))
    yield Trial("list with a byte-order mark", 1, _marked_list)
    yield Trial("list in UTF-16", 1, _wide_list)
    yield Trial("folder of a foreign x.parts", 1, _foreign_parts)
    yield Trial("folder exchanged for a link, FIFO among files", 2, _links)
    yield Trial("times beyond the years 1 to 9999", 2, _times)
    yield Trial("names of any bytes", 4, _names)
    yield Trial("configuration of odd values", len(CONFIGS), _configurations)
    yield Trial("foreign Parquet among parts", 1, _foreign_part)
    yield Trial("scan.json of odd values", 3, _odd_state)
    yield Trial("result whose footer is odd", 3, _odd_footers)
    yield Trial("bundle with odd arrays or huge headers", 4, _bundles)


def scanned(place: Place, *sources: str | Path, out: str = "rows.parquet") -> tuple[Ended, Rows]:
    """Run the command over sources; returns how it ended, and its rows."""
    target = place.scratch / out
    first, *others = sources
    ended = Running(place.words(Path(first), target, *others)).ended()
    return ended, pq.read_table(target).to_pylist() if target.exists() and ended.code in DONE else []


def refused(ended: Ended, *codes: int) -> str | None:
    """Say what is wrong unless a command ended with a code and one sentence."""
    if "Traceback" in ended.said or ended.code not in codes:
        return f"exit code {ended.code}: {ended.said.strip()[-200:]}"
    return None


# --- tars


@dataclass(frozen=True)
class _Tar:
    """A tar that must give these rows: status by the end of the uri; None stands for any status."""

    data: bytes
    rows: dict[str, str | None]
    name: str = "a.tar"

    def __call__(self, place: Place) -> str | None:
        folder = place.scratch / "tar"
        folder.mkdir()
        (folder / self.name).write_bytes(self.data)
        (folder / "z.png").write_bytes(saved(picture(), "PNG"))  # its neighbour
        ended, rows = scanned(place, folder)
        if wrong := refused(ended, *DONE):
            return wrong
        said = {str(row["uri"]): row["status"] for row in rows}
        for end, status in (self.rows | {"/z.png": "ok"}).items():
            found = [value for uri, value in said.items() if uri.endswith(end)]
            if not found or status not in (None, found[0]):
                return f"{end} is {found or 'lost'}, not {status}"
        return None


def _tars() -> dict[str, tuple[Any, ...]]:
    """Give the arguments of each _Tar."""
    image = saved(picture(), "PNG")
    plain = _member("a.png", image)
    end = bytes(2 * BLOCK)
    hard = _member("b.png", b"", kind=b"1", link="a.png")
    sparse = bytearray(_member("s.png", image, kind=b"S"))
    sparse[483:495] = b"\xff" * 12
    checked(sparse, 0)
    late = bytearray(_member("t.png", image))
    late[136:148] = b"\x80" + (2**62).to_bytes(11, "big")
    checked(late, 0)
    record = b"9999 path=x.png\n"
    bad = _member("pax", record, kind=b"x")
    chained = b"".join(
        _member("pax", _record("comment", f"{n}".ljust(20_000)), kind=b"x") for n in range(400)
    )
    long_name = _member("././@LongLink", b"d/" * 20_000 + b"a.png", kind=b"L")
    return {
        "hard link": (plain + hard + end, {"!a.png": "ok", "!b.png": "ok"}),
        "hard link of a size below zero": (
            plain + _sized(hard, -1) + end,
            {"!a.png": "ok", "!b.png": "ok"},
        ),
        "a type that nobody knows": (
            plain + _member("u.png", image, kind=b"Z") + end,
            {"!a.png": "ok", "!u.png": "ok"},
        ),
        "sparse, of a size below zero": (bytes(sparse) + plain + end, {"!a.png": "ok"}),
        "a time of the year 146 billion": (bytes(late) + plain + end, {"!t.png": "ok", "!a.png": "ok"}),
        "a bad extended record": (
            bad + plain + _member("c.png", image) + end,
            {"!c.png": "ok", "a.tar": None},
        ),
        "a damaged header between": (
            plain + b"\xaa" * BLOCK + _member("c.png", image) + end,
            {"!a.png": "ok", "!c.png": "ok", "a.tar": None},
        ),
        "400 extended headers before a member": (chained + plain + end, {"!a.png": None}),
        "a name of 40,005 bytes": (long_name + plain + _member("c.png", image) + end, {"!c.png": "ok"}),
        "cut in a member": (plain + _member("c.png", image)[:700], {"!a.png": "ok", "a.tar": None}),
        "20,000 empty gzip members": (
            gzip.compress(plain + end) + gzip.compress(b"") * 20_000,
            {"!a.png": "ok"},
            "a.tar.gz",
        ),
        "a size of 2^62": (_sized(plain, 2**62), {"a.tar": None}),
    }


def _member(name: str, data: bytes, kind: bytes = b"0", link: str = "") -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.type, member.linkname = len(data), kind, link
    return member.tobuf(tarfile.USTAR_FORMAT) + data.ljust(-(-len(data) // BLOCK) * BLOCK, b"\0")


def _record(key: str, value: str) -> bytes:
    body = f" {key}={value}\n"
    length = len(body) + 5
    return f"{length:05}{body}".encode()


def _sized(member: bytes, size: int) -> bytes:
    changed = bytearray(member)
    stored = size.to_bytes(12, "big", signed=True) if size < 0 else b"\x80" + size.to_bytes(11, "big")
    changed[124:136] = stored
    checked(changed, 0)
    return bytes(changed)


# --- lists, folders, names


def _pictures(folder: Path, *names: str | bytes) -> list[bytes]:
    folder.mkdir(parents=True, exist_ok=True)
    paths = [os.path.join(os.fsencode(folder), os.fsencode(name)) for name in names]  # noqa: PTH118 - bytes
    for path in paths:
        with open(path, "wb") as file:  # noqa: PTH123 - bytes
            file.write(saved(picture(), "PNG"))
    return paths


def _marked_list(place: Place) -> str | None:
    paths = _pictures(place.scratch / "listed", "a.png", "b.png")
    (place.scratch / "list.txt").write_bytes(b"\xef\xbb\xbf" + b"\n".join(paths))
    ended, rows = scanned(place, f"--files-from={place.scratch}/list.txt")
    if ended.code == 2 and "byte-order mark" in ended.said:
        return None
    statuses = [row["status"] for row in rows]
    return refused(ended, 0) or (None if statuses == ["ok", "ok"] else f"rows are {statuses}")


def _wide_list(place: Place) -> str | None:
    paths = _pictures(place.scratch / "listed", "a.png", "b.png")
    (place.scratch / "list.txt").write_bytes(b"\n".join(paths).decode().encode("utf-16"))
    ended, _ = scanned(place, f"--files-from={place.scratch}/list.txt")
    return refused(ended, 2) or (None if "UTF-16" in ended.said else f"it does not say why: {ended.said}")


def _foreign_parts(place: Place) -> str | None:
    folder = place.scratch / "archive" / "x.parts"
    _pictures(folder, "a.png")
    (folder / "lock").write_bytes(b"")
    (folder / "scan.json").write_text("{}")
    ended, rows = scanned(place, folder.parent)
    statuses = {str(row["uri"]).rpartition("/")[2]: row["status"] for row in rows}
    return refused(ended, *DONE) or (None if statuses.get("a.png") == "ok" else f"rows are {statuses}")


def _links(place: Place) -> str | None:
    folder = place.scratch / "archive"
    _pictures(folder, "a.png")
    os.mkfifo(folder / "b.jpg")
    (folder / "c.jpg").symlink_to("/dev/zero")
    (folder / "d").symlink_to("/etc")
    ended, rows = scanned(place, folder)
    outside = [row["uri"] for row in rows if "/etc" in str(row["uri"])]
    return refused(ended, 0) or (f"rows of {outside}" if outside or len(rows) != 1 else None)


def _times(place: Place) -> str | None:
    folder = place.scratch / "archive"
    for path, when in zip(_pictures(folder, "a.png", "b.png"), (-(2**33), 2**34 - 1), strict=True):
        os.utime(path, (when, when))
    ended, rows = scanned(place, folder)
    statuses = [row["status"] for row in rows]
    return refused(ended, 0) or (None if statuses == ["ok", "ok"] else f"rows are {statuses}")


def _names(place: Place) -> str | None:
    names = (b"\xff\xfe.png", b"a\nb.png", b"100%.png", "\u202egnp.png".encode())
    _pictures(place.scratch / "archive", *names)
    ended, rows = scanned(place, place.scratch / "archive")
    statuses = [row["status"] for row in rows]
    return refused(ended, 0) or (None if statuses == ["ok"] * len(names) else f"rows are {statuses}")


# --- configurations, outputs, models

CONFIGS = (
    "threads = {a = 1}",
    f"threads = {'9' * 10_000}",
    f"include = {'[' * 5000}",
    "threads = 1979-05-27",
    "pfa = 'x'",
    "a = 1",
    "[",
)


def _configurations(place: Place) -> str | None:
    folder, file = place.scratch / "archive", place.scratch / "scan.toml"
    _pictures(folder, "a.png")
    for text in CONFIGS:
        file.write_text(f"[scan]\n{text}\n")
        ended, _ = scanned(place, folder, "--config", file, "--dry-run")
        if wrong := refused(ended, 2):
            return f"{text[:30]}: {wrong}"
    return None


def _interrupted(place: Place) -> tuple[Path, Path]:
    """Leave an unfinished output; returns the archive and the output's folder of parts."""
    folder, out = place.scratch / "archive", place.scratch / "rows.parquet"
    _pictures(folder, "a.png", "b.png")
    Running(place.words(folder, out), {"GBAD_SOAK_STEP": "0"}).ended()
    return folder, Path(f"{out}.parts")


def _foreign_part(place: Place) -> str | None:
    folder, parts = _interrupted(place)
    pq.write_table(pa.table({"x": [1]}), parts / "data" / "part-00000002.parquet")
    return refused(scanned(place, folder)[0], 2)


def _odd_state(place: Place) -> str | None:
    folder, parts = _interrupted(place)
    state = json.loads((parts / "scan.json").read_bytes())
    for name, value in (("runs", 3), ("overwrite", "x"), ("fingerprint", [])):
        (parts / "scan.json").write_text(json.dumps(state | {name: value}))
        if wrong := refused(scanned(place, folder)[0], 2):
            return f"{name} = {value!r}: {wrong}"
    return None


def _odd_footers(place: Place) -> str | None:
    _pictures(place.scratch / "archive", "a.png")
    for text in (b"[]", b"{}", b'{"scan_id": 1}'):
        table = pa.table({"uri": ["a"]}).replace_schema_metadata({b"gbad_batch": text})
        pq.write_table(table, place.scratch / "rows.parquet")
        ended, _ = scanned(place, place.scratch / "archive", "--retry-failed")
        if wrong := refused(ended, 2):
            return f"{text!r}: {wrong}"
    return None


def _bundles(place: Place) -> str | None:
    import hashlib

    _pictures(place.scratch / "archive", "a.png")
    header = b'{"standardize.mean":{"dtype":"F32","shape":[],"data_offsets":[0,4]}}'
    scalar = struct.pack("<Q", len(header)) + header + bytes(4)
    longs = b"".join(_member("././@LongLink", b"x" * 600, kind=b"L") for _ in range(400))
    digits = _member("pax", b"1" * 100_000 + b" path=x\n", kind=b"x")
    odd = (
        ("weights.safetensors", scalar),
        ("weights.safetensors", struct.pack("<Q", 2**63) + b"{}"),
        ("gate.tar", longs),
        ("gate.tar", _sized(_member("gate-0000.jpg", b""), 2**87) + digits),
    )
    for number, (name, data) in enumerate(odd):
        folder = place.scratch / f"bundle{number}"
        write_tiny_bundle(folder)
        manifest = json.loads((folder / "bundle.json").read_bytes())
        manifest["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        (folder / name).write_bytes(data)
        (folder / "bundle.json").write_text(json.dumps(manifest))
        ended, _ = scanned(place, place.scratch / "archive", "--model", folder)
        if wrong := refused(ended, 2):
            return f"{name} {number}: {wrong}"
    return None
