"""The chain of a GPU, step by step on a few images, each in a process of its own: a crash ends one step."""

import ctypes
import faulthandler
import importlib
import json
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...export import engine_for
from ...export.choice import gpu_name
from ...export.gate import pass_gate
from ...kernels.compiler import lacking
from ..bundle import Bundle, default_bundle_path
from ..decode import DecodeLimits, Decoder
from ..decode.native import nvjpeg_is_loaded, nvjpeg_libraries
from ..errors import Refused
from ..row import Row
from ..runtime import Engine, open_engine
from ..scan import Scan
from ..settings import Backend, Precision, ScanSettings
from ..synth import SynthSettings, write_archive
from ..system.machine import cpu_model, installed, usable_cores
from ..text import one_line

IMAGES = 64
LONGEST_S = 3600  # of a step; TensorRT takes minutes for its plans
MOST_LINES = 200  # of what a step said, the last ones
MOST_LEVELS = 1.0  # mean difference of pixels from the CPU's
PACKAGES = (
    *("nvidia-dali-cuda130", "nvidia-nvimgcodec-cu13", "nvidia-nvjpeg", "nvidia-ml-py", "torch", "triton"),
    *("tensorrt", "torch-tensorrt", "cuml-cu13", "timm", "onnx", "onnxscript", "numpy", "openvino"),
)
WORKS, FALLS_BACK, FAILS = "works", "works by fall-back", "fails"

Found = tuple[str, str]  # outcome, and what was seen


@dataclass(frozen=True)
class Subject:
    """What the chain is shown on."""

    device: str  # cuda:N; the steps run on `cpu` too, where what they name can be done there
    images: str  # folder
    model: str
    engine: Backend
    precision: Precision
    cache_dir: str | None

    @property
    def gpu(self) -> int | None:
        """Number of the GPU; None for the CPU."""
        return None if self.device == "cpu" else int(self.device.partition(":")[2])

    def bundle(self) -> Bundle:
        """Read the model."""
        return Bundle.read(self.model)

    def ready(self) -> Engine:
        """Return the engine, from the cache or newly built."""
        cache = Path(self.cache_dir) if self.cache_dir else None
        return engine_for(self.bundle(), self.device, self.engine, self.precision, cache)

    def rows(self, device: str, engine: Backend, precision: Precision) -> list[Row]:
        """Scan the images."""
        settings = ScanSettings(
            sources=(self.images,),
            model=self.model,
            device=device,
            engine=engine,
            precision=precision,
            cache_dir=self.cache_dir,
        )
        return sorted(Scan(settings).rows(), key=lambda row: row.uri)


@dataclass(frozen=True)
class Step:
    """How a step went."""

    name: str
    outcome: str  # works, works by fall-back, or fails
    found: str
    seconds: float
    said: list[str]  # on standard error: tracebacks, warnings and what libraries print


def run_chain(
    device: str, model: Path | None, engine: Backend, precision: Precision, cache_dir: Path | None
) -> Iterator[Step]:
    """Run every step in turn, whatever became of those before it; yields each when it has ended.

    Raises BundleError, before the first, for a model that cannot be read.
    """
    Bundle.read(model or default_bundle_path())
    with tempfile.TemporaryDirectory(prefix="gbad-batch-") as scratch:
        write_archive(Path(scratch, "bags"), SynthSettings(IMAGES, seed=1, positive=0.5))
        subject = Subject(
            device=device,
            images=str(Path(scratch, "bags", "images")),
            model=str(model or default_bundle_path()),
            engine=engine,
            precision=precision,
            cache_dir=str(cache_dir) if cache_dir else None,
        )
        for name in STEPS:
            yield run_step(name, subject, Path(scratch, f"{name}.json"))


def run_step(name: str, subject: Subject, result: Path, longest_s: float = LONGEST_S) -> Step:
    """Run a step in a process of its own, which writes to the new file `result`; what it says is kept."""
    words = [name, json.dumps(asdict(subject)), str(result)]
    began = time.monotonic()
    with tempfile.TemporaryFile("w+", errors="backslashreplace") as errors:
        try:
            code = subprocess.run(  # noqa: S603 - our own module; -P: none of the current folder's
                [sys.executable, "-P", "-m", __name__, *words],
                stdin=subprocess.DEVNULL,
                stdout=errors,
                stderr=errors,
                timeout=longest_s,
            ).returncode
        except subprocess.TimeoutExpired:
            code = None
        errors.seek(0)
        said = [line.rstrip() for line in errors][-MOST_LINES:]
    seconds = round(time.monotonic() - began, 1)
    if code == 0:
        outcome, found = json.loads(result.read_text())
        return Step(name, outcome, found, seconds, said)
    reason = next((line for line in reversed(said) if line), "it says nothing")
    if code is None:
        reason = f"it did not end within {longest_s:.0f} s"
    elif code < 0:
        reason = f"it was ended by signal {-code}"
    return Step(name, FAILS, reason, seconds, said)


