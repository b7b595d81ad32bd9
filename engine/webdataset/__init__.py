"""Packs a folder of images into WebDataset shards: tars that are read in large pieces, in the same order.

The shards follow from the listing: they are filled one after the other. So they are the state of an
unfinished run, too: what they hold is skipped when the same folder is packed again. Where a shard does not
hold what is listed now, it and those behind it are written anew.
"""

import json
import os
import uuid
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, Any

from ..errors import Refused, Stopped
from ..results.form import has_form
from ..results.index import Index, key_of
from ..results.staging import Staging
from ..row import ImageFault
from ..settings import SourceSettings, StrPath, told
from ..sources import MAX_FILE_SIZE, Candidate, ListingCounts, check, find
from ..sources.uris import parts_of
from ..system.durable import TEMPORARY, disk_faults_stop, make_folder, read_whole, remove, write_whole
from ..system.objects import is_url
from ..tar.headers import MAX_NAME
from ..tar.streams import ArchiveFault
from .shards import Packed, ShardWriter, packed_in, room_for

__all__ = ["PackSettings", "Packing", "pack"]

MANIFEST = "pack.json"
NOT_PACKED = "not-packed.jsonl"  # a line for each file that could not be read: uri, status, error
SHARD_SIZE = 1_000_000_000  # bytes
READERS = 16  # files that are read at once
BYTES_AHEAD = 256_000_000  # of files that are read and not yet written; any one file fits
STATE_FORM = {"pack": dict}

Watch = Callable[[int], None]  # is told the number of images done


@dataclass(frozen=True, kw_only=True)
class PackSettings:
    """What to pack, and into which folder. Raises Refused for impossible values."""

    folder: StrPath  # or the address of what is to be packed
    out: StrPath  # a new folder, or that of an unfinished run
    include: Sequence[str] = ()
    exclude: Sequence[str] = ()
    hidden: bool = False
    follow_links: bool = False
    shard_size: int = SHARD_SIZE  # bytes; a larger file has a shard of its own

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        if self.shard_size <= 0:
            raise Refused(f"--shard-size {self.shard_size} must be above 0")

    @property
    def sources(self) -> SourceSettings:
        """Settings of the listing."""
        return SourceSettings(
            (os.fspath(self.folder),),
            include=self.include,
            exclude=self.exclude,
            hidden=self.hidden,
            follow_links=self.follow_links,
        )

    @property
    def same(self) -> dict[str, Any]:
        """What must be equal for an unfinished run to be resumed."""
        kept = asdict(self) | {"folder": told(self.folder)}
        del kept["out"]
        return json.loads(json.dumps(kept))


@dataclass
class Packing:
    """Figures of a packed folder."""

    out: str
    images: int = 0
    bytes: int = 0  # of the shards
    shards: int = 0
    resumed: int = 0  # images that an earlier run had packed
    duplicates: int = 0  # paths reached twice
    not_packed: dict[str, int] = field(default_factory=dict)  # by status

    @property
    def exit_code(self) -> int:
        """0 if everything is packed, 3 if some files could not be read."""
        return 3 if self.not_packed else 0


def pack(settings: PackSettings, watch: Watch = lambda _: None) -> Packing:
    """Write the images of a folder into shards; they appear together, once all are complete.

    Raises Refused before the first image is read, Stopped if the machine fails; the same call then goes on.
    """
    if is_url(settings.out):
        raise Refused("--out of pack is a folder here: upload the shards with the provider's own tool")
    if not is_url(settings.folder) and not os.path.isdir(settings.folder):  # noqa: PTH112
        raise Refused(
            f"{os.fspath(settings.folder)} is not a folder: name the one whose images are to be packed"
        )
    check(settings.sources)
    staging = Staging(Path(settings.out), is_folder=True)
    staging.check_target()
    if staging.target.exists() and any(staging.target.iterdir()):
        raise Refused(f"{staging.target} exists: name a new folder with --out, or remove it")
    staging.enter()
    try:
        _begin_or_resume(staging, settings)
        return _Run(settings, staging, watch).finished()
    finally:
        staging.leave()


