"""Output for people: progress on standard error, the summary on standard output."""

import io
import json
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NoReturn

from ..sources import left_out
from ..text import counted, duration, escaped

if TYPE_CHECKING:
    from tqdm import tqdm

    from ..summary import Summary, Suspicion
    from ..workers.progress import Progress
    from .doctor import Finding
    from .tune import Tuning

log = logging.getLogger(__name__)

LINE_EVERY_S = 10.0
WIDE = 79  # columns that have room for the time left


def whole_streams() -> None:
    """Make the standard streams usable however the command was started.

    A closed stream becomes the null device; otherwise a file of the archive would get its descriptor, and
    receive what libraries print. Letters that the locale lacks are escaped.
    """
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):  # the lowest free number first
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.open(os.devnull, os.O_RDWR), mode))  # noqa: PTH123, SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")


class PlainLines(logging.Formatter):
    """Formats a record as a sentence for people; those that are no error say so if they warn."""

    def format(self, record: logging.LogRecord) -> str:
        """Return one line, in which every name is escaped."""
        level = "WARNING: " if record.levelno == logging.WARNING else ""
        return f"gbad-batch: {escaped(level + record.getMessage())}"


class JSONLines(logging.Formatter):
    """Formats a record as one JSON object: `time` (UTC), `level`, `message`, `fields`.

    `fields` holds the name of the `logger`, and figures where a message has some: a record's own `fields`.
    """

    def format(self, record: logging.LogRecord) -> str:
        """Return one line of ASCII."""
        fields = {"logger": record.name, **getattr(record, "fields", {})}
        if record.exc_info:
            fields["traceback"] = self.formatException(record.exc_info)
        line = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": escaped(record.getMessage()),
            "fields": fields,
        }
        return json.dumps(line)


class LogLines(logging.Handler):
    """Writes log records to the current standard error, which a progress bar may have replaced."""

    def __init__(self, *, as_json: bool = False):
        super().__init__()
        self.as_json = as_json
        self.setFormatter(JSONLines() if as_json else PlainLines())

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line; ignores a terminal that is gone."""
        line = f"{self.format(record)}\n"
        bars = sys.modules.get("tqdm")
        with suppress(OSError):
            if bars and getattr(bars.tqdm, "_instances", None):  # a bar is shown: the line goes above it
                bars.tqdm.write(line, file=sys.stderr, end="")
            else:
                sys.stderr.write(line)


def tell(sentence: str, level: int = logging.INFO, **fields: Any) -> None:
    """Write a line to standard error, in the form of the command's log, whatever its lowest severity."""
    record = logging.makeLogRecord(
        {"name": "gbad_batch", "levelno": level, "levelname": logging.getLevelName(level)}
        | {"msg": sentence, "fields": fields}
    )
    _log_lines().emit(record)


def _log_lines() -> LogLines:
    """Return the handler that the command has set, or one for people."""
    handlers = (each for each in logging.getLogger().handlers if isinstance(each, LogLines))
    return next(handlers, None) or LogLines()


@contextmanager
def progress_shown(quiet: bool) -> Iterator[Callable[["Progress"], None]]:
    """Show a bar on a terminal, lines elsewhere and in JSON, nothing if quiet; yields the callback."""
    if quiet:
        yield lambda _: None
    elif sys.stderr.isatty() and not _log_lines().as_json:
        with _bar() as watch:
            yield watch
    else:
        yield _lines()


@contextmanager
def _bar() -> Iterator[Callable[["Progress"], None]]:
    with _tqdm("scan: opening the model") as bar:

        def watch(progress: "Progress") -> None:
            bar.desc = "scan"
            bar.total = progress.total
            _move(bar, progress.earlier + progress.done, _figures(progress))

        yield watch


@contextmanager
def _tqdm(title: str, total: int | None = None) -> "Iterator[tqdm[NoReturn]]":
    """Show a bar on standard error: title, done of total, figures, time left; at first the title alone."""
    from tqdm import tqdm

    columns, lines = _terminal_size()
    bar: tqdm[NoReturn] = tqdm(
        desc=title, total=total, file=sys.stderr, ncols=columns - 1, nrows=lines, bar_format="{desc}"
    )
    try:
        yield bar
    finally:
        with suppress(OSError):
            bar.refresh()
            bar.close()


def _terminal_size() -> os.terminal_size:
    """Return the size of the terminal at standard error, which need not be that of standard output."""
    with suppress(OSError):
        size = os.get_terminal_size(sys.stderr.fileno())
        if size.columns:  # some terminals have a size of zero, which tqdm would take
            return size
    return shutil.get_terminal_size()


