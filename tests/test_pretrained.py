"""Phase I from a backbone that has learned: what stays, what learns slower, and how bfloat16 compares."""

import timm
import torch
import torch.nn.functional as F

from gbad_batch.engine.model.architecture import Architecture
from gbad_batch.engine.model.network import Network
from gbad_batch.engine.training.phases.bfloat16 import bfloat16
from gbad_batch.engine.training.phases.phase1 import Classifier, Told
from gbad_batch.engine.training.phases.pretrained import BACKBONE_RATE, freeze_general
from gbad_batch.engine.training.settings import Phase1Settings

ARCHITECTURE = Architecture(backbone="regnetx_004", input_size=64)
TOLD = Told(torch.eye(4, 5) > 0, torch.ones((4, 5), dtype=torch.bool))


def test_a_pretrained_backbone_keeps_what_c2_is_computed_from():
    torch.manual_seed(0)
    network = Network(ARCHITECTURE)
    before = {key: value.clone() for key, value in network.state_dict().items()}
    classifier = Classifier(network, Phase1Settings(weight_decay=0.1), pretrained=True)
    for _ in range(2):
        classifier.learn(torch.randn(4, 3, 64, 64), TOLD, 1.0)
    after = network.state_dict()
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    kept = {key for key in before if key.startswith(("backbone.stem", "backbone.s1"))}
    assert kept
    assert not changed & kept  # nor are their norms' statistics
    assert {"backbone.s2.b1.conv1.conv.weight", "fc5.weight"} <= changed


def test_the_rest_of_a_pretrained_backbone_learns_slower():
    classifier = Classifier(Network(ARCHITECTURE), Phase1Settings(learning_rate=0.01), pretrained=True)
    classifier.learn(torch.randn(4, 3, 64, 64), TOLD, 0.5)
    rates = {}
    for group in classifier.optimizer.param_groups:
        rates |= dict.fromkeys(map(id, group["params"]), group["lr"])
    network = classifier.network
    assert rates[id(network.fc5.weight)] == 0.005  # pyright: ignore
    assert rates[id(network.backbone.s4.b1.conv1.conv.weight)] == 0.005 * BACKBONE_RATE  # pyright: ignore
    assert sum(parameter.requires_grad for parameter in network.parameters()) == len(rates)


def test_a_mobile_network_keeps_its_first_blocks_and_depthwise_filters():
    backbone = timm.create_model("tf_efficientnet_lite0", features_only=True, out_indices=(-4, -3, -2, -1))
    freeze_general(backbone.train())
    frozen = {name for name, parameter in backbone.named_parameters() if not parameter.requires_grad}
    assert {name.split(".")[0] for name in frozen} == {"conv_stem", "bn1", "blocks"}
    names = [name for name, _ in backbone.named_parameters() if name.startswith("blocks")]
    later = {name for name in names if name.split(".")[1] not in "01"}
    assert later & frozen == {name for name in later if "conv_dw" in name}
    assert not backbone.bn1.training  # pyright: ignore
    assert backbone.blocks[2][0].bn1.training  # pyright: ignore


def test_grouped_convolutions_in_bfloat16_have_the_gradients_of_float32():
    torch.manual_seed(0)
    images, weight = torch.randn(2, 16, 9, 9), torch.randn(16, 1, 3, 3) / 3
    gradients = []
    for half in (False, True):
        x, w = images.clone().requires_grad_(), weight.clone().requires_grad_()
        if half:
            with bfloat16():
                y = F.conv2d(x, w, None, (2, 2), (1, 1), (1, 1), 16)
            assert y.dtype == torch.bfloat16
        else:
            y = F.conv2d(x, w, None, 2, 1, 1, 16)
        y.float().square().sum().backward()
        gradients.append((x.grad, w.grad))
    for one, other in zip(*gradients, strict=True):
        assert one is not None
        assert other is not None
        assert other.dtype == torch.float32
        assert (one - other).norm() < 0.02 * one.norm()


def test_a_mobile_network_learns_in_bfloat16():
    torch.manual_seed(0)
    backbone = timm.create_model("tf_efficientnet_lite0", num_classes=5)
    with bfloat16():
        loss = backbone(torch.randn(2, 3, 64, 64)).float().square().sum()
    loss.backward()
    for name, parameter in backbone.named_parameters():
        assert parameter.grad is not None, name
        assert torch.isfinite(parameter.grad).all(), name
