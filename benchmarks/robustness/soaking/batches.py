"""Judges mutants by the thousand in processes of their own, which may crash or hang without harm.

`python -m benchmarks.robustness.soaking.batches KIND SEED FIRST LAST FOLDER` is such a process: it writes its
tally to FOLDER/tally.json, and the number of the mutant that it is at to FOLDER/at.
"""

import json
import mmap
import resource
import struct
import sys
import time
from importlib import import_module
from pathlib import Path
from typing import Any

from .commands import PATIENCE_S, Patience, Running, family, kill
from .place import Place
from .tally import Tally

JUDGES = {"images": "ImageMutants", "tars": "TarMutants", "states": "StateMutants"}
REPEATED = {  # findings that a mutant alone shows again, by the kind of mutant
    "unwritten": "images",
    "misread": "images",
    "tar_members_lost": "tars",
    "tar_members_behind_a_fault": "tars",
}
SIZES = {"images": 2000, "tars": 400, "states": 400}  # mutants a process
MUTANT_S = 60.0  # that one mutant may take, on a machine under load
MEMORY = 8 << 30  # bytes of addresses, so that none takes the machine's


def batch(kind: str, place: Place, seed: int, numbers: range | None = None) -> Tally:
    """Judge the mutants of one seed; after a crash or a hang go on with the next one."""
    numbers = numbers or range(SIZES[kind])
    tally, at, last = Tally(), numbers.start, numbers.stop
    folder = place.scratch / f"{kind}-{seed}"
    while at < last:
        folder.mkdir(exist_ok=True)
        position = folder / "at"
        position.write_bytes(struct.pack("<q", at))
        (folder / "tally.json").unlink(missing_ok=True)
        words = [sys.executable, "-m", f"{__package__}.batches", kind, seed, at, last, folder]
        running = Running(list(map(str, words)))
        hung = _hangs(running, position)
        ended = running.ended()
        tally.peak_mb = max(tally.peak_mb, ended.peak_mb)
        if (folder / "tally.json").exists():
            tally.add(Tally.from_json(json.loads((folder / "tally.json").read_bytes())))
        if ended.code == 0:
            break
        reached = _at(position)
        kind_of_fault = "hangs" if hung else "crashes" if ended.code < 0 else "unhandled"
        what = f"{kind} mutant ended its process with {ended.code}: {ended.said[-400:]}"
        tally.find(kind_of_fault, what, seed=seed, number=reached)
        at = reached + 1
    return tally


def judge_again(kept: Tally, place: Place) -> None:
    """Judge the mutants of kept findings anew: what is found now stands in place of what was."""
    for finding in list(kept.findings):
        if (kind := REPEATED.get(finding["kind"])) is None:
            continue
        number = finding["number"]
        now = batch(kind, place, finding["seed"], range(number, number + 1))
        kept.findings.remove(finding)
        kept.counts[finding["kind"]] -= 1
        kept.counts["judged again"] += 1
        for found in now.findings:
            kept.find(**found)


def _at(position: Path) -> int:
    """Read where the process is; it may be about to write it for the first time."""
    return int.from_bytes(position.read_bytes(), "little")


def _hangs(running: Running, position: Path) -> bool:
    """Wait until the process ends; kill it once it has been at one mutant for too long, and say so."""
    before, waiting = -1, Patience(PATIENCE_S)
    while not running.poll():
        if (now := _at(position)) != before:
            before, waiting = now, Patience(MUTANT_S if before >= 0 else PATIENCE_S)
        elif waiting.over:
            kill(family(running.pid))
            return True
        time.sleep(0.05)
    return False


def main(kind: str, seed: str, first: str, last: str, folder: str) -> None:
    """Judge mutants, and keep the tally after each hundred."""
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    own, tally = Path(folder), Tally()
    own.mkdir(exist_ok=True)
    judge: Any = getattr(import_module(f"{__package__}.{kind}"), JUDGES[kind])(int(seed), own)
    with (own / "at").open("w+b") as file:
        file.write(struct.pack("<q", int(first)))
        file.flush()
        at = mmap.mmap(file.fileno(), 8)
    for number in range(int(first), int(last)):
        at[:] = struct.pack("<q", number)
        judge(number, tally)
        if number % 100 == 99 or number + 1 == int(last):
            (own / "tally.json").write_text(json.dumps(tally.to_json(), indent=1))


if __name__ == "__main__":
    main(*sys.argv[1:])
