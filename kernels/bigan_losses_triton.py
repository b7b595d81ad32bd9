"""Both losses of the BiGAN on an NVIDIA GPU, in Triton: one warp reads an image's four rows once."""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

# one warp an image: its sums need no shared memory; Triton 3.10 changes what fusion defaults to
OPTIONS: dict[str, Any] = {"num_warps": 1, "enable_fp_fusion": False}


def launch(
    s: Tensor,
    reconstruction: Tensor,
    f_s: Tensor,
    f_reconstruction: Tensor,
    reconstruction_loss: Tensor,
    matching_loss: Tensor,
) -> None:
    """Fill both losses, float32 [N], from two pairs of dense tensors, [N, features] and [N, f_d]."""
    if len(s):
        shape = shape_of(s.shape[1], f_s.shape[1])
        row_losses[(len(s),)](
            s, reconstruction, f_s, f_reconstruction, reconstruction_loss, matching_loss, **shape, **OPTIONS
        )


def shape_of(features: int, f_d: int) -> dict[str, Any]:
    """Return the kernel's constants: lengths of rows, and blocks that hold a whole row."""
    return {
        "FEATURES": features,
        "F_D": f_d,
        "BLOCK_S": triton.next_power_of_2(features),
        "BLOCK_F": triton.next_power_of_2(f_d),
    }


@triton.jit
def row_losses(
    s,  # [N, FEATURES]
    reconstruction,  # [N, FEATURES]
    f_s,  # [N, F_D]
    f_reconstruction,  # [N, F_D]
    reconstruction_loss,  # float32 [N]
    matching_loss,  # float32 [N]
    FEATURES: tl.constexpr,
    F_D: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_F: tl.constexpr,
):
    """Store one image's mean absolute difference of s, and the norm of its difference of f."""
    image = tl.program_id(0).to(tl.int64)
    difference = _row(s, image, FEATURES, BLOCK_S) - _row(reconstruction, image, FEATURES, BLOCK_S)
    f_difference = _row(f_s, image, F_D, BLOCK_F) - _row(f_reconstruction, image, F_D, BLOCK_F)
    tl.store(reconstruction_loss + image, tl.sum(tl.abs(difference), axis=0) / FEATURES)
    tl.store(matching_loss + image, tl.sqrt_rn(tl.sum(f_difference * f_difference, axis=0)))


@triton.jit
def _row(values, image, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """Read one row of [N, SIZE] as float32 [BLOCK], zeros after its end."""
    k = tl.arange(0, BLOCK)
    return tl.load(values + image * SIZE + k, mask=k < SIZE, other=0).to(tl.float32)
