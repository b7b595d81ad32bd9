"""Classifies a file by its name: an image, an archive, or neither."""

from collections.abc import Collection
from typing import Literal

NameKind = Literal["image", "unsupported", "archive", "other"]

IMAGE_EXTENSIONS = frozenset(
    b"jpg jpeg jpe jif jfif png tif tiff bmp dib webp jp2 j2k jpx jpf j2c jpc".split()
)
UNSUPPORTED_EXTENSIONS = frozenset(b"dcm dcs gif heic avif".split())
ARCHIVE_EXTENSIONS = (b".tar", b".tar.gz", b".tgz")
OF_RESULTS = frozenset((b"_common_metadata", b"_metadata"))  # beside the parts of a Parquet data set

_KINDS: dict[bytes, NameKind] = {
    **dict.fromkeys(IMAGE_EXTENSIONS, "image"),
    **dict.fromkeys(UNSUPPORTED_EXTENSIONS, "unsupported"),
    b"tar": "archive",
    b"tgz": "archive",
    b"": "image",  # a name without an extension may hold anything
}


def is_archive(name: bytes) -> bool:
    """Tell whether a name is that of a tar that a walk opens."""
    return name.lower().endswith(ARCHIVE_EXTENSIONS)


def is_like_unfinished_result(folder: bytes, names: Collection[bytes]) -> bool:
    """Tell whether a folder has the names of one where a scan keeps its unfinished parts."""
    return folder.endswith(b".parts") and b"lock" in names and b"scan.json" in names


def extension_of(name: bytes) -> bytes:
    """Return the extension of a file's name without its dot, as written; empty if there is none."""
    stem, _, extension = name.rpartition(b".")
    return extension if stem.strip(b".") else b""


def kind_of(name: bytes) -> NameKind:
    """Sort a file's name (no folders in it) by its extension, in any case."""
    stem, _, extension = name.rpartition(b".")
    if not stem.strip(b"."):
        return "other" if name in OF_RESULTS else _KINDS[b""]
    kind = _KINDS.get(extension)
    if kind is None:
        kind = _KINDS.get(extension.lower(), "other")
        if kind == "other" and is_archive(name):
            return "archive"
    return kind
