"""nvImageCodec, loaded once and quietly, and its decoders."""

import ctypes
import os
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

_loading = threading.Lock()


def nvimagecodec() -> Any:
    """Return the module nvimgcodec, the same for all threads."""
    with _loading:
        return _load()


def cpu_decoder(threads: int) -> Any:
    """Make a decoder for one caller; raises MemoryError, since no file has a part in what fails here."""
    nvimgcodec = nvimagecodec()
    try:
        return nvimgcodec.Decoder(
            device_id=nvimgcodec.NVIMGCODEC_DEVICE_CPU_ONLY,
            max_num_cpu_threads=threads,
            backends=[nvimgcodec.Backend(nvimgcodec.CPU_ONLY)],
        )
    except Exception as error:
        raise MemoryError(f"nvImageCodec makes no decoder: {one_line(error)}") from error


def gpu_decoder(gpu: int, threads: int, hardware_share: float) -> Any:
    """Make a decoder on a GPU for one caller, chroma upsampled as the CPU decoders do; raises RuntimeError.

    `hardware_share` of the JPEGs goes to the GPU's JPEG hardware, where it has some. What its codecs refuse
    is refused: nvImageCodec's own CPU codecs would step over damage without a word.
    """
    nvimgcodec = nvimagecodec()
    return nvimgcodec.Decoder(
        device_id=gpu,
        max_num_cpu_threads=threads,
        backends=[
            nvimgcodec.Backend(nvimgcodec.HW_GPU_ONLY, load_hint=hardware_share),
            nvimgcodec.Backend(nvimgcodec.GPU_ONLY),
            nvimgcodec.Backend(nvimgcodec.HYBRID_CPU_GPU),
        ],
        options=":fancy_upsampling=1",
    )


@cache
def _load() -> Any:
    """Load nvImageCodec, without the codecs that cannot work here.

    Left to itself it also loads those of NVIDIA's GPU libraries, which write lines of ERROR to standard
    error where these or the driver are missing. So its extension path points at links to the others while
    it loads; its messages of single images stay off, since each has a row.
    """
    package = find_spec("nvidia.nvimgcodec")
    if package is None or not package.submodule_search_locations:
        raise ImportError("nvidia-nvimgcodec is not installed; reinstall gbad-batch")
    folder = Path(package.submodule_search_locations[0]) / "extensions"
    useless = () if _gpu_codecs_work() else ("libnvjpeg", "libnvtiff")
    with tempfile.TemporaryDirectory(prefix="gbad-batch-") as links:
        for extension in folder.iterdir():
            if not extension.name.startswith(useless):
                Path(links, extension.name).symlink_to(extension)
        with _environment(
            NVIMGCODEC_EXTENSIONS_PATH=links, PYNVIMGCODEC_VERBOSITY="0", OPENCV_LOG_LEVEL="SILENT"
        ):
            nvimgcodec = import_module("nvidia.nvimgcodec")
            nvimgcodec.Decoder(
                device_id=nvimgcodec.NVIMGCODEC_DEVICE_CPU_ONLY,
                backends=[nvimgcodec.Backend(nvimgcodec.CPU_ONLY)],
            )
    return nvimgcodec


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
