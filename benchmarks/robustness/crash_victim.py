"""The scan that `crash` kills: as the command runs it, but for networks, with reads counted in a file."""

import sys

from gbad_batch.engine.errors import GbadError
from gbad_batch.engine.results import session
from gbad_batch.engine.scan import Scan
from gbad_batch.engine.settings import ScanSettings

from ..stand_ins import open_pixel_stages
from .soaking.victim import die_behind

PART_SECONDS = 1.0  # shorter than a user's, so that kills fall on many parts
THREADS = 2  # of each worker


def main(archive: str, out: str, workers: str, step: str) -> int:
    """Scan; end by SIGKILL behind a step of the finish. Returns the command's exit code."""
    session.PART_SECONDS = PART_SECONDS
    if step != "-":
        die_behind(int(step))
    count = int(workers)
    settings = ScanSettings(sources=(archive,), out=out, workers=count, threads=THREADS * count)
    try:
        return Scan(settings, open_pixel_stages).run().exit_code
    except GbadError as error:
        print(error, file=sys.stderr)
        return error.exit_code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
