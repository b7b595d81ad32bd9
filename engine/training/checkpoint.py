"""The run folder of a training: finished phases, checkpoints of an unfinished one, and figures."""

import io
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..errors import Refused
from ..system.durable import remove, write_whole

State = dict[str, Any]  # tensors, numbers, texts, and lists and mappings of them

CONFIG, METRICS = "config.json", "metrics.jsonl"


class RunFolder:
    """Checkpoints by name, replaced atomically, and one line of figures for each epoch or interval.

    Checkpoints are torch files read with `weights_only`: they hold data, never code.
    """

    def __init__(self, path: Path):
        self.path = path
        self._config = ""

    def open(self, config: Mapping[str, Any], may_change: Collection[str] = ()) -> set[str]:
        """Create the folder, or reopen it for the same training; raises Refused for another training's.

        Keys of the configuration in `may_change` may differ; returns those that do, because the phases that
        depend on them must be repeated.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        config = json.loads(json.dumps(config))
        file = self.path / CONFIG
        different: set[str] = set()
        if file.exists():
            earlier = json.loads(file.read_text())
            different = {key for key in config if config[key] != earlier.get(key)}
            if not different <= set(may_change):
                raise Refused(
                    f"the run folder {self.path} belongs to another training (it differs in "
                    f"{', '.join(sorted(different))}): name another with --run, or remove it"
                )
        elif any(self.path.iterdir()):
            raise Refused(
                f"the folder {self.path} is not a run folder of a training: name a new one with --run"
            )
        self._config = json.dumps(config, indent=1, sort_keys=True)
        if not file.exists():
            self.accept_configuration()
        return different

    def accept_configuration(self) -> None:
        """Store the configuration, after everything that its change makes stale has been dropped."""
        write_whole(self.path / CONFIG, self._config.encode())

    def save(self, name: str, state: State) -> None:
        """Store a checkpoint; after a crash the folder holds this one or the one before."""
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_whole(self._file(name), buffer.getvalue())

    def load(self, name: str) -> State | None:
        """Return the checkpoint of this name, or None."""
        file = self._file(name)
        return torch.load(file, map_location="cpu", weights_only=True) if file.exists() else None

    def drop(self, *names: str) -> None:
        """Remove checkpoints."""
        for name in names:
            remove(self._file(name))

    def record(self, phase: str, lines: Sequence[Mapping[str, Any]]) -> None:
        """Replace the figures of a phase in metrics.jsonl, and write the new ones for TensorBoard."""
        known = self.figures()
        others = [line for line in known if line["phase"] != phase]
        written = [*others, *({"phase": phase, **line} for line in lines)]
        write_whole(self.path / METRICS, "".join(json.dumps(line) + "\n" for line in written).encode())
        self._write_events(phase, lines[len(known) - len(others) :])

    def _write_events(self, phase: str, lines: Sequence[Mapping[str, Any]]) -> None:
        from torch.utils.tensorboard.writer import SummaryWriter

        with SummaryWriter(str(self.path / "tensorboard")) as events:
            for line in lines:
                at = int(line.get("epoch", line.get("step", 0)))
                for key, value in line.items():
                    if isinstance(value, float):
                        events.add_scalar(f"{phase}/{key}", value, at)

    def figures(self) -> list[dict[str, Any]]:
        """Return every line of metrics.jsonl."""
        file = self.path / METRICS
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def _file(self, name: str) -> Path:
        return self.path / f"{name}.pt"
