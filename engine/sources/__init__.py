"""What is in the archive: directories, files, patterns, lists and tars, as a stream of candidates.

`check` before anything is read, `find` for the stream (listing.py is how it goes), `count` for a dry run.
"""

import os
import stat
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event

from ..errors import Refused
from ..settings import SourceSettings
from .archive_names import extension_of
from .candidates import MAX_FILE_SIZE, Candidate, Enough, Tally, Wanted
from .faults import reason_of, retry_transient
from .listing import Listing, absolute, split_pattern
from .patterns import State, has_magic
from .uris import shown

__all__ = [
    "MAX_FILE_SIZE",
    "Candidate",
    "Census",
    "Enough",
    "SourceSettings",
    "Tally",
    "Wanted",
    "check",
    "count",
    "find",
]

_LOOK = 65_536  # bytes of a list that are looked at beforehand


def find(
    settings: SourceSettings,
    tally: Tally,
    wanted: Wanted,
    max_file_size: int = MAX_FILE_SIZE,
    stopped: Event | None = None,
) -> Iterator[Candidate]:
    """Yield the candidates in order; `wanted` is asked once for each and says whether it is yielded.

    Members of compressed tars carry their bytes, 64 MB of them at a time: where so many wait unread, the
    listing waits too, so a consumer reads them on another thread, or drops them, before it asks for more.
    Files larger than `max_file_size` (bytes) have the status too_large. Raises Stopped where the machine is
    at fault, or where `stopped` was set while the listing waits.
    """
    try:
        yield from Listing(settings, tally, wanted, max_file_size, stopped).run()
    except Enough:
        return


@dataclass
class Census:
    """What a scan would meet, by names and sizes alone."""

    tally: Tally = field(default_factory=Tally)
    extensions: Counter[str] = field(default_factory=Counter)  # images, by extension in lower case
    bytes: int = 0  # of the images that would be read
    faults: Counter[str] = field(default_factory=Counter)  # rows that have a status without being read

    @property
    def candidates(self) -> int:
        """How many rows a scan of this has, where no path is reached twice."""
        return self.tally.images + self.tally.containers


def count(settings: SourceSettings, max_file_size: int = MAX_FILE_SIZE) -> Census:
    """List everything and read nothing but the headers of tars (a compressed one is decompressed).

    A path that is reached twice counts twice. Raises Stopped.
    """
    census = Census()

    def note(candidate: Candidate) -> bool:
        row = candidate.row
        if row.kind == "image":
            extension = extension_of(row.uri.rpartition("/")[2].encode()).lower().decode()
            census.extensions[f".{extension}" if extension else "no extension"] += 1
        if row.status:
            census.faults[row.status] += 1
        else:
            census.bytes += row.bytes or 0
        return False

    for _ in find(settings, census.tally, note, max_file_size):
        raise AssertionError("nothing was wanted")
    return census


def check(settings: SourceSettings) -> None:
    """Look whether each source is there, before anything is read; raises Refused where one is not."""
    if not settings.sources and settings.files_from is None:
        raise Refused(
            "there is no source; name a directory, an image, a tar or a pattern, or use --files-from"
        )
    for source in settings.sources:
        _check_source(os.fsencode(source))
    if settings.files_from is not None and settings.files_from != "-":
        _check_list(settings.files_from, settings.null)


def _check_source(source: bytes) -> None:
    if not source or b"\0" in source:
        raise Refused("a source has an empty name or a NUL byte in it; name a directory, an image or a tar")
    path = absolute(source)
    try:
        retry_transient(lambda: os.stat(path))
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
    if b"\0" in start and not null:
        raise Refused(f"the list {shown_name} holds NUL bytes; if they separate its names, add --null")
