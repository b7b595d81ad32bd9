"""The folder of an evaluation: metrics.json, table.md and pictures."""

import json
from pathlib import Path

from ..bundle import Bundle
from ..system.durable import write_whole
from .figures import Scored
from .pictures import draw
from .report import Evaluation
from .rows import Results
from .table import text


def write(folder: Path, evaluation: Evaluation, scored: Scored, rows: Results, bundle: Bundle | None) -> None:
    """Write everything into a folder that exists; raises OSError."""
    document = json.dumps(evaluation.to_json(), indent=2, allow_nan=False)
    write_whole(folder / "metrics.json", document.encode())
    write_whole(folder / "table.md", f"{text(evaluation)}\n".encode())
    draw(folder, scored, rows.losses, bundle)
