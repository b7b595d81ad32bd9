"""A row a bag: the views of a bag in a finished result are joined.

A command of its own over finished results, since which names make a bag is a question to rows that exist:
another answer needs no scan, and a scan still gives a row per image. Views of a bag may stand anywhere in a
result (`top/bag7.png`, `side/bag7.png`), so rows are first dealt to temporary files by their bag's number,
and then joined file by file: in memory are some tens of bytes of each row, and one such file.
"""

import json
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import Refused
from ..grouping import NO_BAG, Grouping, Numbered, number_bags
from ..results.finished import current_footer
from ..results.parts import ROW_GROUP, files_of, read_parquet, write_parquet
from ..results.schema import columns_of
from ..row import THREATS
from ..system.durable import check_output
from ..text import timestamp
from .threat_sets import bits_of, every_set

if TYPE_CHECKING:
    import pyarrow as pa

BAGS_PER_FILE = 1 << 16
MOST_FILES = 200  # that are open at a time
FOOTER_KEY = b"gbad_batch_bags"
PROBABILITIES = tuple(f"p_{threat}" for threat in THREATS)
READ = ("uri", "status", "anomaly_score", "anomalous", "threats", *PROBABILITIES)

# name: (type, what it says)
COLUMNS: dict[str, tuple[str, str]] = {
    "bag": ("string", "name of the bag; of an image that belongs to none, its uri"),
    "views": ("int32", "images of the bag"),
    "failed": ("int32", "of these, how many have no score"),
    "anomaly_score": ("double", "the largest of its views; null if none has a score"),
    "anomalous": ("bool", "the alarm: a view alarms; null if none has a score"),
    "threats": ("strings", "classes that an alarming view names; null unless anomalous"),
    **{name: ("float", f"the largest {name} of its views") for name in PROBABILITIES},
    "view": ("string", "uri of the view with the largest score, the first of equal ones"),
    "uris": ("strings", "all views, in the order of the results"),
    "statuses": ("strings", "status of each view, in the order of uris: which failed, and why"),
    "scores": ("doubles", "anomaly_score of each view, in the order of uris; null without one"),
}


@dataclass
class Bagged:
    """Figures of a result whose views were joined."""

    results: str
    out: str
    images: int  # that are there: rows of containers and of files that are gone belong to no bag
    bags: int
    alarms: int  # bags with an alarm
    unscored: int  # bags of which no view has a score
    incomplete: int  # bags of which a view failed
    single: int  # images that the grouping does not name, each a bag of its own
    largest: int  # views of the bag that has most

    def to_json(self) -> dict[str, Any]:
        """Return the figures by name."""
        return asdict(self)


def join_views(results: Path, grouping: Grouping, out: Path) -> Bagged:
    """Write a row a bag to the Parquet file `out`, in the order in which bags first occur.

    The output appears whole or not at all, and replaces an earlier one. Raises Refused if the results do not
    serve, the grouping names none of their images, or `out` is another file.
    """
    footer = current_footer(results)
    check_output(out, "a table of bags", is_bags)
    numbered = number_bags(results, grouping)
    found = Bagged(
        results=str(results.absolute()),
        out=str(out.absolute()),
        images=int((numbered.bags != NO_BAG).sum()),
        bags=numbered.count,
        alarms=0,
        unscored=0,
        incomplete=0,
        single=numbered.single,
        largest=0,
    )
    about = {"results": found.results, "scan_id": footer["scan_id"], "grouping": grouping.text}
    about |= {"operating_point": footer["operating_point"], "created": timestamp()}
    metadata = {FOOTER_KEY: json.dumps(about).encode()}
    try:
        with ExitStack() as stack:
            files = _dealt(results, grouping, numbered, out.parent, stack)
            write_parquet(out, bags_schema(), _joined(files, found), metadata)
    except OSError as error:
        raise Refused(f"{out} cannot be written: {error.strerror}; nothing was written") from None
    return found


def bags_schema() -> "pa.Schema":
    """Return the Arrow schema of bags, with a description on each field."""
    import pyarrow as pa

    types = {
        "string": pa.string(), "int32": pa.int32(), "double": pa.float64(), "float": pa.float32(),
        "bool": pa.bool_(), "strings": pa.list_(pa.string()), "doubles": pa.list_(pa.float64()),
    }  # fmt: skip
    return pa.schema(
        [
            pa.field(name, types[kind], metadata={"description": text})
            for name, (kind, text) in COLUMNS.items()
        ]
    )


