"""The one resize: antialiased bilinear, stretched to a square, 8 or 16 bits a channel.

The filter is Pillow's BILINEAR (a triangle as wide as the reduction): cykooz-resizer computes it fast
and without the GIL, Pillow itself where that is missing. Both round to the type of the input, so a
16-bit image is resized in 16 bits and rounded to 8 once, at the end.
"""

import threading
from importlib import import_module
from importlib.util import find_spec
from typing import Any

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8 | np.uint16]  # [H, W, C], C is 1 or 3


class Resizer:
    """Stretches images to one size; safe to share between threads."""

    def __init__(self, size: int):
        self.size = size
        self._own = threading.local()
        # one that is there but does not load is a fault of the machine, not a reason for other pixels
        self._cykooz = import_module("cykooz_resizer") if find_spec("cykooz_resizer") else None

    def __call__(self, pixels: Pixels) -> Pixels:
        """Resize [H, W, C] to [size, size, C] of the same type; C is 1 or 3."""
        if pixels.shape[:2] == (self.size, self.size):
            return pixels
        return self._by_pillow(pixels) if self._cykooz is None else self._by_cykooz(self._cykooz, pixels)

    def _by_cykooz(self, cykooz: Any, pixels: Pixels) -> Pixels:
        if not hasattr(self._own, "resizer"):
            self._own.resizer = cykooz.Resizer()
            bilinear = cykooz.ResizeAlg.convolution(cykooz.FilterType.bilinear)
            self._own.options = cykooz.ResizeOptions(bilinear, use_alpha=False)
        height, width, channels = pixels.shape
        name = ("U8" if pixels.dtype == np.uint8 else "U16") + ("x3" if channels == 3 else "")
        kind = cykooz.PixelType[name]
        source = cykooz.ImageData(width, height, kind, pixels.tobytes())
        target = cykooz.ImageData(self.size, self.size, kind)
        self._own.resizer.resize(source, target, self._own.options)
        return np.frombuffer(target.get_buffer(), pixels.dtype).reshape(self.size, self.size, channels)

    def _by_pillow(self, pixels: Pixels) -> Pixels:
        from PIL import Image

        size, bilinear = (self.size, self.size), Image.Resampling.BILINEAR
        planes = []
        for plane in np.moveaxis(pixels, 2, 0):
            exact = plane if pixels.dtype == np.uint8 else plane.astype(np.float32)  # Pillow has no 16 bits
            planes.append(np.asarray(Image.fromarray(exact).resize(size, bilinear)))
        return np.rint(np.stack(planes, axis=-1)).astype(pixels.dtype)
