"""Scores images by several forms of one network in turn, for `int8`: outputs and img/s of each.

Arguments: the bundle, a folder with pixels.npy and the INT8 forms, the rounds of timing, names of the forms.
"""

import sys
import time
from contextlib import ExitStack, closing
from pathlib import Path

import numpy as np

from gbad_batch.engine.bundle import Bundle
from gbad_batch.engine.runtime import OUTPUTS, Runner
from gbad_batch.engine.training.packing.reduced import open_network

BATCH = 8  # images
TIMED = 8  # batches of a round


def main(model: str, folder: str, rounds: str, *names: str) -> None:
    """Write NAME.npz for each form, and for fp32."""
    bundle, scratch = Bundle.read(model), Path(folder)
    pixels = np.load(scratch / "pixels.npy", mmap_mode="r")
    with ExitStack() as stack:
        runners = {
            name: stack.enter_context(closing(_open(bundle, scratch, name))) for name in ("fp32", *names)
        }
        batches = [pixels[i : i + BATCH] for i in range(0, len(pixels), BATCH)]
        outputs = {name: [runner(batch) for batch in batches] for name, runner in runners.items()}
        seconds: dict[str, list[float]] = {name: [] for name in runners}
        timed = [batch for batch in batches[:TIMED] if len(batch) == BATCH]
        for _ in range(int(rounds)):
            for name, runner in runners.items():
                started = time.perf_counter()
                for batch in timed:
                    runner(batch)
                seconds[name].append((time.perf_counter() - started) / (len(timed) * BATCH))
    for name, found in outputs.items():
        arrays = {each: np.concatenate([getattr(part, each) for part in found]) for each in OUTPUTS}
        speed = np.array(1 / np.median(seconds[name]))
        np.savez(scratch / f"{name}.npz", allow_pickle=False, img_s=speed, **arrays)


def _open(bundle: Bundle, scratch: Path, name: str) -> Runner:
    if name == "fp32":
        return open_network(bundle, "fp32", bundle.network_onnx)
    network, constants = ((scratch / f"{name}.{end}").read_bytes() for end in ("xml", "bin"))
    return open_network(bundle, "int8", network, constants)


if __name__ == "__main__":
    main(*sys.argv[1:])
