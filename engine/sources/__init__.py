"""Lists the candidates of an archive: directories, files, patterns, lists and tars.

`check` refuses missing sources before anything is read, `find` yields the candidates (listing.py walks the
sources), `count` serves the dry run.
"""

import os
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from threading import Event

from ..errors import Refused
from ..settings import SourceSettings, StrPath
from ..system.objects import is_url
from .candidates import MAX_FILE_SIZE, Accept, Candidate, Enough, ListingCounts, left_out
from .faults import reason_of, retry_transient
from .listing import Listing, absolute, split_pattern
from .name_list import UTF16_MARKS, is_utf16
from .names import extension_of, is_archive
from .patterns import State, has_magic
from .remote import check_remote
from .uris import shown

__all__ = [
    "MAX_FILE_SIZE",
    "Accept",
    "Candidate",
    "Enough",
    "ListingCounts",
    "SourceSettings",
    "SourceSummary",
    "check",
    "count",
    "find",
    "left_out",
    "named_image",
]

_LOOK = 65_536  # bytes of a list that are checked beforehand


def find(
    settings: SourceSettings,
    counts: ListingCounts,
    accept: Accept,
    max_file_size: int = MAX_FILE_SIZE,
    stopped: Event | None = None,
) -> Iterator[Candidate]:
    """Yield the candidates in order; `accept` is called once with each and says whether it is yielded.

    Members of compressed tars carry their bytes, at most 64 MB of them at a time. When so many are unread
    the listing waits, so a consumer must read, pickle or drop them, or do so on another thread, before it
    asks for more. Files larger than `max_file_size` (bytes) have the status too_large. Raises Stopped if
    the machine is at fault, or if `stopped` is set while the listing waits.
    """
    try:
        yield from Listing(settings, counts, accept, max_file_size, stopped).run()
    except Enough:
        return


@dataclass
class SourceSummary:
    """Summary of what a scan would read, from names and sizes only."""

    listed: ListingCounts = field(default_factory=ListingCounts)
    extensions: Counter[str] = field(default_factory=Counter)  # images, by extension in lower case
    bytes: int = 0  # of the images that would be read
    faults: Counter[str] = field(default_factory=Counter)  # rows that have a status without being read

    @property
    def candidates(self) -> int:
        """Number of rows that a scan would write, if no path is reached twice."""
        return self.listed.images + self.listed.containers


def count(settings: SourceSettings, max_file_size: int = MAX_FILE_SIZE) -> SourceSummary:
    """Count what a scan would read, for a dry run.

    Reads only the headers of tars, but decompresses the compressed ones. A path that is reached twice
    counts twice. Raises Stopped.
    """
    summary = SourceSummary()

    def note(candidate: Candidate) -> bool:
        row = candidate.row
        if row.kind == "image":
            extension = extension_of(row.uri.rpartition("/")[2].encode()).lower().decode()
            summary.extensions[f".{extension}" if extension else "no extension"] += 1
        if row.status:
            summary.faults[row.status] += 1
        else:
            summary.bytes += row.bytes or 0
        return False

    for _ in find(settings, summary.listed, note, max_file_size):
        raise AssertionError("nothing was accepted")
    return summary


def check(settings: SourceSettings) -> None:
    """Check that each source exists, before anything is read; raises Refused if one does not."""
    if not settings.sources and settings.files_from is None:
        raise Refused(
            "the source is missing; name a directory, an image, a tar or a pattern, or use --files-from"
        )
    for source in settings.sources:
        _check_source(os.fsencode(source))
    if settings.files_from is not None and settings.files_from != "-":
        _check_list(settings.files_from, settings.null)


def named_image(path: StrPath, max_file_size: int = MAX_FILE_SIZE) -> Candidate:
    """List one image, as a scan lists a name in a list; raises Refused for a folder or an archive."""
    name = os.fsencode(path)
    where = name if is_url(name) else absolute(name)
    if os.path.isdir(where) or is_archive(where):
        raise Refused(f"{shown(where)} is a folder or an archive, and not one image: use a Scan")
    listing = Listing(SourceSettings(), ListingCounts(), lambda _: True, max_file_size, None)
    found = list(islice(listing.take_named(where), 2))
    if len(found) != 1:
        raise Refused(f"{shown(where)} is not one image, but what lies below an address: use a Scan")
    return found[0]


def _check_source(source: bytes) -> None:
    if not source or b"\0" in source:
        raise Refused("a source has an empty name or a NUL byte in it; name a directory, an image or a tar")
    if is_url(source):
        check_remote(source)
        return
    path = absolute(source)
    try:
        retry_transient(os.stat, path)
    except PermissionError:
        return  # it is there, perhaps: a row of its own
    except OSError as error:
        if not has_magic(source) or os.path.lexists(path):
            raise Refused(
                f"the source {shown(source)} is not there ({reason_of(error)}); check its name, or mount it"
            ) from error
        if not _matches(source):
            raise Refused(f"the pattern {shown(source)} matches nothing; check it and its folder") from error


def _matches(source: bytes) -> bool:
    """Tell whether a pattern matches anything at all; stops at the first match."""
    base, patterns = split_pattern(source)
    left: list[tuple[bytes, State]] = [(base, patterns.start)]
    while left:
        folder, state = left.pop()
        try:
            with os.scandir(folder) as entries:
                for entry in entries:
                    after = patterns.step(state, entry.name)
                    if after is True:
                        return True
                    if after and entry.is_dir(follow_symlinks=False):
                        left.append((entry.path, after))
        except OSError:
            continue  # the scan gives it a row, where there is anything else
    return False


def _check_list(name: str, null: bool) -> None:
    shown_name = shown(os.fsencode(name))
    try:
        with Path(name).open("rb") as file:
            regular = stat.S_ISREG(os.fstat(file.fileno()).st_mode)
            start = file.read(_LOOK) if regular else b""  # a pipe can be read only once
    except OSError as error:
        raise Refused(
            f"the list {shown_name} cannot be read ({reason_of(error)}); check --files-from"
        ) from error
    if start.startswith(UTF16_MARKS) or (is_utf16(start) and not null):
        raise Refused(f"the list {shown_name} is UTF-16: save it as UTF-8")
    if b"\0" in start and not null:
        raise Refused(f"the list {shown_name} holds NUL bytes; if they separate its names, add --null")
