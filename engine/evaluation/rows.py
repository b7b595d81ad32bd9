"""The rows that an evaluation judges: those of labelled images, in the order of the labels."""

from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from ..bundle import Bundle, StoredPoint
from ..datasets import Labels, join, read_labels
from ..datasets.files import read_text
from ..datasets.joining import AMBIGUOUS, match
from ..datasets.labels import Gathered
from ..errors import Refused
from ..model.decision import Decision
from ..results.finished import finished_footer, not_results
from ..results.parts import files_of, read_parquet
from ..results.schema import results_schema
from ..row import THREATS
from .measures import Flags, Floats

TEXTS = ("uri", "kind", "status")
NUMBERS = (
    *(f"p_{threat}" for threat in THREATS),
    "reconstruction_loss",
    "feature_matching_loss",
    "anomaly_score",
)
LARGEST = 1 - 2.0**-25  # a stored probability of 1 is half a step of float32 below it at most


@dataclass(frozen=True, eq=False)
class Results:
    """Images of a finished results file; numbers are NaN for an image without a score."""

    path: Path
    footer: dict[str, Any]
    containers: int  # rows of folders and archives that could not be read to their end
    uris: list[str]
    statuses: list[str]
    numbers: Floats  # [n, 8] in the order of NUMBERS

    @property
    def probabilities(self) -> Floats:
        """Return the ungated class probabilities [n, 5]."""
        return self.numbers[:, : len(THREATS)]

    @property
    def losses(self) -> tuple[Floats, Floats]:
        """Return reconstruction_loss [n] and feature_matching_loss [n]."""
        return self.numbers[:, 5], self.numbers[:, 6]

    def failed(self) -> dict[str, int]:
        """Count the images without a score, by reason."""
        return dict(Counter(status for status in self.statuses if status != "ok").most_common())

    def take(self, index: NDArray[np.intp]) -> "Results":
        """Return the images at these positions."""
        uris, statuses = ([column[i] for i in index.tolist()] for column in (self.uris, self.statuses))
        return Results(self.path, self.footer, self.containers, uris, statuses, self.numbers[index])


def read_results(path: Path) -> Results:
    """Read a finished results file or folder; raises Refused if it is not one."""
    footer = finished_footer(path)
    schema = pa.schema([results_schema().field(name) for name in (*TEXTS, *NUMBERS)])
    batches = (batch for file in files_of(path) for batch in read_parquet(file, schema))
    table = pa.Table.from_batches(batches, schema)
    images = table.filter(pc.field("kind") == "image")
    if any(table[name].null_count for name in TEXTS):
        raise Refused(not_results(path))
    uris, statuses = (images[name].to_pylist() for name in ("uri", "status"))
    numbers = np.stack([images[name].to_numpy().astype(np.float64) for name in NUMBERS], axis=1)
    return Results(path, footer, table.num_rows - len(uris), uris, statuses, numbers)


def labelled(
    results: Results, path: Path, split: str, form: str = "auto", class_map: Path | None = None
) -> tuple[Results, Labels]:
    """Return the rows of the images that a label file names, and the labels, both in its order.

    If the file has splits, only the images of `split` are returned. Raises Refused for labels that cannot be
    read, name no image of the split, or have no row.
    """
    labels = read_labels(path, form, class_map)
    if any(labels.splits):
        chosen = [i for i, each in enumerate(labels.splits) if each == split]
        if not chosen:
            raise Refused(
                f"{path} names no image of the split {split!r}: give the labels of one, or no split"
            )
        labels = labels.take(chosen)
    return results.take(join(labels, results.uris)), labels


def decision_scores(results: Results, bundle: Bundle | None) -> dict[str, Floats]:
    """Return the stored scores [n] of the scan's decision and, with a bundle, those of its other decisions.

    They are computed from the stored losses and probabilities, whose logarithms of odds are the logits.
    """
    own = results.footer["operating_point"]["decision"]
    scores = {own: results.numbers[:, NUMBERS.index("anomaly_score")]}
    if bundle is not None:
        p = np.clip(results.probabilities, np.finfo(np.float32).tiny, LARGEST)
        logits = np.log(p) - np.log1p(-p)
        for name in bundle.manifest.decisions:
            decision = Decision.from_tensors(name, bundle.tensors())
            scores.setdefault(name, decision.score(*results.losses, logits))
    return scores


def stored_points(results: Results, bundle: Bundle | None) -> dict[str, tuple[StoredPoint, ...]]:
    """Return the operating points of each decision: the bundle's, else the one in the results."""
    point = results.footer["operating_point"]
    if bundle is not None:
        return dict(bundle.manifest.operating_points.get(point["precision"], {}))
    if point["interval"] is None:  # for a threshold or a probability that no calibration measured
        return {}
    fields = ("pfa", "threshold", "class_thresholds", "interval", "supported")
    return {point["decision"]: (StoredPoint(**{name: point[name] for name in fields}),)}


def images_in_list(results: Results, path: Path) -> Flags:
    """Tell which images [n] are in a list of names, one per line, matched like the names of labels.

    Raises Refused if the list cannot be read, or a name fits none, or several of the images.
    """
    lines = dict.fromkeys(line.strip() for line in read_text(path).splitlines() if line.strip())
    gathered = Gathered()
    for name in lines:
        gathered.add(name, (), str(path))
    position = match(gathered.labels(path), results.uris).position if lines else np.empty(0, np.intp)
    if (position == AMBIGUOUS).any():
        name = list(lines)[int(np.argmax(position == AMBIGUOUS))]
        raise Refused(f"{path}: {name!r} fits several images: write it with its folders")
    if not (position >= 0).any():
        raise Refused(f"{path} names none of the {len(results.uris)} images: is it a list for another set?")
    listed = np.zeros(len(results.uris), dtype=np.bool_)
    listed[position[position >= 0]] = True
    if listed.all():
        raise Refused(f"{path} names all {len(listed)} images: remove those to judge")
    return listed
