"""Decide again, from the losses and class scores that a scan stored, with another operating point."""

import os
import socket
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..bundle import DEMO_SENTENCE, Bundle, OperatingPoint, default_bundle_path, operating_point
from ..errors import Refused
from ..model.decision import Decision
from ..results.derived import Derivation
from ..results.finished import current_footer, matching_bundle
from ..results.site_point import digest_of, read_point
from ..row import THREATS
from ..settings import StrPath, check_point
from ..system.machine import installed
from ..text import timestamp
from .threat_sets import every_set

if TYPE_CHECKING:
    import pyarrow as pa

NAMES = ("decision", "pfa", "threshold", "point")  # of an operating point in a fingerprint
INPUTS = ("reconstruction_loss", "feature_matching_loss", "largest_logit")
PACKAGES = ("gbad-batch", "numpy", "pyarrow")


@dataclass(frozen=True, kw_only=True)
class DecideSettings:
    """What to decide again, and how. Raises Refused for impossible values."""

    results: Path  # a finished result: a file, or a folder of parts
    out: StrPath  # a new file or, with a trailing slash, a new folder of parts
    model: StrPath | None = None  # the bundle that the results come from; default: the demo model
    decision: str | None = None  # default: that of the results
    pfa: float | None = None  # probability of false alarm; default: that of the results
    threshold: float | None = None  # on anomaly_score, instead of pfa
    point: StrPath | None = None  # an operating point of the site's own, instead of decision and pfa
    overwrite: bool = False  # replace what stands at `out`, which may be the results, if they are a file

    def __post_init__(self) -> None:
        """Refuse impossible values and combinations."""
        check_point(self.pfa, self.threshold, self.decision, self.point)
        if all(value is None for value in (self.decision, self.pfa, self.threshold, self.point)):
            raise Refused("nothing is to be decided: add --pfa, --threshold, --point or --decision")


