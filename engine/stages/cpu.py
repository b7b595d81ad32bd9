"""Reading and decoding on the CPU, file by file, with the pixels written straight into the chunk's array."""

import hashlib
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ..decode import DecodeLimits, Decoder
from ..decode.isolated import IsolatedDecoder
from ..row import ImageFault, Row
from ..sources import Candidate
from ..sources.remote import Bucket
from ..sources.storage import ByteBudget
from . import Batch, InFlight

BYTES_IN_FLIGHT = 512_000_000  # of files that the threads of a worker hold, as listed; any one file fits
BYTES_AHEAD = 256_000_000  # of objects asked for by chunks that wait for their turn; any one chunk fits
REQUESTS = 32  # objects that a worker asks for at once
GROWTH = 64_000_000  # by which the files of a chunk may be larger than they were when they were listed


class FileRead:
    """Reads the files of a chunk and computes their digests, within the bytes that a worker may hold.

    Objects in a store are asked for many at once, those of a chunk that waits for its turn already.
    """

    def __init__(self, max_file_size: int, most_bytes: int = BYTES_IN_FLIGHT):
        self._max_file_size = max_file_size
        self._budget = ByteBudget(most_bytes)
        self._ahead = ByteBudget(
            BYTES_AHEAD
        )  # its own: a chunk that waits must not keep an earlier one waiting
        self._pool = ThreadPoolExecutor(
            REQUESTS, "request"
        )  # it starts threads when there is something to do

    def __call__(self, batch: Batch) -> None:
        """Fill the contents; a file that cannot be read gets a status instead. Raises Stopped.

        Waits until the files fit beside those of other threads. Files that have grown since they were listed
        may take GROWTH bytes more; what follows them in the chunk is read when its turn to be decoded comes.
        """
        listed = _listed(batch.candidates)
        if any(type(each.storage) is Requested for each in batch.candidates):
            batch.release = partial(self._ahead.release, listed)
        else:
            self._budget.acquire(listed, None)
            batch.release = partial(self._budget.release, listed)
            self._request(batch.candidates)
        room = listed + GROWTH
        for candidate in batch.candidates:
            if room < 0:
                batch.contents.append(partial(self._content, candidate))
                continue
            content = self._content(candidate)
            room -= len(content or b"")
            batch.contents.append(content)

    def ahead(self, candidates: list[Candidate]) -> None:
        """Ask for the objects of a chunk, if it has some and their bytes fit now."""
        has_some = any(type(each.storage) is Bucket for each in candidates)
        if has_some and self._ahead.try_acquire(_listed(candidates)):
            self._request(candidates)

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(cancel_futures=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _request(self, candidates: list[Candidate]) -> None:
        for candidate in candidates:
            storage, row = candidate.storage, candidate.row
            if type(storage) is Bucket and row.status is None:
                answer = self._pool.submit(storage.read, candidate.path, row, self._max_file_size)
                candidate.storage = Requested(answer)

    def _content(self, candidate: Candidate) -> bytes | None:
        row = candidate.row
        if row.status is not None:
            return None
        try:
            content = candidate.read(self._max_file_size)
        except ImageFault as fault:
            row.fail(fault)
            return None
        row.sha256 = hashlib.sha256(content).digest()
        return content


class Requested:
    """An object that was asked for: its bytes, as soon as they are here; handed over once."""

    def __init__(self, answer: "Future[bytes]"):
        self._answer: Future[bytes] | None = answer

    def read(self, path: bytes, row: Row, max_bytes: int) -> bytes:  # noqa: ARG002 - one signature for every storage
        """Wait for the bytes; raises ImageFault or Stopped."""
        answer, self._answer = self._answer, None
        assert answer is not None, "the bytes of an object are handed over only once"
        return answer.result()


def _listed(candidates: list[Candidate]) -> int:
    """Return the bytes of the files that are to be read, as listed."""
    return sum(each.row.bytes or 0 for each in candidates if each.row.status is None)


def ready(content: Any) -> bytes | None:
    """Return a content of a chunk, which is read now if it was left for this moment."""
    return content() if isinstance(content, partial) else content


class CPUDecode:
    """Decodes a chunk image by image; suspects in a process of their own, which may crash."""

    def __init__(self, input_size: int, limits: DecodeLimits, timeout_s: float):
        self._size = input_size
        self._decode = Decoder(input_size, limits)
        self._isolated = IsolatedDecoder(input_size, limits, timeout_s)
        self._own = threading.local()

    def __call__(self, batch: Batch, in_flight: InFlight) -> None:
        """Fill images and pixels, uint8 [n, S, S, 3]; raises MemoryError, Stopped."""
        array = self._array(len(batch.candidates))
        for candidate, content in zip(batch.candidates, batch.contents, strict=True):
            data = ready(content)
            if data is None:
                continue
            row, out = candidate.row, array[len(batch.images)]
            if candidate.key in batch.suspects:
                pixels = self._apart(row, data, out)
            else:
                in_flight.begin(candidate.key)
                pixels = self._decode(row, data, out)
            if pixels is not None:
                batch.images.append(row)
        in_flight.end()
        batch.drop_contents()
        batch.pixels = array[: len(batch.images)]

    def close(self) -> None:
        """End the process for suspects, if there is one."""
        self._isolated.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _apart(self, row: Row, content: bytes, out: NDArray[np.uint8]) -> NDArray[np.uint8] | None:
        pixels = self._isolated(row, content)
        if pixels is None:
            return None
        out[:] = pixels
        return out

    def _array(self, images: int) -> NDArray[np.uint8]:
        """Return this thread's array, which is reused for the next chunk once this one is scored."""
        array = getattr(self._own, "array", None)
        if array is None or len(array) < images:
            array = self._own.array = np.empty((images, self._size, self._size, 3), np.uint8)
        return array
