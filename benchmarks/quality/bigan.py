"""What the BiGAN gains or loses by each setting of phase II, varied one at a time on the same features."""

import argparse
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from .comparison import Comparison
from .contest import AUTOENCODER, BIGAN
from .detectors import contest_of, source_options

SHOWN = ("gbad", "reconstruction", "feature_matching")
VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "default": {},
    "adversarial_0_1": {"adversarial": 0.1},
    "reconstruction_1": {"reconstruction": 1.0},
    "reconstruction_100": {"reconstruction": 100.0},
    "batch_256": {"batch_size": 256},
    "half_rates": {"rate_discriminator": 5e-5, "rate_generator": 5e-4},
    "latent_16": {"latent": 16},
    "latent_32": {"latent": 32},
    "latent_128": {"latent": 128},
    "latent_256": {"latent": 256},
}


def options(parser: argparse.ArgumentParser) -> None:
    """Declare the features, the seeds, and which variants alone are wanted."""
    source_options(parser)
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="of phases II and III")
    parser.add_argument("--only", nargs="*", default=list(VARIANTS), choices=VARIANTS, help="these variants")


def run(arguments: argparse.Namespace) -> Comparison:
    """Judge both losses and `gbad` of each variant, and the autoencoder and PCA beside them."""
    contest, source = contest_of(arguments)
    folder, seeds = arguments.work / "scores", arguments.seeds
    report = Comparison(f"Settings of phase II, {seeds} seeds each: {source}")
    for variant in arguments.only:
        changed = dict(VARIANTS[variant])
        latent = changed.pop("latent", contest.latent)
        varied = replace(contest, phase2=replace(contest.phase2, **changed), latent=latent)
        scores = varied.scores(folder, seeds, [BIGAN])
        for name in SHOWN:
            report.add_row(f"{variant}_{name}", contest.judge(scores[name]))
    for name, values in contest.scores(folder, seeds, [AUTOENCODER, "l1_norm", "pca"]).items():
        report.add_row(name, contest.judge(values))
    return report
