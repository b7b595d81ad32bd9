"""How long each step of a training has taken, over all processes that it was killed and resumed in."""

import json
import time
from collections.abc import Mapping
from pathlib import Path

from ..system.durable import write_whole
from ..system.progress import ProgressCallback

STORED_EVERY_S = 30.0  # what a kill loses


class Stopwatch:
    """A progress callback that adds up the seconds of each phase in a file, and passes on what it is told."""

    def __init__(self, file: Path, progress: ProgressCallback):
        self._file, self._progress = file, progress
        self._before = self._stored = time.monotonic()
        self.seconds: dict[str, float] = json.loads(file.read_text()) if file.exists() else {}

    def __call__(self, phase: str, done: int, total: int, figures: Mapping[str, float]) -> None:
        """Add the time since the call before to a phase."""
        now = time.monotonic()
        self.seconds[phase] = self.seconds.get(phase, 0.0) + now - self._before
        self._before = now
        if done == total or now - self._stored > STORED_EVERY_S:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            write_whole(self._file, json.dumps(self.seconds).encode())
            self._stored = now
        self._progress(phase, done, total, figures)
