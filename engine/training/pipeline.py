"""From labelled images to a bundle: the three phases in order, each going on from where a kill left it."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ..bundle import DEFAULT_PFA, Bundle, check_vacant, write_bundle
from ..datasets.duplicates import fingerprints, groups_of
from ..errors import MissingExtra, Refused, Stopped
from ..evaluation import Bags, Scored, figures
from ..model.backbone import fetch_backbone_weights, load_backbone_weights
from ..model.bigan import BiGAN
from ..model.decision import Decision
from ..model.gbad import GBAD, round_to_half
from ..synth import gate_images
from ..system.durable import remove
from ..system.machine import usable_cores
from ..system.progress import Progress, silent
from .checkpoint import RunFolder
from .curves import draw_bigan, draw_epochs, draw_samples
from .data import Index, Labelled, Splits, counts, load_labelled, split
from .features import FEATURES, LEAST_READABLE, open_features
from .packing.quantizing import QuantizeSettings, quantize_bundle, sample
from .packing.writing import Outcome, pack
from .phases import phase1, phase2
from .phases.norms import fold_norms, put_norms
from .phases.observe import probabilities
from .phases.phase1 import Phase1Data, train_network
from .phases.phase2 import check_collapse, train_bigan
from .phases.phase3 import (
    Losses,
    auroc,
    choose_default,
    fit_decisions,
    operating_points,
    partial_auroc,
)
from .phases.svm import choose_fitter
from .phases.windows import NO_BOXES
from .projection.projecting import FOLDER, project_threats
from .projection.threats import open_threats
from .reported import REPORTED, ReportedNetwork
from .settings import HUB, PHASES, TrainSettings

log = logging.getLogger(__name__)

FP32 = "fp32"  # of the run folder: the bundle before it has its INT8 form
GATE_SEED = 1 << 32  # its pictures are in no training set


def train(settings: TrainSettings, progress: Progress = silent) -> Path | None:
    """Run the phases asked for and write the bundle; returns its folder, None without phase III.

    What the run folder holds is gone on with, and left as it is where it is finished; a phase that is asked
    for by name, with other settings than before, is done again. The same settings, images and threads on the
    same CPU give the same bytes of weights. Raises Refused for a data set that cannot be used and Stopped
    where the BiGAN collapses.
    """
    training = _Training(settings, progress)
    if 1 in settings.phases:
        training.phase_one()
    if 2 in settings.phases:
        training.phase_two()
    return training.phase_three() if 3 in settings.phases else None


def train_as_reported(settings: TrainSettings, progress: Progress = silent) -> list[dict[str, Any]]:
    """Run phase I as the report has it; returns the figures of each epoch. There is no bundle of it."""
    if settings.start is not None:
        raise Refused("--report-exact trains another network than bundles hold: --start has no place in it")
    settings = _with_report(settings)
    training = _Training(settings, progress)
    network = ReportedNetwork(settings.architecture.backbone)
    _load_imagenet(network.body, settings)
    network.to(settings.device)
    model = training.model
    return train_network(
        model, network, training.phase1_data(), settings.phase1, settings.seed, training.run, progress
    )


def _load_imagenet(backbone: nn.Module, settings: TrainSettings) -> None:
    """Give a backbone the ImageNet weights that were asked for, if any were."""
    name = settings.architecture.backbone
    if settings.backbone_weights == HUB:
        fetch_backbone_weights(backbone, name)
    elif settings.backbone_weights is not None:
        load_backbone_weights(backbone, name, settings.backbone_weights)


def _with_report(settings: TrainSettings) -> TrainSettings:
    return replace(settings, phase1=REPORTED, phases=(1,))


class _Training:
    """One data set, its splits, the model, and the run folder that remembers how far they are."""

    def __init__(self, settings: TrainSettings, progress: Progress):
        if 3 in settings.phases:
            check_vacant(settings.out)
        self.settings, self.progress = settings, progress
        self.started = time.time()
        threads = settings.threads or usable_cores()
        torch.set_num_threads(threads)
        torch.manual_seed(settings.seed)
        self.model = GBAD(settings.architecture)
        self.run = RunFolder(settings.run)
        listed = load_labelled(settings.labels, settings.images, settings.form, settings.class_map)
        _check_boxes(settings, listed)
        named = set() if settings.phases == PHASES else {f"phase{k}" for k in settings.phases}
        named |= {"boxes", "projected"} if "phase1" in named else set()
        self._again(self.run.open(_config(settings, listed, threads), may_change=named))
        self.warnings: list[str] = []
        self.labelled, self.splits = self._prepared(listed)
        self.projected = self._project()

    def _again(self, changed: set[str]) -> None:
        """Forget the phases that are asked for by name with other settings, and what rests on them."""
        if "projected" in changed:
            remove(self.run.path / FOLDER)
        if changed & {"phase1", "boxes", "projected"}:
            self.run.drop("network", phase1.NAME)
            remove(self.run.path / FEATURES)
        if changed & {"phase1", "boxes", "projected", "phase2"}:
            self.run.drop("bigan", phase2.NAME)
        self.run.settle()

    def _prepared(self, listed: Labelled) -> tuple[Labelled, Splits]:
        """Leave out what cannot be read, and deal the rest into splits, images that look alike into one."""
        stored = self.run.load("images")
        if stored is None:
            prints = fingerprints(listed.paths, self.progress)
            readable = np.ones(len(listed.paths), np.bool_)
            readable[list(prints.faults)] = False
            stored = {"readable": torch.from_numpy(readable), "alike": torch.from_numpy(groups_of(prints))}
            self.run.save("images", stored)
        readable, alike = stored["readable"].numpy(), stored["alike"].numpy()
        whole = np.flatnonzero(readable)
        if len(whole) < LEAST_READABLE * len(readable):
            raise Refused(
                f"{len(readable) - len(whole)} of {len(readable)} images cannot be decoded, and training "
                "needs 99 in a hundred: `gbad-batch data check` names them"
            )
        labelled = listed.take(whole)
        splits = split(labelled, alike[whole], self.settings.shares, self.settings.seed)
        self.warnings += _shared_bags(alike[whole], splits)
        return labelled, splits

    def _project(self) -> Index:
        """Add the pictures that projection makes to the train split alone; returns their positions.

        Threats come from training images too, and the hosts keep their own benign selves.
        """
        settings, labelled, train = self.settings, self.labelled, self.splits.train
        if not settings.projected:
            return np.empty(0, np.intp)
        threats = open_threats(settings.projected_from, labelled.take(train), settings.class_map)
        folder, count = self.run.path / FOLDER, settings.projected
        hosts = labelled.take(self.benign)
        made = project_threats(folder, hosts, threats, count, settings.seed, self.progress)
        added = np.arange(len(labelled.paths), len(labelled.paths) + len(made.paths))
        self.labelled = labelled.joined(made)
        self.splits = replace(self.splits, train=np.concatenate([train, added]))
        return added

    def phase1_data(self) -> Phase1Data:
        """Return what phase I sees."""
        return Phase1Data(self.labelled, self.splits.train, self.splits.validation)

    def phase_one(self) -> None:
        """Train the network, or take the finished one; its weights are then those that ship, float16."""
        settings, model = self.settings, self.model
        finished = self.run.load("network")
        if finished is None:
            self._start()
            torch.manual_seed(settings.seed + 1)
            put_norms(model.network)
            model.network.to(settings.device)
            lines = train_network(
                model,
                model.network,
                self.phase1_data(),
                settings.phase1,
                settings.seed,
                self.run,
                self.progress,
            )
            model.network.to("cpu")
            fold_norms(model.network)
            round_to_half(model.network)
            self.run.save("network", {"state": model.network.state_dict()})
            self.run.drop(phase1.NAME)
            draw_epochs(self.run.path / "plots", lines)
            self._draw_samples()
        self._load_network()

    def phase_two(self) -> None:
        """Extract features once, then train the BiGAN on the benign ones, or take the finished one."""
        settings, model = self.settings, self.model
        self._load_network()
        self.extract()
        finished = self.run.load("bigan")
        if finished is None:
            torch.manual_seed(settings.seed + 2)
            x = self.features.x[self.benign]
            figures = train_bigan(model.bigan, x, settings.phase2, settings.seed, self.progress, self.run)
            round_to_half(model.bigan)
            self.run.save("bigan", {"state": model.bigan.state_dict(), "figures": figures})
            self.run.drop(phase2.NAME)
            draw_bigan(self.run.path / "plots", self.run.figures())

    def phase_three(self) -> Path:
        """Fit the decisions, set the operating points, judge on the test split, and write the bundle."""
        settings = self.settings
        self._load_network()
        self.extract()
        outcome = self._decided()
        outcome.provenance |= {
            "seconds": round(time.time() - self.started),
            "settings": _plain(asdict(settings)),
        }
        gate = gate_images(settings.gate_images, GATE_SEED + settings.seed, settings.architecture.input_size)
        fp32 = self.run.path / FP32
        remove(fp32)
        pack(fp32, settings.name, settings.demo, outcome, settings.phase3, settings.data, gate)
        self._finish(Bundle.read(fp32))
        remove(fp32)
        return settings.out

    def _finish(self, bundle: Bundle) -> None:
        """Write the bundle with an INT8 form, or as it is where it can have none, which is said."""
        settings = self.settings
        calibration = [self.labelled.paths[i] for i in self.splits.calibration]
        chosen = QuantizeSettings(images=settings.int8_images, seed=settings.seed)
        try:
            if settings.int8_images:
                quantize_bundle(bundle, self._for_int8(), calibration, settings.out, chosen, self.progress)
                return
        except (MissingExtra, Stopped) as error:
            log.warning("the bundle has no INT8 form: %s", error)
        write_bundle(settings.out, bundle.manifest.document(), bundle.files)

    def _for_int8(self) -> list[Path]:
        """Draw the training images that INT8's ranges are found on, as many with threats as without."""
        train, half = self.splits.train, self.settings.int8_images // 2
        positive = self.labelled.positive[train]
        return [
            path
            for kind in (train[positive], train[~positive])
            for path in sample([self.labelled.paths[i] for i in kind], half, self.settings.seed)
        ]

    @property
    def benign(self) -> NDArray[np.intp]:
        """Positions of the benign training images."""
        return self.splits.train[~self.labelled.positive[self.splits.train]]

    def extract(self) -> None:
        """Open the features of every image, and fill what is missing."""
        length = self.settings.architecture.features
        self.features = open_features(self.run.path, len(self.labelled.paths), length)
        self.model.to(self.settings.device)
        self.features.extract(self.model, self.labelled.paths, self.progress)
        self.model.to("cpu")

    def _start(self) -> None:
        """Give the network the weights that it starts from."""
        settings, network = self.settings, self.model.network
        if settings.start is not None:
            bundle = Bundle.read(settings.start)
            if bundle.manifest.architecture != settings.architecture:
                raise Refused(
                    f"{settings.start} is of another architecture ({bundle.manifest.architecture.backbone}): "
                    "start from a bundle of the same one"
                )
            form = bundle.manifest.preprocessing
            other = GBAD.from_arrays(settings.architecture, bundle.tensors(), form.mean, form.std)
            network.backbone.load_state_dict(other.network.backbone.state_dict())
            network.fpn.load_state_dict(other.network.fpn.state_dict())
        else:
            _load_imagenet(network.backbone, settings)

    def _load_network(self) -> None:
        finished = self.run.load("network")
        if finished is None:
            raise Refused(f"{self.run.path} holds no finished phase I: run it first, with --phase 1")
        self.model.network.load_state_dict(finished["state"])
        # as training left it: features have the same bits whether or not this process trained the network
        self.model.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.model.eval()

    def _decided(self) -> Outcome:
        settings, model = self.settings, self.model
        finished = self.run.load("bigan")
        if finished is None:
            raise Refused(f"{self.run.path} holds no finished phase II: run it first, with --phase 2")
        model.bigan.load_state_dict(finished["state"])
        losses = Losses(*losses_of(model.bigan, self.features.x), self.features.logits, self.labelled.labels)
        validation = losses.take(self.splits.validation)
        value = auroc(validation.reconstruction, validation.positive)
        warning = check_collapse(finished["figures"], value, len(self.benign), settings.phase2)
        self.warnings += [warning] if warning else []
        train = losses.take(self.splits.train)
        library, fitter = choose_fitter(settings.device)
        decisions = fit_decisions(train, validation, settings.phase3, settings.seed, self.progress, fitter)
        default = choose_default(decisions, validation)
        outcome = Outcome(model, decisions, default, losses.take(self.splits.calibration))
        outcome.provenance = self._provenance(losses, decisions, finished["figures"]) | {"svm": library}
        outcome.provenance["test"] = self._tested(losses.take(self.splits.test), outcome)
        return outcome

    def _tested(self, test: Losses, outcome: Outcome) -> dict[str, list[float | None]]:
        """Give the figures of the test split with their intervals; none where it lacks a kind of image."""
        if not test.positive.any() or test.positive.all():
            return {}
        points = {
            name: operating_points(each, outcome.calibration, self.settings.phase3)
            for name, each in outcome.decisions.items()
        }
        default = next(point for point in points[outcome.default_decision] if point.pfa == DEFAULT_PFA)
        scored = Scored(
            labels=test.labels,
            probabilities=test.probabilities,
            scores={name: test.scores(each) for name, each in outcome.decisions.items()},
            decision=outcome.default_decision,
            threshold=default.threshold,
            class_thresholds=np.array(default.class_thresholds),
        )
        bags = Bags.named([self.labelled.groups[i] for i in self.splits.test])
        found = figures(scored, bags, points)
        return {name: [each.value, each.low, each.high] for name, each in found.items()}

    def _provenance(
        self, losses: Losses, decisions: Mapping[str, Decision], figures: Mapping[str, float]
    ) -> dict[str, Any]:
        """Gather counts of the splits, figures of the phases, and how the decisions do on validation."""
        splits = {name: index for name, index in vars(self.splits).items() if len(index)}
        return {
            "epochs": [line for line in self.run.figures() if line["phase"] == phase1.NAME],
            "begun": _begun(self.settings),
            "images": {name: counts(self.labelled.labels[index]) for name, index in splits.items()},
            "projected": counts(self.labelled.labels[self.projected]),
            "bigan": dict(figures),
            "validation": _judged(losses.take(self.splits.validation), decisions),
            # in-sample figures stand here for the gap alone
            "training": _judged(losses.take(self.splits.train), decisions),
            "warnings": self.warnings,
        }

    def _draw_samples(self) -> None:
        """Draw validation images with what the network says of them beside the truth."""
        random = np.random.default_rng((self.settings.seed, 6))
        chosen = self.labelled.take(np.sort(random.permutation(self.splits.validation)[:16]))
        size = self.settings.architecture.input_size
        found = probabilities(self.model.network, self.model, chosen.paths, size)
        draw_samples(self.run.path / "plots", chosen, found, size)


