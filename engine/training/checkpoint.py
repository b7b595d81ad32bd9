"""The run folder of a training: what is finished, what is half done, and the figures on the way."""

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
    """Checkpoints by name, each replaced at once, and one line of figures for each epoch or interval.

    Checkpoints are torch files read with `weights_only`: they hold data, never code.
    """

    def __init__(self, path: Path):
        self.path = path
        self._config = ""

    def open(self, config: Mapping[str, Any], may_change: Collection[str] = ()) -> set[str]:
        """Make the folder, or go on with one of the same training; raises Refused where it is another's.

        Keys of the configuration in `may_change` are free to differ; returns those of them that do: what
        they govern must be done again.
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
                    f"the run folder {self.path} is that of another training (it differs in "
                    f"{', '.join(sorted(different))}): name another with --run, or remove it"
                )
        elif any(self.path.iterdir()):
            raise Refused(f"the run folder {self.path} is no run of this program: name a new one with --run")
        self._config = json.dumps(config, indent=1, sort_keys=True)
        if not file.exists():
            self.settle()
        return different

    def settle(self) -> None:
        """Take the configuration for that of the folder, once what it changes was dropped."""
        write_whole(self.path / CONFIG, self._config.encode())

    def save(self, name: str, state: State) -> None:
        """Store a checkpoint; after a crash the folder holds this one or the one before."""
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_whole(self._file(name), buffer.getvalue())

    def load(self, name: str) -> State | None:
        """Give the checkpoint of this name, None where there is none."""
        file = self._file(name)
        return torch.load(file, map_location="cpu", weights_only=True) if file.exists() else None

    def drop(self, *names: str) -> None:
        """Forget checkpoints."""
        for name in names:
            remove(self._file(name))

    def record(self, phase: str, lines: Sequence[Mapping[str, Any]]) -> None:
        """Replace the figures of a phase in metrics.jsonl, and tell TensorBoard the new ones."""
        known = self.figures()
        others = [line for line in known if line["phase"] != phase]
        told = [*others, *({"phase": phase, **line} for line in lines)]
        write_whole(self.path / METRICS, "".join(json.dumps(line) + "\n" for line in told).encode())
        self._tell_tensorboard(phase, lines[len(known) - len(others) :])

    def _tell_tensorboard(self, phase: str, lines: Sequence[Mapping[str, Any]]) -> None:
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
