"""Compare two results of the same archive: which decisions flipped, where, and by how much."""

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..datasets import join, read_labels
from ..errors import Refused, how_to_install
from ..results.finished import current_footer
from ..results.parts import ROW_GROUP, files_of, is_one_of, read_parquet
from ..results.schema import columns_of
from ..row import THREATS, threat_names, threats_of
from .paired import Paired, can_test, paired
from .threat_sets import bits_of

if TYPE_CHECKING:
    import pyarrow as pa

READ = ("uri", "kind", "bytes", "mtime", "offset", "anomaly_score", "anomalous", "threats", "gone")
KEYS = ["uri", "offset"]
FOLDER = r"[^/!]*$"  # what stands behind an image's folder, or the tar that it is a member of

Flags = NDArray[np.bool_]


@dataclass(frozen=True, kw_only=True)
class DiffSettings:
    """Which results to compare. Raises Refused for impossible values."""

    old: Path  # finished results: a file, or a folder of parts
    new: Path  # likewise, of the same archive
    labels: Path | None = None  # labels of the images: a file or a folder
    form: str = "auto"  # of the labels
    class_map: Path | None = None  # of the labels
    top: int = 20  # flips in each direction, and folders, that are listed

    def __post_init__(self) -> None:
        """Refuse impossible values."""
        if self.top < 0:
            raise Refused(f"--top {self.top} is below zero: name how many flips to list")


@dataclass(frozen=True)
class Side:
    """What one of the two results comes from."""

    path: str
    model: str  # name and short hash
    precision: str
    decision: str
    pfa: float
    threshold: float
    images: int  # that are there: rows of files that are gone do not count


@dataclass(frozen=True)
class Flip:
    """One image that is an alarm in one result only."""

    uri: str
    change: float  # of the distance to the threshold, in standard deviations of each result's scores
    old_score: float
    new_score: float
    old_threats: list[str]
    new_threats: list[str]
    labels: list[str] | None = None  # threats in the image; None if it has no label


@dataclass(frozen=True)
class Flips:
    """Counts of flips of one class or folder."""

    name: str
    raised: int
    cleared: int
    images: int | None = None  # compared images of a folder


