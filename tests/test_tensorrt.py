"""TensorRT's half: what can be shown without it, graphs and refusals; the rest where it and a GPU are."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from contextlib import closing
from copy import deepcopy
from itertools import product
from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny_bundle as tiny
import torch
import torch_bundle
from elf import write_library
from numpy.typing import NDArray
from onnx import TensorProto
from onnx.reference import ReferenceEvaluator
from stubs import TYPING, parameters

from gbad_batch.engine.bundle import Bundle, write_bundle
from gbad_batch.engine.errors import Refused
from gbad_batch.engine.model.gbad import GBAD
from gbad_batch.engine.model.mixed_precision import losses_of
from gbad_batch.engine.runtime import OUTPUTS, Engine, open_engine
from gbad_batch.engine.runtime.cache import TIMING, EngineCache, cache_key
from gbad_batch.engine.runtime.runtime_tensorrt import (
    BIGAN,
    HEADS,
    MAPS,
    PAIRS,
    TRUNK,
    Forward,
    open_plan,
    version,
)
from gbad_batch.export import engine_for
from gbad_batch.export.to_tensorrt import (
    FORMS,
    PlanBuilder,
    Timings,
    bigan_graph,
    build,
    summed_means,
    trunk_graph,
)
from gbad_batch.kernels.border_pool import border_means

# Operators met here, with the types that TensorRT's ONNX parser documents for them: docs/operators.md of
# onnx/onnx-tensorrt, release 10.1, the newest that could be read; types that no graph here has are left out.
FLOATS = {TensorProto.FLOAT, TensorProto.FLOAT16}
INTEGERS = {TensorProto.INT32, TensorProto.INT64}
DOCUMENTED = {
    **dict.fromkeys(("Add", "Div", "Mul", "Relu", "Sub"), FLOATS | INTEGERS),
    **dict.fromkeys(("AveragePool", "Clip", "Conv", "GlobalAveragePool", "LeakyRelu", "MaxPool"), FLOATS),
    "Cast": FLOATS | INTEGERS | {TensorProto.UINT8, TensorProto.BOOL},
    **dict.fromkeys(("Concat", "Slice", "Squeeze", "Transpose", "Unsqueeze"), FLOATS | INTEGERS),
    **dict.fromkeys(("ReduceMax", "ReduceSum", "Reshape"), FLOATS | INTEGERS),
    **dict.fromkeys(("Exp", "Log"), FLOATS),
    "Sigmoid": FLOATS,
}
OPSETS = range(9, 21)
CONSTANTS = {"Slice": (3,)}  # inputs: axes, and the shape of Reshape
CONSTANTS |= dict.fromkeys(("ReduceMax", "ReduceSum", "Reshape", "Squeeze", "Unsqueeze"), (1,))
UNDILATED = {"AveragePool", "MaxPool"}  # in two or three dimensions, and of a maximum only the values
HALF = 0.02  # relative difference of a loss, half precision against float32


@pytest.fixture(
    scope="module",
    params=[
        pytest.param(torch_bundle.ARCHITECTURE, id="fc5"),
        # ONNX's evaluator is slow in its depthwise convolutions
        pytest.param(torch_bundle.MAPPED, id="map", marks=pytest.mark.slow),
    ],
)
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("bundles") / "small"
    return write_bundle(folder, torch_bundle.manifest(request.param), torch_bundle.files(request.param))


@pytest.fixture(scope="module")
def model(bundle: Bundle) -> GBAD:
    form = bundle.manifest.preprocessing
    return GBAD.from_arrays(bundle.manifest.architecture, bundle.tensors(), form.mean, form.std)


@pytest.fixture(scope="module")
def half(bundle: Bundle) -> dict[str, bytes]:
    """Graphs in half precision: the trunk in each form, and the BiGAN."""
    return {form: trunk_graph(bundle, "fp16", form) for form in FORMS} | {
        "bigan": bigan_graph(bundle, "fp16")
    }


def types(graph: bytes) -> dict[str, int]:
    """Element type of every tensor of a graph, as ONNX infers them."""
    inferred = onnx.shape_inference.infer_shapes(onnx.load_from_string(graph), strict_mode=True).graph
    ports = [*inferred.input, *inferred.output, *inferred.value_info]
    weights = {tensor.name: tensor.data_type for tensor in inferred.initializer}
    return weights | {port.name: port.type.tensor_type.elem_type for port in ports}


@pytest.mark.parametrize("part", [*FORMS, "bigan"])
def test_graphs_hold_what_tensorrts_parser_documents(half: dict[str, bytes], part: str) -> None:
    proto, found = onnx.load_from_string(half[part]), types(half[part])
    constants = {tensor.name for tensor in proto.graph.initializer}
    assert [(each.domain, each.version in OPSETS) for each in proto.opset_import] == [("", True)]
    assert not proto.functions
    for node in proto.graph.node:
        assert node.domain == ""
        assert node.op_type in DOCUMENTED
        places = CONSTANTS.get(node.op_type, ())
        assert {node.input[i] for i in places} <= constants
        values = [found[name] for name in node.input[: 1 if places else None] if name]
        assert set(values) <= DOCUMENTED[node.op_type], node.op_type
        assert len(set(values)) == 1, node.op_type  # strongly typed: no operator joins two types
        if node.op_type in UNDILATED:
            assert {each.name: list(each.ints) for each in node.attribute}.get("dilations", [1, 1]) == [1, 1]
            assert len(node.output) == 1


def test_bytes_are_nothing_but_the_input(half: dict[str, bytes]) -> None:
    """TensorRT takes uint8 at the edge of a network alone."""
    for form in FORMS:
        graph = onnx.load_from_string(half[form]).graph
        assert [name for name, kind in types(half[form]).items() if kind == TensorProto.UINT8] == ["pixels"]
        assert {node.op_type for node in graph.node if "pixels" in node.input} == {"Cast"}


def test_everything_that_costs_is_in_half_precision(bundle: Bundle, half: dict[str, bytes]) -> None:
    """Pooling and heads are float32, wherever they are computed: four levels of three, and FC5 or a map."""
    last = 6 if bundle.manifest.architecture.has_map else 1
    heads = {"maps": 0, "bigan": 0, "heads": 12 + last}
    for part, graph in half.items():
        found = types(graph)
        convolutions = [n for n in onnx.load_from_string(graph).graph.node if n.op_type == "Conv"]
        kinds = [found[node.output[0]] for node in convolutions]
        assert kinds.count(TensorProto.FLOAT16) > 10
        assert kinds.count(TensorProto.FLOAT) == heads[part]


def test_the_batch_is_free_and_ports_are_as_the_runner_expects(half: dict[str, bytes]) -> None:
    ports = {"maps": ("pixels", MAPS), "heads": ("pixels", HEADS), "bigan": ("x", PAIRS)}
    for part, (entry, outputs) in ports.items():
        graph = onnx.load_from_string(half[part]).graph
        assert [port.name for port in graph.input] == [entry]
        assert tuple(port.name for port in graph.output) == outputs
        for port in (*graph.input, *graph.output):
            assert port.type.tensor_type.shape.dim[0].dim_param == "batch"


def scored(trunk: bytes, bigan: bytes, model: GBAD, pixels: NDArray[np.uint8]) -> dict[str, NDArray]:
    """Score pixels as the runner does, ONNX's reference evaluator in the place of TensorRT."""
    evaluator = ReferenceEvaluator(trunk)
    found = [torch.tensor(np.asarray(each)) for each in evaluator.run(None, {"pixels": pixels})]
    if tuple(evaluator.output_names) == MAPS:
        found = model.network.heads([each.permute(0, 3, 1, 2) for each in found], border_means)
    pairs = ReferenceEvaluator(bigan).run(list(PAIRS), {"x": found[0].numpy()})
    both = losses_of(torch.tensor(np.asarray(each)) for each in pairs)
    return {name: each.numpy() for name, each in zip(OUTPUTS, (*found, *both), strict=True)}


