"""What a scan may ask for and what it gets: device, backend and precision, or the reason why not."""

import importlib.util
import logging
import re
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ..engine.errors import MissingExtra, Refused

if TYPE_CHECKING:
    from ..engine.bundle import Bundle

log = logging.getLogger(__name__)

PCI_DEVICES = Path("/sys/bus/pci/devices")
NVIDIA_VENDOR = "0x10de"
DISPLAY_CLASS = "0x03"  # display controllers: VGA (0x0300..) and 3D (0x0302..)
BACKENDS = ("openvino", "tensorrt", "inductor")
NEEDS = {  # packages that a backend imports, and the extra that brings them
    "tensorrt": (("tensorrt", "torch", "timm", "onnxscript"), "tensorrt"),
    "inductor": (("torch", "timm"), "gpu"),
}
HOW = {  # to install an extra
    "gpu": "pip install 'gbad-batch[gpu]'",
    "tensorrt": "pip install 'gbad-batch[tensorrt]' --extra-index-url ADDRESS (that of NVIDIA's index)",
}


class Choice(NamedTuple):
    """What an engine is built for."""

    device: str  # cpu or cuda:N
    backend: str
    precision: str  # fp32, fp16 or int8


def resolve(bundle: "Bundle", device: str, engine: str, precision: str) -> Choice:
    """Give what a scan would use; raises Refused with the reason why it cannot have what it asks for.

    INT8 is what `auto` would like on a CPU where the bundle has it: the parity gate decides on it.
    """
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", device):
        raise Refused(f"--device {device!r:.40} is none of auto, cpu, cuda and cuda:N")
    if engine not in ("auto", *BACKENDS):
        raise Refused(f"--engine {engine!r:.40} is none of auto, {', '.join(BACKENDS)}")
    _check_together(device, engine)
    if engine in NEEDS:
        _check_installed(f"--engine {engine}", engine)
    where = _device(device, engine)
    backend = _backend(where, engine)
    return Choice(where, backend, _precision(bundle, where, backend, precision))


def _check_together(device: str, engine: str) -> None:
    if engine == "openvino" and device.startswith("cuda"):
        raise Refused(f"--engine openvino runs on the CPU, not on {device}: use --device cpu")
    if engine == "tensorrt" and device == "cpu":
        raise Refused("--engine tensorrt runs on an NVIDIA GPU, not on the CPU: use --engine openvino")


def _check_installed(what: str, backend: str) -> None:
    packages, extra = NEEDS[backend]
    for package in packages:
        if not is_installed(package):
            raise MissingExtra(f"{what} needs the package {package}, which is not installed: {HOW[extra]}")


def is_installed(package: str) -> bool:
    """Tell whether a package could be imported, without importing it."""
    return importlib.util.find_spec(package) is not None


def _device(device: str, engine: str) -> str:
    """Choose the CPU or one GPU, `cuda:N`."""
    if device == "cpu" or (device == "auto" and engine == "openvino"):
        return "cpu"
    found = nvidia_gpus()
    if device == "auto":
        if not found and engine == "tensorrt":
            raise Refused("--engine tensorrt cannot be used: no NVIDIA GPU is here; use --engine openvino")
        reason = unusable("cuda:0") if found else "none is here"
        if found and reason:
            log.warning(
                "AN NVIDIA GPU IS HERE AND IS NOT USED: %s; the scan runs on the CPU, and --device cpu says "
                "that this is meant",
                reason,
            )
        return "cpu" if reason else "cuda:0"
    where = device if ":" in device else f"{device}:0"
    if engine == "auto":
        _check_installed(f"--device {device}", "inductor")
    reason = unusable(where)
    if reason:
        there = f"{len(found)} NVIDIA GPUs are here" if found else "no NVIDIA GPU is here"
        raise Refused(f"--device {device} cannot be used: {there}, and {reason}; use --device cpu")
    return where


def _backend(device: str, engine: str) -> str:
    if engine != "auto":
        return engine
    if device == "cpu":
        return "openvino"
    if is_installed("tensorrt"):
        return "tensorrt"
    log.info(
        "TensorRT is not installed, so torch Inductor runs the networks on %s; to change that, %s",
        device,
        HOW["tensorrt"],
    )
    return "inductor"


def _precision(bundle: "Bundle", device: str, backend: str, precision: str) -> str:
    if precision not in ("auto", "fp32", "fp16", "int8"):
        raise Refused(f"--precision {precision!r:.40} is none of auto, fp32, fp16 and int8")
    if device != "cpu":
        if precision == "int8":
            raise Refused("--precision int8 is for the CPU, and this scan runs on a GPU: use fp16")
        return "fp16" if precision == "auto" else precision
    if precision == "fp16":
        raise Refused("--precision fp16 is for GPU backends, and this scan runs on the CPU: use fp32")
    if precision == "int8":
        _check_int8(bundle, backend)
    if precision == "auto":
        return "int8" if backend == "openvino" and bundle.has_int8 else "fp32"
    return precision


def _check_int8(bundle: "Bundle", backend: str) -> None:
    if backend != "openvino":
        raise Refused(f"--precision int8 runs on OpenVINO, not on {backend}: use --engine openvino")
    if not bundle.has_int8:
        raise Refused(
            f"--precision int8 needs an INT8 form, which the bundle {bundle.path} has not: use fp32, or give "
            "it one with gbad-batch quantize"
        )


def nvidia_gpus(devices: Path = PCI_DEVICES) -> list[str]:
    """PCI addresses of NVIDIA display controllers, with or without a driver."""
    found = []
    for device in sorted(devices.glob("*")):
        try:
            vendor, kind = ((device / name).read_text().strip() for name in ("vendor", "class"))
        except OSError:
            continue
        if vendor == NVIDIA_VENDOR and kind.startswith(DISPLAY_CLASS):
            found.append(device.name)
    return found


def unusable(device: str) -> str | None:
    """Say why nothing can be computed on `cuda:N`, or None where it can; asks the driver, through torch."""
    if not is_installed("torch"):
        return f"torch, which drives it, is not installed ({HOW['gpu']})"
    if not is_installed("nvidia.dali"):  # the CPU's decoders would do, at a fraction of a GPU's speed
        return f"DALI, which decodes for it, is not installed ({HOW['gpu']})"
    import torch

    if not torch.cuda.is_available():
        return f"torch {torch.__version__} finds no device that it can use (nvidia-smi says more)"
    count, index = torch.cuda.device_count(), int(device.removeprefix("cuda:"))
    return None if index < count else f"torch numbers them 0 to {count - 1}"


def gpu_name(device: str) -> str:
    """Name a GPU and its compute capability, as in a cache key."""
    import torch

    major, minor = torch.cuda.get_device_capability(device)
    return f"{torch.cuda.get_device_name(device)} sm_{major}{minor}"
