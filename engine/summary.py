"""Summary of a finished scan, counted from the stored rows."""

import os
import socket
from collections import Counter
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from .bundle import DEMO_SENTENCE
from .errors import Refused
from .results import Session
from .results.parts import files_of, read_parquet
from .results.schema import columns_of
from .row import THREATS
from .settings import ScanSettings
from .sources import ListingCounts, left_out
from .stages import Setup, WorkPlan
from .text import timestamp
from .workers.progress import Progress

MOST_ANOMALOUS = 5
COLUMNS = (
    "uri",
    "kind",
    "status",
    *(f"p_{threat}" for threat in THREATS),
    "anomaly_score",
    "anomalous",
    "threats",
    "typicality",
    "gone",
)
COUNTS = ("gone", "replaced", "new", "kept", "kept_gone", "new_alarms")  # of a finished result


@dataclass(frozen=True)
class Suspicion:
    """One image in the table of the most anomalous ones."""

    uri: str
    anomaly_score: float
    anomalous: bool
    threats: list[str]


@dataclass
class Summary:
    """Figures at the end of a scan; counts cover the whole result, including earlier runs, but gone files."""

    out: str
    host: str = ""
    start: str = ""  # of this run, in UTC, ISO 8601
    end: str = ""
    images: int = 0
    containers: int = 0  # folders and archives that could not be listed to their end
    ok: int = 0
    failed: dict[str, int] = field(default_factory=dict)  # by status
    alarms: int = 0
    alarms_by_class: dict[str, int] = field(default_factory=dict)  # one image may count for several
    atypical: int | None = 0  # look like nothing the model has seen; None if the model does not tell
    suppressed: int = 0  # over a class threshold, yet no alarm
    gone: int = 0  # rows of an earlier run whose candidate is no longer there: dropped, or marked by this run
    replaced: int = 0  # rows of an earlier run whose file has changed
    new: int = 0  # candidates of which the finished result before had no row
    kept: int = 0  # rows of the finished result before, as they were
    kept_gone: int = 0  # rows of candidates that are gone; no other figure counts them
    new_alarms: int = 0  # alarms on rows that are not `kept`
    duplicates: int = 0  # paths reached twice
    retries: int = 0  # requests to an object store that this run had to repeat
    other_files: dict[str, int] = field(default_factory=dict)  # no candidates, by extension or reason
    scanned_now: int = 0  # rows that this run wrote
    recognized_now: int = 0  # of these, read only, since their bytes were scored before (by_content)
    seconds: float = 0.0  # of this run, start-up apart
    startup_seconds: float = 0.0
    images_per_second: float = 0.0
    images_per_second_by_node: dict[str, float] = field(default_factory=dict)  # of a Ray cluster
    stage_seconds: dict[str, float] = field(default_factory=dict)  # busy, summed over threads
    stage_cpu_seconds: dict[str, float] = field(
        default_factory=dict
    )  # of all threads: their sum is cpu_seconds
    cpu_seconds: float = 0.0  # of all processes in this run, start-up apart
    coordinator_cpu_seconds: float = 0.0  # of these, listing, dealing and writing
    plan: WorkPlan | None = None  # how the cores were divided
    model: str = ""
    demo: bool = False
    decision: str = ""
    backend: str = ""
    precision: str = ""
    threshold: float = 0.0
    pfa: float | None = None
    notes: list[str] = field(default_factory=list)
    most_anomalous: list[Suspicion] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """0 if every candidate has a result, 3 if some failed."""
        return 3 if self.failed else 0

    def to_json(self) -> dict[str, Any]:
        """Return the figures by name."""
        use = DEMO_SENTENCE if self.demo else None
        return asdict(self) | {"use": use, "exit_code": self.exit_code}


def summarize(
    settings: ScanSettings, session: Session, setup: Setup, progress: Progress, listed: ListingCounts
) -> Summary:
    """Summarize a finished scan from its stored rows and this run's counts."""
    report, point, out = session.finished, setup.point, settings.out_path
    assert report is not None
    assert out is not None
    seconds, cpu = progress.elapsed(), progress.cpu_by_stage()
    summary = Summary(
        out=settings.out_name,
        host=socket.gethostname(),
        start=progress.began,
        end=timestamp(),
        **{name: getattr(report, name) for name in COUNTS},
        duplicates=session.index.duplicates,
        retries=progress.retries,
        other_files=dict(listed.skipped.most_common()),
        scanned_now=progress.done,
        recognized_now=progress.recognized,
        seconds=seconds,
        startup_seconds=progress.startup_seconds,
        images_per_second=progress.done / seconds,
        images_per_second_by_node={node: rows / seconds for node, rows in progress.rows_by_node.items()},
        stage_seconds=dict(progress.seconds),
        stage_cpu_seconds=cpu,
        cpu_seconds=sum(cpu.values()),
        coordinator_cpu_seconds=progress.coordinator_cpu(),
        plan=setup.plan,
        model=setup.model,
        demo=setup.demo,
        decision=point.decision,
        backend=setup.backend,
        precision=setup.precision,
        threshold=point.threshold,
        pfa=None if settings.threshold is not None else point.pfa,
        notes=setup.notes(),
    )
    _count_rows(summary, out, list(point.class_thresholds))
    return summary