@pytest.mark.parametrize(
    ("form", "trunk", "bigan", "most"),
    [
        ("maps", "fp16", "fp16", HALF),
        ("heads", "fp16", "fp32", HALF),  # as where half precision does not agree in the BiGAN
        ("maps", "fp32", "fp32", 1e-4),
        pytest.param("heads", "fp32", "fp32", 1e-4, marks=pytest.mark.slow),
    ],
)
def test_graphs_agree_with_the_model(
    bundle: Bundle, model: GBAD, half: dict[str, bytes], form: str, trunk: str, bigan: str, most: float
) -> None:
    first = half[form] if trunk == "fp16" else trunk_graph(bundle, trunk, form)
    second = half["bigan"] if bigan == "fp16" else bigan_graph(bundle, bigan)
    pixels = tiny.pictures(2, seed=12)
    with torch.no_grad():
        wanted = dict(zip(OUTPUTS, model(torch.from_numpy(pixels)), strict=True))
        found = scored(first, second, model, pixels)
    for name in OUTPUTS:
        assert found[name].dtype == np.float32
        reference = wanted[name].numpy()
        assert np.abs(found[name] - reference).max() <= most * np.abs(reference).max(), name


@pytest.mark.parametrize("side", [2, 3, 8])
def test_means_by_slices_are_those_of_the_kernel(side: int) -> None:
    torch.manual_seed(side)
    features = torch.randn(2, 5, side, side).half()
    torch.testing.assert_close(summed_means(features), border_means(features))


