"""What the default bundle finds of real objects, projected into synthetic bags that it never saw (T5)."""

import argparse
import csv
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow.parquet as pq
import simplejpeg

from gbad_batch.engine import Scan, ScanSettings
from gbad_batch.engine.decode import DecodeLimits, Decoder
from gbad_batch.engine.errors import Refused
from gbad_batch.engine.evaluation.bootstrap import Bootstrap, Figures, with_intervals
from gbad_batch.engine.evaluation.measures import Auroc, Ranking, Share
from gbad_batch.engine.row import THREATS, Row
from gbad_batch.engine.synth import SynthSettings
from gbad_batch.engine.synth.archive import QUALITY, render
from gbad_batch.engine.training.projection.physics import (
    AREAS,
    Pixels,
    Threat,
    bags_of,
    find_position,
    project,
    varied,
)
from gbad_batch.engine.training.projection.threats import (
    GREY_SIDE,
    METAL,
    feather,
    grey_transmission,
    resized,
)

from ..report import Report

# share of the bag: 5 %, median, 95 %; a blade is 4 x 2 cm, a shuriken 10 cm wide, a bag 45 x 32
SIZES = {
    "gun": AREAS["gun"],
    "shuriken": (0.012, 0.024, 0.045),
    "razor_blade": (0.004, 0.0065, 0.012),
    "other": AREAS["gun"],
}
CONTROL = "other"  # clutter: what an alarm on a projection as such would show on
OBJECTS, LABELS, IMAGES = "objects.csv", "labels.csv", "images"
TRIES = 8  # of a picture in a bag


class _Entry(NamedTuple):
    """A line of objects.csv."""

    name: str
    bag: str  # images of one bag are one draw
    object: str  # '' in the bag without any
    threat: bool


def options(parser: argparse.ArgumentParser) -> None:
    """Declare the size of the set."""
    parser.add_argument("--bags", type=int, default=100, metavar="N", help="synthetic bags")
    parser.add_argument("--seed", type=int, default=5005, metavar="N", help="of the bags and places")


def run(arguments: argparse.Namespace) -> Report:
    """Report AUROC against the same bags and the alarm's share; needs GBAD_REAL_DATA."""
    folder = os.environ.get("GBAD_REAL_DATA")
    if not folder:
        raise SystemExit("T5 projects real pictures: let GBAD_REAL_DATA name the folder of gdxray-objects.")
    report = Report("Real objects in synthetic bags (T5), against the same bags without")
    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch, "t5")
        write_projected(out, Path(folder, "gdxray-objects"), arguments.bags, arguments.seed)
        results = Path(scratch, "results.parquet")
        Scan(ScanSettings(sources=(str(out / IMAGES),), out=results)).run()
        for name, figure in projected_figures(out, results).items():
            report.add(name, np.nan if figure.value is None else figure.value)
            if figure.low is not None and figure.high is not None:
                report.notes.append(f"{name}: 95 % interval {figure.low:.3f} to {figure.high:.3f}, by bag")
    return report


def write_projected(folder: Path, objects_dir: Path, count: int, seed: int) -> None:
    """Write `count` benign bags of the test pool, each without and with one object of every kind.

    `objects_dir` holds a folder of grey pictures for each kind of SIZES. FOLDER/images gets JPEGs as `synth`
    writes them; objects.csv says of all which bag and object they show; labels.csv, in SIXray's form, names
    those that it can: a threat of no class has no line there. An object without room in a bag is left out.
    Raises Refused where there are no pictures of a kind.
    """
    pictures = {kind: sorted((objects_dir / kind).glob("*.jpg")) for kind in SIZES}
    for kind, paths in pictures.items():
        if not paths:
            raise Refused(f"{objects_dir / kind} holds no JPEG: give the folder with {', '.join(SIZES)}")
    (folder / IMAGES).mkdir(parents=True)
    settings = SynthSettings(count=count, seed=seed, positive=0.0, objects="test")
    entries: list[_Entry] = []
    for number in range(count):
        empty = render(number, settings).pixels
        shown = [("", empty), *_with_objects(empty, pictures, (seed, number))]
        for kind, pixels in shown:
            name = f"{number:05d}-{kind or 'bag'}"
            jpeg = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), QUALITY, "RGB", "420")
            (folder / IMAGES / f"{name}.jpg").write_bytes(jpeg)
            entries.append(_Entry(name, f"{number:05d}", kind, kind not in ("", CONTROL)))
    _write_lists(folder, entries)


