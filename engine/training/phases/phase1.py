"""Phase I: backbone, FPN and FC1..FC5 by binary cross-entropy on as many benign images as positives.

While it trains, batch norms stand before FC1..FC4. What all images have in common can leave a rectified unit
on pooled maps at zero for all of them, and such a unit never learns again: without norms 1,012 of 1,024 were
dead after 28 epochs, and the BiGAN collapsed on the rest; with them (Ioffe and Szegedy, ICML 2015) 1,014 or
more lived after each of `leave_one_out`'s trainings. They are linear once training is over, and are folded
away.
"""

import math
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, NamedTuple, cast

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ...model.backbone import channels
from ...model.dense import Dense
from ...model.gbad import GBAD
from ...model.network import Network, Predictions
from ...system.machine import multiplies_bfloat16
from ...system.progress import ProgressCallback
from ..augment import ImageSettings, training_images
from ..checkpoint import RunFolder, State
from ..data import Index, Labelled, batches
from ..settings import Phase1Settings, Stage
from .average import moving_average
from .bfloat16 import bfloat16
from .localization import CellTargets, LocalizationHead, batch_targets, localization_loss
from .observe import Observed, Sample, observe
from .pretrained import BACKBONE_RATE, freeze_general
from .windows import BoxedThreats

NAME = "phase1"
CHECKPOINT_EVERY_S = 120.0  # when a checkpoint is written changes no weight
SMOOTHING = 0.02  # of displayed losses: the share of a new step
# attributes of Classifier that a checkpoint holds as they are
PLAIN_STATE = ("epoch", "step", "steps", "smooth", "smooth_localization", "best_map", "lines")


@dataclass(frozen=True)
class Phase1Data:
    """Data that phase I is trained and observed on."""

    labelled: Labelled
    train: Index
    validation: Index
    # images of another source, which have a part in every epoch
    mixed: Index = field(default_factory=lambda: np.empty(0, np.intp))
    epoch_images: tuple[int, int] = (0, 0)  # of `train` and of `mixed`; needed with `mixed` only


class Told(NamedTuple):
    """What the labels say of a batch."""

    labels: Tensor  # bool [N, 5]
    known: Tensor  # bool [N, 5]


