"""Decode for a GPU: check each header by itself, then decode the JPEGs a batch at a time.

The header of an image alone decides which decoder it gets. What nvJPEG decodes as libjpeg does (baseline and
progressive JPEGs, gray or of the usual samplings, of moderate size) waits for its batch; CMYK, odd samplings
and every other format are decoded on the CPU, as in a scan there.

The last word is the CPU decoder's: it decodes, or names the fault of, what the GPU's decoders refuse, and
what looks as if they had left it out. So an image has the status that a scan on the CPU gives it. Its pixels
are within a level or two of that scan's, but for the outermost lines, where DALI's filter repeats the edge
and Pillow's does not. nvJPEG steps over damage without a word, so there `warnings` may say less.
"""

import math
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ..errors import Refused
from ..row import Row
from ..text import one_line
from . import Decoder
from .coded_image import CodedImage
from .host_memory import HostMemory
from .native import NoDecoder, nvjpeg_is_loaded
from .odd_jpeg import INVENTED

if TYPE_CHECKING:
    from .dali_graph import CodedBatch, DecodedBatch

LARGEST_PIXELS = 16_000_000  # of an image that waits for its batch: what a batch holds is bounded,
LARGEST_BYTES = 4 << 20  # on the GPU and on the way to it
BATCH_PIXELS = 256_000_000  # decoded at once; three bytes each on the GPU
KEPT_FINGERPRINTS = 4096  # of recent images, to notice one's pixels under another's name

Pixels = npt.NDArray[np.uint8]  # [S, S, 3]


def waits_for_batch(row: Row, image: CodedImage) -> bool:
    """Tell whether an image that has passed the gate is decoded on the GPU, with others."""
    small = math.prod(_shape(row)) <= LARGEST_PIXELS and len(image.data) <= LARGEST_BYTES
    return image.nvjpeg and small


@dataclass(frozen=True)
class Assembled:
    """Images with their rows, ready to be decoded."""

    rows: Sequence[Row]
    waiting: "list[CodedBatch]"  # for the device, each decoded at once; ids are positions in `rows`
    finished: dict[int, Pixels]  # decoded already, by position


