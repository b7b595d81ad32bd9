"""nvImageCodec, loaded once and quietly, and its decoders."""

import ctypes
import os
import re
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from ..text import one_line

OF_A_GPU = ("libnvjpeg", "libnvtiff")  # beginnings of the names of extensions
LACKS_OF_MEMORY = (5, 15)  # nvImageCodec's codes where an allocation failed, by nvimgcodec.h
STATUSES = {  # its others, as they are called there
    1: "not initialized",
    2: "invalid parameter",
    6: "execution failed",
    7: "architecture mismatch",
    8: "internal error",
    9: "implementation unsupported",
    10: "missed dependencies",
    11: "extension not initialized",
    21: "CUDA call error",
}

_loading = threading.Lock()


def nvimagecodec() -> Any:
    """Return the module nvimgcodec, the same for all threads."""
    with _loading:
        return _load()


class NoDecoder(OSError):
    """nvImageCodec makes no decoder: a fault of the machine, and the text says which."""


def cpu_decoder(threads: int) -> Any:
    """Make a decoder for one caller; raises NoDecoder, or MemoryError for a lack of memory."""
    return _cpu_decoder(nvimagecodec(), max_num_cpu_threads=threads)


def gpu_decoder(gpu: int, threads: int, hardware_share: float) -> Any:
    """Make a decoder on a GPU for one caller, chroma upsampled as the CPU decoders do.

    `hardware_share` of the JPEGs goes to the GPU's JPEG hardware, where it has some. What its codecs refuse
    is refused: nvImageCodec's own CPU codecs would step over damage without a word. Raises as `cpu_decoder`.
    """
    nvimgcodec = nvimagecodec()
    return _made(
        nvimgcodec,
        f"nvImageCodec makes no decoder on cuda:{gpu}",
        device_id=gpu,
        max_num_cpu_threads=threads,
        backends=[
            nvimgcodec.Backend(nvimgcodec.HW_GPU_ONLY, load_hint=hardware_share),
            nvimgcodec.Backend(nvimgcodec.GPU_ONLY),
            nvimgcodec.Backend(nvimgcodec.HYBRID_CPU_GPU),
        ],
        options=":fancy_upsampling=1",
    )


def _cpu_decoder(nvimgcodec: Any, **options: Any) -> Any:
    options["device_id"] = nvimgcodec.NVIMGCODEC_DEVICE_CPU_ONLY
    options["backends"] = [nvimgcodec.Backend(nvimgcodec.CPU_ONLY)]
    return _made(nvimgcodec, "nvImageCodec makes no decoder", **options)


def _made(nvimgcodec: Any, what: str, **options: Any) -> Any:
    """Make a decoder; only a number tells nvImageCodec's reasons apart."""
    try:
        return nvimgcodec.Decoder(**options)
    except MemoryError:
        raise
    except Exception as error:
        code = int((re.findall(r"Code: (\d+)", str(error)) or [-1])[-1])
        if code in LACKS_OF_MEMORY:
            raise MemoryError(f"{what}: {one_line(error)}") from error
        meaning = f" ({STATUSES[code]})" if code in STATUSES else ""
        raise NoDecoder(f"{what}: {one_line(error)}{meaning}") from error


def nvjpeg_is_loaded() -> bool:
    """Tell whether this process has loaded nvJPEG, as a decoder on a GPU does that can use it."""
    return bool(nvjpeg_libraries())


def nvjpeg_libraries() -> list[str]:
    """Return the paths, repeated, of what this process has loaded of nvJPEG."""
    return [word for word in Path("/proc/self/maps").read_text().split() if "/libnvjpeg.so" in word]


@cache
def _load() -> Any:
    """Load nvImageCodec, without the codecs that cannot work here.

    Left to itself it also loads those of NVIDIA's GPU libraries, which write lines of ERROR to standard
    error where these or the driver are missing. There its extension path points at links to the others while
    it loads, and nowhere else: a library is looked for beside the link by which an extension was opened, and
    one that was not found stays missing for the whole process, for DALI too. Messages of single images stay
    off, since each has a row.
    """
    package = find_spec("nvidia.nvimgcodec")
    if package is None or not package.submodule_search_locations:
        raise ImportError("nvidia-nvimgcodec is not installed; reinstall gbad-batch")
    folder = Path(package.submodule_search_locations[0]) / "extensions"
    with (
        _extensions(folder) as extensions,
        _environment(
            NVIMGCODEC_EXTENSIONS_PATH=str(extensions), PYNVIMGCODEC_VERBOSITY="0", OPENCV_LOG_LEVEL="SILENT"
        ),
    ):
        nvimgcodec = import_module("nvidia.nvimgcodec")
        _cpu_decoder(nvimgcodec)
    return nvimgcodec


@contextmanager
def _extensions(folder: Path) -> Iterator[Path]:
    """Return the folder of the extensions, or of links to those that work without a GPU."""
    if _gpu_codecs_work():
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="gbad-batch-") as links:
        for extension in folder.iterdir():
            if not extension.name.startswith(OF_A_GPU):
                Path(links, extension.name).symlink_to(extension)
        yield Path(links)


def _gpu_codecs_work() -> bool:
    """Tell whether a GPU's codecs have what they need: their libraries, which DALI brings, and the driver."""
    if find_spec("nvidia.dali") is None:
        return False
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


@contextmanager
def _environment(**values: str) -> Iterator[None]:
    """Set environment variables for native code, and put the old ones back."""
    old = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in old.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
