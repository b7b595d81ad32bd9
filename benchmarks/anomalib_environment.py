"""anomalib in an environment of its own: it pins packages that this project does not, and is never imported.

The environment takes 6 GB, nearly all of it torch; no weights are fetched.
"""

import shutil
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

from .archives import default_work_dir

VERSION = "2.7.0"


class Unavailable(Exception):
    """The environment cannot be made, or what runs in it failed; the text says why."""


def environment() -> Path:
    """Return the Python of anomalib's environment in the user's cache, made where it is missing."""
    folder = default_work_dir() / f"anomalib-{VERSION}"
    python, done = folder / "bin" / "python", folder / "installed"
    if not done.exists():
        print(f"installing anomalib {VERSION} into {folder}", file=sys.stderr)
        shutil.rmtree(folder, ignore_errors=True)
        venv.create(folder, with_pip=True)
        run_to_end([python, "-m", "pip", "install", "--quiet", f"anomalib=={VERSION}", "torch"])
        done.touch()
    return python


def run_to_end(words: Sequence[str | Path]) -> None:
    """Run a command; raises Unavailable with its last words where it fails."""
    try:
        done = subprocess.run(words, capture_output=True, text=True)
    except OSError as error:
        raise Unavailable(str(error)) from error
    if done.returncode:
        last = (done.stderr.strip() or "no word of why").splitlines()[-1]
        raise Unavailable(f"{Path(words[0]).name} {Path(words[1]).name}: {last}")
