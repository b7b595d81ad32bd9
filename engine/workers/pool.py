"""The coordinator of the workers: it deals chunks, restores their order and replaces dead workers.

A chunk goes to the worker with the fewest chunks. A worker that is killed, crashes in a decoder, takes too
long for an image or loses its GPU is replaced. Its chunks are done again; images that were in its decoders
are suspects then, and decoded in a process of their own.
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
from ..results.in_flight import Pauses, keep_suspects
from ..settings import ScanSettings
from ..stages import OpenStages, Setup
from .chunk import Chunk, ChunkSize, FinishedChunk
from .feed import Feed
from .launcher import Launcher, LocalLauncher, WorkerHandle
from .worker import Begin

log = logging.getLogger(__name__)

TICK_S = 0.25
AHEAD_ROWS = 32_768  # dealt or done, but not yet yielded in order
MOST_DEATHS = 30  # of workers that held the same chunk
MOST_STARTS = 3  # of workers that die before they are ready
MOST_LOSSES = 3  # of GPUs in a scan; if there are more, no image is to blame
STOPPED = "stopped on request; run the same command to resume"


@dataclass
class _Worker:
    """One worker process, and the chunks that it was dealt."""

    handle: WorkerHandle
    number: int  # index of its GPU, or of its share of the cores; a replacement has the same
    ready: bool = False
    late: bool = False  # killed because an image took too long
    chunks: dict[int, Chunk] = field(default_factory=dict)


class Pool:
    """Worker processes of one scan; a context manager that ends all of them.

    Entering starts the first worker, which decides what `auto` means on this machine. Raises Refused if the
    model, the engine or the device is unavailable.
    """

    def __init__(self, settings: ScanSettings, open_stages: OpenStages, stopped: Event):
        self._settings = settings
        self._launcher = _launcher(settings, open_stages)
        self._stopped = stopped
        self._workers: list[_Worker] = []
        self._begin: Begin | None = None
        self._suspects: set[bytes] = set()
        self._redo: deque[Chunk] = deque()  # chunks of workers that died
        self._done: dict[int, FinishedChunk] = {}
        self._deaths: dict[int, int] = {}  # by chunk
        self._unready_deaths = self._losses = 0
        self._dealt = self._handed_out = self._rows_ahead = 0
        self._looked = time.monotonic_ns()
        self._pauses = Pauses()

    @property
    def setup(self) -> Setup:
        """Model, engine and plan that the first worker opened."""
        return self._setup

    def __enter__(self) -> Self:
        try:
            worker = self._started(0, self._settings)
            import_module("pyarrow.parquet")  # which takes a while, as the worker does
            while not wait([worker.handle.connection], TICK_S):
                self._check_stopped()
            self._setup = self._launcher.complete(self._first_setup(worker))
        except BaseException:
            self.__exit__()
            raise
        setup = self._setup
        self._size = ChunkSize(setup.plan.batch_size, setup.input_size, on_gpu=bool(setup.devices))
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._end_workers()
        self._launcher.close()
        self._stopped.clear()  # the next run begins anew

    def process(
        self, feed: Feed, folder: Path, suspects: frozenset[bytes] = frozenset()
    ) -> Iterator[FinishedChunk]:
        """Process what the feed lists; yields finished chunks in its order.

        `folder` is for the workers' files of images in decoders; `suspects` are the keys of images that were
        in decoders when an earlier run died. Raises Stopped, and any error of the listing or of a worker.
        """
        for line in self._setup.introduction():
            log.info("%s", line)
        contents = folder if self._settings.by_content else None
        self._begin = Begin(folder, self._settings.features is not None, contents)
        self._suspects = set(suspects)
        self._make_ready(self._workers[0])
        for number in range(1, self._setup.plan.workers):
            self._started(number, self._launcher.settings_of(number, self._settings, self._setup))
        while True:
            self._deal(feed)
            yield from self._in_order()
            if not self._done and self._handed_out == self._dealt and not self._redo and feed.is_empty:
                self._end_workers()  # one that is late to begin would make its file in a folder that is gone
                return
            self._wait(feed)
            self._look_for_late_images()
            self._check_stopped()

    # Dealing

    def _deal(self, feed: Feed) -> None:
        """Send chunks to the ready workers until they are busy or nothing is listed."""
        most = 2 * self._setup.plan.threads
        ready = [worker for worker in self._workers if worker.ready]
        while ready and self._rows_ahead < AHEAD_ROWS:
            worker = min(ready, key=lambda w: len(w.chunks))
            if len(worker.chunks) >= most:
                return
            chunk = self._next_chunk(feed, at_once=self._is_idle(worker))
            if chunk is None:
                return
            worker.chunks[chunk.number] = chunk
            worker.handle.send(chunk)

    def _next_chunk(self, feed: Feed, at_once: bool) -> Chunk | None:
        if self._redo:
            chunk = self._redo.popleft()
        else:
            candidates = feed.take(self._size.images, self._size.bytes, at_once)
            if not candidates:
                return None
            chunk = Chunk(self._dealt, candidates)
            self._dealt += 1
            self._rows_ahead += len(candidates)
        if self._suspects:
            chunk.suspects = frozenset(c.key for c in chunk.candidates if c.key in self._suspects)
        return chunk

    def _in_order(self) -> Iterator[FinishedChunk]:
        while chunk := self._done.pop(self._handed_out, None):
            self._handed_out += 1
            self._rows_ahead -= chunk.rows
            yield chunk

    # Listening

    def _wait(self, feed: Feed) -> None:
        """Wait at most a tick for messages of workers or new candidates, and handle the messages."""
        connections: dict[Any, _Worker] = {worker.handle.connection: worker for worker in self._workers}
        handles: list[Any] = [*connections]
        if any(self._is_idle(worker) for worker in self._workers):
            feed.await_more()
            handles.append(feed)
        at_once = feed in handles and feed.has_some and self._rows_ahead < AHEAD_ROWS
        for handle in wait(handles, 0 if at_once else TICK_S):
            if handle is not feed:
                self._handle_message(connections[handle])

    def _is_idle(self, worker: _Worker) -> bool:
        """Tell whether a thread of the worker is idle."""
        return worker.ready and len(worker.chunks) < self._setup.plan.threads

    def _handle_message(self, worker: _Worker) -> None:
        try:
            message = worker.handle.receive()
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
                log.debug("worker %d: %s", worker.number, message)
                self._deaths.pop(message.number, None)
                self._done[message.number] = message
                self._size.learn(message)
            elif isinstance(message, Setup):
                self._welcome(worker, message)

    def _welcome(self, worker: _Worker, setup: Setup) -> None:
        """Let another worker begin; raises Stopped if it opened another engine than the first."""
        if (setup.engine_key, setup.point) != (self._setup.engine_key, self._setup.point):
            raise Stopped(
                "two worker processes opened different engines or operating points, as when the model or the "
                "file of --point is changed during a scan; "
                "finished rows are kept: run the same command again"
            )
        self._unready_deaths = 0
        self._make_ready(worker)

    def _make_ready(self, worker: _Worker) -> None:
        assert self._begin is not None
        worker.handle.begin(self._begin)
        worker.ready = True
        log.debug("worker %d (%s) is ready", worker.number, worker.handle.name)

    def _first_setup(self, worker: _Worker) -> Setup:
        while True:
            try:
                message = worker.handle.receive()
            except EOFError:
                cause = worker.handle.end()
                raise Stopped(
                    f"the first worker process was ended by {cause} while it opened the model: check the "
                    "machine's memory, and run the command again"
                ) from None
            if isinstance(message, Setup):
                return message

    def _started(self, number: int, settings: ScanSettings) -> _Worker:
        worker = _Worker(self._launcher.launch(settings), number)
        self._workers.append(worker)
        return worker

    def _end_workers(self) -> None:
        for worker in self._workers:
            worker.handle.kill()
        for worker in self._workers:
            worker.handle.end()
        self._workers = []

    # Faults

    def _replace(self, worker: _Worker, lost: DeviceLost | None) -> None:
        """Start another worker in place of a dead one, and put its chunks back."""
        if lost:
            worker.handle.kill()
        ended = worker.handle.end()
        cause = lost.what if lost else ended
        self._workers.remove(worker)
        self._count_death(worker, cause)
        keys = worker.handle.take_suspects([*worker.chunks.values()])
        self._warn(worker, cause, len(keys))
        if keys:
            self._suspects.update(keys)
            self._keep_suspects()
        self._redo.extend(worker.chunks[number] for number in sorted(worker.chunks))
        self._redo = deque(sorted(self._redo, key=lambda chunk: chunk.number))
        settings = self._launcher.settings_of(worker.number, self._settings, self._setup)
        self._started(worker.number, settings)

    def _count_death(self, worker: _Worker, cause: str) -> None:
        """Count the death of a worker; raises Stopped if workers keep dying."""
        if not worker.ready:
            self._unready_deaths += 1
        for number in worker.chunks:
            self._deaths[number] = self._deaths.get(number, 0) + 1
        if self._unready_deaths > MOST_STARTS or max(self._deaths.values(), default=0) > MOST_DEATHS:
            raise Stopped(
                f"worker processes are ended by {cause} again and again, which the system does when memory "
                "is short; finished rows are kept: free memory or give fewer --threads, and run the same "
                "command again"
            )

    def _warn(self, worker: _Worker, cause: str, suspects: int) -> None:
        if worker.late:
            cause = f"an image took over {self._settings.decode_timeout:g} s of CPU time"
        else:
            cause = f"a worker process was ended by {cause}" if "SIG" in cause or "exit" in cause else cause
        apart = f"; the {suspects} images that were in decoders are decoded apart" if suspects else ""
        log.warning("%s; another one takes over its images%s", cause, apart)

    def _keep_suspects(self) -> None:
        assert self._begin is not None
        try:
            keep_suspects(self._begin.in_flight, self._suspects)
        except OSError:
            return  # this run knows them; a later one will learn them by a crash of its own

    def _look_for_late_images(self) -> None:
        """Kill workers in which an image takes more time than --decode-timeout allows."""
        now = time.monotonic_ns()
        if now - self._looked < TICK_S * 1e9:
            return
        self._looked, resumed = now, self._pauses.look()
        for worker in self._workers:
            if not worker.late and worker.handle.is_late(resumed):
                worker.late = True
                worker.handle.kill()

    def _check_stopped(self) -> None:
        if self._stopped.is_set():
            raise Stopped(STOPPED)


def _launcher(settings: ScanSettings, open_stages: OpenStages) -> Launcher:
    """Choose where the workers run."""
    if settings.ray is None:
        return LocalLauncher(open_stages)
    from .on_ray import RayLauncher

    return RayLauncher(settings, open_stages)
