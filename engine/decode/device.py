"""JPEGs decoded and resized on the device: by DALI, or first by nvImageCodec where too much fails."""

import logging
from collections import deque
from collections.abc import Callable
from typing import TypeVar

from ..errors import DeviceLost
from ..text import one_line
from .dali_graph import CodedBatch, DaliGraph, DecodedBatch, GraphSettings
from .gpu_per_image import PerImageDecoder
from .host_memory import HostMemory

T = TypeVar("T")

log = logging.getLogger(__name__)

RECENT = 32  # batches that the share of failed ones is of
MOST_FAILED = 0.25  # of these; above it a first try by DALI costs more than it saves


class DeviceDecoder:
    """Decodes a batch of JPEGs with DALI; one that fails by nvImageCodec, and DALI resizes.

    A single bad image fails DALI's batch and is not always named. So a failed batch is decoded once more with
    an answer for each image, and once more than MOST_FAILED of the RECENT batches have failed, or held an
    image that would have failed them, nvImageCodec goes first, until they are fewer again. Belongs to one
    thread at a time. Raises RuntimeError, NoDecoder or MemoryError where a library cannot work here.
    """

    def __init__(self, settings: GraphSettings, memory: HostMemory):
        self._memory = memory
        self._decode = DaliGraph(settings, encoded=True)
        self._resize = DaliGraph(settings, encoded=False)
        self._per_image = PerImageDecoder(memory, settings.gpu, settings.threads, settings.hardware_share)
        self._failed: deque[bool] = deque([False] * RECENT, RECENT)

    def __call__(self, batch: CodedBatch) -> DecodedBatch | None:
        """Decode a batch; what comes out is those of its ids that could be, None if there are none.

        Raises DeviceLost if this process loses the GPU.
        """
        reason, ids = None, batch.ids
        if sum(self._failed) <= MOST_FAILED * RECENT:
            decoded, reason = self._tried(lambda: self._decode(batch.tensors, ids))
            if decoded:
                self._failed.append(False)
                return decoded
        answers, _ = self._tried(lambda: self._per_image(batch.coded, batch.shapes))
        good = [(i, pixels) for i, pixels in zip(ids, answers or (), strict=False) if pixels is not None]
        if reason and len(good) == len(ids):
            log.warning("DALI failed on a batch of good images, and is restarted: %s", reason[-300:])
            self._decode.renew()
        # where nvImageCodec goes first and decodes nothing at all, DALI's turn comes again
        self._failed.append(reason is not None or 0 < len(good) < len(ids))
        if not good:
            return None
        decoded, _ = self._tried(lambda: self._resize([pixels for _, pixels in good], [i for i, _ in good]))
        return decoded

    def _tried(self, work: Callable[[], T]) -> tuple[T | None, str | None]:
        """Do one library's work; returns what it made, or why it failed."""
        try:
            return work(), None
        except (RuntimeError, ValueError) as error:
            reason = one_line(error)
        log.debug("a batch failed: %s", reason)
        if self._memory.is_lost():
            raise DeviceLost(f"the GPU failed while it decoded ({reason[-300:]})")
        return None, reason
