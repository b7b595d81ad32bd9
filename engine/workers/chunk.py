"""The unit of work: some tens of candidates for a worker, and the columns that it returns."""

from dataclasses import dataclass, field
from time import perf_counter, thread_time
from typing import TYPE_CHECKING

from ..sources import Candidate

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

CHUNK_SECONDS = 0.1  # that a chunk should take one thread
MOST_IMAGES = 256  # of a chunk on a CPU
PIXEL_BYTES = 50_000_000  # of them, once decoded
CHUNK_BYTES = 64_000_000  # of the files of a chunk, as listed; one file alone may have more
GPU_CHUNK_BYTES = 120_000_000  # likewise on a GPU: as many as a reader can share (`stages.readers`)


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
    recognized: int = 0  # rows whose bytes were decoded before
    features: "tuple[NDArray[np.float32], NDArray[np.float32]] | None" = None  # x, logits of the ok rows
    seconds: dict[str, float] = field(default_factory=dict)  # by stage
    cpu_seconds: dict[str, float] = field(default_factory=dict)  # of the worker's thread, by stage
    process_seconds: float = 0.0  # CPU seconds of the whole worker since its last chunk
    node: str = ""  # of a cluster, where the worker is
    retries: int = 0  # requests to an object store that the worker has repeated since its last chunk

    def __str__(self) -> str:
        """Describe counts and times in a line for the debug log."""
        spent = ", ".join(f"{stage} {1000 * seconds:.1f}" for stage, seconds in self.seconds.items())
        return (
            f"chunk {self.number}: {self.rows} rows, {self.failed} failed, {self.alarms} alarms; ms: {spent}"
        )


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


class ChunkSize:
    """How much the next chunk should have: whole batches that take a thread about CHUNK_SECONDS.

    However fast the model is, a chunk's pixels stay below PIXEL_BYTES, or are one batch; on a GPU they are
    always one.
    """

    def __init__(self, batch_size: int, input_size: int, on_gpu: bool):
        self.images = batch_size
        self.bytes = GPU_CHUNK_BYTES if on_gpu else CHUNK_BYTES
        self._batch_size = batch_size
        self._most_batches = min(MOST_IMAGES, PIXEL_BYTES // (3 * input_size**2)) // batch_size
        self._on_gpu = on_gpu
        self._image_seconds = 0.0  # of one thread, as the last chunks took

    def learn(self, chunk: FinishedChunk) -> None:
        """Take a finished chunk's speed into account."""
        if self._on_gpu:
            return
        spent = sum(chunk.seconds.values()) / chunk.rows
        self._image_seconds += (spent - self._image_seconds) / 4 if self._image_seconds else spent
        batches = round(CHUNK_SECONDS / max(self._image_seconds, 1e-9) / self._batch_size)
        self.images = self._batch_size * max(1, min(batches, self._most_batches))
