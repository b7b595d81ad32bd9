"""What the engines that torch runs are stored as: the weights, and whatever a backend has made of them."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from ..errors import Refused
from ..model.architecture import Architecture

if TYPE_CHECKING:
    from ..bundle import Bundle
    from ..model.gbad import GBAD

FORM = "form"  # names of entries that are no weights
MADE = "made."


def pack(bundle: "Bundle", **made: bytes) -> bytes:
    """Join a bundle's weights with what a backend has made of them, as one safetensors file."""
    manifest = bundle.manifest
    form = {"architecture": asdict(manifest.architecture), "preprocessing": asdict(manifest.preprocessing)}
    arrays = {k: v for k, v in bundle.tensors().items() if not k.startswith("decision.")}
    blobs = {FORM: json.dumps(form).encode()} | {f"{MADE}{name}": blob for name, blob in made.items()}
    return save({**arrays, **{name: np.frombuffer(blob, np.uint8) for name, blob in blobs.items()}})


def unpack(blob: bytes) -> "tuple[GBAD, Mapping[str, bytes]]":
    """Build the model of an engine's blob on the CPU, and give what its backend has made; raises Refused."""
    from ..model.gbad import GBAD

    try:
        arrays = load(blob)
        form: dict[str, Any] = json.loads(arrays.pop(FORM).tobytes())
    except (SafetensorError, KeyError, ValueError) as error:
        raise Refused(
            f"the engine is not whole ({error}): empty the cache folder, or give another"
        ) from error
    made = {name: arrays.pop(name).tobytes() for name in list(arrays) if name.startswith(MADE)}
    model = GBAD.from_arrays(Architecture(**form["architecture"]), arrays, **form["preprocessing"])
    return model, {name.removeprefix(MADE): blob for name, blob in made.items()}
