"""Verify a signed result: who signed it, and that nothing of it has changed since."""

from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import Refused
from ..results.finished import not_results
from ..results.schema import read_footer
from ..text import counted
from .keys import fingerprint_of, is_signed, public_key
from .manifest import MARK_BYTES, Manifest, SignatureFile, read_signature
from .rows import Group, columns_in, row_groups
from .signing import Signed, marks_of, signature_of

NAMED = 5  # changed rows that are named


def verify(results: Path, key: Path, signature: Path | None = None) -> Signed:
    """Return what was signed, if the holder of a public key has signed the results as they are.

    Raises Refused if not: the sentence names what has changed, down to the row.
    """
    file = read_signature(signature or signature_of(results))
    holder = public_key(key)
    if not is_signed(holder, file.signature, file.signed):
        raise Refused(
            f"{file.path} was not signed with {key} ({fingerprint_of(holder)[:16]}), or has been changed: do "
            "not trust the results"
        )
    manifest = file.manifest()
    _compare_footers(results, manifest)
    _compare_columns(results, manifest)
    _compare_rows(results, file, manifest)
    return Signed(file.path, manifest)


def _compare_footers(results: Path, manifest: Manifest) -> None:
    footer = read_footer(results)
    if footer is None:
        raise Refused(not_results(results))
    names = sorted(
        k for k in footer.keys() | manifest.footer.keys() if footer.get(k) != manifest.footer.get(k)
    )
    if names:
        raise Refused(
            f"{results} is not as it was signed: its footer differs in {', '.join(names[:NAMED])}, as after "
            "another scan: sign it again if you know why"
        )


def _compare_columns(results: Path, manifest: Manifest) -> None:
    columns = [[column.name, str(column.type)] for column in columns_in(results)]
    if columns != manifest.columns:
        others = [column for column in manifest.columns if column not in columns]
        others += [column for column in columns if column not in manifest.columns]
        what = (
            f"the column {others[0][0]!r} was added, removed or changed" if others else "columns were moved"
        )
        raise Refused(f"{results} is not as it was signed: {what}")


def _compare_rows(results: Path, file: SignatureFile, manifest: Manifest) -> None:
    """Raise Refused unless all rows are those that were signed."""
    changes, rows = _Changes(), 0
    for number, group in enumerate(row_groups(results, checked=False)):
        rows += group.rows
        if number >= len(manifest.groups):
            continue  # rows that were added; counted, and told below
        if sha256(group.digests).hexdigest() != manifest.groups[number]["rows"]:
            changes.add(group, file.marks(number, manifest))
    if rows != manifest.rows:
        raise Refused(
            f"{results} is not as it was signed: it holds {rows} rows, and {manifest.rows} were signed"
            + (f"; the first that differs is {changes.named[0]}" if changes.named else "")
        )
    if changes.count:
        more = f", and {counted(changes.count - NAMED, 'other')}" if changes.count > NAMED else ""
        have = "has" if changes.count == 1 else "have"
        raise Refused(
            f"{results} is not as it was signed: {counted(changes.count, 'row')} {have} changed: "
            f"{', '.join(changes.named)}{more}"
        )


class _Changes:
    """The rows that differ from what was signed, the first of them by name."""

    def __init__(self) -> None:
        self.count = 0
        self.named: list[str] = []

    def add(self, group: Group, signed: bytes) -> None:
        """Compare the marks of a group, of which some row has changed, with those that were signed."""
        ours, theirs = (_marks(marks) for marks in (marks_of(group.digests), signed))
        common = min(len(ours), len(theirs))
        changed = np.flatnonzero((ours[:common] != theirs[:common]).any(axis=1)).tolist()
        self.count += len(changed)
        for row in changed[: NAMED - len(self.named)]:
            self.named.append(f"row {group.first + row + 1} ({group.uris[row].as_py()})")
        if not changed and len(ours) == len(theirs):  # digests that begin alike: nobody finds such by chance
            self.count += 1
            self.named.append(f"one of rows {group.first + 1} to {group.first + group.rows}")


def _marks(marks: bytes) -> Any:
    return np.frombuffer(marks, np.uint8).reshape(-1, MARK_BYTES)
