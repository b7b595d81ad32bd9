"""Systems that take turns on the same images, so that a machine that changes its speed changes it for all."""

import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from .bench import Bench
from .systems import Measured, NotRun

MOST_PASSES = 100


@dataclass(frozen=True)
class Spread:
    """The median of several rounds, and their range."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Sum up the values of rounds."""
        return cls(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        """Write it for a table."""
        return f"{self.median:.4g} ({self.low:.4g} .. {self.high:.4g})"


class Turns:
    """The systems of a bench, how many passes over the pictures each makes, and what each run took."""

    def __init__(self, bench: Bench):
        self._bench = bench
        self._passes = dict.fromkeys(bench.systems, 1)
        self.runs: dict[str, list[Measured]] = {name: [] for name in bench.systems}

    def out(self, name: str) -> Path:
        """Where a system writes its rows."""
        return self._bench.scratch / f"{name}.parquet"

    def warm_up(self) -> None:
        """Let each system pass over the pictures once, uncounted; then give each its number of passes.

        A turn takes about as long as the bench's settings say, or one pass where that takes longer.
        """
        for name in list(self.runs):
            if (measured := self._run(name)) is not None:
                passes = round(self._bench.settings.seconds / measured.seconds)
                self._passes[name] = max(1, min(MOST_PASSES, passes))

    def round(self, number: int) -> None:
        """Run each system once; who begins changes from round to round."""
        names = list(self.runs)
        start = number % max(1, len(names))
        for name in names[start:] + names[:start]:
            print(f"  round {number + 1}: {name} ...", file=sys.stderr)
            if (measured := self._run(name)) is not None:
                self.runs[name].append(measured)

    def _run(self, name: str) -> Measured | None:
        """Run a system; one that fails takes no further part."""
        try:
            return self._bench.systems[name](self._bench.passes(self._passes[name]), self.out(name))
        except NotRun as reason:
            del self._bench.systems[name], self.runs[name]
            self._bench.not_run[name] = str(reason)
            return None
