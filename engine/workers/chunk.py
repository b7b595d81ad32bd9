"""The unit of work: some tens of candidates that go to a worker, and the columns that come back."""

from dataclasses import dataclass, field
from time import perf_counter, thread_time
from typing import TYPE_CHECKING

from ..sources import Candidate

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


@dataclass(slots=True)
class Chunk:
    """Candidates in the order of the listing; `number` says where the chunk stands in that order."""

    number: int
    candidates: list[Candidate]
    suspects: frozenset[bytes] = frozenset()  # keys of images to be decoded apart


@dataclass(slots=True)
class FinishedChunk:
    """What a worker hands back: the columns of a chunk, its counts, and where the time went."""

    number: int
    columns: bytes  # an Arrow record batch of the results' schema, serialized
    rows: int
    failed: int  # rows that are not ok
    alarms: int
    features: "tuple[NDArray[np.float32], NDArray[np.float32]] | None" = None  # x, logits of the ok rows
    seconds: dict[str, float] = field(default_factory=dict)  # by stage
    cpu_seconds: dict[str, float] = field(default_factory=dict)  # of the thread that did it, by stage
    process_seconds: float = 0.0  # CPU of the whole worker since its last chunk


class Clock:
    """Times the stages of one chunk, one after the other."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.cpu_seconds: dict[str, float] = {}
        self._wall, self._cpu = perf_counter(), thread_time()

    def lap(self, stage: str) -> None:
        """Add the time since the last lap, and the CPU time of this thread in it, to a stage."""
        wall, cpu = perf_counter(), thread_time()
        self.seconds[stage] = wall - self._wall
        self.cpu_seconds[stage] = cpu - self._cpu
        self._wall, self._cpu = wall, cpu
