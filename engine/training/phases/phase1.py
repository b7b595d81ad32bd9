"""Phase I: backbone, FPN and FC1..FC5 by binary cross-entropy on as many benign images as positives."""

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ...model.backbone import channels
from ...model.gbad import GBAD
from ...model.network import Network
from ...row import THREATS
from ...system.progress import Progress
from ..augment import Augmentation, ImageSettings, draw, training_images
from ..checkpoint import RunFolder, State
from ..data import Index, Labelled, batches
from .average import Average
from .observe import Observed, observe
from .places import IGNORED, Places, cell_targets, moved_boxes, place_loss
from .windows import BoxedThreats

NAME = "phase1"
CHECKPOINT_EVERY_S = 120.0  # when a checkpoint is written changes no weight
SMOOTHING = 0.02  # of losses that are shown: the share of a new step
NOTED = ("epoch", "step", "smooth", "smooth_places", "best_map", "lines")  # of Classifier, in checkpoints


Cells = Callable[[int], NDArray[np.float32]]  # n: targets [N, 5, n, n] of a batch


class Stage(NamedTuple):
    """Some epochs at one size."""

    size: int  # pixels a side
    epochs: int
    window: float = 1.0  # share of the image's sides that is seen: below 1, the part around a boxed threat


@dataclass(frozen=True)
class Phase1Settings:
    """How the network is trained."""

    stages: tuple[Stage, ...] = (Stage(128, 10), Stage(256, 5))
    batch_size: int = 32  # images
    optimizer: str = "adamw"  # or sgd, with a momentum of 0.9
    learning_rate: float = 2e-3  # at its peak
    weight_decay: float = 0.05
    warm_up: float = 0.05  # share of all steps
    clip_norm: float = 5.0  # of the gradient
    average_decay: float = 0.998
    balance_classes: bool = False  # pos_weight: each class's absences by its presences
    mixed: bool = False  # bfloat16 where that is safe
    places: float = 0.0  # weight of the loss of where threats lie, which needs their boxes; 0: none
    patience: int = 3  # epochs of the last stage without a better validation mAP before it ends
    watched: int = 1024  # images of training and of validation that figures are taken on, each
    augmentation: Augmentation = field(default_factory=Augmentation)

    @property
    def by_epoch(self) -> list[Stage]:
        """Return the stage of each epoch."""
        return [stage for stage in self.stages for _ in range(stage.epochs)]

    @property
    def needs_boxes(self) -> bool:
        """Tell whether windows or places are learned from."""
        return self.places > 0 or any(each.window < 1 for each in self.by_epoch)


@dataclass(frozen=True)
class Phase1Data:
    """What phase I is trained and watched on."""

    labelled: Labelled
    train: Index
    validation: Index


