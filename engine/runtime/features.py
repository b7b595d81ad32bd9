"""Runs what follows a bundle's network, on features that a scan has stored: on the CPU, by OpenVINO."""

from queue import LifoQueue
from typing import TYPE_CHECKING, Any

import numpy as np

from ..bundle import Bundle
from ..errors import Refused
from ..model.typicality import Typicality
from . import LOSSES
from .runtime_openvino import DEVICE, compile_properties, error_reason, load_openvino, open_core

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]

PRODUCTS = "products"  # of features with the directions of typicality


class FeatureRunner:
    """Compute losses and typicality of features; takes as many concurrent calls as it has streams.

    A scan's graph gives an image the same bits in any batch. This one need not, and takes 40 % of the time:
    features are rounded to float16 already, which changes more than the order of a sum does.
    """

    def __init__(self, bundle: Bundle, streams: int, batch: int):
        """Compile bigan.onnx, which was verified; raises Refused if OpenVINO cannot."""
        self._batch = batch
        self._typicality = bundle.typicality()
        self._idle: LifoQueue[Any] = LifoQueue()
        core = open_core()
        try:
            model = core.read_model(bundle.bigan_onnx)
            # one size: with a free one the memory of every layer is taken from the system in every batch
            model.reshape([batch, bundle.manifest.architecture.features])
            _multiply_matrices(model)
            if self._typicality is not None:
                _add_products(model, self._typicality)
            for _ in range(streams):
                self._idle.put(
                    core.compile_model(model, DEVICE, compile_properties(1)).create_infer_request()
                )
        except RuntimeError as error:
            raise Refused(f"OpenVINO cannot run the BiGAN of the bundle: {error_reason(error)}") from error

    def __call__(self, x: "Floats") -> "dict[str, Floats | float]":
        """Return the columns [n] of features x [n, d], at most a batch; NaN if the bundle has none."""
        count = len(x)
        padded = x if count == self._batch else np.pad(x, ((0, self._batch - count), (0, 0)))
        request = self._idle.get()
        try:
            request.start_async({"x": padded}, share_inputs=True)
            request.wait()
            found = {name: request.get_tensor(name).data[:count].copy() for name in LOSSES}
            if self._typicality is None:
                return found | {"typicality": np.nan}
            return found | {"typicality": self._typicality.of(x, request.get_tensor(PRODUCTS).data[:count])}
        finally:
            self._idle.put(request)


def _multiply_matrices(model: Any) -> None:
    """Replace 1x1 convolutions of 1x1 maps by products of matrices, which read the weights once a batch."""
    ops = _operators()
    for node in model.get_ordered_ops():
        if node.get_type_name() != "Convolution":
            continue
        data, weights = node.input_value(0), node.input_value(1)
        (batch, inputs, *sizes), (outputs, _, *kernel) = data.get_shape(), weights.get_shape()
        if {*sizes, *kernel, *node.get_output_shape(0)[2:]} == {1}:
            rows = ops.reshape(data, np.array([batch, inputs]), special_zero=False)
            columns = ops.reshape(weights, np.array([outputs, inputs]), special_zero=False)
            product = ops.matmul(rows, columns, transpose_a=False, transpose_b=True)
            shaped = ops.reshape(product, np.array([batch, outputs, 1, 1]), special_zero=False)
            node.output(0).replace(shaped.output(0))


def _add_products(model: Any, typicality: Typicality) -> None:
    """Add the output PRODUCTS, which takes NumPy eight times as long."""
    ops = _operators()
    centred = ops.subtract(model.input().node, typicality.mean)
    products = ops.matmul(centred, typicality.directions, transpose_a=False, transpose_b=True)
    products.output(0).set_names({PRODUCTS})
    model.add_outputs([products.output(0)])


def _operators() -> Any:
    load_openvino()
    from openvino import opset13

    return opset13
