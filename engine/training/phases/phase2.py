"""Phase II: the BiGAN on standardized features of benign images."""

import copy
import math
import time
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize

from ...errors import Stopped
from ...model.bigan import STD_FLOOR, BiGAN, Discriminator
from ...system.progress import ProgressCallback
from ..checkpoint import RunFolder, State
from ..settings import Phase2Settings
from .average import moving_average

NAME = "phase2"
CHECKPOINT_EVERY_S = 60.0
RECORDED_EVERY = 100  # steps a line of figures sums up


def train_bigan(
    bigan: BiGAN,
    x: NDArray[np.float32],
    settings: Phase2Settings,
    seed: int,
    progress: ProgressCallback,
    folder: RunFolder | None = None,
) -> dict[str, float]:
    """Train in place on features x [n, 1024] of benign images; returns figures of the last steps.

    With a run folder, training resumes from its checkpoint, with the same result as without an interruption.
    """
    set_standardization(bigan, x)
    s = bigan.standardize(torch.from_numpy(x))[:, :, None, None]
    adversaries = _Adversaries(bigan, settings, seed)
    if folder is not None and (state := folder.load(NAME)) is not None:
        adversaries.restore(state)
    saved = time.monotonic()
    while len(adversaries.figures) < settings.steps:
        adversaries.step(*adversaries.draw(s))
        progress("phase II", len(adversaries.figures), settings.steps, adversaries.figures[-1])
        if folder is not None and time.monotonic() - saved > CHECKPOINT_EVERY_S:
            folder.save(NAME, adversaries.state())
            saved = time.monotonic()
    if folder is not None:
        folder.save(NAME, adversaries.state())
        folder.record(NAME, _summed(adversaries.figures))
    adversaries.finish()
    return _mean(adversaries.figures[-settings.watched :])


def _mean(figures: list[dict[str, float]]) -> dict[str, float]:
    return {key: float(np.mean([each[key] for each in figures])) for key in figures[0]}


def _summed(figures: list[dict[str, float]]) -> list[dict[str, Any]]:
    """Return a line of means for every RECORDED_EVERY steps."""
    starts = range(0, len(figures), RECORDED_EVERY)
    parts = [figures[start : start + RECORDED_EVERY] for start in starts]
    return [{"step": start + len(part), **_mean(part)} for start, part in zip(starts, parts, strict=True)]


def set_standardization(bigan: BiGAN, x: NDArray[np.float32]) -> None:
    """Take mean and std of benign features x [n, 1024]; stds are floored, since dead features have none."""
    std = x.std(axis=0, dtype=np.float64)
    # where most features are dead the median is zero: the largest value then gives the scale
    scale = np.median(std) or std.max() or 1.0
    bigan.mean.copy_(torch.from_numpy(x.mean(axis=0, dtype=np.float64)))
    bigan.std.copy_(torch.from_numpy(np.maximum(std, STD_FLOOR * scale)))


