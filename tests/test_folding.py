"""Weights that bfloat16 holds, also once batch norms are folded into the convolutions before them."""

import copy

import pytest
import torch
import torch_bundle

from gbad_batch.engine.model.architecture import Architecture
from gbad_batch.engine.model.folding import fold_batch_norms, round_to_bfloat16
from gbad_batch.engine.model.gbad import GBAD, round_to_half


@pytest.fixture(params=[torch_bundle.ARCHITECTURE, torch_bundle.MAPPED], ids=["resnet", "lite"])
def model(request: pytest.FixtureRequest) -> GBAD:
    architecture: Architecture = request.param
    return torch_bundle.model(architecture)


def rounded(model: GBAD) -> GBAD:
    own = copy.deepcopy(model)
    round_to_bfloat16(own.network, own.architecture.input_size)
    round_to_half(own.network)
    return own


def test_folded_weights_are_numbers_of_bfloat16(model: GBAD):
    backbone = rounded(model).network.backbone
    fold_batch_norms(backbone, model.architecture.input_size)
    for name, weight in backbone.named_parameters():
        if weight.dim() == 4:
            nearest = weight.bfloat16().float()
            # folding rounds in float32, and float16 stores tiny numbers coarsely
            torch.testing.assert_close(weight, nearest, rtol=1e-6, atol=1e-7, msg=name)


@torch.no_grad()
def test_the_network_computes_nearly_the_same_in_use_and_in_training(model: GBAD):
    images = torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    before, after = (each.network.backbone for each in (model, rounded(model)))
    for trains in (False, True):
        pairs = list(zip(before.train(trains)(images), after.train(trains)(images), strict=True))
        for one, other in pairs[:2]:  # of a few places a norm has no steady statistics
            assert (one - other).norm() < 0.05 * one.norm()
            assert not torch.equal(one, other)


def test_a_norm_that_passes_nothing_on_does_no_harm(model: GBAD):
    norm = next(each for each in model.network.backbone.modules() if isinstance(each, torch.nn.BatchNorm2d))
    norm.weight[0] = 0
    assert norm.running_var is not None
    norm.running_var[1] = 0
    own = rounded(model)
    for value in own.network.state_dict().values():
        assert torch.isfinite(value).all()
    for key, value in own.network.backbone.state_dict().items():
        if key.endswith("running_var"):
            assert (value >= 0).all()
