"""Both losses of the BiGAN on an NVIDIA GPU, in Triton: one warp reads an image's four rows once."""

from typing import Any

import triton
import triton.language as tl
from torch import Tensor

# one warp an image: its sums need no shared memory; Triton 3.10 changes what fusion defaults to
OPTIONS: dict[str, Any] = {"num_warps": 1, "enable_fp_fusion": False}


def launch(
    s: Tensor, again: Tensor, f_s: Tensor, f_again: Tensor, reconstruction: Tensor, matching: Tensor
) -> None:
    """Fill both losses, float32 [N], from s and again [N, features], f_s and f_again [N, f_d], all dense."""
    if len(s):
        shape = shape_of(s.shape[1], f_s.shape[1])
        row_losses[(len(s),)](s, again, f_s, f_again, reconstruction, matching, **shape, **OPTIONS)


def shape_of(features: int, f_d: int) -> dict[str, Any]:
    """Give the blocks that hold a whole row."""
    return {
        "FEATURES": features,
        "F_D": f_d,
        "BLOCK_S": triton.next_power_of_2(features),
        "BLOCK_F": triton.next_power_of_2(f_d),
    }


@triton.jit
def row_losses(
    s,  # [N, FEATURES]
    again,  # [N, FEATURES]
    f_s,  # [N, F_D]
    f_again,  # [N, F_D]
    reconstruction,  # float32 [N]
    matching,  # float32 [N]
    FEATURES: tl.constexpr,
    F_D: tl.constexpr,
    BLOCK_S: tl.constexpr,
    BLOCK_F: tl.constexpr,
):
    """Give one image's mean absolute difference of s, and the length of its difference of f."""
    image = tl.program_id(0).to(tl.int64)
    difference = _row(s, image, FEATURES, BLOCK_S) - _row(again, image, FEATURES, BLOCK_S)
    f_difference = _row(f_s, image, F_D, BLOCK_F) - _row(f_again, image, F_D, BLOCK_F)
    tl.store(reconstruction + image, tl.sum(tl.abs(difference), axis=0) / FEATURES)
    tl.store(matching + image, tl.sqrt_rn(tl.sum(f_difference * f_difference, axis=0)))


@triton.jit
def _row(values, image, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """Read one row of [N, SIZE] as float32 [BLOCK], zeros behind its end."""
    k = tl.arange(0, BLOCK)
    return tl.load(values + image * SIZE + k, mask=k < SIZE, other=0).to(tl.float32)
