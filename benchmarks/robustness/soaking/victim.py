"""The command that is disturbed: `gbad-batch`, with parts of a fraction of a second, and deaths on demand."""

import os
import signal
import sys
from typing import Any

from gbad_batch.engine.commands.cli import main
from gbad_batch.engine.results import session

PART_SECONDS = 0.05  # so that a scan of a second has many parts
STEP = "GBAD_SOAK_STEP"  # environment: the step of the finish behind which the scan kills itself


def die_behind(last: int) -> None:
    """Have a scan of this process kill itself behind a step of its finish."""
    steps = session.Session.finish_steps

    def finish(self: session.Session) -> Any:
        for number, _ in enumerate(steps(self)):
            if number == last:
                os.kill(os.getpid(), signal.SIGKILL)
        return self.finished

    session.Session.finish = finish  # type: ignore[method-assign]


if __name__ == "__main__":
    session.PART_SECONDS = PART_SECONDS
    if STEP in os.environ:
        die_behind(int(os.environ[STEP]))
    sys.exit(main())
