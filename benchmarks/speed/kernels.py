"""What the kernels compile to, what they must move, and on a GPU how near they come to its memory's speed."""

import argparse
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
import triton
from torch import Tensor

from gbad_batch.kernels import bigan_losses_triton, border_pool_triton
from gbad_batch.kernels.bigan_losses import plain_two_losses, two_losses
from gbad_batch.kernels.border_pool import border_means

from ..report import Report
from .machine_code import MachineCode, compiled

BATCH = 256
LEVELS = {"c2": (256, 64), "c3": (512, 32), "c4": (1024, 16), "c5": (2048, 8)}  # ResNeXt-50 at 256: C, H = W
FEATURES, F_D = 1024, 128
CAPABILITIES = (80, 90, 100)
DATASHEET = {"a100": 2039, "h100": 3350, "h200": 4800}  # GB/s of the SXM cards; A100 with 80 GB
HALF, FLOAT = "*fp16", "*fp32"


@dataclass(frozen=True)
class Launch:
    """One kernel as an operation launches it."""

    kernel: Any
    pointers: Mapping[str, str]  # argument to Triton type
    constants: Mapping[str, Any]
    options: Mapping[str, Any]

    def codes(self) -> list[MachineCode]:
        """Compile it for every architecture."""
        return [
            compiled(self.kernel, self.pointers, self.constants, self.options, each) for each in CAPABILITIES
        ]


def run(_: argparse.Namespace) -> Report:
    """Report each operation at ResNeXt-50's shapes; code and bytes always, speed where a GPU is."""
    report = Report(
        f"Kernels at a batch of {BATCH}, compiled for {', '.join(f'sm_{c}' for c in CAPABILITIES)}"
    )
    for name, (channels, side) in LEVELS.items():
        _add_code(report, f"border_{name}", list(_border_launches(channels, side)), narrowest=128)
        _add_bytes(report, f"border_{name}", *_border_bytes(channels, side))
    # a warp's 32 threads share 128 halves of f_D: 64 bits each
    _add_code(report, "losses", [_losses_launch()], narrowest=64)
    _add_bytes(report, "losses", _losses_bytes(), 0)
    report.notes += [
        "registers, spills and shared are the most, load_bits the narrowest, of kernels and architectures",
        "estimate: bytes moved / the card's bandwidth by its datasheet, an arithmetic lower bound",
        "the losses move so little that a launch, some microseconds, decides on their time",
    ]
    if torch.cuda.is_available():
        _add_speeds(report)
    else:
        report.notes.append("not run on a GPU: no speed was measured")
    return report


def _border_launches(channels: int, side: int) -> Iterator[Launch]:
    """Give the kernels that the border pool of one level launches on half."""
    own = border_pool_triton
    shape = own.shape_of(channels, side, side)
    yield Launch(own.sum_tiles, {"features": HALF, "shares": FLOAT}, shape, own.OPTIONS)
    if shape["TILES"] > 1:
        yield Launch(own.add_tiles, {"shares": FLOAT, "means": FLOAT}, own.sizes_of(shape), own.OPTIONS)


def _losses_launch() -> Launch:
    own = bigan_losses_triton
    inputs = {"s": HALF, "reconstruction": HALF, "f_s": HALF, "f_reconstruction": HALF}
    outputs = {"reconstruction_loss": FLOAT, "matching_loss": FLOAT}
    return Launch(own.row_losses, inputs | outputs, own.shape_of(FEATURES, F_D), own.OPTIONS)


def _border_bytes(channels: int, side: int) -> tuple[int, int]:
    """Bytes that any border pool must move (half map, float32 means), and those that ours adds for tiles."""
    tiles = border_pool_triton.shape_of(channels, side, side)["TILES"]
    means = BATCH * channels * 9 * 4
    return BATCH * channels * side * side * 2 + means, 2 * means * tiles if tiles > 1 else 0


def _losses_bytes() -> int:
    return BATCH * (2 * (FEATURES + F_D) * 2 + 2 * 4)


def _add_code(report: Report, name: str, launches: list[Launch], narrowest: int) -> None:
    codes = [code for launch in launches for code in launch.codes()]
    # 160 registers leave room for 12 warps on a multiprocessor, up to 4 KB on the way to each: 48 KB, where
    # a bandwidth of 8 TB/s and a latency of 0.8 us want 43
    report.add(f"{name}_registers", max(code.registers for code in codes), "", at_most=160)
    report.add(f"{name}_spills", max(code.spills for code in codes), "bytes", at_most=0)
    report.add(f"{name}_shared", max(code.shared for code in codes), "bytes")
    widths = min(min(code.load_bits) for code in codes)
    report.add(f"{name}_load_bits", widths, "bits", at_least=narrowest)


def _add_bytes(report: Report, name: str, needed: int, added: int) -> None:
    report.add(f"{name}_mb", needed / 1e6, "MB")
    report.add(f"{name}_added_mb", added / 1e6, "MB")
    for card, bandwidth in DATASHEET.items():
        report.add(f"{name}_estimate_{card}_us", (needed + added) / bandwidth / 1e3, "us")


def _add_speeds(report: Report) -> None:
    """Measure on the GPU: its copy, then each operation and its plain form, in GB/s of the bytes needed."""
    report.notes.append(f"run on {torch.cuda.get_device_name()}")
    source = torch.empty(2**30, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    copy = 2 * source.numel() / _seconds(lambda: target.copy_(source)) / 1e9
    report.add("copy_gbs", copy, "GB/s")
    for name, (channels, side) in LEVELS.items():
        features = _random(BATCH, side, side, channels).permute(0, 3, 1, 2)
        needed = _border_bytes(channels, side)[0] / 1e9
        ours = needed / _seconds(lambda: border_means(features))  # noqa: B023 - called at once
        pool = needed / _seconds(lambda: F.avg_pool2d(features, side, 1, 1))  # noqa: B023
        report.add(f"border_{name}_gbs", ours, "GB/s")
        report.add(f"border_{name}_plain_gbs", pool, "GB/s")
        report.add(f"border_{name}_of_copy", ours / copy, "", at_least=0.7)
    rows = [_random(BATCH, size) for size in (FEATURES, FEATURES, F_D, F_D)]
    report.add("losses_us", _seconds(lambda: two_losses(*rows)) * 1e6, "us")
    report.add("losses_plain_us", _seconds(lambda: plain_two_losses(*rows)) * 1e6, "us")


def _random(*size: int) -> Tensor:
    return torch.randn(size, dtype=torch.float16, device="cuda")


def _seconds(work: Any) -> float:
    """Median time of one call on the GPU, warmed up, its second level cache emptied before each."""
    milliseconds: Any = triton.testing.do_bench(work, return_mode="median")
    return milliseconds / 1e3
