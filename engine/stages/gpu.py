"""Reading and decoding for a GPU: reader processes feed it, and it decodes a chunk as one batch."""

import threading
from contextlib import ExitStack

from ..decode import DecodeLimits, Decoder
from ..decode.batch import BatchDecoder
from ..decode.coded_image import CodedImage
from ..settings import ScanSettings
from . import Batch, InFlight
from .plan import readers
from .readers import Readers, ReaderSettings
from .scorer import Scorer


def open_reading_and_decoding(
    settings: ScanSettings, scorer: Scorer, limits: DecodeLimits, gpu: int | None, stack: ExitStack
) -> "tuple[Readers, BatchDecode]":
    """Open both stages for a GPU, or for DALI's CPU operators if `gpu` is None; raises Refused."""
    plan, size = scorer.plan, scorer.input_size
    count = readers(plan.cores)
    cores = max(1, plan.cores - count)  # the decoders have what the readers leave
    decoder = BatchDecoder(Decoder(size, limits), gpu, plan.batch_size, cores, settings.hardware_share)
    reading = Readers(ReaderSettings(size, limits, settings.decode_timeout), count)
    return stack.enter_context(reading), BatchDecode(decoder, scorer.recovering)


class BatchDecode:
    """Decodes chunks on a GPU, one at a time, and adds the images that readers have decoded.

    The next chunk is assembled meanwhile, so that DALI does not wait for Python.

    `turn` is held while a chunk is decoded; whoever else holds it is not disturbed by a decoder.
    """

    def __init__(self, decoder: BatchDecoder, turn: threading.Lock):
        self._decode = decoder
        self._turn = turn

    def __call__(self, batch: Batch, in_flight: InFlight) -> None:
        """Fill images and pixels, uint8 [n, S, S, 3] on the device; raises DeviceLost, Stopped, MemoryError.

        If the GPU is lost, the images stay noted: it is unknown which of them caused it.
        """
        rows, contents, keys = [], [], []
        for candidate, content in zip(batch.candidates, batch.contents, strict=True):
            if content is not None:
                rows.append(candidate.row)
                contents.append(content)
                if isinstance(content, CodedImage):
                    keys.append(candidate.key)
        assembled = self._decode.assemble(rows, contents) if rows else None
        with self._turn:
            in_flight.begin_all(keys)
            if assembled:
                batch.images, batch.pixels = self._decode.decode(assembled)
            in_flight.end()
        del assembled  # it holds the contents' memory
        batch.drop_contents()
