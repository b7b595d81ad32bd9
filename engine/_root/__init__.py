"""Screen archives of X-ray bag images: a decision and a reason for every image.

from gbad_batch import Scan, ScanSettings

summary = Scan(ScanSettings(sources=("/archive",), out=Path("results.parquet"))).run()

The names below come from `gbad_batch.engine`; `python -m gbad_batch` is the command line.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if __name__ != "gbad_batch":  # as gbad_batch.engine._root it would be a second copy
    raise ImportError(f"import this package as gbad_batch, not as {__name__}")

if TYPE_CHECKING:
    from gbad_batch.engine import (
        GbadError,
        Model,
        Refused,
        Row,
        Scan,
        ScanSettings,
        Stopped,
        Summary,
        TooManyFailures,
    )

    __version__: str

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
    "__version__",
]


def __getattr__(name: str) -> Any:
    """Load a public name on first use, so that the import stays light."""
    if name == "__version__":
        return import_module("importlib.metadata").version("gbad-batch")
    if name not in __all__:
        raise AttributeError(f"gbad_batch has no {name!r}")
    return getattr(import_module("gbad_batch.engine"), name)
