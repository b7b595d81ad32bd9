"""The format of engines that run on torch: weights, and the artifacts that a backend compiled from them."""

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

# names of entries other than weights; a change of either must change LAYOUT of the cache
FORM = "form"
ARTIFACT = "made."


def pack(bundle: "Bundle", **artifacts: bytes) -> bytes:
    """Pack a bundle's weights and a backend's compiled artifacts into one safetensors file."""
    manifest = bundle.manifest
    form = {"architecture": asdict(manifest.architecture), "preprocessing": asdict(manifest.preprocessing)}
    arrays = {k: v for k, v in bundle.tensors().items() if not k.startswith("decision.")}
    blobs = {FORM: json.dumps(form).encode()} | {
        f"{ARTIFACT}{name}": blob for name, blob in artifacts.items()
    }
    return save({**arrays, **{name: np.frombuffer(blob, np.uint8) for name, blob in blobs.items()}})


def unpack(blob: bytes) -> "tuple[GBAD, Mapping[str, bytes]]":
    """Return the model of an engine's blob, on the CPU, and the artifacts by name; raises Refused."""
    from ..model.gbad import GBAD

    try:
        arrays = load(blob)
        form: dict[str, Any] = json.loads(arrays.pop(FORM).tobytes())
    except (SafetensorError, KeyError, ValueError) as error:
        raise Refused(
            f"the engine is damaged ({error}): empty the cache folder, or give another with --cache-dir"
        ) from error
    artifacts = {name: arrays.pop(name).tobytes() for name in list(arrays) if name.startswith(ARTIFACT)}
    model = GBAD.from_arrays(Architecture(**form["architecture"]), arrays, **form["preprocessing"])
    return model, {name.removeprefix(ARTIFACT): blob for name, blob in artifacts.items()}
