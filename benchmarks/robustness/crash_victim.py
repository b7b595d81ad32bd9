"""The scan that `crash` kills: as the command runs it, but for networks, with reads counted in a file."""

import os
import signal
import sys
from typing import Any

from gbad_batch.engine.errors import GbadError
from gbad_batch.engine.results import session
from gbad_batch.engine.scan import Scan
from gbad_batch.engine.settings import ScanSettings

from ..stand_ins import open_pixel_stages

PART_SECONDS = 1.0  # shorter than a user's, so that kills fall on many parts
THREADS = 2  # of each worker


def main(archive: str, out: str, workers: str, step: str) -> int:
    """Scan; end by SIGKILL behind a step of the finish. Returns the command's exit code."""
    session.PART_SECONDS = PART_SECONDS
    if step != "-":
        _die_behind(int(step))
    count = int(workers)
    settings = ScanSettings(sources=(archive,), out=out, workers=count, threads=THREADS * count)
    try:
        return Scan(settings, open_pixel_stages).run().exit_code
    except GbadError as error:
        print(error, file=sys.stderr)
        return error.exit_code


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
