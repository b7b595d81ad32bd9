"""SIGKILL at random moments: of the coordinator, of a worker, of all, and behind steps of the finish."""

import random
import time

from .commands import Running, children, family, kill
from .place import ALL_ROWS, Place
from .tally import Tally
from .victim import STEP

RUNS = (3, 6)  # of one scan, that are killed
STEPS = 4  # of the finish
WORKER_KILLS = 4  # in one run


def kills(place: Place, seed: int) -> Tally:
    """Kill one scan several times, then let it end."""
    luck, tally = random.Random(seed), Tally()
    out = place.scratch / f"kills-{seed}.parquet"
    for _ in range(luck.randint(*RUNS)):
        if out.exists() and not out.with_name(out.name + ".parts").exists():
            break
        victim = luck.choice(("coordinator", "worker", "worker", "all", "step"))
        if victim == "step":
            running = Running(place.words(place.archive, out), {STEP: str(luck.randrange(STEPS))})
        else:
            running = Running(place.words(place.archive, out))
            _kill(running, victim, luck, place, tally)
        ended = running.ended()
        if ended.code == -9:
            tally.counts["scans"] += 1
            tally.counts["kills"] += victim == "step"
        elif not (ended.code == 2 and out.exists()):  # 2: it was done, and has been tidied up
            ended.judge(tally, codes=(0, 1, ALL_ROWS), step="kills", seed=seed)
    place.finish(out, tally, step="kills", seed=seed)
    return tally


def _kill(running: Running, victim: str, luck: random.Random, place: Place, tally: Tally) -> None:
    """Wait for a random moment, and kill."""
    until = time.monotonic() + place.seconds * luck.uniform(0.1, 1.1)
    for _ in range(WORKER_KILLS if victim == "worker" else 1):
        while time.monotonic() < until and not running.poll():
            time.sleep(0.005)
        if running.poll():
            return
        if victim == "coordinator":
            tally.counts["kills"] += kill([running.pid])
        elif victim == "all":
            pids = family(running.pid)
            luck.shuffle(pids)
            tally.counts["kills"] += kill(pids)
        elif pids := children(running.pid):
            tally.counts["kills"] += kill([luck.choice(pids)])
        until = time.monotonic() + place.seconds * luck.uniform(0.05, 0.8)
