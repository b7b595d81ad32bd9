"""From a bundle and a site's own bags to the bundle of that site, in steps that can be resumed."""

import logging
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch

from ...export.choice import precisions
from ..bundle import Bundle, check_vacant
from ..errors import Refused, Stopped
from ..model.bigan import BiGAN
from ..model.decision import Decision
from ..model.gbad import round_to_half
from ..runtime import Outputs
from ..settings import ScanSettings
from ..system.durable import remove
from ..system.machine import usable_cores
from ..system.progress import ProgressCallback, silent
from ..training.checkpoint import RunFolder
from ..training.packing.familiarity import fit_typicality
from ..training.packing.reduced import keep_form
from ..training.phases import phase2
from ..training.phases.phase2 import check_collapse, train_bigan
from ..training.phases.phase3 import Losses, losses_of, restandardized
from ..training.settings import Phase2Settings, Phase3Settings
from . import ADAPTED_FROM
from .benign import Bags, Parts, divide, each_once, read_bags, scan_bags
from .packing import Adapted, pack

if TYPE_CHECKING:
    from ..settings import Precision

log = logging.getLogger(__name__)

FEWEST = 40  # images
FP32 = "fp32"  # in the run folder: the bundle before it has a faster form


@dataclass(frozen=True)
class AdaptSettings:
    """Which bundle to adapt, to which images, and where to write the result."""

    bundle: Path
    """The bundle to adapt."""
    benign: tuple[str, ...]
    """Folders, tars or files of a site's own images, nearly all of them harmless."""
    out: Path
    """The adapted bundle's folder, new."""
    run: Path
    """The run folder: features and checkpoints."""
    name: str = "adapted"
    """Name of the adapted bundle."""
    limit: int = ADAPTED_FROM
    """Files to use, from the first on."""
    seed: int = 0
    """Seed of all random numbers."""
    threads: int = 0
    """Threads of torch; 0 takes all usable cores. Another number changes the last bits of the weights."""
    phase2: Phase2Settings = field(default_factory=Phase2Settings)
    """How the BiGAN is trained; few images are shown fewer times."""
    phase3: Phase3Settings = field(default_factory=Phase3Settings)
    """The operating points."""


def adapt(settings: AdaptSettings, progress: ProgressCallback = silent) -> Bundle:
    """Adapt a bundle to a site's own images, most of them harmless, and return the new one.

    The network stays. Its features of the images, which one scan for each precision computes and stores, give
    a new standardization and a new BiGAN; images that these have not seen give operating points and benign
    quantiles. A run that was killed resumes from its run folder and ends with the same bytes. Raises Refused
    for too few images, and Stopped where the BiGAN collapses.
    """
    check_vacant(settings.out)
    bundle = Bundle.read(settings.bundle)
    threads = settings.threads or usable_cores()
    folder = RunFolder(settings.run)
    folder.open(_configuration(settings, bundle, threads))
    forms = _features(settings, bundle, progress)
    torch.set_num_threads(threads)
    plain = forms["fp32"]
    parts = divide(plain.logits)
    if min(len(parts.fitted), len(parts.held)) < FEWEST // 2:
        raise Refused(
            f"only {len(plain.x)} different images can be scored, and fewer than {FEWEST} tell nothing: name "
            "an archive of some thousand bags"
        )
    settings = replace(settings, phase2=settings.phase2.for_few(len(parts.fitted)))
    bigan, figures = _train(settings, bundle, plain.x[parts.fitted], folder, progress)
    warning = check_collapse(figures, None, len(parts.fitted), settings.phase2)
    adapted = _calibrated(settings, bundle, bigan, plain, parts)
    adapted.provenance.update(bigan=figures, warnings=[warning] if warning else [])
    fp32 = settings.run / FP32
    remove(fp32)
    made = pack(fp32, settings.name, bundle, adapted, settings.phase3)
    held = {precision: _outputs(bigan, bags.take(parts.held)) for precision, bags in forms.items()}
    written = _write(settings, bundle, made, held)
    remove(fp32)
    return written


def _configuration(settings: AdaptSettings, bundle: Bundle, threads: int) -> dict[str, Any]:
    """Return what must be the same for a run to be resumed."""
    return {
        "bundle": bundle.hash,
        "benign": [str(Path(source).absolute()) for source in settings.benign],
        "limit": settings.limit,
        "seed": settings.seed,
        "threads": threads,
        "phase2": asdict(settings.phase2),
    }


