"""A bundle of a network that was never trained, for figures of speed, which do not depend on what it learned.

`python -m benchmarks.bench.untrained OUT [BACKBONE]` writes it. Weights are random; the batch norms hold the
statistics of synthetic bags, so that values keep the size that a trained network gives them.
"""

import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.numpy import save
from torch import Tensor, nn

from gbad_batch.engine.bundle import write_bundle
from gbad_batch.engine.bundle.manifest import OPTIONAL_FILES
from gbad_batch.engine.decode import DecodeLimits, Decoder
from gbad_batch.engine.model.architecture import Architecture
from gbad_batch.engine.model.bigan import STD_FLOOR
from gbad_batch.engine.model.decision import Decision
from gbad_batch.engine.model.gbad import GBAD, round_to_half
from gbad_batch.engine.row import Row
from gbad_batch.engine.synth import gate_images
from gbad_batch.engine.system.durable import remove
from gbad_batch.engine.training.packing.writing import Outcome, gate_archive, manifest
from gbad_batch.engine.training.phases.phase3 import Losses, class_maximum
from gbad_batch.engine.training.settings import Phase3Settings
from gbad_batch.export.to_int8 import quantize
from gbad_batch.export.to_onnx import export_graphs

IMAGES = 64  # that statistics, operating points and gate come from
SEED = 302
LOOSE = {"loss_rel": 1.0, "score": 1.0, "flips": 1.0}  # speed is all that is asked of it,
LOOSE_INT8 = {"loss_rel": 1e6, "score": 1e6, "flips": 1.0}  # of its INT8 form too
TEXT = "# {name}\n\nRandom weights, for figures of speed only: its scores say nothing about a bag.\n"


def write_untrained(out: Path, architecture: Architecture, count: int = IMAGES) -> Path:
    """Write the bundle to the new folder `out` and return it; `count` synthetic bags calibrate it."""
    torch.manual_seed(SEED)
    images = gate_images(count, SEED, architecture.input_size)
    pixels = torch.from_numpy(_decoded(images, architecture.input_size))
    model = GBAD(architecture).requires_grad_(False)
    set_batch_norms(model, pixels)
    outcome = _outcome(model, pixels)
    name = f"untrained-{architecture.backbone}"
    content = manifest(name, True, outcome, Phase3Settings())
    content |= {"tolerance": LOOSE, "tolerance_int8": LOOSE_INT8}
    arrays = model.arrays()
    for decision in outcome.decisions.values():
        arrays |= decision.tensors()
    network, bigan = export_graphs(model)
    files = {
        "weights.safetensors": save(arrays),
        "network.onnx": network,
        "bigan.onnx": bigan,
        "gate.tar": gate_archive(model, images),
        "README.md": TEXT.format(name=name).encode(),
        **dict(zip(OPTIONAL_FILES, quantize(network, list(pixels.numpy())), strict=True)),
    }
    write_bundle(out, content, files)
    return out


def set_batch_norms(model: GBAD, pixels: Tensor) -> None:
    """Set the batch norms' statistics and the standardization from images uint8 [n, S, S, 3]."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()  # timm starts the last of each block at zero, which would mute it
            module.momentum = None  # a plain mean over batches
    model.train()
    for batch in pixels.split(8):
        model.features(batch)
    model.eval()
    x = torch.cat([model.features(batch)[0] for batch in pixels.split(8)])
    std = x.std(dim=0)
    model.bigan.mean.copy_(x.mean(dim=0))
    model.bigan.std.copy_(std.clamp_min(float(STD_FLOOR * std.median()) or 1.0))
    round_to_half(model)


def _outcome(model: GBAD, pixels: Tensor) -> Outcome:
    found = [model(batch) for batch in pixels.split(8)]
    _, logits, reconstruction, matching = (torch.cat(part).numpy() for part in zip(*found, strict=True))
    benign = Losses(reconstruction, matching, logits, np.zeros(logits.shape, bool))
    decisions = {"gbad": _linear("gbad", benign), "classes": class_maximum()}
    decisions["combined"] = _linear("combined", benign)
    made = {"made": "untrained, by python -m benchmarks.bench.untrained"}
    return Outcome(model, decisions, "gbad", benign, provenance=made)


def _linear(name: str, benign: Losses) -> Decision:
    """Make a decision that weighs each of its standardized inputs alike."""
    values = benign.inputs(name)
    mean, std = values.mean(axis=0), np.maximum(values.std(axis=0), 1e-6)
    return Decision(name, mean=mean, std=std, weights=np.ones(len(mean)), intercept=np.zeros(1))


def _decoded(images: list[bytes], size: int) -> np.ndarray:
    """Decode images as a scan does: uint8 [n, S, S, 3]."""
    decode = Decoder(size, DecodeLimits())
    decoded = [decode(Row("bag"), blob) for blob in images]
    return np.stack([pixels for pixels in decoded if pixels is not None])


def main(out: Path, backbone: str = Architecture().backbone) -> None:
    """Write a bundle with the report's sizes but for the backbone, over one that was left unfinished."""
    remove(out)
    print(f"writing a bundle of an untrained {backbone} to {out}", file=sys.stderr)
    write_untrained(out, Architecture(backbone=backbone))


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
