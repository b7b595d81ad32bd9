"""The class map: what it computes, in every engine, and that bundles without one score as before."""

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny_bundle as tiny
import torch
import torch.nn.functional as F
import torch_bundle
from PIL import Image

from gbad_batch.engine import Scan, ScanSettings
from gbad_batch.engine.bundle import Bundle, write_bundle
from gbad_batch.engine.bundle.manifest import CLASS_MAP, parse_manifest
from gbad_batch.engine.bundle.onnx_check import FLOAT, UINT8, check_graph
from gbad_batch.engine.errors import BundleError
from gbad_batch.engine.model.architecture import FC5, MAP_LSE, MAP_MAX
from gbad_batch.engine.model.class_map import TEMPERATURE, ClassMap, add_upsampled, log_sum_exp, strongest
from gbad_batch.engine.model.gbad import GBAD
from gbad_batch.engine.runtime import OUTPUTS, open_engine
from gbad_batch.engine.runtime.runtime_openvino import open_core
from gbad_batch.engine.training.packing.quantizing import with_int8
from gbad_batch.engine.training.settings import QuantizeSettings
from gbad_batch.export import engine_for
from gbad_batch.export.to_onnx import export_graphs

LOSS = 1e-4  # relative, between engines in float32


@pytest.fixture(scope="module")
def model() -> GBAD:
    return torch_bundle.model(torch_bundle.MAPPED)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("bundles") / "mapped"
    return write_bundle(
        folder, torch_bundle.manifest(torch_bundle.MAPPED), torch_bundle.files(torch_bundle.MAPPED)
    )


@pytest.fixture(scope="module")
def int8(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("int8")
    for number, picture in enumerate(tiny.pictures(24, seed=1)):
        Image.fromarray(picture).save(folder / f"bag-{number:03d}.png")
    return with_int8(bundle, sorted(folder.iterdir()), [], QuantizeSettings()).write(folder / "bundle")


# --- what it computes ---


@torch.no_grad()
def test_upsampling_by_an_addition_is_that_of_the_nearest_place() -> None:
    fine, coarse = torch.randn(2, 3, 8, 12), torch.randn(2, 3, 4, 6)
    assert torch.equal(add_upsampled(fine, coarse), fine + F.interpolate(coarse, scale_factor=2))
    odd = torch.randn(2, 3, 7, 11)
    assert torch.equal(add_upsampled(odd, coarse), odd + F.interpolate(coarse, size=(7, 11)))


@torch.no_grad()
def test_a_map_has_the_stride_of_c3_and_sees_every_level() -> None:
    torch.manual_seed(0)
    head = ClassMap([8, 12, 16], 8).eval()
    maps = [torch.randn(1, 8, 16, 16), torch.randn(1, 12, 8, 8), torch.randn(1, 16, 4, 4)]
    found = head(maps)
    assert found.shape == (1, 5, 16, 16)
    for level in range(3):
        others = [torch.zeros_like(each) if k == level else each for k, each in enumerate(maps)]
        assert not torch.allclose(head(others), found)


@torch.no_grad()
def test_poolings_are_the_maximum_and_a_smooth_one_above_it() -> None:
    class_map = torch.randn(4, 5, 8, 8) * 30
    highest = class_map.flatten(2).max(2).values
    assert torch.equal(strongest(class_map), highest)
    expected = TEMPERATURE * torch.logsumexp(class_map.flatten(2) / TEMPERATURE, 2)
    torch.testing.assert_close(log_sum_exp(class_map), expected)
    assert (log_sum_exp(class_map) >= highest).all()


@torch.no_grad()
def test_logits_are_those_of_the_head_that_is_named(model: GBAD) -> None:
    pixels = torch.from_numpy(tiny.pictures(3, seed=2))
    found = model.network.predict(model.maps(pixels))
    assert found.class_map is not None
    assert found.class_map.shape == (3, 5, 8, 8)
    assert torch.equal(found.logits, log_sum_exp(found.class_map))
    x, logits = model.features(pixels)
    assert torch.equal(logits, found.logits)
    other = torch_bundle.model(replace(torch_bundle.MAPPED, head=MAP_LSE))
    other.use_head(MAP_MAX)
    assert other.architecture.head == MAP_MAX
    assert torch.equal(other.features(pixels)[1], strongest(found.class_map))
    assert torch.equal(other.features(pixels)[0], x)


# --- bundles ---


def test_the_manifest_names_the_head(bundle: Bundle) -> None:
    assert bundle.manifest.architecture == torch_bundle.MAPPED
    assert bundle.manifest.architecture.has_map
    assert bundle.manifest.preprocessing.mean == (0.5, 0.5, 0.5)  # as Lite's weights expect
    assert any(name.startswith("network.class_map.") for name in bundle.tensors())
    assert any(name.startswith("network.fc5.") for name in bundle.tensors())  # the report's stays


def test_a_bundle_from_before_has_no_map(tiny_bundle: Bundle) -> None:
    architecture = tiny.manifest()["architecture"]
    assert "head" not in architecture
    assert tiny_bundle.manifest.architecture.head == FC5
    assert not tiny_bundle.manifest.architecture.has_map


def test_an_unknown_head_is_refused(tiny_bundle: Bundle) -> None:
    data = (tiny_bundle.path / "bundle.json").read_bytes()
    before = b'"backbone"'
    assert data.count(before) == 1
    with pytest.raises(BundleError, match="must be one of fc5, map_max, map_lse"):
        parse_manifest(data.replace(before, b'"head": "oracle", "backbone"'))


# --- engines ---


@torch.no_grad()
def test_openvino_gives_what_torch_gives(bundle: Bundle, model: GBAD) -> None:
    pixels = tiny.pictures(7, seed=4)
    wanted = model(torch.from_numpy(pixels))
    with closing(open_engine(engine_for(bundle, device="cpu", precision="fp32"), 1)) as runner:
        found = runner(pixels)
        parts = [runner(pixels[i : i + 3]) for i in range(0, 7, 3)]
    for name, reference in zip(OUTPUTS, wanted, strict=True):
        np.testing.assert_allclose(getattr(found, name), reference.numpy(), rtol=LOSS, atol=1e-5)
        again = np.concatenate([getattr(part, name) for part in parts])
        assert again.tobytes() == getattr(found, name).tobytes()


@pytest.mark.slow  # compiles
def test_inductor_agrees(bundle: Bundle) -> None:
    pixels = tiny.pictures(5, seed=4)
    engines = [engine_for(bundle, device="cpu", engine=name, threads=1) for name in ("openvino", "inductor")]
    with closing(open_engine(engines[0], 1)) as one, closing(open_engine(engines[1], 1)) as other:
        found, wanted = one(pixels), other(pixels)
    for name in OUTPUTS:
        np.testing.assert_allclose(getattr(found, name), getattr(wanted, name), rtol=LOSS, atol=1e-5)


@torch.no_grad()
def test_the_map_can_be_had_from_the_graphs_and_is_no_output_of_a_scan(
    bundle: Bundle, int8: Bundle, model: GBAD
) -> None:
    """Explanations make the named tensor an output; logits are its pooling, in either precision."""
    pixels = tiny.pictures(3, seed=8)
    wanted = model.network.predict(model.maps(torch.from_numpy(pixels))).class_map
    assert wanted is not None
    for graph, constants, most in ((bundle.network_onnx, b"", 1e-4), (*int8.network_int8, 0.5)):
        network = open_core().read_model(graph, constants)
        assert {name for port in network.outputs for name in port.get_names()} >= {"x", "logits"}
        assert len(network.outputs) == 2
        network.add_outputs(CLASS_MAP)
        found = open_core().compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})([pixels])
        class_map = torch.from_numpy(found[2])
        assert (class_map - wanted).abs().max() < most * (wanted.max() - wanted.min())
        torch.testing.assert_close(torch.from_numpy(found[1]), log_sum_exp(class_map), rtol=1e-4, atol=1e-4)


