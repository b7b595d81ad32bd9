"""One pass over the sources, as a stream of candidates.

A walk goes by bytes of the full path, so `a.jpg` comes before what is in the folder `a`; it holds the
names of one folder (and of those above it) and nothing else. A tar and a list keep their own order.

Names. A source or a listed name is made absolute and keeps the symlinks that the user wrote. A symlink
that a walk follows gives the path that it leads to, written below a source where it lies there, so that
what a link and a plain path both reach has one uri and is found to be a duplicate.
"""

import errno
import os
import select
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from io import BufferedReader
from pathlib import Path
from threading import Event
from typing import Literal, NamedTuple, cast

from ..errors import Stopped
from ..row import ImageFault, Kind, Row
from ..settings import SourceSettings
from .archive_names import NameKind, extension_of, is_archive, is_unfinished_result, kind_of
from .candidates import Candidate, Tally, Wanted
from .faults import reason_of, retry_transient, status_of
from .patterns import EntryKind, Patterns, Scope, has_magic
from .storage import (
    Archive,
    BufferedMember,
    ByteBudget,
    Folder,
    Root,
    check_not_empty,
    check_size,
    gone,
    pread,
)
from .tarstream import ArchiveFault, GzipStream, Member, PlainStream, Stream, members
from .uris import shown, uri_of

READ_AHEAD = 64_000_000  # bytes of compressed tars' members that are read and not yet taken over
WAKE_S = 0.2  # how often a listing that waits for names looks whether it was stopped
MAX_NAME = 65_536  # bytes of one line of a list; the system takes no path above 4,096
EVERYTHING = Patterns(("**",), anchored=True)


class _Source(NamedTuple):
    """One source as the user named it."""

    path: bytes  # absolute; of a pattern, the folder it starts in
    glob: Patterns
    root: Root | None  # where it is a folder


class _Frame(NamedTuple):
    """One folder of a walk with the names that are still to come."""

    folder: Folder
    prefix: bytes  # its path with a `/` at the end
    names: list[bytes]  # last one first; a folder's ends in `/`
    odd: dict[bytes, str]  # which of them are symlinks or special files
    scope: Scope | None  # None: no patterns


