"""From the network of a bundle to its INT8 network: an OpenVINO model that NNCF quantizes on images.

The convolutions of the backbone run in INT8: their weights are stored as INT8 with a scale per output
channel, and the graph holds the ranges of their inputs. The first convolution, which reads the pixels, stays
FP32; so do the additions of residual branches, whose noise would accumulate from block to block, and
everything after the last pooling. Only OpenVINO runs the result.
"""

import contextlib
import io
import logging
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import numpy as np

from ..engine.bundle.manifest import CLASS_MAP, READ_MAPS
from ..engine.errors import MissingExtra, Stopped, how_to_install
from ..engine.runtime.runtime_openvino import load_openvino, open_core

if TYPE_CHECKING:
    from numpy.typing import NDArray

OVERFLOW_FIXES = ("enable", "first_layer", "disable")
WORTH_HALVING = 64  # elements; for fewer a conversion costs more than it saves
CONVOLUTIONS = ("Convolution", "GroupConvolution")
POOLINGS = ("AvgPool", "ReduceMean")
# parts of the backbone that can stay FP32; projections are convolutions without an activation behind them
DEPTHWISE, PROJECTIONS = PARTS = ("depthwise", "projections")
ACTIVATIONS = "Swish HSwish Mish Gelu Elu PRelu Sigmoid HSigmoid Tanh SoftPlus Clamp".split()  # noqa: SIM905


def quantize(
    network: bytes,
    pixels: "Sequence[NDArray[np.uint8]]",
    overflow_fix: str = "enable",
    in_fp32: Sequence[str] = (),
) -> tuple[bytes, bytes]:
    """Return the XML and the constants of the INT8 form of network.onnx; the batch size stays dynamic.

    `pixels` [S, S, 3] are training images, on which the ranges of maps are measured; the same images in the
    same order give the same bytes on one machine. `overflow_fix` selects the weights that are limited to 7
    bits so that AVX2 and AVX-512 without VNNI, which sum products in 16 bits, cannot overflow: those of the
    `first_layer`, of all layers (`enable`) or of none (`disable`). `in_fp32` names the PARTS that are left as
    they are. Raises MissingExtra without NNCF, Stopped if NNCF cannot quantize the network.
    """
    nncf = load_nncf()
    model = prepared(network)
    kept = {*heads(model), first_convolution(model), *joins(model)}
    kept |= {name for part in in_fp32 for name in parts(model)[part]}
    ranges = nncf.quantization.range_estimator.RangeEstimatorParametersSet.MINMAX
    fix = {"first_layer": "FIRST_LAYER", "enable": "ENABLE", "disable": "DISABLE"}[overflow_fix]
    try:
        with contextlib.redirect_stdout(
            io.StringIO()
        ):  # its progress bars; standard output is for the summary
            quantized = nncf.quantize(
                model,
                nncf.Dataset([image[None] for image in pixels]),
                preset=nncf.QuantizationPreset.PERFORMANCE
                if _is_relu(model)
                else nncf.QuantizationPreset.MIXED,
                target_device=nncf.TargetDevice.CPU,
                subset_size=len(pixels),
                ignored_scope=nncf.IgnoredScope(names=sorted(kept)),
                advanced_parameters=nncf.AdvancedQuantizationParameters(
                    overflow_fix=nncf.OverflowFix[fix],
                    disable_bias_correction=True,  # it doubled the error of the features
                    # the full range: NNCF's default, the mean of the images' ranges, clips the few large
                    # activations that make a threat, and gave four times the noise in class scores
                    activations_range_estimator_params=ranges,
                ),
            )
    except (
        RuntimeError,
        ValueError,
        nncf.ValidationError,
        nncf.InternalError,
        nncf.UnsupportedModelError,
    ) as error:
        raise Stopped(
            f"NNCF cannot quantize the network ({str(error).strip().splitlines()[-1]}): use fp32"
        ) from error
    _halve(quantized)
    _name(quantized)
    return _serialize(quantized)


def load_nncf() -> ModuleType:
    """Import NNCF without the package that would report its use to its maker over the network."""
    load_openvino()
    absent = object()
    if "nncf" not in sys.modules and sys.modules.get("openvino_telemetry", absent) is absent:
        sys.modules["openvino_telemetry"] = None  # type: ignore[assignment] - makes its import fail
    try:
        import nncf
    except ImportError as error:
        raise MissingExtra(
            f"quantizing a network needs NNCF, which is not installed: {how_to_install('train')}"
        ) from error
    finally:
        if sys.modules.get("openvino_telemetry", absent) is None:
            del sys.modules["openvino_telemetry"]
    logging.getLogger("nncf").setLevel(logging.ERROR)  # it prints to standard output
    return nncf


def prepared(network: bytes) -> Any:
    """Read the graph with batch norms and other constants folded into the convolutions."""
    from openvino._offline_transformations import apply_moc_transformations

    model = open_core().read_model(network)
    apply_moc_transformations(model, cf=True, smart_reshape=False)
    _name(model)
    return model


