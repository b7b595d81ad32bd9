"""Figures of a scan for Prometheus, in a file for the textfile collector of its node_exporter."""

import logging
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING, Any

from ..errors import Refused
from ..settings import ScanSettings
from ..system.durable import write_whole
from ..text import escaped

if TYPE_CHECKING:
    from ..summary import Summary
    from ..workers.progress import Progress

log = logging.getLogger(__name__)

EVERY_S = 10.0
ENDING = ".prom"  # of the only files that node_exporter reads
Figures = dict[str, float | Mapping[str, float]]  # by metric; by label where the metric has one

# name behind `gbad_batch_`: (label beside `results`, what it says)
METRICS: dict[str, tuple[str | None, str]] = {
    "scan_running": (None, "1 while the scan runs"),
    "scan_start_timestamp_seconds": (None, "when the last run began"),
    "scan_updated_timestamp_seconds": (None, "when this file was written"),
    "scan_end_timestamp_seconds": (None, "when the last run ended; absent while it runs"),
    "scan_success_timestamp_seconds": (None, "when a scan into these results was last finished"),
    "scan_exit_code": (None, "of the last run; absent while it runs"),
    "scan_rows_listed": (None, "candidates that were listed so far"),
    "scan_rows_total": (None, "candidates, once all of them are listed"),
    "scan_rows_done": (None, "rows of all runs"),
    "scan_rows_scanned": (None, "rows of this run"),
    "scan_rows_failed": (None, "rows of all runs without a score"),
    "scan_alarms": (None, "alarms of all runs"),
    "scan_images_per_second": (None, "average of this run since its start-up"),
    "scan_startup_seconds": (None, "until the first image was read"),
    "scan_stage_seconds": ("stage", "time that the stages were busy, summed over threads"),
    "scan_stage_cpu_seconds": ("stage", "CPU time by stage, of all threads and processes"),
    "results_rows": ("status", "rows of the finished results, images and containers"),
    "results_alarms": (None, "alarms of the finished results"),
    "results_class_alarms": ("class", "alarms by class; one image may count for several"),
    "results_changes": ("change", "rows of the finished results against those before"),
    "results_new_alarms": (None, "alarms on rows that the results before did not have as they are"),
    "results_info": ("model", "1, with the model that the finished results come from"),
}


class MetricsFile:
    """A file of gauges, replaced at once every 10 seconds while the scan runs, and when it ends.

    It is OpenMetrics text; since it holds gauges only, Prometheus's older text format reads it as well. Every
    series has the label `results`, the path of the output. Raises Refused if the file cannot be written.
    """

    def __init__(self, path: Path, settings: ScanSettings):
        self._path = Path(os.path.abspath(path))  # noqa: PTH100 - keeps links
        self._results = escaped(settings.out_name)
        self._warned = False
        self._figures: Figures = {"scan_running": 1, "scan_start_timestamp_seconds": time.time()}
        if self._path.suffix != ENDING:
            raise Refused(
                f"--metrics {path} would not be read by node_exporter: name a file that ends in .prom"
            )
        with suppress(ValueError):
            self._figures["scan_success_timestamp_seconds"] = _finished_at(settings.out_path)
        try:
            self._write()
        except OSError as error:
            raise Refused(f"--metrics {path} cannot be written: {error.strerror}") from None

    @contextmanager
    def follow(self, progress: "Callable[[], Progress]") -> Iterator[None]:
        """Keep the file up to date with a scan that runs meanwhile, in a thread."""
        ended = Event()

        def keep() -> None:
            while not ended.wait(EVERY_S):
                self._take(progress())
                self._try_to_write()

        thread = Thread(target=keep, name="metrics", daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()
            self._take(progress())

    def end(self, exit_code: int, summary: "Summary | None") -> None:
        """Write the last figures; a disk that fails now is a warning, since the scan has ended."""
        now = time.time()
        self._figures |= {"scan_running": 0, "scan_exit_code": exit_code, "scan_end_timestamp_seconds": now}
        if summary:
            self._figures |= _results(summary) | {"scan_success_timestamp_seconds": now}
        self._try_to_write()

    def _take(self, progress: "Progress") -> None:
        self._figures |= {
            "scan_rows_listed": progress.listed,
            "scan_rows_done": progress.earlier + progress.done,
            "scan_rows_scanned": progress.done,
            "scan_rows_failed": progress.failed,
            "scan_alarms": progress.alarms,
            "scan_images_per_second": progress.done / max(progress.elapsed(), 1e-9),
            "scan_startup_seconds": progress.startup_seconds,
            "scan_stage_seconds": progress.seconds.copy(),
            "scan_stage_cpu_seconds": progress.cpu_by_stage(),
        }
        if progress.total is not None:
            self._figures["scan_rows_total"] = progress.total

    def _try_to_write(self) -> None:
        try:
            self._write()
        except OSError as error:
            if not self._warned:
                log.warning(
                    "--metrics %s cannot be written: %s; the scan goes on", self._path, error.strerror
                )
            self._warned = True

    def _write(self) -> None:
        from prometheus_client.core import CollectorRegistry
        from prometheus_client.openmetrics.exposition import generate_latest

        self._figures["scan_updated_timestamp_seconds"] = time.time()
        registry = CollectorRegistry(auto_describe=False)
        registry.register(self)  # which asks `collect`
        write_whole(self._path, generate_latest(registry))

    def collect(self) -> Iterator[Any]:
        """Yield the figures that are known so far, as prometheus_client's registry asks for them."""
        from prometheus_client.core import GaugeMetricFamily

        for name, (label, meaning) in METRICS.items():
            value = self._figures.get(name)
            if value is None:
                continue
            labels = ["results", *([label] if label else [])]
            family = GaugeMetricFamily(f"gbad_batch_{name}", meaning, labels=labels)
            for key, number in value.items() if isinstance(value, Mapping) else [(None, value)]:
                family.add_metric([self._results, *([key] if key is not None else [])], number)
            yield family


def _finished_at(out: Path | None) -> float:
    """Return when a scan into an output was finished, in s since the epoch; raises ValueError if none was."""
    from ..results.schema import read_footer

    footer = read_footer(out) if out else None
    runs = [run for run in (footer or {}).get("runs", []) if isinstance(run, dict) and "command" not in run]
    if not runs:
        raise ValueError("there are no results")
    return datetime.fromisoformat(str(runs[-1].get("end"))).timestamp()


def _results(summary: "Summary") -> Figures:
    """Return the figures of finished results."""
    return {
        "scan_rows_scanned": summary.scanned_now,
        "scan_images_per_second": summary.images_per_second,
        "scan_rows_done": summary.images + summary.containers,
        "scan_rows_listed": summary.images + summary.containers,
        "scan_rows_total": summary.images + summary.containers,
        "scan_rows_failed": sum(summary.failed.values()),
        "scan_alarms": summary.alarms,
        "scan_stage_seconds": summary.stage_seconds,
        "scan_stage_cpu_seconds": summary.stage_cpu_seconds,
        "results_rows": {"ok": summary.ok, **summary.failed},
        "results_alarms": summary.alarms,
        "results_class_alarms": summary.alarms_by_class,
        "results_changes": {
            name: getattr(summary, name) for name in ("new", "replaced", "kept", "gone", "kept_gone")
        },
        "results_new_alarms": summary.new_alarms,
        "results_info": {summary.model: 1},
    }
