"""Findings about this machine: what it can do, what a scan here would use, and why."""

import ctypes
import os
import platform
import time
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from ...export.choice import gpu_name, is_installed, nvidia_gpus, unfit_tensorrt, unusable
from ...export.gate import verdict
from ...kernels.compiler import PACKAGES as COMPILER_PACKAGES
from ...kernels.compiler import lacking
from ..bundle import DEMO_SENTENCE, Bundle, default_bundle_path
from ..errors import GbadError, how_to_install
from ..runtime import Engine
from ..runtime.cache import EngineCache, Stored
from ..settings import ScanSettings
from ..stages.plan import plan_for
from ..stages.scorer import devices_of
from ..system.machine import cpu_flags, cpu_model, usable_cores

PACKAGES = {
    "scan on the CPU": (
        "openvino",
        "simplejpeg",
        "nvidia-nvimgcodec-cu13",
        "cykooz-resizer",
        "pyarrow",
        "numpy",
    ),
    "train": ("torch", "timm", "scikit-learn", "nncf"),
    "gpu": ("nvidia-dali-cuda130", "torch", "nvidia-cuda-runtime", "timm", "triton", "cuml-cu13"),
    "tensorrt": ("tensorrt", "torch-tensorrt", "nvidia-dali-cuda130", "torch", "timm", "onnxscript"),
    "cluster": ("ray",),
}
UNNEEDED = {"torch-tensorrt": "missing, and not needed: TensorRT's own builder makes the engines"}
DRIVER = Path("/proc/driver/nvidia/version")
FLAGS = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "amx_int8", "avx512_bf16", "amx_bf16")
# whose cards have JPEG engines: A100 and A30, H100 and H200, B100 to B300, and RTX 50 as is reported
JPEG_ENGINES = ("sm_80", "sm_90", "sm_100", "sm_103", "sm_120")
DAY = 86400  # seconds


@dataclass(frozen=True)
class Finding:
    """One finding: its subject, its text, and whether a scan can run with it."""

    section: str
    name: str
    found: str
    ok: bool = True


def examine(
    model: Path | None, device: str, engine: str, precision: str, cache_dir: Path | None
) -> list[Finding]:
    """Look at the machine, the packages, the model and the engine that a scan would use."""
    findings = [*_machine(), *_packages(), *_cache(cache_dir)]
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
    """Describe a GPU of this machine: its driver, its model, and whether a scan can use it."""
    driver = DRIVER.read_text().splitlines()[0] if DRIVER.exists() else "none is loaded"
    findings = [
        Finding("machine", "NVIDIA driver", driver),
        Finding("machine", "CUDA of the driver", driver_cuda() or "no driver can be loaded"),
    ]
    reason = unusable("cuda:0")
    if reason:
        return [*findings, Finding("machine", "usable by a scan", f"no: {reason}", ok=False)]
    name = gpu_name("cuda:0")
    return [
        *findings,
        Finding("machine", "usable by a scan", name),
        Finding("machine", "JPEG engines", jpeg_engines(name.rpartition(" ")[2])),
    ]


def driver_cuda() -> str | None:
    """Return the newest CUDA version that the driver supports, such as 13.0; None without a driver."""
    number = ctypes.c_int()
    try:
        failed = ctypes.CDLL("libcuda.so.1").cuDriverGetVersion(ctypes.byref(number))
    except OSError:
        return None
    return None if failed else f"{number.value // 1000}.{number.value % 1000 // 10}"


def jpeg_engines(capability: str) -> str:
    """Tell whether cards of an architecture, such as sm_90, decode JPEG in hardware."""
    if capability in JPEG_ENGINES:
        return f"expected, since cards of {capability} have them; this one was not asked"
    return f"none known of {capability}: JPEGs are decoded by CUDA kernels and the CPU"


def _packages() -> list[Finding]:
    findings = []
    for purpose, names in PACKAGES.items():
        needed = purpose == "scan on the CPU"
        for name in names:
            try:
                findings.append(Finding(purpose, name, version(name)))
            except PackageNotFoundError:
                findings.append(Finding(purpose, name, _how(purpose, name), ok=not needed))
    return [*findings, *_compiler(), *_tensorrt()]


def _compiler() -> list[Finding]:
    """Tell whether Triton can compile, which it does at its first launch, also beside TensorRT."""
    if not is_installed("triton"):
        return []
    reason = lacking()
    found = f"{reason}; plain torch would compute instead: {COMPILER_PACKAGES}" if reason else "found"
    return [Finding("gpu", "C compiler and Python.h", found)]


