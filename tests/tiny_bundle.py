"""A small bundle for tests: real in every part, its networks a few convolutions with random weights."""

from collections.abc import Mapping
from contextlib import closing
from functools import cache
from typing import Any

import numpy as np
import onnx
import simplejpeg
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator
from safetensors.numpy import save

from gbad_batch.engine.bundle import pack_gate
from gbad_batch.engine.bundle.manifest import CLASS_MAP
from gbad_batch.engine.model.architecture import MAP_MAX
from gbad_batch.engine.model.decision import Decision
from gbad_batch.engine.row import THREATS
from gbad_batch.engine.runtime import OUTPUTS, Engine, open_engine

SIZE, CHANNELS, FEATURES, LATENT = 64, 16, 32, 4
GATE_IMAGES = 24
OPSETS = [helper.make_opsetid("", 20)]


@cache
def weights() -> dict[str, NDArray[np.float32]]:
    """Random weights by name, on float16's grid."""
    random = np.random.default_rng(11)

    def convolution(out: int, inputs: int, kernel: int) -> NDArray[np.float32]:
        spread = (2 / (inputs * kernel * kernel)) ** 0.5
        return random.normal(0, spread, (out, inputs, kernel, kernel)).astype(np.float16).astype(np.float32)

    return {
        "network.stem": convolution(CHANNELS, 3, 3),
        "network.body": convolution(CHANNELS, CHANNELS, 3),
        "network.fc": convolution(FEATURES, CHANNELS, 1),
        "network.fc5": convolution(len(THREATS), FEATURES, 1),
        "bigan.encoder": convolution(LATENT, FEATURES, 1),
        "bigan.generator": convolution(FEATURES, LATENT, 1),
        "bigan.f_d": convolution(8, FEATURES, 1),
    }


