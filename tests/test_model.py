"""The networks against their references: torchvision's FPN and ResNeXt, timm, and formulas in NumPy."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from gbad_batch.engine.errors import BundleError, Refused
from gbad_batch.engine.model.architecture import Architecture
from gbad_batch.engine.model.backbone import create_backbone, load_backbone_weights
from gbad_batch.engine.model.bigan import BiGAN
from gbad_batch.engine.model.fpn import PooledPyramid, doubles, window_means
from gbad_batch.engine.model.gbad import GBAD, round_to_half

timm = pytest.importorskip("timm")
torchvision = pytest.importorskip("torchvision")

SMALL = Architecture(backbone="regnetx_004", input_size=64)


@pytest.fixture(autouse=True)
def one_seed():
    torch.manual_seed(0)
    torch.set_num_threads(1)


def torchvision_pyramid(pyramid: PooledPyramid, inputs: list[int], channels: int) -> torch.nn.Module:
    """Torchvision's FPN with the same weights."""
    reference = torchvision.ops.FeaturePyramidNetwork(inputs, channels).double()
    for kind, ours in (("inner_blocks", pyramid.lateral), ("layer_blocks", pyramid.output)):
        for block, convolution in zip(getattr(reference, kind), ours, strict=True):
            block[0].load_state_dict(convolution.state_dict())
    return reference


@pytest.mark.parametrize(
    "sides", [(64, 32, 16, 8), (16, 8, 4, 2), (50, 25, 13, 7), (12, 6, 3, 2), (8, 4, 2, 1)]
)
@torch.no_grad()
def test_pyramid_equals_torchvisions_followed_by_a_mean(sides):
    inputs = [8, 16, 24, 32]
    pyramid = PooledPyramid(inputs, 20).double()
    for convolution in [*pyramid.lateral, *pyramid.output]:
        assert convolution.bias is not None
        torch.nn.init.normal_(convolution.bias)  # biases meet the border windows in their own way
    maps = [torch.randn(3, c, s, s, dtype=torch.float64) for c, s in zip(inputs, sides, strict=True)]
    levels = torchvision_pyramid(pyramid, inputs, 20)({str(i): each for i, each in enumerate(maps)})
    for got, level in zip(pyramid(maps), levels.values(), strict=True):
        assert (got - level.mean((2, 3), keepdim=True)).abs().max() < 1e-12


@torch.no_grad()
def test_pyramid_pools_first_only_where_that_is_exact():
    def sides(*each: tuple[int, int]) -> list[torch.Tensor]:
        return [torch.randn(1, 4, *side, dtype=torch.float64) for side in each]

    assert doubles(sides((16, 32), (8, 16), (4, 8), (2, 4)))
    assert not doubles(sides((13, 13), (7, 7), (4, 4), (2, 2)))
    assert not doubles(sides((8, 8), (4, 4), (2, 2), (1, 1)))
    pyramid = PooledPyramid([4, 4, 4, 4], 6).double()
    oblong = sides((16, 32), (8, 16), (4, 8), (2, 4))
    for a, b in zip(pyramid.collapsed(oblong), pyramid.plain(oblong), strict=True):
        assert (a - b).abs().max() < 1e-12


@torch.no_grad()
def test_window_means_stay_within_half_precision():
    means = window_means(torch.full((1, 1, 64, 64), 20.0))
    assert torch.allclose(means[0, 0, 1, 1], torch.tensor(20.0))
    assert torch.allclose(means[0, 0, 0, 0], torch.tensor(20.0 * (63 / 64) ** 2))


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
@torch.no_grad()
def test_torchvisions_resnext_loads_by_file_and_gives_its_features(tmp_path: Path, suffix: str):
    reference = torchvision.models.resnext50_32x4d(weights=None).eval()
    path = tmp_path / f"weights{suffix}"
    save_file(reference.state_dict(), path) if suffix == ".safetensors" else torch.save(
        reference.state_dict(), path
    )
    backbone = create_backbone("resnext50_32x4d").eval()
    load_backbone_weights(backbone, "resnext50_32x4d", path)
    nodes = {f"layer{level}": str(level) for level in (1, 2, 3, 4)}
    extractor = torchvision.models.feature_extraction.create_feature_extractor(reference, nodes)
    images = torch.randn(2, 3, 64, 64)
    for got, wanted in zip(backbone(images), extractor(images).values(), strict=True):
        assert torch.allclose(got, wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ["regnetx_004", "resnext50_32x4d", "convnext_atto", "efficientnet_b0"])
@torch.no_grad()
def test_timms_weights_load_by_file(tmp_path: Path, name: str):
    full = timm.create_model(name, pretrained=False).eval()
    save_file(full.state_dict(), tmp_path / "weights.safetensors")
    backbone = create_backbone(name).eval()
    load_backbone_weights(backbone, name, tmp_path / "weights.safetensors")
    images = torch.randn(2, 3, 64, 64)
    wanted = full.forward_intermediates(images, intermediates_only=True)[-4:]
    for got, reference in zip(backbone(images), wanted, strict=True):
        assert torch.allclose(got, reference, rtol=1e-4, atol=1e-5)