def _begin_or_resume(staging: Staging, settings: PackSettings) -> None:
    """Take over what an earlier run of the same settings left; raises Refused for anything else."""
    with suppress(FileNotFoundError):
        try:
            state = json.loads(read_whole(staging.state))
        except (ValueError, RecursionError):
            state = None
        if state is None or not has_form(state, STATE_FORM):
            raise Refused(f"{staging.folder} holds other files than unfinished shards: remove or rename it")
        if differing := sorted(k for k, v in settings.same.items() if state["pack"].get(k) != v):
            raise Refused(
                f"the unfinished shards in {staging.folder} differ in {', '.join(differing)}: give the same "
                "settings, or remove that folder"
            )
        return
    if not staging.is_empty:
        raise Refused(f"{staging.folder} holds other files than unfinished shards: remove or rename it")
    state = {"scan_id": uuid.uuid4().hex, "format": 0, "pack": settings.same}  # to a walk, unfinished results
    with disk_faults_stop(staging.target):
        write_whole(staging.state, json.dumps(state).encode())


class _Differs(Exception):
    """A shard does not hold what is listed now."""

    def __init__(self, number: int):
        self.number = number


class _Run:
    """One run of `pack`, under the lock."""

    def __init__(self, settings: PackSettings, staging: Staging, watch: Watch):
        self._settings, self._staging, self._watch = settings, staging, watch
        self._root = os.fsencode(told(settings.folder)).rstrip(b"/") + b"/"

    def finished(self) -> Packing:
        """Write what is missing and put the shards in their place; raises Refused, Stopped."""
        with disk_faults_stop(self._staging.target):
            make_folder(self._staging.data)
            for leftover in self._staging.data.glob(f"*{TEMPORARY}"):
                leftover.unlink()
            packing = self._packed()
            while packing is None:
                packing = self._packed()
            for _ in self._staging.install_data(replace=False):
                pass
            self._staging.remove()
            return packing

    def _packed(self) -> Packing | None:
        """Write all shards; None where some had to be dropped first."""
        packing, index, counts = Packing(str(self._staging.target)), Index(), ListingCounts()

        def accept(candidate: Candidate) -> bool:
            return index.claim(key_of(candidate.row), candidate.row.kind) == "new"

        with (self._staging.data / NOT_PACKED).open("w", encoding="utf-8") as failures:
            faults = _Faults(failures)
            candidates = find(self._settings.sources, counts, accept)
            try:
                manifest = self._kept(candidates, faults)
                manifest += self._written(candidates, faults, len(manifest))
            except _Differs as differs:
                self._drop_from(differs.number)
                return None
        if not index.listed:
            remove(self._staging.data)
            remove(self._staging.state)
            raise Refused(f"no image was found in {os.fspath(self._settings.folder)}")
        packing.images, packing.shards = sum(each["images"] for each in manifest), len(manifest)
        packing.bytes = sum(each["bytes"] for each in manifest)
        packing.resumed = sum(each.pop("resumed") for each in manifest)
        packing.duplicates, packing.not_packed = index.duplicates, dict(faults.counts)
        if not faults.counts:
            remove(self._staging.data / NOT_PACKED)
        figures = {k: v for k, v in asdict(packing).items() if k not in ("out", "resumed")}
        document = {"format": 1, **self._settings.same, **figures, "files": manifest}
        write_whole(self._staging.data / MANIFEST, (json.dumps(document, indent=1) + "\n").encode())
        return packing

    def _shard(self, number: int) -> Path:
        return self._staging.data / f"shard-{number:06d}.tar"

    def _drop_from(self, number: int) -> None:
        while self._shard(number).exists():
            self._shard(number).unlink()
            number += 1

    # What earlier runs have written

    def _kept(self, candidates: Iterator[Candidate], faults: "_Faults") -> list[dict[str, Any]]:
        """Compare the shards that are complete with what is listed; raises _Differs."""
        manifest: list[dict[str, Any]] = []
        while (path := self._shard(len(manifest))).exists():
            images = 0
            try:
                for member in packed_in(path):
                    self._meet(member, candidates, faults, len(manifest))
                    images += 1
            except ArchiveFault:
                raise _Differs(len(manifest)) from None
            manifest.append(_entry(path, images, images))
        return manifest

    def _meet(self, member: Packed, candidates: Iterator[Candidate], faults: "_Faults", number: int) -> None:
        """Find the candidate that a member was written from; those before it cannot be read."""
        for candidate in candidates:
            if member == self._member(candidate):
                return
            content = _content(candidate)
            if isinstance(content, bytes):
                break
            faults.note(candidate, content)
        raise _Differs(number)

    # What is missing

    def _written(
        self, candidates: Iterator[Candidate], faults: "_Faults", number: int
    ) -> list[dict[str, Any]]:
        """Write shards of what is still to be listed, from this number on."""
        manifest: list[dict[str, Any]] = []
        shard: ShardWriter | None = None
        done = 0
        try:
            with closing(_read_ahead(candidates)) as contents:
                for candidate, content in contents:
                    if isinstance(content, ImageFault):
                        faults.note(candidate, content)
                        continue
                    member = self._member(candidate)._replace(size=len(content))
                    if shard and shard.size + room_for(member) > self._settings.shard_size:
                        manifest.append(_closed(shard))
                        shard = None
                    if shard is None:
                        shard = ShardWriter(self._shard(number + len(manifest)))
                    shard.add(member, content)
                    done += 1
                    self._watch(done)
            if shard:
                manifest.append(_closed(shard))
        finally:
            if shard:
                shard.abandon()
        return manifest

    def _member(self, candidate: Candidate) -> Packed:
        """Name a candidate as it lies below the folder; a member of a tar lies below the tar."""
        row = candidate.row
        path, inside = parts_of(row.uri, row.offset is not None)
        name = path.removeprefix(self._root) + (b"/" + inside if inside else b"")
        return Packed(_safe(name), row.bytes or 0, row.mtime or 0)


