"""What a result that was written holds, as tests compare it."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from gbad_batch.engine.results.schema import read_footer


def rows_of(out: Path) -> pa.Table:
    """Read the rows, all but when they were scanned, which two scans cannot have in common."""
    return pq.read_table(out).drop_columns("scanned_at")


def footer_of(out: Path) -> dict[str, Any]:
    """Read the footer, which must be there."""
    footer = read_footer(out)
    assert footer is not None
    return footer
