"""Reader processes of a GPU's worker: they put coded images into shared memory, ready for a batch.

A reader reads files, computes digests, checks headers, and decodes on the CPU what a GPU does not decode. Row
fields go through a socket, bytes through memory that both processes map, so the worker never copies them.
"""

import mmap
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from queue import LifoQueue
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from ..decode import DecodeLimits, Decoder, native_lines
from ..decode.batch import waits_for_batch
from ..decode.coded_image import CodedImage
from ..decode.isolated import IsolatedDecoder
from ..errors import Stopped
from ..results.in_flight import Decoding, LateImages
from ..row import Row
from ..sources import Candidate
from ..system.child import Channel, Child
from . import Batch
from .cpu import FileRead, ready

MEMORY = 128 << 20  # bytes that a reader shares with its worker; what does not fit goes through the socket
NOTE = 64  # bytes at the start: the image that is being decoded, and since when
ALIGNMENT = 64
TICK_S = 0.25
MOST_DEATHS = 5  # of readers over one chunk, with no image to blame
FIELDS = ("status", "error", "sha256", "format", "width", "height", "bit_depth", "color", "warnings")

Content = Any  # None; or coded image or pixels, as (image or None, offset, length) in memory, or itself


@dataclass(frozen=True)
class ReaderSettings:
    """Settings of a reader process."""

    input_size: int  # pixels a side
    limits: DecodeLimits
    decode_timeout: float  # seconds


class Readers:
    """Reads chunks with several processes, each with one chunk; a context manager that ends them."""

    def __init__(self, settings: ReaderSettings, count: int):
        self._settings = settings
        self._all: list[_Reader] = []
        self._idle: LifoQueue[_Reader] = LifoQueue()
        for _ in range(count):
            self._add()

    def __call__(self, batch: Batch) -> None:
        """Fill the contents: coded images, pixels, or None for a row with a status. Raises Stopped.

        Coded images stay in the reader's memory until `batch.drop_contents` is called.
        """
        reader, suspects = self._idle.get(), batch.suspects
        for _ in range(MOST_DEATHS):
            try:
                answers = reader.ask(batch.candidates, suspects, self._settings.decode_timeout)
            except EOFError:
                suspects = suspects | reader.in_flight()
                reader = self._replaced(reader)
                continue
            batch.contents = [
                reader.content(row, *answer) for row, answer in zip(batch.rows, answers, strict=True)
            ]
            batch.release = partial(self._idle.put, reader)
            return
        raise Stopped(
            f"reader processes died {MOST_DEATHS} times over the same files; finished rows are kept: check "
            "the machine's memory, and run the same command again"
        )

    def close(self) -> None:
        """End the processes."""
        for reader in self._all:
            reader.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _add(self) -> None:
        reader = _Reader(self._settings)
        self._all.append(reader)
        self._idle.put(reader)

    def _replaced(self, dead: "_Reader") -> "_Reader":
        dead.close()
        self._all.remove(dead)
        reader = _Reader(self._settings)
        self._all.append(reader)
        return reader


