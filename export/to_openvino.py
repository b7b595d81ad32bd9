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
MANY = 64  # images of a batch whose maps are compared with those of a batch of one


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
    """Bound the memory that running the graph allocates: a small graph can ask for a large map.

    Maps may grow with the batch, but not faster, as products of its images with each other would.
    """
    for here, there in zip(_elements(model, 1), _elements(model, MANY), strict=True):
        if here > LARGEST_ACTIVATION:
            raise BundleError(
                f"the graph computes maps of {here} elements, above the limit of {LARGEST_ACTIVATION}"
            )
        if there > MANY * here:
            raise BundleError("the graph computes maps that grow faster than its batch")


def _elements(model: Any, batch: int) -> list[int]:
    """Return the number of elements of each map at a batch size; raises BundleError if it is unknown."""
    sized, counts = model.clone(), dict[tuple[str, int], int]()
    sized.reshape({"pixels": [batch, *list(model.input("pixels").get_partial_shape())[1:]]})
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
