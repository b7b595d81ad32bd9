"""What a machine does to a scan: pauses, bad disks, few descriptors, little memory, jumping clocks."""

import random
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable

from gbad_batch.engine.errors import Refused

from .commands import PATIENCE_S, Running, family, kill
from .place import ALL_ROWS, Place, compare, rows_in
from .shim import Shim
from .tally import Tally

ENDED = (1, 2, ALL_ROWS)  # exit codes: stopped, refused, done
SOCKET = re.compile(r"(?:socket|connect|bind|sendto)\((?:\d+, \{sa_family=)?(\w+)")
DAY = 86_400


def pauses(place: Place, seed: int) -> Tally:
    """Stop and continue the whole scan, or one of its processes, several times."""
    luck, tally, out = random.Random(seed), Tally(), place.scratch / f"pauses-{seed}.parquet"
    running = Running(place.words(place.archive, out))
    while not running.poll():
        time.sleep(luck.uniform(0.02, 0.5))
        pids = family(running.pid)
        chosen = pids if luck.random() < 0.6 else [luck.choice(pids)]
        tally.counts["pauses"] += kill(chosen, signal.SIGSTOP) > 0
        time.sleep(luck.uniform(0.01, 0.3))
        kill(chosen, signal.SIGCONT)
    running.ended().judge(tally, codes=(ALL_ROWS,), step="pauses", seed=seed)
    place.finish(out, tally, step="pauses", seed=seed)
    return tally


def full_disks(place: Place, seed: int) -> Tally:
    """Let a tmpfs fill, then enlarge it and run the same command again."""
    kilobytes = random.Random(seed).randint(8, 260)
    script = (
        'mount -t tmpfs -o size=SIZEk none "$D"; "$@"; echo "code $?" >&2; mount -o remount,size=64m "$D"'
    )
    return _mounted(place, seed, "full_disks", script.replace("SIZE", str(kilobytes)))


def read_only_disks(place: Place, seed: int) -> Tally:
    """Remount the output's file system read-only during a scan, then writable, and run it again."""
    after = random.Random(seed).uniform(0.3, 1.1) * place.seconds
    script = (
        'mount -t tmpfs none "$D"; "$@" & P=$!; sleep SECONDS; '
        'while kill -0 $P 2>/dev/null && ! mount -o remount,ro "$D" 2>/dev/null; do sleep 0.003; done; '
        'wait $P; echo "code $?" >&2; mount -o remount,rw "$D"'
    )
    return _mounted(place, seed, "read_only_disks", script.replace("SECONDS", f"{after:.2f}"))


def _mounted(place: Place, seed: int, step: str, script: str) -> Tally:
    """Run a scan into a file system of its own, as the script says; then once more, and compare."""
    _need_namespaces()
    tally, folder = Tally(), place.scratch / f"{step}-{seed}"
    (folder / "disk").mkdir(parents=True)
    out = folder / "disk" / "rows.parquet"
    again = f'; "$@"; echo "code $?" >&2; cp "$D/rows.parquet" "{folder}/" 2>/dev/null; true'
    words = ["unshare", "-rm", "sh", "-c", f'D="{folder}/disk"; {script}{again}', "sh"]
    ended = Running([*words, *place.words(place.archive, out)]).ended(2 * PATIENCE_S)
    codes = [int(code) for code in re.findall(r"^code (\d+)$", ended.said, re.MULTILINE)]
    tally.counts[f"{step}: stopped"] += codes[:1] == [1] or codes[:1] == [2]
    if not ended.judge(tally, codes=(0,), step=step, seed=seed):
        return tally
    if len(codes) != 2 or codes[0] not in ENDED or codes[1] not in (ALL_ROWS, 2):
        tally.find("unhandled", f"exit codes {codes}: {ended.said[-400:]}", step=step, seed=seed)
    if not (folder / "rows.parquet").exists():
        tally.find("unhandled", f"no result after {codes}: {ended.said[-400:]}", step=step, seed=seed)
        return tally
    compare(rows_in(folder / "rows.parquet", place.archive), place.wanted, tally, step=step, seed=seed)
    return tally


