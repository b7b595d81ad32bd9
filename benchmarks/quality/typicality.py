"""What typicality tells: photographs and pages from bags, and how seldom it takes a bag for a stranger."""

import argparse
import os
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from gbad_batch.engine import Scan, ScanSettings
from gbad_batch.engine.system.machine import usable_cores

from ..archives import default_work_dir, labelled_set
from ..recipe.default_bundle import TESTED, TESTS
from ..report import Report
from .real_bags import NEGATIVES, read_bags, real_folder
from .strangers import write_pages, write_photographs

BAGS = 1000  # of each test set, the first ones
LEAST_AUROC = 0.99
MOST_STRANGE = 0.02  # of the bags of a set
NEAR = ("t1", "t2", "t4")  # sets whose look the model has seen

Values = NDArray[np.float64]


def options(parser: argparse.ArgumentParser) -> None:
    """Name the bundle, and how many bags to draw."""
    parser.add_argument("--model", type=Path, metavar="BUNDLE", help="in the place of the default bundle")
    parser.add_argument("--bags", type=int, default=BAGS, metavar="N", help="of each test set")
    work = default_work_dir()
    parser.add_argument("--work", type=Path, default=work, metavar="DIR", help="test sets are kept here")


def run(arguments: argparse.Namespace) -> Report:
    """Scan bags, photographs and pages, and real bags where there are some."""
    report = Report("Typicality: below 1 an image looks like nothing the model has seen")
    sets = {name: _typicality(test_set(arguments, name), arguments.model) for name in TESTS}
    bags = np.concatenate([sets[name] for name in NEAR])
    with tempfile.TemporaryDirectory() as scratch:
        for name, write in (("photographs", write_photographs), ("pages", write_pages)):
            folder = Path(scratch) / name
            write(folder)
            strange = _typicality(folder, arguments.model)
            truth = np.repeat([False, True], [len(bags), len(strange)])
            auroc = float(roc_auc_score(truth, -np.concatenate([bags, strange])))
            report.add(f"typicality_auroc_{name}", auroc, at_least=LEAST_AUROC)
            report.add(f"typicality_{name}_below_1", (strange < 1).mean())
    for name, values in sets.items():
        most = MOST_STRANGE if name in NEAR else None
        report.add(f"typicality_{name}_below_1", (values < 1).mean(), at_most=most)
    _add_real(report, arguments.model)
    report.notes.append(f"typicality: {arguments.bags} bags of each set; AUROC against {', '.join(NEAR)}")
    return report


def test_set(arguments: argparse.Namespace, name: str) -> Path:
    """Return the images of a test set of the recipe, drawn once."""
    settings = replace(TESTED[name], count=arguments.bags, workers=usable_cores())
    return labelled_set(arguments.work, settings) / "images"


def _typicality(folder: Path, model: Path | None) -> Values:
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch) / "r.parquet"
        Scan(ScanSettings(sources=(folder,), out=out, model=model, device="cpu")).run()
        return pq.read_table(out)["typicality"].drop_null().to_numpy().astype(np.float64)


def _add_real(report: Report, model: Path | None) -> None:
    """Add the share of strangers among real bags, by kind."""
    if not os.environ.get("GBAD_REAL_DATA"):
        report.not_run["typicality_real"] = "GBAD_REAL_DATA names no folder of real bags"
        return
    bags = read_bags(real_folder(), "test")
    with tempfile.TemporaryDirectory() as scratch:
        out, names = Path(scratch) / "r.parquet", Path(scratch) / "names"
        names.write_text("".join(f"{path}\n" for path in bags.paths))
        Scan(ScanSettings(files_from=str(names), out=out, model=model, device="cpu")).run()
        values = pq.read_table(out)["typicality"].to_numpy().astype(np.float64)
    kinds = {kind: bags.negatives(kind) for kind in NEGATIVES} | {"with_threats": bags.positive}
    for kind, members in kinds.items():
        report.add(f"typicality_real_{kind}_below_1", (values[members] < 1).mean())
