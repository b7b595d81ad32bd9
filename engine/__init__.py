"""What a scan is made of: sources, decode, inference, decision, results.

from gbad_batch.engine import Scan, ScanSettings

summary = Scan(ScanSettings(sources=("/archive",), out=Path("results.parquet"))).run()
for row in Scan(ScanSettings(sources=("/archive",))).rows():
    print(row.uri, row.status, row.anomaly_score)
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .errors import GbadError, Refused, Stopped, TooManyFailures
    from .in_memory import Model
    from .row import Row
    from .scan import Scan
    from .settings import ScanSettings
    from .summary import Summary

if __name__ != "gbad_batch.engine":  # a copy under the folder's own name would have its own classes
    raise ImportError(f"import this package as gbad_batch.engine, not as {__name__}")

__all__ = [
    "GbadError",
    "Model",
    "Refused",
    "Row",
    "Scan",
    "ScanSettings",
    "Stopped",
    "Summary",
    "TooManyFailures",
]

_HOMES = {
    "GbadError": "errors",
    "Model": "in_memory",
    "Refused": "errors",
    "Row": "row",
    "Scan": "scan",
    "ScanSettings": "settings",
    "Stopped": "errors",
    "Summary": "summary",
    "TooManyFailures": "errors",
}


def __getattr__(name: str) -> Any:
    """Load a public name when it is first used, so that the import stays light."""
    if name not in _HOMES:
        raise AttributeError(f"gbad_batch.engine has no {name!r}")
    return getattr(import_module(f".{_HOMES[name]}", __name__), name)