class _Reader:
    """One reader process and its shared memory."""

    def __init__(self, settings: ReaderSettings):
        handle = os.memfd_create("gbad-batch", os.MFD_CLOEXEC)
        os.ftruncate(handle, MEMORY)
        self._memory = mmap.mmap(handle, MEMORY)
        self._bytes = np.frombuffer(self._memory, np.uint8)
        self._child = Child(serve, settings, handle, inherit=handle)
        self._side = settings.input_size
        os.close(handle)

    def ask(self, candidates: list[Candidate], suspects: frozenset[bytes], timeout_s: float) -> list[Any]:
        """Have a chunk read; raises EOFError if the process dies or is killed for a late image."""
        self._child.send((candidates, suspects))
        late = LateImages(timeout_s)
        while not self._child.connection.poll(TICK_S):
            key, started = _noted(self._memory)
            if started and late.among(self._child.pid, [Decoding(key, started, self._child.pid)]):
                self._child.kill()
        return self._child.receive()

    def content(self, row: Row, fields: Sequence[Any], content: Content) -> Content:
        """Fill in the row from the reader's fields; returns the content, with its bytes in shared memory."""
        for name, value in zip(FIELDS, fields, strict=True):
            setattr(row, name, value)
        if not isinstance(content, tuple):
            return content
        image, offset, length = content
        memory = self._bytes[offset : offset + length]
        if image is None:
            return memory.reshape(self._side, self._side, 3)
        image.data = memory
        return image

    def in_flight(self) -> frozenset[bytes]:
        """Return the key of the image that is in the decoder, if there is one."""
        key, started = _noted(self._memory)
        return frozenset((key,)) if started else frozenset()

    def close(self) -> None:
        """End the process."""
        self._child.kill()
        self._child.end()


def serve(channel: Channel, settings: ReaderSettings, handle: int) -> None:
    """Answer requests until the worker closes the channel; the main function of a reader."""
    memory = mmap.mmap(handle, MEMORY)
    native_lines.catch()
    decode = Decoder(settings.input_size, settings.limits)
    with IsolatedDecoder(settings.input_size, settings.limits, settings.decode_timeout) as isolated:
        read = _Read(memory, decode, isolated)
        while True:
            candidates, suspects = channel.receive()
            channel.send(read(candidates, suspects))


class _Read:
    """Reads chunks into shared memory."""

    def __init__(self, memory: mmap.mmap, decode: Decoder, isolated: IsolatedDecoder):
        self._memory = memory
        self._files = FileRead(decode.limits.max_file_size)
        self._decode = decode
        self._isolated = isolated
        self._used = NOTE

    def __call__(self, candidates: list[Candidate], suspects: frozenset[bytes]) -> list[Any]:
        """Read a chunk; returns the row's fields and the content of each candidate."""
        batch = Batch(candidates)
        self._files(batch)
        self._used = NOTE
        answers = []
        for candidate, content in zip(candidates, batch.contents, strict=True):
            blob = ready(content)
            stored = None if blob is None else self._content(candidate, blob, candidate.key in suspects)
            answers.append(([getattr(candidate.row, name) for name in FIELDS], stored))
        batch.drop_contents()
        return answers

    def _content(self, candidate: Candidate, blob: bytes, is_suspect: bool) -> Content:
        row = candidate.row
        if is_suspect:
            return self._stored_pixels(self._isolated(row, blob))
        image = self._decode.gate(row, blob)
        if image is None:
            return None
        if waits_for_batch(row, image):
            return self._stored_image(image)
        _note(self._memory, candidate.key, time.monotonic_ns())
        try:
            return self._stored_pixels(self._decode.pixels(row, image))
        finally:
            _note(self._memory, bytes(16), 0)

    def _stored_image(self, image: CodedImage) -> Content:
        offset = self._store(image.data)
        if offset is None:
            return image
        length, image.data = len(image.data), b""
        return image, offset, length

    def _stored_pixels(self, pixels: NDArray[np.uint8] | None) -> Content:
        if pixels is None:
            return None
        offset = self._store(pixels.reshape(-1).data)
        return pixels if offset is None else (None, offset, pixels.size)

    def _store(self, data: bytes | memoryview) -> int | None:
        """Copy bytes to the memory; returns their offset, or None if they do not fit."""
        start, end = self._used, self._used + len(data)
        if end > MEMORY:
            return None
        self._memory[start:end] = data
        self._used = -(-end // ALIGNMENT) * ALIGNMENT
        return start


def _note(memory: mmap.mmap, key: bytes, started: int) -> None:
    memory[:24] = key + started.to_bytes(8, "little")


def _noted(memory: mmap.mmap) -> tuple[bytes, int]:
    note = memory[:24]
    return note[:16], int.from_bytes(note[16:], "little")