def _tensorrt() -> list[Finding]:
    """Tell of a TensorRT that is installed and cannot be used."""
    reason = unfit_tensorrt() if is_installed("tensorrt") else None
    return [Finding("tensorrt", "version", f"{reason}: {how_to_install('tensorrt')}")] if reason else []


def _how(purpose: str, name: str) -> str:
    """Return how to install a missing package."""
    if name in UNNEEDED:
        return UNNEEDED[name]
    if purpose == "scan on the CPU":
        return "missing: reinstall gbad-batch"
    return f"missing: {how_to_install(purpose)}"


def _cache(path: Path | None) -> list[Finding]:
    kept = EngineCache.open(path)
    if kept is None:
        return [Finding("cache", "folder", "not used: engines are built in memory, by every scan")]
    with closing(kept):
        contents, benchmarks = kept.contents(), kept.of_benchmarks()
    return [
        Finding("cache", "folder", str(kept.path)),
        Finding("cache", "contents", _sized(contents, benchmarks)),
        *([Finding("cache", "age", _age(contents))] if contents else []),
    ]


def emptied(path: Path | None) -> list[Finding]:
    """Remove the engines cached at `path` (None: the user's cache folder); returns what they were."""
    kept = EngineCache.open(path)
    if kept is None:
        return [Finding("cache", "emptied", "no: it is not used, see the warning", ok=False)]
    with closing(kept):
        benchmarks = kept.of_benchmarks()
        return [Finding("cache", "emptied", f"{kept.path}: {_sized(kept.empty(), benchmarks)}")]


def _sized(contents: list[Stored], benchmarks: int) -> str:
    """Say how much engines and plans take, and files of the benchmarks."""
    total = sum(stored.bytes for stored in contents)
    noun = "entry" if len(contents) == 1 else "entries"
    parts = [f"{len(contents)} {noun}, {total / 1e6:.1f} MB"] if contents else []
    parts += [f"{benchmarks / 1e6:.1f} MB of benchmarks"] if benchmarks else []
    return ", and ".join(parts) or "nothing"


def _age(contents: list[Stored]) -> str:
    """Return when the oldest and the newest entry were written."""
    oldest, newest = (max(0.0, time.time() - each.written) / DAY for each in (contents[0], contents[-1]))
    return f"written {newest:.1f} to {oldest:.1f} days ago"


def _engine(
    bundle: Bundle, device: str, engine: str, precision: str, cache_dir: Path | None
) -> list[Finding]:
    from ...export import engine_for

    try:
        ready = engine_for(bundle, device=device, engine=engine, precision=precision, cache_dir=cache_dir)
    except GbadError as error:
        return [Finding("engine", "a scan here", str(error), ok=False)]
    plan = plan_for(ScanSettings(cache_dir=cache_dir), ready, len(devices_of(device, ready.device)))
    return [
        Finding("engine", "a scan here would use", ready.description),
        Finding("engine", "because", f"{_why_there(ready, device, engine)}; {_why_by(ready, engine)}"),
        *([Finding("engine", "in this precision", ready.reason)] if ready.reason else []),
        *(
            [Finding("engine", "checked", f"{ready.parity}; {verdict(bundle, ready)}")]
            if ready.parity
            else []
        ),
        Finding("engine", "and would compute", str(plan)),
    ]


def _why_there(ready: Engine, device: str, engine: str) -> str:
    """Return why a scan runs on this device."""
    if device != "auto":
        return f"--device {device} asks for it"
    if ready.device != "cpu":
        return "an NVIDIA GPU is here that torch can use"
    if engine == "openvino":
        return "--engine openvino runs on the CPU"
    reason = unusable("cuda:0") if nvidia_gpus() else None
    return f"the NVIDIA GPU cannot be used: {reason}" if reason else "no NVIDIA GPU is here"


def _why_by(ready: Engine, engine: str) -> str:
    """Return why this backend runs the networks."""
    if engine != "auto":
        return f"--engine {engine} asks for it"
    reasons = {
        "openvino": "OpenVINO is the backend of the CPU",
        "tensorrt": "TensorRT is installed",
        "inductor": (unfit_tensorrt() if is_installed("tensorrt") else None) or "TensorRT is not installed",
    }
    return reasons[ready.backend]
