"""The unit of work: some tens of candidates for a worker, and the columns that it returns."""

from dataclasses import dataclass, field
from time import perf_counter, thread_time
from typing import TYPE_CHECKING

from ..sources import Candidate

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(slots=True)
class Chunk:
    """Consecutive candidates of the listing; `number` is the position of the chunk in it."""

    number: int
    candidates: list[Candidate]
    suspects: frozenset[bytes] = frozenset()  # keys of images to decode in a process of their own


@dataclass(slots=True)
class FinishedChunk:
    """What a worker returns for a chunk: columns, counts, and where the time went."""

    number: int
    columns: bytes  # an Arrow record batch of the results' schema, serialized
    rows: int
    failed: int  # rows whose status is not ok
    alarms: int
    features: "tuple[NDArray[np.float32], NDArray[np.float32]] | None" = None  # x, logits of the ok rows
    seconds: dict[str, float] = field(default_factory=dict)  # by stage
    cpu_seconds: dict[str, float] = field(default_factory=dict)  # of the worker's thread, by stage
    process_seconds: float = 0.0  # CPU seconds of the whole worker since its last chunk


class Clock:
    """Stopwatch for the stages of one chunk, which run one after the other."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.cpu_seconds: dict[str, float] = {}
        self._wall, self._cpu = perf_counter(), thread_time()

    def lap(self, stage: str) -> None:
        """Record the time since the last lap, and this thread's CPU time in it, for a stage."""
        wall, cpu = perf_counter(), thread_time()
        self.seconds[stage] = wall - self._wall
        self.cpu_seconds[stage] = cpu - self._cpu
        self._wall, self._cpu = wall, cpu
