"""The tolerance of half precision, found without a GPU when a bundle is made."""

import logging
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from ....export.gate import measure
from ...bundle import Bundle
from ...bundle.manifest import Manifest, Tolerance
from ...model.gbad import GBAD
from ...model.half_precision import EmulatedHalfGBAD
from ...runtime import Engine, NotFinite, Outputs, Parity, not_finite
from ...system.machine import installed
from ...system.progress import ProgressCallback, silent
from .reduced import least_on_gate

log = logging.getLogger(__name__)

MARGIN = 2.0  # a GPU may differ from FP32 by this many times what the emulation differed by
FORMS = {"as it is": False, "folded": True}  # batch norms, as torch Inductor and as TensorRT compute them


class EmulatedHalfRunner:
    """Score images as a GPU does in half precision, by torch on the CPU."""

    def __init__(self, bundle: Bundle, *, folded: bool):
        architecture, form = bundle.manifest.architecture, bundle.manifest.preprocessing
        model = GBAD.from_arrays(architecture, bundle.tensors(), form.mean, form.std)
        self._model = EmulatedHalfGBAD(model, folded=folded)
        self.engine = Engine(
            backend="torch",
            version=torch.__version__,
            device="cpu",
            precision="fp16",
            input_size=architecture.input_size,
            features=architecture.features,
            bundle_hash=bundle.hash,
            key="",
            blob=b"",
        )
        self.streams, self.sizes = 1, ()

    def __call__(self, pixels: torch.Tensor | NDArray[np.uint8]) -> Outputs:
        """Score pixels uint8 [n, S, S, 3]; raises NotFinite where half precision overflows."""
        outputs = Outputs(*(each.numpy() for each in self._model(torch.as_tensor(pixels))))
        bad = not_finite(outputs)
        if bad.size:
            raise NotFinite(tuple(bad.tolist()), self.engine)
        return outputs

    def close(self) -> None:
        """Release nothing: the model goes with the runner."""


def with_half_tolerance(bundle: Bundle, progress: ProgressCallback = silent) -> Bundle:
    """Give a bundle the tolerance of half precision, in memory.

    Half precision is emulated on the gate images, batch norms as they are and folded; a GPU may differ from
    FP32 by MARGIN times as much, and never less than the bundle's tolerance of FP32 allows. Where the
    emulation overflows, or decides otherwise than FP32 too often, the bundle states none and a warning says
    why; on a GPU its gate has the last word.
    """
    found: list[Parity] = []
    for name, folded in FORMS.items():
        progress("FP16: gate images", len(found), len(FORMS), {})
        try:
            found.append(measure(bundle, EmulatedHalfRunner(bundle, folded=folded)))
        except NotFinite as error:
            log.warning("the bundle states no tolerance of FP16: %s, batch norms %s", error.what, name)
            return bundle
    progress("FP16: gate images", len(FORMS), len(FORMS), {})
    agreement = min(share for parity in found for share in parity.agreement.values())
    least = least_on_gate(bundle, found[0].images)
    if agreement < least:
        log.warning(
            "the bundle states no tolerance of FP16: %.2f%% of the decisions on the gate images are those of "
            "FP32, fewer than %.2f%%",
            100 * agreement,
            100 * least,
        )
        return bundle
    return replace(bundle, manifest=_stated(bundle, found))


def _stated(bundle: Bundle, found: list[Parity]) -> Manifest:
    largest = {
        "loss_rel": max(parity.loss_rel_max for parity in found),
        "score": max(max(parity.score_max.values()) for parity in found),
        "flips": max(max(parity.flips.values()) for parity in found),
    }
    least = bundle.manifest.tolerance
    allowed = {name: max(getattr(least, name), MARGIN * value) for name, value in largest.items()}
    allowed["flips"] = min(1.0, allowed["flips"])  # of few gate images
    made = {**largest, "margin": MARGIN, "versions": installed(("torch", "timm"))}
    return replace(
        bundle.manifest,
        tolerance_fp16=Tolerance(**allowed),
        provenance={**bundle.manifest.provenance, "fp16": made},
    )
