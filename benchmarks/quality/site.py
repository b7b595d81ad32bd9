"""What a site's own images bring, without labels and with them, on real bags; needs GBAD_REAL_DATA.

Every step is stored in the working folder: killed at any moment, the same command goes on. The bundles that
it makes have seen real images: they are for these figures alone.
"""

import argparse
import csv
import json
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np

from gbad_batch.engine.bundle import Bundle, default_bundle_path
from gbad_batch.engine.evaluation.bootstrap import Figure, Figures
from gbad_batch.engine.row import THREATS
from gbad_batch.engine.system.durable import write_whole

from ..report import ROOT, Report, Table
from .real_bags import REFERENCE, RealBags, add_figures, read_bags, real_figures, real_folder, scored

PFA = (0.03, 0.08)  # that may be measured where 5 % are asked
SHIPPED = "shipped"


def options(parser: argparse.ArgumentParser) -> None:
    """Name the bundle, where to work, and how many images to take."""
    parser.add_argument("--model", type=Path, metavar="BUNDLE", help="in the place of the default bundle")
    work = ROOT / "runs" / "site"
    parser.add_argument("--work", type=Path, default=work, metavar="DIR", help="bundles and figures lie here")
    for name, counts, what in (
        ("--adapted", [100, 250, 500], "negatives without labels that `adapt` gets"),
        ("--tuned", [100, 300, 1100], "labelled images that `train --start` gets"),
    ):
        parser.add_argument(name, type=int, nargs="*", default=counts, metavar="N", help=what)


def run(arguments: argparse.Namespace) -> Report:
    """Adapt and train on more and more images, and judge each bundle on the test list."""
    folder, model = real_folder(), arguments.model or default_bundle_path()
    bundle, test, site = Bundle.read(model), read_bags(folder, "test"), read_bags(folder, "train")
    work: Path = arguments.work / bundle.hash[:12]
    work.mkdir(parents=True, exist_ok=True)
    report = Report(f"{bundle.manifest.name} {bundle.hash[:12]}, and with a site's own images")
    found = {SHIPPED: _judged(work, SHIPPED, model, test)}
    for count in arguments.adapted:
        name = f"adapted_{count}"
        made = _made(work, name, ["adapt", str(model), *_benign(site, count)], report)
        found[name] = _judged(work, name, made, test)
    for count in arguments.tuned:
        name = f"tuned_{count}"
        table = work / f"{name}.csv"
        write_table(table, site, count)
        words = ["train", str(folder / "train"), "--labels", str(table), "--start", str(model)]
        found[name] = _judged(work, name, _made(work, name, words, report), test)
    report.facts["bundle"] = bundle.hash
    report.tables.append(_table(found, bundle.manifest.default_decision))
    for name, figures in found.items():
        add_figures(report, figures, f"{name}.")
    _add_bars(report, found, bundle.manifest.default_decision)
    report.notes.append(
        "`pfa`, `pd`: at the bundle's own operating point for 5 %; `_at_05`: where 5 % of the"
    )
    report.notes.append("negatives that are judged alarm; 95 % intervals by bag in the record")
    return report


def spread(n: int, count: int) -> Sequence[int]:
    """Choose `count` of n positions, evenly spread."""
    return (np.arange(min(count, n)) * n // min(count, n)).tolist()


def _benign(site: RealBags, count: int) -> list[str]:
    negatives = [path for path, held in zip(site.paths, site.positive, strict=True) if not held]
    return [word for k in spread(len(negatives), count) for word in ("--benign", str(negatives[k]))]


def write_table(path: Path, site: RealBags, count: int) -> None:
    """Write the labels of `count` images, as a site would."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", *THREATS, "group"])
        for k in spread(len(site.paths), count):
            labels = site.labels[k].astype(int).tolist()
            writer.writerow([site.paths[k].name, *labels, site.groups[k]])


def _made(work: Path, name: str, words: Sequence[str], report: Report) -> Path:
    """Make a bundle by a command of the program, or keep the one that is there; notes the minutes it took."""
    out, minutes = work / name, work / f"{name}.minutes"
    if not out.exists():
        print(f"  {name}", flush=True)
        began = time.monotonic()
        subprocess.run([sys.executable, "-m", "gbad_batch", *words, "--out", str(out)], check=True)
        minutes.write_text(f"{(time.monotonic() - began) / 60:.2f}")
    report.facts.setdefault("minutes", {})[name] = float(minutes.read_text())
    return out


def _judged(work: Path, name: str, bundle: Path, test: RealBags) -> Figures:
    """Scan the test list and compute its figures, or read those that are there."""
    file = work / f"{name}.json"
    if not file.exists():
        figures = real_figures(test, scored(bundle, test))
        write_whole(file, json.dumps({key: asdict(each) for key, each in figures.items()}).encode())
    return {key: Figure(**each) for key, each in json.loads(file.read_text()).items()}


def _table(found: Mapping[str, Figures], decision: str) -> Table:
    """Compare the bundles by their default decision."""
    keys = [f"{decision}.pfa_{REFERENCE}", f"{decision}.pd", "gbad.pd_at_05", "classes.pd_at_05"]
    keys += ["combined.pd_at_05", *(f"within.{threat}" for threat in THREATS)]
    rows = [[name, *(_shown(figures.get(key)) for key in keys)] for name, figures in found.items()]
    return [["", *keys], *rows]


def _shown(figure: Figure | None) -> str:
    return "-" if figure is None or figure.value is None else f"{figure.value:.3f}"


def _add_bars(report: Report, found: Mapping[str, Figures], decision: str) -> None:
    """Add the figures that are asked for, where their bundles were made."""

    def value(name: str, key: str) -> float:
        figure = found[name][key].value
        assert figure is not None
        return figure

    if "adapted_500" in found:
        measured = value("adapted_500", f"{decision}.pfa_{REFERENCE}")
        report.add("adapted_pfa_measured_05", measured, "", at_least=PFA[0], at_most=PFA[1])
        key = f"{decision}.pd_at_05"
        report.add("adapted_pd_at_05", value("adapted_500", key), "", at_least=value(SHIPPED, key))
    if "tuned_1100" in found:
        for threat, least in (("gun", 0.95), ("knife", 0.85), ("wrench", 0.80)):
            report.add(f"tuned_{threat}", value("tuned_1100", f"within.{threat}"), "", at_least=least)
        for threat in ("pliers", "scissors"):
            key = f"within.{threat}"
            report.add(f"tuned_{threat}", value("tuned_1100", key), "", at_least=value(SHIPPED, key))
        best = max(value("tuned_1100", f"{each}.pd_at_05") for each in ("gbad", "classes", "combined"))
        report.add("tuned_pd_at_05", value("tuned_1100", f"{decision}.pd_at_05"), "", at_least=0.90)
        report.add("tuned_pd_at_05_of_the_best", best)