def report(device: str, model: Path | None, steps: list[Step]) -> dict[str, Any]:
    """Return what an issue needs: versions, machine and steps."""
    return {
        "gbad-batch": version("gbad-batch"),
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpu": f"{cpu_model()}, {usable_cores()} cores",
        "packages": installed(PACKAGES),
        "device": device,
        "model": Bundle.read(model or default_bundle_path()).hash,
        "steps": [asdict(step) for step in steps],
    }


# --- the steps ---


def driver(_: Subject) -> Found:
    """Load the driver's library and start it."""
    library, number, text = ctypes.CDLL("libcuda.so.1"), ctypes.c_int(), ctypes.c_char_p()
    if code := library.cuInit(0):
        library.cuGetErrorString(code, ctypes.byref(text))
        raise Refused(f"cuInit: {(text.value or b'unknown').decode()} ({code})")
    library.cuDriverGetVersion(ctypes.byref(number))
    return WORKS, f"CUDA {number.value // 1000}.{number.value % 1000 // 10}"


def nvml(_: Subject) -> Found:
    """Ask the driver for its GPUs."""
    import pynvml

    pynvml.nvmlInit()
    handles = [pynvml.nvmlDeviceGetHandleByIndex(i) for i in range(pynvml.nvmlDeviceGetCount())]
    names = ", ".join(str(pynvml.nvmlDeviceGetName(handle)) for handle in handles)
    return WORKS, f"driver {pynvml.nvmlSystemGetDriverVersion()}: {names}"


def torch(subject: Subject) -> Found:
    """Compute on the device."""
    library = importlib.import_module("torch")
    total = library.ones(1000, device=subject.device).sum().item()
    if total != 1000:
        raise Refused(f"a sum of 1000 ones is {total}")
    return WORKS, "a sum is right" if subject.gpu is None else gpu_name(subject.device)


def nvjpeg(subject: Subject) -> Found:
    """Decode by DALI, without JPEG hardware."""
    return _decoded(subject, 0.0)


def hardware(subject: Subject) -> Found:
    """Decode by DALI, all JPEGs by the card's JPEG hardware, where it has any."""
    outcome, found = _decoded(subject, 1.0)
    if subject.gpu is None or outcome != WORKS:
        return outcome, found
    engines = jpeg_engines()
    return (WORKS if engines else FALLS_BACK), f"{found}; JPEG engines by nvJPEG: {engines}"


def triton(subject: Subject) -> Found:
    """Run the kernels beside their plain forms."""
    from torch import randn
    from torch.testing import assert_close

    from ...kernels.bigan_losses import plain_two_losses, two_losses
    from ...kernels.border_pool import border_means, plain_border_means

    if subject.gpu is not None and (reason := lacking()):  # else plain forms stand beside plain forms
        return FALLS_BACK, f"plain torch computes, for Triton cannot compile: {reason}"
    maps = randn(8, 64, 16, 16, device=subject.device).half()
    assert_close(border_means(maps), plain_border_means(maps))
    pairs = [randn(8, size, device=subject.device) for size in (1024, 1024, 128, 128)]
    assert_close(two_losses(*pairs), plain_two_losses(*pairs))
    return WORKS, "two kernels as their plain forms"


def engine(subject: Subject) -> Found:
    """Build the engine, or take it from the cache."""
    ready = subject.ready()
    found = "; ".join(filter(None, (ready.description, ready.reason)))
    slower = ready.backend == "inductor" or (subject.precision == "auto" and ready.precision == "fp32")
    return (FALLS_BACK if slower and subject.gpu is not None else WORKS), found


def gate(subject: Subject) -> Found:
    """Open the engine and compare it with FP32 on the bundle's images."""
    with closing(open_engine(subject.ready())) as runner:
        return WORKS, str(pass_gate(subject.bundle(), runner))


