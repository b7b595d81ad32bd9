"""What a CUDA graph captures stays on the GPU: shown on GPU tensors without values, which need no GPU."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
import torch_bundle
from torch import Tensor
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from gbad_batch.engine.model.architecture import Architecture
from gbad_batch.engine.model.gbad import GBAD
from gbad_batch.engine.model.mixed_precision import MixedPrecisionGBAD
from gbad_batch.engine.runtime.runtime_tensorrt import HEADS, MAPS, PAIRS, Forward
from gbad_batch.kernels.border_pool import border_means

HEADED = {
    "fc5": torch_bundle.ARCHITECTURE,
    "map_lse": torch_bundle.MAPPED,
    "map_max": torch_bundle.PEAKED,
}


class _OnTheGpu(TorchDispatchMode):
    """Refuses operators that give a tensor of the host: while a graph is captured, CUDA refuses the copy."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for each in tree_iter(result):
            if isinstance(each, Tensor) and each.device.type != "cuda":
                raise AssertionError(f"{func} gives a tensor on {each.device}")
        return result


@contextmanager
def captured() -> Iterator[None]:
    """Hold what is computed on tensors without values to what a capture allows."""
    with _OnTheGpu(), torch.inference_mode():
        yield


@pytest.fixture
def on_gpu() -> Iterator[None]:
    with FakeTensorMode(), torch.device("cuda"):
        yield


@contextmanager
def moved(*modules: torch.nn.Module) -> Iterator[None]:
    """Put tensors of a GPU without values in the place of all that modules hold, and compute on such."""
    with FakeTensorMode(), torch.device("cuda"):
        for module in {each for outer in modules for each in outer.modules()}:
            for name, value in module.named_parameters(recurse=False):
                module._parameters[name] = torch.nn.Parameter(torch.empty(value.shape, dtype=value.dtype))
            for name, value in module.named_buffers(recurse=False):
                module._buffers[name] = torch.empty(value.shape, dtype=value.dtype)
        yield


def pixels() -> Tensor:
    return torch.empty((4, 64, 64, 3), dtype=torch.uint8)


@pytest.mark.parametrize(
    "forbidden",
    [
        lambda values: torch.tensor([0.5, 1.0], device=values.device) * values[:2],
        lambda values: values.cpu(),
        lambda values: values * values.sum().item(),
        lambda values: values if values.any() else -values,
        lambda values: values * torch.ones(4, device="cpu"),
    ],
    ids=["from a list", "cpu", "item", "if", "mixed"],
)
@pytest.mark.usefixtures("on_gpu")
def test_these_checks_see_what_a_capture_refuses(forbidden: Callable[[Tensor], Tensor]) -> None:
    values = torch.empty(4)
    with pytest.raises((AssertionError, DataDependentOutputException)), captured():
        forbidden(values)


@pytest.mark.parametrize("precision", ["fp16", "fp32"])
@pytest.mark.parametrize("architecture", HEADED.values(), ids=HEADED)
def test_the_whole_model_can_be_captured(architecture: Architecture, precision: str) -> None:
    """As `runtime_inductor` compiles it."""
    mixed = MixedPrecisionGBAD(GBAD(architecture), precision)
    with moved(mixed), captured():
        outputs = mixed(pixels())
    assert [tuple(each.shape) for each in outputs] == [(4, 32), (4, 5), (4,), (4,)]


class _Plan:
    """Stands in for a plan of TensorRT in its context: the same part of the model, computed by torch."""

    def __init__(self, compute: Callable[[Tensor], Any], outputs: tuple[str, ...]):
        self._compute = compute
        self._outputs = outputs

    def has_outputs(self, outputs: tuple[str, ...]) -> bool:
        return self._outputs == outputs

    def __call__(self, entry: Tensor, *_: object) -> list[Tensor]:
        return [*self._compute(entry)]


@pytest.mark.parametrize("form", [MAPS, HEADS], ids=["maps", "heads"])
@pytest.mark.parametrize("architecture", HEADED.values(), ids=HEADED)
def test_what_runs_between_tensorrts_plans_can_be_captured(
    architecture: Architecture, form: tuple[str, ...]
) -> None:
    """Pooling, heads and losses, in both forms of the trunk."""
    model = GBAD(architecture)
    mixed = MixedPrecisionGBAD(model, "fp16")

    def trunk(entry: Tensor) -> Sequence[Tensor]:
        maps = mixed.trunk(entry)
        if form == MAPS:
            return [each.permute(0, 2, 3, 1) for each in maps]
        return model.network.heads(maps, border_means)

    forward: Any = Forward.__new__(Forward)  # its constructor asks TensorRT for contexts
    forward._heads = model.network.heads
    forward._trunk, forward._bigan = _Plan(trunk, form), _Plan(model.bigan.pairs, PAIRS)
    with moved(model, mixed), captured():
        outputs = forward(pixels())
    assert [tuple(each.shape) for each in outputs] == [(4, 32), (4, 5), (4,), (4,)]
