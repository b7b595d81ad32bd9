"""Untrusted label files: bounded in size, and refused in one sentence if they are not UTF-8."""

import math
from pathlib import Path

from ..errors import Refused

MOST_BYTES = 2_000_000_000  # of a list; a million images take 30 MB


def read_text(path: Path, most_bytes: int = MOST_BYTES) -> str:
    """Return a label file as text, without a byte order mark.

    Raises Refused for a file that cannot be read, is too large, is not UTF-8 or holds NUL.
    """
    content = read_bytes(path, most_bytes)
    if (at := content.find(b"\0")) >= 0:
        raise Refused(
            f"{path}, line {_line(content, at)}: a NUL byte is not text; repair or replace the file"
        )
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = _line(content, error.start)
        raise Refused(f"{path}, line {line}: this is not UTF-8; save the file as UTF-8") from error


def read_bytes(path: Path, most_bytes: int = MOST_BYTES) -> bytes:
    """Return a label file's bytes; raises Refused if it cannot be read or is too large."""
    try:
        if path.stat().st_size > most_bytes:
            raise Refused(f"{path} has more than {most_bytes:,} bytes, too many to be read whole")
        return path.read_bytes()
    except OSError as error:
        raise Refused(f"{path} cannot be read: {error.strerror}") from error


def _line(content: bytes, at: int) -> int:
    return content.count(b"\n", 0, at) + 1


def corners(values: list[str], origin: str) -> tuple[float, float, float, float]:
    """Turn x min, y min, x max, y max into x, y, width, height; raises Refused if they are not a box."""
    try:
        x0, y0, x1, y1 = map(float, values)
    except ValueError as error:
        raise Refused(f"{origin}: {' '.join(values)!r} are not four numbers") from error
    if not all(map(math.isfinite, (x0, y0, x1, y1))) or x1 <= x0 or y1 <= y0:
        raise Refused(f"{origin}: the box {' '.join(values)} has no area; x max and y max come last")
    return x0, y0, x1 - x0, y1 - y0
