"""What this machine can do, and what a scan here would use."""

import os
import platform
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ..export.choice import gpu_name, nvidia_gpus, unusable
from .bundle import DEMO_SENTENCE, Bundle, default_bundle_path
from .errors import GbadError
from .machine import cpu_flags, cpu_model, usable_cores
from .plan import plan_for
from .settings import ScanSettings

PACKAGES = {
    "scan on the CPU": (
        "openvino",
        "simplejpeg",
        "nvidia-nvimgcodec-cu13",
        "cykooz-resizer",
        "pyarrow",
        "numpy",
    ),
    "train": ("torch", "timm", "scikit-learn", "nncf", "nvidia-dali-cuda130"),
    "gpu": ("nvidia-dali-cuda130", "torch", "timm", "triton", "cuml-cu13"),
    "tensorrt": ("tensorrt", "torch", "timm", "onnxscript"),
    "cluster": ("ray",),
}
DRIVER = Path("/proc/driver/nvidia/version")
FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "avx512_bf16")


@dataclass(frozen=True)
class Finding:
    """One line of the doctor: what, the finding, and whether it stops a scan."""

    section: str
    name: str
    found: str
    ok: bool = True


def examine(
    model: Path | None, device: str, engine: str, precision: str, cache_dir: Path | None
) -> list[Finding]:
    """Look at the machine, the packages, the model and the engine that a scan would use."""
    findings = [*_machine(), *_packages()]
    try:
        bundle = Bundle.read(model or default_bundle_path())
    except GbadError as error:
        return [*findings, Finding("model", "bundle", str(error), ok=False)]
    findings.append(Finding("model", "name", f"{bundle.manifest.name} ({bundle.hash[:12]})"))
    if bundle.manifest.demo:
        findings.append(Finding("model", "use", DEMO_SENTENCE))
    return findings + _engine(bundle, device, engine, precision, cache_dir)


def _machine() -> list[Finding]:
    flags = cpu_flags()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    gpu = nvidia_gpus()
    return [
        Finding(
            "machine",
            "system",
            f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        ),
        Finding("machine", "CPU", cpu_model()),
        Finding("machine", "cores a scan may use", str(usable_cores())),
        Finding("machine", "instructions", ", ".join(f for f in FLAGS if f in flags) or "none of note"),
        Finding("machine", "memory", f"{memory:.1f} GiB"),
        Finding("machine", "NVIDIA GPU", f"{len(gpu)} found" if gpu else "none found"),
        *(_driven() if gpu else []),
    ]


def _driven() -> list[Finding]:
    """Say of a GPU that is here whether anything can be computed on it, by what driver, and its name."""
    reason = unusable("cuda:0")
    driver = DRIVER.read_text().splitlines()[0] if DRIVER.exists() else "none is loaded"
    found = f"no: {reason}" if reason else gpu_name("cuda:0")
    return [
        Finding("machine", "NVIDIA driver", driver),
        Finding("machine", "usable by a scan", found, ok=not reason),
    ]


def _packages() -> list[Finding]:
    findings = []
    for purpose, names in PACKAGES.items():
        needed = purpose == "scan on the CPU"
        for name in names:
            try:
                findings.append(Finding(purpose, name, version(name)))
            except PackageNotFoundError:
                how = (
                    "missing: reinstall gbad-batch"
                    if needed
                    else f"missing: pip install 'gbad-batch[{purpose}]'"
                )
                findings.append(Finding(purpose, name, how, ok=not needed))
    return findings


def _engine(
    bundle: Bundle, device: str, engine: str, precision: str, cache_dir: Path | None
) -> list[Finding]:
    from ..export import engine_for

    try:
        ready = engine_for(bundle, device=device, engine=engine, precision=precision, cache_dir=cache_dir)
    except GbadError as error:
        return [Finding("engine", "a scan here", str(error), ok=False)]
    plan = plan_for(ScanSettings(cache_dir=cache_dir), ready)
    return [
        Finding("engine", "a scan here would use", ready.description),
        Finding("engine", "and would compute", str(plan)),
    ]