def _move(bar: "tqdm[NoReturn]", done: int, figures: str) -> None:
    """Show the progress, in as many columns as the terminal has now, less the one behind which it wraps."""
    bar.ncols = _terminal_size().columns - 1
    if bar.total is None:
        bar.bar_format = "{desc} {n_fmt}{postfix} {bar}"
    elif bar.ncols < WIDE:
        bar.bar_format = "{desc} {n_fmt}/{total_fmt}{postfix} {bar}"
    else:
        bar.bar_format = "{desc} {bar} {n_fmt}/{total_fmt}{postfix}, {remaining} left"
    with suppress(OSError):
        bar.set_postfix_str(figures, refresh=False)
        bar.update(done - bar.n)


def _lines() -> Callable[["Progress"], None]:
    last = time.monotonic()

    def watch(progress: "Progress") -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < LINE_EVERY_S:
            return
        last = now
        done = progress.earlier + progress.done
        told, left = counted(done, "image"), ""
        fields = {"done": done, "total": progress.total, "images_per_second": _rate(progress)}
        fields |= {"failed": progress.failed, "alarms": progress.alarms}
        if progress.total is not None:
            told = f"{done} of {counted(progress.total, 'image')}"
            if progress.done:
                fields["seconds_left"] = max(progress.total - done, 0) / _rate(progress)
                left = f", {duration(fields['seconds_left'])} left"
        log.info("%s, %s%s", told, _figures(progress), left, extra={"fields": fields})

    return watch


def _rate(progress: "Progress") -> float:
    return progress.done / max(time.monotonic() - progress.started, 1e-9)


def _figures(progress: "Progress") -> str:
    rate, alarms = _rate(progress), counted(progress.alarms, "alarm")
    return f"{rate:.1f} img/s, {progress.failed} failed, {alarms}"


def summary_text(summary: "Summary") -> str:
    """Format the summary for a person."""
    lines = [_headline(summary)]
    if summary.demo:
        lines.append("  Model trained on synthetic images, not for operational decisions.")
    for status, number in summary.failed.items():
        lines.append(f"  {number:>10} {status}")
    lines += _alarm_lines(summary)
    lines += _bookkeeping_lines(summary)
    lines += [f"  {note}" for note in summary.notes]
    lines += ["", f"Results: {escaped(summary.out)}"]
    return "\n".join(lines)


def _headline(summary: "Summary") -> str:
    speed = f"{summary.scanned_now} now in {duration(summary.seconds)}, {summary.images_per_second:.1f} img/s"
    parts = [f"{summary.ok} scored", f"{summary.images - summary.ok} failed", *_unread(summary)]
    return f"{counted(summary.images, 'image')}: {', '.join(parts)} ({speed})"


def _unread(summary: "Summary") -> Iterator[str]:
    """Yield what was not read to its end: containers, which are not images."""
    cut, unlisted = (summary.failed.get(status, 0) for status in ("archive_truncated", "unlistable"))
    others = summary.containers - cut - unlisted
    for number, noun, how in (
        (cut, "archive", "cut short"),
        (unlisted, "folder", "not listed"),
        (others, "archive", "not read"),
    ):
        if number:
            yield f"{counted(number, noun)} {how}"


def _alarm_lines(summary: "Summary") -> list[str]:
    point = f"PFA {summary.pfa:.3g}" if summary.pfa is not None else "a threshold given"
    classes = ", ".join(f"{name} {number}" for name, number in summary.alarms_by_class.items() if number)
    noun = "alarm" if summary.alarms == 1 else "alarms"
    lines = [
        f"  {summary.alarms:>10} {noun} at {point} (score >= {summary.threshold:.4g}, decision "
        f"'{summary.decision}')" + (f": {classes}" if classes else "")
    ]
    if summary.atypical:
        verb = "looks" if summary.atypical == 1 else "look"
        lines.append(f"  {summary.atypical:>10} {verb} like nothing the model has seen (typicality below 1)")
    if summary.suppressed:
        lines.append(f"  {summary.suppressed:>10} over a class threshold, but no alarm")
    if summary.most_anomalous:
        lines += ["", "Most anomalous:", *_table(summary.most_anomalous), ""]
    return lines


def _table(suspicions: "Sequence[Suspicion]") -> Iterator[str]:
    threats = [", ".join(each.threats) or "-" for each in suspicions]
    width = max(map(len, ("threats", *threats)))
    yield f"  {'score':>10}  alarm  {'threats':<{width}}  image"
    for each, named in zip(suspicions, threats, strict=True):
        alarm = "yes" if each.anomalous else "no"
        yield f"  {each.anomaly_score:>10.4f}  {alarm:<5}  {named:<{width}}  {escaped(each.uri)}"


