"""A call of write, fsync, rename or open that fails, wherever in a scan; then the same command again."""

import errno
import json
import random
from pathlib import Path

from gbad_batch.engine.system.durable import write_whole

from .commands import Running
from .place import ALL_ROWS, Place
from .shim import KINDS, Fault, Shim
from .tally import Tally

RUNS = 6  # of one scan, each with a fault, before one without
ERRORS = (errno.EIO, errno.ENOSPC, 0)  # 0: a short write
EVERY = (0, 0, 1, 23)  # once, for good, or again and again


def faults(place: Place, seed: int) -> Tally:
    """Run one scan with a fault in each run, until one run is left alone; each call has its turn."""
    tally, luck = Tally(), random.Random(seed)
    out = place.scratch / f"faults-{seed}.parquet"
    with Shim(place.scratch / f"shim-{seed}", place.root) as shim:
        calls = _calls(place, shim)
        for run in range(RUNS):
            if out.exists():
                break
            turn = seed * RUNS + run
            kind = KINDS[turn % len(KINDS)]
            # a run that resumes makes fewer calls, and one more than there are stands for the end
            reach = (calls[kind] + 1) if run == 0 else max(4, calls[kind] // 4)
            nth = 1 + turn // len(KINDS) % reach
            error = luck.choice(ERRORS if kind == "write" else ERRORS[:2])
            every = luck.choice(EVERY)
            shim.arm(Fault(kind, nth, error, every))
            ended = Running(place.words(place.archive, out), shim.environment).ended()
            fired = min(shim.fired, 1) if every == 1 else shim.fired  # for good is one fault
            tally.counts["faults"] += fired
            tally.counts[f"faults of {kind}"] += fired
            ended.judge(tally, codes=(1, 2, ALL_ROWS), step="faults", seed=seed)
    place.finish(out, tally, step="faults", seed=seed)
    return tally


def _calls(place: Place, shim: Shim) -> dict[str, int]:
    """Count the calls of an undisturbed scan, by kind; kept in a file."""
    kept, out = place.root / "calls.json", place.scratch / f"counted-{id(shim)}.parquet"
    if not kept.exists():
        Running(place.words(place.archive, out), shim.environment).ended()
        write_whole(kept, json.dumps(shim.calls).encode())
    return json.loads(Path(kept).read_bytes())
