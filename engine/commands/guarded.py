"""The scan as the command runs it: in a guarded child, with progress shown and signals obeyed."""

import json
import signal
import sys
import threading
from collections.abc import Callable

from ..errors import DeviceLost, GbadError, Stopped
from ..settings import ScanSettings
from ..supervisor import LOST_CODE, supervise
from .console import progress_shown, summary_text, tell


def guarded_scan(settings: ScanSettings, *, quiet: bool, as_json: bool) -> int:
    """Scan under a parent process that survives a decoder's crash; returns the exit code."""
    from ..results import journal_path

    assert settings.out is not None
    return supervise(
        lambda: _scan(settings, quiet=quiet, as_json=as_json),
        journal_path(settings.out),
        settings.decode_timeout,
        feed_stdin=settings.files_from == "-",
    )


def _scan(settings: ScanSettings, *, quiet: bool, as_json: bool) -> int:
    """Scan in this process and print the summary; returns the exit code."""
    signals: list[int] = []  # those that came
    try:
        from ..scan import Scan

        scan = Scan(settings)
        _stop_on_signals(scan.stop, signals)
        with progress_shown(quiet, _total(settings, quiet)) as watch:
            summary = scan.run(watch)
    except DeviceLost as error:
        tell(error.what)
        return 128 + signals[0] if signals else LOST_CODE
    except GbadError as error:
        tell(str(error))
        return 128 + signals[0] if signals else error.exit_code
    except (MemoryError, OSError, ImportError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "start new thread" not in str(error):
            raise
        tell(
            f"this machine failed the scan: {_fault(error)}; what is finished is kept, run the command again"
        )
        return Stopped.exit_code
    if as_json or not quiet:
        _print(json.dumps(summary.to_json(), indent=2) if as_json else summary_text(summary))
    return summary.exit_code


def _fault(error: Exception) -> str:
    if isinstance(error, MemoryError):
        return "there is no memory left for it, or a limit (ulimit -v) is too low"
    return " ".join(str(error).split())  # of an import: a library that finds no memory to be loaded to


def _print(text: str) -> None:
    """Write to standard output; whatever becomes of that, the result stands."""
    try:
        sys.stdout.write(f"{text}\n")
        sys.stdout.flush()
    except BrokenPipeError:
        return  # whoever read it has read enough
    except OSError as error:
        tell(f"WARNING: the scan is done, but its summary cannot be written: {error.strerror}")


def _stop_on_signals(stop: Callable[[], None], came: list[int]) -> None:
    """Call `stop` on SIGINT and SIGTERM, and note them in `came`."""

    def stopping(number: int, _frame: object) -> None:
        came.append(number)
        stop()

    signal.signal(signal.SIGINT, stopping)
    signal.signal(signal.SIGTERM, stopping)


def _total(settings: ScanSettings, quiet: bool) -> Callable[[], int | None]:
    """Count the candidates beside the scan, so that it can tell the time left; a piped list has none."""
    found: list[int] = []
    if not quiet and settings.files_from != "-":
        from ..scan import listing
        from ..sources import count

        def counting() -> None:
            try:
                number = count(listing(settings)).listed.images
            except (GbadError, OSError, MemoryError):
                return  # the scan itself meets the same fault and tells it
            found.append(min(number, settings.limit or number))

        threading.Thread(target=counting, name="count", daemon=True).start()
    return lambda: found[0] if found else None
