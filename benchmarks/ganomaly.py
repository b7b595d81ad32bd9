"""GANomaly on images, by anomalib in an environment of its own.

anomalib pins packages that this project does not: it is never imported here, `ganomaly_worker.py` runs there.
The environment takes 6 GB, nearly all of it torch; no weights are fetched.
"""

import hashlib
import json
import shutil
import subprocess
import sys
import venv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from gbad_batch.engine.durable import remove
from gbad_batch.engine.training.pixels import decoded

from .archives import default_work_dir

VERSION = "2.7.0"
PIXELS = 64  # a side
WORKER = Path(__file__).with_name("ganomaly_worker.py")


class Unavailable(Exception):
    """The environment cannot be made, or what runs in it failed; the text says why."""


@dataclass(frozen=True)
class Work:
    """What GANomaly learns and what it scores."""

    folder: Path
    digest: str  # of the images
    benign: Sequence[Path]
    judged: Sequence[Path]

    def scores(self, epochs: int) -> NDArray[np.float64]:
        """Return a score for each image of `judged`, computed once; raises Unavailable."""
        named = json.dumps(
            [VERSION, PIXELS, epochs, list(map(str, self.benign)), list(map(str, self.judged))]
        )
        own = self.folder / f"ganomaly-{hashlib.sha256(named.encode()).hexdigest()[:12]}"
        out = own / "scores.npy"
        if not out.exists():
            python = environment()
            for name, paths in {"benign": self.benign, "judged": self.judged}.items():
                _write(own / name, paths)
            _run([python, WORKER, own, str(PIXELS), str(epochs)])
            for spent in ("benign", "judged", "Ganomaly"):  # the last holds anomalib's checkpoints
                remove(own / spent)
        return np.load(out).astype(np.float64)


def environment() -> Path:
    """Return the Python of anomalib's environment in the user's cache, made where it is missing."""
    folder = default_work_dir() / f"anomalib-{VERSION}"
    python, done = folder / "bin" / "python", folder / "installed"
    if not done.exists():
        print(f"installing anomalib {VERSION} into {folder}", file=sys.stderr)
        shutil.rmtree(folder, ignore_errors=True)
        venv.create(folder, with_pip=True)
        _run([python, "-m", "pip", "install", "--quiet", f"anomalib=={VERSION}", "torch"])
        done.touch()
    return python


def _write(folder: Path, paths: Sequence[Path]) -> None:
    """Write images as a scan would see them, small, as 00000.png and so on."""
    remove(folder)
    folder.mkdir(parents=True)
    for number, pixels in enumerate(decoded(paths, PIXELS)):
        assert pixels is not None  # training has left out what cannot be decoded
        Image.fromarray(pixels).save(folder / f"{number:06d}.png")


def _run(words: Sequence[str | Path]) -> None:
    try:
        done = subprocess.run(words, capture_output=True, text=True)
    except OSError as error:
        raise Unavailable(str(error)) from error
    if done.returncode:
        last = (done.stderr.strip() or "no word of why").splitlines()[-1]
        raise Unavailable(f"{Path(words[0]).name} {Path(words[1]).name}: {last}")
