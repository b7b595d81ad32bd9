"""A finished result of any number of rows: random figures, decisions of the default bundle."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from gbad_batch.engine.bundle import Bundle, OperatingPoint, default_bundle_path, operating_point
from gbad_batch.engine.model.decision import Decision, sigmoid
from gbad_batch.engine.results.parts import write_parquet
from gbad_batch.engine.results.schema import SCHEMA_VERSION, footer_metadata, results_schema
from gbad_batch.engine.row import THREATS, threat_names

BATCH = 1 << 16
A_DAY = 5_000  # images in one folder
START = 1_700_000_000_000_000  # us


def write_results(path: Path, rows: int, seed: int = 0, pictures: Sequence[Path] = ()) -> Path:
    """Write the result of a scan of `rows` good images; another seed stands for another model.

    The first rows are those of the `pictures`, which are there, with the highest scores.
    """
    bundle = Bundle.read(default_bundle_path())
    point = operating_point(bundle, "fp32")
    decision = Decision.from_tensors(point.decision, bundle.tensors())
    footer = {
        "scan_id": "made up", "runs": [], "schema": SCHEMA_VERSION, "bundle": bundle.manifest.name,
        "bundle_hash": bundle.hash, "demo": bundle.manifest.demo, "backend": "none", "precision": "fp32",
        "operating_point": asdict(point), "rows": rows, "images": rows, "containers": 0, "gone": 0,
        "replaced": 0,
        "fingerprint": {"decision": point.decision, "pfa": point.pfa, "threshold": point.threshold},
    }  # fmt: skip
    batches = _batches(rows, seed, decision, point, pictures)
    write_parquet(path, results_schema(), batches, footer_metadata(footer))
    return path


def _batches(
    rows: int, seed: int, decision: Decision, point: OperatingPoint, pictures: Sequence[Path]
) -> Iterator[pa.RecordBatch]:
    random, schema = np.random.default_rng(seed), results_schema()
    for start in range(0, rows, BATCH):
        count = min(BATCH, rows - start)
        columns = _files(start, count) | _figures(random, count, decision, point)
        if not start:
            _show(columns, pictures)
        arrays = [pa.array(columns.get(each.name, [None] * count), each.type) for each in schema]
        yield pa.RecordBatch.from_arrays(arrays, schema=schema)


def _show(columns: dict[str, Any], pictures: Sequence[Path]) -> None:
    """Give the first rows the names, digests and scores of pictures that are there."""
    for k, path in enumerate(pictures):
        columns["uri"][k] = str(path)
        columns["sha256"][k] = hashlib.sha256(path.read_bytes()).digest()
        columns["anomaly_score"][k] = 1e6 + k


def _files(start: int, count: int) -> dict[str, Any]:
    """Return the columns that say which file a row is of."""
    numbers = range(start, start + count)
    digests = np.random.default_rng(start).bytes(32 * count)
    return {
        "uri": [f"/archive/day{i // A_DAY:05d}/scanner-{i % 7}/bag{i:09d}.jpg" for i in numbers],
        "kind": ["image"] * count,
        "bytes": [50_000 + i % 99_991 for i in numbers],
        "mtime": np.arange(start, start + count) * 1_000_003 + START,
        "sha256": [digests[at : at + 32] for at in range(0, 32 * count, 32)],
        "format": ["jpeg"] * count,
        "width": np.full(count, 800),
        "height": np.full(count, 600),
        "bit_depth": np.full(count, 8, np.int32),
        "color": ["rgb"] * count,
        "status": ["ok"] * count,
    }


def _figures(
    random: np.random.Generator, count: int, decision: Decision, point: OperatingPoint
) -> dict[str, Any]:
    """Return the columns that a model fills: losses, class scores, decisions."""
    losses = random.gamma(2, 0.1, (2, count)).astype(np.float32)
    logits = random.normal(-4, 2, (count, len(THREATS))).astype(np.float32)
    scores, p = decision.score(losses[0], losses[1], logits), sigmoid(logits)
    alarms = scores >= point.threshold
    over = (p >= np.asarray(point.class_thresholds, np.float32)).tolist()
    return {
        **{f"p_{threat}": p[:, k] for k, threat in enumerate(THREATS)},
        "largest_logit": logits.max(axis=1),
        "reconstruction_loss": losses[0],
        "feature_matching_loss": losses[1],
        "anomaly_score": scores,
        "anomalous": alarms,
        "threats": [threat_names(f) if alarm else None for f, alarm in zip(over, alarms, strict=True)],
    }
