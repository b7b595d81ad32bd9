"""The border pool on an NVIDIA GPU, in Triton: each element is read once, 16 bytes a load, into float32.

A program is one warp: it takes a tile of one image's positions and a block of channels. It adds rows up
column by column, one addition an element, the map's first and last row apart; only the last step adds
columns, nine ways. Windows are summed, never got by subtracting borders from a total: nothing cancels, and
an infinity stays where it is.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

READ = 2048  # elements that a warp reads at a time: in half eight loads of 16 bytes for each thread
COLUMNS, ROWS = 32, 32  # the largest tile: small enough that a batch of 64 still fills most of a GPU
ADDED = 1024  # sums that a program of `add_tiles` gives
# Triton 3.10 changes what fusion defaults to
OPTIONS = {"num_warps": 1, "enable_fp_fusion": False}


def launch(features: Tensor, means: Tensor) -> None:
    """Fill means, float32 [N, C, 3, 3], from features [N, C, H, W], both dense in channels_last."""
    images = len(features)
    shape = shape_of(*features.shape[1:])
    tiles, size = tiles_of(shape), 9 * shape["CHANNELS"]
    # shares lie as [N, tiles, 3, 3, C]; those of a map of one tile are its means
    shares = means if tiles == 1 else torch.empty(images * tiles * size, device=means.device)
    programs = images * tiles * triton.cdiv(shape["CHANNELS"], shape["BLOCK"])
    if programs:
        sum_tiles[(programs,)](features, shares, **shape, **OPTIONS)
    if programs and tiles > 1:
        grid = (images, triton.cdiv(size, ADDED))
        add_tiles[grid](shares, means, **sizes_of(shape), **OPTIONS)


def shape_of(channels: int, height: int, width: int) -> dict[str, Any]:
    """Choose how a map is cut into programs: by its own size alone, so that no batch changes a bit."""
    columns = min(triton.next_power_of_2(width), COLUMNS)
    return {
        "HEIGHT": height,
        "WIDTH": width,
        "CHANNELS": channels,
        "ROWS": triton.cdiv(height, triton.cdiv(height, ROWS)),
        "COLUMNS": columns,
        "BLOCK": min(READ // columns, triton.next_power_of_2(channels)),
    }


def tiles_of(shape: dict[str, Any]) -> int:
    """Count the tiles of a map."""
    return triton.cdiv(shape["HEIGHT"], shape["ROWS"]) * triton.cdiv(shape["WIDTH"], shape["COLUMNS"])


def sizes_of(shape: dict[str, Any]) -> dict[str, Any]:
    """Give the constants of `add_tiles`."""
    return {"TILES": tiles_of(shape), "SIZE": 9 * shape["CHANNELS"], "BLOCK": ADDED}


@triton.jit
def sum_tiles(
    features,  # [N, HEIGHT, WIDTH, CHANNELS]
    shares,  # float32 [N, tiles, 3, 3, CHANNELS]
    HEIGHT: tl.constexpr,
    WIDTH: tl.constexpr,
    CHANNELS: tl.constexpr,
    ROWS: tl.constexpr,  # of a tile
    COLUMNS: tl.constexpr,  # of a tile
    BLOCK: tl.constexpr,  # channels of a program
):
    """Sum one tile's share of the nine windows, divided by the size of the map."""
    blocks: tl.constexpr = tl.cdiv(CHANNELS, BLOCK)
    across: tl.constexpr = tl.cdiv(WIDTH, COLUMNS)
    down: tl.constexpr = tl.cdiv(HEIGHT, ROWS)
    program = tl.program_id(0)  # neighbours read neighbouring channels of the same positions
    tile = (program // blocks).to(tl.int64)  # of the whole batch, which may hold more than 2^31 elements
    image = tile // (across * down)
    y = (tile // across % down * ROWS).to(tl.int32)
    x = (tile % across * COLUMNS).to(tl.int32) + tl.arange(0, COLUMNS)
    c = program % blocks * BLOCK + tl.arange(0, BLOCK)
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
    share = shares + tile * (9 * CHANNELS) + c
    for j in tl.static_range(3):  # pyright: ignore[reportGeneralTypeIssues]
        above = t[j] + m[j]
        tl.store(share + j * CHANNELS, above / (HEIGHT * WIDTH), mask=c < CHANNELS)
        tl.store(share + (3 + j) * CHANNELS, (above + b[j]) / (HEIGHT * WIDTH), mask=c < CHANNELS)
        tl.store(share + (6 + j) * CHANNELS, (m[j] + b[j]) / (HEIGHT * WIDTH), mask=c < CHANNELS)


@triton.jit
def _windows(columns, x, WIDTH: tl.constexpr):
    """Sum columns [COLUMNS, BLOCK] without the map's last one, of all, and without the first."""
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
    """Add the shares of an image's tiles up, in their order, so that each run gives the same bits."""
    image = tl.program_id(0).to(tl.int64)
    k = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), tl.float32)
    for tile in range(TILES):
        total += tl.load(shares + (image * TILES + tile) * SIZE + k, mask=k < SIZE, other=0)
    tl.store(means + image * SIZE + k, total, mask=k < SIZE)
