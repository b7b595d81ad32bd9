"""Decides what a command may do with its output: begin, resume, scan rows again, or refuse."""

import json
import os
import shlex
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, get_args

from ..errors import Refused
from ..row import DATES, Status
from ..settings import ScanSettings
from ..system.durable import read_whole, write_whole
from . import contents
from .features import FeatureStore
from .form import has_form
from .room import check_room
from .schema import read_footer
from .staging import Staging

STATE_FORMAT = 4
OPERATING_POINT = {"decision", "pfa", "threshold", "point"}  # names of a fingerprint
STATE_FORM: dict[str, Any] = {  # of `scan.json`, as `has_form` takes it
    "scan_id": str,
    "fingerprint": dict,
    "runs": [dict],
    "overwrite": bool,
    "retry": [str],
    "keeps_finished": bool,
    "by_content": bool,
    "since": int,
    "features": (str, type(None)),
    "format": int,
}


@dataclass(frozen=True)
class FinishReport:
    """Counts of a finished result, whose `rows` are `images`, `containers` and `kept_gone`."""

    rows: int
    images: int  # of candidates that are there, as `containers`
    containers: int
    gone: int  # rows of earlier runs whose candidate this run did not meet: dropped, or marked
    replaced: int  # rows of earlier runs that were dropped since their file has changed
    new: int  # candidates of which the finished result before had no row
    kept: int  # rows of the finished result before whose candidate is as it was
    kept_gone: int  # rows whose candidate is gone
    new_alarms: int  # on rows that are not `kept`


@dataclass
class ScanState:
    """Content of `scan.json`, which describes an unfinished scan."""

    scan_id: str
    fingerprint: dict[str, Any]
    runs: list[dict[str, Any]] = field(default_factory=list)
    overwrite: bool = False  # a finished output is to be replaced
    retry: list[str] = field(default_factory=list)  # statuses whose rows were dropped to be scanned again
    keeps_finished: bool = False  # the other rows are those of the finished output, as the first part
    by_content: bool = False  # likewise, and a digest decides whether a row of that part is still right
    since: int = 0  # us since the epoch, UTC: when it began, after every earlier scan into the output
    features: str | None = None  # the folder for features
    format: int = STATE_FORMAT

    @property
    def replaces(self) -> bool:
        """Whether the finish may replace an existing output."""
        return self.overwrite or self.keeps_finished

    def save(self, path: Path) -> None:
        """Write the state durably; raises OSError."""
        write_whole(path, json.dumps(asdict(self), indent=1).encode())