class Listing:
    """One pass over the sources; `run` may be called once."""

    def __init__(
        self,
        settings: SourceSettings,
        tally: Tally,
        wanted: Wanted,
        max_file_size: int,
        stopped: Event | None,
    ):
        self._settings, self._tally, self._wanted = settings, tally, wanted
        self._max_file_size, self._stopped = max_file_size, stopped
        self._budget = ByteBudget(READ_AHEAD)
        self._include = Patterns(settings.include or ("**",), anchored=False)
        self._exclude = Patterns(settings.exclude, anchored=False)
        self._filtered = bool(settings.include or settings.exclude)
        self._roots: list[tuple[bytes, bytes]] = []  # (real path, as named) of the folders named
        self._last: Folder | None = None  # of the last named file that was there

    def run(self) -> Iterator[Candidate]:
        """Yield the candidates that are wanted, in order; raises Stopped."""
        sources = [self._source(os.fsencode(source)) for source in self._settings.sources]
        for source in sources:
            yield from self._walk(source) if source.root else self._named(source.path)
        if self._settings.files_from is not None:
            for name in _listed(self._settings.files_from, self._settings.null, self._stopped):
                yield from self._named(absolute(name))

    def _offer(self, candidate: Candidate) -> Iterator[Candidate]:
        if candidate.row.kind == "image":
            self._tally.images += 1
        else:
            self._tally.containers += 1
        if self._wanted(candidate):
            yield candidate

    # What the user names

    def _source(self, name: bytes) -> _Source:
        """Look at a source before any is walked, so that one that goes away later is missed."""
        path, glob = absolute(name), EVERYTHING
        if has_magic(name) and not os.path.lexists(path):
            path, glob = split_pattern(name)
        try:
            root = Root.of(path)
        except OSError as error:
            if glob is not EVERYTHING or status_of(error) == "vanished":  # it was there for `check`
                raise gone(path) from error
            return _Source(path, glob, None)  # `_named` gives it its row
        if not os.path.isdir(path):
            return _Source(path, glob, None)
        self._roots.append((os.path.realpath(path), path))
        return _Source(path, glob, root)

    def _named(self, path: bytes) -> Iterator[Candidate]:
        """Take what is named, whatever its extension; a folder is walked."""
        try:
            now = retry_transient(lambda: os.stat(path))
            folder = self._folder_of(path)
        except OSError as error:
            fault = self._verdict_on_name(path, error)
            yield from self._offer(_faulty(path, "container" if is_archive(path) else "image", fault))
            return
        if stat.S_ISDIR(now.st_mode):
            yield from self._walk(_Source(path, EVERYTHING, Root(path, now.st_dev, now.st_ino)))
        elif not stat.S_ISREG(now.st_mode):
            fault = ImageFault("unsupported", f"it is a {_special(now.st_mode)}, which is never opened")
            yield from self._offer(_faulty(path, "image", fault))
        elif is_archive(path):
            yield from self._archive(folder, path, self._scope(EVERYTHING))
        else:
            yield from self._offer(self._image(folder, path, now, kind_of(os.path.basename(path))))

    def _folder_of(self, path: bytes) -> Folder:
        """Return the folder of a named file, the last one again where it is the same."""
        name = os.path.dirname(path)
        if self._last is None or self._last.path != name:
            self._last = Folder.of(name, Root.of(name), follow=True)  # gone with its folder: not one file
        return self._last

    def _verdict_on_name(self, path: bytes, error: OSError) -> ImageFault:
        """Judge a name that is not there; the last one that was tells whether its disk still is."""
        folder = self._last or Folder.of(b"/", None, follow=True)
        return folder.verdict(path, error)

    # Walks

    def _walk(self, source: _Source) -> Iterator[Candidate]:
        """Walk a folder in the order of the bytes of full paths."""
        stack: list[_Frame] = []
        assert source.root is not None
        yield from self._enter(stack, source.path, source.root, self._scope(source.glob))
        while stack:
            frame = stack[-1]
            if frame.names:
                yield from self._entry(stack, frame, frame.names.pop())
            else:
                stack.pop()

    def _scope(self, glob: Patterns) -> Scope | None:
        if self._filtered or glob is not EVERYTHING:
            return Scope(glob, self._include, self._exclude)
        return None

    def _entry(self, stack: list[_Frame], frame: _Frame, listed: bytes) -> Iterator[Candidate]:
        """Take one name of a folder."""
        name = listed.rstrip(b"/")
        path = frame.prefix + name
        odd = frame.odd.get(name) if frame.odd else None
        if odd is not None:
            yield from self._odd(stack, frame, name, odd)
            return
        kind = "folder" if len(name) < len(listed) else "archive" if is_archive(name) else "file"
        scope = self._into(frame.scope, name, kind)
        if scope is False:
            return
        if kind == "folder":
            yield from self._enter(stack, path, frame.folder.root, scope)
        elif kind == "archive":
            yield from self._archive(frame.folder, path, scope)
        else:
            yield from self._file(frame.folder, path, name)

    def _into(self, scope: Scope | None, name: bytes, kind: EntryKind) -> Scope | Literal[False] | None:
        """Step to a name; False where it is left out, and counted."""
        if scope is not None:
            within = scope.into(name, kind)
            if within == "excluded":
                self._tally.skip("excluded")
            if isinstance(within, str):
                return False
            scope = within
        if name.startswith(b".") and not self._settings.hidden:
            self._tally.skip("hidden")
            return False
        return scope

    def _odd(self, stack: list[_Frame], frame: _Frame, name: bytes, odd: str) -> Iterator[Candidate]:
        """Count a special file or a symlink, or go where the symlink leads to."""
        path = frame.prefix + name
        follow = odd == "symlink" and self._settings.follow_links
        try:
            target = _target(path) if follow else None
            real = self._below_source(os.path.realpath(path)) if target else path
            folder = Folder.of(os.path.dirname(real), frame.folder.root, follow=False) if target else None
        except OSError as error:
            kind = "image" if extension_of(name) else "container"
            yield from self._offer(_faulty(path, kind, frame.folder.verdict(path, error)))
            return
        is_folder = stat.S_ISDIR(target.st_mode) if target else odd == "symlink"
        kind = "folder" if is_folder else "archive" if is_archive(name) else "file"
        scope = self._into(frame.scope, name, kind)
        if scope is False:
            return
        if target is None or folder is None:
            self._tally.skip("symlink to nowhere" if follow else odd)
            return
        if is_folder:
            yield from self._enter(stack, real, frame.folder.root, scope)
        elif not stat.S_ISREG(target.st_mode):
            self._tally.skip(_special(target.st_mode))
        elif kind == "archive":
            yield from self._archive(folder, real, scope)
        else:
            yield from self._file(folder, real, name)

    def _below_source(self, real: bytes) -> bytes:
        """Write a real path as a walk of the sources would reach it, where it lies below one of them."""
        for source, named in self._roots:
            if real == source or real.startswith(source.rstrip(b"/") + b"/"):
                return os.path.join(named, real[len(source) :].lstrip(b"/")).rstrip(b"/") or b"/"
        return real

    def _enter(
        self, stack: list[_Frame], path: bytes, root: Root | None, scope: Scope | None
    ) -> Iterator[Candidate]:
        """Go down into a folder, or yield the row of one that cannot be listed."""
        parent = stack[-1].folder if stack else None
        try:
            folder = Folder.of(path, root, follow=False)
            if self._settings.follow_links and any(_same(folder, above.folder) for above in stack):
                self._tally.skip("symlink loop")
                return
            names, odd = retry_transient(lambda: _names(path))
        except OSError as error:
            fault = (parent or Folder.of(b"/", root, follow=False)).verdict(path, error)
            if fault.status == "unreadable":
                fault = ImageFault("unlistable", f"the folder could not be listed: {reason_of(error)}")
            yield from self._offer(_faulty(path, "container", fault))
            return
        if is_unfinished_result(path, names):  # perhaps of this very scan: what it writes is no archive
            self._tally.skip("unfinished results")
            return
        self._tally.folders += 1
        stack.append(_Frame(folder, path.rstrip(b"/") + b"/", names, odd, scope))

    def _file(self, folder: Folder, path: bytes, name: bytes) -> Iterator[Candidate]:
        """Take a regular file of a walk if its name is that of a candidate."""
        kind = kind_of(name)
        if kind == "other":
            self._tally.skip(_dotted(name))
            return
        try:
            now = os.lstat(path)
        except OSError:
            try:
                now = retry_transient(lambda: os.lstat(path))
            except OSError as error:
                yield from self._offer(_faulty(path, "image", folder.verdict(path, error)))
                return
        if stat.S_ISREG(now.st_mode):
            yield from self._offer(self._image(folder, path, now, kind))
        else:  # exchanged since its folder was listed
            self._tally.skip(_special(now.st_mode))

    def _image(self, folder: Folder, path: bytes, now: os.stat_result, kind: NameKind) -> Candidate:
        row = Row(uri_of(path), "image", now.st_size, now.st_mtime_ns // 1000)
        if kind == "unsupported" or now.st_size > self._max_file_size:
            self._judge(row, path, kind)
        return Candidate(row, path, folder)

    def _judge(self, row: Row, name: bytes, kind: NameKind) -> None:
        """Fail a row that name or size alone decide."""
        if kind == "unsupported":
            row.fail(ImageFault("unsupported", f"{_dotted(name)} files are not decoded; make it a PNG"))
            return
        try:
            check_size(row.bytes or 0, self._max_file_size)
        except ImageFault as fault:
            row.fail(fault)

    # Tars

    def _archive(self, folder: Folder, path: bytes, scope: Scope | None) -> Iterator[Candidate]:
        """Take the members of a tar, then the row of the tar itself where it is faulty."""
        self._tally.archives += 1
        try:
            archive = Archive.open(path, folder)
            check_not_empty(archive.size)
        except OSError as error:
            yield from self._offer(_faulty(path, "container", folder.verdict(path, error)))
            return
        except ImageFault as fault:
            yield from self._offer(_faulty(path, "container", fault))
            return
        for found in _opened(archive):
            if isinstance(found, ImageFault):
                container = _faulty(path, "container", found)
                container.row.bytes, container.row.mtime = archive.size, archive.mtime
                yield from self._offer(container)
            else:
                yield from self._member(archive, *found, scope)

    def _member(
        self, archive: Archive, stream: Stream, member: Member, scope: Scope | None
    ) -> Iterator[Candidate]:
        """Take one member of a tar if it is a candidate."""
        name = member.name.rpartition(b"/")[2]
        if member.kind == "folder" or not self._admits(member.name.split(b"/"), scope):
            return
        kind = kind_of(name)
        if member.kind not in ("file", "sparse"):
            self._tally.skip(f"tar {member.kind}")
        elif kind in ("other", "archive"):
            self._tally.skip(_dotted(name))
        else:
            row = Row(uri_of(archive.path, member.name), "image", member.size, member.mtime, member.offset)
            candidate = Candidate(row, archive.path, archive)
            self._judge(row, name, kind)
            if member.kind == "sparse" and row.status is None:
                row.fail(ImageFault("unsupported", "its archive stores it as a sparse file"))
            yield from self._loaded(candidate, archive, stream)

    def _admits(self, names: list[bytes], scope: Scope | None) -> bool:
        """Step through a member's path as through folders; what is left out is counted once."""
        for name in names[:-1]:
            if name not in (b"", b".", b".."):
                within = self._into(scope, name, "folder")
                if within is False:
                    return False
                scope = within
        return self._into(scope, names[-1], "file") is not False

    def _loaded(self, candidate: Candidate, archive: Archive, stream: Stream) -> Iterator[Candidate]:
        """Offer a member; one of a compressed tar gets its bytes first, if it is wanted."""
        row, size = candidate.row, candidate.row.bytes or 0
        if isinstance(stream, PlainStream):
            if row.status is None and stream.position + size > stream.size:
                row.fail(ImageFault("truncated", "its archive ends before it does"))
            yield from self._offer(candidate)
            return
        candidate.storage = None
        for wanted in self._offer(candidate):
            if row.status is None:
                self._budget.acquire(size, self._stopped)
                wanted.storage = held = BufferedMember(size, self._budget)
                try:
                    held.fill(stream, row)
                except OSError as error:
                    row.fail(archive.verdict(archive.path, error))
            yield wanted


def _opened(archive: Archive) -> Iterator[tuple[Stream, Member] | ImageFault]:
    """Yield each member of a tar with the stream that stands at its data, and last the tar's fault."""
    try:
        with archive.descriptor() as fd:
            read = partial(pread, fd)
            compressed = read(2, 0) == b"\x1f\x8b"
            stream = GzipStream(read) if compressed else PlainStream(read, archive.size)
            for member in members(stream):
                yield stream, member
    except ArchiveFault as fault:
        yield ImageFault("archive_truncated", f"{fault}; what follows in it was not read")
    except OSError as error:
        yield archive.folder.verdict(archive.path, error)
    except ImageFault as fault:
        yield fault


def _names(path: bytes) -> tuple[list[bytes], dict[bytes, str]]:
    """List a folder, last name first; say which names are symlinks or special files."""
    names: list[bytes] = []
    odd: dict[bytes, str] = {}
    with os.scandir(path) as entries:
        for entry in entries:
            name = entry.name
            if entry.is_file(follow_symlinks=False):
                names.append(name)
            elif entry.is_dir(follow_symlinks=False):
                names.append(name + b"/")  # as it stands in the paths of what it holds
            else:
                names.append(name)
                with suppress(FileNotFoundError):  # vanished just now: as a file, it gets its row
                    odd[name] = _special(entry.stat(follow_symlinks=False).st_mode)
    names.sort(reverse=True)
    return names, odd


def _target(path: bytes) -> os.stat_result | None:
    """Look where a symlink leads to; None where that is nowhere, or round in a circle; raises OSError."""
    try:
        return retry_transient(lambda: os.stat(path))
    except OSError as error:
        if status_of(error) == "vanished" or error.errno == errno.ELOOP:
            return None
        raise


def _same(one: Folder, other: Folder) -> bool:
    return (one.device, one.inode) == (other.device, other.inode)


def _special(mode: int) -> str:
    kinds = {stat.S_IFIFO: "FIFO", stat.S_IFSOCK: "socket", stat.S_IFLNK: "symlink", stat.S_IFDIR: "folder"}
    return kinds.get(stat.S_IFMT(mode), "device")


def _dotted(name: bytes) -> str:
    """Return the extension of a name that is counted, in lower case with its dot."""
    if is_archive(name):
        return ".tar" if name.lower().endswith(b".tar") else ".tar.gz"
    extension = extension_of(name)[:16].lower()
    return f".{uri_of(extension)}" if extension else "no extension"


def _faulty(path: bytes, kind: Kind, fault: ImageFault) -> Candidate:
    row = Row(uri_of(path), kind)
    row.fail(fault)
    return Candidate(row, path)


def absolute(path: bytes) -> bytes:
    """Make a path absolute and keep its symlinks; but what `..` steps out of is resolved."""
    parts = os.path.join(os.getcwdb(), path).split(b"/")
    if b".." in parts:
        after = len(parts) - parts[::-1].index(b"..")
        parts = os.path.realpath(b"/".join(parts[:after])).split(b"/") + parts[after:]
    return b"/" + b"/".join(part for part in parts if part not in (b"", b"."))


def split_pattern(source: bytes) -> tuple[bytes, Patterns]:
    """Cut a glob source into the folder that it starts in and the pattern of what is below that."""
    parts = source.split(b"/")
    first = next(i for i, part in enumerate(parts) if has_magic(part))
    base = b"/".join(parts[:first]) or (b"/" if source.startswith(b"/") else b".")
    return absolute(base), Patterns([os.fsdecode(b"/".join(parts[first:]))], anchored=True)


def _listed(name: str, null: bool, stopped: Event | None) -> Iterator[bytes]:
    """Yield the names of a list as they come; empty ones are passed over. Raises Stopped."""
    end, spoken = (b"\0", "") if null else (b"\n", "; if names are separated by NUL bytes, add --null")
    rest = b""
    for chunk in _chunks(name, stopped):
        *names, rest = (rest + chunk).split(end)
        for one in names:
            yield from _cleaned(one, null, name)
        if len(rest) > MAX_NAME:
            raise Stopped(f"the list {shown(os.fsencode(name))} has a line longer than any path{spoken}")
    yield from _cleaned(rest, null, name)


def _cleaned(one: bytes, null: bool, name: str) -> Iterator[bytes]:
    if not null:
        one = one.removesuffix(b"\r")
    if b"\0" in one:
        raise Stopped(
            f"the list {shown(os.fsencode(name))} holds a NUL byte; if they separate names, add --null"
        )
    if one:
        yield one


def _chunks(name: str, stopped: Event | None) -> Iterator[bytes]:
    """Read a list as it arrives; raises Stopped where `stopped` is set while nothing does."""
    try:
        with _open_list(name) as file:
            while True:
                while stopped and not select.select([file], [], [], WAKE_S)[0]:
                    if stopped.is_set():
                        raise Stopped("stopped on request; run the same command to go on")
                if not (chunk := file.read1(MAX_NAME)):
                    return
                yield chunk
    except OSError as error:
        raise Stopped(
            f"the list {shown(os.fsencode(name))} could not be read ({reason_of(error)}); "
            "run the same command again when that is mended"
        ) from error


@contextmanager
def _open_list(name: str) -> Iterator[BufferedReader]:
    if name == "-":
        yield cast("BufferedReader", sys.stdin.buffer)
        return
    with Path(name).open("rb") as file:
        yield file
