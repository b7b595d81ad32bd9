"""Samples of 1 to 16 bits, from lines of bytes in which they stand without gaps."""

import numpy as np
import numpy.typing as npt

_AT_ONCE = 1 << 20  # samples that are unpacked bit by bit at once: each takes that many bytes

Samples = npt.NDArray[np.uint8 | np.uint16]


def unpacked(lines: npt.NDArray[np.uint8], count: int, bits: int, order: str = ">") -> Samples:
    """Unpack the first `count` samples of each line, highest bit first, into [lines, count].

    They are uint8 up to 8 bits, else uint16. `order` is that of the bytes of 16-bit samples.
    """
    if bits == 8:
        return lines[:, :count]
    if bits == 16:
        return lines[:, : 2 * count].view(f"{order}u2").astype(np.uint16)
    if bits in (1, 2, 4):
        shifts = np.arange(8 - bits, -1, -bits, dtype=np.uint8)
        spread = lines[..., None] >> shifts & np.uint8((1 << bits) - 1)
        return spread.reshape(len(lines), -1)[:, :count]
    kind = np.uint8 if bits < 8 else np.uint16
    weights = (1 << np.arange(bits - 1, -1, -1)).astype(kind)
    samples = np.empty((len(lines), count), kind)
    step = max(1, _AT_ONCE // count)
    for first in range(0, len(lines), step):
        part = np.unpackbits(lines[first : first + step], axis=1, count=count * bits)
        samples[first : first + step] = part.reshape(len(part), count, bits) @ weights
    return samples
