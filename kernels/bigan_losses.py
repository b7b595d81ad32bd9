"""The two losses that the BiGAN gives an image, from its outputs, in one pass.

R = ||s - G(E(s))||_1 as the mean over dimensions; FM = ||f_D(s, E(s)) - f_D(G(E(s)), E(s))||_2. Source:
Zenati et al., Efficient GAN-Based Anomaly Detection, 2018, which scores by both.
"""

import torch
from torch import Tensor


@torch.library.custom_op("gbad_batch::two_losses", mutates_args=(), device_types="cpu")
def two_losses(s: Tensor, again: Tensor, f_s: Tensor, f_again: Tensor) -> tuple[Tensor, Tensor]:
    """Reconstruction and feature matching loss of each image, both float32 [N].

    `s` and `again` = G(E(s)): [N, features]; `f_s` = f_D(s, E(s)) and `f_again` = f_D(G(E(s)), E(s)):
    [N, f_d]; half, bfloat16 or float32 on one CPU or NVIDIA GPU, subtracted and summed in float32. Raises
    ValueError for shapes that do not belong together. For inference: no gradient is defined.
    """
    empty_losses(s, again, f_s, f_again)
    return plain_two_losses(s, again, f_s, f_again)


def plain_two_losses(s: Tensor, again: Tensor, f_s: Tensor, f_again: Tensor) -> tuple[Tensor, Tensor]:
    """Give the same by torch alone."""
    reconstruction = (s.float() - again.float()).abs().mean(1)
    return reconstruction, (f_s.float() - f_again.float()).square().sum(1).sqrt()


@two_losses.register_kernel("cuda")
def _on_gpu(s: Tensor, again: Tensor, f_s: Tensor, f_again: Tensor) -> tuple[Tensor, Tensor]:
    from .bigan_losses_triton import launch  # Triton is there where torch can use a GPU

    losses = empty_losses(s, again, f_s, f_again)
    with torch.cuda.device(s.device):  # Triton launches on the current one
        launch(s.contiguous(), again.contiguous(), f_s.contiguous(), f_again.contiguous(), *losses)
    return losses


@two_losses.register_fake
def empty_losses(s: Tensor, again: Tensor, f_s: Tensor, f_again: Tensor) -> tuple[Tensor, Tensor]:
    """Allocate both losses [N]; raises ValueError for shapes that do not belong together."""
    shapes = [list(each.shape) for each in (s, again, f_s, f_again)]
    pairs = shapes[0] == shapes[1] and shapes[2] == shapes[3]
    if not pairs or s.ndim != 2 or f_s.ndim != 2 or s.shape[0] != f_s.shape[0]:
        raise ValueError(f"two_losses takes two pairs [N, features] and [N, f_d], not {shapes}")
    count = s.shape[0]  # not len(s), which would fix a compiled graph's batch
    return s.new_empty(count, dtype=torch.float32), s.new_empty(count, dtype=torch.float32)
