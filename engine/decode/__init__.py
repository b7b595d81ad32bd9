"""From the bytes of a file to pixels: on the CPU (decoder.py), or a batch at a time for a GPU (batch.py)."""

from .coded_image import DecodeLimits
from .decoder import Decoder

__all__ = ["DecodeLimits", "Decoder"]
