"""Facts about this machine, and its settings for a process: cores, memory, and an end with its parent's."""

import ctypes
import os
import signal
from collections.abc import Iterable
from contextlib import suppress
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PR_SET_PDEATHSIG = 1
ISA_LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")  # variables that limit oneDNN's instructions
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of malloc.h


def usable_cores() -> int:
    """Count the cores that this process may use, from the affinity mask and the cgroup's CPU quota."""
    cores = len(os.sched_getaffinity(0))
    quota = _cgroup_quota()
    return max(1, min(cores, round(quota))) if quota else cores


def _cgroup_quota() -> float | None:
    """Read the CPU quota in cores of this process's cgroup, version 2 or 1; None if there is none."""
    try:
        own = Path("/proc/self/cgroup").read_text().splitlines()[-1].split(":", 2)[2].lstrip("/")
    except (OSError, IndexError):
        own = ""
    for folder in (Path("/sys/fs/cgroup") / own, Path("/sys/fs/cgroup")):
        try:
            quota, period = (folder / "cpu.max").read_text().split()
        except (OSError, ValueError):
            continue
        if quota != "max":
            return int(quota) / int(period)
    legacy = Path("/sys/fs/cgroup/cpu")
    try:
        quota_us = int((legacy / "cpu.cfs_quota_us").read_text())
        period_us = int((legacy / "cpu.cfs_period_us").read_text())
    except (OSError, ValueError):
        return None
    return quota_us / period_us if quota_us > 0 else None


def multiplies_bfloat16() -> bool:
    """Tell whether oneDNN may use instructions for bfloat16 here; without them it is slow or impossible."""
    limit = next(filter(None, map(os.environ.get, ISA_LIMITS)), "ALL").upper()
    allowed = limit in ("ALL", "DEFAULT") or any(name in limit for name in ("BF16", "FP16", "AMX", "AVX10"))
    return allowed and bool(cpu_flags() & {"amx_bf16", "avx512_bf16"})


def thread_seconds(process: int, thread: int) -> float | None:
    """Return the CPU seconds that a thread of any process has taken; None if it is gone or not to be seen."""
    try:
        words = Path(f"/proc/{process}/task/{thread}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None
    return (int(words[11]) + int(words[12])) / os.sysconf("SC_CLK_TCK")  # in user mode, in the kernel


def die_with(parent: int) -> None:
    """Have this process killed when its parent process dies, even by SIGKILL."""
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # the parent died before prctl took effect
        os.kill(os.getpid(), signal.SIGKILL)


def keep_freed_memory() -> None:
    """Have malloc keep freed memory instead of returning it to the system.

    Every step of training allocates and frees the same gigabytes; once returned, they would have to be
    faulted in again, page by page.
    """
    libc = ctypes.CDLL(None)
    libc.mallopt(M_MMAP_MAX, 0)
    libc.mallopt(M_TRIM_THRESHOLD, -1)


def let_arrow_use_malloc() -> None:
    """Have Arrow allocate by malloc, if it is not loaded yet and the environment names no other allocator.

    Its own, mimalloc, takes twice as much where parts are merged (104 MB against 59), and some more time.
    """
    os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")


@cache
def cpu_model() -> str:
    """Return the model name of the processor from /proc/cpuinfo."""
    return _cpuinfo("model name") or "unknown"


@cache
def cpu_flags() -> frozenset[str]:
    """Return the instruction sets that the processor announces."""
    return frozenset(_cpuinfo("flags").split())


def installed(packages: Iterable[str]) -> dict[str, str]:
    """Return the versions of the packages that are installed."""
    versions = {}
    for package in packages:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions


def _cpuinfo(key: str) -> str:
    with Path("/proc/cpuinfo").open() as lines:
        for line in lines:
            name, _, value = line.partition(":")
            if name.strip() == key:
                return value.strip()
    return ""
