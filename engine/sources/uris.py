"""Converts a path to the `uri` of a row, and back."""

import re

from ..text import escaped
from .names import is_archive

_ENCODED = re.compile(r"%([0-9A-Fa-f]{2})")


def uri_of(path: bytes, member: bytes | None = None) -> str:
    """Write an absolute path, with the name of a tar member in it if any, as text without loss.

    The percent sign and every byte that is not UTF-8 are percent-encoded; nothing else is, so control
    characters stay: whoever prints a uri escapes them (`shown`).
    """
    whole = path if member is None else path + b"!" + member
    if b"%" in whole:
        whole = whole.replace(b"%", b"%25")
    try:
        return whole.decode()
    except UnicodeDecodeError:
        text = whole.decode("utf-8", "surrogateescape")
        return "".join(f"%{ord(c) - 0xDC00:02X}" if "\udc80" <= c <= "\udcff" else c for c in text)


def parts_of(uri: str, in_archive: bool) -> tuple[bytes, bytes | None]:
    """Return the path and the member's name that `uri_of` was called with.

    `in_archive` is whether the row has an offset: a file's own name may hold `!` too. The archive is the
    shortest part before a `!` that ends like an archive, or else before the first `!`.
    """
    whole = _decoded(uri)
    if not in_archive:
        return whole, None
    marks = [at.start() for at in re.finditer(b"!", whole)]
    if not marks:
        raise ValueError(f"{uri!r} is not the uri of an archive's member")
    mark = next((at for at in marks if is_archive(whole[:at])), marks[0])
    return whole[:mark], whole[mark + 1 :]


def plain(uri: str) -> str:
    """Return the path of a uri, with a member's name behind its `!`; bytes that are not UTF-8 are escaped."""
    return _decoded(uri).decode("utf-8", "backslashreplace") if "%" in uri else uri


def _decoded(uri: str) -> bytes:
    return b"".join(
        bytes([int(piece, 16)]) if index % 2 else piece.encode()  # every second piece is hexadecimal
        for index, piece in enumerate(_ENCODED.split(uri))
    )


def shown(path: bytes) -> str:
    """Quote a path for a person, with everything escaped that could control a terminal."""
    return f"'{escaped(uri_of(path))}'"
