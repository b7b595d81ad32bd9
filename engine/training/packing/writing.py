"""The files of a bundle, made from the outcome of a training."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.numpy import load, save

from ....export.to_onnx import export_graphs
from ...bundle import pack_gate, write_bundle
from ...decode import DecodeLimits, Decoder
from ...errors import Stopped
from ...model.calibration import benign_quantiles
from ...model.decision import Decision
from ...model.gbad import GBAD
from ...model.typicality import Typicality
from ...row import THREATS, Row
from ...text import timestamp
from ..phases.phase3 import Losses, operating_points
from ..settings import Phase3Settings
from .card import card, with_typicality

# an engine whose losses or scores differ by more is refused
TOLERANCE = {"loss_rel": 1e-2, "score": 0.1, "flips": 0.005}


@dataclass
class Outcome:
    """Outcome of a training: everything that a bundle holds except its gate images."""

    model: GBAD
    decisions: dict[str, Decision]
    default_decision: str
    calibration: Losses  # of benign images only
    typicality: Typicality | None = None
    provenance: dict[str, Any] = field(default_factory=dict)


def pack(  # noqa: PLR0913
    out: Path,
    name: str,
    demo: bool,
    outcome: Outcome,
    settings: Phase3Settings,
    data: str,
    gate: Sequence[bytes],
) -> Path:
    """Write a bundle with these gate images (JPEG), trained on `data` in words; returns its folder."""
    content = manifest(name, demo, outcome, settings)
    points = content["operating_points"]["fp32"]
    text = card(name, data, demo, outcome.provenance, points, outcome.default_decision)
    arrays = outcome.model.arrays()
    if outcome.typicality is not None:
        text = with_typicality(text, outcome.provenance["typicality"])
        arrays |= outcome.typicality.tensors()
    for decision in outcome.decisions.values():
        arrays |= decision.tensors()
    weights = save(arrays)
    stored = load(weights)
    if not all(np.array_equal(stored[key], array) for key, array in arrays.items()):
        raise Stopped("the weights read back differ from those written; no bundle is written: train again")
    # graphs and gate come from the very bytes that ship
    model = GBAD.from_arrays(outcome.model.architecture, stored, **content["preprocessing"])
    network, bigan = export_graphs(model)
    files = {
        "weights.safetensors": weights,
        "network.onnx": network,
        "bigan.onnx": bigan,
        "gate.tar": gate_archive(model, gate),
        "README.md": text.encode(),
    }
    write_bundle(out, content, files)
    return out


def manifest(name: str, demo: bool, outcome: Outcome, settings: Phase3Settings) -> dict[str, Any]:
    """Return bundle.json without its format and the list of files."""
    model = outcome.model
    calibration = dict.fromkeys(outcome.decisions, outcome.calibration)
    return {
        "name": name,
        "created": timestamp(),
        "demo": demo,
        "architecture": asdict(model.architecture),
        "preprocessing": {"mean": _list(model.pixel_mean), "std": _list(model.pixel_std)},
        "classes": list(THREATS),
        "default_decision": outcome.default_decision,
        "tolerance": TOLERANCE,
        "provenance": outcome.provenance,
        **thresholds(outcome.decisions, calibration, settings),
    }


def thresholds(
    decisions: Mapping[str, Decision], calibration: Mapping[str, Losses], settings: Phase3Settings
) -> dict[str, Any]:
    """Return what bundle.json says of the scores of benign images, which are given for each decision."""
    points, quantiles, spreads = {}, {}, {}
    for key, decision in decisions.items():
        benign = calibration[key]
        scores = benign.scores(decision)
        points[key] = [asdict(point) for point in operating_points(decision, benign, settings)]
        quantiles[key] = dict(zip(("probability", "score"), benign_quantiles(scores), strict=True))
        spreads[key] = float(scores.std())
    return {
        "operating_points": {"fp32": points},
        "benign_quantiles": {"fp32": quantiles},
        "benign_score_std": spreads,
    }


@torch.no_grad()
def gate_archive(model: GBAD, gate: Sequence[bytes]) -> bytes:
    """Return gate.tar: the gate images, and the model's outputs for them in FP32."""
    decoder = Decoder(model.architecture.input_size, DecodeLimits())
    pixels = [decoder(Row(uri="gate"), blob) for blob in gate]
    images = [image for image in pixels if image is not None]
    assert len(images) == len(gate)
    batches = [model(torch.from_numpy(np.stack(images[i : i + 16]))) for i in range(0, len(images), 16)]
    _, logits, reconstruction, matching = (torch.cat(part).numpy() for part in zip(*batches, strict=True))
    return pack_gate(gate, reconstruction, matching, logits)


def _list(values: torch.Tensor) -> list[float]:
    return [round(value, 6) for value in values.tolist()]
