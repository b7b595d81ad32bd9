"""From the graphs of a bundle to an OpenVINO engine: joined into one model and compiled for this CPU."""

import math
from typing import Any

from ..engine.errors import BundleError
from ..engine.runtime.runtime_openvino import (
    DEVICE,
    compile_properties,
    error_reason,
    load_openvino,
    open_core,
)
from ..engine.system.machine import usable_cores

LARGEST_ACTIVATION = 1 << 26  # elements of one image's largest map


def build(network: bytes, bigan: bytes, constants: bytes = b"") -> bytes:
    """Compile both graphs for this CPU and return the blob that `OpenVINORunner` opens.

    `network` maps pixels to x and logits, `bigan` maps x to the losses. Both are verified ONNX graphs; the
    INT8 form of the network is OpenVINO's XML, with its `constants`. Raises BundleError if OpenVINO cannot
    read or compile them.
    """
    core = open_core()
    try:
        model = _join(core.read_model(network, constants), core.read_model(bigan))
        _check_activations(model)
        stream = core.compile_model(model, DEVICE, compile_properties(usable_cores())).export_model()
    except RuntimeError as error:
        raise BundleError(f"OpenVINO cannot run the graphs of the bundle: {error_reason(error)}") from error
    return stream.getvalue()


def _join(network: Any, bigan: Any) -> Any:
    """Make one model from pixels to all four outputs: the BiGAN reads x where the network computes it."""
    entry = bigan.input("x")
    features = network.output("x").get_node().input_value(0)
    for reader in entry.get_target_inputs():
        reader.replace_source_output(features)
    results = [*network.get_results(), *bigan.get_results()]
    return load_openvino().Model(results, network.get_parameters(), "gbad")


def _check_activations(model: Any) -> None:
    """Bound the memory that running the graph allocates: a small graph can ask for a large map."""
    for node in model.get_ordered_ops():
        for output in node.outputs():
            shape = output.get_partial_shape()
            if shape.rank.is_static:
                elements = math.prod(size.get_length() for size in shape if size.is_static)
                if elements > LARGEST_ACTIVATION:
                    raise BundleError(
                        f"the graph computes maps of {elements} elements, above the limit of "
                        f"{LARGEST_ACTIVATION}"
                    )