def finish(session: Session, settings: ScanSettings, listed: ListingCounts, progress: Progress) -> None:
    """Put the result in its place.

    Raises Refused, leaving nothing, if no shard has a candidate, and TooManyFailures, at which an earlier run
    may have stopped with nothing left to do.
    """
    if not session.index.listed and not listed.elsewhere:
        session.discard()
        raise Refused(_nothing_found(settings, listed))
    progress.check_failures(settings)
    session.finish()


def _nothing_found(settings: ScanSettings, listed: ListingCounts) -> str:
    """Return the message for a scan without images: where it looked, and what is there instead."""
    where = ", ".join(os.fsdecode(source) for source in settings.sources) or "the list"
    skipped = ", ".join(left_out(name, number) for name, number in listed.skipped.most_common(5))
    return f"no image was found in {where}: " + (f"it holds {skipped}" if skipped else "it is empty")


def _count_rows(summary: Summary, out: Path, class_thresholds: list[float]) -> None:
    """Fill in the counts of the stored rows, which are read in batches."""
    failed: Counter[str] = Counter()
    by_class: Counter[str] = Counter()
    worst: list[Suspicion] = []
    strange = known = 0
    pc: Any = import_module("pyarrow.compute")  # its functions are made at run time, unknown to checkers
    batches = (batch for file in files_of(out) for batch in read_parquet(file, columns_of(*COLUMNS)))
    for stored in batches:  # files by their handles: Arrow takes no path that is not UTF-8
        batch = stored.filter(stored["gone"].is_null()) if stored["gone"].null_count < len(stored) else stored
        summary.containers += _counted(batch["kind"])["container"]
        failed.update(_counted(batch["status"]))
        by_class.update(_counted(batch["threats"].flatten()))
        summary.alarms += batch["anomalous"].true_count
        strange += pc.sum(pc.less(batch["typicality"], 1)).as_py() or 0
        known += len(batch) - batch["typicality"].null_count
        summary.suppressed += _suppressed(batch, class_thresholds)
        worst = _worst(worst, batch)
    summary.ok = failed.pop("ok", 0)
    summary.atypical = strange if known or not summary.ok else None
    summary.failed = dict(failed.most_common())
    summary.images = summary.ok + failed.total() - summary.containers
    summary.alarms_by_class = {threat: by_class[threat] for threat in THREATS}
    summary.most_anomalous = worst


def _counted(column: Any) -> Counter[str]:
    """Count the values of a column of text."""
    return Counter({each["values"].as_py(): each["counts"].as_py() for each in column.value_counts()})


def _suppressed(batch: Any, class_thresholds: list[float]) -> int:
    import pyarrow as pa

    pc: Any = import_module("pyarrow.compute")  # its functions are made at run time, unknown to checkers

    over = None
    for threat, threshold in zip(THREATS, class_thresholds, strict=True):
        this = pc.greater_equal(batch[f"p_{threat}"], pa.scalar(threshold, pa.float32()))  # as it was scored
        over = this if over is None else pc.or_(over, this)
    return pc.sum(pc.and_(over, pc.invert(batch["anomalous"]))).as_py() or 0


def _worst(worst: list[Suspicion], batch: Any) -> list[Suspicion]:
    import pyarrow as pa

    pc: Any = import_module("pyarrow.compute")  # its functions are made at run time, unknown to checkers

    table = pa.Table.from_batches([batch])
    keys = [("anomaly_score", "descending"), ("uri", "ascending")]  # equal scores stand by name
    order = pc.select_k_unstable(table, MOST_ANOMALOUS, sort_keys=keys)
    rows = table.take(order).to_pylist()
    fresh = [
        Suspicion(r["uri"], r["anomaly_score"], r["anomalous"], r["threats"] or [])
        for r in rows
        if r["anomaly_score"] is not None
    ]
    return sorted([*worst, *fresh], key=lambda s: (-s.anomaly_score, s.uri))[:MOST_ANOMALOUS]
