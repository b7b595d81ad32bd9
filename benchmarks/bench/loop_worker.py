"""The loop that a user would write: DataLoader, torchvision, networks; a process that `systems.Loop` asks.

`python -m benchmarks.bench.loop_worker TECHNIQUE BUNDLE CACHE` answers each line it reads with one line.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.io import ImageReadMode, decode_image
from torchvision.transforms.v2.functional import resize

from gbad_batch.engine.bundle import Bundle, operating_point
from gbad_batch.engine.model.decision import Decision, sigmoid
from gbad_batch.engine.row import THREATS
from gbad_batch.engine.runtime import OUTPUTS, Outputs

from .systems import LoopSettings, NotRun
from .techniques import TECHNIQUES, Networks


class Images(Dataset[tuple[str, Tensor]]):
    """The images below a folder, decoded and resized as the bundle wants them: uint8 [3, S, S] RGB."""

    def __init__(self, folder: Path, size: int):
        self.paths = sorted(path for path in folder.rglob("*") if path.is_file())
        self.size = size

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[str, Tensor]:
        pixels = decode_image(str(self.paths[index]), ImageReadMode.RGB)
        small = resize(pixels, [self.size, self.size], antialias=True)
        return str(self.paths[index]), small.contiguous()


class Worker:
    """One technique on one bundle, asked again and again."""

    def __init__(self, technique: str, bundle: Path, cache: Path):
        self._bundle = Bundle.read(bundle)
        self._precision = "int8" if technique.endswith("int8") else "fp32"
        self._networks = TECHNIQUES[technique](self._bundle, cache)
        self._warm: dict[LoopSettings, float] = {}  # seconds that the first batch took

    def answer(self, folder: Path, out: Path, settings: LoopSettings) -> dict[str, Any]:
        """Score a folder and write its rows; the first batch of new settings is run before, to warm up."""
        torch.set_num_threads(settings.threads)
        size = self._bundle.manifest.architecture.input_size
        with torch.inference_mode() if settings.inference_mode else torch.no_grad():
            if settings not in self._warm:
                began = time.perf_counter()
                self._networks(torch.zeros(settings.batch, 3, size, size, dtype=torch.uint8), settings.batch)
                self._warm[settings] = time.perf_counter() - began
            cpu, began, batch_ms = _cpu_seconds(), time.perf_counter(), []
            found = list(_scored(self._networks, Images(folder, size), settings, batch_ms))
            _write(out, self._bundle, self._precision, found)
            seconds = time.perf_counter() - began
        return {
            "images": sum(len(uris) for uris, _ in found),
            "seconds": seconds,
            "cpu_seconds": _cpu_seconds() - cpu,
            "peak_mb": _peak_mb(),
            "warmup_seconds": self._warm[settings],
            "batch_ms": batch_ms,
        }


def _scored(
    networks: Networks, images: Images, settings: LoopSettings, batch_ms: list[float]
) -> Iterator[tuple[list[str], Outputs]]:
    loader = DataLoader(images, settings.batch, num_workers=settings.workers)
    for uris, pixels in loader:
        began = time.perf_counter()
        outputs = networks(pixels, settings.batch)
        batch_ms.append((time.perf_counter() - began) * 1e3)
        yield list(uris), outputs


def _write(out: Path, bundle: Bundle, precision: str, found: list[tuple[list[str], Outputs]]) -> None:
    """Write what a scan would: class scores, losses, score and decision of each image."""
    joined = {name: np.concatenate([getattr(outputs, name) for _, outputs in found]) for name in OUTPUTS}
    point = operating_point(bundle, precision)
    losses = joined["reconstruction_loss"], joined["feature_matching_loss"]
    decision = Decision.from_tensors(point.decision, bundle.tensors())
    scores = decision.score(*losses, joined["logits"])
    probabilities = sigmoid(joined["logits"])
    columns: dict[str, Any] = {"uri": [uri for uris, _ in found for uri in uris]}
    columns |= {f"p_{threat}": probabilities[:, k] for k, threat in enumerate(THREATS)}
    columns |= {name: joined[name] for name in OUTPUTS[2:]}
    columns |= {"anomaly_score": scores, "anomalous": scores >= point.threshold}
    pq.write_table(pa.table(columns), out)


def _cpu_seconds() -> float:
    spent = os.times()
    return spent.user + spent.system + spent.children_user + spent.children_system


def _peak_mb() -> float:
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return max(resource.getrusage(kind).ru_maxrss for kind in kinds) * 1024 / 1e6


def main(technique: str, bundle: str, cache: str) -> None:
    """Answer until there is no more to read; what libraries print goes to standard error."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)

    def say(answer: dict[str, Any]) -> None:
        answers.write(json.dumps(answer) + "\n")
        answers.flush()

    try:
        worker = Worker(technique, Path(bundle), Path(cache))
        say({})
        for line in sys.stdin:
            asked = json.loads(line)
            settings = LoopSettings(**asked["settings"])
            say(worker.answer(Path(asked["folder"]), Path(asked["out"]), settings))
    except NotRun as reason:
        say({"not_run": str(reason)})


if __name__ == "__main__":
    main(*sys.argv[1:])
