"""Where worker processes run: on this machine, or in a Ray cluster."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from ..results.in_flight import PREFIX, LateImages, in_flight
from ..settings import ScanSettings
from ..stages import OpenStages, Setup
from ..stages.scorer import resolved_settings
from ..system.child import Child
from .chunk import Chunk
from .worker import Begin, serve


class WorkerHandle(Protocol):
    """The coordinator's end of one worker process."""

    name: str

    @property
    def connection(self) -> Any:
        """What `multiprocessing.connection.wait` waits for until there is a message."""
        ...

    def send(self, message: object) -> None:
        """Send a message; if the worker is dead, the next `receive` raises EOFError."""
        ...

    def receive(self) -> Any:
        """Wait for a message; raises EOFError if the worker is dead, or the error that ended it."""
        ...

    def begin(self, begin: Begin) -> None:
        """Tell a worker whose stages are open that chunks will follow."""
        ...

    def is_late(self, resumed: int, /) -> bool:
        """Tell whether an image takes too long in it; time before `resumed`, in monotonic ns, is a pause."""
        ...

    def take_suspects(self, chunks: Sequence[Chunk], /) -> list[bytes]:
        """Return the keys of images that a dead worker may have died of, which held these chunks."""
        ...

    def kill(self) -> None:
        """Kill the process."""
        ...

    def end(self) -> str:
        """Wait for the end of the process, killing it if need be; returns what ended it."""
        ...


class Launcher(Protocol):
    """Starts worker processes."""

    def launch(self, settings: ScanSettings) -> WorkerHandle:
        """Start a worker process. Raises Stopped if no process can be started."""
        ...

    def complete(self, setup: Setup) -> Setup:
        """Complete the plan of the first worker with the number of workers."""
        ...

    def settings_of(self, number: int, settings: ScanSettings, setup: Setup, /) -> ScanSettings:
        """Return the settings of a worker: as the first one resolved them, on its own device."""
        ...

    def close(self) -> None:
        """Free what the launcher holds, once its workers have ended."""
        ...


class LocalLauncher:
    """Starts worker processes on this machine."""

    def __init__(self, open_stages: OpenStages):
        self._open_stages = open_stages

    def launch(self, settings: ScanSettings) -> "LocalWorker":
        """Start a worker process."""
        return LocalWorker(self._open_stages, settings)

    def complete(self, setup: Setup) -> Setup:
        """Return the first worker's plan, which is for this machine."""
        return setup

    def settings_of(self, number: int, settings: ScanSettings, setup: Setup, /) -> ScanSettings:
        """Give each worker the GPU of its number, if there are GPUs."""
        return resolved_settings(settings, setup, setup.devices[number] if setup.devices else "cpu")

    def close(self) -> None:
        """Do nothing."""


class LocalWorker:
    """A worker process on this machine, whose file of images in decoders can be read."""

    def __init__(self, open_stages: OpenStages, settings: ScanSettings):
        self._child = Child(serve, open_stages, settings)
        self._late = LateImages(settings.decode_timeout)
        self._in_flight: Path | None = None
        self.name = f"process {self._child.pid}"
        self.connection = self._child.connection
        self.send, self.receive, self.kill = self._child.send, self._child.receive, self._child.kill

    def begin(self, begin: Begin) -> None:
        """Send `begin` with a file of this worker's own for the images in its decoders."""
        self._in_flight = begin.in_flight / f"{PREFIX}{self._child.pid}"
        self.send(begin.with_file(self._in_flight))

    def is_late(self, resumed: int, /) -> bool:
        """Look at the images in its decoders."""
        if self._in_flight is None:
            return False
        return self._late.among(self._child.pid, in_flight(self._in_flight), resumed)

    def take_suspects(self, _chunks: Sequence[Chunk], /) -> list[bytes]:
        """Return the keys of the images that were in its decoders when it died, and remove their file."""
        if self._in_flight is None:
            return []
        keys = [image.key for image in in_flight(self._in_flight)]
        self._in_flight.unlink(missing_ok=True)
        return keys

    def end(self) -> str:
        """Wait for the end of the process; its file stays, for a later run."""
        return self._child.end()
