"""torch Inductor: the model compiled from its weights, on an NVIDIA GPU where TensorRT is not, or on the CPU.

torch.compile rather than its ahead-of-time form: that one links against the whole CUDA toolkit, which no
package of torch brings, where this one needs a C compiler alone. What was compiled and tuned travels in the
engine, so that it is opened without doing either again. Shapes are static, a batch is filled up to the size
that was compiled: with a free size Inductor compiles other code, of other bits, for other sizes.
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
from . import Engine, Outputs, check_pixels, scored_twice
from .torch_form import unpack

if TYPE_CHECKING:
    from ..model.gbad import GBAD
    from . import Pixels
    from .lanes import Forward

SIZES = {"cpu": 8, "cuda": 256}  # images that an engine is compiled for
BATCH = str(SIZES)  # of the engine, as in a cache key
LANES = 2  # batches under way at once on a GPU
COMPILED = "compiled"  # what is stored beside the weights
FOLDERS = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")


def version() -> str:
    """Version of torch, with those of the packages that its engines depend on too."""
    return "-".join(version_of(name) for name in ("torch", "timm", "triton"))


def compile_model(model: "GBAD", device: str, precision: str, known: bytes = b"") -> tuple[Any, bytes]:
    """Compile a model for `cpu` or `cuda:N`; returns it and what was compiled, to be `known` the next time.

    The result maps uint8 pixels of the one size to the outputs, both on the device. Raises Refused where
    Inductor cannot compile, which needs a C++ compiler.
    """
    import torch

    from ..model.parts import Parts
    from .lanes import exact_float32

    kind = device.partition(":")[0]
    parts = Parts(model, precision).to(device)
    side = model.architecture.input_size
    pixels = torch.zeros((SIZES[kind], side, side, 3), dtype=torch.uint8, device=device)
    try:
        with _own_folders(), exact_float32(), torch.inference_mode():
            if known:
                torch.compiler.load_cache_artifacts(known)
            run = torch.compile(parts, fullgraph=True, dynamic=False, options=_options(kind))
            run(pixels)
            made = torch.compiler.save_cache_artifacts()
    except (RuntimeError, OSError) as error:
        raise Refused(
            f"torch Inductor cannot compile the model for {device} ({_reason(error)}): it needs a C++ "
            "compiler and Python's headers; install them, or use --engine openvino --device cpu"
        ) from error
    return run, made[0] if made else b""


def _options(kind: str) -> dict[str, Any]:
    # precompiled headers would lie in the folder that all users share, whatever _own_folders says
    options: dict[str, Any] = {"cpp_cache_precompile_headers": False}
    if kind == "cpu":
        return options | {"freezing": True, "cpp.dynamic_threads": True}
    # graphs are captured in `lanes`, around all of the model, into buffers that stay
    return options | {"max_autotune": True, "triton.cudagraphs": False}


@contextmanager
def _own_folders() -> Iterator[None]:
    """Keep what Inductor and Triton write, and later load as code, out of the folder that all users share."""
    before = {name: os.environ.get(name) for name in FOLDERS}
    os.environ.update({name: str(Path(_scratch().name) / name.lower()) for name in FOLDERS})
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name) if value is None else os.environ.update({name: value})


@cache
def _scratch() -> tempfile.TemporaryDirectory[str]:
    """Make a folder of this process alone, gone when it ends; what one engine compiled serves the next."""
    return tempfile.TemporaryDirectory(prefix="gbad-batch-", ignore_cleanup_errors=True)


class InductorRunner:
    """An open Inductor engine."""

    def __init__(self, engine: Engine, threads: int | None):
        import torch

        self.engine = engine
        if engine.device == "cpu":
            torch.set_num_threads(threads or usable_cores())
        model, made = unpack(engine.blob)
        found = (model.architecture.input_size, model.architecture.features)
        if found != (engine.input_size, engine.features):
            raise Refused(f"{engine.description} has another input size or length of x: rebuild it")
        run, _ = compile_model(model, engine.device, engine.precision, made.get(COMPILED, b""))
        self._run: Callable[[Pixels], Outputs] | None = self._runs(run)

    def __call__(self, pixels: "Pixels") -> Outputs:
        """Score pixels uint8 [n, S, S, 3]."""
        check_pixels(self.engine, pixels)
        if self._run is None:
            raise ValueError("the runner is closed")
        return scored_twice(self.engine, self._run, pixels)

    def close(self) -> None:
        """Free the model's memory."""
        self._run = None

    def _runs(self, run: "Forward") -> "Callable[[Pixels], Outputs]":
        import torch

        from .lanes import Lanes

        if self.engine.device == "cpu":
            return lambda pixels: _on_cpu(run, pixels)
        device = torch.device(self.engine.device)
        return Lanes([run] * LANES, [SIZES["cuda"]], self.engine.input_size, device)


def _on_cpu(run: "Forward", pixels: "Pixels") -> Outputs:
    """Score pixels [n, S, S, 3] in batches of the one size, the last filled up."""
    import torch

    from .lanes import joined

    parts, size = [], SIZES["cpu"]
    with torch.inference_mode():
        for start in range(0, len(pixels), size):
            chunk = pixels[start : start + size]
            whole = np.zeros((size, *pixels.shape[1:]), np.uint8)
            whole[: len(chunk)] = chunk
            parts.append(Outputs(*(each[: len(chunk)].numpy() for each in run(torch.from_numpy(whole)))))
    return joined(parts)


def _reason(error: Exception) -> str:
    """Say on one line what a compiler says on many."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__
