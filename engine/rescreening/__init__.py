"""New questions to finished results: another operating point, a new model, what verdicts mean."""

from .comparing import Difference, DiffSettings, diff
from .deciding import Decided, DecideSettings, decide
from .drifting import Drift, DriftSettings, drift
from .rescoring import Rescored, RescoreSettings, rescore

__all__ = [
    "DecideSettings",
    "Decided",
    "DiffSettings",
    "Difference",
    "Drift",
    "DriftSettings",
    "RescoreSettings",
    "Rescored",
    "decide",
    "diff",
    "drift",
    "rescore",
]
