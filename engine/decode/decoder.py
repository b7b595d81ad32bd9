"""From the bytes of a file to the network's pixels; a bad image gets a reason and does not affect others.

What an image means here, the same on every backend and never guessed from pixel values:

- *Orientation* (EXIF, TIFF) is not applied: the stored grid is what scanners write and models see. An
  orientation other than 1 is noted in `warnings`.
- *Alpha* is composited on white, which is what air looks like in these pictures; a transparent colour
  or palette entry likewise. The fourth byte of a 32-bit BMP without a mask for alpha is left out.
- *Gray* becomes three equal channels; palettes and 1, 2 and 4 bits are spread over the full range;
  where a TIFF says that 0 is white, values are inverted.
- *9 to 16 bits* are resized as they are and then divided by their full range (257 for 16 bits), rounded
  to the nearest of 256 levels.
- *CMYK* is converted without a profile, R = (255 - C)(255 - K) / 255; a JPEG stores it inverted, with or
  without Adobe's marker, as browsers, Pillow and libvips read it. Colour profiles and gamma are not applied.
- Of the samples of a TIFF's pixel those that make its color, and alpha, are read, the first of them; others,
  as of a scanner that stores two energies, are left out and noted in `warnings`.
- The first page of a TIFF is read, and further ones are noted in `warnings`. Animated files are unsupported.
- A JPEG without an end marker, without data for its last line or all of those of a color is `truncated` and
  never scored; other damage that libjpeg tolerates is decoded, scored and noted in `warnings`. So is a
  progressive JPEG without its last scans, coarser than it was, if it has an end marker and no other damage.
- A single damaged line of a Group 3 fax is scored as far as it can be read, and noted in `warnings`.
"""

import threading
from functools import partial
from importlib import import_module
from typing import Any

import numpy as np
import numpy.typing as npt

from ..row import ImageFault, Row
from ..sources.faults import retry_transient
from ..text import one_line
from . import native_lines
from .budget import PixelBudget, ScratchBuffer
from .coded_image import CodedImage, DecodeLimits, Layout
from .header import inspect
from .native import NoDecoder, cpu_decoder, nvimagecodec
from .odd_jpeg import read_odd_jpeg
from .resize import Pixels, Resizer

PIXELS_IN_FLIGHT = 64_000_000  # over all threads of a decoder, or one image of max_pixels
SMALL_PIXELS = 1 << 16  # of a JPEG that is resized by way of copies: they cost less than sharing its memory
ROOM_BYTES = 64 << 20  # that a decoder may take for itself, and
ROOM_BYTES_A_PIXEL = 16  # for each pixel: 16-bit RGBA as stored, and once more while it is decoded


