"""The coordinator of the workers: deals out chunks, keeps their order, replaces what dies.

A chunk goes to whichever worker has the fewest. A worker that is killed, crashes in a decoder, takes too long
for an image or loses its GPU is replaced, and its chunks are done again; images that were in its decoders
are decoded apart by then.
"""

import logging
import time
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib import import_module
from multiprocessing.connection import wait
from pathlib import Path
from threading import Event
from typing import Any, Self

from ..errors import DeviceLost, Stopped
from ..results.in_flight import PREFIX, in_flight, keep_suspects
from ..settings import ScanSettings
from ..stages import OpenStages, Setup
from ..stages.scorer import resolved_settings
from ..system.child import Child
from .chunk import Chunk, FinishedChunk
from .feed import Feed
from .worker import Begin, serve

log = logging.getLogger(__name__)

TICK_S = 0.25
PAUSE_S = 2.0  # a tick that takes longer: this process did not run
CHUNK_SECONDS = 0.1  # of one thread: what a chunk should take
MOST_IMAGES = 256  # of a chunk on a CPU
AHEAD_ROWS = 32_768  # dealt or done, and not yet handed out in order
MOST_DEATHS = 30  # of workers that had the same chunk
MOST_STARTS = 3  # of a worker that dies before it is ready
MOST_LOSSES = 3  # of GPUs in a scan; where they are lost more often, no image is to blame
STOPPED = "stopped on request; run the same command to go on"


@dataclass
class _Worker:
    """One worker process, and what it was dealt."""

    child: Child
    number: int  # of its place: a GPU, or some cores
    in_flight: Path | None = None
    ready: bool = False
    late: bool = False  # killed, since an image took too long
    chunks: dict[int, Chunk] = field(default_factory=dict)