@dataclass(frozen=True)
class Command:
    """A scan's command and its output; `begin_or_resume` decides, under the lock, what to do."""

    settings: ScanSettings
    fingerprint: dict[str, Any]
    staging: Staging
    features: FeatureStore | None
    retry: list[str]  # statuses to scan again

    def check(self) -> None:
        """Refuse what can be refused before anything is created."""
        if str(self.staging.target) == self._features_target:
            raise Refused(
                f"{self.staging.target} cannot hold both rows and features: name another for one of them"
            )
        with usable(self.staging.target):
            if not self.staging.exists:
                self._begin(read_footer(self.staging.target), former=None)

    def begin_or_resume(self) -> ScanState | FinishReport:
        """Return the scan to begin or resume, or the report of one whose final clean-up was interrupted.

        Raises Refused, naming the options that help.
        """
        self.staging.restore()
        former = self._read_state()
        footer = read_footer(self.staging.target)
        if former and footer and footer.get("scan_id") == former.scan_id:
            self._clean_up(former)
            if self._is_same_command(former):
                return _report(footer)
            self.staging.enter()
            former = None
        if former and not self.settings.restart:
            state = self._resume(former, footer)
            self._check_room(state)
            return state
        state = self._begin(footer, former)
        self._check_room(state)
        self._drop(former)
        state.save(self.staging.state)
        return state

    def _check_room(self, state: ScanState) -> None:
        out = self.staging
        footer = read_footer(out.target) if state.by_content else None
        extra = contents.ROW_BYTES * footer["rows"] if footer else 0
        check_room(
            out.target, out.data, is_folder=out.is_folder, copies_finished=state.keeps_finished, extra=extra
        )

    def _read_state(self) -> ScanState | None:
        content: Any = None
        try:
            content = json.loads(read_whole(self.staging.state))
        except FileNotFoundError:
            if self.staging.is_empty:
                return None
            raise Refused(
                f"{self.staging.folder} holds other files than a scan's: remove or rename it"
            ) from None
        except (ValueError, RecursionError):
            pass  # as one of another form
        if has_form(content, {"format": int}) and content["format"] != STATE_FORMAT:
            raise Refused(
                f"{self.staging.folder} was written by another version: finish it there, or remove it"
            )
        is_ours = has_form(content, STATE_FORM) and content.keys() == STATE_FORM.keys()
        if not is_ours or content["since"] not in DATES:
            raise Refused(f"{self.staging.state} is damaged: remove {self.staging.folder} to begin anew")
        return ScanState(**content)

    def _drop(self, former: ScanState | None) -> None:
        """Empty the staging folders for a new scan."""
        if self.features:
            self.features.reserve(former.scan_id if former else None)
        if former and former.features and former.features != self._features_target:
            FeatureStore(Path(former.features)).discard(former.scan_id)
        self.staging.clear()

    def _clean_up(self, state: ScanState) -> None:
        """Complete a finish that a crash interrupted after its rename."""
        if state.features:
            store = FeatureStore(Path(state.features))
            store.staging.enter()
            for _ in store.install(state.scan_id, state.replaces):
                pass
        self.staging.remove()

    def _is_same_command(self, state: ScanState) -> bool:
        asks_more = (
            self.settings.update
            or (self.settings.overwrite and not state.overwrite)
            or self.retry not in ([], state.retry)
        )
        return self.fingerprint == state.fingerprint and not asks_more

    def _resume(self, state: ScanState, footer: dict[str, Any] | None) -> ScanState:
        out = self.staging.target
        if differing := _differences(state.fingerprint, self.fingerprint):
            raise Refused(
                f"the unfinished scan in {self.staging.folder} differs in {', '.join(differing)}: run its "
                f"command to resume it, {self._or_decide(differing, ' then')}or add --restart to drop its "
                "parts"
            )
        if state.keeps_finished and state.by_content != self.settings.by_content:
            raise Refused(
                f"the unfinished update in {self.staging.folder} was begun "
                f"{'with' if state.by_content else 'without'} --by-content: resume it so, or add --restart "
                "to drop its parts"
            )
        state.overwrite |= self.settings.overwrite
        if self._stands and not state.replaces:
            raise Refused(f"{out} has appeared since its scan began: move it away, or add --overwrite")
        if state.keeps_finished and footer is None:
            raise Refused(f"{out}, of which images were to be scanned again, is gone: add --restart")
        return state

    def _begin(self, footer: dict[str, Any] | None, former: ScanState | None) -> ScanState:
        out = self.staging.target
        overwrite, retry = self.settings.overwrite, self.retry
        keeps = self.settings.update or bool(retry)
        if self.features:
            self.features.check(replace=overwrite or (keeps and self._stands))
        state = ScanState(uuid.uuid4().hex, self.fingerprint, overwrite=overwrite, retry=retry)
        state.features, state.since = self._features_target, _after(footer)
        if not self._stands:
            if retry and not former:
                raise Refused(f"there is no result at {out} whose images could be scanned again")
            return state
        self.staging.check_replaceable()
        if footer is not None and keeps:
            self._check_kept(footer)
            state.keeps_finished, state.by_content = True, self.settings.by_content
            state.runs = footer["runs"]
        elif footer is not None and not overwrite:
            differing = _differences(footer["fingerprint"], self.fingerprint)
            raise Refused(
                f"{out} is finished: name another output, {self._or_decide(differing)}or add --update to "
                "scan what is new or changed, --overwrite to replace it, --retry-failed or --retry REASON to "
                "scan those images again"
            )
        elif not overwrite:
            raise Refused(f"{out} exists and is not a result of gbad-batch: name another, or add --overwrite")
        return state

    def _check_kept(self, footer: dict[str, Any]) -> None:
        out = self.staging.target
        if differing := _differences(footer["fingerprint"], self.fingerprint):
            raise Refused(
                f"{out} was scanned with another {', '.join(differing)}: give the settings of its scan, "
                f"{self._or_decide(differing)}or --overwrite to scan everything again"
            )
        if self.features:
            stored = read_footer(self.features.staging.target)
            if stored is None or stored["scan_id"] != footer["scan_id"]:
                raise Refused(
                    f"{self.features.staging.target} does not hold the features of {out}: add --overwrite"
                )

    def _or_decide(self, differing: list[str], when: str = "") -> str:
        """Name the command that needs no scan, where nothing differs but the operating point."""
        if not differing or not OPERATING_POINT.issuperset(differing):
            return ""
        now, model = self.fingerprint, self.settings.model
        point = f"--threshold {now['threshold']}" if now["pfa"] is None else f"--pfa {now['pfa']}"
        options = [f"--decision {now['decision']}"] if "decision" in differing else []
        if self.settings.point is not None:
            point, options = f"--point {shlex.quote(os.fspath(self.settings.point))}", []
        options += [point, *([f"--model {model}"] if model else []), "--out NEW"]
        return f"run `gbad-batch decide {self.staging.target} {' '.join(options)}`{when}, "

    @property
    def _features_target(self) -> str | None:
        return str(self.features.staging.target) if self.features else None

    @property
    def _stands(self) -> bool:
        """Whether there is an output that a finish would replace."""
        out = self.staging.target
        return out.exists() and not (out.is_dir() and not any(out.iterdir()))


@contextmanager
def usable(target: Path) -> Iterator[None]:
    """Turn an OSError of looking at an output into a Refused that names it."""
    try:
        yield
    except OSError as error:
        raise Refused(f"{target} cannot be used: {os.strerror(error.errno or 0)}") from None


def statuses_of(retry: frozenset[str]) -> list[str]:
    """Expand `failed` to all statuses but ok; raises Refused for an unknown status."""
    known = get_args(Status)
    if unknown := sorted(retry - {*known, "failed"}):
        raise Refused(f"--retry {unknown[0]!r} is not a status: name failed, {', '.join(known)}")
    return sorted({s for s in known if s in retry or ("failed" in retry and s != "ok")})


def _report(footer: dict[str, Any]) -> FinishReport:
    counts: dict[str, Any] = {name: footer.get(name) for name in FinishReport.__dataclass_fields__}
    if not has_form(counts, dict.fromkeys(counts, int)):
        raise Refused("the footer of the finished output is damaged: scan again with --overwrite")
    return FinishReport(**counts)


def _after(footer: dict[str, Any] | None) -> int:
    """Return now or, if the clock was put back, the first moment after the scan of a finished result."""
    last = footer["since"] if footer and has_form(footer, {"since": int}) else 0
    return max(time.time_ns() // 1000, last + 1 if last in DATES else 0)


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    return sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