def test_weights_that_do_not_fit_get_one_sentence(tmp_path: Path):
    backbone = create_backbone("resnext50_32x4d")
    state = dict(torchvision.models.resnext50_32x4d(weights=None).state_dict())
    lacking = {key: value for key, value in state.items() if key != "layer3.2.conv2.weight"}
    for wrong in (
        lacking,
        state | {"surplus": torch.ones(1)},
        state | {"conv1.weight": torch.ones(64, 3, 3, 3)},
    ):
        torch.save(wrong, tmp_path / "weights.pth")
        with pytest.raises(Refused, match=r"does not hold the weights of resnext50_32x4d"):
            load_backbone_weights(backbone, "resnext50_32x4d", tmp_path / "weights.pth")
    for content in (b"no weights at all", b"", b"PK\x03\x04 half a zip", b"\x80\x02cos\nsystem\n"):
        for name in ("weights.pth", "weights.safetensors"):
            (tmp_path / name).write_bytes(content)
            with pytest.raises(Refused, match="cannot be read"):
                load_backbone_weights(backbone, "resnext50_32x4d", tmp_path / name)
    torch.save(state | {"fc.weight": torch.ones(7, 2048)}, tmp_path / "weights.pth")
    load_backbone_weights(backbone, "resnext50_32x4d", tmp_path / "weights.pth")  # the classifier may differ


@pytest.mark.parametrize(
    "name",
    ["hf-hub:someone/something", "hf_hub:a/b", "local-dir:/tmp/x", "resnet50.a1_in1k", "no_such_network", ""],
)
def test_only_plain_registered_names_build_a_backbone(name: str):
    with pytest.raises(Refused, match="not the name of a backbone"):
        create_backbone(name)


@torch.no_grad()
def test_losses_equal_their_formulas_in_numpy():
    bigan = BiGAN(SMALL).eval()
    bigan.mean.normal_()
    bigan.std.uniform_(0.1, 2)
    x = torch.randn(7, 1024) * 4
    reconstruction, matching = bigan(x)

    w = {key: value.numpy().astype(np.float64) for key, value in bigan.state_dict().items()}

    def layer(name: str, values: np.ndarray, slope: float = 0.2) -> np.ndarray:
        out = values @ w[f"{name}.weight"][:, :, 0, 0].T + w[f"{name}.bias"]
        return np.where(out > 0, out, slope * out)

    def f_d(s: np.ndarray, z: np.ndarray) -> np.ndarray:
        both = np.concatenate([layer("discriminator.from_s", s), layer("discriminator.from_z", z)], axis=1)
        return layer("discriminator.joined", both)

    s = np.clip((x.numpy().astype(np.float64) - w["mean"]) / w["std"], -10, 10)
    z = layer("encoder.4", layer("encoder.2", layer("encoder.0", s)), slope=1)
    again = layer("generator.4", layer("generator.2", layer("generator.0", z)), slope=1)
    assert np.allclose(reconstruction.numpy(), np.abs(s - again).mean(axis=1), rtol=1e-5)
    assert np.allclose(matching.numpy(), np.sqrt(np.square(f_d(s, z) - f_d(again, z)).sum(axis=1)), rtol=1e-5)


@torch.no_grad()
def test_model_survives_its_arrays():
    model = GBAD(SMALL).eval()
    model.network.backbone.get_buffer("stem.bn.running_var").fill_(1e-9)  # no float16 value
    round_to_half(model)
    arrays = model.arrays()
    assert all(array.dtype == np.float16 for key, array in arrays.items() if key.startswith("network.fpn"))
    assert {"standardize.mean", "standardize.std"} <= arrays.keys()
    again = GBAD.from_arrays(SMALL, arrays, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    pixels = torch.randint(0, 256, (2, 64, 64, 3), dtype=torch.uint8)
    for a, b in zip(model(pixels), again(pixels), strict=True):
        assert torch.equal(a, b)


@torch.no_grad()
def test_arrays_of_another_architecture_are_refused():
    arrays = GBAD(SMALL).arrays()
    arrays["network.fc5.bias"] = np.zeros(6, np.float16)
    with pytest.raises(BundleError, match="do not fit its architecture"):
        GBAD(SMALL).load_arrays(arrays)
    with pytest.raises(BundleError, match="unknown tensor"):
        GBAD(SMALL).load_arrays(GBAD(SMALL).arrays() | {"network.more": np.zeros(1)})


@torch.no_grad()
def test_odd_map_sizes_go_through_the_plain_pyramid():
    model = GBAD(Architecture(backbone="mobilenetv3_small_100", input_size=100)).eval()
    scored = model(torch.randint(0, 256, (1, 100, 100, 3), dtype=torch.uint8))
    assert scored.x.shape == (1, 1024)
    assert scored.logits.shape == (1, 5)
