"""Output for people: progress on standard error, the summary on standard output."""

import io
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from typing import TYPE_CHECKING, Any, NoReturn

from ..text import duration, escaped

if TYPE_CHECKING:
    from tqdm import tqdm

    from ..summary import Summary
    from ..workers.progress import Progress
    from .doctor import Finding
    from .tune import Tuning

LINE_EVERY_S = 10.0


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


class LogLines(logging.Handler):
    """Writes log records to the current standard error, which a progress bar may have replaced."""

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line, with the level of warnings and errors."""
        level = f"{record.levelname}: " if record.levelno > logging.INFO else ""
        tell(level + record.getMessage())


def tell(sentence: str) -> None:
    """Write a line to standard error; ignores a terminal that is gone."""
    line = f"gbad-batch: {escaped(sentence)}\n"
    bars = sys.modules.get("tqdm")
    with suppress(OSError):
        if bars and getattr(bars.tqdm, "_instances", None):  # a bar is shown: the line goes above it
            bars.tqdm.write(line, file=sys.stderr, end="")
        else:
            sys.stderr.write(line)


@contextmanager
def progress_shown(quiet: bool) -> Iterator[Callable[["Progress"], None]]:
    """Show a bar on a terminal, lines elsewhere, nothing if quiet; yields the callback for progress."""
    if quiet:
        yield lambda _: None
    elif sys.stderr.isatty():
        with _bar() as watch:
            yield watch
    else:
        yield _lines()


@contextmanager
def _bar() -> Iterator[Callable[["Progress"], None]]:
    with _tqdm("scan") as bar:

        def watch(progress: "Progress") -> None:
            bar.total = progress.total
            _move(bar, progress.skipped + progress.done, _figures(progress))

        yield watch


@contextmanager
def _tqdm(title: str, total: int | None = None) -> "Iterator[tqdm[NoReturn]]":
    """Show a bar on standard error: title, done of total, figures, time left."""
    from tqdm import tqdm

    form = "{desc} {bar} {n_fmt}/{total_fmt}{postfix}, {remaining} left"
    columns, lines = shutil.get_terminal_size()  # some terminals have a size of zero, which tqdm would take
    bar: tqdm[NoReturn] = tqdm(
        desc=title, total=total, file=sys.stderr, ncols=columns, nrows=lines, bar_format=form
    )
    try:
        yield bar
    finally:
        with suppress(OSError):
            bar.refresh()
            bar.close()


def _move(bar: "tqdm[NoReturn]", done: int, figures: str) -> None:
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
        done = progress.skipped + progress.done
        left = of = ""
        if progress.total is not None:
            of = f" of {progress.total}"
            if progress.done:
                rate = progress.done / (now - progress.started)
                left = f", {duration(max(progress.total - done, 0) / rate)} left"
        tell(f"{done}{of} images, {_figures(progress)}{left}")

    return watch


def _figures(progress: "Progress") -> str:
    rate = progress.done / max(time.monotonic() - progress.started, 1e-9)
    return f"{rate:.1f} img/s, {progress.failed} failed, {progress.alarms} alarms"


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
    failed = sum(summary.failed.values())
    speed = f"{summary.scanned_now} now in {duration(summary.seconds)}, {summary.images_per_second:.1f} img/s"
    return f"{summary.images} images: {summary.ok} scored, {failed} failed ({speed})"


def _alarm_lines(summary: "Summary") -> list[str]:
    point = f"PFA {summary.pfa:.3g}" if summary.pfa is not None else "a threshold given"
    classes = ", ".join(f"{name} {number}" for name, number in summary.alarms_by_class.items() if number)
    lines = [
        f"  {summary.alarms:>10} alarms at {point} (score >= {summary.threshold:.4g}, decision "
        f"'{summary.decision}')" + (f": {classes}" if classes else "")
    ]
    if summary.suppressed:
        lines.append(f"  {summary.suppressed:>10} over a class threshold, but no alarm")
    if summary.most_anomalous:
        lines += ["", "Most anomalous:", "       score  alarm  threats            image"]
        for s in summary.most_anomalous:
            alarm, threats = "yes" if s.anomalous else "no", ", ".join(s.threats) or "-"
            lines.append(f"  {s.anomaly_score:>10.4f}  {alarm:<5}  {threats:<17}  {escaped(s.uri)}")
        lines.append("")
    return lines


def _bookkeeping_lines(summary: "Summary") -> list[str]:
    lines = []
    for number, what in (
        (summary.containers, "folders or archives not read to their end"),
        (summary.gone, "earlier rows dropped: their images are gone"),
        (summary.replaced, "earlier rows replaced: their files have changed"),
        (summary.duplicates, "paths reached twice"),
    ):
        if number:
            lines.append(f"  {number:>10} {what}")
    if summary.other_files:
        others = ", ".join(f"{escaped(name)} {number}" for name, number in summary.other_files.items())
        lines.append(f"  other files: {others}")
    lines.append(f"  busy seconds: {_stages(summary.stage_seconds)} (start-up {summary.startup_seconds:.1f})")
    lines.append(f"  CPU seconds: {summary.cpu_seconds:.1f}, of them {_stages(summary.stage_cpu_seconds)}")
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
    """Show a bar of the images written, on a terminal; yields the callback for their number."""
    if not sys.stderr.isatty():
        yield lambda _: None
        return
    with _tqdm("synth", count) as bar:
        yield lambda done: _move(bar, done, "images")


@contextmanager
def training_shown() -> Iterator[Callable[[str, int, int, Mapping[str, float]], None]]:
    """Show each phase of training, as a bar on a terminal, else as lines; yields the callback."""
    if not sys.stderr.isatty():
        yield _training_lines()
        return
    with ExitStack() as stack:
        bars: dict[str, Any] = {}

        def show(phase: str, done: int, total: int, figures: Mapping[str, float]) -> None:
            if phase not in bars:
                bars[phase] = stack.enter_context(_tqdm(phase))
            bars[phase].total = total
            _move(bars[phase], done, _named(figures))

        yield show


def _training_lines() -> Callable[[str, int, int, Mapping[str, float]], None]:
    last = ("", 0.0)

    def show(phase: str, done: int, total: int, figures: Mapping[str, float]) -> None:
        nonlocal last
        now = time.monotonic()
        if phase != last[0] or done == total or now - last[1] >= LINE_EVERY_S:
            last = (phase, now)
            tell(f"{phase}: {done} of {total} {_named(figures)}")

    return show


def _named(figures: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.3g}" for name, value in figures.items())
