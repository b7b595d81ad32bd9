"""How much memory decoding takes: pixels in flight over all threads, and the buffers that threads keep."""

import threading

import numpy as np
import numpy.typing as npt

KEPT_BYTES = 32 << 20  # of a thread's buffer: 8 megapixels of four bytes


class PixelBudget:
    """Bounds the pixels in flight over all threads; whoever waits is served in turn.

    While there is room, taking and giving cost a lock that is free.
    """

    def __init__(self, capacity: int):
        self.capacity = capacity
        self._held = 0
        self._waiting = False
        self._turn = threading.Lock()
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)

    def take(self, pixels: int) -> None:
        """Wait for room for so many pixels; an image larger than the capacity is let in when none is held."""
        with self._turn, self._lock:
            while self._held and self._held + pixels > self.capacity:
                self._waiting = True
                self._changed.wait()
            self._waiting = False
            self._held += pixels

    def give(self, pixels: int) -> None:
        """Return what was taken."""
        with self._lock:
            self._held -= pixels
            if self._waiting:
                self._changed.notify()


class ScratchBuffer(threading.local):
    """A buffer a thread that decoded pictures are written to, so that their pages stay mapped."""

    def __init__(self) -> None:
        self._bytes = np.empty(0, np.uint8)

    def array(
        self, height: int, width: int, channels: int, dtype: type[np.uint8 | np.uint16] = np.uint8
    ) -> npt.NDArray[np.uint8 | np.uint16]:
        """Return an array [height, width, channels] of any content, valid until the thread's next call.

        What is larger than KEPT_BYTES is allocated for this image only.
        """
        size = height * width * channels * (1 if dtype is np.uint8 else 2)
        if size > KEPT_BYTES:
            return np.empty((height, width, channels), dtype)
        if size > self._bytes.size:
            self._bytes = np.empty(size, np.uint8)
        return self._bytes[:size].view(dtype).reshape(height, width, channels)