def test_int8_keeps_the_neck_in_fp32(int8: Bundle) -> None:
    xml = int8.network_int8[0].decode()
    channels = torch_bundle.MAPPED.map_channels
    assert 'element_type="i8"' in xml
    for shape in (f"{channels}, 320, 1, 1", f"{channels}, {channels}, 1, 1", f"5, {channels}, 1, 1"):
        assert f'element_type="i8" shape="{shape}"' not in xml


def test_a_scan_takes_its_class_scores_from_the_map(bundle: Bundle, model: GBAD, tmp_path: Path) -> None:
    pictures = tiny.pictures(3, seed=6)
    for number, pixels in enumerate(pictures):
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    settings = ScanSettings(
        sources=(str(tmp_path),), model=bundle.path, threads=1, device="cpu", decision="classes"
    )
    rows = list(Scan(settings).rows())
    with torch.no_grad():
        logits = model.features(torch.from_numpy(pictures))[1]
    for row, wanted in zip(rows, logits, strict=True):
        found = [row.p_gun, row.p_knife, row.p_wrench, row.p_pliers, row.p_scissors]
        np.testing.assert_allclose(found, wanted.sigmoid().numpy(), atol=1e-4)  # pyright: ignore
        assert row.anomaly_score == pytest.approx(float(wanted.max()), abs=1e-3)


@pytest.mark.slow
def test_another_input_size_gives_a_bundle_too() -> None:
    size = 96
    network, _ = export_graphs(torch_bundle.model(replace(torch_bundle.PEAKED, input_size=size)))
    ports = {"x": (FLOAT, (None, 32)), "logits": (FLOAT, (None, 5))}
    check_graph(network, "network.onnx", {"pixels": (UINT8, (None, size, size, 3))}, ports)
