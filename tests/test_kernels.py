"""The kernels: arithmetic by Triton's interpreter, machine code by its assembler, operators by torch."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from benchmarks.speed.machine_code import compiled
from torch import Tensor

from gbad_batch.engine.model.architecture import Architecture
from gbad_batch.engine.model.bigan import BiGAN
from gbad_batch.engine.model.fpn import window_means
from gbad_batch.kernels.bigan_losses import two_losses
from gbad_batch.kernels.border_pool import border_means
from gbad_batch.kernels.border_pool_triton import OPTIONS, shape_of, sum_tiles
from gbad_batch.kernels.compiler import lacking

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Keep what Triton compiles out of the user's cache, and its interpreter off unless asked for."""
    plain = {key: value for key, value in os.environ.items() if key != "TRITON_INTERPRET"}
    return plain | {"TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton"))}


def _properties(environment: dict[str, str]) -> None:
    """Run the kernels' properties in a process whose environment says where kernels run."""
    words = ["-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/kernel_properties.py"]
    ran = subprocess.run([sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout + ran.stderr
    assert "passed" in ran.stdout
    assert "skipped" not in ran.stdout


@pytest.mark.slow
def test_the_arithmetic_in_tritons_interpreter(environment: dict[str, str]) -> None:
    _properties(environment | {"TRITON_INTERPRET": "1"})


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_the_arithmetic_on_a_gpu(environment: dict[str, str]) -> None:
    _properties(environment)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")
def test_a_batch_on_a_gpu_may_hold_more_elements_than_32_bits_count() -> None:
    images = 2**31 // (64 * 64 * 256) + 1
    features = torch.zeros(images, 64, 64, 256, dtype=torch.float16, device="cuda").permute(0, 3, 1, 2)
    features[-1].normal_()
    assert torch.equal(border_means(features)[-1:], border_means(features[-1:]))


@pytest.fixture(scope="module")
def figures(environment: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Compile every kernel for sm_80, sm_90 and sm_100 as the benchmark does."""
    file = tmp_path_factory.mktemp("figures") / "kernels.json"
    words = ["-m", "benchmarks", "kernels", "--json", str(file)]
    ran = subprocess.run([sys.executable, *words], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert ran.returncode in (0, 1), ran.stderr
    return json.loads(file.read_text())


@pytest.mark.parametrize("name", ["border_c2", "border_c3", "border_c4", "border_c5", "losses"])
@pytest.mark.slow
def test_the_machine_code_spills_nothing_and_loads_wide(figures: dict[str, Any], name: str) -> None:
    assert figures[f"{name}_spills"] == 0
    assert 0 < figures[f"{name}_registers"] <= 160
    assert figures[f"{name}_load_bits"] == (64 if name == "losses" else 128)


@pytest.mark.slow
def test_the_tools_see_narrow_loads_and_spills_where_they_are(environment: dict[str, str]) -> None:
    """Give a kernel odd channels, then few registers: the check of the machine code can fail."""
    pointers = {"features": "*fp16", "shares": "*fp32"}
    odd, even = shape_of(255, 64, 64), shape_of(256, 64, 64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TRITON_CACHE_DIR", environment["TRITON_CACHE_DIR"])
        narrow = compiled(sum_tiles, pointers, odd, OPTIONS, 90)
        tight = compiled(sum_tiles, pointers, even, OPTIONS | {"maxnreg": 32}, 90)
    assert min(narrow.load_bits) == 16
    assert tight.spills > 0


@pytest.mark.slow
def test_no_speed_is_given_without_a_gpu(figures: dict[str, Any]) -> None:
    measured = {name for name in figures if name.endswith(("_gbs", "_of_copy", "losses_us"))}
    assert bool(measured) == torch.cuda.is_available()
    assert ("not run on a GPU: no speed was measured" in figures["notes"]) != torch.cuda.is_available()


WITHOUT_TRITON = """
import logging
import torch
from gbad_batch.kernels import bigan_losses, border_pool
from gbad_batch.kernels.bigan_losses import plain_two_losses
from gbad_batch.kernels.border_pool import plain_border_means
logging.basicConfig(format="%(message)s")
torch.manual_seed(0)
features = torch.randn(2, 8, 4, 4).half().to(memory_format=torch.channels_last)
rows = torch.randn(4, 3, 16).unbind()
for _ in range(2):  # what a GPU runs, on tensors of the host, which nothing in it asks for
    assert torch.equal(border_pool._on_gpu(features), plain_border_means(features))
    assert all(map(torch.equal, bigan_losses._on_gpu(*rows), plain_two_losses(*rows)))
"""


WITHOUT_HEADERS = """
for word; do
    case $word in -I*) ;; *) set -- "$@" "$word" ;; esac
    shift
done
exec gcc "$@"
"""


@pytest.mark.parametrize(
    ("compiler", "reason"),
    [
        (None, "no C compiler is installed"),
        (WITHOUT_HEADERS, "Python.h"),
        ("exit 1", "builds no module for Python: no reason is given"),
    ],
    ids=["no compiler", "no headers", "broken"],
)
def test_where_triton_cannot_compile_plain_torch_computes_and_says_so_once(
    environment: dict[str, str], tmp_path: Path, compiler: str | None, reason: str
) -> None:
    changed = {key: value for key, value in environment.items() if key != "CC"}
    if compiler is None:
        changed["PATH"] = str(tmp_path)
    else:
        script = tmp_path / "cc"
        script.write_text(f"#!/bin/sh\n{compiler}\n")
        script.chmod(0o755)
        changed["CC"] = str(script)
    command = [sys.executable, "-c", WITHOUT_TRITON]
    ran = subprocess.run(command, env=changed, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    (said,) = ran.stderr.splitlines()
    assert said.startswith("Triton cannot compile its kernels (")
    assert reason in said
    assert "install gcc, libc6-dev and python3-dev" in said


def test_with_a_compiler_and_pythons_headers_triton_is_used() -> None:
    assert lacking() is None


def _rows(count: int) -> list[Tensor]:
    return [torch.randn(count, size) for size in (1024, 1024, 128, 128)]


@pytest.mark.parametrize("shape", [(2, 16, 8, 8), (1, 1, 3, 5), (2, 3, 2, 2)])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_border_means_are_a_proper_operator(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    torch.library.opcheck(border_means, (torch.randn(shape).to(dtype),))


def test_two_losses_are_a_proper_operator() -> None:
    torch.library.opcheck(two_losses, tuple(_rows(3)))


def test_on_a_cpu_border_means_are_the_models_window_means() -> None:
    features = torch.randn(2, 16, 12, 9).to(memory_format=torch.channels_last)
    means = border_means(features)
    assert means.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(means, window_means(features))


def test_on_a_cpu_two_losses_are_the_models() -> None:
    bigan = BiGAN(Architecture())
    x = torch.randn(3, 1024)
    with torch.inference_mode():
        s = bigan.standardize(x)[:, :, None, None]
        z = bigan.encoder(s)
        reconstruction = bigan.generator(z)
        f_s, f_reconstruction = (bigan.discriminator.f_d(each, z) for each in (s, reconstruction))
        ours = two_losses(*(each.flatten(1) for each in (s, reconstruction, f_s, f_reconstruction)))
        torch.testing.assert_close(ours, bigan(x))


class Scores(torch.nn.Module):
    """Both operators between others, as a network holds them."""

    def forward(self, features: Tensor) -> Tensor:
        x = border_means(features * 2).flatten(1)
        reconstruction, matching = two_losses(x, x + 1, x[:, :4], x[:, :4] + 2)
        return reconstruction + matching


FEATURES = torch.randn(3, 8, 6, 6)
EXPECTED = torch.full((3,), 5.0)  # mean |1| + sqrt(4 x 2^2)


@pytest.mark.slow  # compiles; the exported one is checked in seconds
def test_a_compiled_network_holds_the_operators() -> None:
    compiled = torch.compile(Scores(), fullgraph=True, dynamic=True)
    torch.testing.assert_close(compiled(FEATURES), EXPECTED)
    torch.testing.assert_close(compiled(FEATURES[:2]), EXPECTED[:2])


def test_an_exported_network_holds_the_operators() -> None:
    batch = torch.export.Dim("batch")
    program = torch.export.export(Scores(), (FEATURES,), dynamic_shapes=({0: batch},))
    called = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
    assert {"gbad_batch.border_means.default", "gbad_batch.two_losses.default"} <= called
    torch.testing.assert_close(program.module()(FEATURES[:2]), EXPECTED[:2])


@pytest.mark.parametrize("shape", [(2, 8, 1, 4), (2, 8, 4, 1), (8, 4, 4)])
def test_a_map_without_a_border_is_refused(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="H, W >= 2"):
        border_means(torch.zeros(shape))


def test_rows_that_do_not_belong_together_are_refused() -> None:
    s, again, f_s, f_again = _rows(3)
    for wrong in [(s, again[:2], f_s, f_again), (s, again, f_s[:2], f_again[:2]), (s, f_s, again, f_again)]:
        with pytest.raises(ValueError, match="two pairs"):
            two_losses(*wrong)