class _Adversaries:
    """E, G and D in training, with their optimizers."""

    def __init__(self, bigan: BiGAN, settings: Phase2Settings, seed: int):
        self.bigan, self.settings = bigan, settings
        self.generator = torch.Generator().manual_seed(seed + 1)
        self.figures: list[dict[str, float]] = []  # of each step
        self.discriminator = copy.deepcopy(bigan.discriminator)
        for layer in self.discriminator.children():
            parametrizations.spectral_norm(layer)
        self.mappings = nn.ModuleDict({"encoder": bigan.encoder, "generator": bigan.generator}).train()
        self.average = moving_average(self.mappings, settings.average_decay)
        betas = (0.5, 0.9)
        self.adam_d = torch.optim.Adam(self.discriminator.parameters(), settings.rate_discriminator, betas)
        self.adam_eg = torch.optim.Adam(self.mappings.parameters(), settings.rate_generator, betas)

    def draw(self, s: Tensor) -> tuple[Tensor, Tensor]:
        """Draw a batch of features from s [n, 1024, 1, 1], and as many z from N(0, I)."""
        size = self.settings.batch_size
        index = torch.randint(len(s), (size,), generator=self.generator)
        latent = self.bigan.encoder[-1].out_channels
        return s[index], torch.randn((size, latent, 1, 1), generator=self.generator)  # type: ignore[arg-type]

    def step(self, s: Tensor, z: Tensor) -> None:
        """Train D once, then E and G once; notes figures of this batch."""
        self._anneal(len(self.figures))
        encoded, generated = self.bigan.encoder(s), self.bigan.generator(z)
        real = self.discriminator(s, encoded.detach())
        fake = self.discriminator(generated.detach(), z)
        _descend(self.adam_d, discriminator_loss(real, fake, self.settings.real_label))
        self.discriminator.requires_grad_(False)
        loss = adversarial_loss(self.discriminator(s, encoded), self.discriminator(generated, z))
        reconstruction = (s - self.bigan.generator(encoded)).abs().mean()
        weighted = self.settings.adversarial * loss + self.settings.reconstruction * reconstruction
        _descend(self.adam_eg, weighted)
        self.discriminator.requires_grad_(True)
        self.average.update(self.mappings, len(self.figures) + 1)
        self.figures.append(
            {
                "reconstruction": reconstruction.item(),
                "d_real": (real > 0).float().mean().item(),
                "d_fake": (fake < 0).float().mean().item(),
                "std_g": (_spread(generated) / _spread(s)).item(),
                "std_e": _spread(encoded).item(),
            }
        )

    def _anneal(self, step: int) -> None:
        """Lower the learning rates: at constant ones E(x) drifts to many times the spread of z."""
        share = 0.5 * (1 + math.cos(math.pi * step / self.settings.steps))
        rates = self.settings.rate_discriminator, self.settings.rate_generator
        for optimizer, rate in zip((self.adam_d, self.adam_eg), rates, strict=True):
            optimizer.param_groups[0]["lr"] = rate * share

    def state(self) -> State:
        """Return the state from which a later process can resume exactly."""
        modules = {name: module.state_dict() for name, module in self._stateful().items()}
        return {**modules, "generator_state": self.generator.get_state(), "figures": self.figures}

    def restore(self, state: State) -> None:
        """Resume from a state."""
        for name, module in self._stateful().items():
            module.load_state_dict(state[name])
        self.generator.set_state(state["generator_state"])
        self.figures = state["figures"]

    def _stateful(self) -> dict[str, Any]:
        return {
            "mappings": self.mappings,
            "discriminator": self.discriminator,
            "average": self.average.module,
            "adam_d": self.adam_d,
            "adam_eg": self.adam_eg,
        }

    def finish(self) -> None:
        """Copy the averaged E and G and the plain weights of D to the BiGAN."""
        self.mappings.load_state_dict(self.average.module.state_dict())
        self.discriminator.eval()
        for layer in self.discriminator.children():
            parametrize.remove_parametrizations(layer, "weight")
        assert isinstance(self.discriminator, Discriminator)
        self.bigan.discriminator.load_state_dict(self.discriminator.state_dict())
        self.bigan.eval()


def discriminator_loss(real: Tensor, fake: Tensor, real_label: float) -> Tensor:
    """Return the binary cross-entropy of D's logits on (s, E(s)), labelled real, and on (G(z), z)."""
    return F.binary_cross_entropy_with_logits(
        real, torch.full_like(real, real_label)
    ) + F.binary_cross_entropy_with_logits(fake, torch.zeros_like(fake))


def adversarial_loss(real: Tensor, fake: Tensor) -> Tensor:
    """Return the non-saturating loss of E and G, whose pairs should be taken for the other kind."""
    return F.softplus(real).mean() + F.softplus(-fake).mean()


def check_collapse(
    figures: dict[str, float], auroc: float | None, benign: int, settings: Phase2Settings
) -> str | None:
    """Return a warning if the BiGAN looks collapsed on a small set; raises Stopped on a large one.

    The spread of G(z) is compared with that of the features, which is below 1 if most of them are dead, and
    that of E(x) with that of z, which is 1. `figures` are those of `train_bigan`, `auroc` that of the
    reconstruction loss on validation images, None without labels.
    """
    signs = {
        f"D tells every pair apart ({figures['d_real']:.2f} / {figures['d_fake']:.2f})": min(
            figures["d_real"], figures["d_fake"]
        )
        > 0.98,
        f"the std of G(z) is {figures['std_g']:.2f} of the features'": not 0.3 <= figures["std_g"] <= 3,
        f"the std of E(x) is {figures['std_e']:.2f}": not 0.3 <= figures["std_e"] <= 3,
    }
    if auroc is not None:
        signs[f"the reconstruction loss has an AUROC of {auroc:.2f} on validation"] = not auroc >= 0.5
    shown = "; ".join(sign for sign, present in signs.items() if present)
    if not shown:
        return None
    if benign >= settings.enough:
        raise Stopped(f"the BiGAN collapsed in phase II: {shown}")
    return f"The BiGAN looks collapsed ({shown}), with {benign} benign images of {settings.enough} advised."


def _descend(optimizer: torch.optim.Optimizer, loss: Tensor) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()


def _spread(values: Tensor) -> Tensor:
    """Return the root mean square over dimensions of the standard deviation over the batch; 0: one point."""
    return values.detach().flatten(1).var(dim=0).mean().sqrt()
