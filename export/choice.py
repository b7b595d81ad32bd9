"""Chooses device, backend and precision for a scan, or says why a choice is not possible."""

import importlib.util
import logging
import re
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as version_of
from typing import TYPE_CHECKING, NamedTuple, get_args

from ..engine.errors import MissingExtra, Refused, how_to_install
from ..engine.settings import Precision, check_device
from ..engine.system.gpus import nvidia_gpus
from ..engine.system.machine import multiplies_bfloat16

if TYPE_CHECKING:
    from ..engine.bundle import Bundle

log = logging.getLogger(__name__)

BACKENDS = ("openvino", "tensorrt", "inductor")
NEEDS = {  # packages that a backend imports, and the extra that installs them
    "tensorrt": (("tensorrt", "torch", "timm", "onnxscript"), "tensorrt"),
    "inductor": (("torch", "timm"), "gpu"),
}
TENSORRT = (11, 1)  # the oldest that can be used; the next generation is unknown


class Choice(NamedTuple):
    """What an engine is built for."""

    device: str  # cpu or cuda:N
    backend: str
    precision: str  # fp32, fp16, bf16 or int8


def resolve(bundle: "Bundle", device: str, engine: str, precision: str) -> Choice:
    """Return what a scan would use; raises Refused, with the reason, if a setting is not possible here.

    `auto` gives the first of `precisions`; the parity gate has the last word.
    """
    check_device(device)
    if engine not in ("auto", *BACKENDS):
        raise Refused(f"--engine {engine!r:.40} is not an engine: give auto, {', '.join(BACKENDS)}")
    _check_together(device, engine)
    if engine in NEEDS:
        _check_installed(f"--engine {engine}", engine)
    if engine == "tensorrt" and (reason := unfit_tensorrt()):
        raise Refused(f"--engine tensorrt cannot be used: {reason}: {how_to_install('tensorrt')}")
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
            raise MissingExtra(
                f"{what} needs the package {package}, which is not installed: {how_to_install(extra)}"
            )


def is_installed(package: str) -> bool:
    """Tell whether a package could be imported, without importing it."""
    return importlib.util.find_spec(package) is not None


def _device(device: str, engine: str) -> str:
    """Choose the CPU or one GPU, `cuda:N`: of several that are named the first."""
    if device == "cpu" or (device == "auto" and engine == "openvino"):
        return "cpu"
    gpus = nvidia_gpus()
    if device == "auto":
        if not gpus and engine == "tensorrt":
            raise Refused(
                "--engine tensorrt cannot be used: this machine has no NVIDIA GPU; use --engine openvino"
            )
        reason = unusable("cuda:0") if gpus else "there is none"
        if gpus and reason:
            log.warning(
                "AN NVIDIA GPU IS HERE AND IS NOT USED: %s; the scan runs on the CPU (--device cpu "
                "silences this warning)",
                reason,
            )
        return "cpu" if reason else "cuda:0"
    if engine == "auto":
        _check_installed(f"--device {device}", "inductor")
    listed = listed_gpus(device) or ("cuda:0",)
    reason = next(filter(None, map(unusable, listed)), None)
    if reason:
        count = f"this machine has {len(gpus) or 'no'} NVIDIA GPU{'s' if len(gpus) != 1 else ''}"
        raise Refused(f"--device {device} cannot be used: {count}, and {reason}; use --device cpu")
    return listed[0]


def listed_gpus(device: str) -> tuple[str, ...]:
    """Return the GPUs that a device setting names, each once: cuda:0,2 names cuda:0 and cuda:2."""
    numbers = device.partition(":")[2]
    return tuple(dict.fromkeys(f"cuda:{int(number)}" for number in numbers.split(","))) if numbers else ()


def _backend(device: str, engine: str) -> str:
    if engine != "auto":
        return engine
    if device == "cpu":
        return "openvino"
    if is_installed("tensorrt"):
        reason = unfit_tensorrt()
        if reason is None:
            return "tensorrt"
        log.warning("torch Inductor runs the networks on %s, since %s", device, reason)
        return "inductor"
    log.info(
        "TensorRT is not installed: torch Inductor runs the networks on %s; to use TensorRT, %s",
        device,
        how_to_install("tensorrt"),
    )
    return "inductor"