@dataclass
class Decided:
    """Figures of a result that was decided again."""

    results: str
    out: str
    model: str
    demo: bool
    before: dict[str, Any]  # the operating point of the results: decision, pfa, threshold, point
    after: dict[str, Any]  # that of the output
    rows: int = 0
    scored: int = 0  # rows with a score; the others stay as they are
    alarms_before: int = 0
    alarms: int = 0
    raised: int = 0  # alarms that were none before
    cleared: int = 0  # alarms before that are none now
    alarms_by_class: dict[str, int] = field(default_factory=dict)  # one image may count for several
    suppressed: int = 0  # over a class threshold, yet no alarm
    seconds: float = 0.0
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return the figures by name."""
        return asdict(self) | {"use": DEMO_SENTENCE if self.demo else None}


def decide(settings: DecideSettings) -> Decided:
    """Write the results anew as a scan with this operating point would have; returns the figures.

    Scores of an unchanged decision stay; another one is computed from the stored losses and largest logit,
    on this CPU. Raises Refused, and leaves nothing, if the results or the model do not serve.
    """
    began, start = time.monotonic(), timestamp()
    footer = current_footer(settings.results)
    bundle = matching_bundle(Path(settings.model or default_bundle_path()), settings.results, footer)
    former, point = footer["operating_point"], _point(settings, bundle, footer)
    decided = Decided(
        results=os.path.abspath(settings.results),  # noqa: PTH100 - keeps links
        out=os.path.abspath(settings.out),  # noqa: PTH100
        model=f"{bundle.manifest.name} ({bundle.hash[:12]})",
        demo=bundle.manifest.demo,
        before=point_of(footer),
        after=named_point(point, settings.threshold is None and settings.point is None, settings.point),
        notes=point.notes(footer["precision"]),
    )
    same = point.decision == former["decision"]
    decision = None if same else Decision.from_tensors(point.decision, bundle.tensors())
    change = Decider(settings.results, decision, point, decided)

    def new_footer() -> dict[str, Any]:
        run = {"command": "decide", "results": decided.results, "before": decided.before}
        run |= {
            "host": socket.gethostname(),
            "versions": installed(PACKAGES),
            "start": start,
            "end": timestamp(),
        }
        fingerprint = footer["fingerprint"] | decided.after
        runs = [*footer["runs"], run]
        return footer | {"operating_point": asdict(point), "fingerprint": fingerprint, "runs": runs}

    Derivation(settings.results, footer["rows"], settings.out, settings.overwrite).write(change, new_footer)
    decided.seconds = time.monotonic() - began
    return decided


def _point(settings: DecideSettings, bundle: Bundle, footer: dict[str, Any]) -> OperatingPoint:
    """Choose the operating point: what is not given is as in the results."""
    if settings.point is not None:
        return read_point(settings.point, bundle)
    former = footer["operating_point"]
    decision, pfa = settings.decision or former["decision"], settings.pfa
    if pfa is None and settings.threshold is None:
        pfa = footer["fingerprint"].get("pfa")
        if pfa is None:
            raise Refused(
                f"{settings.results} was decided by a threshold of your own, which is on the score of its "
                f"decision {former['decision']!r}: add --pfa or --threshold for {decision!r}"
            )
    return operating_point(bundle, footer["precision"], decision, pfa, settings.threshold)


def point_of(footer: dict[str, Any]) -> dict[str, Any]:
    """Name the operating point of finished results as a fingerprint does."""
    fingerprint = footer["fingerprint"]
    return {name: fingerprint.get(name) for name in NAMES} | _thresholds(footer["operating_point"])


def named_point(point: OperatingPoint, by_pfa: bool, file: StrPath | None) -> dict[str, Any]:
    """Name an operating point as a fingerprint does: `pfa` is null unless it set the threshold."""
    named = {"pfa": point.pfa if by_pfa else None, "point": None if file is None else digest_of(point)}
    return named | _thresholds(asdict(point))


def _thresholds(point: dict[str, Any]) -> dict[str, Any]:
    return {name: point[name] for name in ("decision", "threshold")}


class Decider:
    """Replaces the decision in batches of results, and counts in `decided` what that changes."""

    def __init__(self, results: Path, decision: Decision | None, point: OperatingPoint, decided: Decided):
        self._results = results
        self._decision = decision  # None if the stored scores are its own
        self._point = point
        self._decided = decided
        self._class_thresholds = np.asarray(point.class_thresholds, np.float32)
        self._threats = every_set()
        self._decided.alarms_by_class = dict.fromkeys(THREATS, 0)

    def __call__(self, batch: "pa.RecordBatch") -> "pa.RecordBatch":
        """Return rows with the new decision; raises Refused if one with a score lacks what that needs."""
        import pyarrow as pa

        scored = batch["anomaly_score"].is_valid().to_numpy(zero_copy_only=False)
        scores = self._scores(batch, scored)
        alarms = (scores >= self._point.threshold) & scored
        over = np.zeros(len(scores), np.int64)  # the classes at or above their thresholds, a bit each
        for bit, (threat, threshold) in enumerate(zip(THREATS, self._class_thresholds, strict=True)):
            reached = _numbers(batch, f"p_{threat}", scored) >= threshold
            over |= reached.astype(np.int64) << bit
        self._count(batch, scored, alarms, over)
        columns = {
            "anomaly_score": pa.array(scores, mask=~scored),
            "anomalous": pa.array(alarms, mask=~scored),
            "threats": self._threats.take(pa.array(over, mask=~alarms)),
        }
        return pa.RecordBatch.from_arrays(
            [columns.get(name, batch[name]) for name in batch.schema.names], schema=batch.schema
        )

    def _scores(self, batch: "pa.RecordBatch", scored: NDArray[np.bool_]) -> NDArray[np.float64]:
        if self._decision is None:
            return _numbers(batch, "anomaly_score", scored)
        if any((batch[name].is_null().to_numpy(zero_copy_only=False) & scored).any() for name in INPUTS):
            raise Refused(f"{self._results} lacks losses or logits of images with a score: scan them again")
        reconstruction, matching, logit = (_numbers(batch, name, scored) for name in INPUTS)
        return self._decision.score(reconstruction, matching, logit[:, None])

    def _count(
        self,
        batch: "pa.RecordBatch",
        scored: NDArray[np.bool_],
        alarms: NDArray[np.bool_],
        over: NDArray[np.int64],
    ) -> None:
        decided = self._decided
        before = batch["anomalous"].fill_null(False).to_numpy(zero_copy_only=False)
        decided.rows += len(scored)
        decided.scored += int(scored.sum())
        decided.alarms_before += int(before.sum())
        decided.alarms += int(alarms.sum())
        decided.raised += int((alarms & ~before).sum())
        decided.cleared += int((before & ~alarms).sum())
        decided.suppressed += int(((over > 0) & scored & ~alarms).sum())
        for bit, threat in enumerate(THREATS):
            decided.alarms_by_class[threat] += int((over[alarms] >> bit & 1).sum())


def _numbers(batch: "pa.RecordBatch", name: str, scored: NDArray[np.bool_]) -> NDArray[Any]:
    """Return a column's numbers, 1 where a row has no score."""
    values = batch[name].to_numpy(zero_copy_only=False)
    return values if scored.all() else np.where(scored, values, values.dtype.type(1))