@cache
def network() -> bytes:
    """Graph of pixels -> x, logits."""
    nodes = [
        helper.make_node("Transpose", ["pixels"], ["nchw"], perm=[0, 3, 1, 2]),
        helper.make_node("Cast", ["nchw"], ["float"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["float", "scale"], ["scaled"]),
        helper.make_node("Sub", ["scaled", "shift"], ["images"]),
        *_convolution("images", "network.stem", "c1", strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c1"], ["r1"]),
        *_convolution("r1", "network.body", "c2", strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["c2"], ["r2"]),
        helper.make_node("GlobalAveragePool", ["r2"], ["pooled"]),
        *_convolution("pooled", "network.fc", "fc"),
        helper.make_node("Relu", ["fc"], ["x4"]),
        helper.make_node("Flatten", ["x4"], ["x"]),
        *_convolution("x4", "network.fc5", "fc5"),
        helper.make_node("Flatten", ["fc5"], ["logits"]),
    ]
    constants = {
        "scale": np.full((1, 3, 1, 1), 1 / 64, np.float32),
        "shift": np.full((1, 3, 1, 1), 2, np.float32),
    }
    names = [name for name in weights() if name.startswith("network.")]
    inputs = {"pixels": (TensorProto.UINT8, ["N", SIZE, SIZE, 3])}
    outputs = {"x": (TensorProto.FLOAT, ["N", FEATURES]), "logits": (TensorProto.FLOAT, ["N", len(THREATS)])}
    return _model("network", nodes, inputs, outputs, constants, names)


@cache
def mapped_network() -> bytes:
    """Graph of pixels -> x, logits whose logits are the maximum of a class map [N, 5, S/4, S/4]."""
    model = onnx.load_from_string(network())
    for node in [node for node in model.graph.node if node.output[0] in ("fc5", "logits")]:
        model.graph.node.remove(node)
    model.graph.node.extend(
        [
            helper.make_node("Conv", ["r2", "places"], [CLASS_MAP]),
            helper.make_node("ReduceMax", [CLASS_MAP, "sides"], ["logits"], keepdims=0),
        ]
    )
    places = np.random.default_rng(13).normal(0, 0.5, (len(THREATS), CHANNELS, 1, 1)).astype(np.float32)
    constants = {"places": places, "sides": np.array([2, 3], np.int64)}
    model.graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in constants.items())
    return model.SerializeToString(deterministic=True)


@cache
def network_without_numbers() -> bytes:
    """Graph of pixels -> x, logits that divides 0 by 0 on a black image."""
    model = onnx.load_from_string(network())
    for node in model.graph.node:
        if list(node.output) == ["x"]:
            node.output[0] = "plain"
    model.graph.node.extend(
        [
            helper.make_node("GlobalAveragePool", ["float"], ["mean"]),
            helper.make_node("Conv", ["mean", "sum"], ["light"]),
            helper.make_node("Div", ["light", "light"], ["one"]),
            helper.make_node("Flatten", ["one"], ["ones"]),
            helper.make_node("Mul", ["plain", "ones"], ["x"]),
        ]
    )
    model.graph.initializer.append(numpy_helper.from_array(np.ones((1, 3, 1, 1), np.float32), "sum"))
    return model.SerializeToString()


@cache
def network_that_fails(on: str = "black") -> bytes:
    """Graph of pixels -> x, logits that no device can run on a batch with a black (or any flat) image."""
    model = onnx.load_from_string(network())
    for node in model.graph.node:
        if list(node.output) == ["x"]:
            node.output[0] = "plain"
    model.graph.node.extend(
        [
            helper.make_node("ReduceMax", ["float", "inside"], ["brightest"], keepdims=0),
            helper.make_node("ReduceMin", ["float", "inside"], ["dimmest"], keepdims=0),
            helper.make_node("Sub", ["brightest", "dimmest"], ["range"]),
            helper.make_node(
                "ReduceMin", ["brightest" if on == "black" else "range", "first"], ["darkest"], keepdims=1
            ),
            helper.make_node("Sign", ["darkest"], ["is_lit"]),
            helper.make_node("Mul", ["is_lit", "less"], ["some"]),
            helper.make_node("Add", ["some", "two"], ["width"]),  # 32 features of each image, or else 2
            helper.make_node("Cast", ["width"], ["columns"], to=TensorProto.INT64),
            helper.make_node("Shape", ["plain"], ["whole"]),
            helper.make_node("Gather", ["whole", "first"], ["rows"]),
            helper.make_node("Concat", ["rows", "columns"], ["shape"], axis=0),
            helper.make_node("Reshape", ["plain", "shape"], ["again"]),
            helper.make_node("Reshape", ["again", "whole"], ["x"]),
        ]
    )
    model.graph.initializer.extend(
        [
            numpy_helper.from_array(np.array([1, 2, 3], np.int64), "inside"),
            numpy_helper.from_array(np.array([0], np.int64), "first"),
            numpy_helper.from_array(np.array([FEATURES - 2], np.float32), "less"),
            numpy_helper.from_array(np.array([2], np.float32), "two"),
        ]
    )
    return model.SerializeToString()


@cache
def bigan() -> bytes:
    """Graph of x -> reconstruction_loss, feature_matching_loss."""
    nodes = [
        helper.make_node("Sub", ["x", "mean"], ["s2"]),
        helper.make_node("Reshape", ["s2", "shape"], ["s"]),
        *_convolution("s", "bigan.encoder", "z"),
        *_convolution("z", "bigan.generator", "again"),
        helper.make_node("Sub", ["s", "again"], ["difference"]),
        helper.make_node("Abs", ["difference"], ["absolute"]),
        helper.make_node("ReduceMean", ["absolute", "axes"], ["reconstruction_loss"], keepdims=0),
        *_convolution("difference", "bigan.f_d", "f"),
        helper.make_node("ReduceL2", ["f", "axes"], ["feature_matching_loss"], keepdims=0),
    ]
    constants = {
        "mean": np.full(FEATURES, 0.1, np.float32),
        "shape": np.array([-1, FEATURES, 1, 1], np.int64),
        "axes": np.array([1, 2, 3], np.int64),
    }
    names = [name for name in weights() if name.startswith("bigan.")]
    losses = ("reconstruction_loss", "feature_matching_loss")
    inputs = {"x": (TensorProto.FLOAT, ["N", FEATURES])}
    outputs = {name: (TensorProto.FLOAT, ["N"]) for name in losses}
    return _model("bigan", nodes, inputs, outputs, constants, names)


def _convolution(source: str, weight: str, out: str, **attributes: Any) -> list[onnx.NodeProto]:
    """Make a convolution whose weights are stored as float16 with a cast."""
    cast = helper.make_node("Cast", [f"{weight}.half"], [weight], to=TensorProto.FLOAT)
    return [cast, helper.make_node("Conv", [source, weight], [out], **attributes)]


def _model(
    name: str,
    nodes: list[onnx.NodeProto],
    inputs: Mapping[str, tuple[int, list[Any]]],
    outputs: Mapping[str, tuple[int, list[Any]]],
    constants: Mapping[str, NDArray[Any]],
    names: list[str],
) -> bytes:
    entries = [helper.make_tensor_value_info(n, *port) for n, port in inputs.items()]
    results = [helper.make_tensor_value_info(n, *port) for n, port in outputs.items()]
    tensors = [numpy_helper.from_array(array, n) for n, array in constants.items()]
    tensors += [numpy_helper.from_array(weights()[n].astype(np.float16), f"{n}.half") for n in names]
    graph = helper.make_graph(nodes, name, entries, results, tensors)
    model = helper.make_model(graph, opset_imports=OPSETS, ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model.SerializeToString(deterministic=True)


def pictures(count: int, seed: int = 5) -> NDArray[np.uint8]:
    """Smooth random pictures [count, SIZE, SIZE, 3]."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (count, 8, 8, 3), dtype=np.uint8)
    return coarse.repeat(SIZE // 8, axis=1).repeat(SIZE // 8, axis=2)


def check_scores_of_images_alone(engine: Engine) -> None:
    """Check that batch size, position and threads change no bit of an image's outputs."""
    given = pictures(19, seed=9)

    def score(batch: int, threads: int, order: NDArray[np.intp] | None = None) -> dict[str, bytes]:
        pixels = given if order is None else given[order]
        with closing(open_engine(engine, threads)) as runner:
            parts = [runner(pixels[i : i + batch]) for i in range(0, len(pixels), batch)]
        found = {name: np.concatenate([getattr(part, name) for part in parts]) for name in OUTPUTS}
        back = slice(None) if order is None else np.argsort(order)
        return {name: array[back].tobytes() for name, array in found.items()}

    wanted = score(1, 1)
    for batch, threads in ((1, 2), (2, 1), (5, 2), (8, 1), (8, 3), (16, 2), (19, 1)):
        assert score(batch, threads) == wanted
    assert score(4, 2, np.random.default_rng(0).permutation(19)) == wanted


def reference(pixels: NDArray[np.uint8]) -> dict[str, NDArray[np.float32]]:
    """Give what ONNX's own reference evaluator makes of pixels: every output by name."""
    x, logits = ReferenceEvaluator(network()).run(None, {"pixels": pixels})  # type: ignore[misc]
    reconstruction, feature_matching = ReferenceEvaluator(bigan()).run(None, {"x": x})  # type: ignore[misc]
    return {
        "x": np.asarray(x),
        "logits": np.asarray(logits),
        "reconstruction_loss": np.asarray(reconstruction),
        "feature_matching_loss": np.asarray(feature_matching),
    }


def decisions() -> dict[str, Decision]:
    """Make the three decisions, each with a linear machine."""

    def linear(name: str, inputs: int) -> Decision:
        return Decision(name, np.zeros(inputs), np.ones(inputs), np.ones(inputs), np.zeros(1))

    return {"gbad": linear("gbad", 2), "classes": linear("classes", 1), "combined": linear("combined", 3)}


@cache
def files() -> dict[str, bytes]:
    """Every file of the bundle but bundle.json."""
    images = [simplejpeg.encode_jpeg(image, quality=95) for image in pictures(GATE_IMAGES)]
    found = reference(np.stack([simplejpeg.decode_jpeg(image) for image in images]))
    arrays: dict[str, NDArray[Any]] = {name: array.astype(np.float16) for name, array in weights().items()}
    arrays |= {
        "standardize.mean": np.zeros(FEATURES, np.float32),
        "standardize.std": np.ones(FEATURES, np.float32),
    }
    for decision in decisions().values():
        arrays |= decision.tensors()
    losses = found["reconstruction_loss"], found["feature_matching_loss"], found["logits"]
    return {
        "weights.safetensors": save(arrays),
        "network.onnx": network(),
        "bigan.onnx": bigan(),
        "gate.tar": pack_gate(images, *losses),
        "README.md": b"# tiny\n\nRandom weights, for tests.\n",
    }


@cache
def mapped_files() -> dict[str, bytes]:
    """Every file but bundle.json of a bundle with a class map; x and losses are those of the other."""
    images = [simplejpeg.encode_jpeg(image, quality=95) for image in pictures(GATE_IMAGES)]
    pixels = np.stack([simplejpeg.decode_jpeg(image) for image in images])
    found = reference(pixels)
    logits = ReferenceEvaluator(mapped_network()).run(["logits"], {"pixels": pixels})[0]  # type: ignore[index]
    gate = pack_gate(images, found["reconstruction_loss"], found["feature_matching_loss"], logits)
    return files() | {"network.onnx": mapped_network(), "gate.tar": gate}


@cache
def _scores() -> dict[str, NDArray[np.float64]]:
    found = reference(pictures(GATE_IMAGES, seed=7))
    losses = found["reconstruction_loss"], found["feature_matching_loss"], found["logits"]
    return {name: np.sort(decision.score(*losses)) for name, decision in decisions().items()}


def manifest() -> dict[str, Any]:
    """Give the content of bundle.json, without format and files; a fresh one at each call."""
    points = {name: [_point(scores, pfa) for pfa in (0.05, 0.25, 0.5)] for name, scores in _scores().items()}
    probability = np.linspace(0, 1, GATE_IMAGES).tolist()
    return {
        "name": "tiny",
        "created": "2026-01-01T00:00:00+00:00",
        "demo": True,
        "architecture": {
            "backbone": "regnetx_004",
            "fpn_channels": 8,
            "head_features": FEATURES // 4,
            "features": FEATURES,
            "input_size": SIZE,
            "latent": LATENT,
            "f_d": 8,
        },
        "preprocessing": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]},
        "classes": list(THREATS),
        "default_decision": "gbad",
        "operating_points": {"fp32": points},
        "benign_quantiles": {
            "fp32": {n: {"probability": probability, "score": s.tolist()} for n, s in _scores().items()}
        },
        "tolerance": {"loss_rel": 0.01, "score": 0.1, "flips": 0.005},
        "benign_score_std": {name: float(scores.std()) for name, scores in _scores().items()},
        "provenance": {"made": "by tests/tiny_bundle.py"},
    }


def mapped_manifest() -> dict[str, Any]:
    """Give the content of bundle.json for a class map, without format and files."""
    content = manifest()
    content["architecture"] |= {"head": MAP_MAX, "map_channels": CHANNELS}
    return content | {"name": "mapped"}


def _point(scores: NDArray[np.float64], pfa: float) -> dict[str, Any]:
    threshold = float(np.quantile(scores, 1 - pfa))
    return {
        "pfa": pfa,
        "threshold": threshold,
        "class_thresholds": [0.4, 0.45, 0.5, 0.55, 0.6 - pfa / 10],
        "interval": [pfa / 2, min(1.0, 2 * pfa)],
        "supported": pfa >= 0.25,
    }
