"""Skip-GANomaly: an image and its copy by an encoder-decoder with skip connections, compared.

Akcay, Atapour-Abarghouei and Breckon, Skip-GANomaly, IJCNN 2019: sizes, weights and rates are the paper's. No
library has it, so it is written out here.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from gbad_batch.engine.training.pixels import decoded

from .contest import stored
from .ganomaly import PIXELS, Work

Pixels = NDArray[np.uint8]  # [n, PIXELS, PIXELS, 3]
Scores = NDArray[np.float64]  # [n], higher is more anomalous

CHANNELS = (64, 128, 256, 512, 512)  # of the generator's maps, each half as large as the one before
CONTEXT = 40.0  # weight of |x - G(x)| beside the adversarial and the latent loss
RATE, BETAS = 2e-4, (0.5, 0.999)  # of Adam
BATCH_SIZE = 64
RECONSTRUCTION = 0.9  # weight of |x - G(x)|^2 in a score; the rest is of the features
DEVIATION = 0.02  # of the weights at the start
SLOPE = 0.2  # of LeakyReLU
SEED = 0


class Generator(nn.Module):
    """Copies images [N, 3, S, S] in [-1, 1]; each map of the encoder goes to the decoder as well."""

    def __init__(self) -> None:
        super().__init__()
        sides = list(zip((3, *CHANNELS), CHANNELS, strict=False))
        self.down = nn.ModuleList(_down(*pair, norm=0 < k < len(sides) - 1) for k, pair in enumerate(sides))
        # the smallest map has nothing beside it; the others meet the encoder's of their size
        self.up = nn.ModuleList(
            _up(outer if k == len(sides) - 1 else 2 * outer, inner)
            for k, (inner, outer) in reversed(list(enumerate(sides)))
        )

    def forward(self, images: Tensor) -> Tensor:
        """Return the copies."""
        maps = [images]
        for block in self.down:
            maps.append(block(maps[-1]))
        copy = maps.pop()
        for block in self.up[:-1]:
            copy = torch.cat([block(copy), maps.pop()], dim=1)
        return self.up[-1](copy).tanh()


class Discriminator(nn.Module):
    """Tells images from copies by features [N, 512, 4, 4]."""

    def __init__(self) -> None:
        super().__init__()
        sides = zip((3, *CHANNELS[:3]), CHANNELS[:4], strict=True)
        self.features = nn.Sequential(*(_down(*pair, norm=k > 0) for k, pair in enumerate(sides)))
        self.head = nn.Conv2d(CHANNELS[3], 1, 4)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits [N] and features."""
        features = self.features(images)
        return self.head(features).flatten(), features


def scores(work: Work, epochs: int) -> Scores:
    """Return a score for each image of `judged`, computed once."""
    source = hashlib.sha256(Path(__file__).read_bytes()).hexdigest()
    own = work.place("skip_ganomaly", source, epochs)
    own.mkdir(parents=True, exist_ok=True)

    def compute() -> dict[str, Scores]:
        score = fit(_pixels(work.benign), epochs, SEED)
        return {"scores": score(_pixels(work.judged))}

    return stored(own / "scores.npz", compute)["scores"]


def fit(benign: Pixels, epochs: int, seed: int) -> Callable[[Pixels], Scores]:
    """Train on harmless images [n, S, S, 3]; returns what scores others."""
    torch.manual_seed(seed)
    order = np.random.default_rng(seed)
    generator, discriminator = Generator(), Discriminator()
    for network in (generator, discriminator):
        network.apply(_initialize).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    of_generator, of_discriminator = (
        torch.optim.Adam(network.parameters(), RATE, BETAS) for network in (generator, discriminator)
    )
    for _ in range(epochs):
        for images in _batches(benign[order.permutation(len(benign))]):
            copies = generator(images)
            _step(of_discriminator, _discrimination(discriminator, images, copies.detach()))
            _step(of_generator, _generation(discriminator, images, copies))
    generator.eval()
    discriminator.eval()
    return lambda pixels: _scores(generator, discriminator, pixels)


def _discrimination(discriminator: Discriminator, images: Tensor, copies: Tensor) -> Tensor:
    """Return the loss of D: images are 1, copies 0."""
    real, copied = discriminator(images)[0], discriminator(copies)[0]
    return _cross_entropy(real, 1.0) + _cross_entropy(copied, 0.0)


def _generation(discriminator: Discriminator, images: Tensor, copies: Tensor) -> Tensor:
    """Return the loss of G: adversarial, context and latent."""
    logits, features = discriminator(copies)
    with torch.no_grad():
        wanted = discriminator(images)[1]
    return _cross_entropy(logits, 1.0) + CONTEXT * F.l1_loss(copies, images) + F.mse_loss(features, wanted)


def _pixels(paths: Sequence[Path]) -> Pixels:
    """Read images as a scan would see them, small."""
    images = [image for image in decoded(paths, PIXELS) if image is not None]
    assert len(images) == len(paths)  # training has left out what cannot be decoded
    return np.stack(images)


@torch.no_grad()
def _scores(generator: Generator, discriminator: Discriminator, pixels: Pixels) -> Scores:
    found: list[Tensor] = []
    for images in _batches(pixels):
        copies = generator(images)
        pairs = (images, copies), (discriminator(images)[1], discriminator(copies)[1])
        of_pixels, of_features = ((one - other).square().flatten(1).mean(dim=1) for one, other in pairs)
        found.append(RECONSTRUCTION * of_pixels + (1 - RECONSTRUCTION) * of_features)
    return torch.cat(found).double().numpy()


def _batches(pixels: Pixels) -> Iterator[Tensor]:
    """Yield images [N, 3, S, S] in [-1, 1], channels last."""
    for part in torch.from_numpy(pixels).split(BATCH_SIZE):
        yield part.permute(0, 3, 1, 2).float() / 127.5 - 1


def _cross_entropy(logits: Tensor, wanted: float) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits, torch.full_like(logits, wanted))


def _step(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


def _down(inner: int, outer: int, norm: bool) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Conv2d(inner, outer, 4, 2, 1, bias=not norm)]
    layers += [nn.BatchNorm2d(outer)] if norm else []
    return nn.Sequential(*layers, nn.LeakyReLU(SLOPE))


def _up(inner: int, outer: int) -> nn.Sequential:
    """Double a map; the last one, of pixels, has no norm."""
    convolution = nn.ConvTranspose2d(inner, outer, 4, 2, 1, bias=outer == 3)
    return (
        nn.Sequential(convolution)
        if outer == 3
        else nn.Sequential(convolution, nn.BatchNorm2d(outer), nn.ReLU())
    )


def _initialize(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
        nn.init.normal_(module.weight, 0.0, DEVIATION)
    elif isinstance(module, nn.BatchNorm2d):
        nn.init.normal_(module.weight, 1.0, DEVIATION)
