"""From labelled images to a bundle: the three phases in order, each of which can be resumed."""

import logging
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ..bundle import Bundle, check_vacant
from ..errors import MissingExtra, Refused, Stopped
from ..model.folding import round_to_bfloat16
from ..model.gbad import GBAD, round_to_half
from ..model.imagenet import load_imagenet_weights
from ..synth import gate_images
from ..system.durable import remove
from ..system.machine import cpu_model, multiplies_bfloat16, usable_cores
from ..system.progress import ProgressCallback, silent
from .checkpoint import RunFolder
from .curves import draw_bigan, draw_epochs, draw_samples
from .data import counts
from .features import Features, network_for_features, open_features
from .packing.bfloat16 import with_bf16
from .packing.familiarity import fit_typicality, known_images
from .packing.half import with_half_tolerance
from .packing.provenance import figures_on_test, separation
from .packing.quantizing import sample, with_int8
from .packing.writing import Outcome, pack
from .phases import phase1, phase2
from .phases.observe import Sample, choose_head, probabilities
from .phases.phase1 import Phase1Data, Trainer, fold_norms, put_norms
from .phases.phase2 import check_collapse, train_bigan
from .phases.phase3 import (
    Losses,
    auroc,
    choose_default,
    class_maximum,
    fc5_logits,
    fit_decisions,
    losses_of,
)
from .phases.svm import choose_fitter
from .preparation import Prepared, plain, prepare
from .settings import IMAGENET, Phase2Settings, QuantizeSettings, TrainSettings
from .stopwatch import Stopwatch

log = logging.getLogger(__name__)

SECONDS = "seconds.json"  # in the run folder: what each step took
FP32 = "fp32"  # in the run folder: the bundle before it has a faster form
GATE_SEED = 1 << 32  # its pictures are in no training set
DRAWN_SAMPLES = 16  # validation images in samples.png


def train(settings: TrainSettings, progress: ProgressCallback = silent) -> Path | None:
    """Run the phases that the settings name and write the bundle; returns its folder, None without phase III.

    A run folder with finished or unfinished phases is resumed; a phase that is requested by number, with
    other settings than before, is repeated. The same settings, images and threads on the same CPU give the
    same bytes of weights. Raises Refused for a data set that cannot be used, and Stopped where the BiGAN
    collapses.
    """
    run = TrainingRun(settings, progress)
    run.prepare()
    if 1 in settings.phases:
        run.phase_one()
    if settings.phases == (1,):
        return None
    run.extract_features()
    if 2 in settings.phases:
        run.phase_two()
    if 3 not in settings.phases:
        return None
    outcome = run.phase_three()
    return run.pack(outcome)


