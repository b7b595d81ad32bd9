"""Computes the class maps of a bundle, by OpenVINO on the CPU: of each class, the logit at every place."""

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from ..bundle import Bundle
from ..bundle.manifest import CLASS_MAP
from ..errors import Refused
from ..row import THREATS
from ..system.machine import usable_cores
from .runtime_openvino import DEVICE, compile_properties, error_reason, open_core

if TYPE_CHECKING:
    from numpy.typing import NDArray


class Maps(NamedTuple):
    """The class maps of n images, and the logits that a scan in FP32 takes from them."""

    places: "NDArray[np.float32]"  # [n, 5, h, w], in the order of THREATS
    logits: "NDArray[np.float32]"  # [n, 5]


class ClassMaps:
    """Compute class maps with the bundle's own graph in FP32, its map made an output.

    Nothing is approximated: with the head `map_max` the largest value of a map is the class's logit, with
    `map_lse` the map's log-sum-exp is. Raises Refused if the bundle has no class map.
    """

    def __init__(self, bundle: Bundle, threads: int | None = None):
        self.input_size = bundle.manifest.architecture.input_size
        if not bundle.manifest.architecture.has_map:
            raise Refused(
                f"the bundle {bundle.path} has no class map, so it cannot tell where a class is: give one "
                "with a map by --model"
            )
        try:
            network = open_core().read_model(bundle.network_onnx)
            network.add_outputs(CLASS_MAP)
            self._compiled = open_core().compile_model(
                network, DEVICE, compile_properties(threads or usable_cores())
            )
        except RuntimeError as error:
            raise Refused(
                f"the class map of the bundle {bundle.path} cannot be computed ({error_reason(error)}): copy "
                "or train the bundle again"
            ) from error

    def __call__(self, pixels: "NDArray[np.uint8]") -> Maps:
        """Return the maps of pixels uint8 [n, S, S, 3] RGB, of n >= 1 images."""
        found: Any = self._compiled(np.ascontiguousarray(pixels))
        places, logits = np.array(found[CLASS_MAP]), np.array(found["logits"])
        assert places.ndim == 4
        assert places.shape[:2] == logits.shape == (len(pixels), len(THREATS))
        return Maps(places, logits)