class _Faults:
    """Files that cannot be packed, written as lines of JSON."""

    def __init__(self, file: IO[str]):
        self.counts: Counter[str] = Counter()
        self._file = file

    def note(self, candidate: Candidate, fault: ImageFault) -> None:
        """Write a line."""
        self.counts[fault.status] += 1
        line = {"uri": candidate.row.uri, "status": fault.status, "error": str(fault)}
        self._file.write(json.dumps(line) + "\n")


def _content(candidate: Candidate) -> bytes | ImageFault:
    """Read a file, even one of a form that no scan decodes; raises Stopped."""
    row = candidate.row
    is_odd = row.status == "unsupported" and row.offset is None and candidate.storage is not None
    if row.status and not is_odd:
        return ImageFault(row.status, row.error or "")
    if len(row.uri.encode()) > MAX_NAME:
        return ImageFault("unsupported", "its name is too long for a tar")
    try:
        return candidate.read(MAX_FILE_SIZE)
    except ImageFault as fault:
        return b"" if fault.status == "empty" else fault


def _read_ahead(
    candidates: Iterable[Candidate],
) -> Generator[tuple[Candidate, bytes | ImageFault], None, None]:
    """Read candidates on several threads, in order; raises Stopped."""
    waiting: deque[tuple[Candidate, Future[bytes | ImageFault]]] = deque()
    held = 0
    pool = ThreadPoolExecutor(READERS, "read")
    try:
        for candidate in candidates:
            size = candidate.row.bytes or 0
            while waiting and (held + size > BYTES_AHEAD or len(waiting) >= 4 * READERS):
                first, future = waiting.popleft()
                yield first, future.result()
                held -= first.row.bytes or 0
            waiting.append((candidate, pool.submit(_content, candidate)))
            held += size
        for first, future in waiting:
            yield first, future.result()
    except MemoryError:
        raise Stopped("the machine is out of memory: free some, and run the same command again") from None
    finally:
        pool.shutdown(cancel_futures=True)


def _closed(shard: ShardWriter) -> dict[str, Any]:
    shard.close()
    return _entry(shard.path, shard.members, 0)


def _entry(path: Path, images: int, resumed: int) -> dict[str, Any]:
    return {"name": path.name, "images": images, "bytes": path.stat().st_size, "resumed": resumed}


def _safe(name: bytes) -> bytes:
    """Return a name that leads nowhere else when the tar is unpacked: those in tars may be anything."""
    parts = (part for part in name.split(b"/") if part not in (b"", b"."))
    return b"/".join(b"%2E%2E" if part == b".." else part for part in parts)
