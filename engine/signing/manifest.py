"""The signature of a result, a file of four parts: a title, the signature, the manifest, the marks.

The first three are lines. The manifest is what is signed, byte for byte as it stands: JSON with the number
of rows, the columns and their types, the footer of the result (model, settings, runs), and for each group
of 65,536 rows the SHA-256 of its rows' digests and that of its marks. The marks, 8 bytes a row, are the
beginnings of the digests: they prove nothing, and tell which row of a group has changed.
"""

import json
from base64 import b64decode, b64encode
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import Refused
from ..results.form import has_form
from ..results.index import MAX_LISTED
from ..system.durable import open_regular, written_aside
from .rows import GROUP_ROWS

TITLE = b"gbad-batch signature 1\n"
MARK_BYTES = 8
MOST_BYTES = 64 << 20  # of a manifest
SIGNATURE_BYTES = 64  # of Ed25519

FORM = {  # of the manifest, as `has_form` takes it
    **dict.fromkeys(("host", "key", "signed", "version"), str),
    "rows": int,
    "columns": [[str]],
    "footer": dict,
    "groups": [{"rows": str, "marks": str}],
}


@dataclass
class Manifest:
    """What is signed of a result."""

    rows: int
    columns: list[list[str]]  # name and type of each
    footer: dict[str, Any]
    key: str  # SHA-256 of the public key
    signed: str  # UTC, ISO 8601
    host: str
    version: str  # of gbad-batch
    groups: list[dict[str, str]] = field(
        default_factory=list
    )  # SHA-256 of `rows` (their digests) and `marks`

    def to_bytes(self) -> bytes:
        """Return the line that is signed, without its end."""
        return json.dumps(asdict(self), sort_keys=True).encode()


@dataclass(frozen=True)
class SignatureFile:
    """A signature as it was read; `signed` are the bytes that it must be a signature of."""

    path: Path
    signature: bytes
    signed: bytes
    marks_at: int

    def manifest(self) -> Manifest:
        """Read the manifest, once it is known who signed it; raises Refused if no `sign` wrote it."""
        content: Any = None
        with suppress(ValueError, RecursionError):
            content = json.loads(self.signed)
        if not has_form(content, FORM) or content.keys() != Manifest.__dataclass_fields__.keys():
            raise Refused(f"{self.path} holds no manifest of this version: sign the results again")
        manifest = Manifest(**content)
        whole = 0 <= manifest.rows <= MAX_LISTED and len(manifest.groups) == -(-manifest.rows // GROUP_ROWS)
        if not whole or any(len(column) != 2 for column in manifest.columns):
            raise Refused(f"{self.path} holds a manifest that contradicts itself: sign the results again")
        return manifest

    def marks(self, group: int, manifest: Manifest) -> bytes:
        """Read the marks of a group; raises Refused if they are not those that were signed."""
        start = group * GROUP_ROWS
        count = min(GROUP_ROWS, manifest.rows - start)
        with open_regular(self.path) as file:
            file.seek(self.marks_at + start * MARK_BYTES)
            marks = file.read(count * MARK_BYTES)
        if sha256(marks).hexdigest() != manifest.groups[group]["marks"]:
            raise Refused(
                f"rows {start + 1} to {start + count} are not all as they were signed, and {self.path} is "
                "damaged where it would tell which"
            )
        return marks


def read_signature(path: Path) -> SignatureFile:
    """Read a signature's lines; raises Refused if it is none, or larger than any."""
    try:
        with open_regular(path) as file:
            title, signature, manifest = _lines(file)
            at = file.tell()
    except FileNotFoundError:
        raise Refused(
            f"{path} does not exist: the results are not signed, or name it with --signature"
        ) from None
    except OSError as error:
        raise Refused(f"{path} cannot be read: {error.strerror}") from None
    try:
        raw = b64decode(signature, validate=True)
    except ValueError:
        raw = b""
    if title != TITLE or len(raw) != SIGNATURE_BYTES or not manifest.endswith(b"\n"):
        raise Refused(f"{path} is not a signature that `gbad-batch sign` wrote")
    return SignatureFile(path, raw, manifest.rstrip(b"\n"), at)


def _lines(file: BinaryIO) -> tuple[bytes, bytes, bytes]:
    title = file.readline(len(TITLE))
    if title != TITLE:
        return title, b"", b""
    return title, file.readline(2 * SIGNATURE_BYTES).rstrip(b"\n"), file.readline(MOST_BYTES)


def write_signature(path: Path, signature: bytes, signed: bytes, marks: Iterator[bytes]) -> None:
    """Write a signature that gets its name once it is durable; raises OSError."""
    with written_aside(path) as temporary, temporary.open("wb") as file:
        file.write(TITLE + b64encode(signature) + b"\n" + signed + b"\n")
        for some in marks:
            file.write(some)
