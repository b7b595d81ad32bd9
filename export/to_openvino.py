"""From the graphs of a bundle to an OpenVINO engine: both compiled for this CPU."""

import math
from typing import Any

from ..engine.errors import BundleError
from ..engine.runtime.runtime_openvino import (
    DEVICE,
    compile_properties,
    error_reason,
    join_models,
    open_core,
)
from ..engine.system.machine import usable_cores

LARGEST_ACTIVATION = 1 << 26  # elements of one image's largest map
MANY = 64  # images of a batch whose maps are compared with those of a batch of one


def build(network: bytes, bigan: bytes, constants: bytes = b"", precision: str = "fp32") -> bytes:
    """Compile both graphs for this CPU and return the blob that `OpenVINORunner` opens.

    `network` maps pixels to x and logits, `bigan` maps x to the losses. Both are verified ONNX graphs; the
    INT8 form of the network is OpenVINO's XML, with its `constants`. `precision` bf16 has the network
    computed in it. Raises BundleError if OpenVINO cannot read or compile them.
    """
    return join_models(_compiled(network, constants, "pixels", precision), _compiled(bigan, b"", "x", "fp32"))


def _compiled(graph: bytes, constants: bytes, entry: str, precision: str) -> bytes:
    core = open_core()
    try:
        model = core.read_model(graph, constants)
        _check_activations(model, entry)
        properties = compile_properties(usable_cores(), precision)
        return core.compile_model(model, DEVICE, properties).export_model().getvalue()
    except RuntimeError as error:
        raise BundleError(f"OpenVINO cannot run the graphs of the bundle: {error_reason(error)}") from error


def _check_activations(model: Any, entry: str) -> None:
    """Bound the memory that running the graph on its input `entry` allocates: it may ask for a large map.

    Maps may grow with the batch, but not faster, as products of its images with each other would.
    """
    for here, there in zip(_elements(model, entry, 1), _elements(model, entry, MANY), strict=True):
        if here > LARGEST_ACTIVATION:
            raise BundleError(
                f"the graph computes maps of {here} elements, above the limit of {LARGEST_ACTIVATION}"
            )
        if there > MANY * here:
            raise BundleError("the graph computes maps that grow faster than its batch")


def _elements(model: Any, entry: str, batch: int) -> list[int]:
    """Return the number of elements of each map at a batch size; raises BundleError if it is unknown."""
    sized, counts = model.clone(), dict[tuple[str, int], int]()
    sized.reshape({entry: [batch, *list(model.input(entry).get_partial_shape())[1:]]})
    for node in sized.get_ordered_ops():
        for output in node.outputs():
            shape = output.get_partial_shape()
            if shape.is_static:
                count = math.prod(shape.get_shape())
            elif node.get_type_name() == "Reshape":  # whatever its shape, it has what it is made of
                source = node.input_value(0)
                count = counts[source.get_node().get_name(), source.get_index()]
            else:
                raise BundleError("the graph computes maps whose size depends on what an image shows")
            counts[node.get_name(), output.get_index()] = count
    return list(counts.values())
