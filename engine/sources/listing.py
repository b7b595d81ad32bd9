"""One pass over the sources, as a stream of candidates.

A walk goes by bytes of the full path, so `a.jpg` comes before what is in the folder `a`; it holds the
names of one folder (and of those above it) and nothing else. A tar and a list keep their own order.

Names. A source or a listed name is made absolute and keeps the symlinks that the user wrote. A symlink
that a walk follows gives the path that it leads to, written below a source where it lies there, so that
what a link and a plain path both reach has one uri and is found to be a duplicate.
"""

import errno
import json
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import suppress
from threading import Event
from typing import Literal, NamedTuple

from ..row import ImageFault, Kind, Row, dated, identity_of
from ..settings import SourceSettings
from ..system import objects
from ..system.objects import is_url
from ..tar.streams import PlainStream, Readable
from .archive_entries import Entry, entries
from .beneath import open_folder
from .candidates import Accept, Candidate, ListingCounts
from .faults import reason_of, retry_transient, status_of
from .name_list import names_in_list
from .names import NameKind, extension_of, is_archive, is_like_unfinished_result, kind_of
from .patterns import EntryKind, Patterns, Scope, has_magic
from .remote import Bucket, RemoteTar, below, named_object, split
from .storage import (
    Archive,
    BufferedMember,
    ByteBudget,
    Folder,
    Root,
    Tar,
    base_of,
    empty,
    source_gone,
    too_large,
)
from .uris import uri_of

READ_AHEAD = 64_000_000  # bytes of compressed tars' members that are read and not yet taken over
MAX_STATE = 16 << 20  # bytes of a scan's state
_ENCODING = sys.getfilesystemencoding()
_DOT, _SLASH = b"./"
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
    irregular: dict[bytes, str]  # which of them are symlinks or special files
    scope: Scope | None  # None: no patterns


