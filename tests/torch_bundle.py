"""A small bundle whose weights are those of the model itself, for engines that are made from weights."""

from collections.abc import Mapping
from dataclasses import asdict
from functools import cache
from types import MappingProxyType
from typing import Any

import numpy as np
import simplejpeg
import tiny_bundle as tiny
import torch
from safetensors.numpy import save

from gbad_batch.engine.bundle import pack_gate
from gbad_batch.engine.model.architecture import MAP_LSE, MAP_MAX, Architecture
from gbad_batch.engine.model.gbad import GBAD, round_to_half
from gbad_batch.export.to_onnx import export_graphs

SIZES: dict[str, Any] = {
    "fpn_channels": 16,
    "head_features": 8,
    "features": 32,
    "input_size": 64,
    "latent": 4,
    "f_d": 8,
}
ARCHITECTURE = Architecture("test_resnet", **SIZES)
# linear bottlenecks, depthwise convolutions and asymmetric padding, and class scores from a map
MAPPED = Architecture("tf_efficientnet_lite0", **SIZES, head=MAP_LSE, map_channels=8)
PEAKED = Architecture("test_resnet", **SIZES, head=MAP_MAX, map_channels=8)
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ARCHITECTURE, not those of its backbone


def model(architecture: Architecture = ARCHITECTURE) -> GBAD:
    """Make a model of random weights and statistics of its own, as training leaves them."""
    torch.manual_seed(3)
    form = (MEAN, STD) if architecture.backbone == ARCHITECTURE.backbone else ()
    model = GBAD(architecture, *form).eval().requires_grad_(False)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    x, _ = model.features(torch.from_numpy(tiny.pictures(16, seed=3)))
    model.bigan.mean.copy_(x.mean(0))
    model.bigan.std.copy_(x.std(0).clamp_min(max(0.1 * float(x.std(0).median()), 1e-3)))
    round_to_half(model)
    return model


@cache
def files(architecture: Architecture = ARCHITECTURE) -> Mapping[str, bytes]:
    """Every file of the bundle but bundle.json; once in a process, since tracing takes seconds."""
    return MappingProxyType(files_of(model(architecture)))


def files_of(made: GBAD) -> dict[str, bytes]:
    """Every file of the bundle of a model."""
    images = [simplejpeg.encode_jpeg(image, quality=95) for image in tiny.pictures(tiny.GATE_IMAGES)]
    found = made(torch.from_numpy(np.stack([simplejpeg.decode_jpeg(image) for image in images])))
    arrays = made.arrays()
    for decision in tiny.decisions().values():
        arrays |= decision.tensors()
    network, bigan = export_graphs(made)
    return {
        "weights.safetensors": save(arrays),
        "network.onnx": network,
        "bigan.onnx": bigan,
        "gate.tar": pack_gate(images, found.reconstruction_loss, found.feature_matching_loss, found.logits),
        "README.md": b"# small\n\nRandom weights, for tests.\n",
    }


def manifest(architecture: Architecture = ARCHITECTURE) -> dict[str, Any]:
    """Give the content of bundle.json, without format and files."""
    made = model(architecture)
    preprocessing = {"mean": made.pixel_mean.tolist(), "std": made.pixel_std.tolist()}
    return tiny.manifest() | {
        "name": "small",
        "architecture": asdict(architecture),
        "preprocessing": preprocessing,
        "provenance": {"made": "by tests/torch_bundle.py"},
    }