class Decoder:
    """Decodes images on the CPU; safe to call from many threads at once.

    Raises Refused or ImportError if a library that it needs is not installed.
    """

    def __init__(self, input_size: int | None, limits: DecodeLimits):
        self.input_size = input_size
        self.limits = limits
        self._budget = PixelBudget(max(PIXELS_IN_FLIGHT, limits.max_pixels))
        self._resize = None if input_size is None else Resizer(input_size)
        self._scratch = ScratchBuffer()
        self._local = threading.local()
        # a broken installation stops here, not as a row of each image
        self._decode_jpeg: Any = import_module("simplejpeg").decode_jpeg
        nvimagecodec()

    def __call__(
        self, row: Row, blob: bytes, out: npt.NDArray[np.uint8] | None = None
    ) -> npt.NDArray[np.uint8] | None:
        """Decode one file to RGB pixels [input_size, input_size, 3]; None for a bad image.

        Without an input size the pixels are [height, width, 3], as stored. With `out`, a C-contiguous array
        of the result's shape, the pixels are written there and `out` is returned; after a bad image its
        content is undefined.

        Fills format, width, height, bit_depth, color, status, error and warnings of the row.
        Raises MemoryError and NoDecoder, faults of the machine, after some seconds of trying; every fault of
        the file becomes the status of the row.
        """
        image = self.gate(row, blob)
        return None if image is None else self.pixels(row, image, out)

    def gate(self, row: Row, blob: bytes) -> CodedImage | None:
        """Check the header, the first half of a call; None for a bad image."""
        try:
            image = inspect(row, blob, self.limits)
        except Exception as error:  # noqa: BLE001 - whatever a file provokes becomes its row
            return _fail(row, error)
        row.warnings = "; ".join(image.warnings) or None
        return image

    def pixels(
        self, row: Row, image: CodedImage, out: npt.NDArray[np.uint8] | None = None
    ) -> npt.NDArray[np.uint8] | None:
        """Decode what the gate let through, the second half of a call; `out` as there."""
        try:
            pixels = self._first_try(row, image, out)
            if pixels is None:
                pixels = retry_transient(partial(self._decode_alone, row, image, out))
        except Exception as error:  # noqa: BLE001 - as above
            return _fail(row, error)
        row.status = "ok"
        return pixels

    def _first_try(
        self, row: Row, image: CodedImage, out: npt.NDArray[np.uint8] | None
    ) -> npt.NDArray[np.uint8] | None:
        """Decode beside other threads; None is a failure, for whatever reason."""
        assert row.width is not None
        assert row.height is not None
        pixels = row.width * row.height
        self._budget.take(pixels)
        try:
            if row.format == "jpeg":
                return self._decode(row, image, out)
            before = native_lines.written()
            decoded = self._decode(row, image, out)
            return decoded if native_lines.written() == before else None  # whose lines these are, is unknown
        except Exception:  # noqa: BLE001 - native decoders do not tell a lack of memory from bad data
            return None
        finally:
            self._budget.give(pixels)

    def _decode_alone(
        self, row: Row, image: CodedImage, out: npt.NDArray[np.uint8] | None
    ) -> npt.NDArray[np.uint8]:
        """Decode with no other image in flight and room known to be free: a failure now is the file's."""
        assert row.width is not None
        assert row.height is not None
        self._budget.take(self._budget.capacity)
        try:
            _check_room(row.width * row.height)
            native_lines.take()
            try:
                return self._decode(row, image, out)
            except Exception:
                _check_room(row.width * row.height)
                raise
            finally:
                if lines := native_lines.take():
                    row.warnings = "; ".join((*filter(None, (row.warnings,)), lines))
        finally:
            self._budget.give(self._budget.capacity)

    def _decode(
        self, row: Row, image: CodedImage, out: npt.NDArray[np.uint8] | None
    ) -> npt.NDArray[np.uint8]:
        width, height, size = row.width, row.height, self.input_size
        assert width is not None
        assert height is not None
        if out is None:
            out = np.empty((height, width, 3) if size is None else (size, size, 3), np.uint8)
        as_stored = size is None or width == height == size
        if row.format != "jpeg":
            stored = self._read_other(row, image, width, height)
        elif as_stored and image.layout == "rgb":
            return self._read_jpeg(row, image, "RGB", out)
        else:
            small = image.layout == "rgb" and width * height <= SMALL_PIXELS
            space, channels = ("RGB", 3) if small else _JPEG_SPACES[image.layout]
            stored = self._read_jpeg(row, image, space, self._scratch.array(height, width, channels))
        flat = _flatten(stored, image)
        _write(flat if as_stored or self._resize is None else self._resize(flat), image.depth, out)
        return out

    def _read_jpeg(self, row: Row, image: CodedImage, space: str, pixels: Pixels) -> Any:
        """Decode an 8-bit JPEG into [height, width, C]; damage that can be stepped over is a warning."""
        try:
            return self._decode_jpeg(image.data, space, buffer=pixels)
        except ValueError as refusal:
            warnings = read_odd_jpeg(image, space, pixels, refusal)
        row.warnings = "; ".join((*image.warnings, *warnings))
        return pixels

    def _read_other(self, row: Row, image: CodedImage, width: int, height: int) -> Pixels:
        """Decode into [height, width, C] as stored, C as the layout says."""
        dtype = np.uint8 if image.depth == 8 else np.uint16
        pixels = self._scratch.array(height, width, _CHANNELS[image.layout], dtype)
        if image.read is None:
            self._read_natively(image, pixels)
        elif warnings := image.read(pixels):
            row.warnings = "; ".join((*image.warnings, *warnings))
        return pixels

    def _read_natively(self, image: CodedImage, pixels: Pixels) -> None:
        """Decode by nvImageCodec."""
        nvimgcodec = nvimagecodec()
        if not hasattr(self._local, "decoder"):  # shared between threads, it corrupts images in silence
            self._local.decoder = cpu_decoder(1)
        code = nvimgcodec.CodeStream(image.data)
        height, width, channels = pixels.shape
        if (code.width, code.height) != (width, height):
            raise ImageFault("undecodable", f"the decoder sees {code.width} x {code.height} pixels")
        pixels.fill(0)
        form = {1: nvimgcodec.I_Y, 3: nvimgcodec.I_RGB, 4: nvimgcodec.I_RGBA}[channels]
        color = nvimgcodec.GRAY if channels == 1 else nvimgcodec.SRGB
        params = nvimgcodec.DecodeParams(
            apply_exif_orientation=False,
            color_spec=color,
            allow_any_depth=image.depth != 8,
            sample_format=form,
        )
        target = nvimgcodec.as_image(pixels, sample_format=form, color_spec=color)
        if self._local.decoder.decode([code], images=[target], params=params)[0] is None:
            raise ImageFault("undecodable", "the decoder cannot read the picture's data")


