"""What the Triton kernels must keep, whatever the shape: run by test_kernels.py in a process of its own.

Under TRITON_INTERPRET=1 Triton's interpreter runs the kernels on the CPU; without it they run on the GPU.
"""

import os

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from gbad_batch.kernels import bigan_losses_triton, border_pool_triton
from gbad_batch.kernels.bigan_losses import empty_losses, plain_two_losses, two_losses
from gbad_batch.kernels.border_pool import border_means, empty_means, plain_border_means

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# float32's rounding, 6e-8, in each of the 60 or so additions that an element goes through at most
TOLERANCE = 4e-6
DTYPES = st.sampled_from([torch.float16, torch.bfloat16, torch.float32])
REPEATABLE = settings(max_examples=20, deadline=None, derandomize=True, database=None)

pytestmark = pytest.mark.skipif(
    not (INTERPRETED or torch.cuda.is_available()), reason="neither Triton's interpreter nor a GPU"
)


def pooled(features: Tensor) -> Tensor:
    if not INTERPRETED:
        return border_means(features.cuda()).cpu()
    means = empty_means(features).fill_(torch.nan)  # what is not written shows
    border_pool_triton.launch(features.contiguous(memory_format=torch.channels_last), means)
    return means


def lost(s: Tensor, again: Tensor, f_s: Tensor, f_again: Tensor) -> tuple[Tensor, Tensor]:
    if not INTERPRETED:
        reconstruction, matching = two_losses(s.cuda(), again.cuda(), f_s.cuda(), f_again.cuda())
        return reconstruction.cpu(), matching.cpu()
    reconstruction, matching = (each.fill_(torch.nan) for each in empty_losses(s, again, f_s, f_again))
    bigan_losses_triton.launch(s, again, f_s, f_again, reconstruction, matching)
    return reconstruction, matching


def window_by_window(features: Tensor) -> Tensor:
    """Shift the map with zeros entering and take the mean, nine times, in float64."""
    height, width = features.shape[-2:]
    wide = torch.nn.functional.pad(features.double(), (1, 1, 1, 1))
    means = [wide[..., i : i + height, j : j + width].mean((2, 3)) for i in range(3) for j in range(3)]
    return torch.stack(means, 2).unflatten(2, (3, 3))


@st.composite
def maps(draw: st.DrawFn) -> Tensor:
    """Draw a map that need not be square, even, dense in channels or wide: values around an offset."""
    count, channels = draw(st.integers(1, 2)), draw(st.integers(1, 72))
    height, width = draw(st.integers(2, 70)), draw(st.integers(2, 70))
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    values = torch.randn((count, channels, height, width), generator=random)
    values = values * draw(st.sampled_from([1e-3, 1, 50])) + draw(st.sampled_from([0, 1, -300]))
    layout = draw(st.sampled_from([torch.contiguous_format, torch.channels_last]))
    return values.to(draw(DTYPES)).contiguous(memory_format=layout)


@REPEATABLE
@given(maps())
def test_border_means_are_the_means_of_nine_shifted_maps(features: Tensor) -> None:
    means = pooled(features)
    assert means.dtype == torch.float32
    bound = TOLERANCE * features.double().abs().mean((2, 3), keepdim=True) + 1e-30
    assert ((means - window_by_window(features)).abs() <= bound).all()
    # torch's pooling adds one after the other, up to 4,900 values
    assert ((means - plain_border_means(features)).abs() <= 10 * bound).all()


@pytest.mark.parametrize(("channels", "side"), [(256, 64), (512, 32), (1024, 16), (2048, 8)])
def test_border_means_at_the_sizes_of_a_resnext(channels: int, side: int) -> None:
    features = torch.randn(1, channels, side, side).relu().half()
    exact = window_by_window(features)
    torch.testing.assert_close(pooled(features).double(), exact, rtol=TOLERANCE, atol=0)


def test_border_means_of_a_map_whose_sum_leaves_half_precision() -> None:
    features = torch.full((1, 8, 64, 64), 20.0, dtype=torch.float16)
    assert features.sum((2, 3)).isinf().all()
    inside = torch.tensor([63 / 64, 1, 63 / 64])
    torch.testing.assert_close(pooled(features), (20 * inside[:, None] * inside).expand(1, 8, 3, 3))


def test_an_infinity_stays_in_the_windows_that_see_it() -> None:
    features = torch.ones(1, 8, 40, 40)
    features[:, :, 0, 0] = torch.inf
    infinite = torch.tensor([[True, True, False], [True, True, False], [False, False, False]])
    assert (pooled(features).isinf() == infinite).all()
    assert pooled(features)[..., 2, 2].eq(39 * 39 / 1600).all()


@pytest.mark.parametrize("side", [8, 40])
def test_border_means_of_an_image_do_not_depend_on_its_batch(side: int) -> None:
    features = torch.randn(3, 24, side, side, generator=torch.Generator().manual_seed(1)).half()
    together = pooled(features)
    assert all(torch.equal(together[k : k + 1], pooled(features[k : k + 1])) for k in range(3))
    assert torch.equal(together, pooled(features))


@st.composite
def pairs(draw: st.DrawFn) -> list[Tensor]:
    """Draw s, again, f_s, f_again, each pair alike but for noise of any scale."""
    count, features, f_d = draw(st.integers(1, 4)), draw(st.integers(1, 1100)), draw(st.integers(1, 130))
    random = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    noise, dtype = draw(st.sampled_from([1e-3, 1, 100])), draw(DTYPES)
    rows = []
    for size in (features, f_d):
        first = torch.randn((count, size), generator=random)
        rows += [first, first + noise * torch.randn((count, size), generator=random)]
    return [each.to(dtype) for each in rows]


@REPEATABLE
@given(pairs())
def test_losses_are_those_of_float64(rows: list[Tensor]) -> None:
    s, again, f_s, f_again = (each.double() for each in rows)
    exact = (s - again).abs().mean(1), (f_s - f_again).norm(dim=1)
    for ours, plain, true in zip(lost(*rows), plain_two_losses(*rows), exact, strict=True):
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours.double(), true, rtol=TOLERANCE, atol=1e-30)
        torch.testing.assert_close(ours, plain, rtol=2 * TOLERANCE, atol=1e-30)


def test_an_empty_batch_has_no_means_and_no_losses() -> None:
    assert pooled(torch.empty(0, 8, 4, 4)).shape == (0, 8, 3, 3)
    assert [len(each) for each in lost(*(torch.empty(0, size) for size in (16, 16, 8, 8)))] == [0, 0]
