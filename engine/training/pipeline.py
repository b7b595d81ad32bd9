"""From labelled images to a bundle: the three phases in order, and what belongs to the weights that ship."""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..bundle import check_vacant
from ..machine import usable_cores
from ..model.architecture import Architecture
from ..model.backbone import load_backbone_weights
from ..model.decision import Decision
from ..model.gbad import GBAD, round_to_half
from ..synth import gate_images
from .card import card
from .data import Labelled, Splits, counts, load_pixels, read_sixray, split
from .packing import Outcome, pack
from .phase1 import Phase1Settings, train_network
from .phase2 import Phase2Settings, check_collapse, train_bigan
from .phase3 import Losses, Phase3Settings, auroc, choose_default, fit_decisions, partial_auroc
from .progress import Progress, silent

EVALUATED_AT_ONCE = 16  # images
GATE_SEED = 1 << 32  # its pictures are in no training set


@dataclass(frozen=True)
class TrainSettings:
    """What is trained, on what, and where the bundle goes."""

    labels: Path  # a list in SIXray's form
    images: Path  # the folder below which its images lie
    out: Path  # the bundle's folder, new
    run: Path  # the run's own folder: decoded pixels, metrics
    name: str = "gbad"  # of the bundle
    seed: int = 0
    threads: int = 0  # of torch; 0 takes the cores that may be used; another number changes last bits
    data: str = "images of its owner"  # what it was trained on, for the card
    demo: bool = False  # those images are synthetic
    validation: float = 0.10  # share of images
    calibration: float = 0.20  # share of benign images
    gate_images: int = 256  # synthetic images that every engine is compared on
    backbone_weights: Path | None = None  # ImageNet weights of the backbone
    architecture: Architecture = field(default_factory=Architecture)
    phase1: Phase1Settings = field(default_factory=Phase1Settings)
    phase2: Phase2Settings = field(default_factory=Phase2Settings)
    phase3: Phase3Settings = field(default_factory=Phase3Settings)


def train(settings: TrainSettings, progress: Progress = silent) -> Path:
    """Run the three phases and write the bundle; returns its folder.

    The same settings, images and threads on the same CPU give the same bytes of weights. Raises Refused for a
    data set that cannot be used and Stopped where the BiGAN collapses.
    """
    started = time.time()
    check_vacant(settings.out)
    torch.set_num_threads(settings.threads or usable_cores())
    torch.manual_seed(settings.seed)
    model = GBAD(settings.architecture)
    listed = read_sixray(settings.labels, settings.images)
    settings.run.mkdir(parents=True, exist_ok=True)
    labelled, pixels = load_pixels(listed, settings.architecture.input_size, settings.run, progress)
    outcome = _three_phases(settings, model, labelled, pixels, progress)
    outcome.provenance |= {"seconds": round(time.time() - started), "settings": _plain(asdict(settings))}
    gate = gate_images(settings.gate_images, GATE_SEED + settings.seed, settings.architecture.input_size)
    text = card(settings.name, settings.data, settings.demo, outcome.provenance)
    return pack(settings.out, settings.name, settings.demo, outcome, settings.phase3, text, gate)


def _three_phases(
    settings: TrainSettings, model: GBAD, labelled: Labelled, pixels: NDArray[np.uint8], progress: Progress
) -> Outcome:
    splits = split(labelled, settings.seed, settings.validation, settings.calibration)
    if settings.backbone_weights is not None:
        load_backbone_weights(
            model.network.backbone, settings.architecture.backbone, settings.backbone_weights
        )
    train_network(model, pixels, labelled.labels, splits.train, settings.phase1, settings.seed, progress)
    # everything from here on belongs to the weights that ship, which are float16
    round_to_half(model.network)
    x, logits = extract(model, pixels, progress)
    benign = splits.train[~labelled.positive[splits.train]]
    figures = train_bigan(model.bigan, x[benign], settings.phase2, settings.seed, progress)
    round_to_half(model.bigan)
    reconstruction, matching = losses_of(model, x)
    losses = Losses(reconstruction, matching, logits, labelled.labels)
    validation = losses.take(splits.validation)
    warning = check_collapse(
        figures, auroc(validation.reconstruction, validation.positive), len(benign), settings.phase2
    )
    decisions = fit_decisions(losses.take(splits.train), validation, settings.phase3, settings.seed, progress)
    default = choose_default(decisions, validation)
    outcome = Outcome(model, decisions, default, losses.take(splits.calibration))
    outcome.provenance = _provenance(labelled, splits, losses, decisions, figures, warning)
    (settings.run / "provenance.json").write_text(json.dumps(outcome.provenance, indent=1))
    return outcome


@torch.no_grad()
def extract(
    model: GBAD, pixels: NDArray[np.uint8], progress: Progress
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Features x [n, 1024] and logits [n, 5] of pixels [n, S, S, 3]."""
    parts = []
    for start in range(0, len(pixels), EVALUATED_AT_ONCE):
        batch = torch.from_numpy(np.ascontiguousarray(pixels[start : start + EVALUATED_AT_ONCE]))
        parts.append([each.numpy() for each in model.features(batch)])
        progress("features", min(start + EVALUATED_AT_ONCE, len(pixels)), len(pixels), {})
    x, logits = (np.concatenate(part) for part in zip(*parts, strict=True))
    return x, logits


@torch.no_grad()
def losses_of(model: GBAD, x: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return reconstruction_loss [n] and feature_matching_loss [n] of features x [n, 1024]."""
    parts = [model.bigan(torch.from_numpy(x[start : start + 1024])) for start in range(0, len(x), 1024)]
    reconstruction, matching = (torch.cat(part).numpy() for part in zip(*parts, strict=True))
    return reconstruction, matching


def _provenance(
    labelled: Labelled,
    splits: Splits,
    losses: Losses,
    decisions: Mapping[str, Decision],
    figures: Mapping[str, float],
    warning: str | None,
) -> dict[str, Any]:
    """Gather counts of the splits, figures of the phases, and how the decisions do on validation."""
    validation = losses.take(splits.validation)
    aurocs = {
        name: {
            "auroc": auroc(validation.scores(each), validation.positive),
            "partial_auroc": partial_auroc(validation.scores(each), validation.positive, 0.05),
            "kernel": "linear" if each.support is None else "rbf",
        }
        for name, each in decisions.items()
    }
    return {
        "images": {name: counts(labelled.labels[index]) for name, index in asdict(splits).items()},
        "bigan": dict(figures),
        "validation": aurocs,
        "validation_auroc_reconstruction": auroc(validation.reconstruction, validation.positive),
        "validation_auroc_feature_matching": auroc(validation.feature_matching, validation.positive),
        "warnings": [warning] if warning else [],
    }


def _plain(value: Any) -> Any:
    """Return settings as JSON holds them; folders of the training machine stay there."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items() if not isinstance(each, Path)}
    return [_plain(each) for each in value] if isinstance(value, tuple) else value
