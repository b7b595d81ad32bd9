"""The BiGAN of phase II on standardized features s, and its two losses for each image.

Donahue et al., Adversarial Feature Learning, ICLR 2017, with the sizes of METHOD's recipe.
"""

from itertools import pairwise

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .architecture import Architecture
from .dense import Dense

WIDTHS = (256, 128)  # hidden layers of E; G mirrors them
CLIP = 10.0  # standardized features stay within +- CLIP
STD_FLOOR = 0.1  # of the median standard deviation: dead features would divide by zero
SLOPE = 0.2  # of LeakyReLU


class BiGAN(nn.Module):
    """Encoder E: s -> z, generator G: z -> s, discriminator D(s, z), and the standardization of x."""

    mean: Tensor
    std: Tensor

    def __init__(self, architecture: Architecture):
        super().__init__()
        features, latent = architecture.features, architecture.latent
        self.encoder = multilayer(features, *WIDTHS, latent)
        self.generator = multilayer(latent, *reversed(WIDTHS), features)
        self.discriminator = Discriminator(features, latent, architecture.f_d)
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("std", torch.ones(features))

    def standardize(self, x: Tensor) -> Tensor:
        """Standardize x [N, 1024] by mean and std of benign training features, clipped to +-10."""
        return ((x - self.mean) / self.std).clamp(-CLIP, CLIP)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return reconstruction_loss [N] and feature_matching_loss [N] of features x [N, 1024]."""
        return losses(*self.pairs(x))

    def pairs(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Return the inputs of `losses`: s and G(E(s)) [N, 1024, 1, 1], and f_D of both [N, 128, 1, 1]."""
        s = self.standardize(x)[:, :, None, None]
        return s, *self.reconstruct(s)

    def reconstruct(self, s: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return G(E(s)), f_D of s and f_D of G(E(s)), for standardized features s [N, 1024, 1, 1]."""
        z = self.encoder(s)  # [N, 64, 1, 1]
        reconstruction = self.generator(z)  # [N, 1024, 1, 1]
        f_d = self.discriminator.f_d
        return reconstruction, f_d(s, z), f_d(reconstruction, z)


class Discriminator(nn.Module):
    """D(s, z) -> logit of 'real'; `f_d` is its penultimate layer."""

    def __init__(self, features: int, latent: int, f_d: int):
        super().__init__()
        self.from_s = Dense(features, WIDTHS[0])
        self.from_z = Dense(latent, 64)
        self.joined = Dense(WIDTHS[0] + 64, f_d)
        self.last = Dense(f_d, 1)

    def f_d(self, s: Tensor, z: Tensor) -> Tensor:
        """Return features [N, 128, 1, 1] of pairs s [N, 1024, 1, 1] and z [N, 64, 1, 1]."""
        both = torch.cat([F.leaky_relu(self.from_s(s), SLOPE), F.leaky_relu(self.from_z(z), SLOPE)], dim=1)
        return F.leaky_relu(self.joined(both), SLOPE)

    def forward(self, s: Tensor, z: Tensor) -> Tensor:
        """Return logits [N] of each pair being (s, E(s)) rather than (G(z), z)."""
        return self.last(self.f_d(s, z)).flatten()


def losses(
    s: Tensor, reconstruction: Tensor, f_d: Tensor, f_d_reconstruction: Tensor
) -> tuple[Tensor, Tensor]:
    """Return reconstruction_loss [N] and feature_matching_loss [N] from the result of `BiGAN.pairs`.

    R = ||s - G(E(s))||_1 as the mean over dimensions; FM = ||f_D(s, E(s)) - f_D(G(E(s)), E(s))||_2.
    """
    difference = f_d - f_d_reconstruction
    return (s - reconstruction).abs().mean((1, 2, 3)), difference.square().sum((1, 2, 3)).sqrt()


def multilayer(*widths: int) -> nn.Sequential:
    """Build fully connected layers with LeakyReLU between them."""
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise(widths):
        layers += [Dense(inputs, outputs), nn.LeakyReLU(SLOPE)]
    return nn.Sequential(*layers[:-1])
