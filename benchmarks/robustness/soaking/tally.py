"""What a soak counts, and the file that keeps the counts when it is killed."""

import json
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gbad_batch.engine.system.durable import write_whole

MOST_FINDINGS = 30  # of a kind that are kept in words; all are counted


@dataclass
class Tally:
    """Counts by name, and each thing that should not have been, in words."""

    counts: Counter[str] = field(default_factory=Counter)
    findings: list[dict[str, Any]] = field(default_factory=list)
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))  # by step
    peak_mb: float = 0.0  # of any process

    def find(self, kind: str, what: str, **where: Any) -> None:
        """Count a fault of ours under its kind, and keep what it was; `where` says how to make it again."""
        self.counts[kind] += 1
        self._keep({"kind": kind, "what": what[:600], **where})

    def add(self, other: "Tally") -> None:
        """Add what another round counted."""
        self.counts.update(other.counts)
        for step, seconds in other.seconds.items():
            self.seconds[step] += seconds
        for finding in other.findings:
            self._keep(finding)
        self.peak_mb = max(self.peak_mb, other.peak_mb)

    def _keep(self, finding: dict[str, Any]) -> None:
        if sum(kept["kind"] == finding["kind"] for kept in self.findings) < MOST_FINDINGS:
            self.findings.append(finding)

    def to_json(self) -> dict[str, Any]:
        """Give what JSON can hold."""
        return {
            "counts": dict(sorted(self.counts.items())),
            "seconds": {name: round(s, 1) for name, s in sorted(self.seconds.items())},
            "peak_mb": round(self.peak_mb, 1),
            "findings": self.findings,
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "Tally":
        """Take up what `to_json` gave."""
        seconds = defaultdict(float, content["seconds"])
        return cls(Counter(content["counts"]), content["findings"], seconds, content["peak_mb"])


@dataclass
class Record:
    """The file of a soak, whose counts go on when the same seed is run again."""

    path: Path
    seed: int
    rounds: int = 0  # that were drawn; the next one's number
    hours: float = 0.0  # of all runs
    tally: Tally = field(default_factory=Tally)

    @classmethod
    def open(cls, path: Path, seed: int) -> "Record":
        """Go on with the file's counts where its seed is this one; else begin anew."""
        if path.exists():
            content = json.loads(path.read_bytes())
            if content["seed"] == seed:
                return cls(path, seed, content["rounds"], content["hours"], Tally.from_json(content))
        return cls(path, seed)

    def save(self, facts: dict[str, Any]) -> None:
        """Write the counts durably, with facts of the machine beside them."""
        content = {"seed": self.seed, "rounds": self.rounds, "hours": round(self.hours, 4)}
        write_whole(self.path, (json.dumps(content | self.tally.to_json() | facts, indent=1) + "\n").encode())
