"""The scan that `crash` kills: the command's own code, with its reads counted in a file that survives."""

import mmap
import os
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from gbad_batch.engine import sources
from gbad_batch.engine.commands.guarded import guarded_scan
from gbad_batch.engine.results import session
from gbad_batch.engine.settings import ScanSettings

PART_SECONDS = 1.0  # shorter than a user's, so that kills fall on many parts


def main(archive: str, out: str, counter: str, step: str) -> int:
    """Scan as the command does, counting reads; end by SIGKILL behind a step of the finish."""
    session.PART_SECONDS = PART_SECONDS
    if counter != "-":
        _count_reads(Path(counter))
    if step != "-":
        _die_behind(int(step))
    settings = ScanSettings(sources=(archive,), out=Path(out))
    return guarded_scan(settings, quiet=True, as_json=False)


def _count_reads(counter: Path) -> None:
    counter.write_bytes(bytes(mmap.PAGESIZE))
    with counter.open("r+b") as file:
        memory = mmap.mmap(file.fileno(), mmap.PAGESIZE)
    read, lock = sources.Candidate.read, threading.Lock()

    def counted(self: sources.Candidate, max_bytes: int) -> bytes:
        with lock:
            memory[:8] = (int.from_bytes(memory[:8], "little") + 1).to_bytes(8, "little")
        return read(self, max_bytes)

    sources.Candidate.read = counted  # type: ignore[method-assign]


def _die_behind(last: int) -> None:
    steps = session.Session.finish_steps

    def finish(self: session.Session) -> Any:
        for number, _ in enumerate(steps(self)):
            if number == last:
                os.kill(os.getpid(), signal.SIGKILL)
        return self.finished

    session.Session.finish = finish  # type: ignore[method-assign]


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
