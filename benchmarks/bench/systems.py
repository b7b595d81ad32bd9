"""What is measured side by side: a system scores the images of a folder and says what that took."""

import json
import os
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol

import pyarrow.parquet as pq

from gbad_batch.engine.system.machine import usable_cores

from ..report import ROOT

COMMAND = (str(Path(sys.executable).with_name("gbad-batch")),)


class NotRun(Exception):
    """A system, or a figure of one, is unavailable here; the text says why."""


@dataclass(frozen=True)
class Measured:
    """What one run over a folder took."""

    images: int  # with a row in the output
    missing: int  # of the folder, without one
    seconds: float  # start-up apart
    cpu_seconds: float  # of all its processes, start-up apart
    startup_seconds: float
    peak_mb: float  # of its largest process
    warmup_seconds: float = 0.0  # before the clock: the first batch of a loop, compilation included
    stage_seconds: Mapping[str, float] = field(default_factory=dict)  # busy, summed over threads
    batch_ms: Sequence[float] = ()  # of each batch in the networks, where the system tells

    @property
    def images_per_second(self) -> float:
        """Speed, start-up apart."""
        return self.images / self.seconds


class System(Protocol):
    """Anything that scores a folder; one call at a time."""

    def __call__(self, folder: Path, out: Path) -> Measured:
        """Score the images below `folder` into the Parquet file `out`; raises NotRun."""
        ...

    def close(self) -> None:
        """End its processes."""
        ...


class Command:
    """`gbad-batch scan` on the CPU, as a user types it.

    Opening it scans one picture twice: the first builds and caches the engine, the second tells what
    start-up costs. `command` takes the place of the installed one. Raises NotRun where it refuses.
    """

    def __init__(
        self,
        bundle: Path,
        precision: str,
        cache: Path,
        picture: Path,
        command: Sequence[str] | None = None,
    ):
        self._words = [*(command or COMMAND), "scan", "--model", str(bundle), "--device", "cpu"]
        self._words += ["--precision", precision, "--cache-dir", str(cache)]
        self._words += ["--overwrite", "--quiet", "--json"]
        with tempfile.TemporaryDirectory() as scratch:
            out = Path(scratch) / "one.parquet"
            self._scan(picture, out)
            summary, spent = self._scan(picture, out)
        self.precision: str = summary["precision"]  # as resolved
        self._startup_cpu = spent.cpu_seconds

    def __call__(self, folder: Path, out: Path) -> Measured:
        """Scan; the seconds are the summary's own, all else of the command is start-up."""
        summary, spent = self._scan(folder, out)
        there = set(names_in(out))
        images = names_below(folder)
        return Measured(
            images=summary["images"],
            missing=len(images - there),
            seconds=summary["seconds"],
            cpu_seconds=max(0.0, spent.cpu_seconds - self._startup_cpu),
            startup_seconds=spent.seconds - summary["seconds"],
            peak_mb=spent.peak_mb,
            stage_seconds=summary["stage_seconds"],
        )

    def close(self) -> None:
        """Nothing runs between scans."""

    def _scan(self, source: Path, out: Path) -> "tuple[dict[str, Any], Spent]":
        spent = spent_on([*self._words, str(source), "--out", str(out)])
        if spent.code not in (0, 3):  # 3: some images have a row that says why they failed
            raise NotRun(spent.said or f"the scan ended with exit code {spent.code}")
        return json.loads(spent.output), spent


def command_of(checkout: Path, scratch: Path) -> list[str]:
    """Give the words that run the command of another checkout; links to its packages go below `scratch`.

    Raises NotRun if the folder is no checkout.
    """
    try:
        project = tomllib.loads((checkout / "pyproject.toml").read_text())
        entry, packages = project["project"]["scripts"]["gbad-batch"], project["tool"]["setuptools"]
        folders = {name: checkout.absolute() / folder for name, folder in packages["package-dir"].items()}
    except (OSError, KeyError, tomllib.TOMLDecodeError) as error:
        raise NotRun(f"{checkout} is not a checkout of gbad-batch: {error}") from error
    root = scratch / "gbad_batch"
    root.mkdir()
    for file in folders.pop("gbad_batch", Path(os.devnull)).glob("*.py"):
        (root / file.name).symlink_to(file)
    for name, folder in folders.items():
        (root / name.rpartition(".")[2]).symlink_to(folder)
    module, _, function = entry.partition(":")
    start = f"import sys; from {module} import {function}; sys.exit({function}())"
    return ["env", f"PYTHONPATH={scratch}", sys.executable, "-P", "-c", start]


