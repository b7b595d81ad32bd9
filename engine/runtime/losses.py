"""Runs a bundle's BiGAN by itself, on features that a scan has stored: on the CPU, by OpenVINO."""

from queue import LifoQueue
from typing import TYPE_CHECKING, Any

from ..errors import Refused
from .runtime_openvino import DEVICE, compile_properties, error_reason, open_core

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float32]


class LossRunner:
    """Compute the two losses of features; takes as many concurrent calls as it has streams, a core each."""

    def __init__(self, bigan: bytes, streams: int):
        """Compile bigan.onnx, which was verified; raises Refused if OpenVINO cannot."""
        self._idle: LifoQueue[Any] = LifoQueue()
        core = open_core()
        try:
            for _ in range(streams):
                compiled = core.compile_model(core.read_model(bigan), DEVICE, compile_properties(1))
                self._idle.put(compiled.create_infer_request())
        except RuntimeError as error:
            raise Refused(f"OpenVINO cannot run the BiGAN of the bundle: {error_reason(error)}") from error

    def __call__(self, x: "Floats") -> "tuple[Floats, Floats]":
        """Return reconstruction_loss [n] and feature_matching_loss [n] of features x [n, d]."""
        request = self._idle.get()
        try:
            request.start_async({"x": x}, share_inputs=True)
            request.wait()
            losses = [
                request.get_tensor(name).data.copy()
                for name in ("reconstruction_loss", "feature_matching_loss")
            ]
        finally:
            self._idle.put(request)
        return losses[0], losses[1]
