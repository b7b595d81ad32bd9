"""Join the results of all shards of a scan into the result of the whole, in the order of the sources."""

import os
import socket
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from itertools import starmap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import Refused
from ..settings import Shard, StrPath, check_remote_out, told
from ..system.durable import open_regular
from ..system.machine import installed
from ..system.objects import is_url
from ..text import timestamp
from .derived import new_output, write_file
from .finished import current_footer
from .form import has_form
from .parts import read_parquet, row_bytes, rows_in
from .remote_staging import local_copies
from .resuming import FinishReport
from .schema import GONE_PLACE, PLACE, results_schema, shard_schema
from .selection import sorted_by_position

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

FORM = {
    "fingerprint": {"shard": str},
    "listing": {"files": int, "digest": str},
    "since": int,
    "runs": list,
    **dict.fromkeys(FinishReport.__dataclass_fields__, int),
}
APART = {"shard", "features"}  # of a fingerprint: what differs from shard to shard
PACKAGES = ("gbad-batch", "numpy", "pyarrow")
CHANGED = (
    "the archive changed while its shards were scanned: files that came or went meanwhile may be missing or "
    "stand in another order; run every shard again with --update, and then merge again"
)


@dataclass(frozen=True)
class MergeSettings:
    """Which shards to join, and where to. Raises Refused for an output that is a folder."""

    parts: Sequence[StrPath]  # the finished results of all shards, in any order; files or objects
    out: StrPath  # a new file or object
    overwrite: bool = False  # replace what stands at `out`

    def __post_init__(self) -> None:
        """Refuse what cannot be written."""
        if is_url(self.out):
            check_remote_out(self.out)
        if os.fspath(self.out).endswith("/"):
            raise Refused(
                f"--out {self.out} is a folder, and a merged result is one file: leave the slash out"
            )


@dataclass
class Merged:
    """Figures of a merged result."""

    out: str
    shards: int
    rows: int
    images: int
    containers: int
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return the figures by name."""
        return asdict(self)


def merge(settings: MergeSettings) -> Merged:
    """Write the rows of all shards into one result, as a scan of the whole would have; returns the figures.

    Raises Refused, and leaves nothing, if a shard is missing, given twice, unfinished or damaged, or if the
    shards are of different scans, or hold a file twice.
    """
    start = timestamp()
    with local_copies(settings.parts) as files:
        return _merge(_all_shards(files), settings, start)


def _merge(shards: "list[_Finished]", settings: MergeSettings, start: str) -> Merged:
    footer = _joined_footer(shards, start)
    listings = {(shard.footer["listing"]["files"], shard.footer["listing"]["digest"]) for shard in shards}
    notes = [] if len(listings) == 1 else [CHANGED]
    if told(settings.out) in [told(shard.name) for shard in shards]:
        raise Refused(f"{settings.out} is one of the shards: name another output")
    with new_output(settings.out, settings.overwrite) as staging:
        positions = _positions(shards, is_one_listing=not notes)
        pairs = _with_positions(shards, positions)
        size = row_bytes(shard.path for shard in shards)
        rows = sorted_by_position(pairs, positions, size, results_schema(), staging.sorting)
        write_file(staging, results_schema(), rows, lambda: _ended(footer), settings.overwrite)
    counts = {name: footer[name] for name in ("rows", "images", "containers")}
    return Merged(told(settings.out), len(shards), **counts, notes=notes)


@dataclass(frozen=True)
class _Finished:
    """The finished result of one shard."""

    name: str  # as given
    path: Path  # of the file, which may be a copy
    shard: Shard
    footer: dict[str, Any]

    @classmethod
    def read(cls, name: str, path: Path) -> "_Finished":
        """Read the footer; raises Refused if it is no shard's, or the rows are not those that it counts."""
        try:
            footer = current_footer(path)
        except Refused as refused:
            raise Refused(str(refused).replace(str(path), name)) from None
        if not has_form(footer, FORM):
            raise Refused(f"{name} is no shard: it was scanned without --shard, or merged")
        if not _is_whole(path, footer["rows"]):
            raise Refused(f"{name} was changed since its scan: merge first, then decide or edit")
        return cls(name, path, Shard.of(footer["fingerprint"]["shard"]), footer)

    @property
    def same(self) -> dict[str, Any]:
        """What all shards must have in common."""
        fingerprint = {k: v for k, v in self.footer["fingerprint"].items() if k not in APART}
        return fingerprint | {"operating point": self.footer["operating_point"], "parts": self.shard.count}


