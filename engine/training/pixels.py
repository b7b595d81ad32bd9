"""Images decoded as by a scan, on several threads, for features, figures and thresholds."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..decode import DecodeLimits, Decoder
from ..row import Row
from ..system.machine import usable_cores

AHEAD = 64  # images decoded before they are asked for


def decoded(paths: Sequence[Path], size: int) -> Iterator[NDArray[np.uint8] | None]:
    """Yield the pixels [size, size, 3] of each image in order, or None if it cannot be decoded."""
    decoder = Decoder(size, DecodeLimits())

    def decode(path: Path) -> NDArray[np.uint8] | None:
        return decoder(Row(uri=str(path)), path.read_bytes())

    with ThreadPoolExecutor(usable_cores(), thread_name_prefix="decode") as pool:
        waiting = [pool.submit(decode, path) for path in paths[:AHEAD]]
        for k in range(len(paths)):
            if k + AHEAD < len(paths):
                waiting.append(pool.submit(decode, paths[k + AHEAD]))
            yield waiting[k].result()
            waiting[k] = None  # type: ignore[call-overload]  # its pixels are not kept
