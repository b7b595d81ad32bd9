"""JPEGs that TurboJPEG does not read at once: damaged ones, and sound ones with an odd header."""

import io
import re
from importlib import import_module

import numpy as np

from ..row import ImageFault
from ..text import one_line
from .coded_image import CodedImage
from .resize import Pixels

INVENTED = 128  # every sample of a block that libjpeg has no data for
UNSEEN = "the JPEG's sampling is unusual, and damage in its data would not be noticed"

_MARKER = re.compile(rb"\xff[\x02-\xcf\xda-\xfe]")  # one that has a length
_FRAME = re.compile(rb"\xff[\xc0-\xc2].{7}(.)", re.DOTALL)  # and how many components it has
_KEPT = frozenset((*range(0xC0, 0xD0), 0xDB, 0xDD)) - {0xC8}  # frame, tables, restart interval
_ADOBE = b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0"  # and one byte: which transform of colors


def read_odd_jpeg(image: CodedImage, space: str, pixels: Pixels, refusal: ValueError) -> tuple[str, ...]:
    """Decode into [height, width, C] what TurboJPEG has refused; returns warnings.

    The header is written anew, since TurboJPEG's own reading of it stumbles over oddities in segments that
    define no pixels. Raises MemoryError where that was the refusal, ImageFault, truncated, where there are no
    data for the last line or where scans are missing and others not surely whole, and ValueError for what no
    decoder reads.
    """
    reason = one_line(refusal)
    if "memory" in reason.lower():
        raise MemoryError(reason) from refusal
    decode_jpeg = import_module("simplejpeg").decode_jpeg
    blob = with_plain_header(bytes(image.data))
    damage: tuple[str, ...] = ()
    try:
        decode_jpeg(blob, space, buffer=pixels)
    except ValueError as error:
        damage = (one_line(error),)
        if "Premature end of JPEG" in damage[0]:
            raise ImageFault("truncated", "the JPEG's data end before its last line") from None
        if image.coarse:
            raise ImageFault("truncated", "the JPEG lacks scans, and those that it has may be cut") from None
        if "subsampling" in damage[0]:
            _read_by_pillow(blob, space, pixels)
            return (UNSEEN,) if "subsampling" in reason else (reason, UNSEEN)
        pixels.fill(0)
        decode_jpeg(blob, space, buffer=pixels, strict=False)
        if (pixels[-1, :, : _CHANNELS.get(space, 3)] == INVENTED).all():
            raise ImageFault("truncated", "the JPEG's data end before its last line") from None
    return tuple(dict.fromkeys((reason, *damage)))


_CHANNELS = {"GRAY": 1, "CMYK": 4}


def with_plain_header(blob: bytes, transform: int | None = None) -> bytes:
    """Keep of a JPEG's header what defines pixels, with a marker of Adobe's that libjpeg knows.

    A `transform` of colors that is given (0 none, 1 YCbCr) stands in place of what the JPEG says.
    """
    parts, position = [blob[:2]], 2
    frame = _FRAME.search(blob)
    assumed = 2 if frame and frame[1] == b"\x04" else 1  # YCCK, YCbCr
    if transform is not None:
        parts.append(_ADOBE + bytes((transform,)))
    while match := _MARKER.search(blob, position):
        start, marker = match.start(), blob[match.start() + 1]
        position = start + 2 + int.from_bytes(blob[start + 2 : start + 4])
        segment = blob[start:position]
        if marker == 0xDA:
            return b"".join((*parts, blob[start:]))
        jfif = marker == 0xE0 and segment[4:9] == b"JFIF\0"
        if marker in _KEPT or (jfif and transform is None):
            parts.append(segment)
        elif transform is None and marker == 0xEE and segment[4:9] == b"Adobe" and len(segment) >= 16:
            known = segment[15] in (0, assumed)
            parts.append(segment if known else segment[:15] + bytes((assumed,)) + segment[16:])
    return blob


def _read_by_pillow(blob: bytes, space: str, pixels: Pixels) -> None:
    """Decode by libjpeg itself, which reads every sampling but does not say what it stepped over."""
    from PIL.JpegImagePlugin import JpegImageFile

    try:
        with JpegImageFile(io.BytesIO(blob)) as picture:
            decoded = np.atleast_3d(np.asarray(picture))
    except (OSError, SyntaxError) as error:
        raise ValueError(one_line(error)) from error
    if space == "CMYK":
        decoded = 255 - decoded  # as Pillow reads it, inverted
    pixels[..., : decoded.shape[2]] = decoded