def _is_whole(path: Path, rows: int) -> bool:
    """Tell whether a file has the column of places, and as many rows as its footer counts."""
    import pyarrow.parquet as pq

    with open_regular(path) as source:
        return PLACE in pq.read_schema(source).names and rows_in(path) == rows


def _all_shards(files: Sequence[tuple[str, Path]]) -> list[_Finished]:
    """Return the shards in their order; raises Refused unless each of one scan is there once."""
    by_index: dict[int, _Finished] = {}
    for given in starmap(_Finished.read, files):
        first = next(iter(by_index.values()), given)
        differing = sorted(k for k in first.same | given.same if first.same.get(k) != given.same.get(k))
        if differing:
            raise Refused(
                f"{first.name} and {given.name} are of different scans: they differ in {', '.join(differing)}"
            )
        other = by_index.setdefault(given.shard.index, given)
        if other is not given:
            raise Refused(f"{other.name} and {given.name} are both shard {given.shard}: leave one out")
    if not by_index:
        raise Refused("the shards are missing: name the results of all of them")
    count = next(iter(by_index.values())).shard.count
    missing = [i for i in range(count) if i not in by_index]
    if missing:
        names = ", ".join(f"{i}/{count}" for i in missing[:5]) + (" and more" if len(missing) > 5 else "")
        raise Refused(
            f"{len(missing)} of {count} shards are missing, {names}: run their scans to the end, and name "
            "them too"
        )
    return [by_index[i] for i in range(count)]


def _joined_footer(shards: list[_Finished], start: str) -> dict[str, Any]:
    """Return the footer of a scan of the whole, whose end is not set yet."""
    footers = [shard.footer for shard in shards]
    run = {
        "command": "merge",
        "parts": [told(shard.name) for shard in shards],
        "host": socket.gethostname(),
        "versions": installed(PACKAGES),
        "start": start,
        "end": None,
    }
    whole = {k: v for k, v in footers[0].items() if k != "listing"}
    return whole | {
        "scan_id": uuid.uuid4().hex,
        "since": max(footer["since"] for footer in footers),
        "fingerprint": footers[0]["fingerprint"] | dict.fromkeys(APART),
        "runs": [*(each for footer in footers for each in footer["runs"]), run],
        **{name: sum(f[name] for f in footers) for name in FinishReport.__dataclass_fields__},
    }


def _ended(footer: dict[str, Any]) -> dict[str, Any]:
    footer["runs"][-1]["end"] = timestamp()
    return footer


def _positions(shards: list[_Finished], is_one_listing: bool) -> "NDArray[np.int32]":
    """Return the position in the result of each row of the shards, one shard behind the other."""
    import numpy as np
    import pyarrow as pa

    column = pa.schema([shard_schema().field(PLACE)])
    read = [batch[PLACE].to_numpy() for shard in shards for batch in read_parquet(shard.path, column)]
    places = np.concatenate([np.empty(0, np.int64), *read])
    order = np.argsort(places, kind="stable")
    ascending = places[order]
    if is_one_listing and bool(((ascending[1:] == ascending[:-1]) & (ascending[1:] != GONE_PLACE)).any()):
        raise Refused("two shards hold the row of the same file: scan them again with --overwrite")
    positions = np.empty(len(order), np.int32)
    positions[order] = np.arange(len(order), dtype=np.int32)
    return positions


def _with_positions(
    shards: list[_Finished], positions: "NDArray[np.int32]"
) -> "Iterator[tuple[pa.RecordBatch, NDArray[np.int32]]]":
    at = 0
    for shard in shards:
        for batch in read_parquet(shard.path, results_schema()):
            yield batch, positions[at : at + batch.num_rows]
            at += batch.num_rows
