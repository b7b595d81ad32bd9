"""A scan as the command runs it: with progress, signals, and errors in one sentence."""

import json
import logging
import signal
import sys

from ..errors import GbadError, Stopped
from ..settings import ScanSettings
from ..text import one_line
from .console import progress_shown, summary_text, tell

log = logging.getLogger(__name__)


def guarded_scan(settings: ScanSettings, *, quiet: bool, as_json: bool) -> int:
    """Scan and print the summary; returns the exit code."""
    from ..scan import Scan

    scan = Scan(settings)
    signals: list[int] = []  # received so far

    def stop(number: int, _frame: object) -> None:
        signals.append(number)
        scan.stop()

    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    try:
        with progress_shown(quiet) as watch:
            summary = scan.run(watch)
    except GbadError as error:
        tell(str(error))
        return 128 + signals[0] if signals else error.exit_code
    except (MemoryError, OSError, ImportError) as error:
        tell(
            f"this machine failed the scan: {_cause(error)}; finished rows are kept: run the same command "
            "again"
        )
        return Stopped.exit_code
    except Exception as error:
        log.debug("the scan failed", exc_info=True)
        tell(
            f"the scan failed by a defect of this program ({type(error).__name__}: {one_line(error)}); "
            "finished rows are kept: please report this sentence"
        )
        return Stopped.exit_code
    if as_json or not quiet:
        _print(json.dumps(summary.to_json(), indent=2) if as_json else summary_text(summary))
    return summary.exit_code


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
        tell(f"WARNING: the scan is done, but its summary cannot be written: {error.strerror}")