def decision(subject: Subject) -> Found:
    """Scan the images here, and on the CPU in FP32."""
    rows = subject.rows(subject.device, subject.engine, subject.precision)
    plain = subject.rows("cpu", "auto", "fp32")
    states = [(row.uri, row.status) for row in rows]
    if states != [(row.uri, row.status) for row in plain]:
        raise Refused(f"images have another status than on the CPU: {states}")
    same = sum(row.anomalous == wanted.anomalous for row, wanted in zip(rows, plain, strict=True))
    if same < len(rows) - 1:
        raise Refused(f"{same} of {len(rows)} decisions are those of the CPU in FP32")
    return WORKS, f"{same} of {len(rows)} decisions are those of the CPU in FP32"


STEPS: dict[str, Callable[[Subject], Found]] = {
    each.__name__: each for each in (driver, nvml, torch, nvjpeg, hardware, triton, engine, gate, decision)
}


def _decoded(subject: Subject, hardware_share: float) -> Found:
    """Decode the images by DALI, or by nvImageCodec where it fails, and compare them with the CPU's."""
    from ..decode.dali_graph import CodedBatch, DaliGraph, GraphSettings
    from ..decode.gpu_per_image import PerImageDecoder
    from ..decode.host_memory import HostMemory

    size, files = subject.bundle().manifest.architecture.input_size, sorted(Path(subject.images).iterdir())
    alone, rows = Decoder(size, DecodeLimits()), [Row(file.name) for file in files]
    coded = [alone.gate(row, file.read_bytes()) for row, file in zip(rows, files, strict=True)]
    shapes = [(row.height or 0, row.width or 0) for row in rows]
    batch = CodedBatch.of(range(len(files)), [image for image in coded if image is not None], shapes)
    memory = HostMemory() if subject.gpu is None else _device_memory(subject.gpu)
    settings = GraphSettings(size, len(files), usable_cores(), subject.gpu, hardware_share)
    graph = DaliGraph(settings, encoded=True)
    try:
        pixels = memory.of(graph(batch.tensors, batch.ids).pixels)
    except RuntimeError as error:
        decode = PerImageDecoder(memory, subject.gpu, usable_cores(), hardware_share)
        if any(image is None for image in decode(batch.coded, shapes)):
            raise
        return FALLS_BACK, f"nvImageCodec decodes what DALI does not: {one_line(error)}"
    decoded = (alone.pixels(row, image) for row, image in zip(rows, batch.coded, strict=True))
    wanted = np.stack([image for image in decoded if image is not None])
    levels = _levels(pixels if subject.gpu is None else pixels.cpu().numpy(), wanted)
    if levels > MOST_LEVELS:
        raise Refused(f"pixels differ from the CPU's by {levels:.2f} levels on average")
    found = f"{len(files)} images; pixels differ from the CPU's by {levels:.2f} levels on average"
    if subject.gpu is not None and not nvjpeg_is_loaded():
        return FALLS_BACK, f"{found}; nvJPEG is not loaded, so the CPU has decoded"
    return WORKS, found


def _device_memory(gpu: int) -> Any:
    from ..decode.device_memory import DeviceMemory

    return DeviceMemory(gpu)


def _levels(pixels: NDArray[np.uint8], wanted: NDArray[np.uint8]) -> float:
    return float(np.abs(pixels.astype(np.int16) - wanted).mean())


def jpeg_engines() -> int:
    """Return how many JPEG engines nvJPEG, which is loaded, finds on the current card."""
    library = ctypes.CDLL(nvjpeg_libraries()[0])
    handle, engines, cores = ctypes.c_void_p(), ctypes.c_uint(), ctypes.c_uint()
    if code := library.nvjpegCreateSimple(ctypes.byref(handle)):
        raise Refused(f"nvjpegCreateSimple fails ({code})")
    if code := library.nvjpegGetHardwareDecoderInfo(handle, ctypes.byref(engines), ctypes.byref(cores)):
        raise Refused(f"nvjpegGetHardwareDecoderInfo fails ({code})")
    return engines.value


def main() -> None:
    """Run the step that the command names; an error ends the process with its traceback."""
    name, subject, result = sys.argv[1:]
    faulthandler.enable()
    Path(result).write_text(json.dumps(STEPS[name](Subject(**json.loads(subject)))))


if __name__ == "__main__":
    main()