def _fail(row: Row, error: Exception) -> None:
    """Record an error of a decoder in the row; re-raises what is the machine's fault."""
    if isinstance(error, MemoryError | NoDecoder):
        raise error
    known = isinstance(error, ImageFault)
    row.fail(error if known else ImageFault("undecodable", f"the decoder says: {one_line(error)}"))


_JPEG_SPACES = {  # the fourth channel of RGBX is padding: four bytes a pixel are resized in place
    "gray": ("GRAY", 1),
    "rgb": ("RGBX", 4),
    "cmyk": ("CMYK", 4),
    "inverted cmyk": ("CMYK", 4),
}
_CHANNELS: dict[Layout, int] = {  # of other formats
    "gray": 1,
    "rgb": 3,
    "rgba": 4,
    "premultiplied": 4,
    "cmyk": 4,
}


def _check_room(pixels: int) -> None:
    """Raise MemoryError if there is no memory to decode so many pixels."""
    np.empty(ROOM_BYTES + ROOM_BYTES_A_PIXEL * pixels, np.uint8)


def _flatten(stored: Pixels, image: CodedImage) -> Pixels:
    """Bring stored pixels to gray, RGB or RGBX [H, W, 1, 3 or 4] at their own depth, 0 as black."""
    if image.key is not None:
        stored[(stored == np.array(image.key, stored.dtype)).all(axis=2)] = np.iinfo(stored.dtype).max
    if image.layout in ("gray", "rgb"):
        return stored
    top = (1 << image.depth) - 1
    last, colors = stored[..., 3:].astype(np.uint32), stored[..., :3]
    if image.layout == "premultiplied":
        return np.minimum(colors + (top - last), top).astype(stored.dtype)
    if image.layout == "rgba":
        return (top - ((top - colors) * last + top // 2) // top).astype(stored.dtype)
    if image.layout == "cmyk":
        colors, last = top - colors, top - last
    return ((colors * last + top // 2) // top).astype(stored.dtype)


def _write(pixels: Pixels, depth: int, out: npt.NDArray[np.uint8]) -> None:
    """Write gray, RGB or RGBX of `depth` bits a sample as RGB, rounded to 256 levels of the full range."""
    if pixels.dtype != np.uint8:
        top = (1 << depth) - 1
        pixels = ((pixels.astype(np.uint32) * 255 + top // 2) // top).astype(np.uint8)
    channels = pixels.shape[2]
    if channels == 3:
        out[...] = pixels
        return
    for channel in range(3):  # three long loops, where numpy makes a short one of each pixel
        out[..., channel] = pixels[..., 0 if channels == 1 else channel]