class BatchDecoder:
    """Decodes images for a GPU, or the same way by DALI's CPU operators, where `gpu` is None.

    Single images are decoded, and batches assembled, on many threads, beside the one that decodes a batch:
    `decode` is for one thread at a time. `most` images are
    decoded at once, `hardware_share` of them by the GPU's JPEG hardware. Raises Refused where DALI cannot be
    used.
    """

    def __init__(self, decode_one: Decoder, gpu: int | None, most: int, threads: int, hardware_share: float):
        assert decode_one.input_size is not None
        self._size = decode_one.input_size
        self._decode_one = decode_one
        self._most = most
        self._fingerprints: OrderedDict[tuple[int, float], bytes | None] = OrderedDict()
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode one")
        try:
            from .dali_graph import CodedBatch, GraphSettings
            from .device import DeviceDecoder

            self._coded_batch = CodedBatch.of
            self._memory = _memory(gpu)
            graph = GraphSettings(self._size, most, threads, gpu, hardware_share)
            self._decode = DeviceDecoder(graph, self._memory)
        except (ImportError, RuntimeError, MemoryError, NoDecoder) as error:
            where = "the CPU" if gpu is None else f"cuda:{gpu}"
            raise Refused(
                f"DALI cannot decode on {where} ({one_line(error)[-300:]}); use --device cpu"
            ) from error
        if gpu is not None and not nvjpeg_is_loaded():
            raise Refused(
                f"nvJPEG could not be loaded, so that the CPU would decode what cuda:{gpu} is to decode: "
                "reinstall nvidia-nvjpeg and nvidia-dali-cuda130, or use --device cpu"
            )

    def __call__(self, row: Row, blob: bytes) -> Pixels | CodedImage | None:
        """Decode one file as `Decoder` does, or return what waits for its batch; None is a bad image."""
        image = self._decode_one.gate(row, blob)
        if image is None:
            return None
        return image if waits_for_batch(row, image) else self._decode_one.pixels(row, image)

    def assemble(self, rows: Sequence[Row], images: Sequence[Pixels | CodedImage]) -> Assembled:
        """Make a batch of what single calls gave for `rows`."""
        waiting = {i: image for i, image in enumerate(images) if isinstance(image, CodedImage)}
        finished = {i: image for i, image in enumerate(images) if not isinstance(image, CodedImage)}
        coded = [
            self._coded_batch(ids, [waiting[i] for i in ids], [_shape(rows[i]) for i in ids])
            for ids in self._chunks(rows, list(waiting))
        ]
        return Assembled(rows, coded, finished)

    def decode(self, assembled: Assembled) -> tuple[list[Row], Any]:
        """Decode what waits and bring all to the device; the images' bytes stay as they are meanwhile.

        Returns the rows that have pixels, in their order, and these, uint8 [n, S, S, 3]: a torch tensor on
        the GPU, a numpy array for CPU operators. They are finished; the caller gives them up only when nobody
        reads them any more. The status of the other rows says why they have none. Raises DeviceLost, Stopped,
        MemoryError.
        """
        rows, finished = assembled.rows, dict(assembled.finished)
        parts: list[tuple[list[int], Any]] = []
        with self._memory.here():
            for batch in assembled.waiting:
                decoded = self._decode(batch)
                part = self._reliable(rows, decoded) if decoded else ([], None)
                parts.append(part)
                finished |= self._one_by_one(rows, batch, set(batch.ids).difference(part[0]))
            if finished:
                order = sorted(finished)
                parts.append((order, self._memory.put(np.stack([finished[i] for i in order]))))
            return self._joined(rows, [part for part in parts if part[0]])

    def _one_by_one(self, rows: Sequence[Row], batch: "CodedBatch", ids: set[int]) -> dict[int, Pixels]:
        """Decode some images of a batch on the CPU; returns the pixels of those that are not bad."""
        left = [(i, image) for i, image in zip(batch.ids, batch.coded, strict=True) if i in ids]
        retried = self._pool.map(lambda one: self._decode_one.pixels(rows[one[0]], one[1]), left)
        return {i: pixels for (i, _), pixels in zip(left, retried, strict=True) if pixels is not None}

    def _chunks(self, rows: Sequence[Row], waiting: Sequence[int]) -> Iterator[list[int]]:
        """Divide positions into as many at once as a graph takes and memory allows."""
        chunk, held = list[int](), 0
        for i in waiting:
            pixels = math.prod(_shape(rows[i]))
            if chunk and (len(chunk) == self._most or held + pixels > BATCH_PIXELS):
                yield chunk
                chunk, held = [], 0
            chunk.append(i)
            held += pixels
        if chunk:
            yield chunk

    def _reliable(self, rows: Sequence[Row], decoded: "DecodedBatch") -> tuple[list[int], Any]:
        """Return the positions and pixels of the images that were certainly decoded.

        An image that the hardware left out without a word shows what stood in its place before: one colour,
        or another image of late. One that was cut ends in the gray of missing data. True ones like these, and
        copies in other files, are decoded once more.
        """
        good = []
        for k, (i, odd, fingerprint) in enumerate(
            zip(decoded.ids, self._odd(decoded), decoded.fingerprints, strict=True)
        ):
            if not odd and self._fingerprints.setdefault(fingerprint, rows[i].sha256) == rows[i].sha256:
                good.append(k)
        while len(self._fingerprints) > KEPT_FINGERPRINTS:
            self._fingerprints.popitem(last=False)
        pixels = self._memory.of(decoded.pixels)
        if len(good) < len(decoded.ids):
            pixels = pixels[good]
            self._memory.wait()  # for DALI gets its own back
        return [decoded.ids[k] for k in good], pixels

    def _odd(self, decoded: "DecodedBatch") -> list[bool]:
        """Tell which images have one colour, or the gray of missing data as their last line."""
        lines = self._memory.of(decoded.pixels)[:, -1].reshape(len(decoded.ids), -1)
        gray = (lines >= INVENTED - 1) & (lines <= INVENTED + 1)
        return [*map(any, zip(decoded.uniform.tolist(), gray.all(1).tolist(), strict=True))]

    def _joined(self, rows: Sequence[Row], parts: Sequence[tuple[list[int], Any]]) -> tuple[list[Row], Any]:
        """Join parts in the order of the rows; a single part is returned as it is."""
        order = sorted(i for ids, _ in parts for i in ids)
        for i in order:
            rows[i].status = "ok"
        if len(parts) == 1:
            pixels = parts[0][1]
        else:
            place = {i: k for k, i in enumerate(order)}
            pixels = self._memory.empty(len(order), self._size, self._size, 3)
            for ids, part in parts:
                pixels[[place[i] for i in ids]] = part
        self._memory.wait()
        return [rows[i] for i in order], pixels


def _memory(gpu: int | None) -> HostMemory:
    if gpu is None:
        return HostMemory()
    from .device_memory import DeviceMemory

    return DeviceMemory(gpu)


def _shape(row: Row) -> tuple[int, int]:
    """Height and width, which the gate has filled in."""
    assert row.height is not None
    assert row.width is not None
    return row.height, row.width
