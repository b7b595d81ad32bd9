"""From the bytes of an image to where the model sees each class."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..bundle import Bundle, operating_point
from ..decode import DecodeLimits, Decoder
from ..model.decision import sigmoid
from ..row import THREATS, Row
from ..runtime.class_maps import ClassMaps
from .regions import Places, Region, hottest, regions_of


@dataclass(frozen=True, eq=False)
class Explanation:
    """What the model sees in one image."""

    pixels: NDArray[np.uint8]  # [height, width, 3], as stored
    places: Places  # [5, h, w] probability of each class at each place
    probabilities: NDArray[np.float32]  # [5] of the image, as a scan in FP32 gives them
    regions: list[Region]  # where a class reaches its threshold, the most probable first

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the picture."""
        return self.pixels.shape[1], self.pixels.shape[0]

    def hottest(self) -> dict[str, tuple[float, float]]:
        """Return the middle of the hottest place of each class, in pixels."""
        return {threat: hottest(place, self.size) for threat, place in zip(THREATS, self.places, strict=True)}


class Explainer:
    """Explains images with one bundle; raises Refused if it has no class map.

    A class's threshold is that of the model's default operating point: of the image as of each place.
    """

    def __init__(self, bundle: Bundle, limits: DecodeLimits, threads: int | None = None):
        self.maps = ClassMaps(bundle, threads)
        self.thresholds = operating_point(bundle, "fp32").class_thresholds
        self._whole = Decoder(None, limits)
        self._decode = Decoder(self.maps.input_size, limits)

    def __call__(self, row: Row, blob: bytes) -> Explanation | None:
        """Explain one file; None for an image that cannot be decoded, whose row then says why."""
        pixels = self._decode(row, blob)  # as a scan does: the stretched picture is what the network sees
        if pixels is None:
            return None
        again = Row(row.uri)  # a header is read into a row once
        stored = self._whole(again, blob)
        if stored is None:
            row.status, row.error = again.status, again.error
            return None
        return self.explain(pixels, stored)

    def explain(self, pixels: NDArray[np.uint8], stored: NDArray[np.uint8]) -> Explanation:
        """Explain the network's pixels [S, S, 3] of a picture that is `stored` as [H, W, 3]."""
        maps = self.maps(pixels[None])
        places = sigmoid(maps.places[0])
        size = stored.shape[1], stored.shape[0]
        return Explanation(stored, places, sigmoid(maps.logits[0]), regions_of(places, self.thresholds, size))