class TrainingRun:
    """One training: its images, its model, and the run folder that stores its state."""

    prepared: Prepared  # by prepare()
    features: Features  # by extract_features()
    begun: dict[str, Any]  # what phase I started from; by extract_features()
    poolings: dict[str, float]  # validation mAP by pooling of the class map; by extract_features()

    def __init__(self, settings: TrainSettings, progress: ProgressCallback):
        """Raise Refused if the bundle's folder exists already."""
        if 3 in settings.phases:
            check_vacant(settings.out)
        self.settings = settings
        self.progress = Stopwatch(settings.run / SECONDS, progress)
        self.threads = settings.threads or usable_cores()
        torch.set_num_threads(self.threads)
        torch.manual_seed(settings.seed)
        self.start = None if settings.start is None else Bundle.read(settings.start)
        # weights of a bundle expect pixels as that bundle normalizes them, others as their backbone does
        form = self.start.manifest.preprocessing if self.start else None
        self.model = GBAD(settings.architecture, *((form.mean, form.std) if form else ()))
        self.folder = RunFolder(settings.run)

    def prepare(self) -> None:
        """Decode all images, divide them into splits, and project threats: the long step before phase I."""
        self.prepared = prepare(self.settings, self.threads, self.folder, self.progress)

    def phase_one(self) -> None:
        """Train the network, or keep a finished one; the bundle gets its weights as float16."""
        if self.folder.load("network") is not None:
            return
        settings, network = self.settings, self.model.network
        begun = self._initialize()
        torch.manual_seed(settings.seed + 1)
        if self.start is None:  # FC1..FC4 of a bundle live already
            put_norms(network)
        network.to(settings.device)
        lines = self.trainer().train(network)
        head = self._choose_head() if settings.architecture.has_map else {}
        network.to("cpu")
        if self.start is None:
            fold_norms(network)
        round_to_bfloat16(network, settings.architecture.input_size)
        round_to_half(network)
        self.folder.save(
            "network", {"state": network.state_dict(), "begun": begun, "head": network.head, "poolings": head}
        )
        self.folder.drop(phase1.NAME)
        draw_epochs(self.folder.path / "plots", lines)
        self._draw_samples()

    def trainer(self) -> Trainer:
        """Return the trainer of phase I for this run's images."""
        splits, settings = self.prepared.splits, self.settings
        data = Phase1Data(self.prepared.labelled, splits.train, splits.validation)
        if (mixed := self.prepared.mixed) is not None:
            first = len(data.labelled.paths)
            added = np.arange(first, first + len(mixed.paths))
            both = data.labelled.concatenated(mixed)
            data = replace(data, labelled=both, mixed=added, epoch_images=settings.epoch_images)
        pretrained = settings.backbone_weights is not None or settings.start is not None
        return Trainer(
            self.model, data, settings.phase1, settings.seed, self.folder, self.progress, pretrained
        )

    def extract_features(self) -> None:
        """Run the finished network once on every image, and store its outputs; raises Refused without one."""
        self._load_network()
        paths = self.prepared.labelled.paths
        self.features = open_features(self.folder.path, len(paths), self.settings.architecture.features)
        if self.features.done < len(paths):
            with network_for_features(self.model, self.settings.device, len(paths)) as network:
                self.features.extract(network, self.settings.architecture.input_size, paths, self.progress)

    @property
    def bigan_settings(self) -> Phase2Settings:
        """Return the settings of phase II, for few images where training goes on from a bundle."""
        chosen = self.settings.phase2
        return chosen if self.start is None else chosen.for_few(len(self.prepared.benign))

    def phase_two(self) -> None:
        """Train the BiGAN on features of benign training images, or keep a finished one."""
        if self.folder.load("bigan") is not None:
            return
        settings, bigan = self.settings, self.model.bigan
        torch.manual_seed(settings.seed + 2)
        x = self.features.x[self.prepared.benign]
        figures = train_bigan(bigan, x, self.bigan_settings, settings.seed, self.progress, self.folder)
        round_to_half(bigan)
        self.folder.save("bigan", {"state": bigan.state_dict(), "figures": figures})
        self.folder.drop(phase2.NAME)
        draw_bigan(self.folder.path / "plots", self.folder.figures())

    def phase_three(self) -> Outcome:
        """Fit the decisions, choose the default one, and judge the model on the test split."""
        settings, splits = self.settings, self.prepared.splits
        collapse_figures = self._load_bigan()
        losses = Losses(
            *losses_of(self.model.bigan, self.features.x),
            self.features.logits,
            self.prepared.labelled.labels,
        )
        validation = losses.take(splits.validation)
        value = auroc(validation.reconstruction, validation.positive)
        warning = check_collapse(collapse_figures, value, len(self.prepared.benign), settings.phase2)
        library, fitter = choose_fitter(settings.device)
        decisions = fit_decisions(
            losses.take(splits.train), validation, settings.phase3, settings.seed, self.progress, fitter
        )
        default = choose_default(decisions, validation)
        outcome = Outcome(self.model, decisions, default, losses.take(splits.calibration))
        outcome.provenance = self._provenance(losses, outcome) | {
            "bigan": dict(collapse_figures),
            "warnings": [*self.prepared.warnings, *([warning] if warning else [])],
            "svm": library,
            "seconds": {step: round(seconds) for step, seconds in self.progress.seconds.items()},
            "cpu": cpu_model(),
            "settings": plain(asdict(replace(settings, phase2=self.bigan_settings))),
        }
        known = known_images(splits.validation, splits.calibration)
        fitted = fit_typicality(self.features.x[known[self.features.readable[known]]])
        if fitted is not None:
            outcome.typicality, outcome.provenance["typicality"] = fitted
        return outcome

    def pack(self, outcome: Outcome) -> Path:
        """Write the bundle, with a tolerance of FP16 and a faster form if possible; returns its folder."""
        settings = self.settings
        seed, size = GATE_SEED + settings.seed, settings.architecture.input_size
        gate = gate_images(settings.gate_image_count, seed, size)
        fp32 = self.folder.path / FP32
        remove(fp32)
        pack(fp32, settings.name, settings.demo, outcome, settings.phase3, settings.data, gate)
        self._with_faster_form(with_half_tolerance(Bundle.read(fp32), self.progress)).write(settings.out)
        remove(fp32)
        return settings.out

    def _with_faster_form(self, bundle: Bundle) -> Bundle:
        """Add an INT8 form, or else one in bfloat16 where this CPU has that; warnings say what fails."""
        settings, prepared = self.settings, self.prepared
        calibration = [prepared.labelled.paths[i] for i in prepared.splits.calibration]
        chosen = QuantizeSettings(image_count=settings.int8_image_count, seed=settings.seed)
        try:
            if settings.int8_image_count:
                return with_int8(bundle, self._int8_images(), calibration, chosen, self.progress)
        except (MissingExtra, Stopped) as error:
            log.warning("the bundle has no INT8 form: %s", error)
        try:
            if multiplies_bfloat16():
                return with_bf16(bundle, calibration, self.progress)
        except Stopped as error:
            log.warning("the bundle has no BF16 form: %s", error)
        return bundle

    def _int8_images(self) -> list[Path]:
        """Draw the training images that INT8 is quantized on, as many with threats as without."""
        labelled, train = self.prepared.labelled, self.prepared.splits.train
        half = self.settings.int8_image_count // 2
        positive = labelled.positive[train]
        return [
            path
            for index in (train[positive], train[~positive])
            for path in sample([labelled.paths[i] for i in index], half, self.settings.seed)
        ]

    def _initialize(self) -> dict[str, Any]:
        """Load the weights that phase I starts from; returns where they came from, for the card."""
        settings, network, bundle = self.settings, self.model.network, self.start
        if bundle is None:
            return {"weights": load_imagenet(network.backbone, settings)}
        theirs, own = bundle.manifest.architecture, settings.architecture
        free = {name: getattr(own, name) for name in ("input_size", "head", "map_channels")}
        if replace(theirs, **free) != own:
            raise Refused(
                f"{bundle.path} is of another architecture ({theirs.backbone}): start from a bundle of the "
                "same one"
            )
        form = bundle.manifest.preprocessing
        other = GBAD.from_arrays(theirs, bundle.tensors(), form.mean, form.std).network
        for part in ("backbone", "fpn", "fc", "fc5"):
            getattr(network, part).load_state_dict(getattr(other, part).state_dict())
        if network.class_map and other.class_map and theirs.map_channels == own.map_channels:
            network.class_map.load_state_dict(other.class_map.state_dict())
        return {"bundle": bundle.hash, "name": bundle.manifest.name}

    def _choose_head(self) -> dict[str, float]:
        """Choose the pooling of the class map on validation images; returns the mAP of each."""
        settings, splits = self.settings, self.prepared.splits
        random = np.random.default_rng((settings.seed, 9))
        watched = random.permutation(splits.validation)[: settings.phase1.watched]
        sample = self.prepared.labelled.take(np.sort(watched))
        size = settings.architecture.input_size
        return choose_head(self.model.network, self.model, Sample(sample, size))

    def _load_network(self) -> None:
        finished = self.folder.load("network")
        if finished is None:
            raise Refused(f"{self.folder.path} holds no finished phase I: run it first, with --phase 1")
        self.model.network.load_state_dict(finished["state"])
        self.begun, self.poolings = finished["begun"], finished["poolings"]
        self.model.use_head(finished["head"])
        # as training left it: features have the same bits whether or not this process trained the network
        self.model.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.model.eval()

    def _load_bigan(self) -> dict[str, float]:
        """Load the finished BiGAN; returns the figures of its last steps."""
        finished = self.folder.load("bigan")
        if finished is None:
            raise Refused(f"{self.folder.path} holds no finished phase II: run it first, with --phase 2")
        self.model.bigan.load_state_dict(finished["state"])
        return finished["figures"]

    def _provenance(self, losses: Losses, outcome: Outcome) -> dict[str, Any]:
        """Collect counts of the splits, figures of phase I, and figures of the decisions on each split."""
        prepared = self.prepared
        labelled, splits, decisions = prepared.labelled, prepared.splits, outcome.decisions
        held = {name: index for name, index in vars(splits).items() if len(index)}
        return {
            "epochs": [line for line in self.folder.figures() if line["phase"] == phase1.NAME],
            "begun": self.begun,
            "poolings": self.poolings,
            "images": {name: counts(labelled.labels[index]) for name, index in held.items()},
            "projected": counts(labelled.labels[prepared.projected]),
            "mixed": 0 if prepared.mixed is None else len(prepared.mixed.paths),
            "validation": separation(losses.take(splits.validation), decisions),
            # figures of training images are only here to show the gap
            "training": separation(losses.take(splits.train), decisions),
            "test": self._figures_on_test(losses, outcome),
        }

    def _figures_on_test(self, losses: Losses, outcome: Outcome) -> dict[str, list[float | None]]:
        """Judge the model on the test split, and FC5 by itself where a class map gives the class scores."""
        splits, labelled, settings = self.prepared.splits, self.prepared.labelled, self.settings
        test, groups = losses.take(splits.test), [labelled.groups[i] for i in splits.test]
        found = figures_on_test(
            test, groups, outcome.decisions, outcome.default_decision, outcome.calibration, settings.phase3
        )
        if not settings.architecture.has_map:
            return found
        test, calibration = (
            replace(part, logits=fc5_logits(self.model.network, self.features.x[index]))
            for part, index in ((test, splits.test), (outcome.calibration, splits.calibration))
        )
        own = {"classes": class_maximum()}
        by_fc5 = figures_on_test(test, groups, own, "classes", calibration, settings.phase3)
        return found | {f"fc5.{name}": figure for name, figure in by_fc5.items()}

    def _draw_samples(self) -> None:
        """Draw validation images with the network's predictions beside the truth."""
        random = np.random.default_rng((self.settings.seed, 6))
        validation = random.permutation(self.prepared.splits.validation)[:DRAWN_SAMPLES]
        chosen = self.prepared.labelled.take(np.sort(validation))
        size = self.settings.architecture.input_size
        predicted = probabilities(self.model.network, self.model, chosen.paths, size)
        draw_samples(self.folder.path / "plots", chosen, predicted, size)


def load_imagenet(backbone: nn.Module, settings: TrainSettings) -> str | None:
    """Load the weights of the settings, if any, into a backbone; returns where they came from."""
    path, name = settings.backbone_weights, settings.architecture.backbone
    if path is None:
        return None
    return load_imagenet_weights(backbone, name, None if path == IMAGENET else path)
