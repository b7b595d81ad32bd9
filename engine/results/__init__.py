"""Where rows go: part files that survive a crash, the index of finished rows, the atomic finish."""

from .resuming import FinishReport
from .session import Session, check_output, open_results

__all__ = ["FinishReport", "Session", "check_output", "open_results"]
