"""A scan as the command runs it: with progress, signals, and errors in one sentence."""

import json
import logging
import signal
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from ..errors import GbadError, Stopped
from ..settings import ScanSettings
from ..text import one_line
from .console import progress_shown, summary_text, tell
from .metrics import MetricsFile

if TYPE_CHECKING:
    from ..summary import Summary

log = logging.getLogger(__name__)


def guarded_scan(settings: ScanSettings, *, quiet: bool, as_json: bool, metrics: Path | None = None) -> int:
    """Scan and print the summary; returns the exit code. `metrics` is a file to keep figures of the scan in.

    Raises Refused if that file cannot be written.
    """
    figures = MetricsFile(metrics, settings) if metrics else None
    summary, code = _run(settings, figures, quiet=quiet)
    if figures:
        figures.end(code, summary)
    if summary and (as_json or not quiet):
        _print(json.dumps(summary.to_json(), indent=2) if as_json else summary_text(summary))
    return code


def _run(settings: ScanSettings, figures: MetricsFile | None, *, quiet: bool) -> "tuple[Summary | None, int]":
    """Run a scan until it ends, whatever ends it; returns its summary, if it was finished, and exit code."""
    from ..scan import Scan

    scan = Scan(settings)
    signals: list[int] = []  # received so far

    def stop(number: int, _frame: object) -> None:
        signals.append(number)
        scan.stop()

    def fail(sentence: str, code: int) -> tuple[None, int]:
        tell(sentence, logging.ERROR, exit_code=code)
        return None, code

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    try:
        followed = figures.follow(lambda: scan.progress) if figures else nullcontext()
        with progress_shown(quiet) as show, followed:
            summary = scan.run(show)
    except GbadError as error:
        return fail(str(error), 128 + signals[0] if signals else error.exit_code)
    except (MemoryError, OSError, ImportError) as error:
        return fail(
            f"this machine failed the scan: {_cause(error)}; finished rows are kept: run the same command "
            "again",
            Stopped.exit_code,
        )
    except Exception as error:
        log.debug("the scan failed", exc_info=True)
        return fail(
            f"the scan failed by a defect of this program ({type(error).__name__}: {one_line(error)}); "
            "finished rows are kept: please report this sentence",
            Stopped.exit_code,
        )
    return summary, summary.exit_code


def _cause(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return "it is out of memory, or a limit (ulimit -v) is too low"
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}" if error.filename else error.strerror
    return one_line(error)  # of an import: a library that cannot be loaded for lack of memory


def _print(text: str) -> None:
    """Write to standard output; the result is complete, whether or not that succeeds."""
    try:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()
    except BrokenPipeError:
        return  # the reader closed it
    except OSError as error:
        tell(f"the scan is done, but its summary cannot be written: {error.strerror}", logging.WARNING)