def is_bags(path: Path) -> bool:
    """Tell whether a file is a table of bags."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return FOOTER_KEY in (pq.read_metadata(path).metadata or {})
    except (pa.ArrowException, OSError):
        return False


# --- dealing rows to files ---


def _dealt(
    results: Path, grouping: Grouping, numbered: Numbered, folder: Path, stack: ExitStack
) -> list[IO[bytes]]:
    """Deal the rows to temporary files, each of which holds bags of neighbouring numbers.

    The files have no names, so that nothing is left of them however this process ends.
    """
    import pyarrow as pa

    size = max(BAGS_PER_FILE, -(-numbered.count // MOST_FILES))
    schema = _dealt_schema()
    files = [_nameless(folder, stack) for _ in range(-(-numbered.count // size))]
    with ExitStack() as writers:
        streams = [writers.enter_context(pa.ipc.new_stream(file, schema)) for file in files]
        for bags, batch in _rows(results, grouping, numbered):
            where = bags // size
            for file in np.unique(where):
                chosen = np.flatnonzero(where == file)
                streams[file].write_batch(batch.take(pa.array(chosen)))
    return files


def _nameless(folder: Path, stack: ExitStack) -> IO[bytes]:
    return stack.enter_context(tempfile.TemporaryFile(dir=folder))


def _rows(
    results: Path, grouping: Grouping, numbered: Numbered
) -> "Iterator[tuple[NDArray[np.int32], pa.RecordBatch]]":
    """Yield the bags' numbers of images, and what is needed of these."""
    import pyarrow as pa

    pc: Any = import_module("pyarrow.compute")  # its functions are made at run time, unknown to checkers
    at = 0
    for file in files_of(results):
        for batch in read_parquet(file, columns_of(*READ)):
            bags = numbered.bags[at : at + len(batch)]
            at += len(batch)
            chosen = np.flatnonzero(bags != NO_BAG)
            rows = batch.take(pa.array(chosen))
            names = pc.coalesce(grouping.bags(rows["uri"]), rows["uri"])
            columns = [pa.array(bags[chosen]), names, bits_of(rows["threats"])]
            columns += [rows[name] for name in READ if name != "threats"]
            yield bags[chosen], pa.RecordBatch.from_arrays(columns, schema=_dealt_schema())


def _dealt_schema() -> "pa.Schema":
    import pyarrow as pa

    own = [("number", pa.int32()), ("bag", pa.string()), ("bits", pa.int8())]
    return pa.schema([*own, *((name, columns_of(name).field(0).type) for name in READ if name != "threats")])


# --- joining the rows of a file ---


def _joined(files: list[IO[bytes]], found: Bagged) -> "Iterator[pa.RecordBatch]":
    import pyarrow as pa

    for file in files:
        file.seek(0)
        with pa.ipc.open_stream(file) as stream:
            table = stream.read_all()
        file.truncate(0)  # its bytes are in memory now
        batch = _bags_of(table.take(_by_bag(table)).combine_chunks(), found)
        for start in range(0, len(batch), ROW_GROUP):
            yield batch.slice(start, ROW_GROUP)


def _by_bag(table: "pa.Table") -> "pa.Array":
    """Return the order of the rows by bag; rows of one bag stay in the order of the results."""
    import pyarrow as pa

    return pa.array(np.argsort(table["number"].to_numpy(), kind="stable"))


def _bags_of(rows: "pa.Table", found: Bagged) -> "pa.RecordBatch":
    """Join rows that are sorted by bag, and count in `found`."""
    import pyarrow as pa

    numbers = rows["number"].to_numpy()
    starts = np.flatnonzero(np.diff(numbers, prepend=-1))
    views = np.diff(starts, append=len(numbers))
    scores = rows["anomaly_score"].to_numpy()  # NaN where null
    scored = ~np.isnan(scores)
    filled = np.where(scored, scores, -np.inf)
    largest = np.maximum.reduceat(filled, starts)
    has_score = np.logical_or.reduceat(scored, starts)
    alarming = rows["anomalous"].fill_null(False).to_numpy()
    alarms = np.logical_or.reduceat(alarming, starts)
    bits = np.bitwise_or.reduceat(np.where(alarming, rows["bits"].to_numpy(), 0), starts)
    failed = np.add.reduceat((~scored).astype(np.int32), starts)
    best = _first(filled == np.repeat(largest, views), starts, views)
    columns: dict[str, Any] = {
        "bag": rows["bag"].take(pa.array(starts)),
        "views": pa.array(views.astype(np.int32)),
        "failed": pa.array(failed),
        "anomaly_score": pa.array(largest, mask=~has_score),
        "anomalous": pa.array(alarms, mask=~has_score),
        "threats": every_set().take(pa.array(bits.astype(np.int64), mask=~alarms)),
        "view": rows["uri"].take(pa.array(best, mask=~has_score)),
    }
    for name in PROBABILITIES:
        values = np.nan_to_num(rows[name].to_numpy(), nan=-1.0)
        columns[name] = pa.array(np.maximum.reduceat(values, starts), mask=~has_score)
    offsets = pa.array(np.append(starts, len(numbers)).astype(np.int32))
    for name, source in (("uris", "uri"), ("statuses", "status"), ("scores", "anomaly_score")):
        columns[name] = pa.ListArray.from_arrays(offsets, rows[source].combine_chunks())
    found.alarms += int(alarms.sum())
    found.unscored += int((~has_score).sum())
    found.incomplete += int((failed > 0).sum())
    found.largest = max(found.largest, int(views.max(initial=0)))
    plain = {
        name: column if isinstance(column, pa.Array) else column.combine_chunks()
        for name, column in columns.items()
    }
    return pa.RecordBatch.from_arrays([plain[name] for name in COLUMNS], schema=bags_schema())


def _first(flags: NDArray[np.bool_], starts: NDArray[np.intp], views: NDArray[np.intp]) -> NDArray[np.intp]:
    """Return the position of the first flag of each bag, each of which has one."""
    places = np.where(flags, np.arange(len(flags)), len(flags))
    return np.minimum.reduceat(places, starts) if len(views) else starts