class Classifier:
    """A network in training: its optimizer, its average, and where it stands."""

    def __init__(self, network: nn.Module, settings: Phase1Settings, positive_weight: Tensor | None):
        self.network = network.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.settings = settings
        self.positive_weight = positive_weight
        self.average = Average(self.network, settings.average_decay)
        self.places = _places(network) if settings.places else None
        self.optimizer = _optimizer([network, *([self.places] if self.places else [])], settings)
        self.epoch = self.step = 0  # epochs done, and steps of this one
        self.smooth = math.log(2)
        self.smooth_places: float | None = None  # until the first step
        self.best: State | None = None  # averaged weights of the best epoch
        self.best_map = -1.0
        self.lines: list[dict[str, Any]] = []  # figures of each epoch

    def learn(self, images: Tensor, labels: Tensor, rate: float, cells: Cells | None = None) -> float:
        """Take one step on images [N, 3, S, S] and labels [N, 5]; returns the loss, smoothed over steps.

        `cells` gives the targets [N, 5, n, n] of the image's n x n cells, where places are learned too; the
        loss that is returned is that of the labels alone.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = self.settings.learning_rate * rate
        found: list[Tensor] = []
        with torch.autocast(images.device.type, torch.bfloat16, enabled=self.settings.mixed):
            if self.places is None:
                logits = self.network(images)[1]
            else:
                maps = self.network.backbone(images)  # type: ignore[operator]
                logits, found = self.network.heads(maps)[1], self.places(maps)  # type: ignore[operator]
        loss = total = classification_loss(logits.float(), labels, self.positive_weight)
        if cells is not None:
            wanted = [torch.from_numpy(cells(each.shape[-1])).to(images.device) for each in found]
            of_places = place_loss([each.float() for each in found], wanted)
            total = loss + self.settings.places * of_places
            value, before = of_places.item(), self.smooth_places
            self.smooth_places = value if before is None else before + (value - before) * SMOOTHING
        self.optimizer.zero_grad(set_to_none=True)
        total.backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), self.settings.clip_norm)
        self.optimizer.step()
        self.average.update(self.network)
        self.step += 1
        self.smooth += (loss.item() - self.smooth) * SMOOTHING
        return self.smooth

    def end_epoch(self, observed: Observed, seconds: float, images: int) -> None:
        """Note what the average does on the watched images; the best of the last stage is kept."""
        stages = self.settings.by_epoch
        stage = stages[self.epoch]
        line = {"epoch": self.epoch + 1, "size": stage.size, "window": stage.window, "loss": self.smooth}
        line |= {} if self.smooth_places is None else {"places_loss": self.smooth_places}
        speed = {"seconds": round(seconds, 1), "images_per_second": round(images / seconds, 1)}
        self.lines.append({**line, **speed, **observed.line()})
        # on a few validation images with no positive of a class there is no mAP: the last epoch is then best
        value = observed.validation_map if math.isfinite(observed.validation_map) else self.best_map
        if stage == stages[-1] and value >= self.best_map:
            self.best, self.best_map = _copied(self.average.module), value
        self.epoch, self.step = self.epoch + 1, 0

    @property
    def done(self) -> bool:
        """Tell whether all epochs are done, or the last stage no longer gets better."""
        stages = self.settings.by_epoch
        last = self.lines[len(stages) - self.settings.stages[-1].epochs :]
        best = max(range(len(last)), key=lambda k: (last[k]["validation_map"] or 0, k), default=0)
        return self.epoch >= len(stages) or len(last) - 1 - best >= self.settings.patience

    def state(self) -> State:
        """Return all that a later process needs to go on as if nothing had happened."""
        return {
            "network": self.network.state_dict(),
            "average": self.average.module.state_dict(),
            "average_steps": self.average.steps,
            "places": None if self.places is None else self.places.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "random": torch.get_rng_state(),  # of networks that drop paths or units
            "best": self.best,
            **{name: getattr(self, name) for name in NOTED},
        }

    def restore(self, state: State) -> None:
        """Go on from a state."""
        self.network.load_state_dict(state["network"])
        self.average.module.load_state_dict(state["average"])
        self.average.steps = state["average_steps"]
        if self.places is not None:
            self.places.load_state_dict(state["places"])
        self.optimizer.load_state_dict(state["optimizer"])
        torch.set_rng_state(state["random"])
        self.best = state["best"]
        for name in NOTED:
            setattr(self, name, state[name])


def train_network(  # noqa: PLR0913
    model: GBAD,
    network: nn.Module,
    data: Phase1Data,
    settings: Phase1Settings,
    seed: int,
    run: RunFolder,
    progress: Progress,
) -> list[dict[str, Any]]:
    """Train `network` in place, going on from the run's checkpoint; returns the figures of each epoch.

    `network` maps normalized images to (features, logits); the model gives the constants of normalization.
    """
    stages = settings.by_epoch
    boxed = BoxedThreats(data.labelled, data.train) if settings.needs_boxes else None
    classifier = Classifier(network, settings, _positive_weight(data, settings))
    if (state := run.load(NAME)) is not None:
        classifier.restore(state)
    device = next(network.parameters()).device
    watch = _Watch(data, settings, seed)
    while not classifier.done:
        epoch, stage = classifier.epoch, stages[classifier.epoch]
        plan = epoch_batches(data, settings, seed, epoch)
        parts, labels = None, data.labelled.labels
        if boxed is not None and stage.window < 1:
            parts, labels = boxed.draw(np.concatenate(plan), stage.window, (seed, 7, epoch))
        images = _images(model, stage, settings, seed, device)
        begun = saved = time.monotonic()
        first = classifier.step
        for index, batch in training_images(data.labelled.paths, plan[first:], epoch, images, parts):
            rate = _rate(epoch, classifier.step, len(plan), settings)
            cells = _placed(boxed, index, epoch, images, parts) if boxed and settings.places else None
            loss = classifier.learn(batch, torch.from_numpy(labels[index]).to(device), rate, cells)
            now = time.monotonic()
            speed = (classifier.step - first) * len(index) / (now - begun)
            figures = {"loss": loss, "mAP": classifier.best_map, "pixels": stage.size, "img/s": speed}
            progress("phase I", epoch * len(plan) + classifier.step, len(stages) * len(plan), figures)
            if now - saved > CHECKPOINT_EVERY_S:
                run.save(NAME, classifier.state())
                saved = now
        trained = (len(plan) - first) * settings.batch_size
        # whole images, at the scale at which the windows were seen
        observed = observe(classifier.average.module, model, watch.at(round(stage.size / stage.window)))
        classifier.end_epoch(observed, time.monotonic() - begun, trained)
        run.save(NAME, classifier.state())
        run.record(NAME, classifier.lines)
    assert classifier.best is not None
    network.load_state_dict(classifier.best)
    network.eval()
    return classifier.lines


def _images(
    model: GBAD, stage: Stage, settings: Phase1Settings, seed: int, device: torch.device
) -> ImageSettings:
    return ImageSettings(
        size=stage.size,
        mean=tuple(model.pixel_mean.tolist()),
        std=tuple(model.pixel_std.tolist()),
        augmentation=settings.augmentation,
        seed=seed,
        device=str(device),
        threads=torch.get_num_threads(),
    )


def classification_loss(logits: Tensor, labels: Tensor, positive_weight: Tensor | None = None) -> Tensor:
    """L(p, y) = -(w y log p + (1 - y) log(1 - p)), averaged over classes and images; p are sigmoids.

    The report has no weights w: `positive_weight` [5] is a departure that must be asked for.
    """
    return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype), pos_weight=positive_weight)


def epoch_batches(data: Phase1Data, settings: Phase1Settings, seed: int, epoch: int) -> list[Index]:
    """Positions of each batch of an epoch: every positive, and as many benign images drawn anew."""
    random = np.random.default_rng((seed, 2, epoch))
    positive = data.labelled.positive[data.train]
    threats, benign = data.train[positive], data.train[~positive]
    drawn = random.permutation(benign)[: len(threats)]
    order = random.permutation(np.concatenate([threats, drawn]))
    return list(batches(order, min(settings.batch_size, len(order))))


class _Watch:
    """The images that figures are taken on: a sample of training images, and of validation images."""

    def __init__(self, data: Phase1Data, settings: Phase1Settings, seed: int):
        random = np.random.default_rng((seed, 4))
        self._labelled = data.labelled
        ideal = np.concatenate(epoch_batches(data, settings, seed, 0))
        self._samples = [
            np.sort(random.permutation(each)[: settings.watched]) for each in (ideal, data.validation)
        ]

    def at(self, size: int) -> list[tuple[Sequence[Any], NDArray[np.bool_], int]]:
        """Paths, labels and image size of both samples."""
        taken = [self._labelled.take(index) for index in self._samples]
        return [(each.paths, each.labels, size) for each in taken]


def _positive_weight(data: Phase1Data, settings: Phase1Settings) -> Tensor | None:
    """Absences by presences of each class [5], in a set of as many benign images as positives."""
    if not settings.balance_classes:
        return None
    labels = data.labelled.labels[data.train]
    present = np.maximum(labels.sum(axis=0), 1)
    return torch.from_numpy((2 * labels.any(axis=1).sum() - present) / present).float()


def _places(network: nn.Module) -> Places:
    assert isinstance(network, Network)  # the report's own, which has no maps to share, never asks for them
    return Places(channels(network.backbone)).to(next(network.parameters()).device)


def _placed(
    boxed: BoxedThreats, index: Index, epoch: int, images: ImageSettings, parts: NDArray[np.float32] | None
) -> Cells:
    """Say what the cells of a batch hold, as its images were cut and moved."""
    placed = []
    for k in index.tolist():
        of = boxed.of(k, None if parts is None else parts[k])
        if of is not None:
            assert images.augmentation is not None
            drawn = draw(images.augmentation, images.size, (images.seed, epoch, k))
            of = moved_boxes(of[0] * images.size, drawn, images.size), of[1]
        placed.append(of)

    def targets(cells: int) -> NDArray[np.float32]:
        unknown = np.full((len(THREATS), cells, cells), IGNORED, np.float32)
        return np.stack(
            [unknown if of is None else cell_targets(of[0], of[1], images.size, cells) for of in placed]
        )

    return targets


def _optimizer(modules: Sequence[nn.Module], settings: Phase1Settings) -> torch.optim.Optimizer:
    """Decay weights of layers, not biases and norms."""
    parameters = [each for module in modules for each in module.parameters()]
    decayed = {
        "params": [each for each in parameters if each.ndim > 1],
        "weight_decay": settings.weight_decay,
    }
    others = {"params": [each for each in parameters if each.ndim <= 1], "weight_decay": 0.0}
    if settings.optimizer == "sgd":
        return torch.optim.SGD([decayed, others], lr=settings.learning_rate, momentum=0.9, nesterov=True)
    return torch.optim.AdamW([decayed, others], lr=settings.learning_rate)


def _copied(module: nn.Module) -> State:
    return {key: value.clone() for key, value in module.state_dict().items()}


def _rate(epoch: int, step: int, steps: int, settings: Phase1Settings) -> float:
    """Learning rate as a share of its peak at `step` of the `steps` of an epoch.

    Linear warm-up, then a cosine down to a hundredth over the pixels to be seen, not over steps: small images
    come first and are many, and the last size would else have nothing left to learn with.
    """
    pixels = [stage.size**2 for stage in settings.by_epoch]
    warm = max(1, round(settings.warm_up * len(pixels) * steps))
    if epoch * steps + step < warm:
        return (epoch * steps + step + 1) / warm
    seen = (sum(pixels[:epoch]) + pixels[epoch] * step / steps) / sum(pixels)
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * seen))