@dataclass
class Difference:
    """What the new result decides differently; `compared` images have a score in both."""

    old: Side
    new: Side
    both: int
    only_old: int
    only_new: int
    only_old_examples: list[str]
    only_new_examples: list[str]
    changed_files: int  # in both, with another size or time
    lost_score: int  # in both, with a score in the old result only
    got_score: int  # in both, with a score in the new result only
    compared: int
    alarms_old: int  # of compared images
    alarms_new: int
    by_class: list[Flips] = field(default_factory=list)  # by the classes that the alarm names
    by_folder: list[Flips] = field(default_factory=list)  # those with most flips first
    tests: list[Paired] = field(default_factory=list)  # of all images, then of labelled ones
    raised: list[Flip] = field(default_factory=list)  # the largest changes first
    cleared: list[Flip] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return the figures by name."""
        return asdict(self)


def diff(settings: DiffSettings) -> Difference:
    """Compare two results image by image, matched by uri and offset; raises Refused."""
    old, new = (_Read.of(path) for path in (settings.old, settings.new))
    pairs = _Pairs(old, new)
    found = Difference(old=old.side(settings.old), new=new.side(settings.new), **pairs.counts(settings.top))
    found.by_class = pairs.by_class()
    found.by_folder = pairs.by_folder(settings.top)
    found.tests = [paired("all images", found.compared, int(pairs.raised.sum()), int(pairs.cleared.sum()))]
    labels: dict[int, NDArray[np.bool_]] = {}
    if settings.labels is not None:
        read = read_labels(settings.labels, settings.form, settings.class_map)
        position = join(read, pairs.table["uri"].to_pylist())
        found.tests += pairs.tests_of_labelled(position, read.labels)
        labels = dict(zip(position.tolist(), read.labels, strict=True))
    found.raised = pairs.ranked(pairs.raised, settings.top, labels)
    found.cleared = pairs.ranked(pairs.cleared, settings.top, labels)
    if not can_test():
        found.notes.append(f"no test of the difference, which needs SciPy: {how_to_install('statistics')}")
    if found.changed_files:
        found.notes.append(
            f"{found.changed_files} files have changed between the two scans: their flips may be the files'"
        )
    return found


@dataclass(frozen=True)
class _Read:
    """The images of a result: uri, offset (-1 for a file), bytes, mtime, score, alarm, classes as bits."""

    footer: dict[str, Any]
    table: "pa.Table"

    @classmethod
    def of(cls, path: Path) -> "_Read":
        import pyarrow as pa

        footer = current_footer(path)
        schema = pa.schema(
            {
                "uri": pa.string(), "offset": pa.int64(), "bytes": pa.int64(), "mtime": pa.int64(),
                "score": pa.float64(), "alarm": pa.bool_(), "classes": pa.int8(), "there": pa.bool_(),
            }
        )  # fmt: skip
        return cls(footer, pa.Table.from_batches(_batches(path, schema), schema))

    def side(self, path: Path) -> Side:
        point = self.footer["operating_point"]
        return Side(
            path=str(path),
            model=f"{self.footer['bundle']} ({self.footer['bundle_hash'][:12]})",
            precision=self.footer["precision"],
            images=len(self.table),
            **{name: point[name] for name in ("decision", "pfa", "threshold")},
        )


def _batches(path: Path, schema: "pa.Schema") -> "Iterator[pa.RecordBatch]":
    import pyarrow as pa

    for file in files_of(path):
        for batch in read_parquet(file, columns_of(*READ), ROW_GROUP):
            there = batch["gone"].is_null().to_numpy(zero_copy_only=False)
            there &= is_one_of(batch["kind"], ["image"])
            rows = batch if there.all() else batch.filter(pa.array(there))
            columns = [
                rows["uri"], rows["offset"].fill_null(-1), rows["bytes"], rows["mtime"].cast(pa.int64()),
                rows["anomaly_score"], rows["anomalous"], bits_of(rows["threats"]),
                pa.repeat(pa.scalar(True), len(rows)),
            ]  # fmt: skip
            yield pa.RecordBatch.from_arrays(columns, schema=schema)


class _Pairs:
    """Every image of the two results, once, with what each says of it."""

    def __init__(self, old: _Read, new: _Read):
        sides = [
            read.table.rename_columns([n if n in KEYS else f"{side}_{n}" for n in read.table.schema.names])
            for side, read in (("old", old), ("new", new))
        ]
        self.table = sides[0].join(sides[1], KEYS, join_type="full outer").combine_chunks()
        self._old, self._new = self._flags("old_there"), self._flags("new_there")
        self._both = self._old & self._new
        if self._both.sum() > min(map(len, sides)):
            raise Refused("one of the results has two rows for an image: scan it again")
        scores = [self._numbers(f"{side}_score") for side in ("old", "new")]
        self._scored = [self._both & ~np.isnan(each) for each in scores]
        self.compared = self._scored[0] & self._scored[1]
        alarms = [self._flags(f"{side}_alarm") & self.compared for side in ("old", "new")]
        self.alarms = alarms
        self.raised, self.cleared = alarms[1] & ~alarms[0], alarms[0] & ~alarms[1]
        margins = [
            _standing(each, self.compared, read.footer["operating_point"]["threshold"])
            for each, read in zip(scores, (old, new), strict=True)
        ]
        self._scores, self._change = scores, margins[1] - margins[0]
        self._classes = [
            self.table[f"{side}_classes"].fill_null(0).to_numpy().astype(np.int64) for side in ("old", "new")
        ]

    def counts(self, top: int) -> dict[str, Any]:
        """Count images by what the two results have of them."""
        changed = np.zeros(len(self._both), np.bool_)
        for name in ("bytes", "mtime"):
            before, now = (self.table[f"{side}_{name}"].fill_null(-1).to_numpy() for side in ("old", "new"))
            changed |= before != now
        only = {"only_old": self._old & ~self._new, "only_new": self._new & ~self._old}
        return {
            "both": int(self._both.sum()),
            **{name: int(flags.sum()) for name, flags in only.items()},
            **{f"{name}_examples": sorted(self._uris(flags))[:top] for name, flags in only.items()},
            "changed_files": int((changed & self._both).sum()),
            "lost_score": int((self._scored[0] & ~self._scored[1]).sum()),
            "got_score": int((self._scored[1] & ~self._scored[0]).sum()),
            "compared": int(self.compared.sum()),
            "alarms_old": int(self.alarms[0].sum()),
            "alarms_new": int(self.alarms[1].sum()),
        }

    def by_class(self) -> list[Flips]:
        """Count flips by the classes that the alarm names, those with most flips first."""
        raised, cleared = self._classes[1][self.raised], self._classes[0][self.cleared]
        found = [
            Flips(threat, int((raised >> k & 1).sum()), int((cleared >> k & 1).sum()))
            for k, threat in enumerate(THREATS)
        ]
        found.append(Flips("no class", int((raised == 0).sum()), int((cleared == 0).sum())))
        return sorted(found, key=lambda flips: -(flips.raised + flips.cleared))

    def by_folder(self, top: int) -> list[Flips]:
        """Count flips by folder, those with most flips first; folders without any are left out."""
        import pyarrow as pa

        pc: Any = import_module("pyarrow.compute")
        uris = self.table["uri"].filter(pa.array(self.compared))
        flags = {"raised": self.raised, "cleared": self.cleared}
        table = pa.table(
            {"folder": pc.replace_substring_regex(uris, pattern=FOLDER, replacement="")}
            | {name: pa.array(each[self.compared].astype(np.int64)) for name, each in flags.items()}
        )
        counts = [("raised", "sum"), ("cleared", "sum"), ("raised", "count")]
        rows = table.group_by("folder").aggregate(counts).to_pylist()
        found = [Flips(r["folder"], r["raised_sum"], r["cleared_sum"], r["raised_count"]) for r in rows]
        some = [each for each in found if each.raised or each.cleared]
        return sorted(some, key=lambda each: (-(each.raised + each.cleared), each.name))[:top]

    def ranked(self, flags: Flags, top: int, labels: dict[int, Flags]) -> list[Flip]:
        """Return the flips whose distance to the threshold changed most."""
        where = np.flatnonzero(flags)
        change = np.abs(self._change[where])
        if len(where) > top:
            least = np.partition(change, len(change) - top)[len(change) - top] if top else np.inf
            where = where[change >= least]  # more than `top` where some are equal
        uris = self.table["uri"].take(where).to_pylist()
        flips = [
            Flip(
                uri=uri,
                change=float(self._change[k]),
                old_score=float(self._scores[0][k]),
                new_score=float(self._scores[1][k]),
                old_threats=threats_of(self._classes[0][k]),
                new_threats=threats_of(self._classes[1][k]),
                labels=threat_names(labels[k]) if k in labels else None,
            )
            for k, uri in zip(where.tolist(), uris, strict=True)
        ]
        return sorted(flips, key=lambda flip: (-abs(flip.change), flip.uri))[:top]

    def tests_of_labelled(self, position: NDArray[np.intp], labels: Flags) -> list[Paired]:
        """Compare the flips of images with a threat, with none, and with each class."""
        positive = labels.any(axis=1)
        groups = {"images with a threat": positive, "images without a threat": ~positive}
        groups |= {f"images with a {threat}": labels[:, k] for k, threat in enumerate(THREATS)}
        found = []
        for name, members in groups.items():
            where = position[members]
            counts = (int(flags[where].sum()) for flags in (self.compared, self.raised, self.cleared))
            found.append(paired(name, *counts))
        return found

    def _flags(self, name: str) -> Flags:
        return self.table[name].fill_null(False).to_numpy()

    def _numbers(self, name: str) -> NDArray[np.float64]:
        return self.table[name].to_numpy()

    def _uris(self, flags: Flags) -> list[str]:
        import pyarrow as pa

        return self.table["uri"].filter(pa.array(flags)).to_pylist()


def _standing(scores: NDArray[np.float64], compared: Flags, threshold: float) -> NDArray[np.float64]:
    """Return how far scores are above the threshold, in standard deviations of those compared."""
    deviation = float(scores[compared].std()) if compared.any() else 0.0
    return (scores - threshold) / (deviation or 1.0)