def _begun(settings: TrainSettings) -> dict[str, Any]:
    """Say what phase I started from: another bundle's network, ImageNet's weights, or random ones."""
    if settings.start is None:
        return {"imagenet": settings.backbone_weights is not None}
    bundle = Bundle.read(settings.start)
    return {"bundle": bundle.hash, "name": bundle.manifest.name}


def _shared_bags(alike: NDArray[np.intp], splits: Splits) -> list[str]:
    """Warn of images in one split that look like images of training: their owner dealt them so."""
    told = []
    training = np.unique(alike[splits.train])
    for name in ("validation", "calibration", "test"):
        number = int(np.isin(alike[getattr(splits, name)], training).sum())
        if number:
            told.append(f"{number} images of the {name} split look like images of the train split.")
    return told


def _judged(losses: Losses, decisions: Mapping[str, Decision]) -> dict[str, dict[str, Any]]:
    judged: dict[str, dict[str, Any]] = {
        name: {
            "auroc": auroc(losses.scores(each), losses.positive),
            "partial_auroc": partial_auroc(losses.scores(each), losses.positive, 0.05),
            "kernel": "linear" if each.support is None else "rbf",
        }
        for name, each in decisions.items()
    }
    judged["reconstruction"] = {"auroc": auroc(losses.reconstruction, losses.positive)}
    judged["feature_matching"] = {"auroc": auroc(losses.feature_matching, losses.positive)}
    return judged


