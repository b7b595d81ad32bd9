"""TensorRT's half: what can be shown without it, graphs and refusals; the rest where it and a GPU are."""

import importlib.util
from contextlib import closing

import numpy as np
import onnx
import pytest
import tiny_bundle as tiny
import torch
import torch_bundle
from numpy.typing import NDArray
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator
from stubs import unknown_names

from gbad_batch.engine.bundle import Bundle, write_bundle
from gbad_batch.engine.errors import Refused
from gbad_batch.engine.model.gbad import GBAD
from gbad_batch.engine.model.parts import losses_of
from gbad_batch.engine.runtime import OUTPUTS, Engine, open_engine
from gbad_batch.export import engine_for
from gbad_batch.export.to_tensorrt import MAPS, PAIRS, graphs
from gbad_batch.kernels.border_pool import border_means

# of the table of operators and types in the documentation of TensorRT's ONNX parser, those met here
DOCUMENTED = {
    *("Add", "AveragePool", "Cast", "Clip", "Concat", "Conv", "Div", "GlobalAveragePool", "LeakyRelu"),
    *("MaxPool", "Mul", "Relu", "Sigmoid", "Sub", "Transpose", "Unsqueeze"),
}
FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16}
HALF = 0.02  # relative difference of a loss, half precision against float32


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_bundle(
        tmp_path_factory.mktemp("bundles") / "small", torch_bundle.manifest(), torch_bundle.files()
    )


@pytest.fixture(scope="module")
def model(bundle: Bundle) -> GBAD:
    form = bundle.manifest.preprocessing
    return GBAD.from_arrays(bundle.manifest.architecture, bundle.tensors(), form.mean, form.std)


@pytest.fixture(scope="module")
def half(bundle: Bundle) -> tuple[bytes, bytes]:
    return graphs(bundle, "fp16")


def types(graph: bytes) -> dict[str, int]:
    """Element type of every tensor of a graph, as ONNX infers them."""
    inferred = onnx.shape_inference.infer_shapes(onnx.load_from_string(graph), strict_mode=True).graph
    ports = [*inferred.input, *inferred.output, *inferred.value_info]
    weights = {tensor.name: tensor.data_type for tensor in inferred.initializer}
    return weights | {port.name: port.type.tensor_type.elem_type for port in ports}


def test_graphs_hold_what_tensorrts_parser_documents(half: tuple[bytes, bytes]) -> None:
    for graph in half:
        proto, found = onnx.load_from_string(graph), types(graph)
        assert {node.op_type for node in proto.graph.node} <= DOCUMENTED
        assert {node.domain for node in proto.graph.node} == {""}
        assert not proto.functions
        for node in proto.graph.node:
            entries = [found[name] for name in node.input if name]
            if node.op_type == "Cast":  # the only one that takes uint8
                assert entries[0] in FLOATS | {TensorProto.UINT8}
            elif node.op_type == "Unsqueeze":
                assert entries[0] in FLOATS
            else:  # strongly typed: no operator joins two types
                assert len(set(entries)) == 1, node.op_type
                assert entries[0] in FLOATS, node.op_type


def test_everything_that_costs_is_in_half_precision(half: tuple[bytes, bytes]) -> None:
    for graph in half:
        found = types(graph)
        convolutions = [n for n in onnx.load_from_string(graph).graph.node if n.op_type == "Conv"]
        assert len(convolutions) > 10
        assert {found[node.output[0]] for node in convolutions} == {TensorProto.FLOAT16}


def test_the_batch_is_free_and_ports_are_as_the_runner_expects(half: tuple[bytes, bytes]) -> None:
    trunk, bigan = (onnx.load_from_string(graph).graph for graph in half)
    assert [port.name for port in trunk.input] == ["pixels"]
    assert tuple(port.name for port in trunk.output) == MAPS
    assert [port.name for port in bigan.input] == ["x"]
    assert tuple(port.name for port in bigan.output) == PAIRS
    for port in (*trunk.input, *trunk.output, *bigan.input, *bigan.output):
        assert port.type.tensor_type.shape.dim[0].dim_param == "batch"


def scored(graph: tuple[bytes, bytes], model: GBAD, pixels: NDArray[np.uint8]) -> dict[str, NDArray]:
    """Score pixels as the runner does, ONNX's reference evaluator in the place of TensorRT."""
    maps = ReferenceEvaluator(graph[0]).run(list(MAPS), {"pixels": pixels})
    x, logits = model.network.heads(
        [torch.tensor(np.asarray(each)).permute(0, 3, 1, 2) for each in maps], border_means
    )
    pairs = ReferenceEvaluator(graph[1]).run(list(PAIRS), {"x": x.numpy()})
    found = x, logits, *losses_of(torch.tensor(np.asarray(each)) for each in pairs)
    return {name: each.numpy() for name, each in zip(OUTPUTS, found, strict=True)}


@pytest.mark.parametrize(("precision", "most"), [("fp16", HALF), ("fp32", 1e-4)])
def test_graphs_agree_with_the_model(
    bundle: Bundle, model: GBAD, half: tuple[bytes, bytes], precision: str, most: float
) -> None:
    pixels = tiny.pictures(3, seed=12)
    with torch.no_grad():
        wanted = dict(zip(OUTPUTS, model(torch.from_numpy(pixels)), strict=True))
        found = scored(half if precision == "fp16" else graphs(bundle, precision), model, pixels)
    for name in OUTPUTS:
        assert found[name].dtype == np.float32
        reference = wanted[name].numpy()
        assert np.abs(found[name] - reference).max() <= most * np.abs(reference).max(), name


def test_an_engine_is_not_opened_where_no_gpu_is(bundle: Bundle) -> None:
    """TensorRT's Runtime crashes the process there; torch is asked before it is made."""
    if torch.cuda.is_available():
        pytest.skip("a GPU is here")
    engine = Engine("tensorrt", "11.1", "cuda:0", "fp16", 64, 32, bundle.hash, "key", b"")
    with pytest.raises(Refused, match="finds no GPU"):
        open_engine(engine)


def test_what_the_type_checker_knows_of_tensorrt_is_there() -> None:
    pytest.importorskip("tensorrt")
    assert unknown_names("tensorrt") == []


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["tensorrt", "inductor"])
def test_an_engine_on_a_gpu_agrees_with_openvino(bundle: Bundle, backend: str) -> None:
    if not torch.cuda.is_available() or (backend == "tensorrt" and not importlib.util.find_spec(backend)):
        pytest.skip(f"no GPU, or no {backend}, is here")
    engine = engine_for(bundle, device="cuda", engine=backend)
    pixels = tiny.pictures(300, seed=13)  # more than the largest graph holds: both lanes work
    with (
        closing(open_engine(engine)) as runner,
        closing(open_engine(engine_for(bundle, device="cpu"))) as cpu,
    ):
        found, wanted = runner(pixels), cpu(pixels)
    for name in ("reconstruction_loss", "feature_matching_loss"):
        np.testing.assert_allclose(getattr(found, name), getattr(wanted, name), rtol=HALF)
