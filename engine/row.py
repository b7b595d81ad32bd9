"""Defines the row of one candidate: the columns that every stage shares."""

from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b
from typing import Literal

THREATS = ("gun", "knife", "wrench", "pliers", "scissors")  # SIXray's order, and the logits'


def threat_names(flags: Iterable[bool]) -> list[str]:
    """Return the names of the threats whose flags [5] are set."""
    return [threat for threat, flag in zip(THREATS, flags, strict=True) if flag]


def threats_of(bits: int) -> list[str]:
    """Return the names of the threats whose bits of a number are set, the first the lowest."""
    return threat_names(bool(bits >> k & 1) for k in range(len(THREATS)))


DATES = range(-62_135_596_800 * 10**6, 253_402_300_800 * 10**6)  # us; the years 1 to 9999


def dated(microseconds: int) -> int | None:
    """Return a time since the epoch that every reader of Parquet supports, else None."""
    return microseconds if microseconds in DATES else None


Digest = bytes  # the field `bytes` hides the type's own name inside Row
Kind = Literal["image", "container"]
Status = Literal[
    "ok",
    "empty",
    "truncated",
    "not_an_image",
    "unsupported",
    "too_large",
    "undecodable",
    "unreadable",
    "vanished",
    "decoder_crash",
    "decoder_timeout",
    "unlistable",
    "archive_truncated",
]


_EMPTY = blake2b(digest_size=10)


def identity_of(uri: str, offset: int | None) -> Digest:
    """Return the 10-byte digest of what identifies a row: 80 bits, equal for equal rows on every machine."""
    identity = _EMPTY.copy()  # in two thirds of the time that a new digest takes
    identity.update(f"{uri}\0{offset}".encode())
    return identity.digest()


class ImageFault(Exception):
    """A fault of one file or container: it becomes that candidate's row, and the scan continues."""

    def __init__(self, status: Status, message: str):
        super().__init__(message)
        self.status: Status = status


@dataclass(slots=True)
class Row:
    """The result of one candidate; each field is the column of the same name, None is null.

    Listing sets the identity (uri to offset) and etag, decode sets sha256 to warnings, scoring sets p_gun
    to typicality.
    """

    uri: str  # absolute; a tar member is `archive.tar!folder/bag.jpg`; `%` and non-UTF-8 bytes encoded
    kind: Kind = "image"
    bytes: int | None = None  # size as listed
    mtime: int | None = None  # us since the epoch, UTC: a range that every reader of Parquet supports
    offset: int | None = None  # of a tar member's data, in the decompressed stream
    etag: str | None = None  # of an object in a store: the version that is read
    sha256: Digest | None = None  # of the whole file or member, 32 bytes
    format: str | None = None  # jpeg, png, tiff, bmp, webp, jpeg2000
    width: int | None = None  # pixels, as stored, before EXIF orientation
    height: int | None = None
    bit_depth: int | None = None  # bits a channel, as stored
    color: str | None = None  # gray, gray+alpha, rgb, rgba, palette, cmyk
    status: Status | None = None
    error: str | None = None  # one sentence where status is not ok
    warnings: str | None = None  # what the decoder tolerated
    p_gun: float | None = None  # ungated sigmoid of the class's logit
    p_knife: float | None = None
    p_wrench: float | None = None
    p_pliers: float | None = None
    p_scissors: float | None = None
    largest_logit: float | None = None  # of the five: p_* round it off
    reconstruction_loss: float | None = None  # ||s - G(E(s))||_1, mean over dimensions
    feature_matching_loss: float | None = None  # ||f_D(s, E(s)) - f_D(G(E(s)), E(s))||_2
    anomaly_score: float | None = None
    anomalous: bool | None = None  # the alarm: score at or above the operating point
    threats: list[str] | None = None  # classes at or above their thresholds; null unless anomalous
    typicality: float | None = None  # below 1 where it looks like nothing the model has seen
    scanned_at: int | None = None  # us since the epoch, UTC: start of the scan or update; set when stored
    gone: int | None = None  # likewise: start of the update that no longer found it

    def fail(self, fault: ImageFault) -> None:
        """Record a fault as this row's status and error."""
        self.status, self.error = fault.status, str(fault)
