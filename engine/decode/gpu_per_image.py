"""Decode by nvImageCodec: slower than DALI on whole batches, but with an answer for each image."""

from collections.abc import Sequence
from typing import Any

from .coded_image import CodedImage
from .host_memory import HostMemory
from .native import cpu_decoder, gpu_decoder, nvimagecodec


class PerImageDecoder:
    """Decodes JPEGs whole, as RGB, into memory that stays; belongs to one thread at a time.

    Raises NoDecoder or MemoryError where nvImageCodec makes no decoder.
    """

    def __init__(self, memory: HostMemory, gpu: int | None, threads: int, hardware_share: float):
        self._memory = memory
        self._native = nvimagecodec()
        self._decoder = cpu_decoder(threads) if gpu is None else gpu_decoder(gpu, threads, hardware_share)

    def __call__(self, coded: Sequence[CodedImage], shapes: Sequence[tuple[int, int]]) -> list[Any]:
        """Decode images of the shapes [height, width] that their headers say.

        Returns [height, width, 3] of each, None for one that cannot be decoded; valid until the next call.
        Raises RuntimeError or ValueError where nvImageCodec fails as a whole.
        """
        native, memory = self._native, self._memory
        opened = [self._opened(*pair) for pair in zip(coded, shapes, strict=True)]
        known = [i for i, code in enumerate(opened) if code is not None]
        results: list[Any] = [None] * len(opened)
        if not known:
            return results
        views = memory.views([shapes[i] for i in known])
        form = {"sample_format": native.I_RGB, "color_spec": native.SRGB}
        images = [native.as_image(view, memory.stream, **form) for view in views]
        params = native.DecodeParams(apply_exif_orientation=False, **form)
        memory.wait()  # the hardware would not
        codes = [opened[i] for i in known]
        answers = self._decoder.decode(codes, images=images, params=params, cuda_stream=memory.stream)
        memory.wait()
        for i, view, answer in zip(known, views, answers, strict=True):
            results[i] = None if answer is None else view
        return results

    def _opened(self, image: CodedImage, shape: tuple[int, int]) -> Any:
        """Open an image; None where nvImageCodec cannot, or would write more than there is room for."""
        try:
            code = self._native.CodeStream(bytes(image.data))
        except RuntimeError:
            return None
        return code if (code.height, code.width) == shape else None
