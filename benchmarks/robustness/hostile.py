"""Scans each known kind of hostile input; prints kind, number of inputs, and outcome, which must be right."""

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pyarrow.parquet as pq

from gbad_batch.engine.decode import DecodeLimits, Decoder
from gbad_batch.engine.results.schema import rows_of
from gbad_batch.engine.row import Row

from ..report import Report
from .soaking.commands import Running
from .soaking.hostile_archives import archive_trials
from .soaking.hostile_case import Case
from .soaking.hostile_images import image_cases
from .soaking.place import ALL_ROWS, Place

RIGHT = "right"


def options(parser: argparse.ArgumentParser) -> None:
    """Declare which kinds to try."""
    parser.add_argument("--only", metavar="WORD", default="", help="only kinds that hold this word")


def run(arguments: argparse.Namespace) -> Report:
    """Try every kind, and count those of which anything is wrong."""
    report = Report(
        "Hostile inputs: each ends as its row or one sentence, with right pixels or a right reason"
    )
    outcomes: list[tuple[str, int, str]] = []
    with tempfile.TemporaryDirectory() as scratch:
        place = Place.bare(Path(scratch) / "place")
        for kind, inputs, said in _outcomes(place, arguments.only):
            print(f"  {kind}: {said}", file=sys.stderr, flush=True)
            outcomes.append((kind, inputs, said))
    report.tables.append(
        [["kind", "inputs", "outcome"], *([kind, str(n), said] for kind, n, said in outcomes)]
    )
    report.add("kinds", len(outcomes))
    report.add("inputs", sum(inputs for _, inputs, _ in outcomes))
    report.add("wrong", sum(said != RIGHT for *_, said in outcomes), at_most=0)
    return report


def _outcomes(place: Place, word: str) -> Iterator[tuple[str, int, str]]:
    yield from _images(place, word)
    yield from _archives(place, word)


def _images(place: Place, word: str) -> Iterator[tuple[str, int, str]]:
    """Scan all images in one archive, so that each has hostile neighbours."""
    cases = [case for case in image_cases() if word in case.kind]
    if not cases:
        return
    archive, out = place.scratch / "hostile", place.scratch / "hostile.parquet"
    for number, case in enumerate(cases):
        (archive / f"{number:03}").mkdir(parents=True)
        for name, right in case.files.items():
            (archive / f"{number:03}" / name).write_bytes(right.data)
    ended = Running(place.words(archive, out)).ended()
    if ended.code not in (0, ALL_ROWS):
        yield "images", sum(len(case.files) for case in cases), f"exit code {ended.code}: {ended.said[-300:]}"
        return
    rows = {str(row.uri): row for batch in pq.read_table(out).to_batches() for row in rows_of(batch)}
    decoder = Decoder(None, DecodeLimits())
    for number, case in enumerate(cases):
        yield case.kind, len(case.files), _outcome(case, archive / f"{number:03}", rows, decoder)


def _outcome(case: Case, folder: Path, rows: dict[str, Row], decoder: Decoder) -> str:
    """Say what is wrong with a kind's rows and pixels, the first of it."""
    for name, right in case.files.items():
        row, alone = rows.get(f"{folder}/{name}"), Row(name)
        if row is None:
            return f"{name}: no row"
        pixels = decoder(alone, right.data)
        if row.status != alone.status:
            return f"{name}: {row.status} ({row.error}) in a scan, {alone.status} ({alone.error}) alone"
        if wrong := right.wrong(row, pixels):
            return f"{name}: {wrong}"
    return RIGHT


def _archives(place: Place, word: str) -> Iterator[tuple[str, int, str]]:
    for number, trial in enumerate(archive_trials()):
        if word in trial.kind:
            with place.round(f"trial-{number}") as own:
                yield trial.kind, trial.inputs, trial.wrong(own) or RIGHT
