"""Phase II: the BiGAN on standardized features of benign images."""

import copy
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from ..errors import Stopped
from ..model.bigan import STD_FLOOR, BiGAN, Discriminator
from .average import Average
from .progress import Progress


@dataclass(frozen=True)
class Phase2Settings:
    """How the BiGAN is trained; METHOD says what was tried."""

    steps: int = 4000
    batch_size: int = 64  # features
    rate_discriminator: float = 1e-4  # Adam's learning rate
    rate_generator: float = 1e-3  # of E and G
    reconstruction: float = 10.0  # weight of mean |s - G(E(s))| in the loss of E and G
    real_label: float = 0.9  # smoothed
    average_decay: float = 0.995  # of E and G
    watched: int = 500  # last steps that the collapse check looks at
    enough: int = 5000  # benign images below which a collapse is a warning only


def train_bigan(
    bigan: BiGAN, x: NDArray[np.float32], settings: Phase2Settings, seed: int, progress: Progress
) -> dict[str, float]:
    """Train in place on features x [n, 1024] of benign images; returns figures of the last steps."""
    set_standardization(bigan, x)
    generator = torch.Generator().manual_seed(seed + 1)
    s = bigan.standardize(torch.from_numpy(x))[:, :, None, None]
    players = _Players(bigan, settings)
    figures: list[dict[str, float]] = []
    for step in range(1, settings.steps + 1):
        batch = s[torch.randint(len(s), (settings.batch_size,), generator=generator)]
        z = torch.randn((settings.batch_size, bigan.encoder[-1].out_channels, 1, 1), generator=generator)  # type: ignore[arg-type]
        figures.append(players.step(batch, z))
        progress("phase II", step, settings.steps, figures[-1])
    players.finish()
    last = figures[-settings.watched :]
    return {key: float(np.mean([each[key] for each in last])) for key in last[0]}


def set_standardization(bigan: BiGAN, x: NDArray[np.float32]) -> None:
    """Take mean and std of benign features x [n, 1024]; stds are floored, since dead features have none."""
    std = x.std(axis=0, dtype=np.float64)
    # where most features are dead the median is zero: the largest value then gives the scale
    scale = np.median(std) or std.max() or 1.0
    bigan.mean.copy_(torch.from_numpy(x.mean(axis=0, dtype=np.float64)))
    bigan.std.copy_(torch.from_numpy(np.maximum(std, STD_FLOOR * scale)))


class _Players:
    """E, G and D with their optimizers."""

    def __init__(self, bigan: BiGAN, settings: Phase2Settings):
        self.bigan, self.settings = bigan, settings
        self.discriminator = copy.deepcopy(bigan.discriminator)
        for layer in self.discriminator.children():
            parametrizations.spectral_norm(layer)
        self.makers = nn.ModuleDict({"encoder": bigan.encoder, "generator": bigan.generator}).train()
        self.average = Average(self.makers, settings.average_decay)
        betas = (0.5, 0.9)
        self.adam_d = torch.optim.Adam(self.discriminator.parameters(), settings.rate_discriminator, betas)
        self.adam_eg = torch.optim.Adam(self.makers.parameters(), settings.rate_generator, betas)

    def step(self, s: Tensor, z: Tensor) -> dict[str, float]:
        """Train D once, then E and G once; returns figures of this batch."""
        encoded, generated = self.bigan.encoder(s), self.bigan.generator(z)
        real = self.discriminator(s, encoded.detach())
        fake = self.discriminator(generated.detach(), z)
        _descend(self.adam_d, discriminator_loss(real, fake, self.settings.real_label))
        self.discriminator.requires_grad_(False)
        loss = adversarial_loss(self.discriminator(s, encoded), self.discriminator(generated, z))
        reconstruction = (s - self.bigan.generator(encoded)).abs().mean()
        _descend(self.adam_eg, loss + self.settings.reconstruction * reconstruction)
        self.discriminator.requires_grad_(True)
        self.average.update(self.makers)
        return {
            "reconstruction": reconstruction.item(),
            "d_real": (real > 0).float().mean().item(),
            "d_fake": (fake < 0).float().mean().item(),
            "std_g": _spread(generated),
            "std_e": _spread(encoded),
        }

    def finish(self) -> None:
        """Leave the averaged E and G and the plain weights of D in the BiGAN."""
        self.makers.load_state_dict(self.average.module.state_dict())
        self.discriminator.eval()
        for layer in self.discriminator.children():
            parametrize.remove_parametrizations(layer, "weight")
        assert isinstance(self.discriminator, Discriminator)
        self.bigan.discriminator.load_state_dict(self.discriminator.state_dict())
        self.bigan.eval()


def discriminator_loss(real: Tensor, fake: Tensor, real_label: float) -> Tensor:
    """Binary cross-entropy of D's logits on (s, E(s)), labelled real, and on (G(z), z)."""
    return F.binary_cross_entropy_with_logits(
        real, torch.full_like(real, real_label)
    ) + F.binary_cross_entropy_with_logits(fake, torch.zeros_like(fake))


def adversarial_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Non-saturating loss of E and G: each wants its pair taken for the other kind."""
    return F.softplus(real).mean() + F.softplus(-fake).mean()


def check_collapse(
    figures: dict[str, float], auroc: float, benign: int, settings: Phase2Settings
) -> str | None:
    """Return a warning where the BiGAN looks collapsed and the set is small; raises Stopped on a large one.

    `figures` are those of `train_bigan`, `auroc` that of the reconstruction loss on validation images.
    """
    signs = {
        f"D tells every pair apart ({figures['d_real']:.2f} / {figures['d_fake']:.2f})": min(
            figures["d_real"], figures["d_fake"]
        )
        > 0.98,
        f"the std of G(z) is {figures['std_g']:.2f}": not 0.3 <= figures["std_g"] <= 3,
        f"the std of E(x) is {figures['std_e']:.2f}": not 0.3 <= figures["std_e"] <= 3,
        f"the reconstruction loss has an AUROC of {auroc:.2f} on validation": not auroc >= 0.5,
    }
    found = "; ".join(sign for sign, shown in signs.items() if shown)
    if not found:
        return None
    if benign >= settings.enough:
        raise Stopped(f"The BiGAN collapsed in phase II: {found}.")
    return f"The BiGAN looks collapsed ({found}), with {benign} benign images of {settings.enough} advised."


def _descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


def _spread(values: Tensor) -> float:
    """Root mean square over dimensions of the standard deviation over the batch; 0 is one point for all."""
    return values.detach().flatten(1).var(dim=0).mean().sqrt().item()
