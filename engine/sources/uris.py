"""How a path becomes the `uri` of a row, and back."""

import re

from ..text import escaped
from .archive_names import is_archive

_ENCODED = re.compile(r"%([0-9A-Fa-f]{2})")


def uri_of(path: bytes, member: bytes | None = None) -> str:
    """Write an absolute path, and the name of a tar member in it, as text that loses nothing.

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
    """Give back the path and the member's name that `uri_of` was called with.

    `in_archive` is whether the row has an offset: a file's own name may hold `!` too. The archive is the
    shortest part before a `!` that ends like an archive, or else before the first `!`.
    """
    whole = b"".join(
        bytes([int(piece, 16)]) if odd else piece.encode() for odd, piece in _pieces(_ENCODED.split(uri))
    )
    if not in_archive:
        return whole, None
    cuts = [at.start() for at in re.finditer(b"!", whole)]
    if not cuts:
        raise ValueError(f"{uri!r} is not the uri of an archive's member")
    cut = next((at for at in cuts if is_archive(whole[:at])), cuts[0])
    return whole[:cut], whole[cut + 1 :]


def _pieces(split: list[str]) -> list[tuple[bool, str]]:
    """Mark the hexadecimal pieces of a split by `_ENCODED`: every second one."""
    return [(index % 2 == 1, piece) for index, piece in enumerate(split)]


def shown(path: bytes) -> str:
    """Write a path for a person, in quotes, with everything escaped that could steer a terminal."""
    return f"'{escaped(uri_of(path))}'"
