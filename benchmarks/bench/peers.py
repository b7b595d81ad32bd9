"""What can run a bundle's networks over a folder: the command, a user's loop in each technique, anomalib."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from gbad_batch.engine.bundle import Bundle
from gbad_batch.engine.system.machine import usable_cores

from ..anomalib_environment import Unavailable, environment
from .systems import Command, Loop, LoopSettings, NotRun, System

PRECISIONS = ("fp32", "int8")  # of the command; named after them
LOOPS = ("eager", "collapsed", "channels_last", "inductor", "onnxruntime", "openvino_fp32", "openvino_int8")
ANOMALIB = "anomalib"
WORKERS = (0, 1, 2)
BATCHES = (1, 8, 16)
WORKER = Path(__file__).with_name("anomalib_worker.py")


def open_system(
    name: str, bundle: Path, cache: Path, pictures: Sequence[Path], settings: LoopSettings | None = None
) -> System:
    """Open a system by its name; raises NotRun if it is unavailable here."""
    if name in LOOPS:
        return Loop(
            [sys.executable, "-m", f"{__package__}.loop_worker", name, str(bundle), str(cache)], settings
        )
    if name == ANOMALIB:
        return _anomalib(bundle, pictures[0].parent, settings)
    return Command(bundle, name, cache, pictures[0])


def _anomalib(bundle: Path, pictures: Path, settings: LoopSettings | None) -> Loop:
    try:
        python = environment()
    except Unavailable as reason:
        raise NotRun(str(reason)) from reason
    architecture = Bundle.read(bundle).manifest.architecture
    words = [str(python), "-P", "-W", "ignore", str(WORKER), architecture.backbone]
    return Loop([*words, str(architecture.input_size), str(pictures)], settings)


def best_settings(loop: Loop, folder: Path, scratch: Path) -> tuple[LoopSettings, dict[str, float]]:
    """Search the fastest settings of a loop, each tried once; returns them and all speeds, img/s.

    All workers and batch sizes are tried with each other, then fewer threads and no_grad with the best.
    """
    tried: dict[LoopSettings, float] = {}

    def best() -> LoopSettings:
        return max(tried, key=lambda settings: tried[settings])

    def attempt(settings: LoopSettings) -> None:
        loop.settings = settings
        tried[settings] = loop(folder, scratch / "search.parquet").images_per_second

    for workers in WORKERS:
        for batch in BATCHES:
            attempt(LoopSettings(workers, batch))
    if usable_cores() > 1:
        attempt(replace(best(), threads=usable_cores() - 1))
    attempt(replace(best(), inference_mode=False))
    loop.settings = best()
    return best(), {str(settings): speed for settings, speed in tried.items()}