def _bookkeeping_lines(summary: "Summary") -> list[str]:
    lines = []
    since = f"new, {summary.replaced} changed ({summary.new_alarms} alarms), {summary.kept} kept as they were"
    if summary.kept:
        lines.append(f"  {summary.new:>10} {since}")
    for number, what in (
        (summary.recognized_now, "read only: equal bytes were scored before"),
        (summary.replaced, "earlier rows replaced: their files have changed"),
        (summary.gone, f"no longer there: rows {'marked' if summary.kept_gone else 'dropped'}"),
        (summary.kept_gone, "rows of images that are gone, in no figure above"),
        (summary.duplicates, "paths reached twice"),
        (summary.retries, "requests to the object store repeated"),
    ):
        if number:
            lines.append(f"  {number:>10} {what}")
    if summary.other_files:
        others = ", ".join(left_out(name, number) for name, number in summary.other_files.items())
        lines.append(f"  left out: {escaped(others)}")
    for node, speed in summary.images_per_second_by_node.items():
        lines.append(f"  {speed:>10.1f} img/s on {node}")
    lines.append(f"  busy seconds: {_stages(summary.stage_seconds)} (start-up {summary.startup_seconds:.1f})")
    lines.append(f"  CPU seconds: {summary.cpu_seconds:.1f} = {_stages(summary.stage_cpu_seconds)}")
    lines.append(f"  {summary.backend} {summary.precision}, model {escaped(summary.model)}")
    lines.append(f"  {summary.plan}")
    return lines


def _stages(seconds: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {each:.1f}" for name, each in seconds.items())


def findings_text(findings: "list[Finding]") -> str:
    """Format the findings of the doctor by section."""
    lines: list[str] = []
    section = ""
    for finding in findings:
        if finding.section != section:
            section = finding.section
            lines += ["", f"{section}:"] if lines else [f"{section}:"]
        mark = " " if finding.ok else "!"
        lines.append(f"{mark} {finding.name:<24} {escaped(finding.found)}")
    return "\n".join(lines)


def tuning_text(tuning: "Tuning") -> str:
    """Format the trials as a table, and the choice."""
    lines = [f"{tuning.engine}, model {escaped(tuning.model)}, on {escaped(tuning.pictures)}", ""]
    lines.append("  batch  workers  threads each    img/s")
    for trial in tuning.trials:
        plan, speed = trial.plan, trial.images_per_second
        note = "  default" if plan == tuning.default.plan else ""
        lines.append(f"  {plan.batch_size:>5}  {plan.workers:>7}  {plan.threads:>12}  {speed:>7.1f}{note}")
    chosen, speed = tuning.chosen.plan, tuning.chosen.images_per_second
    gain = speed / tuning.default.images_per_second
    lines += ["", f"Chosen: {chosen.sizes()}: {speed:.1f} img/s, {gain:.2f} times the default's"]
    lines += [f"Stored in {escaped(tuning.kept)}" if tuning.kept else "Not stored: the cache is not writable"]
    return "\n".join(lines)


@contextmanager
def synth_bar(count: int) -> Iterator[Callable[[int], None]]:
    """Show a bar of the images written, lines where there is no terminal; yields the callback."""
    if not sys.stderr.isatty():
        show = _phase_lines()
        yield lambda done: show("synth", done, count, {})
        return
    with _tqdm("synth", count) as bar:
        yield lambda done: _move(bar, done, "images")


@contextmanager
def counting_bar(title: str, quiet: bool) -> Iterator[Callable[[int], None]]:
    """Show on a terminal how many images are done, of a number that nobody knows; yields the callback."""
    if quiet or not sys.stderr.isatty():
        yield lambda _: None
        return
    with _tqdm(title) as bar:
        yield lambda done: _move(bar, done, "images")


@contextmanager
def training_shown() -> Iterator[Callable[[str, int, int, Mapping[str, float]], None]]:
    """Show each phase of training, as a bar on a terminal, else as lines; yields the callback."""
    if not sys.stderr.isatty():
        yield _phase_lines()
        return
    with ExitStack() as stack:
        bars: dict[str, Any] = {}

        def show(phase: str, done: int, total: int, figures: Mapping[str, float]) -> None:
            if phase not in bars:
                bars[phase] = stack.enter_context(_tqdm(phase))
            bars[phase].total = total
            _move(bars[phase], done, _named(figures))

        yield show


def _phase_lines() -> Callable[[str, int, int, Mapping[str, float]], None]:
    last = ("", 0.0)

    def show(phase: str, done: int, total: int, figures: Mapping[str, float]) -> None:
        nonlocal last
        now = time.monotonic()
        if phase != last[0] or done == total or now - last[1] >= LINE_EVERY_S:
            last = (phase, now)
            tell(f"{phase}: {done} of {total}{', ' if figures else ''}{_named(figures)}")

    return show


def _named(figures: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.3g}" for name, value in figures.items())