class Listing:
    """One pass over the sources; `run` may be called once."""

    def __init__(
        self,
        settings: SourceSettings,
        counts: ListingCounts,
        accept: Accept,
        max_file_size: int,
        stopped: Event | None,
    ):
        self._settings, self._counts, self._shard = settings, counts, settings.in_shard
        self._accept = self._accept_own if self._shard else accept
        self._accept_listed = accept
        self._is_whole = False  # in a shard: what is listed is in a compressed tar of this shard
        self._max_file_size, self._stopped = max_file_size, stopped
        self._budget = ByteBudget(READ_AHEAD)
        self._include = Patterns(settings.include or ("**",), anchored=False)
        self._exclude = Patterns(settings.exclude, anchored=False)
        self._filtered = bool(settings.include or settings.exclude)
        self._roots: list[tuple[bytes, bytes]] = []  # (real path, as named) of the folders named
        self._last: Folder | None = None  # of the last named file that was there
        self._last_bucket: Bucket | None = None

    def run(self) -> Iterator[Candidate]:
        """Yield the candidates that are accepted, in order; raises Stopped."""
        names = map(os.fsencode, self._settings.sources)
        sources = [name if is_url(name) else self._source(name) for name in names]
        for source in sources:
            if isinstance(source, bytes):
                yield from self.take_named(source)
            else:
                yield from self._walk(source) if source.root else self.take_named(source.path)
        if self._settings.files_from is not None:
            for name in names_in_list(self._settings.files_from, self._settings.null, self._stopped):
                yield from self.take_named(name if is_url(name) else absolute(name))

    def _offer(self, candidate: Candidate) -> tuple[Candidate, ...]:
        """Count a candidate; return it if it is accepted, else nothing."""
        if candidate.row.kind == "image":
            self._counts.images += 1
        else:
            self._counts.containers += 1
        return (candidate,) if self._accept(candidate) else ()

    # Shards

    def _accept_own(self, candidate: Candidate) -> bool:
        """Accept a candidate of this shard; count one of another."""
        row, counts = candidate.row, self._counts
        if self._is_whole or self._takes(row.uri, row.offset):
            return self._accept_listed(candidate)
        counts.elsewhere += 1
        if row.kind == "image":
            counts.images -= 1
        else:
            counts.containers -= 1
        return False

    def _takes(self, uri: str, offset: int | None = None) -> bool:
        """Tell whether a candidate or a compressed tar belongs to this shard, and note that it was met."""
        assert self._shard is not None
        identity = identity_of(uri, offset)
        self._counts.digest = (self._counts.digest + int.from_bytes(identity[:8], "little")) % (1 << 64)
        return self._shard.takes(identity)

    def _takes_whole(self, path: bytes) -> bool:
        """Tell whether a compressed tar is to be read: only as a whole can it be, so by one shard."""
        self._is_whole = self._shard is not None
        return self._shard is None or self._takes(uri_of(path))

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
                raise source_gone(path) from error
            return _Source(path, glob, None)  # `take_named` gives it its row
        if not os.path.isdir(path):
            return _Source(path, glob, None)
        self._roots.append((os.path.realpath(path), path))
        return _Source(path, glob, root)

    def take_named(self, path: bytes) -> Iterator[Candidate]:
        """Take what is named, whatever its extension; a folder is walked."""
        if is_url(path):
            yield from self._remote(path)
            return
        try:
            now = retry_transient(os.stat, path)
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
            if frame.scope is None:
                yield from self._plain_files(frame)
            if frame.names:
                yield from self._entry(stack, frame, frame.names.pop())
            else:
                stack.pop()

    def _plain_files(self, frame: _Frame) -> Iterator[Candidate]:
        """Take the next names of a folder, up to one that is hidden, a folder, an archive or irregular.

        This is `_entry` and `_file` for what nearly all names are, without a generator for each.
        """
        folder, prefix, names, irregular, _ = frame
        counts, accept, lstat = self._counts, self._accept, os.lstat
        while names:
            name = names[-1]
            kind = kind_of(name)
            if name[-1] == _SLASH or name[0] == _DOT or kind == "archive" or name in irregular:
                return
            names.pop()
            if kind == "other":
                counts.skip(_dotted(name))
                continue
            path = prefix + name
            try:
                now = lstat(path)
            except OSError:
                yield from self._file(folder, path, name)
                continue
            if not stat.S_ISREG(now.st_mode):  # replaced since its folder was listed
                counts.skip(_special(now.st_mode))
                continue
            if kind == "image" and now.st_size <= self._max_file_size:
                row = Row(uri_of(path), "image", now.st_size, dated(now.st_mtime_ns // 1000))
                image = Candidate(row, path, folder)
            else:
                image = self._image(folder, path, now, kind)
            counts.images += 1
            if accept(image):
                yield image

    def _scope(self, glob: Patterns) -> Scope | None:
        if self._filtered or glob is not EVERYTHING:
            return Scope(glob, self._include, self._exclude)
        return None

    def _entry(self, stack: list[_Frame], frame: _Frame, listed: bytes) -> Iterator[Candidate]:
        """Take one name of a folder."""
        name = listed.rstrip(b"/")
        path = frame.prefix + name
        if listed in frame.irregular:
            yield from self._irregular(stack, frame, name)
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
                self._counts.skip("excluded")
            if isinstance(within, str):
                return False
            scope = within
        if name.startswith(b".") and not self._settings.hidden:
            self._counts.skip("hidden")
            return False
        return scope

    def _irregular(self, stack: list[_Frame], frame: _Frame, name: bytes) -> Iterator[Candidate]:
        """Count a special file or a symlink, or go where the symlink leads to."""
        path, what = frame.prefix + name, frame.irregular[name]
        follow = what == "symlink" and self._settings.follow_links
        try:
            target = _target(path) if follow else None
            real = self._below_source(os.path.realpath(path)) if target else path
            folder = Folder.of(os.path.dirname(real), frame.folder.root, follow=False) if target else None
        except OSError as error:
            kind = "image" if extension_of(name) else "container"
            yield from self._offer(_faulty(path, kind, frame.folder.verdict(path, error)))
            return
        is_folder = stat.S_ISDIR(target.st_mode) if target else what == "symlink"
        kind = "folder" if is_folder else "archive" if is_archive(name) else "file"
        scope = self._into(frame.scope, name, kind)
        if scope is False:
            return
        if target is None or folder is None:
            self._counts.skip("symlink to nowhere" if follow else what)
            return
        if is_folder:
            yield from self._enter(stack, real, frame.folder.root, scope)
        elif not stat.S_ISREG(target.st_mode):
            self._counts.skip(_special(target.st_mode))
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
    ) -> tuple[Candidate, ...]:
        """Go down into a folder, or return the row of one that cannot be listed."""
        parent = stack[-1].folder if stack else None
        try:
            folder, names, irregular, is_ours = retry_transient(_look, path, root)
        except OSError as error:
            fault = (parent or Folder.of(b"/", root, follow=False)).verdict(path, error)
            if fault.status == "unreadable":
                fault = ImageFault("unlistable", f"the folder could not be listed: {reason_of(error)}")
            return self._offer(_faulty(path, "container", fault))
        if self._settings.follow_links and any(_same(folder, above.folder) for above in stack):
            self._counts.skip("symlink loop")
            return ()
        if is_ours:
            self._counts.skip("unfinished results")
            return ()
        self._counts.folders += 1
        stack.append(_Frame(folder, path.rstrip(b"/") + b"/", names, irregular, scope))
        return ()

    def _file(self, folder: Folder, path: bytes, name: bytes) -> tuple[Candidate, ...]:
        """Take a regular file of a walk if its name is that of a candidate."""
        kind = kind_of(name)
        if kind == "other":
            self._counts.skip(_dotted(name))
            return ()
        try:
            now = retry_transient(os.lstat, path)
        except OSError as error:
            return self._offer(_faulty(path, "image", folder.verdict(path, error)))
        if stat.S_ISREG(now.st_mode):
            return self._offer(self._image(folder, path, now, kind))
        self._counts.skip(_special(now.st_mode))  # replaced since its folder was listed
        return ()

    def _image(self, folder: Folder, path: bytes, now: os.stat_result, kind: NameKind) -> Candidate:
        row = Row(uri_of(path), "image", now.st_size, dated(now.st_mtime_ns // 1000))
        if kind == "unsupported" or now.st_size > self._max_file_size:
            self._judge(row, path, kind)
        return Candidate(row, path, folder)

    def _judge(self, row: Row, name: bytes, kind: NameKind) -> None:
        """Fail a row if its name or size is enough to do so."""
        if kind == "unsupported":
            row.fail(ImageFault("unsupported", f"{_dotted(name)} files are not decoded; make it a PNG"))
            return
        if (row.bytes or 0) > self._max_file_size:
            row.fail(too_large(row.bytes or 0, self._max_file_size))

    # Object stores

    def _remote(self, source: bytes) -> Iterator[Candidate]:
        """Take an object, whatever its extension, or what is below a prefix, in the store's order."""
        at, glob = split(source)
        entry = named_object(at) if glob is None else None
        if entry is not None:
            yield from self._object(at.root, entry, None, is_named=True)
            return
        scope, base, found = self._scope(glob or EVERYTHING), at.key.rstrip("/"), False
        for entry in below(at):
            inner = entry.key[len(base) :].lstrip("/").encode()
            found = True
            if entry.size or extension_of(inner.rpartition(b"/")[2]):
                yield from self._object(at.root, entry, scope, inner)
            else:  # some tools make such objects for folders; the client does not tell the slash at the end
                self._counts.skip("folder marker")
        if not found and glob is None:
            row = _faulty(at.url.encode(), "image", ImageFault("vanished", "no object has this name"))
            yield from self._offer(row)

    def _object(
        self, root: str, entry: objects.Entry, scope: Scope | None, inner: bytes = b"", is_named: bool = False
    ) -> Iterator[Candidate]:
        """Take one object; `inner` is its name below the source, which patterns are about."""
        path = f"{root}/{entry.key}".encode()
        name = path.rpartition(b"/")[2]
        within = scope if is_named else self._into_object(inner.split(b"/"), scope)
        if within is False:
            return
        if is_archive(name):
            self._begin_archive()
            try:
                archive = RemoteTar(root, path, entry)
            except ImageFault as fault:
                yield from self._offer(_faulty(path, "container", fault))
                return
            yield from self._members(archive, within)
            return
        kind = kind_of(name)
        if kind == "other" and not is_named:
            self._counts.skip(_dotted(name))
            return
        row = Row(uri_of(path), "image", entry.size, dated(entry.mtime), etag=entry.etag)
        self._judge(row, path, kind)
        yield from self._offer(Candidate(row, path, self._bucket(root)))

    def _into_object(self, names: list[bytes], scope: Scope | None) -> Scope | Literal[False] | None:
        """Step through the parts of a key as through folders; False where it is left out, and counted."""
        for name in names[:-1]:
            within = self._into(scope, name, "folder")
            if within is False:
                return False
            scope = within
        return self._into(scope, names[-1], "archive" if is_archive(names[-1]) else "file")

    def _bucket(self, root: str) -> Bucket:
        """Return the storage of a bucket, the last one again where it is the same."""
        if self._last_bucket is None or self._last_bucket.root != root:
            self._last_bucket = Bucket(root)
        return self._last_bucket

    # Tars

    def _archive(self, folder: Folder, path: bytes, scope: Scope | None) -> Iterator[Candidate]:
        """Open a tar of a folder and take what is in it."""
        self._begin_archive()
        try:
            archive = Archive.open(path, folder)
            if not archive.size:
                raise empty()
        except OSError as error:
            yield from self._offer(_faulty(path, "container", folder.verdict(path, error)))
            return
        except ImageFault as fault:
            yield from self._offer(_faulty(path, "container", fault))
            return
        yield from self._members(archive, scope)

    def _begin_archive(self) -> None:
        self._counts.archives += 1
        self._counts.in_archive = 0

    def _members(self, archive: Tar, scope: Scope | None) -> Iterator[Candidate]:
        """Take the members of a tar, then the row of the tar itself where it is faulty."""
        for found in entries(archive, self._takes_whole):
            if isinstance(found, ImageFault):
                row = (container := _faulty(archive.path, "container", found)).row
                row.bytes, row.mtime, row.etag = archive.size, archive.mtime, archive.etag
                yield from self._offer_inside(container)
            else:
                yield from self._member(archive, found, scope)
        self._is_whole = False

    def _offer_inside(self, candidate: Candidate) -> tuple[Candidate, ...]:
        """Offer a member of an archive, or the row of the archive itself."""
        self._counts.in_archives += 1
        self._counts.in_archive += 1
        return self._offer(candidate)

    def _member(self, archive: Tar, entry: Entry, scope: Scope | None) -> Iterator[Candidate]:
        """Take one member of a tar if it is a candidate."""
        stream, member, fault = entry
        name = member.name.rpartition(b"/")[2]
        if member.kind == "folder" or not self._admits(member.name.split(b"/"), scope):
            return
        kind = kind_of(name)
        if member.kind in ("symlink", "special", "label"):
            self._counts.skip(f"tar {member.kind}")
        elif kind in ("other", "archive"):
            self._counts.skip(_dotted(name))
        else:
            row = Row(uri_of(archive.path, member.name), "image", member.size, member.mtime, member.offset)
            row.etag = archive.etag
            candidate = Candidate(row, archive.path, archive if isinstance(archive, Archive) else None)
            self._judge(row, name, kind)
            if fault and row.status is None:
                row.fail(fault)
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

    def _loaded(self, candidate: Candidate, archive: Tar, stream: Readable) -> Iterator[Candidate]:
        """Offer a member; one that cannot be read later gets its bytes first, if it is accepted."""
        row, size = candidate.row, candidate.row.bytes or 0
        if isinstance(stream, PlainStream):
            if row.status is None and (row.offset or 0) + size > stream.size:
                row.fail(ImageFault("truncated", "its archive ends before it does"))
            if archive.rereads:
                yield from self._offer_inside(candidate)
                return
        candidate.storage = None
        for accepted in self._offer_inside(candidate):
            if row.status is None:
                self._budget.acquire(size, self._stopped)
                accepted.storage = buffered = BufferedMember(size, self._budget)
                try:
                    buffered.fill(stream, row)
                except OSError as error:
                    row.fail(archive.verdict(archive.path, error))
                except ImageFault as fault:
                    row.fail(fault)
            yield accepted


def _look(path: bytes, root: Root | None) -> tuple[Folder, list[bytes], dict[bytes, str], bool]:
    """Open a folder of a walk and list it; the last value tells whether a scan of ours keeps parts there."""
    fd = open_folder(path, base_of(path, root), os.O_RDONLY)
    try:
        names, irregular = _names(fd)
        is_ours = is_like_unfinished_result(path, names) and _is_our_scan(fd)
        return Folder.at(fd, path, root), names, irregular, is_ours
    finally:
        os.close(fd)


def _names(fd: int) -> tuple[list[bytes], dict[bytes, str]]:
    """List a folder, last name first; say which names are symlinks or special files."""
    names: list[bytes] = []
    irregular: dict[bytes, str] = {}
    with os.scandir(fd) as entries:
        for entry in entries:
            name = entry.name.encode(_ENCODING, "surrogateescape")
            if entry.is_file(follow_symlinks=False):
                names.append(name)
            elif entry.is_dir(follow_symlinks=False):
                names.append(name + b"/")  # as it stands in the paths of what it holds
            else:
                names.append(name)
                with suppress(FileNotFoundError):  # vanished just now: as a file, it gets its row
                    irregular[name] = _special(entry.stat(follow_symlinks=False).st_mode)
    names.sort(reverse=True)
    return names, irregular


def _is_our_scan(folder: int) -> bool:
    """Tell whether an open folder is this user's and holds the state of a scan."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        with open(os.open(b"scan.json", flags, dir_fd=folder), "rb") as file:
            of_folder, of_file = os.fstat(folder), os.fstat(file.fileno())
            if {of_folder.st_uid, of_file.st_uid} != {os.geteuid()} or not stat.S_ISREG(of_file.st_mode):
                return False
            state = json.loads(file.read(MAX_STATE))
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(state, dict) and isinstance(state.get("scan_id"), str)


def _target(path: bytes) -> os.stat_result | None:
    """Look where a symlink leads to; None where that is nowhere, or round in a circle; raises OSError."""
    try:
        return retry_transient(os.stat, path)
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
