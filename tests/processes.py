"""What the system tells of other processes."""

import os
from contextlib import suppress
from pathlib import Path

from gbad_batch.engine.results.in_flight import PREFIX, in_flight

# How long a test waits for what must happen: only a hang takes longer, also on a loaded machine
PATIENCE_S = 600


def children(pid: int) -> list[int]:
    """Process ids of those that any thread of a process has started, and that are not yet forgotten."""
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(FileNotFoundError, ProcessLookupError):  # the thread has ended since it was named
            found += map(int, task.read_text().split())
    return found


def runs(pid: int) -> bool:
    """Tell whether a process is neither gone nor dead, which one is that nobody has waited for."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def decoding(out: Path) -> list[int]:
    """Start, in monotonic ns, of each image that the workers of a scan into `out` have in their decoders."""
    files = Path(f"{out}.parts").glob(f"{PREFIX}*")
    return [image.started for path in files for image in in_flight(path)]


def cpu_seconds(pid: int) -> float:
    """CPU seconds of a process so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
