"""The graphs of a bundle: equal to torch, self-contained, and each row its own."""

import numpy as np
import onnx
import pytest
import torch

from gbad_batch.engine.model.architecture import Architecture
from gbad_batch.engine.model.gbad import GBAD, round_to_half
from gbad_batch.engine.runtime.runtime_openvino import open_core
from gbad_batch.export.to_onnx import export_graphs

ARCHITECTURE = Architecture(backbone="test_resnet", input_size=64)
IMAGES = 19


@pytest.fixture(scope="module")
def model() -> GBAD:
    """Make a model with statistics of its own, as training leaves them."""
    torch.manual_seed(0)
    torch.set_num_threads(1)
    model = GBAD(ARCHITECTURE).eval().requires_grad_(False)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    model.bigan.mean.uniform_(0, 0.1)
    model.bigan.std.uniform_(0.05, 0.2)
    round_to_half(model)
    return model


@pytest.fixture(scope="module")
def graphs(model: GBAD) -> tuple[bytes, bytes]:
    return export_graphs(model)


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (IMAGES, 64, 64, 3), dtype=np.uint8)


def compiled(graph: bytes, **properties: object):
    core = open_core()
    return core.compile_model(
        core.read_model(graph), "CPU", {"INFERENCE_PRECISION_HINT": "f32", **properties}
    )


def test_openvino_agrees_with_torch(model: GBAD, graphs: tuple[bytes, bytes], pixels: np.ndarray):
    wanted = [each.numpy() for each in model(torch.from_numpy(pixels))]
    network, bigan = (compiled(graph) for graph in graphs)
    x, logits = network(pixels).values()
    losses = bigan(x).values()
    for got, reference in zip([x, logits, *losses], wanted, strict=True):
        assert np.abs(got - reference).max() <= 2e-5 * np.abs(reference).max()


@pytest.mark.parametrize("hint", ["LATENCY", "THROUGHPUT"])
@pytest.mark.parametrize("threads", [1, 2])
def test_rows_are_bit_equal_whatever_the_batch(
    graphs: tuple[bytes, bytes], pixels: np.ndarray, hint, threads
):
    """One dynamic-batch model: batch size, position, threads and hint change no bit of an image's outputs."""

    def run(network, bigan, batch: int) -> list[np.ndarray]:
        parts = []
        for start in range(0, IMAGES, batch):
            features = [each.copy() for each in network(pixels[start : start + batch]).values()]
            parts.append([*features, *(each.copy() for each in bigan(features[0]).values())])
        return [np.concatenate(part) for part in zip(*parts, strict=True)]

    wanted = run(*(compiled(graph) for graph in graphs), batch=IMAGES)
    properties = {"PERFORMANCE_HINT": hint, "INFERENCE_NUM_THREADS": threads}
    network, bigan = (compiled(graph, **properties) for graph in graphs)
    for batch in (1, 2, 3, 5, 8, 16):
        for got, reference in zip(run(network, bigan, batch), wanted, strict=True):
            assert np.array_equal(got, reference)


def test_graphs_hold_standard_operators_and_all_their_weights(graphs: tuple[bytes, bytes]):
    for graph in graphs:
        proto = onnx.load_from_string(graph)
        onnx.checker.check_model(proto, full_check=True)
        assert {each.domain for each in proto.opset_import} == {""}
        assert {node.domain for node in proto.graph.node} == {""}
        assert not proto.functions
        assert all(tensor.data_location == onnx.TensorProto.DEFAULT for tensor in proto.graph.initializer)
        assert b".py" not in graph  # no trace of the machine that exported


def test_weights_are_stored_in_half_and_statistics_exactly(model: GBAD, graphs: tuple[bytes, bytes]):
    stored = {}
    for tensor in onnx.load_from_string(graphs[0]).graph.initializer:
        stored[tensor.name.removesuffix(".half")] = onnx.numpy_helper.to_array(tensor)
    statistics = weights = 0
    for key, value in model.state_dict().items():
        array = stored.get(f"model.{key}")
        if array is None:
            continue
        assert np.array_equal(array.astype(np.float32), value.numpy()), key
        statistics += array.dtype == np.float32 and "running" in key
        weights += array.dtype == np.float16
    assert statistics >= 30
    assert weights >= 40
    assert len(graphs[0]) < 6_600_000


@pytest.mark.slow  # it traces both graphs again
def test_the_same_model_gives_the_same_bytes(model: GBAD, graphs: tuple[bytes, bytes]):
    assert export_graphs(model) == graphs
