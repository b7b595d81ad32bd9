"""Sign a finished result: digests of its rows, its model and its settings, by an Ed25519 key."""

import socket
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from typing import IO

import numpy as np

from ..errors import Refused
from ..results.finished import finished_footer
from ..text import timestamp
from .keys import fingerprint_of, private_key
from .manifest import MARK_BYTES, TITLE, Manifest, read_signature, write_signature
from .rows import DIGEST_BYTES, columns_in, row_groups

AT_ONCE = 1 << 20  # bytes of marks


@dataclass(frozen=True)
class Signed:
    """What was signed, and where the signature stands."""

    path: Path
    manifest: Manifest


def signature_of(results: Path) -> Path:
    """Return where the signature of a result stands, where nothing is said."""
    return results.with_name(f"{results.name}.sig")


def sign(results: Path, key: Path, out: Path | None, password: Callable[[], str]) -> Signed:
    """Write the signature of a finished result, which replaces an earlier one.

    `password` is asked if the private key is encrypted. Raises Refused, and writes nothing, if the results or
    the key do not serve.
    """
    target = out or signature_of(results)
    _check_target(target)
    footer, holder = finished_footer(results), private_key(key, password)
    manifest = Manifest(
        rows=0,
        columns=[[column.name, str(column.type)] for column in columns_in(results)],
        footer=footer,
        key=fingerprint_of(holder.public_key()),
        signed=timestamp(),
        host=socket.gethostname(),
        version=version("gbad-batch"),
    )
    try:
        with tempfile.TemporaryFile() as marks:
            for group in row_groups(results, checked=True):
                some = marks_of(group.digests)
                marks.write(some)
                hashes = {"rows": sha256(group.digests).hexdigest(), "marks": sha256(some).hexdigest()}
                manifest.groups.append(hashes)
                manifest.rows += group.rows
            if manifest.rows != footer["rows"]:
                raise Refused(
                    f"{results} holds {manifest.rows} rows, not the {footer['rows']} of its footer: scan its "
                    "images again"
                )
            signed = manifest.to_bytes()
            write_signature(target, holder.sign(signed), signed, _pieces(marks))
    except OSError as error:
        raise Refused(f"{target} cannot be written: {error.strerror}; nothing was written") from None
    return Signed(target, manifest)


def marks_of(digests: bytes) -> bytes:
    """Return the first bytes of each digest."""
    return np.frombuffer(digests, np.uint8).reshape(-1, DIGEST_BYTES)[:, :MARK_BYTES].tobytes()


def _check_target(target: Path) -> None:
    """Refuse to replace what is no signature."""
    if target.is_dir() or (target.exists() and target.stat().st_size and not _is_signature(target)):
        raise Refused(f"{target} exists and is not a signature: name another with --out")
    if not target.absolute().parent.is_dir():
        raise Refused(f"the folder {target.absolute().parent} does not exist: make it first")


def _is_signature(path: Path) -> bool:
    try:
        read_signature(path)
    except Refused:
        with path.open("rb") as file:
            return file.read(len(TITLE)) == TITLE  # a damaged one
    return True


def _pieces(marks: IO[bytes]) -> Iterator[bytes]:
    marks.seek(0)
    return iter(lambda: marks.read(AT_ONCE), b"")
