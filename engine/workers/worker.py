"""A worker process: it takes chunks from bytes to columns, on some cores or on one GPU."""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Protocol

from ..decode import native_lines
from ..errors import DeviceLost, Stopped
from ..results.in_flight import Slots, open_slots
from ..results.schema import results_schema, to_batch
from ..row import Row
from ..runtime import Outputs
from ..settings import ScanSettings
from ..stages import Batch, OpenStages, Setup, Stages
from ..system.child import Failed
from ..system.objects import retries
from .chunk import Chunk, Clock, FinishedChunk
from .contents import Contents


class Channel(Protocol):
    """A worker's end of the connection to its coordinator; any thread may send."""

    def send(self, message: object) -> None:
        """Send a message."""
        ...

    def receive(self) -> Any:
        """Wait for a message; raises EOFError once the coordinator has closed the connection."""
        ...


@dataclass(frozen=True)
class Begin:
    """Message to a worker once its stages are open and the output is known."""

    in_flight: Path  # the worker's file of images in decoders; first, the folder for these files
    keep_features: bool
    contents: Path | None = None  # where what is known of bytes may be found, if these decide

    def with_file(self, in_flight: Path) -> "Begin":
        """Return the message for a worker that has this file."""
        return replace(self, in_flight=in_flight)


def serve(channel: Channel, open_stages: OpenStages, settings: ScanSettings) -> None:
    """Open the stages, report them, and process chunks until the coordinator closes the channel."""
    with open_stages(settings) as stages:
        if not stages.setup.devices:  # on a GPU, readers decode what writes lines
            native_lines.catch()
        channel.send(stages.setup)
        begin = channel.receive()
        contents = Contents(begin.contents) if begin.contents else None
        worker = Worker(stages, begin.keep_features, contents)
        chunks: SimpleQueue[Chunk] = SimpleQueue()
        for slots in _slots(begin.in_flight, stages.setup):
            threading.Thread(target=_work, args=(channel, worker, chunks, slots), daemon=True).start()
        while True:
            chunk = channel.receive()
            stages.ahead(chunk.candidates)
            chunks.put(chunk)


def _slots(path: Path, setup: Setup) -> Sequence[Slots]:
    """Open the slots of each thread: one image on a CPU, a whole batch on a GPU."""
    images = setup.plan.batch_size if setup.devices else 1
    return open_slots(path, [images] * setup.plan.threads)


def _work(channel: Channel, worker: "Worker", chunks: "SimpleQueue[Chunk]", slots: Slots) -> None:
    """Process one chunk after the other; the main function of a thread."""
    slots.belong_to_this_thread()
    try:
        while True:
            channel.send(worker(chunks.get(), slots))
    except MemoryError:
        channel.send(
            Failed(
                Stopped(
                    "the machine is out of memory; finished rows are kept: free some or give fewer "
                    "--threads, and run the same command again"
                )
            )
        )
    except BaseException as error:  # noqa: BLE001 - the coordinator reports it, whatever it is
        if not isinstance(error, DeviceLost):
            slots.end()  # the images are not to blame
        channel.send(Failed(error))


class Worker:
    """Runs chunks through open stages; safe to call from as many threads as the plan has."""

    def __init__(self, stages: Stages, keep_features: bool = False, contents: Contents | None = None):
        self._stages = stages
        self._keep_features = keep_features
        self._contents = contents
        self._schema = results_schema()
        self._cpu = time.process_time()

    def __call__(self, chunk: Chunk, slots: Slots) -> FinishedChunk:
        """Read, decode and score a chunk; returns its columns. Raises Stopped, DeviceLost, MemoryError."""
        clock, batch = Clock(), Batch(chunk.candidates, chunk.suspects)
        self._stages.read(batch)
        recognized = self._contents.recognize(batch) if self._contents else None
        clock.lap("read")
        self._stages.decode(batch, slots)
        batch.drop_contents()
        clock.lap("decode")
        outputs = self._stages.score(batch.images, batch.pixels)
        if self._contents and recognized:
            self._contents.share(recognized)
        clock.lap("score")
        finished = self._columns(chunk.number, batch.rows, outputs)
        clock.lap("columns")
        return replace(
            finished,
            recognized=recognized.count if recognized else 0,
            seconds=clock.seconds,
            cpu_seconds=clock.cpu_seconds,
            process_seconds=self._since_last_chunk(),
            retries=retries.taken(),
        )

    def _columns(self, number: int, rows: list[Row], outputs: Outputs | None) -> FinishedChunk:
        scored = [row for row in rows if row.status == "ok"]
        columns = to_batch(rows, self._schema)  # which may fail a row
        features = None
        if outputs and self._keep_features:
            kept = [row.status == "ok" for row in scored]
            features = outputs.x[kept], outputs.logits[kept]
        return FinishedChunk(
            number,
            columns.serialize().to_pybytes(),
            rows=len(rows),
            failed=sum(row.status != "ok" for row in rows),
            alarms=sum(row.anomalous is True for row in rows),
            features=features,
        )

    def _since_last_chunk(self) -> float:
        before, self._cpu = self._cpu, time.process_time()
        return self._cpu - before