def unfit_tensorrt() -> str | None:
    """Return why the TensorRT that is installed cannot be used, or None.

    The networks that we have TensorRT 10 build are weakly typed: there the types of our graphs do not hold.
    """
    oldest = ".".join(map(str, TENSORRT))
    try:
        version = version_of("tensorrt")
    except PackageNotFoundError:
        return f"the version of TensorRT is not known, and {oldest} or a later {TENSORRT[0]} is needed"
    found = re.match(r"(\d+)\.(\d+)", version)
    numbers = [int(each) for each in found.groups()] if found else [0, 0]
    if [*TENSORRT] <= numbers < [TENSORRT[0] + 1, 0]:
        return None
    return f"TensorRT {version} is installed, and {oldest} or a later {TENSORRT[0]} is needed"


def _precision(bundle: "Bundle", device: str, backend: str, precision: str) -> str:
    *others, last = get_args(Precision)
    if precision not in (*others, last):
        known = f"{', '.join(others)} or {last}"
        raise Refused(f"--precision {precision!r:.40} is not a precision: give {known}")
    if precision == "auto":
        return precisions(bundle, device, backend)[0]
    on_gpu = device != "cpu"
    if on_gpu and precision in ("bf16", "int8"):
        raise Refused(f"--precision {precision} is for the CPU, and this scan runs on a GPU: use fp16")
    if not on_gpu and precision == "fp16":
        raise Refused("--precision fp16 is for GPU backends, and this scan runs on the CPU: use fp32")
    if precision in ("bf16", "int8") and backend != "openvino":
        raise Refused(f"--precision {precision} runs on OpenVINO, not on {backend}: use --engine openvino")
    if precision == "int8" and not bundle.has_int8:
        raise Refused(
            f"--precision int8 cannot be used: the bundle {bundle.path} has no INT8 network; use fp32, or "
            "add one with gbad-batch quantize"
        )
    if precision == "bf16":
        _check_bf16(bundle)
    return precision


def precisions(bundle: "Bundle", device: str, backend: str) -> tuple[str, ...]:
    """Return the precisions that `auto` tries, the fastest first; the last is FP32."""
    if device != "cpu":
        return "fp16", "fp32"
    faster = []
    if backend == "openvino" and bundle.has_int8:
        faster.append("int8")
    if backend == "openvino" and bundle.has_bf16 and multiplies_bfloat16():
        faster.append("bf16")
    return *faster, "fp32"


def _check_bf16(bundle: "Bundle") -> None:
    if not multiplies_bfloat16():
        raise Refused(
            "--precision bf16 needs bfloat16 instructions (avx512_bf16 or amx_bf16), which this CPU lacks or "
            "ONEDNN_MAX_CPU_ISA rules out: use fp32"
        )
    if not bundle.has_bf16:
        raise Refused(
            f"--precision bf16 cannot be used: the bundle {bundle.path} has no operating points for it; use "
            "fp32, or add them with gbad-batch quantize --precision bf16"
        )


def unusable(device: str) -> str | None:
    """Return why `cuda:N` cannot be used, or None if it can; asks the driver through torch."""
    if not is_installed("torch"):
        return f"torch, which drives it, is not installed ({how_to_install('gpu')})"
    if not is_installed("nvidia.dali"):  # the CPU's decoders would work, far slower than the GPU
        return f"DALI, which decodes for it, is not installed ({how_to_install('gpu')})"
    import torch

    if not torch.cuda.is_available():
        return f"torch {torch.__version__} finds no usable device (nvidia-smi shows the driver's state)"
    count, index = torch.cuda.device_count(), int(device.removeprefix("cuda:"))
    return None if index < count else f"torch numbers them 0 to {count - 1}"


def gpu_name(device: str) -> str:
    """Return a GPU's name and compute capability, as they stand in a cache key."""
    import torch

    major, minor = torch.cuda.get_device_capability(device)
    return f"{torch.cuda.get_device_name(device)} sm_{major}{minor}"
