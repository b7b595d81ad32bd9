"""From a trained model to engines that are ready to run, and the cache that keeps them."""

import importlib.util
import logging
import os
import re
from contextlib import closing
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..engine.errors import MissingExtra, Refused

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ..engine.bundle import Bundle
    from ..engine.runtime import Engine, Parity
    from .cache import EngineCache

if __name__ != "gbad_batch.export":
    raise ImportError(f"import this package as gbad_batch.export, not as {__name__}")

log = logging.getLogger(__name__)

PCI_DEVICES = Path("/sys/bus/pci/devices")
NVIDIA_VENDOR = "0x10de"
DISPLAY_CLASS = "0x03"  # display controllers: VGA (0x0300..) and 3D (0x0302..)
ISA_LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")  # hold oneDNN below what the CPU can do
GPU_BACKENDS = {  # package to look for, extra that brings it
    "tensorrt": ("tensorrt", "tensorrt"),
    "inductor": ("torch", "gpu"),
}


def engine_for(
    bundle: "Bundle",
    device: str = "auto",
    engine: str = "auto",
    precision: str = "auto",
    cache_dir: Path | None = None,
    threads: int | None = None,
) -> "Engine":
    """Give an engine of the bundle, built or cached, that has passed the parity gate and is ready to open.

    `threads` (None: those that this process may use) bounds the gate. Raises Refused for a device, engine and
    precision that cannot go together here, or where the gate does not pass.
    """
    resolve(bundle, device, engine, precision)
    from .cache import EngineCache

    kept = EngineCache.open(cache_dir)
    try:
        return _openvino_fp32(bundle, kept, threads)
    finally:
        if kept:
            kept.close()


def resolve(bundle: "Bundle", device: str, engine: str, precision: str) -> tuple[str, str, str]:
    """Give device, backend and precision that a scan would use; raises Refused with the reason why not."""
    _check_engine(engine, device)
    _check_device(device)
    _check_precision(bundle, precision)
    return "cpu", "openvino", "fp32"


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


def _check_device(device: str) -> None:
    if not re.fullmatch(r"auto|cpu|cuda(:\d{1,3})?", device):
        raise Refused(f"--device {device!r:.40} is none of auto, cpu, cuda and cuda:N")
    if device.startswith("cuda"):
        gpus = nvidia_gpus()
        there = f"{len(gpus)} NVIDIA GPUs are here" if gpus else "no NVIDIA GPU is here"
        raise Refused(
            f"--device {device} cannot be used: {there}, and this version has no GPU backend yet (neither "
            "TensorRT nor Inductor); use --device cpu"
        )
    if device == "auto" and nvidia_gpus():
        log.warning(
            "AN NVIDIA GPU IS HERE AND IS NOT USED: this version has no GPU backend yet, so the scan runs on "
            "the CPU; --device cpu says that this is meant"
        )


def _check_engine(engine: str, device: str) -> None:
    if engine in ("auto", "openvino"):
        if engine == "openvino" and device.startswith("cuda"):
            raise Refused(f"--engine openvino runs on the CPU, not on {device}: use --device cpu")
        return
    if engine not in GPU_BACKENDS:
        raise Refused(f"--engine {engine!r:.40} is none of auto, openvino, {', '.join(GPU_BACKENDS)}")
    if device == "cpu":
        raise Refused(f"--engine {engine} runs on an NVIDIA GPU, not on the CPU: use --engine openvino")
    package, extra = GPU_BACKENDS[engine]
    if importlib.util.find_spec(package) is None:
        raise MissingExtra(
            f"--engine {engine} needs the package {package}, which is not installed: "
            f"pip install 'gbad-batch[{extra}]'"
        )
    raise Refused(f"--engine {engine} is not in this version yet: use --engine openvino --device cpu")


def _check_precision(bundle: "Bundle", precision: str) -> None:
    if precision in ("auto", "fp32"):
        return
    if precision == "fp16":
        raise Refused("--precision fp16 is for GPU backends, and this scan runs on the CPU: use fp32")
    if precision != "int8":
        raise Refused(f"--precision {precision!r:.40} is none of auto, fp32, fp16 and int8")
    if not bundle.has_int8:
        raise Refused(
            f"--precision int8 needs an INT8 form, which the bundle {bundle.path} has not: use fp32"
        )
    raise Refused("--precision int8 is not in this version yet: use --precision fp32")


def _openvino_fp32(bundle: "Bundle", kept: "EngineCache | None", threads: int | None) -> "Engine":
    from ..engine.runtime import Engine, open_engine, runtime_openvino
    from .cache import cache_key
    from .gate import pass_gate

    facts = _facts(bundle, runtime_openvino.version())
    key = cache_key(facts)
    entry = kept.load(key) if kept else None
    engine = Engine(
        backend=facts["backend"],
        version=facts["version"],
        device="cpu",
        precision=facts["precision"],
        input_size=facts["input_size"],
        features=bundle.manifest.architecture.features,
        bundle_hash=bundle.hash,
        key=key,
        blob=entry.blob if entry else runtime_openvino.build(bundle.network_onnx, bundle.bigan_onnx),
        parity=_parity(entry.record) if entry else None,
    )
    if engine.parity is not None:
        return engine
    with closing(open_engine(engine, threads)) as runner:
        parity = pass_gate(bundle, runner)
    log.debug("%s: %s", engine.description, parity)
    if kept:
        kept.store(key, engine.blob, {"facts": facts, "parity": asdict(parity)})
    return replace(engine, parity=parity)


def _facts(bundle: "Bundle", version: str) -> dict[str, Any]:
    """All that the engine's numbers depend on."""
    from ..engine.machine import cpu_flags, cpu_model

    return {
        "bundle": bundle.hash,
        "backend": "openvino",
        "version": version,
        "device": cpu_model(),
        "cpu_flags": sorted(cpu_flags()),
        "isa_limit": {name: os.environ.get(name) for name in ISA_LIMITS},
        "precision": "fp32",
        "input_size": bundle.manifest.architecture.input_size,
        "batch": "free",
    }


def _parity(record: "Mapping[str, Any]") -> "Parity | None":
    """Read the gate's report as a cached record holds it, or None where it is not whole."""
    from ..engine.runtime import Parity

    found = record.get("parity")
    if not isinstance(found, dict) or found.keys() != Parity.__dataclass_fields__.keys():
        return None
    return Parity(**{**found, "cpu_flags": tuple(found["cpu_flags"])})
