"""GANomaly on images, by anomalib in an environment of its own, where `ganomaly_worker.py` runs."""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gbad_batch.engine.system.durable import remove
from gbad_batch.engine.training.pixels import decoded

from ..anomalib_environment import VERSION, environment, run_to_end

PIXELS = 64  # a side
WORKER = Path(__file__).with_name("ganomaly_worker.py")


@dataclass(frozen=True)
class Work:
    """What detectors that see images learn and what they score; their scores are stored in a folder."""

    folder: Path
    benign: Sequence[Path]
    judged: Sequence[Path]

    def place(self, detector: str, *settings: object) -> Path:
        """Name the folder of a detector's scores by its settings and by the images."""
        named = json.dumps([PIXELS, *settings, list(map(str, self.benign)), list(map(str, self.judged))])
        return self.folder / f"{detector}-{hashlib.sha256(named.encode()).hexdigest()[:12]}"


def scores(work: Work, epochs: int) -> NDArray[np.float64]:
    """Return a score for each image of `judged`, computed once; raises Unavailable."""
    own = work.place("ganomaly", VERSION, epochs)
    out = own / "scores.npy"
    if not out.exists():
        python = environment()
        for name, paths in {"benign": work.benign, "judged": work.judged}.items():
            _write(own / name, paths)
        run_to_end([python, WORKER, own, str(PIXELS), str(epochs)])
        for spent in ("benign", "judged", "Ganomaly"):  # the last holds anomalib's checkpoints
            remove(own / spent)
    return np.load(out).astype(np.float64)


def _write(folder: Path, paths: Sequence[Path]) -> None:
    """Write images as a scan would see them, small, as 00000.png and so on."""
    remove(folder)
    folder.mkdir(parents=True)
    for number, pixels in enumerate(decoded(paths, PIXELS)):
        assert pixels is not None  # training has left out what cannot be decoded
        Image.fromarray(pixels).save(folder / f"{number:06d}.png")