class Pool:
    """Worker processes of one scan; a context manager that leaves none behind.

    Entering starts the first worker, which resolves what `auto` means here. Raises Refused if the model, the
    engine or the device is unavailable.
    """

    def __init__(self, settings: ScanSettings, open_stages: OpenStages, stopped: Event):
        self._settings = settings
        self._open_stages = open_stages
        self._stopped = stopped
        self._workers: list[_Worker] = []
        self._begin: Begin | None = None
        self._suspects: set[bytes] = set()
        self._again: deque[Chunk] = deque()  # chunks of workers that died
        self._done: dict[int, FinishedChunk] = {}
        self._deaths: dict[int, int] = {}  # by chunk
        self._unready_deaths = self._losses = 0
        self._dealt = self._handed_out = self._rows_ahead = 0
        self._files = 0
        self._image_seconds = 0.0  # of one thread
        self._looked = self._resumed = time.monotonic_ns()

    @property
    def setup(self) -> Setup:
        """What the scan runs with."""
        return self._setup

    def __enter__(self) -> Self:
        try:
            worker = self._started(0, self._settings)
            import_module("pyarrow.parquet")  # which takes a while, as the worker does
            while not worker.child.connection.poll(TICK_S):
                self._check_stopped()
            self._setup = self._first_setup(worker)
        except BaseException:
            self.__exit__()
            raise
        self._size = self._setup.plan.batch_size
        return self

    def __exit__(self, *exc_info: object) -> None:
        for worker in self._workers:
            worker.child.kill()
        for worker in self._workers:
            worker.child.end()
        self._workers = []

    def finished(
        self, feed: Feed, folder: Path, suspects: frozenset[bytes] = frozenset(), features: bool = False
    ) -> Iterator[FinishedChunk]:
        """Do what the feed lists; yields finished chunks in its order.

        `folder` takes the files of images in decoders; `suspects` are keys of images that an earlier scan
        died with. Raises Stopped, or whatever ends the listing or a worker.
        """
        self._begin = Begin(folder, features)
        self._suspects = set(suspects)
        self._make_ready(self._workers[0])
        for number in range(1, self._setup.plan.workers):
            self._started(number, self._settings_of(number))
        while True:
            self._deal(feed)
            yield from self._in_order()
            if not self._done and self._handed_out == self._dealt and not self._again and feed.is_empty:
                return
            self._wait(feed)
            self._look_for_late_images()
            self._check_stopped()

    # Dealing

    def _deal(self, feed: Feed) -> None:
        """Give each worker that has room the next chunk."""
        most = 2 * self._setup.plan.threads
        ready = [worker for worker in self._workers if worker.ready]
        while ready and self._rows_ahead < AHEAD_ROWS:
            worker = min(ready, key=lambda each: len(each.chunks))
            if len(worker.chunks) >= most:
                return
            chunk = self._next_chunk(feed, at_once=self._is_idle(worker))
            if chunk is None:
                return
            worker.chunks[chunk.number] = chunk
            worker.child.send(chunk)

    def _next_chunk(self, feed: Feed, at_once: bool) -> Chunk | None:
        if self._again:
            chunk = self._again.popleft()
        else:
            candidates = feed.take(self._size, at_once)
            if not candidates:
                return None
            chunk = Chunk(self._dealt, candidates)
            self._dealt += 1
            self._rows_ahead += len(candidates)
        if self._suspects:
            chunk.suspects = frozenset(each.key for each in chunk.candidates if each.key in self._suspects)
        return chunk

    def _in_order(self) -> Iterator[FinishedChunk]:
        while chunk := self._done.pop(self._handed_out, None):
            self._handed_out += 1
            self._rows_ahead -= chunk.rows
            yield chunk

    def _learn_size(self, chunk: FinishedChunk) -> None:
        """Choose chunks that take one thread about CHUNK_SECONDS, in whole batches; a batch on a GPU."""
        if self._setup.devices:
            return
        spent = sum(chunk.seconds.values()) / chunk.rows
        self._image_seconds += (spent - self._image_seconds) / 4 if self._image_seconds else spent
        batch = self._setup.plan.batch_size
        batches = round(CHUNK_SECONDS / max(self._image_seconds, 1e-9) / batch)
        self._size = max(batch, min(batches * batch, MOST_IMAGES // batch * batch))

    # Listening

    def _wait(self, feed: Feed) -> None:
        """Wait a tick at most for news of the workers and of the listing."""
        connections: dict[Any, _Worker] = {worker.child.connection: worker for worker in self._workers}
        heard: list[Any] = [*connections]
        if any(self._is_idle(worker) for worker in self._workers):
            feed.await_more()
            heard.append(feed)
        at_once = feed in heard and feed.has_some and self._rows_ahead < AHEAD_ROWS
        for each in wait(heard, 0 if at_once else TICK_S):
            if each is not feed:
                self._hear(connections[each])

    def _is_idle(self, worker: _Worker) -> bool:
        """Tell whether a thread of the worker has nothing to do."""
        return worker.ready and len(worker.chunks) < self._setup.plan.threads

    def _hear(self, worker: _Worker) -> None:
        try:
            message = worker.child.receive()
        except EOFError:
            self._replace(worker, None)
        except DeviceLost as lost:
            self._losses += 1
            if self._losses > MOST_LOSSES:
                raise
            self._replace(worker, lost)
        else:
            if isinstance(message, FinishedChunk):
                del worker.chunks[message.number]
                self._deaths.pop(message.number, None)
                self._done[message.number] = message
                self._learn_size(message)
            elif isinstance(message, Setup):
                self._welcome(worker, message)

    def _welcome(self, worker: _Worker, setup: Setup) -> None:
        """Let a further worker begin; one that would score otherwise is a fault of the machine."""
        if (setup.engine_key, setup.point) != (self._setup.engine_key, self._setup.point):
            raise Stopped(
                "two worker processes came to different engines, as when the model changes while it is "
                "scanned with; finished rows are kept: run the same command again"
            )
        self._unready_deaths = 0
        self._make_ready(worker)

    def _make_ready(self, worker: _Worker) -> None:
        assert self._begin is not None
        self._files += 1
        worker.in_flight = self._begin.in_flight / f"{PREFIX}{self._files}"
        worker.child.send(Begin(worker.in_flight, self._begin.keep_features))
        worker.ready = True

    def _first_setup(self, worker: _Worker) -> Setup:
        while True:
            try:
                message = worker.child.receive()
            except EOFError:
                cause = worker.child.end()
                raise Stopped(
                    f"the worker process was ended by {cause} while it opened the model; run the command "
                    "again, with more memory where that is short"
                ) from None
            if isinstance(message, Setup):
                return message

    def _started(self, number: int, settings: ScanSettings) -> _Worker:
        worker = _Worker(Child(serve, self._open_stages, settings), number)
        self._workers.append(worker)
        return worker

    def _settings_of(self, number: int) -> ScanSettings:
        devices = self._setup.devices
        device = devices[number] if devices else "cpu"
        return resolved_settings(self._settings, self._setup, device)

    # Faults

    def _replace(self, worker: _Worker, lost: DeviceLost | None) -> None:
        """Start another worker in place of a dead one, and have its chunks done again."""
        cause = lost.what if lost else worker.child.end()
        if lost:
            worker.child.kill()
            worker.child.end()
        self._workers.remove(worker)
        self._count_death(worker, cause)
        keys = [key for key, _ in in_flight(worker.in_flight)] if worker.in_flight else []
        self._tell(worker, cause, len(keys))
        if keys:
            self._suspects.update(keys)
            self._keep_suspects()
        if worker.in_flight:
            worker.in_flight.unlink(missing_ok=True)
        self._again.extend(worker.chunks[number] for number in sorted(worker.chunks))
        self._again = deque(sorted(self._again, key=lambda chunk: chunk.number))
        self._started(worker.number, self._settings_of(worker.number))

    def _count_death(self, worker: _Worker, cause: str) -> None:
        """Raise Stopped where replacing goes on and on."""
        if not worker.ready:
            self._unready_deaths += 1
        for number in worker.chunks:
            self._deaths[number] = self._deaths.get(number, 0) + 1
        if self._unready_deaths > MOST_STARTS or max(self._deaths.values(), default=0) > MOST_DEATHS:
            raise Stopped(
                f"worker processes are ended by {cause} again and again, as the system does where memory is "
                "short; finished rows are kept: free some, or give fewer --threads, and run the same command "
                "again"
            )

    def _tell(self, worker: _Worker, cause: str, suspects: int) -> None:
        if worker.late:
            cause = f"an image took over {self._settings.decode_timeout:g} s"
        else:
            cause = f"a worker process was ended by {cause}" if "SIG" in cause or "exit" in cause else cause
        apart = f", and the {suspects} images that were in decoders are decoded apart" if suspects else ""
        log.warning("%s; another one does its images%s", cause, apart)

    def _keep_suspects(self) -> None:
        assert self._begin is not None
        try:
            keep_suspects(self._begin.in_flight, self._suspects)
        except OSError:
            return  # this run knows them; a later one finds them by a crash of its own

    def _look_for_late_images(self) -> None:
        """Kill each worker that has had an image in a decoder for longer than the limit."""
        now = time.monotonic_ns()
        if now - self._looked < TICK_S * 1e9:
            return
        if now - self._looked > PAUSE_S * 1e9:
            self._resumed = now  # the whole scan stood still, as after Ctrl-Z: images get their time again
        self._looked = now
        oldest = now - int(self._settings.decode_timeout * 1e9)
        for worker in self._workers:
            if worker.in_flight and not worker.late:
                starts = [started for _, started in in_flight(worker.in_flight)]
                if any(max(started, self._resumed) < oldest for started in starts):
                    worker.late = True
                    worker.child.kill()

    def _check_stopped(self) -> None:
        if self._stopped.is_set():
            raise Stopped(STOPPED)