def _name(model: Any) -> None:
    """Rename operators by their position: OpenVINO's own names count up through the process."""
    for number, node in enumerate(model.get_ordered_ops()):
        if node.get_type_name() not in ("Parameter", "Result"):
            node.set_friendly_name(f"{node.get_type_name()}_{number}")


def heads(model: Any) -> list[str]:
    """Return the names of the operators from the last pooling on every path to the outputs, inclusive.

    With the pyramid that pools first these are its poolings and the whole pyramid; with the plain one, the
    means over P2..P5 and what follows. A class map, whose path has no pooling before the last, is a head from
    where it reads the backbone's maps. Raises Stopped if a path to an output begins nowhere.
    """
    names: set[str] = set()
    waiting = [result.input_value(0).get_node() for result in model.get_results()]
    while waiting:
        node = waiting.pop()
        if node.get_friendly_name() in names or node.get_type_name() == "Constant":
            continue
        if node.output(0).get_names().intersection(READ_MAPS):
            continue
        if node.get_type_name() == "Parameter":
            raise Stopped(
                "the network has no pooling before its outputs, so the part that must stay FP32 is unknown: "
                "use fp32"
            )
        names.add(node.get_friendly_name())
        if node.get_type_name() not in POOLINGS:
            waiting += [source.get_node() for source in node.input_values()]
    return sorted(names)


def first_convolution(model: Any) -> str:
    """Return the name of the convolution that reads the pixels.

    Quantizing its input again would add more noise than all later layers, to save little.
    """
    return next(
        node.get_friendly_name() for node in model.get_ordered_ops() if node.get_type_name() in CONVOLUTIONS
    )


def joins(model: Any) -> list[str]:
    """Return the names of the additions of two maps, where residual branches meet."""
    return [
        node.get_friendly_name()
        for node in model.get_ordered_ops()
        if node.get_type_name() == "Add"
        and all(source.get_node().get_type_name() != "Constant" for source in node.input_values())
    ]


def parts(model: Any) -> dict[str, list[str]]:
    """Return the names of the operators of each of PARTS."""
    nodes = model.get_ordered_ops()
    depthwise = [node for node in nodes if node.get_type_name() == "GroupConvolution"]
    projections = [node for node in nodes if node.get_type_name() == "Convolution" and not _activated(node)]
    named = {DEPTHWISE: depthwise, PROJECTIONS: projections}
    return {part: [node.get_friendly_name() for node in found] for part, found in named.items()}


def _activated(convolution: Any) -> bool:
    """Tell whether a convolution's result goes through an activation, after its bias."""
    readers = [port.get_node() for port in convolution.output(0).get_target_inputs()]
    while len(readers) == 1 and _adds_bias(readers[0]):
        readers = [port.get_node() for port in readers[0].output(0).get_target_inputs()]
    return all(node.get_type_name() in ("Relu", *ACTIVATIONS) for node in readers)


def _adds_bias(node: Any) -> bool:
    return node.get_type_name() == "Add" and node.input_value(1).get_node().get_type_name() == "Constant"


def _is_relu(model: Any) -> bool:
    """Tell whether ReLU is the only activation: then symmetric ranges lose nothing."""
    return not any(node.get_type_name() in ACTIVATIONS for node in model.get_ops())


def _halve(model: Any) -> None:
    """Store float32 constants that float16 holds exactly in it; they are converted at loading."""
    from openvino import opset13 as ops

    for node in model.get_ordered_ops():
        if node.get_type_name() != "Constant" or node.get_element_type().get_type_name() != "f32":
            continue
        values = node.data
        with np.errstate(over="ignore"):
            half = values.astype(np.float16)
        if values.size < WORTH_HALVING or not np.array_equal(half, values):
            continue
        whole = ops.convert(ops.constant(half), "f32")
        for reader in node.output(0).get_target_inputs():
            reader.replace_source_output(whole.output(0))


def _serialize(model: Any) -> tuple[bytes, bytes]:
    """Serialize a model without the metadata on how it was made."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "network.xml")
        load_openvino().serialize(model, path)
        xml, constants = path.read_bytes(), path.with_suffix(".bin").read_bytes()
    tree = ET.fromstring(xml)  # noqa: S314 - OpenVINO has just written it
    tree.attrib["name"] = "network"
    kept = {"pixels", "x", "logits", CLASS_MAP}
    for parent in list(tree.iter()):
        for child in [element for element in parent if element.tag in ("rt_info", "meta_data")]:
            parent.remove(child)
        if parent.tag == "port" and "names" in parent.attrib:
            names = kept.intersection(re.split(",", parent.attrib.pop("names")))
            parent.attrib |= {"names": names.pop()} if names else {}
    return ET.tostring(tree, "us-ascii", xml_declaration=True), constants
