"""Whether a classifier tells the features of two scans apart: Lopez-Paz and Oquab's test, ICLR 2017."""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..errors import MissingExtra, Refused, how_to_install
from ..results.parts import READ_ROWS, PartFolder, read_parquet, rows_in
from ..results.schema import read_footer

if TYPE_CHECKING:
    import pyarrow as pa

MOST = 1000  # images of each side, drawn at random
FEWEST = 100
FOLDS = 5  # an image is judged by a classifier that has not seen it
SPLITS = 20  # of the baseline into halves
LIMIT = 4.0  # standard deviations above the mean of the splits: one in 30,000 by a normal distribution
SMALLEST_SPREAD = 1e-3

Features = NDArray[np.float32]


@dataclass(frozen=True)
class ToldApart:
    """How well a linear classifier tells apart the images of two scans that it was not trained on."""

    images: tuple[int, int]
    auroc: float  # 0.5 by chance
    limit: float  # of halves of the baseline

    @property
    def drift(self) -> bool:
        """Tell whether the scans are told apart better than halves of the baseline."""
        return self.auroc > self.limit


def tell_apart(baseline: Path, current: Path) -> ToldApart:
    """Compare the stored features of two scans; raises Refused, MissingExtra.

    Discriminant analysis with Ledoit and Wolf's shrinkage needs no setting and suits few images of many
    features.
    """
    if not find_spec("sklearn"):
        raise MissingExtra(f"drift in features needs scikit-learn: {how_to_install('train')}")
    _check(baseline, current)
    random = np.random.default_rng(2)
    first, second = _drawn(baseline, 2 * MOST, random), _drawn(current, MOST, random)
    size = min(len(second), len(first) // 2)
    chance = []
    for _ in range(SPLITS):
        mixed = first[random.permutation(len(first))]
        chance.append(_auroc(mixed[:size], mixed[size : 2 * size]))
    limit = float(np.mean(chance) + LIMIT * max(np.std(chance, ddof=1), SMALLEST_SPREAD))
    own = first[random.permutation(len(first))[:size]]
    return ToldApart((size, size), _auroc(own, second[:size]), limit)


def _check(baseline: Path, current: Path) -> None:
    """Raise Refused unless both folders hold features of one network."""
    trunks = []
    for folder in (baseline, current):
        footer = read_footer(folder) if folder.is_dir() else None
        if footer is None or not any(folder.glob("features-*.parquet")):
            raise Refused(
                f"{folder} does not hold the features of a finished scan: give the folder that `gbad-batch "
                "scan --features` wrote"
            )
        trunks.append(footer.get("trunk"))
    if trunks[0] != trunks[1] or trunks[0] is None:
        raise Refused(
            f"{current} holds features of another network than {baseline}: scan both with one model"
        )


def _drawn(folder: Path, most: int, random: np.random.Generator) -> Features:
    """Return the features [n, d] of images drawn at random, in random order."""
    parts = PartFolder(folder, "features").parts
    total = sum(rows_in(part.path) for part in parts)
    if total < FEWEST:
        raise Refused(f"{folder} holds features of {total} images, and fewer than {FEWEST} tell nothing")
    chosen = np.sort(random.permutation(total)[:most])
    found, at = [], 0
    for batch in _batches(folder):
        rows = chosen[(chosen >= at) & (chosen < at + batch.num_rows)] - at
        at += batch.num_rows
        if len(rows):
            found.append(_x_of(batch)[rows])
    return random.permutation(np.concatenate(found))


def _batches(folder: Path) -> "Iterator[pa.RecordBatch]":
    import pyarrow.parquet as pq

    for part in PartFolder(folder, "features").parts:
        schema = pq.read_schema(part.path)
        yield from read_parquet(part.path, schema.remove(schema.get_field_index("logits")), READ_ROWS)


def _x_of(batch: "pa.RecordBatch") -> Features:
    return batch["x"].flatten().to_numpy().astype(np.float32).reshape(batch.num_rows, -1)


def _auroc(first: Features, second: Features) -> float:
    """Return how well a classifier tells two sets [n, d] apart that it was not trained on."""
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    x = np.concatenate([first, second])
    x = x[:, x.std(axis=0) > 0]
    of_second = np.arange(len(x)) >= len(first)
    classifier = LinearDiscriminantAnalysis(solver="lsqr", shrinkage="auto")
    folds = StratifiedKFold(FOLDS, shuffle=True, random_state=0)
    scores = cross_val_predict(classifier, x, of_second, cv=folds, method="decision_function")
    return float(roc_auc_score(of_second, scores))