@pytest.mark.parametrize("failing", [["maps"], ["heads"], ["maps", "heads"]])
def test_a_form_that_fails_when_it_is_timed_leaves_the_other(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, failing: list[str]
) -> None:
    """As a capture that CUDA refuses; building and timing are stood in for, since both need a GPU."""

    def milliseconds(_: PlanBuilder, trunk: bytes, __: bytes) -> float:
        if trunk.decode() in failing:
            raise RuntimeError("Cannot copy between CPU and CUDA tensors during CUDA graph capture")
        return 1.0

    monkeypatch.setattr(PlanBuilder, "bigan", lambda _, precision: precision.encode())
    monkeypatch.setattr(PlanBuilder, "trunk", lambda _, form: form.encode())
    monkeypatch.setattr(PlanBuilder, "milliseconds", milliseconds)
    engine = Engine("tensorrt", "11.1", "cuda:0", "fp16", 64, 32, bundle.hash, "key", b"")
    left = set(FORMS).difference(failing)
    if not left:
        with pytest.raises(Refused, match=r"cannot run the model on cuda:0 .*maps.*heads.*--engine inductor"):
            next(build(bundle, engine, "a GPU", None))
        return
    built = next(build(bundle, engine, "a GPU", None))
    assert {built.how["trunk"]} == built.how["milliseconds"].keys() == left


def test_an_engine_is_not_opened_where_no_gpu_is(bundle: Bundle) -> None:
    """TensorRT's Runtime crashes the process there; torch is asked before it is made."""
    if torch.cuda.is_available():
        pytest.skip("a GPU is here")
    engine = Engine("tensorrt", "11.1", "cuda:0", "fp16", 64, 32, bundle.hash, "key", b"")
    with pytest.raises(Refused, match="finds no GPU"):
        open_engine(engine)


MISSING = "import json, stubs; print(json.dumps(stubs.unknown_names('tensorrt')))"
# what the bindings import of TensorRT's libraries, which cannot be had from the package index
LIBRARIES = {
    "libnvinfer.so.11": (
        "createInferBuilder_INTERNAL",
        "createInferRefitter_INTERNAL",
        "createInferRuntime_INTERNAL",
        "getBuilderPluginRegistry",
        "getPluginRegistry",
    ),
    "libnvinfer_plugin.so.11": ("initLibNvInferPlugins",),
    "libnvonnxparser.so.11": (
        "createNvOnnxParserRefitter_INTERNAL",
        "createNvOnnxParser_INTERNAL",
        "getNvOnnxParserVersion",
    ),
}


