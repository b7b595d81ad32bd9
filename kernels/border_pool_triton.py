"""The border pool on an NVIDIA GPU, in Triton: each element is read once, 16 bytes a load, summed in float32.

A program is one warp: it takes a tile of one image's positions and a block of channels. It sums rows per
column, one addition per element, keeping the map's first and last row separate; only the last step sums
columns, for each of the nine windows. Windows are summed directly, never computed by subtracting borders from
a total: nothing cancels, and an infinity affects only the windows that contain it.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

READ = 2048  # elements that a warp reads at a time: in half precision, eight loads of 16 bytes per thread
COLUMNS, ROWS = 32, 32  # the largest tile: small enough that a batch of 64 still fills most of a GPU
ADDED = 1024  # sums that a program of `add_tiles` computes
# Triton 3.10 changes what fusion defaults to
OPTIONS: dict[str, Any] = {"num_warps": 1, "enable_fp_fusion": False}


def launch(features: Tensor, means: Tensor) -> None:
    """Fill means, float32 [N, C, 3, 3], from features [N, C, H, W], both dense and channels_last."""
    images, channels, height, width = features.shape
    shape = shape_of(channels, height, width)
    tiles = images * shape["TILES"]
    # shares are [N, TILES, 3, 3, C]; with a single tile they are the means
    several = shape["TILES"] > 1
    shares = torch.empty(tiles * 9 * channels, device=means.device) if several else means
    if tiles:
        sum_tiles[(tiles * shape["BLOCKS"],)](features, shares, **shape, **OPTIONS)
    if tiles and several:
        grid = (images, triton.cdiv(9 * channels, ADDED))
        add_tiles[grid](shares, means, **sizes_of(shape), **OPTIONS)


def shape_of(channels: int, height: int, width: int) -> dict[str, Any]:
    """Return the constants of `sum_tiles`, which divide a map among programs.

    They depend only on the map's size, not on the batch's, so that an image's sums keep order and bits.
    """
    columns = min(triton.next_power_of_2(width), COLUMNS)
    rows = triton.cdiv(height, triton.cdiv(height, ROWS))
    block = min(READ // columns, triton.next_power_of_2(channels))
    across = triton.cdiv(width, columns)
    return {
        "HEIGHT": height,
        "WIDTH": width,
        "CHANNELS": channels,
        "ROWS": rows,
        "COLUMNS": columns,
        "BLOCK": block,
        "ACROSS": across,
        "TILES": across * triton.cdiv(height, rows),
        "BLOCKS": triton.cdiv(channels, block),
    }


def sizes_of(shape: dict[str, Any]) -> dict[str, Any]:
    """Return the constants of `add_tiles`, from those of `sum_tiles`."""
    return {"TILES": shape["TILES"], "SIZE": 9 * shape["CHANNELS"], "BLOCK": ADDED}


@triton.jit
def sum_tiles(
    features,  # [N, HEIGHT, WIDTH, CHANNELS]
    shares,  # float32 [N, TILES, 3, 3, CHANNELS]
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    CHANNELS: tl.constexpr,
    ROWS: tl.constexpr,  # of a tile
    COLUMNS: tl.constexpr,  # of a tile
    BLOCK: tl.constexpr,  # channels of a program
    ACROSS: tl.constexpr,  # tiles side by side
    TILES: tl.constexpr,  # of a map
    BLOCKS: tl.constexpr,  # of channels
):
    """Sum one tile's share of the nine windows, divided by the size of the map."""
    program = tl.program_id(0)  # neighbours read neighbouring channels of the same positions
    image = (program // (BLOCKS * TILES)).to(tl.int64)  # a batch may hold more than 2^31 elements
    tile = program // BLOCKS % TILES
    y = tile // ACROSS * ROWS
    x = tile % ACROSS * COLUMNS + tl.arange(0, COLUMNS)
    c = program % BLOCKS * BLOCK + tl.arange(0, BLOCK)
    row = features + image * (HEIGHT * WIDTH * CHANNELS) + x[:, None] * CHANNELS + c[None, :]
    inside = (x < WIDTH)[:, None] & (c < CHANNELS)[None, :]
    step: tl.constexpr = WIDTH * CHANNELS
    middle = tl.zeros((COLUMNS, BLOCK), tl.float32)
    for between in range(tl.maximum(y, 1), tl.minimum(y + ROWS, HEIGHT - 1)):
        middle += tl.load(row + between * step, mask=inside, other=0).to(tl.float32)
    m = _windows(middle, x, WIDTH)
    top = tl.load(row, mask=inside & (y == 0), other=0)
    t = _windows(top.to(tl.float32), x, WIDTH)
    bottom = tl.load(row + (HEIGHT - 1) * step, mask=inside & (y + ROWS >= HEIGHT), other=0)
    b = _windows(bottom.to(tl.float32), x, WIDTH)
    share = shares + (image * TILES + tile) * (9 * CHANNELS) + c
    for j in tl.static_range(3):  # pyright: ignore[reportGeneralTypeIssues]
        above = t[j] + m[j]
        tl.store(share + j * CHANNELS, above / (HEIGHT * WIDTH), mask=c < CHANNELS)
        tl.store(share + (3 + j) * CHANNELS, (above + b[j]) / (HEIGHT * WIDTH), mask=c < CHANNELS)
        tl.store(share + (6 + j) * CHANNELS, (m[j] + b[j]) / (HEIGHT * WIDTH), mask=c < CHANNELS)


@triton.jit
def _windows(columns, x, WIDTH: tl.constexpr):
    """Sum columns [COLUMNS, BLOCK] over the three windows: without the map's last, all, without the first."""
    left = tl.sum(tl.where((x < WIDTH - 1)[:, None], columns, 0.0), axis=0)
    right = tl.sum(tl.where((x > 0)[:, None], columns, 0.0), axis=0)
    return left, tl.sum(columns, axis=0), right


@triton.jit
def add_tiles(
    shares,  # float32 [N, TILES, SIZE]
    means,  # float32 [N, SIZE]
    TILES: tl.constexpr,
    SIZE: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Sum the shares of an image's tiles in a fixed order, so that every run gives the same bits."""
    image = tl.program_id(0).to(tl.int64)
    k = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for tile in range(TILES):
        total += tl.load(shares + (image * TILES + tile) * SIZE + k, mask=k < SIZE, other=0)
    tl.store(means + image * SIZE + k, total, mask=k < SIZE)
