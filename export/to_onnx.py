"""From the torch model to the two ONNX graphs of a bundle, each checked against torch.

The graphs use only operators of the standard ONNX domain, are one self-contained file each, and compute in
float32. Weights that float16 holds exactly are stored in it and cast when the graph is loaded: half the size,
the same values.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import onnxscript.optimizer
import onnxscript.rewriter
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxscript.rewriter.rules.common import fuse_pad_into_conv_rule
from torch import Tensor, nn

from ..engine.bundle.manifest import CLASS_MAP, READ_MAPS
from ..engine.errors import Stopped
from ..engine.model.bigan import BiGAN
from ..engine.model.gbad import GBAD
from ..engine.runtime.runtime_openvino import DEVICE, compile_properties, open_core
from ..engine.system.machine import usable_cores

OPSET = 20
LARGEST_BATCH = 1024  # upper bound for tracing; nothing in the graphs depends on it
TOLERANCE = 1e-4  # relative to the largest value of an output, graph against torch
WORTH_HALVING = 64  # elements: below that a cast costs more than it saves


def export_graphs(model: GBAD) -> tuple[bytes, bytes]:
    """Return network.onnx (uint8 `pixels` [N, S, S, 3] -> `x` [N, 1024], `logits` [N, 5]) and bigan.onnx.

    bigan.onnx is that of `export_bigan`. A class map is no output of network.onnx, so a scan does not copy
    it; its tensor has the name CLASS_MAP, and whoever explains an image can make it one. The model is put
    into evaluation mode. Raises Stopped if a graph does not agree with torch.
    """
    model.eval()
    size, features = model.architecture.input_size, model.architecture.features
    pixels = sample_pixels(size)
    with torch.no_grad():
        x, _ = model.features(pixels)
        inner = (CLASS_MAP, *READ_MAPS) if model.architecture.has_map else ()
        network = export(_Network(model), pixels, "pixels", ("x", "logits", *inner), inner=inner)
        assert x.shape[1] == features
        _check(network, _Network(model), pixels[:1], "network.onnx")
    return network, export_bigan(model.bigan, x)


@torch.no_grad()
def export_bigan(bigan: BiGAN, x: Tensor) -> bytes:
    """Return bigan.onnx: `x` [N, features] -> `reconstruction_loss` [N] and `feature_matching_loss` [N].

    The graph is traced and checked on two or more feature vectors x. Raises Stopped if it does not agree with
    torch.
    """
    graph = export(bigan.eval(), x, "x", ("reconstruction_loss", "feature_matching_loss"))
    _check(graph, bigan, x, "bigan.onnx")
    return graph


class _Network(nn.Module):
    """The network's part of the model, with the normalization of pixels inside: x and logits.

    With a class map, that and the maps that it reads follow.
    """

    def __init__(self, model: GBAD):
        super().__init__()
        self.model = model
        self.eval()

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        maps = self.model.maps(pixels)
        found = self.model.network.predict(maps)
        both = (found.x, found.logits)
        return both if found.class_map is None else (*both, found.class_map, *maps[-len(READ_MAPS) :])


def sample_pixels(size: int) -> Tensor:
    """Return two smooth pictures, uint8 [2, size, size, 3], for tracing and for the check."""
    lines = torch.arange(size) / size
    waves = torch.stack(
        [torch.outer(torch.sin(7 * lines * k), torch.cos(5 * lines * k)) for k in range(1, 7)]
    )
    return ((waves + 1) * 127).reshape(2, 3, size, size).permute(0, 2, 3, 1).to(torch.uint8).contiguous()


def export(
    module: nn.Module,
    sample: Tensor,
    name: str,
    outputs: Sequence[str],
    *,
    inner: Sequence[str] = (),
    folded: bool = False,
) -> bytes:
    """Return the ONNX graph of a module with one input and a dynamic batch, without traces of this machine.

    Outputs that are `inner` keep their name in the graph but are none of its outputs. `folded` folds batch
    norms into convolutions and keeps the type of every weight.
    """
    program = torch.onnx.export(
        module,
        (sample,),
        dynamo=True,
        dynamic_shapes=({0: torch.export.Dim("batch", min=1, max=LARGEST_BATCH)},),
        input_names=[name],
        output_names=list(outputs),
        opset_version=OPSET,
        # the exporter's own optimization folds batch norms, and folded weights are not exact in float16
        optimize=folded,
        verbose=False,
    )
    assert program is not None
    if not folded:
        onnxscript.optimizer.fold_constants(program.model)
        # networks of TensorFlow pad one side more than the other, by an operator of its own
        onnxscript.rewriter.rewrite(program.model, [fuse_pad_into_conv_rule])
        onnxscript.optimizer.remove_unused_nodes(program.model)
    proto = program.model_proto
    for output in [output for output in proto.graph.output if output.name in inner]:
        proto.graph.output.remove(output)
    if not folded:
        _halve(proto)
    _strip(proto)
    onnx.checker.check_model(proto, full_check=True)
    return proto.SerializeToString(deterministic=True)


def _halve(proto: onnx.ModelProto) -> None:
    """Store as float16, with a cast, each float32 weight that float16 holds exactly."""
    casts = []
    for tensor in proto.graph.initializer:
        array = numpy_helper.to_array(tensor)
        half = array.astype(np.float16) if array.dtype == np.float32 else array
        if array.dtype != np.float32 or array.size < WORTH_HALVING or not np.array_equal(half, array):
            continue
        name = tensor.name
        tensor.CopyFrom(numpy_helper.from_array(half, f"{name}.half"))
        casts.append(helper.make_node("Cast", [f"{name}.half"], [name], f"{name}.cast", to=TensorProto.FLOAT))
    nodes = [*casts, *proto.graph.node]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)


def _strip(proto: onnx.ModelProto) -> None:
    """Drop traces of the exporting machine (stack traces, paths) and inferred shapes."""
    del proto.graph.value_info[:]
    del proto.metadata_props[:]
    graph: Any = proto.graph
    for message in [graph, *graph.node, *graph.input, *graph.output, *graph.initializer]:
        del message.metadata_props[:]
        message.doc_string = ""


def _check(graph: bytes, module: nn.Module, sample: Tensor, name: str) -> None:
    """Compare a graph with torch by OpenVINO.

    ONNX's own evaluator is not used, because it takes minutes for depthwise convolutions.
    """
    core = open_core()
    compiled = core.compile_model(core.read_model(graph), DEVICE, compile_properties(usable_cores()))
    outputs = compiled([sample.numpy()])
    for port, wanted in zip(compiled.outputs, module(sample), strict=False):  # inner tensors follow
        reference = wanted.numpy()
        difference = np.abs(outputs[port] - reference).max() / max(np.abs(reference).max(), 1e-6)
        if not difference <= TOLERANCE:
            raise Stopped(
                f"{name} differs from the model that it was exported from by {difference:.1e} (relative), "
                f"above {TOLERANCE:g}: try another version of torch or onnxscript"
            )
