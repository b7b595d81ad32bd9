"""From the bytes of a file to the network's pixels; a bad image gets a named reason and touches no other.

What an image means here, the same on every backend and never guessed from pixel values:

- *Orientation* (EXIF, TIFF) is not applied: the stored grid is what scanners write and models see. An
  orientation other than 1 is said in `warnings`.
- *Alpha* is composited on white, which is what air looks like in these pictures; a transparent colour
  or palette entry likewise. An unspecified fourth channel (TIFF) and the fourth byte of a 32-bit BMP are
  left out.
- *Gray* becomes three equal channels; palettes and 1, 2 and 4 bits are spread over the full range;
  where a TIFF says that 0 is white, values are inverted.
- *9 to 16 bits* are resized as they are and then divided by their full range (257 for 16 bits), rounded
  to the nearest of 256 levels.
- *CMYK* is converted without a profile, R = (255 - C)(255 - K) / 255; a JPEG with Adobe's marker stores
  it inverted. Colour profiles and gamma are not applied.
- The first page of a TIFF is read, and further ones said in `warnings`. Animated files are unsupported.
- A JPEG cut short (no end marker) is `truncated` and never scored; other damage that libjpeg can step
  over is decoded, scored and said in `warnings`.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module

import numpy as np
import numpy.typing as npt

from ..row import ImageFault, Row
from ..sources.faults import retry_transient
from ..text import one_line
from .header import inspect
from .native import cpu_decoder, nvimagecodec
from .resize import Pixels, Resizer
from .stream import DecodeLimits, Layout, Stream

__all__ = ["DecodeLimits", "Decoder"]

PIXELS_IN_FLIGHT = 64_000_000  # over all threads of a decoder, or one image of max_pixels
ROOM_BYTES = 64 << 20  # that a decoder may take for itself, and
ROOM_BYTES_A_PIXEL = 16  # for each pixel: 16-bit RGBA as stored, and once more while it is decoded


class Decoder:
    """Decodes images on the CPU; safe to call from many threads at once."""

    def __init__(self, input_size: int | None, limits: DecodeLimits):
        self.input_size = input_size
        self.limits = limits
        self._budget = PixelBudget(max(PIXELS_IN_FLIGHT, limits.max_pixels))
        self._resize = None if input_size is None else Resizer(input_size)
        self._own = threading.local()
        import_module("simplejpeg")  # a broken installation stops here, not as a row of each image
        nvimagecodec()

    def __call__(
        self, row: Row, blob: bytes, out: npt.NDArray[np.uint8] | None = None
    ) -> npt.NDArray[np.uint8] | None:
        """Decode one file to RGB pixels [input_size, input_size, 3]; None is a bad image.

        Without an input size the pixels are [height, width, 3], as stored. With `out`, a C-contiguous
        array of the result's shape, the pixels are written there and `out` is returned.

        Fills format, width, height, bit_depth, color, status, error and warnings of the row.
        Raises MemoryError, a fault of the machine, after some seconds of trying; every fault of the file
        becomes the status of the row.
        """
        stream = self.gate(row, blob)
        return None if stream is None else self.pixels(row, stream, out)

    def gate(self, row: Row, blob: bytes) -> Stream | None:
        """Do the first half: all that a header tells; None is a bad image."""
        with _faults_told(row):
            stream = inspect(row, blob, self.limits)
            row.warnings = "; ".join(stream.warnings) or None
            return stream
        return None

    def pixels(
        self, row: Row, stream: Stream, out: npt.NDArray[np.uint8] | None = None
    ) -> npt.NDArray[np.uint8] | None:
        """Do the second half, for what the gate let through; `out` as in a call."""
        with _faults_told(row):
            pixels = retry_transient(self._pixels, row, stream)
            if out is not None:
                out[...] = pixels
                pixels = out
            row.status = "ok"
            return pixels
        return None

    def _pixels(self, row: Row, stream: Stream) -> npt.NDArray[np.uint8]:
        """Decode and resize; a failure counts once it comes again, alone and with room known to be free.

        Native decoders do not tell memory that they did not get from data that make no sense.
        """
        assert row.width is not None
        assert row.height is not None
        pixels = row.width * row.height
        with self._budget.hold(pixels), suppress(Exception):
            return self._decoded(row, stream, row.width, row.height)
        with self._budget.hold(self._budget.capacity):
            _check_room(pixels)
            try:
                return self._decoded(row, stream, row.width, row.height)
            except Exception:
                _check_room(pixels)
                raise

    def _decoded(self, row: Row, stream: Stream, width: int, height: int) -> npt.NDArray[np.uint8]:
        if row.format == "jpeg":
            stored = _decode_jpeg(row, stream, width, height)
        else:
            stored = self._decode_other(stream, width, height)
        flat = _flatten(stored, stream)
        resized = flat if self._resize is None else self._resize(flat)
        rounded = _to_8_bits(resized, stream.depth)
        return rounded if rounded.shape[2] == 3 else np.repeat(rounded, 3, axis=2)

    def _decode_other(self, stream: Stream, width: int, height: int) -> Pixels:
        """Decode by nvImageCodec into [height, width, C] as stored, C as the layout says."""
        nvimgcodec = nvimagecodec()
        if not hasattr(self._own, "decoder"):  # shared between threads, it corrupts images in silence
            self._own.decoder = cpu_decoder(1)
        code = nvimgcodec.CodeStream(stream.data)
        if (code.width, code.height) != (width, height):
            raise ImageFault("undecodable", f"the decoder sees {code.width} x {code.height} pixels")
        channels = _CHANNELS[stream.layout]
        pixels = np.zeros((height, width, channels), np.uint8 if stream.depth == 8 else np.uint16)
        form = {1: nvimgcodec.I_Y, 3: nvimgcodec.I_RGB, 4: nvimgcodec.I_RGBA}[channels]
        color = nvimgcodec.GRAY if channels == 1 else nvimgcodec.SRGB
        params = nvimgcodec.DecodeParams(
            apply_exif_orientation=False,
            color_spec=color,
            allow_any_depth=stream.depth != 8,
            sample_format=form,
        )
        image = nvimgcodec.as_image(pixels, sample_format=form, color_spec=color)
        if self._own.decoder.decode([code], images=[image], params=params)[0] is None:
            raise ImageFault("undecodable", "the decoder cannot read the picture's data")
        return pixels


@contextmanager
def _faults_told(row: Row) -> Iterator[None]:
    """Make whatever a file provokes its row; raises MemoryError alone."""
    try:
        yield
    except ImageFault as fault:
        row.fail(fault)
    except MemoryError:
        raise
    except Exception as error:  # noqa: BLE001 - the one boundary
        row.fail(ImageFault("undecodable", f"the decoder says: {one_line(error)}"))


_CHANNELS: dict[Layout, int] = {
    "gray": 1,
    "rgb": 3,
    "rgba": 4,
    "premultiplied": 4,
    "cmyk": 4,
    "inverted cmyk": 4,
}


class PixelBudget:
    """Bounds the pixels in flight over all threads; whoever waits is served in turn."""

    def __init__(self, capacity: int):
        self.capacity = capacity
        self._held = 0
        self._turn = threading.Lock()
        self._changed = threading.Condition()

    @contextmanager
    def hold(self, pixels: int) -> Iterator[None]:
        """Hold room for so many pixels; one image alone always finds room."""
        with self._turn, self._changed:
            self._changed.wait_for(lambda: not self._held or self._held + pixels <= self.capacity)
            self._held += pixels
        try:
            yield
        finally:
            with self._changed:
                self._held -= pixels
                self._changed.notify()


def _check_room(pixels: int) -> None:
    """Raise MemoryError where an image of so many pixels finds no room to be decoded."""
    np.empty(ROOM_BYTES + ROOM_BYTES_A_PIXEL * pixels, np.uint8)


def _decode_jpeg(row: Row, stream: Stream, width: int, height: int) -> npt.NDArray[np.uint8]:
    """Decode an 8-bit JPEG to [height, width, C]; damage that can be stepped over is a warning."""
    from simplejpeg import decode_jpeg

    channels = _CHANNELS[stream.layout]
    space = {1: "GRAY", 3: "RGB", 4: "CMYK"}[channels]
    pixels = np.empty((height, width, channels), np.uint8)
    try:
        return decode_jpeg(stream.data, space, buffer=pixels)
    except ValueError as error:
        said = one_line(error)
    if "memory" in said.lower():
        raise MemoryError(said)
    if "Premature end of JPEG" in said:
        raise ImageFault("truncated", "the JPEG's data end before its last line")
    pixels.fill(0)
    lenient = decode_jpeg(stream.data, space, buffer=pixels, strict=False)
    row.warnings = "; ".join((*stream.warnings, said))
    return lenient


def _flatten(stored: Pixels, stream: Stream) -> Pixels:
    """Bring stored pixels to gray [H, W, 1] or RGB [H, W, 3], 0 as black, at their own depth."""
    if stream.invert:
        np.subtract(np.iinfo(stored.dtype).max, stored, out=stored)
    if stream.key is not None:
        stored[(stored == np.array(stream.key, stored.dtype)).all(axis=2)] = np.iinfo(stored.dtype).max
    if stored.shape[2] != 4:
        return stored
    top = (1 << stream.depth) - 1
    last, colors = stored[..., 3:].astype(np.uint32), stored[..., :3]
    if stream.layout == "premultiplied":
        return np.minimum(colors + (top - last), top).astype(stored.dtype)
    if stream.layout == "rgba":
        return (top - ((top - colors) * last + top // 2) // top).astype(stored.dtype)
    if stream.layout == "cmyk":
        colors, last = top - colors, top - last
    return ((colors * last + top // 2) // top).astype(stored.dtype)


def _to_8_bits(pixels: Pixels, depth: int) -> npt.NDArray[np.uint8]:
    """Round samples of `depth` bits to 256 levels of the full range."""
    if pixels.dtype == np.uint8:
        return pixels.astype(np.uint8, copy=False)
    top = (1 << depth) - 1
    return ((pixels.astype(np.uint32) * 255 + top // 2) // top).astype(np.uint8)
