"""Backbones: the feature maps C2..C5 of a network that timm registers, its input, and weights from a file."""

import pickle
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..errors import Refused

LEVELS = 4  # C2..C5
# exceptions of the readers for a file without weights
UNREADABLE = (OSError, EOFError, RuntimeError, ValueError, pickle.UnpicklingError, SafetensorError)


def create_backbone(name: str) -> nn.Module:
    """Build a timm network that maps images [N, 3, H, W] to the list of its last four feature maps.

    Weights are random; nothing is downloaded. Raises Refused for a name that timm does not register, such as
    those that would download or read a model (`hf-hub:...`, `local-dir:...`), and for a network without maps.
    """
    if not re.fullmatch(r"[A-Za-z0-9_]+", name) or not timm.is_model(name):
        raise Refused(f"{name!r} is not the name of a backbone that timm {timm.__version__} registers")
    indices = tuple(range(-LEVELS, 0))
    try:
        body = timm.create_model(name, pretrained=False, features_only=True, out_indices=indices)
    except (RuntimeError, AssertionError, IndexError) as error:
        raise Refused(
            f"the backbone {name} does not give four feature maps ({error}): use another"
        ) from error
    if getattr(body, "output_fmt", None) not in (None, "NCHW"):
        raise Refused(f"the backbone {name} gives its maps as {body.output_fmt}, not as NCHW: use another")
    return body


def channels(backbone: nn.Module) -> list[int]:
    """Return the channels of C2..C5."""
    info: Any = backbone.feature_info
    return info.channels()


def normalization(name: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and deviation [3], RGB, by which a network expects pixels divided by 255 normalized."""
    config: Any = timm.get_pretrained_cfg(name)
    return tuple(config.mean), tuple(config.std)


def load_backbone_weights(backbone: nn.Module, name: str, path: Path) -> None:
    """Load ImageNet weights of the network `name`, as torchvision or timm names them, from a file.

    Reads safetensors, or torch's own format with `weights_only`. Raises Refused unless the file holds
    exactly the network's tensors, with their shapes; those of the classifier are ignored.
    """
    load_backbone_state(backbone, name, read_weights(path), str(path))


def load_backbone_state(backbone: nn.Module, name: str, state: Mapping[str, Tensor], source: str) -> None:
    """Copy a whole network's tensors, strictly except for the classifier, into it or its feature part."""
    with torch.device("meta"):
        full = timm.create_model(name, pretrained=False).state_dict()
    classifier = timm.get_pretrained_cfg(name).classifier or ()  # type: ignore[union-attr]
    heads = tuple(f"{head}." for head in ([classifier] if isinstance(classifier, str) else classifier))
    expected = {key: tuple(full[key].shape) for key in full if not key.startswith(heads)}
    shapes = {key: tuple(state[key].shape) for key in state if not key.startswith(heads)}
    _compare(name, source, expected, shapes)
    own = {_plain(key): key for key in backbone.state_dict()}
    wanted = {own[_plain(key)]: state[key] for key in shapes if _plain(key) in own}
    missing, _ = backbone.load_state_dict(wanted, strict=False)
    absent = [key for key in missing if not key.endswith("num_batches_tracked") and not key.startswith(heads)]
    if absent:
        raise Refused(f"{source} lacks {absent[0]} of the backbone {name}: give another file")


def _compare(name: str, source: str, expected: Mapping[str, Any], shapes: Mapping[str, Any]) -> None:
    counters = "num_batches_tracked"  # older files lack these counters, and nothing here reads them
    missing = [key for key in expected if key not in shapes and not key.endswith(counters)]
    surplus = [key for key in shapes if key not in expected]
    unlike = [key for key in expected if key in shapes and shapes[key] != expected[key]]
    if missing or surplus or unlike:
        example = (missing or surplus or unlike)[0]
        raise Refused(
            f"{source} does not hold the weights of {name}: {len(missing)} tensors are missing, "
            f"{len(surplus)} unknown and {len(unlike)} of another shape, such as {example!r}; give "
            "another file"
        )


def _plain(key: str) -> str:
    """Normalize a parameter's name: timm's wrappers add a prefix, or use `_` for a flattened level."""
    return re.sub(r"^(body|model)\.", "", key).replace(".", "_")


def read_weights(path: Path) -> Mapping[str, Tensor]:
    """Read named tensors from safetensors, or from torch's own format, whose code is never run.

    Raises Refused for a file that holds anything else.
    """
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        state = torch.load(path, map_location="cpu", weights_only=True)
    except UNREADABLE as error:
        raise Refused(f"{path} cannot be read as a file of weights ({error}): give another file") from error
    for wrapper in ("state_dict", "model"):
        state = state.get(wrapper, state) if isinstance(state, Mapping) else state
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise Refused(f"{path} does not hold a mapping from names to tensors: give another file")
    return state
