"""The one resize: antialiased bilinear, stretched to a square, 8 or 16 bits a channel.

The filter is Pillow's BILINEAR (a triangle as wide as the reduction), computed by cykooz-resizer without the
GIL. It rounds to the type of the input, so a 16-bit image is resized in 16 bits and rounded to 8 once, at
the end.
"""

import threading
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import Refused
from ..text import one_line

Pixels = npt.NDArray[np.uint8 | np.uint16]  # [H, W, C]

_ROOM_BYTES = 16 << 20  # that cykooz-resizer may take besides its copy of an image

# What Pillow calls an image of 8-bit channels that have nothing to do with each other. cykooz-resizer reads
# and writes the memory of such images in place; what comes as bytes it copies on the way in and out.
_IN_PLACE = {1: "L", 4: "CMYK"}


class Resizer(threading.local):
    """Stretches images to one size; each thread that calls it has buffers of its own.

    Raises Refused if cykooz-resizer or Pillow cannot be imported.
    """

    def __init__(self, size: int):
        try:
            import cykooz_resizer as cykooz
            from PIL import Image
        except ImportError as error:
            raise Refused(
                f"images cannot be resized ({one_line(error)}); install gbad-batch again"
            ) from error
        self.size = size
        self._cykooz, self._image = cykooz, Image
        self._native = cykooz.Resizer()
        bilinear = cykooz.ResizeAlg.convolution(cykooz.FilterType.bilinear)
        self._options = cykooz.ResizeOptions(bilinear, use_alpha=False)
        self._targets = {channels: np.empty((size, size, channels), np.uint8) for channels in _IN_PLACE}
        self._target_images = {channels: self._wrap(target) for channels, target in self._targets.items()}
        self._copied: dict[tuple[int, int], tuple[Any, Any]] = {}  # by sample bytes, channels

    def __call__(self, pixels: Pixels) -> Pixels:
        """Resize C-contiguous [H, W, C] to [size, size, C] of the same type.

        C is 1, 3 or 4; 1 and 4 are the fast ones at 8 bits. The result is valid until the same thread calls
        again.
        """
        channels = pixels.shape[2]
        if pixels.dtype != np.uint8 or channels not in _IN_PLACE:
            return self._resize_copy(pixels)
        self._native.resize_pil(self._wrap(pixels), self._target_images[channels], self._options)
        return self._targets[channels]

    def _wrap(self, pixels: Pixels) -> Any:
        """Make a Pillow image that shares the memory of an array uint8 [H, W, 1 or 4]."""
        height, width, channels = pixels.shape
        mode = _IN_PLACE[channels]
        return self._image.frombuffer(mode, (width, height), pixels, "raw", mode, 0, 1)

    def _resize_copy(self, pixels: Pixels) -> Pixels:
        size, (height, width, channels) = self.size, pixels.shape
        kind, target = self._copied.get((pixels.itemsize, channels)) or self._copy_target(pixels)
        data = pixels.tobytes()
        np.empty(len(data) + _ROOM_BYTES, np.uint8)  # a MemoryError here: the library would end the process
        self._native.resize(self._cykooz.ImageData(width, height, kind, data), target, self._options)
        return np.frombuffer(target.get_buffer(), pixels.dtype).reshape(size, size, channels)

    def _copy_target(self, pixels: Pixels) -> tuple[Any, Any]:
        """Make the library's type for such pixels, and an image of it that results are copied from."""
        bits, channels = 8 * pixels.itemsize, pixels.shape[2]
        kind = self._cykooz.PixelType[f"U{bits}" + (f"x{channels}" if channels > 1 else "")]
        made = kind, self._cykooz.ImageData(self.size, self.size, kind)
        self._copied[pixels.itemsize, channels] = made
        return made