def _features(settings: AdaptSettings, bundle: Bundle, progress: ProgressCallback) -> dict[str, Bags]:
    """Return the features of the images in every precision that scans on this CPU may use the bundle in.

    Equal files count once. A precision is left out where this machine's parity gate refuses it.
    """
    found = {}
    for precision in reversed(precisions(bundle, "cpu", "openvino")):
        scan = ScanSettings(
            sources=settings.benign,
            model=settings.bundle,
            device="cpu",
            precision=cast("Precision", precision),
            limit=settings.limit,
            out=settings.run / f"{precision}.parquet",
            features=settings.run / f"{precision}.features",
        )
        try:
            scan_bags(scan, progress)
        except Refused as refused:
            if precision == "fp32":
                raise
            log.warning("the adapted bundle has no %s form: %s", precision.upper(), refused)
            continue
        length = bundle.manifest.architecture.features
        assert scan.out_path is not None
        found[precision] = read_bags(scan.out_path, Path(str(scan.features)), length)
    return dict(zip(found, each_once(list(found.values())), strict=True))


def _train(
    settings: AdaptSettings, bundle: Bundle, x: Any, folder: RunFolder, progress: ProgressCallback
) -> tuple[BiGAN, dict[str, float]]:
    """Train a BiGAN on features x [n, d], or load a finished one; returns it and the figures of its end."""
    torch.manual_seed(settings.seed + 2)
    bigan = BiGAN(bundle.manifest.architecture)
    finished = folder.load("bigan")
    if finished is None:
        figures = train_bigan(bigan, x, settings.phase2, settings.seed, progress, folder)
        round_to_half(bigan)
        finished = {"state": bigan.state_dict(), "figures": figures}
        folder.save("bigan", finished)
        folder.drop(phase2.NAME)
    bigan.load_state_dict(finished["state"])
    return bigan.eval().requires_grad_(False), finished["figures"]


def _calibrated(settings: AdaptSettings, bundle: Bundle, bigan: BiGAN, bags: Bags, parts: Parts) -> Adapted:
    """Give the bundle's decisions the units of the new losses, and what their thresholds are set on."""
    everything = _losses(_outputs(bigan, bags))
    held, kept = everything.take(parts.held), np.sort(np.concatenate([parts.fitted, parts.held]))
    decisions = {
        name: restandardized(Decision.from_tensors(name, bundle.tensors()), held)
        for name in bundle.manifest.decisions
    }
    # the network has seen none of the images, so that all of them may judge what only it computes
    calibration = {name: everything.take(kept) if name == "classes" else held for name in decisions}
    counts = {name: len(getattr(parts, name)) for name in ("fitted", "held", "trimmed")}
    provenance = {
        "bundle": bundle.hash,
        "name": bundle.manifest.name,
        "images": {"all": len(bags.x), **counts},
        "seed": settings.seed,
        "phase2": asdict(settings.phase2),
    }
    sample = torch.from_numpy(bags.x[:2])
    # of all bags: those that are trimmed look like threats, and these are no stranger than other bags
    return Adapted(bigan, decisions, calibration, fit_typicality(bags.x), sample, provenance)


def _outputs(bigan: BiGAN, bags: Bags) -> Outputs:
    """Return the outputs of the networks for images, with the losses of a BiGAN."""
    return Outputs(bags.x, bags.logits, *losses_of(bigan, bags.x))


def _losses(outputs: Outputs) -> Losses:
    unlabelled = np.zeros(outputs.logits.shape, np.bool_)
    return Losses(outputs.reconstruction_loss, outputs.feature_matching_loss, outputs.logits, unlabelled)


def _write(settings: AdaptSettings, former: Bundle, made: Bundle, held: dict[str, Outputs]) -> Bundle:
    """Write the bundle with those forms in lower precision that still decide as FP32 does."""
    for precision, outputs in held.items():
        try:
            if precision != "fp32":
                made = keep_form(made, former, precision, outputs, held["fp32"])
        except Stopped as error:
            log.warning("the adapted bundle has no %s form: %s", precision.upper(), error)
    return made.write(settings.out)