@dataclass(frozen=True)
class Spent:
    """What a command took, its children included."""

    code: int
    output: str
    said: str  # the last line on standard error
    seconds: float
    cpu_seconds: float
    peak_mb: float  # of its largest process


# A child counts as its own peak what its parent held at its start, so a small process starts the command.
STARTER = """
import json, os, subprocess, sys, time
began = time.perf_counter()
process = subprocess.Popen(sys.argv[2:])
_, status, usage = os.wait4(process.pid, 0)
seconds = time.perf_counter() - began
process.returncode = os.waitstatus_to_exitcode(status)  # or Popen would wait for it again
cpu, peak = usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024 / 1e6
with open(sys.argv[1], "w") as file:
    json.dump([process.returncode, seconds, cpu, peak], file)
"""


def spent_on(words: Sequence[str]) -> Spent:
    """Run a command to its end."""
    with (
        tempfile.TemporaryFile("w+") as out,
        tempfile.TemporaryFile("w+") as error,
        tempfile.NamedTemporaryFile("r") as usage,
    ):
        starter = [sys.executable, "-I", "-S", "-c", STARTER, usage.name, *words]
        subprocess.run(starter, check=True, stdout=out, stderr=error)
        code, seconds, cpu_seconds, peak_mb = json.load(usage)
        out.seek(0)
        error.seek(0)
        said = error.read().strip().splitlines()
        return Spent(code, out.read(), said[-1] if said else "", seconds, cpu_seconds, peak_mb)


@dataclass(frozen=True)
class LoopSettings:
    """How a user's loop over a DataLoader can be set."""

    workers: int = 0  # processes that decode; 0 decodes between batches
    batch: int = 8  # images
    threads: int = field(default_factory=usable_cores)  # of the networks
    inference_mode: bool = True  # else torch.no_grad

    def __str__(self) -> str:
        """Say them in a few words."""
        mode = "inference_mode" if self.inference_mode else "no_grad"
        return f"{self.workers} workers, batch {self.batch}, {self.threads} threads, {mode}"


class Loop:
    """A loop over images in a process of its own, which stays open between runs.

    The process gets one JSON object a line, `folder`, `out` and `settings`, and answers with one of a
    Measured's fields, or with `not_run` and the reason.
    """

    def __init__(self, words: Sequence[str], settings: LoopSettings | None = None):
        self.settings = settings or LoopSettings()
        began = time.perf_counter()
        self._process = subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT
        )
        try:
            self._answer()
        except NotRun:
            self.close()
            raise
        self._startup_seconds = time.perf_counter() - began

    def __call__(self, folder: Path, out: Path) -> Measured:
        """Have the process score a folder."""
        assert self._process.stdin is not None
        request = {"folder": str(folder), "out": str(out), "settings": asdict(self.settings)}
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise NotRun("its process has ended; its last words stand above") from None
        answer = self._answer()
        missing = len(names_below(folder)) - answer["images"]
        return Measured(missing=missing, startup_seconds=self._startup_seconds, **answer)

    def close(self) -> None:
        """End the process: it reads its last line."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise NotRun("its process has ended; its last words stand above")
        answer = json.loads(line)
        if "not_run" in answer:
            raise NotRun(answer["not_run"])
        return answer


def names_below(folder: Path) -> set[str]:
    """Names of the files below a folder; those of an archive of `linked` are all different."""
    return {name for _, _, files in os.walk(folder) for name in files}


def names_in(out: Path) -> list[str]:
    """Names of the files that have a row in a Parquet file of results."""
    return [uri.rpartition("/")[2] for uri in pq.read_table(out, columns=["uri"])["uri"].to_pylist()]