def _with_objects(
    empty: Pixels, pictures: dict[str, list[Path]], key: tuple[int, int]
) -> Iterator[tuple[str, Pixels]]:
    """Yield each kind that finds room in the largest bag, and the picture with one of it."""
    bags = bags_of(empty)
    for k, (kind, paths) in enumerate(pictures.items()):
        random = np.random.default_rng((*key, k))
        for path in (paths[i] for i in random.integers(len(paths), size=TRIES)):
            thing = _object(kind, path)
            sized = varied(thing, bags[0], SIZES[kind], random) if thing and bags else None
            at = find_position(sized, bags[0], random) if sized else None
            if sized and at:
                yield kind, project(empty, sized, at)
                break


def _object(kind: str, path: Path) -> Threat | None:
    """Cut an object out of its picture; of clutter, which fills its own, what is darker than its median."""
    pixels = Decoder(None, DecodeLimits())(Row(uri=str(path)), path.read_bytes())
    if pixels is None:
        return None
    if kind != CONTROL:
        found = grey_transmission(pixels)
        return None if found is None else Threat(kind, found)
    grey = resized(np.asarray(pixels / 255, np.float32), min(1.0, GREY_SIDE / max(pixels.shape)))
    light = np.clip(grey / np.median(grey), 1 / 255, 1).astype(np.float32)
    return Threat(kind, (light ** feather(light.shape[:2])[..., None]) ** METAL)


def _write_lists(folder: Path, entries: list[_Entry]) -> None:
    with (folder / OBJECTS).open("w", newline="") as file:
        csv.writer(file).writerows([_Entry._fields, *((*e[:3], int(e.threat)) for e in entries)])
    named = [e for e in entries if e.object in THREATS or not e.threat]
    with (folder / LABELS).open("w", newline="") as file:
        lines = [[e.name, *(1 if e.object == name else -1 for name in THREATS)] for e in named]
        csv.writer(file).writerows([["name", *(name.capitalize() for name in THREATS)], *lines])


def projected_figures(folder: Path, results: Path) -> Figures:
    """Judge a scan of what `write_projected` wrote: of each kind, against the same bags without it.

    `auroc_KIND` ranks by anomaly_score, `pd_KIND` is the share with an alarm, `pfa_bags` that of the bags
    without, `auroc_p_gun` ranks the guns by their class; all with 95 % intervals, drawn by bag.
    """
    with (folder / OBJECTS).open(newline="") as file:
        entries = [
            _Entry(name, bag, kind, threat == "1") for name, bag, kind, threat in [*csv.reader(file)][1:]
        ]
    table = pq.read_table(results, columns=["uri", "anomaly_score", "anomalous", "p_gun"]).to_pydict()
    rows = {Path(uri).stem: k for k, uri in enumerate(table.pop("uri"))}
    order = [rows[entry.name] for entry in entries]
    columns = {name: np.array(values)[order] for name, values in table.items()}
    bags, kinds = (np.array([entry[k] for entry in entries]) for k in (1, 2))
    figures: Figures = {}
    for kind in SIZES:
        held = np.isin(bags, bags[kinds == kind]) & np.isin(kinds, ("", kind))
        some = {name: values[held] for name, values in columns.items()}
        positive = kinds[held] == kind
        measures: dict[str, Auroc | Share] = {
            f"auroc_{kind}": Auroc(Ranking(positive, some["anomaly_score"])),
            f"pd_{kind}": Share(some["anomalous"], positive),
        }
        if kind == "gun":
            measures["auroc_p_gun"] = Auroc(Ranking(positive, some["p_gun"]))
        figures |= with_intervals(measures, {}, positive, Bootstrap.by_group(bags[held].tolist()))
    without = kinds == ""
    alarm = {"pfa_bags": Share(columns["anomalous"], without)}
    return figures | with_intervals(alarm, {}, ~without, Bootstrap.by_group(bags.tolist()))
