"""What the machine allows: bare native calls on all cores at once, over the files that a scan gets.

Nothing of the scan's own code is timed, so waste there never counts as limit. A process for each core reads
a file, hashes it, decodes it by libjpeg-turbo into a buffer, resizes it into an allocated target, and runs
its own stream of the engine on a batch that is ready. Only the time inside these calls counts.
"""

import hashlib
import io
import multiprocessing
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import cycle, islice
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from gbad_batch.engine.runtime import Engine
from gbad_batch.engine.runtime.runtime_openvino import DEVICE, load_openvino, open_core, split_models
from gbad_batch.engine.system.machine import usable_cores

STEPS: tuple[str, ...] = ("read", "hash", "decode", "resize", "engine")
WARM_UPS = 2  # batches


@dataclass(frozen=True)
class Work:
    """What each core is given."""

    paths: Sequence[Path]  # colour JPEG files
    engine: Engine  # of OpenVINO
    batch: int  # images


@dataclass(frozen=True)
class NativeRun:
    """What the cores did in one round, all of them at once."""

    microseconds: dict[str, float]  # by step, of one core an image
    images: int
    cores: int

    @property
    def images_per_second(self) -> float:
        """Speed of all cores if they did nothing besides."""
        return self.cores * 1e6 / sum(self.microseconds.values())


class Limit:
    """A process for each core, ready to run; call it for a round."""

    def __init__(self, work: Work):
        spawn = multiprocessing.get_context("spawn")
        self._connections: list[Connection] = []
        with ExitStack() as stack:
            for core in range(usable_cores()):
                ours, theirs = spawn.Pipe()
                process = spawn.Process(target=_serve, args=(theirs, work, core), daemon=True)
                process.start()
                theirs.close()
                stack.callback(process.join)
                stack.callback(ours.close)  # which ends the process
                self._connections.append(ours)
            for connection in self._connections:
                connection.recv()  # it is ready
            self._stack = stack.pop_all()

    def __call__(self, seconds: float) -> NativeRun:
        """Run all cores at once for so many seconds, and at least one batch each."""
        for connection in self._connections:
            connection.send(seconds)
        answers = [connection.recv() for connection in self._connections]
        spent = {step: sum(spent[step] for spent, _ in answers) for step in STEPS}
        images = sum(count for _, count in answers)
        means = {step: seconds / images * 1e6 for step, seconds in spent.items()}
        return NativeRun(means, images, len(self._connections))

    def close(self) -> None:
        """End the processes."""
        self._stack.close()


def _serve(connection: Connection, work: Work, core: int) -> None:
    """Get ready, then run a round for each number of seconds that is asked for."""
    calls = Calls(work)
    paths = cycle(np.roll(np.array(work.paths, object), -core * len(work.paths) // usable_cores()))
    for _ in range(WARM_UPS):
        calls.batch(list(islice(paths, work.batch)))
    connection.send(None)
    try:
        while True:
            seconds, images = connection.recv(), 0
            calls.spent = dict.fromkeys(STEPS, 0.0)
            until = time.perf_counter() + seconds
            while not images or time.perf_counter() < until:
                calls.batch(list(islice(paths, work.batch)))
                images += work.batch
            connection.send((calls.spent, images))
    except EOFError:
        return


class FileCalls:
    """The native calls that a file takes, on buffers that are allocated once, each call timed."""

    def __init__(self, paths: Sequence[Path], size: int):
        self.spent = dict.fromkeys(STEPS, 0.0)
        self._size = size
        self._stored = {path: _stored(path) for path in paths}
        self._buffer = np.empty(max(pixels.size for pixels in self._stored.values()), np.uint8)
        self._open_resizer()

    def file(self, path: Path) -> None:
        """Read, hash, decode and resize one of the files."""
        from simplejpeg import decode_jpeg

        blob = self._timed("read", _read, path)
        self._timed("hash", hashlib.sha256, blob)
        self._timed("decode", decode_jpeg, blob, "RGB", buffer=self._buffer)
        self._timed("resize", self._resize, self._sources[path], self._target, self._options)

    def _timed(self, step: str, call: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
        began = time.perf_counter()
        result = call(*arguments, **named)
        self.spent[step] += time.perf_counter() - began
        return result

    def _open_resizer(self) -> None:
        import cykooz_resizer as cykooz

        kind = cykooz.PixelType.U8x3
        self._sources = {
            path: cykooz.ImageData(pixels.shape[1], pixels.shape[0], kind, pixels.tobytes())
            for path, pixels in self._stored.items()
        }
        self._target = cykooz.ImageData(self._size, self._size, kind)
        bilinear = cykooz.ResizeAlg.convolution(cykooz.FilterType.bilinear)
        self._options = cykooz.ResizeOptions(bilinear, use_alpha=False)
        self._resize = cykooz.Resizer().resize


class Calls(FileCalls):
    """All native calls of one core: those of its files, and its own stream of the engine."""

    def __init__(self, work: Work):
        super().__init__(work.paths, work.engine.input_size)
        self._batch = work.batch
        self._open_engine(work.engine, list(self._stored.values()))

    def batch(self, paths: Sequence[Path]) -> None:
        """Do everything for a batch of files."""
        for path in paths:
            self.file(path)
        self._timed("engine", self._infer)

    def _open_engine(self, engine: Engine, stored: Sequence[NDArray[np.uint8]]) -> None:
        """Open a stream of one thread, whose input is a batch that stays where it is."""
        from PIL import Image

        side = (self._size, self._size)
        small = [np.asarray(Image.fromarray(pixels).resize(side)) for pixels in stored[: self._batch]]
        self._pixels = np.ascontiguousarray(np.resize(np.stack(small), (self._batch, *side, 3)))
        settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": 1,
            "ENABLE_CPU_PINNING": False,
        }
        hints = ("bf16" if engine.precision == "bf16" else "f32", "f32")  # of the network, of the BiGAN
        self._compiled = [
            open_core().import_model(io.BytesIO(model), DEVICE, settings | {"INFERENCE_PRECISION_HINT": hint})
            for model, hint in zip(split_models(engine.blob), hints, strict=True)
        ]
        self._requests = [model.create_infer_request() for model in self._compiled]
        network, bigan = self._requests
        network.set_tensor("pixels", load_openvino().Tensor(self._pixels, shared_memory=True))
        network.infer()
        bigan.set_tensor("x", network.get_tensor("x"))

    def _infer(self) -> None:
        for request in self._requests:
            request.infer()


def _read(path: Path) -> bytes:
    with open(path, "rb", buffering=0) as file:  # noqa: PTH123 - the plain call
        return file.read()


def _stored(path: Path) -> NDArray[np.uint8]:
    from simplejpeg import decode_jpeg

    return decode_jpeg(path.read_bytes(), "RGB")
