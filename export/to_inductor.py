"""From the weights of a bundle to an engine of torch Inductor."""

from ..engine.bundle import Bundle
from ..engine.model.gbad import GBAD
from ..engine.runtime.runtime_inductor import COMPILED, compile_model
from ..engine.runtime.torch_form import pack


def build(bundle: Bundle, device: str, precision: str) -> bytes:
    """Compile the model for `cpu` or `cuda:N`; returns the blob for `InductorRunner`; raises Refused."""
    form = bundle.manifest.preprocessing
    model = GBAD.from_arrays(bundle.manifest.architecture, bundle.tensors(), form.mean, form.std)
    _, compiled = compile_model(model, device, precision)
    return pack(bundle, **{COMPILED: compiled})
