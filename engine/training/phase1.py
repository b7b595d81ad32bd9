"""Phase I: backbone, FPN and FC1..FC5 by binary cross-entropy on as many benign images as positives."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ..model.gbad import GBAD
from ..model.network import Network, normalize
from .average import Average
from .data import batches
from .progress import Progress


@dataclass(frozen=True)
class Phase1Settings:
    """How the network is trained."""

    stages: tuple[tuple[int, int], ...] = ((128, 10), (256, 5))  # pixels a side, epochs
    batch_size: int = 32  # images
    learning_rate: float = 2e-3  # at its peak
    weight_decay: float = 0.05
    warm_up: float = 0.05  # share of all steps
    clip_norm: float = 5.0  # of the gradient
    average_decay: float = 0.998
    flip: float = 0.5  # probability
    rotation: float = 10.0  # degrees, either way
    shift: float = 0.05  # of the side, either way
    scale: float = 0.10  # of the size, either way
    shear: float = 5.0  # degrees, either way


def train_network(
    model: GBAD,
    pixels: NDArray[np.uint8],
    labels: NDArray[np.bool_],
    train: NDArray[np.intp],
    settings: Phase1Settings,
    seed: int,
    progress: Progress,
) -> None:
    """Train `model.network` in place on the images at positions `train` of pixels [n, S, S, 3]."""
    random = np.random.default_rng((seed, 2))
    generator = torch.Generator().manual_seed(seed)
    network = model.network.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    plan = list(_plan(labels, train, settings, random))
    optimizer = torch.optim.AdamW(_groups(network, settings.weight_decay), lr=settings.learning_rate)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step, len(plan), settings))
    average = Average(network, settings.average_decay)
    smooth = math.log(2)
    for step, (size, index) in enumerate(plan, start=1):
        images = normalize(torch.from_numpy(pixels[np.sort(index)]), model.pixel_mean, model.pixel_std)
        images = augmented(images, size, settings, generator)
        loss = classification_loss(network(images)[1], torch.from_numpy(labels[np.sort(index)]))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), settings.clip_norm)
        optimizer.step()
        schedule.step()
        average.update(network)
        smooth += (loss.item() - smooth) * 0.02
        progress("phase I", step, len(plan), {"loss": smooth, "pixels": size})
    network.load_state_dict(average.module.state_dict())
    network.eval()


def classification_loss(logits: Tensor, labels: Tensor) -> Tensor:
    """L(p, y) = -(y log p + (1 - y) log(1 - p)), averaged over classes and images; p are sigmoids."""
    return F.binary_cross_entropy_with_logits(logits, labels.to(logits.dtype))


def augmented(images: Tensor, size: int, settings: Phase1Settings, generator: torch.Generator) -> Tensor:
    """Shrink images [N, 3, S, S] to `size`, then flip and move each by a random affine map."""
    if images.shape[-1] != size:
        images = F.interpolate(images, (size, size), mode="bilinear", antialias=True)
    maps = _random_maps(len(images), settings, generator)  # [N, 2, 3]
    grid = F.affine_grid(maps, list(images.shape), align_corners=False)
    # the border, not black, surrounds a bag: scanners leave air around it
    moved = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    return moved.contiguous(memory_format=torch.channels_last)


def _random_maps(n: int, settings: Phase1Settings, generator: torch.Generator) -> Tensor:
    """Affine maps [n, 2, 3] of output to input coordinates, each in [-1, 1]."""
    uniform = torch.rand((6, n), generator=generator) * 2 - 1
    angle = torch.deg2rad(uniform[0] * settings.rotation)
    shear = torch.tan(torch.deg2rad(uniform[1] * settings.shear))
    scale = 1 + uniform[2] * settings.scale
    mirror = torch.where((uniform[3] + 1) / 2 < settings.flip, -1.0, 1.0)
    cos, sin = torch.cos(angle) / scale, torch.sin(angle) / scale
    shift = uniform[4:6] * settings.shift * 2
    rows = [mirror * cos, mirror * (shear * cos - sin), shift[0], sin, shear * sin + cos, shift[1]]
    return torch.stack(rows, dim=1).reshape(n, 2, 3)


def _plan(
    labels: NDArray[np.bool_], train: NDArray[np.intp], settings: Phase1Settings, random: np.random.Generator
) -> Iterator[tuple[int, NDArray[np.intp]]]:
    """Yield image size and positions of each batch; every epoch draws its benign images anew."""
    positive = np.any(labels, axis=1)
    threats, benign = train[positive[train]], train[~positive[train]]
    for size, epochs in settings.stages:
        for _ in range(epochs):
            drawn = random.permutation(benign)[: len(threats)]
            order = random.permutation(np.concatenate([threats, drawn]))
            for index in batches(order, min(settings.batch_size, len(order))):
                yield size, index


def _groups(network: Network, weight_decay: float) -> Sequence[dict[str, object]]:
    """Decay weights of layers, not biases and norms."""
    decayed = [parameter for parameter in network.parameters() if parameter.ndim > 1]
    others = [parameter for parameter in network.parameters() if parameter.ndim <= 1]
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]


def _rate(step: int, steps: int, settings: Phase1Settings) -> float:
    """Learning rate as a share of its peak: linear warm-up, then a cosine down to a hundredth."""
    warm = max(1, round(settings.warm_up * steps))
    if step < warm:
        return (step + 1) / warm
    return 0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))
