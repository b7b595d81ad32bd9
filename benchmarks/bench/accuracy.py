"""What a faster way costs in accuracy: mAP on labelled images, and how many decisions stay the same."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq

from gbad_batch.engine.evaluation import EvaluateSettings, evaluate

from .systems import Command

IMAGES = "images"  # the folder of a set that `gbad-batch synth` writes
LOSSES = ("reconstruction_loss", "feature_matching_loss")


@dataclass(frozen=True)
class Agreement:
    """How two results of the same images differ."""

    images: int  # with a row in both
    decisions: float  # share of equal alarms
    loss_rel_max: float  # largest relative difference of a loss


def agreement(reference: Path, other: Path) -> Agreement:
    """Compare two Parquet files by the names of images; raises ValueError where they share none."""
    a, b = (_by_name(path) for path in (reference, other))
    names = sorted(a.keys() & b.keys())
    if not names:
        raise ValueError(f"{reference} and {other} have no image in common: nothing is compared")
    pairs = [(a[name], b[name]) for name in names]
    equal = [one["anomalous"] == two["anomalous"] for one, two in pairs]
    relative = [abs(two[loss] - one[loss]) / abs(one[loss]) for one, two in pairs for loss in LOSSES]
    return Agreement(len(names), float(np.mean(equal)), max(relative))


def _by_name(path: Path) -> dict[str, dict[str, float]]:
    rows = pq.read_table(path, columns=["uri", "anomalous", *LOSSES]).to_pylist()
    return {row["uri"].rpartition("/")[2]: row for row in rows if row["anomalous"] is not None}


def mean_ap(command: Command, bundle: Path, labelled: Path, out: Path) -> float:
    """Scan a labelled set and return the mAP over its classes; raises NotRun."""
    command(labelled / IMAGES, out)
    value = evaluate(EvaluateSettings(out, labelled, model=bundle)).to_json()["map"]
    return float("nan") if value is None else value
