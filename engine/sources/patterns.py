"""Glob patterns on paths, matched folder by folder, so that a walk leaves out what cannot match.

A pattern is split at `/`; each part is matched against one name as a whole: `*` is any text, `?` one
character, `[abc]` and `[!abc]` one of a set, all case-sensitive and all matching a leading dot too; a
name that is not UTF-8 has one character for each odd byte. A part `**` is any number of folders, none
included. A pattern that matches a folder, or an archive, matches all that lies below it.
"""

import fnmatch
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Literal, TypeAlias

State: TypeAlias = (
    frozenset[tuple[int, int]] | Literal[True]
)  # (pattern, next segment) still possible; True: matched

_MAGIC = re.compile(rb"[*?[]")


def has_magic(path: bytes) -> bool:
    """Tell whether a path holds a character that makes it a pattern."""
    return _MAGIC.search(path) is not None


class Patterns:
    """A set of patterns that is stepped through a path, a name at a time; any one of them may match."""

    def __init__(self, patterns: Iterable[str], anchored: bool):
        """Compile; where not `anchored`, a pattern without `/` (but at its end) matches at any depth."""
        self._patterns = [_segments(pattern, anchored) for pattern in patterns]
        self.start: State = self._reduced({at for p in range(len(self._patterns)) for at in self._at(p, 0)})

    def step(self, state: State, name: bytes) -> State:
        """Return what is still possible below `name`: True where matched, the empty set where nothing."""
        if state is True or not state:
            return state
        text = name.decode("utf-8", "surrogateescape")
        after: set[tuple[int, int]] = set()
        for pattern, position in state:
            segment = self._patterns[pattern][position]
            if segment is None:
                after.update(self._at(pattern, position))
            elif segment(text):
                after.update(self._at(pattern, position + 1))
        return self._reduced(after)

    def _at(self, pattern: int, position: int) -> Iterator[tuple[int, int]]:
        """Give a position and, past each `**`, which may be no folder at all, the next one too."""
        segments = self._patterns[pattern]
        yield pattern, position
        while position < len(segments) and segments[position] is None:
            position += 1
            yield pattern, position

    def _reduced(self, possible: set[tuple[int, int]]) -> State:
        if any(position == len(self._patterns[pattern]) for pattern, position in possible):
            return True
        return frozenset(possible)


Segment = Callable[[str], object] | None  # matches one name; None is `**`


def _segments(pattern: str, anchored: bool) -> list[Segment]:
    names = [name for name in pattern.split("/") if name not in ("", ".")]
    if not anchored and "/" not in pattern.rstrip("/"):
        names.insert(0, "**")
    return [None if name == "**" else re.compile(fnmatch.translate(name)).match for name in names]


EntryKind = Literal["folder", "archive", "file"]
Left = Literal["excluded", "unmet"]  # counted as left out by the user; not what the source's pattern means


class Scope:
    """What the patterns of a source, of --include and of --exclude say at one place of a walk."""

    __slots__ = ("_exclude", "_glob", "_include", "_patterns")

    def __init__(self, glob: Patterns, include: Patterns, exclude: Patterns):
        """Begin at the source: three sets of patterns, relative to it."""
        self._patterns = glob, include, exclude
        self._glob: State = glob.start
        self._include: State = include.start
        self._exclude: State = exclude.start

    def into(self, name: bytes, kind: EntryKind) -> "Scope | Left":
        """Step to one name below, or say why it is left out.

        A folder is entered where something below may match; an archive must itself be what the source's
        pattern means, but is entered for --include like a folder.
        """
        glob, include, exclude = self._patterns
        after = Scope.__new__(Scope)
        after._patterns = self._patterns
        after._glob = glob.step(self._glob, name)
        if not after._glob or (kind != "folder" and after._glob is not True):
            return "unmet"
        after._include = include.step(self._include, name)
        after._exclude = exclude.step(self._exclude, name)
        if after._exclude is True or not after._include or (kind == "file" and after._include is not True):
            return "excluded"
        return after
