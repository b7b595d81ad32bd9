"""Runs an engine of torch Inductor, on an NVIDIA GPU without TensorRT or on the CPU.

torch.compile is used rather than its ahead-of-time form, which links against the whole CUDA toolkit, and no
package of torch contains that; torch.compile needs only a C++ compiler. Compiled code and tuning results are
stored in the engine, so that opening it repeats neither. Shapes are static and batches are padded to the
compiled size: with a dynamic size Inductor compiles other code, with other roundings, for other sizes.
"""

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib.metadata import version as version_of
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import Refused
from ..system.machine import usable_cores
from . import Engine, Outputs, check_pixels, concatenate, score_with_retry
from .torch_form import unpack

if TYPE_CHECKING:
    from ..model.gbad import GBAD
    from . import Pixels
    from .cuda_graphs import Forward

SIZES = {"cpu": 8, "cuda": 256}  # batch size that an engine is compiled for
BATCH = str(SIZES)  # batch sizes of the engine, as they stand in a cache key
COMPILED = "compiled"  # name of the artifact stored beside the weights
FOLDERS = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")


def version() -> str:
    """Return the versions of torch and of the packages that its engines also depend on."""
    return "-".join(version_of(name) for name in ("torch", "timm", "triton"))


def compile_model(model: "GBAD", device: str, precision: str, compiled: bytes = b"") -> tuple[Any, bytes]:
    """Compile a model for `cpu` or `cuda:N`; returns it, and the artifact to pass as `compiled` next time.

    The compiled model maps a uint8 batch of the one size to the outputs, both on the device. Raises Refused
    if Inductor cannot compile, for example without a C++ compiler.
    """
    import torch

    from ..model.mixed_precision import MixedPrecisionGBAD
    from .cuda import current
    from .cuda_graphs import exact_float32

    kind = device.partition(":")[0]
    module = MixedPrecisionGBAD(model, precision).to(device)
    side = model.architecture.input_size
    pixels = torch.zeros((SIZES[kind], side, side, 3), dtype=torch.uint8, device=device)
    try:
        with current(device), _private_folders(), exact_float32(), torch.inference_mode():
            if compiled:
                torch.compiler.load_cache_artifacts(compiled)
            run = torch.compile(module, fullgraph=True, dynamic=False, options=_options(kind))
            run(pixels)
            artifacts = torch.compiler.save_cache_artifacts()
    except (RuntimeError, OSError) as error:
        raise Refused(
            f"torch Inductor cannot compile the model for {device} ({_reason(error)}): it needs a C++ "
            "compiler and Python's headers; install them, or use --engine openvino --device cpu"
        ) from error
    return run, artifacts[0] if artifacts else b""


def _options(kind: str) -> dict[str, Any]:
    # precompiled headers would be written to a folder shared by all users, whatever _private_folders sets
    options: dict[str, Any] = {"cpp_cache_precompile_headers": False}
    if kind == "cpu":
        return options | {"freezing": True, "cpp.dynamic_threads": True}
    # `cuda_graphs` captures the whole model, with buffers that stay allocated
    return options | {"max_autotune": True, "triton.cudagraphs": False}


@contextmanager
def _private_folders() -> Iterator[None]:
    """Keep what Inductor and Triton write, and later load as code, out of folders shared by all users."""
    before = {name: os.environ.get(name) for name in FOLDERS}
    os.environ.update({name: str(Path(_scratch().name) / name.lower()) for name in FOLDERS})
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


@cache
def _scratch() -> tempfile.TemporaryDirectory[str]:
    """Make a folder of this process, removed when it ends; engines share what was compiled there."""
    return tempfile.TemporaryDirectory(prefix="gbad-batch-", ignore_cleanup_errors=True)


class InductorRunner:
    """Run an Inductor engine."""

    def __init__(self, engine: Engine, threads: int | None):
        import torch

        from .cuda_graphs import LANES

        self.engine = engine
        self.sizes = (SIZES[engine.device.partition(":")[0]],)
        self.streams = 1 if engine.device == "cpu" else LANES
        if engine.device == "cpu":
            torch.set_num_threads(threads or usable_cores())
        model, artifacts = unpack(engine.blob)
        if (model.architecture.input_size, model.architecture.features) != (
            engine.input_size,
            engine.features,
        ):
            raise Refused(
                f"{engine.description} has another input size or length of x than its record says: empty the "
                "cache folder"
            )
        run, _ = compile_model(model, engine.device, engine.precision, artifacts.get(COMPILED, b""))
        self._run: Callable[[Pixels], Outputs] | None = self._executor(run)

    def __call__(self, pixels: "Pixels") -> Outputs:
        """Score pixels uint8 [n, S, S, 3]."""
        check_pixels(self.engine, pixels)
        if self._run is None:
            raise ValueError("the runner is closed")
        return score_with_retry(self.engine, self._run, pixels)

    def close(self) -> None:
        """Free the model's memory."""
        self._run = None

    def _executor(self, run: "Forward") -> "Callable[[Pixels], Outputs]":
        import torch

        from .cuda_graphs import CudaLane, LaneRunner

        if self.engine.device == "cpu":
            return lambda pixels: _on_cpu(run, pixels)
        device, side = torch.device(self.engine.device), self.engine.input_size
        lanes = [CudaLane(lambda _: run, self.sizes, side, device) for _ in range(self.streams)]
        return LaneRunner(lanes, self.sizes[-1], device)


def _on_cpu(run: "Forward", pixels: "Pixels") -> Outputs:
    """Score pixels [n, S, S, 3] in batches of the compiled size, the last one padded."""
    import torch

    outputs, size = [], SIZES["cpu"]
    with torch.inference_mode():
        for start in range(0, len(pixels), size):
            chunk = pixels[start : start + size]
            padded = np.zeros((size, *pixels.shape[1:]), np.uint8)
            padded[: len(chunk)] = chunk
            arrays = (output[: len(chunk)].numpy() for output in run(torch.from_numpy(padded)))
            outputs.append(Outputs(*arrays))
    return concatenate(outputs)


def _reason(error: Exception) -> str:
    """Return the first line of a compiler's message."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__