def few_descriptors(place: Place, seed: int) -> Tally:
    """Allow few open files."""
    return _limited(place, seed, "few_descriptors", f"ulimit -n {random.Random(seed).randint(6, 24)}")


def little_memory(place: Place, seed: int) -> Tally:
    """Allow few addresses."""
    return _limited(
        place, seed, "little_memory", f"ulimit -v {random.Random(seed).randint(250_000, 2_500_000)}"
    )


def _limited(place: Place, seed: int, step: str, limit: str) -> Tally:
    """Run a scan under a limit of the shell, then without."""
    tally, out = Tally(), place.scratch / f"{step}-{seed}.parquet"
    words = ["sh", "-c", f'{limit}; exec "$@"', "sh", *place.words(place.archive, out)]
    ended = Running(words).ended()
    tally.counts[f"{step}: stopped"] += ended.code in (1, 2)
    if _began(ended.said):
        ended.judge(tally, codes=ENDED, step=f"{step} {limit}", seed=seed)
    else:
        tally.counts[f"{step}: Python did not begin"] += 1
    place.finish(out, tally, step=step, seed=seed)
    return tally


def _began(said: str) -> bool:
    """Say whether the interpreter came as far as our code: before that, no sentence can be ours."""
    return "Traceback" not in said or "gbad_batch" in said or "/engine/" in said


def clock_jumps(place: Place, seed: int) -> Tally:
    """Put the clock forward and back during a scan, by seconds or by years."""
    luck, tally, out = random.Random(seed), Tally(), place.scratch / f"clock-{seed}.parquet"
    with Shim(place.scratch / f"clock-shim-{seed}", place.root) as shim:
        running = Running(place.words(place.archive, out), shim.environment)
        while not running.poll():
            shim.set_clock(luck.choice((-1, 1)) * luck.choice((1, 60, 3600, DAY, 400 * DAY, 20 * 365 * DAY)))
            tally.counts["clock jumps"] += 1
            time.sleep(luck.uniform(0.01, 0.2))
        running.ended().judge(tally, codes=(ALL_ROWS,), step="clock_jumps", seed=seed)
    place.finish(out, tally, step="clock_jumps", seed=seed)
    return tally


def sockets(place: Place, seed: int) -> Tally:
    """Trace a scan: it opens no socket but those between its own processes."""
    strace = shutil.which("strace")
    if strace is None:
        raise Refused("strace is not installed (Debian: strace)")
    tally, out = Tally(), place.scratch / f"sockets-{seed}.parquet"
    trace = place.scratch / f"sockets-{seed}.trace"
    words = [strace, "-f", "-qq", "-e", "trace=%network", "-o", trace, *place.words(place.archive, out)]
    Running(words).ended().judge(tally, codes=(ALL_ROWS,), step="sockets", seed=seed)
    families = SOCKET.findall(trace.read_text(errors="replace"))
    tally.counts["sockets traced"] += trace.read_text(errors="replace").count("socketpair(AF_UNIX")
    for other in sorted({name for name in families if name not in ("AF_UNIX", "AF_LOCAL")} - {""}):
        if other.startswith("AF_"):
            tally.find("sockets_opened", f"a socket of {other}", step="sockets", seed=seed)
    place.finish(out, tally, step="sockets", seed=seed)
    return tally


def _need_namespaces() -> None:
    """Raise Refused where no file system can be mounted in a namespace."""
    words = ["unshare", "-rm", "sh", "-c", "mount -t tmpfs none /mnt"]
    if not shutil.which("unshare") or subprocess.run(words, capture_output=True).returncode:
        raise Refused("this machine lets nobody mount a tmpfs in a namespace (unshare -rm)")


Step = Callable[[Place, int], Tally]
MACHINE: dict[str, Step] = {
    "pauses": pauses,
    "full_disks": full_disks,
    "read_only_disks": read_only_disks,
    "few_descriptors": few_descriptors,
    "little_memory": little_memory,
    "clock_jumps": clock_jumps,
    "sockets": sockets,
}
