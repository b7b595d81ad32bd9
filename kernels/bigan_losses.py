"""The two losses of the BiGAN for each image, from its outputs, in one pass.

R = ||s - G(E(s))||_1 as the mean over dimensions; FM = ||f_D(s, E(s)) - f_D(G(E(s)), E(s))||_2. Source:
Zenati et al., Efficient GAN-Based Anomaly Detection, 2018, which scores by both.
"""

import torch
from torch import Tensor

from .compiler import triton_compiles


@torch.library.custom_op("gbad_batch::two_losses", mutates_args=(), device_types="cpu")
def two_losses(
    s: Tensor, reconstruction: Tensor, f_s: Tensor, f_reconstruction: Tensor
) -> tuple[Tensor, Tensor]:
    """Return the reconstruction and feature matching loss of each image, both float32 [N].

    `s` and `reconstruction` = G(E(s)) are [N, features]; `f_s` = f_D(s, E(s)) and `f_reconstruction` =
    f_D(G(E(s)), E(s)) are [N, f_d]; all in half, bfloat16 or float32 on one CPU or NVIDIA GPU, subtracted and
    summed in float32. Raises ValueError for shapes that do not match. For inference: no gradient is defined.
    """
    empty_losses(s, reconstruction, f_s, f_reconstruction)
    return plain_two_losses(s, reconstruction, f_s, f_reconstruction)


def plain_two_losses(
    s: Tensor, reconstruction: Tensor, f_s: Tensor, f_reconstruction: Tensor
) -> tuple[Tensor, Tensor]:
    """Compute the same with plain torch, as the reference."""
    absolute = (s.float() - reconstruction.float()).abs()
    return absolute.mean(1), (f_s.float() - f_reconstruction.float()).square().sum(1).sqrt()


@two_losses.register_kernel("cuda")
def _on_gpu(
    s: Tensor, reconstruction: Tensor, f_s: Tensor, f_reconstruction: Tensor
) -> tuple[Tensor, Tensor]:
    losses = empty_losses(s, reconstruction, f_s, f_reconstruction)
    if not triton_compiles():
        return plain_two_losses(s, reconstruction, f_s, f_reconstruction)
    from .bigan_losses_triton import launch  # a torch that can use a GPU brings Triton

    with torch.cuda.device(s.device):  # Triton launches on the current device
        pairs = (row.contiguous() for row in (s, reconstruction, f_s, f_reconstruction))
        launch(*pairs, *losses)
    return losses


@two_losses.register_fake
def empty_losses(
    s: Tensor, reconstruction: Tensor, f_s: Tensor, f_reconstruction: Tensor
) -> tuple[Tensor, Tensor]:
    """Allocate both losses [N]; raises ValueError for shapes that do not match."""
    shapes = [list(tensor.shape) for tensor in (s, reconstruction, f_s, f_reconstruction)]
    alike = shapes[0] == shapes[1] and shapes[2] == shapes[3]
    if not alike or s.ndim != 2 or f_s.ndim != 2 or s.shape[0] != f_s.shape[0]:
        raise ValueError(f"two_losses takes two pairs [N, features] and [N, f_d], not {shapes}")
    count = s.shape[0]  # not len(s), which would fix a compiled graph's batch
    return s.new_empty(count, dtype=torch.float32), s.new_empty(count, dtype=torch.float32)
