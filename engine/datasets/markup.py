"""Untrusted XML: no document type, hence no entities; bounded in size; every text with its line."""

from pathlib import Path
from typing import NamedTuple
from xml.parsers import expat  # a safe one: below it refuses every document type

from ..errors import Refused
from .files import read_bytes

MOST_BYTES = 4_000_000  # of one image's annotation


class Text(NamedTuple):
    """The text of one element."""

    path: str  # of its elements from the root on, 'annotation/object/name'
    text: str  # without white space around it
    line: int  # where it ends


def read_xml(path: Path) -> list[Text]:
    """Return the texts of a file's elements as they end; raises Refused, with the line, for invalid XML."""
    reader = _Reader(path)
    try:
        reader.parser.Parse(read_bytes(path, MOST_BYTES), True)
    except expat.ExpatError as error:
        reason = expat.ErrorString(error.code)
        raise Refused(f"{path}, line {error.lineno}: this is not XML: {reason}") from error
    return reader.found


class _Reader:
    def __init__(self, path: Path):
        self.path = path
        self.found: list[Text] = []
        self._open: list[str] = []
        self._text: list[str] = []
        self.parser = expat.ParserCreate()
        self.parser.StartDoctypeDeclHandler = self._refuse
        self.parser.StartElementHandler = self._start
        self.parser.CharacterDataHandler = self._text.append
        self.parser.EndElementHandler = self._end

    def _refuse(self, *_: object) -> None:
        line = self.parser.CurrentLineNumber
        raise Refused(f"{self.path}, line {line}: a document type is not allowed; remove <!DOCTYPE ...>")

    def _start(self, name: str, _attributes: dict[str, str]) -> None:
        self._open.append(name)
        self._text.clear()

    def _end(self, _name: str) -> None:
        line = self.parser.CurrentLineNumber
        self.found.append(Text("/".join(self._open), "".join(self._text).strip(), line))
        self._open.pop()
        self._text.clear()
