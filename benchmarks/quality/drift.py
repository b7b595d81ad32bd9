"""How often drift is called where there is none, and whether a scanner of another look is."""

import argparse
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gbad_batch.engine import Scan, ScanSettings
from gbad_batch.engine.rescreening import DriftSettings, drift
from gbad_batch.engine.results.parts import write_parquet
from gbad_batch.engine.results.schema import footer_metadata, read_footer, results_schema

from ..report import Report
from .typicality import options, test_set

__all__ = ["options", "run"]

SPLITS = 200
LEAST_NONE = 0.94


def run(arguments: argparse.Namespace) -> Report:
    """Split T1 at random again and again, then compare T3 with it, and in features."""
    report = Report("Drift: T1 against itself, and T3, a look never seen, against T1")
    random = np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        for name in ("t1", "t3"):
            settings = {"out": folder / name, "features": folder / f"{name}.features", "device": "cpu"}
            Scan(ScanSettings(sources=(test_set(arguments, name),), model=arguments.model, **settings)).run()
        rows, footer = pq.read_table(folder / "t1"), read_footer(folder / "t1") or {}
        verdicts = []
        for _ in range(SPLITS):
            halves = np.array_split(random.permutation(len(rows)), 2)
            paths = [_written(folder / f"half{k}", rows, half, footer) for k, half in enumerate(halves)]
            verdicts.append(drift(DriftSettings(baseline=paths[0], current=paths[1])).verdict)
        features = folder / "t1.features", folder / "t3.features"
        other = drift(DriftSettings(baseline=folder / "t1", current=folder / "t3", features=features))
    report.add("drift_none_in_splits", verdicts.count("none") / SPLITS, at_least=LEAST_NONE)
    report.add("drift_of_t3", other.verdict == "drift", at_least=1)
    report.add("drift_of_t3_psi", max(shift.psi for shift in other.shifts))
    assert other.features is not None
    report.add("drift_of_t3_in_features", other.features.drift, at_least=1)
    report.notes.append(f"drift: {SPLITS} splits of {len(rows)} bags; T3: {other.sentence}")
    return report


def _written(path: Path, rows: pa.Table, chosen: np.ndarray, footer: dict[str, Any]) -> Path:
    batches = rows.take(np.sort(chosen)).to_batches()
    write_parquet(path, results_schema(), batches, footer_metadata(footer))
    return path