class Classifier:
    """A network in training, with its optimizer, moving average and position."""

    def __init__(self, network: nn.Module, settings: Phase1Settings, pretrained: bool = False):
        self.network = network.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        if pretrained:
            freeze_general(cast("Network", network).backbone)
        device = next(network.parameters()).device
        self._precision = bfloat16 if device.type == "cpu" and multiplies_bfloat16() else nullcontext
        self.settings = settings
        self.average = moving_average(self.network, settings.average_decay)
        # places are learned on the class map, or else on layers of their own
        own_layers = settings.localization and not has_map(network)
        self.localization = _localization_head(network) if own_layers else None
        others = [self.localization] if self.localization else []
        self.optimizer = _optimizer(network, others, settings, pretrained)
        self.epoch = self.step = 0  # finished epochs, and steps of the current one
        self.steps = 0  # of all epochs
        self.smooth = math.log(2)
        self.smooth_localization: float | None = None  # until the first step
        self.best: State | None = None  # averaged weights of the best epoch
        self.best_map = -1.0
        self.lines: list[dict[str, Any]] = []  # figures of each epoch

    def learn(self, images: Tensor, told: Told, rate: float, targets: CellTargets | None = None) -> float:
        """Take one step on images [N, 3, S, S] and their labels; returns the loss, smoothed over steps.

        `targets` are those of the images' cells, needed if localization is learned as well; the
        returned loss is that of the labels by the head only. Beside a class map FC5 learns too, for FC1..FC4.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * rate * group["share"]
        with self._precision():
            loss, total = self._losses(images, told, targets)
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.clip_norm)
        self.optimizer.step()
        self.step, self.steps = self.step + 1, self.steps + 1
        self.average.update(self.network, self.steps)
        self.smooth += (loss.item() - self.smooth) * SMOOTHING
        return self.smooth

    def _losses(self, images: Tensor, told: Told, targets: CellTargets | None) -> tuple[Tensor, Tensor]:
        """Return the loss of the labels by the head, and the loss to be minimized."""
        network = self.network
        if not isinstance(network, Network):  # the report's own, which gives logits only
            loss = classification_loss(network(images)[1].float(), *told)
            return loss, loss
        maps = network.backbone(images)
        found = network.predict(maps)
        loss = total = classification_loss(found.logits.float(), *told)
        if found.class_map is not None:
            total = total + classification_loss(found.fc5.float(), *told)
        if self.settings.localization:
            assert targets is not None
            cells = self.localization(maps) if self.localization else [_mapped(found)]
            total = total + self.settings.localization * self._localize(cells, targets)
        return loss, total

    def _localize(self, cells: Sequence[Tensor], targets: CellTargets) -> Tensor:
        """Return the loss of where threats lie, from the logits of cells, and note it."""
        logits = [level.float() for level in cells]
        wanted = [torch.from_numpy(targets(level.shape[-1])).to(level.device) for level in logits]
        loss = localization_loss(logits, wanted)
        value, before = loss.item(), self.smooth_localization
        self.smooth_localization = value if before is None else before + (value - before) * SMOOTHING
        return loss

    def end_epoch(self, observed: Observed, seconds: float, images: int) -> None:
        """Record the figures of the moving average; keep the best weights of the last stage."""
        stages = self.settings.by_epoch
        stage = stages[self.epoch]
        line = {"epoch": self.epoch + 1, "size": stage.size, "window": stage.window, "loss": self.smooth}
        if self.smooth_localization is not None:
            line["localization_loss"] = self.smooth_localization
        speed = {"seconds": round(seconds, 1), "images_per_second": round(images / seconds, 1)}
        self.lines.append({**line, **speed, **observed.line()})
        # on a few validation images with no positive of a class there is no mAP: the last epoch is then best
        value = observed.validation_map if math.isfinite(observed.validation_map) else self.best_map
        if stage == stages[-1] and value >= self.best_map:
            self.best, self.best_map = _copied(self.average.module), value
        self.epoch, self.step = self.epoch + 1, 0

    def last_map(self) -> dict[str, float]:
        """Return the mAP on validation images after the last epoch; nothing before there is one."""
        value = self.lines[-1]["validation_map"] if self.lines else None
        return {} if value is None else {"mAP": value}

    @property
    def done(self) -> bool:
        """Tell whether all epochs are done, or the last stage no longer improves."""
        stages = self.settings.by_epoch
        last = self.lines[len(stages) - self.settings.stages[-1].epochs :]
        best = max(range(len(last)), key=lambda k: (last[k]["validation_map"] or 0, k), default=0)
        return self.epoch >= len(stages) or len(last) - 1 - best >= self.settings.patience

    def state(self) -> State:
        """Return the state from which a later process can resume exactly."""
        return {
            "network": self.network.state_dict(),
            "average": self.average.module.state_dict(),
            "localization": None if self.localization is None else self.localization.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "random": torch.get_rng_state(),  # of networks that drop paths or units
            "best": self.best,
            **{name: getattr(self, name) for name in PLAIN_STATE},
        }

    def restore(self, state: State) -> None:
        """Resume from a state."""
        self.network.load_state_dict(state["network"])
        self.average.module.load_state_dict(state["average"])
        if self.localization is not None:
            self.localization.load_state_dict(state["localization"])
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"])
        self.best = state["best"]
        for name in PLAIN_STATE:
            setattr(self, name, state[name])


@dataclass(frozen=True)
class Trainer:
    """Trains a network for phase I and continues from the checkpoint in its run folder."""

    model: GBAD  # gives the constants of normalization
    data: Phase1Data
    settings: Phase1Settings
    seed: int
    folder: RunFolder
    progress: ProgressCallback
    pretrained: bool = False  # the backbone has learned already, from ImageNet or as part of a bundle

    def train(self, network: nn.Module) -> list[dict[str, Any]]:
        """Train in place a network of normalized images to (features, logits); returns figures by epoch."""
        settings, data = self.settings, self.data
        shown = np.concatenate([data.train, data.mixed])
        boxed = BoxedThreats(data.labelled, shown) if settings.needs_boxes else None
        classifier = Classifier(network, settings, self.pretrained)
        if (state := self.folder.load(NAME)) is not None:
            classifier.restore(state)
        watch = _Watch(data, settings, self.seed)
        while not classifier.done:
            stage = settings.by_epoch[classifier.epoch]
            started = time.monotonic()
            images = self._epoch(classifier, stage, boxed)
            # whole images, at the scale at which the windows were seen
            samples = watch.samples(round(stage.size / stage.window))
            observed = observe(classifier.average.module, self.model, samples)
            classifier.end_epoch(observed, time.monotonic() - started, images)
            self.folder.save(NAME, classifier.state())
            self.folder.record(NAME, classifier.lines)
        assert classifier.best is not None
        network.load_state_dict(classifier.best)
        network.eval()
        return classifier.lines

    def _epoch(self, classifier: Classifier, stage: Stage, boxed: BoxedThreats | None) -> int:
        """Take the remaining steps of an epoch; returns the number of images used."""
        epoch, first = classifier.epoch, classifier.step
        plan = epoch_batches(self.data, self.settings, self.seed, epoch)
        started = saved = time.monotonic()
        for index, images, told, targets in self._batches(classifier, stage, boxed, plan):
            rate = _rate(epoch, classifier.step, len(plan), self.settings)
            loss = classifier.learn(images, told, rate, targets)
            now = time.monotonic()
            speed = (classifier.step - first) * len(index) / (now - started)
            figures = {"loss": loss, **classifier.last_map(), "pixels": stage.size, "img/s": speed}
            total = len(self.settings.by_epoch) * len(plan)
            self.progress("phase I", epoch * len(plan) + classifier.step, total, figures)
            if now - saved > CHECKPOINT_EVERY_S:
                self.folder.save(NAME, classifier.state())
                saved = now
        return (len(plan) - first) * self.settings.batch_size

    def _batches(
        self, classifier: Classifier, stage: Stage, boxed: BoxedThreats | None, plan: Sequence[Index]
    ) -> Iterator[tuple[Index, Tensor, Told, CellTargets | None]]:
        """Yield positions, images, labels and cell targets of the remaining batches of an epoch."""
        data, epoch = self.data, classifier.epoch
        parts, labels = None, data.labelled.labels
        if boxed is not None and stage.window < 1:
            parts, labels = boxed.draw(np.concatenate(plan), stage.window, (self.seed, 7, epoch))
        device = next(classifier.network.parameters()).device
        settings = self._image_settings(stage, device)
        remaining = plan[classifier.step :]
        for index, images in training_images(data.labelled.paths, remaining, epoch, settings, parts):
            targets = None
            if boxed is not None and self.settings.localization:
                targets = batch_targets(boxed, index, epoch, settings, parts)
            both = (labels[index], data.labelled.known[index])
            yield index, images, Told(*(torch.from_numpy(each).to(device) for each in both)), targets

    def _image_settings(self, stage: Stage, device: torch.device) -> ImageSettings:
        return ImageSettings(
            size=stage.size,
            mean=tuple(self.model.pixel_mean.tolist()),
            std=tuple(self.model.pixel_std.tolist()),
            augmentation=self.settings.augmentation,
            seed=self.seed,
            device=str(device),
            threads=torch.get_num_threads(),
        )


def classification_loss(logits: Tensor, labels: Tensor, known: Tensor) -> Tensor:
    """Return the mean of L(p, y) = -(y log p + (1 - y) log(1 - p)) over the known labels; p are sigmoids."""
    wanted = labels.to(logits.dtype)
    if known.all():
        return F.binary_cross_entropy_with_logits(logits, wanted)
    weight = known.to(logits.dtype)
    total = F.binary_cross_entropy_with_logits(logits, wanted, weight, reduction="sum")
    return total / weight.sum().clamp(min=1)


def epoch_batches(data: Phase1Data, settings: Phase1Settings, seed: int, epoch: int) -> list[Index]:
    """Return the positions of each batch of an epoch: all positives, and as many benign images.

    Where images are mixed in, an epoch has `epoch_images` of the two sources, each again with as many
    positives as benign images: small sets are repeated, and of large ones each epoch shows other images.
    """
    if len(data.mixed):
        return _mixed_batches(data, settings, seed, epoch)
    random = np.random.default_rng((seed, 2, epoch))
    positive = data.labelled.positive[data.train]
    threats, benign = data.train[positive], data.train[~positive]
    drawn = random.permutation(benign)[: len(threats)]
    order = random.permutation(np.concatenate([threats, drawn]))
    return list(batches(order, min(settings.batch_size, len(order))))


def _mixed_batches(data: Phase1Data, settings: Phase1Settings, seed: int, epoch: int) -> list[Index]:
    parts = []
    sources = zip((data.train, data.mixed), data.epoch_images, strict=True)
    for source, (index, count) in enumerate(sources):
        positive = data.labelled.positive[index]
        for kind in (True, False):
            among = index[positive == kind]
            parts.append(_turns(among, count // 2, epoch, (seed, 10, source, int(kind))))
    order = np.random.default_rng((seed, 2, epoch)).permutation(np.concatenate(parts))
    return list(batches(order, min(settings.batch_size, len(order))))


def _turns(index: Index, count: int, epoch: int, key: Sequence[int]) -> Index:
    """Return the `count` positions of an epoch, where all positions come once before one comes again."""
    if not len(index):
        return index
    first = epoch * count
    rounds = range(first // len(index), (first + count - 1) // len(index) + 1)
    order = [np.random.default_rng((*key, each)).permutation(index) for each in rounds]
    start = first - rounds[0] * len(index)
    return np.concatenate(order)[start : start + count]


class _Watch:
    """Samples of training and validation images on which figures are measured."""

    def __init__(self, data: Phase1Data, settings: Phase1Settings, seed: int):
        random = np.random.default_rng((seed, 4))
        self._labelled = data.labelled
        training = np.concatenate(epoch_batches(data, settings, seed, 0))
        self._samples = [
            np.sort(random.permutation(index)[: settings.watched]) for index in (training, data.validation)
        ]

    def samples(self, size: int) -> list[Sample]:
        """Return both samples at an image size."""
        return [Sample(self._labelled.take(index), size) for index in self._samples]


def put_norms(network: Network) -> None:
    """Put a batch norm before each of FC1..FC4."""
    for level, fc in enumerate(network.fc):
        network.fc[level] = nn.Sequential(nn.BatchNorm2d(cast("Dense", fc).in_channels), fc)


@torch.no_grad()
def fold_norms(network: Network) -> None:
    """Fold the batch norms into FC1..FC4; what the network computes in evaluation stays the same."""
    for level, both in enumerate(network.fc):
        norm, fc = cast("tuple[nn.BatchNorm2d, Dense]", tuple(cast("nn.Sequential", both)))
        mean, variance = cast("torch.Tensor", norm.running_mean), cast("torch.Tensor", norm.running_var)
        scale = norm.weight / (variance + norm.eps).sqrt()  # [inputs]
        weight = fc.weight.flatten(1)  # [outputs, inputs]
        assert fc.bias is not None
        fc.bias += weight @ (norm.bias - mean * scale)
        fc.weight *= scale[:, None, None]
        network.fc[level] = fc


def has_map(network: nn.Module) -> bool:
    """Tell whether a network has a class map."""
    return isinstance(network, Network) and network.class_map is not None


def _mapped(found: Predictions) -> Tensor:
    assert found.class_map is not None
    return found.class_map


def _localization_head(network: nn.Module) -> LocalizationHead:
    assert isinstance(network, Network)  # the report's own, which has no maps to share, never learns it
    return LocalizationHead(channels(network.backbone)).to(next(network.parameters()).device)


def _optimizer(
    network: nn.Module, others: Sequence[nn.Module], settings: Phase1Settings, pretrained: bool
) -> torch.optim.Optimizer:
    """Decay weights of layers, not biases and norms; a pretrained backbone has a smaller learning rate."""
    slow = set(cast("Network", network).backbone.parameters()) if pretrained else set()
    groups: dict[tuple[bool, bool], list[nn.Parameter]] = {}
    for module in (network, *others):
        for parameter in module.parameters():
            if parameter.requires_grad:
                groups.setdefault((parameter in slow, parameter.ndim > 1), []).append(parameter)
    return torch.optim.AdamW(
        [
            {
                "params": parameters,
                "weight_decay": settings.weight_decay if decayed else 0.0,
                "share": BACKBONE_RATE if slower else 1.0,
            }
            for (slower, decayed), parameters in groups.items()
        ],
        lr=settings.learning_rate,
    )


def _copied(module: nn.Module) -> State:
    return {key: value.clone() for key, value in module.state_dict().items()}


def _rate(epoch: int, step: int, steps: int, settings: Phase1Settings) -> float:
    """Return the learning rate as a share of its peak at `step` of the `steps` of an epoch.

    Linear warm-up, then a cosine down to a hundredth over the pixels, not over steps: small images
    come first and are many, and the last size would otherwise have no learning rate left.
    """
    pixels = [stage.size**2 for stage in settings.by_epoch]
    warm = max(1, round(settings.warm_up * len(pixels) * steps))
    if epoch * steps + step < warm:
        return (epoch * steps + step + 1) / warm
    done = (sum(pixels[:epoch]) + pixels[epoch] * step / steps) / sum(pixels)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done))