def test_what_the_type_checker_knows_of_tensorrt_is_there(tmp_path: Path) -> None:
    """The real bindings, in a process of their own, over empty libraries where TensorRT is not here."""
    search = [Path(__file__).parent]
    if importlib.util.find_spec("tensorrt") is None:
        bindings = importlib.util.find_spec("tensorrt_bindings")
        if bindings is None or not bindings.submodule_search_locations:
            pytest.skip("neither tensorrt nor tensorrt_cu13_bindings is installed")
        shutil.copytree(bindings.submodule_search_locations[0], tmp_path / "tensorrt")
        for name, functions in LIBRARIES.items():
            write_library(tmp_path / "tensorrt" / name, functions)
        search.append(tmp_path)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, search))}
    ran = subprocess.run([sys.executable, "-c", MISSING], env=environment, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert json.loads(ran.stdout) == []


def test_what_torch_tensorrt_is_given_has_a_name_there() -> None:
    """It swallows keywords that it does not know: these are read from its source, which needs no GPU."""
    stub = "torch_tensorrt/dynamo/__init__.pyi", "convert_exported_program_to_serialized_trt_engine"
    ours = parameters((TYPING / stub[0]).read_text(), stub[1])
    package = importlib.util.find_spec("torch_tensorrt")
    if package is None or not package.submodule_search_locations:
        pytest.skip("torch-tensorrt is not installed")
    root = Path(package.submodule_search_locations[0])
    theirs = parameters((root / "dynamo" / "_compiler.py").read_text(), stub[1])
    assert len(ours) > 10
    assert [name for name in ours if name not in theirs] == []
    source = (root / "_Input.py").read_text()
    taken = parameters((TYPING / "torch_tensorrt/__init__.pyi").read_text(), "__init__")
    assert [name for name in taken if name != "self" and f'"{name}"' not in source] == []


@pytest.mark.gpu
@pytest.mark.parametrize("backend", ["tensorrt", "inductor"])
def test_an_engine_on_a_gpu_agrees_with_openvino(bundle: Bundle, backend: str) -> None:
    if not torch.cuda.is_available() or (backend == "tensorrt" and not importlib.util.find_spec(backend)):
        pytest.skip(f"no GPU, or no {backend}, is here")
    engine = engine_for(bundle, device="cuda", engine=backend)
    pixels = tiny.pictures(300, seed=13)  # more than the largest graph holds: both slots work
    with (
        closing(open_engine(engine)) as runner,
        closing(open_engine(engine_for(bundle, device="cpu"))) as cpu,
    ):
        found, wanted = runner(pixels), cpu(pixels)
    for name in ("reconstruction_loss", "feature_matching_loss"):
        np.testing.assert_allclose(getattr(found, name), getattr(wanted, name), rtol=HALF)


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available() or not importlib.util.find_spec("tensorrt"),
    reason="needs TensorRT on a GPU",
)
def test_every_form_agrees_with_the_model(bundle: Bundle, model: GBAD, tmp_path: Path) -> None:
    """Also those that timing, or the gate, passes over."""
    engine = Engine("tensorrt", version(), "cuda:0", "fp16", 64, 32, bundle.hash, "key", b"")
    with closing(EngineCache.open(tmp_path / "cache") or pytest.fail("no cache")) as kept:
        plans = PlanBuilder(bundle, engine, Timings(kept, cache_key({"timings": "test"})))
        trunks = {form: plans.trunk(form) for form in FORMS}
        bigans = {precision: plans.bigan(precision) for precision in ("fp16", "fp32")}
        assert [each.name.partition(".")[2] for each in kept.contents()] == [TIMING]
    pixels = torch.from_numpy(tiny.pictures(5, seed=14))
    with torch.no_grad():
        wanted = model(pixels)
    for trunk, bigan in product(trunks.values(), bigans.values()):
        opened = open_plan(trunk, TRUNK, engine), open_plan(bigan, BIGAN, engine)
        forward = Forward(deepcopy(model).cuda(), *opened, len(pixels))
        with torch.cuda.stream(torch.cuda.Stream()), torch.inference_mode():
            found = [each.cpu() for each in forward(pixels.cuda())]
        for got, reference in zip(found, wanted, strict=True):
            assert (got - reference).abs().max() <= HALF * reference.abs().max()


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available() or not importlib.util.find_spec("tensorrt"),
    reason="needs TensorRT on a GPU",
)
def test_the_record_says_what_was_chosen(bundle: Bundle, tmp_path: Path) -> None:
    engine_for(bundle, device="cuda", engine="tensorrt", cache_dir=tmp_path / "cache")
    (entry,) = (tmp_path / "cache").glob("*.engine")
    built = json.loads(entry.read_bytes().partition(b"\n")[0])["built"]
    assert built["milliseconds"].keys() >= FORMS.keys()
    assert built["trunk"] in built["milliseconds"]
    assert built["bigan"] in ("fp16", "fp32")