@torch.no_grad()
def losses_of(bigan: BiGAN, x: NDArray[np.float32]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return reconstruction_loss [n] and feature_matching_loss [n] of features x [n, d]."""
    parts = [bigan(torch.from_numpy(x[start : start + 1024])) for start in range(0, len(x), 1024)]
    reconstruction, matching = (torch.cat(part).numpy() for part in zip(*parts, strict=True))
    return reconstruction, matching


def _check_boxes(settings: TrainSettings, listed: Labelled) -> None:
    """Refuse a lack of boxes, or of threats to project, before looking at all images takes its time."""
    if settings.projected:
        open_threats(settings.projected_from, listed, settings.class_map)
    elif 1 in settings.phases and settings.phase1.needs_boxes and not listed.boxes:
        raise Refused(NO_BOXES)


def _config(settings: TrainSettings, listed: Labelled, threads: int) -> dict[str, Any]:
    """Say what must match for a run folder to be gone on with."""
    own = _plain(asdict(settings))
    start = Bundle.read(settings.start).hash if settings.start else None
    keys: Sequence[str] = ("seed", "device", "architecture", "shares", "phase1", "phase2", "phase3")
    weights = str(settings.backbone_weights) if settings.backbone_weights else None
    boxes = listed.boxes_digest()
    source = boxes if settings.projected_from is None else str(settings.projected_from)
    return {
        "images": listed.digest(settings.images),
        "boxes": boxes if settings.phase1.needs_boxes else None,
        "threads": threads,
        "start": start,
        "weights": weights,
        "projected": [settings.projected, source] if settings.projected else None,
        **{key: own[key] for key in keys},
    }


def _plain(value: Any) -> Any:
    """Return settings as JSON holds them; folders of the training machine stay there."""
    if isinstance(value, dict):
        return {key: _plain(each) for key, each in value.items() if not isinstance(each, Path)}
    return [_plain(each) for each in value] if isinstance(value, tuple) else value
