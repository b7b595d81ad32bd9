"""Features x and logits of every image, extracted once and stored, on which phases II and III are trained."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from ...export import to_openvino
from ...export.to_onnx import export_graphs
from ..errors import Refused, Stopped
from ..model.gbad import GBAD
from ..row import THREATS
from ..runtime import Engine, Outputs, Runner, open_engine, runtime_openvino
from ..system.durable import write_whole
from ..system.progress import ProgressCallback
from .pixels import Pixels, decoded

AT_ONCE = 32  # images; a batch is the same in every run, so that its features are
FLUSHED_EVERY = 32  # batches
WORTH_EXPORTING = 1_000  # images
LEAST_READABLE = 0.99  # share of the images
FEATURES = "features.json"  # says how far the arrays are filled

# pixels uint8 [n, S, S, 3] to x [n, 1024] and logits [n, 5]
FeatureNetwork = Callable[[Pixels], tuple[NDArray[np.float32], NDArray[np.float32]]]


class Features:
    """Arrays of one run folder: x float32 [n, 1024], logits float32 [n, 5], and which images were read."""

    def __init__(self, folder: Path, images: int, length: int):
        self._folder, self._n = folder, images
        self._done = folder / FEATURES
        shapes = {"x": (images, length), "logits": (images, len(THREATS))}
        fresh = not self._done.exists()
        self.x, self.logits = (
            np.lib.format.open_memmap(
                folder / f"{name}.npy", mode="w+" if fresh else "r+", dtype=np.float32, shape=shape
            )
            for name, shape in shapes.items()
        )
        if fresh:
            self._note(0)

    @property
    def done(self) -> int:
        """Images finished, from the first on."""
        return json.loads(self._done.read_text())["done"]

    @property
    def readable(self) -> NDArray[np.bool_]:
        """Tell which images could be decoded, [n]: the features of the others are NaN."""
        return np.isfinite(self.x[:, 0])

    def extract(
        self, network: FeatureNetwork, size: int, paths: Sequence[Path], progress: ProgressCallback
    ) -> None:
        """Fill what is missing, from images of `size` pixels a side.

        Raises Stopped where more than one image in a hundred cannot be decoded.
        """
        start = self.done
        for number, (index, pixels) in enumerate(_batches(paths, start, size), 1):
            readable = [k for k, image in zip(index, pixels, strict=True) if image is not None]
            self.x[index] = self.logits[index] = np.nan
            if readable:
                images = np.stack([image for image in pixels if image is not None])
                self.x[readable], self.logits[readable] = network(images)
            if number % FLUSHED_EVERY == 0:
                self._note(int(index[-1]) + 1)
            progress("features", int(index[-1]) + 1, self._n, {})
        self._note(self._n)
        unread = int((~self.readable).sum())
        if unread > (1 - LEAST_READABLE) * self._n:
            raise Stopped(
                f"{unread} of {self._n} images cannot be decoded, and training needs 99 in a hundred: "
                "`gbad-batch data check` names them"
            )

    def _note(self, done: int) -> None:
        self.x.flush()
        self.logits.flush()
        write_whole(self._done, json.dumps({"done": done}).encode())


def open_features(folder: Path, images: int, length: int) -> Features:
    """Open the stored features of a run; raises Refused if they belong to other images."""
    try:
        return Features(folder, images, length)
    except ValueError as error:
        raise Refused(f"{folder / 'x.npy'} holds features of another data set: remove {folder}") from error


@contextmanager
def network_for_features(model: GBAD, device: str, images: int) -> Iterator[FeatureNetwork]:
    """Open a finished network for so many images: on the CPU, if they are many, as OpenVINO runs it in scans.

    That is faster than torch, but the export takes some seconds.
    """
    if device == "cpu" and images >= WORTH_EXPORTING:
        with closing(_openvino(model)) as runner:
            yield lambda pixels: _both(runner(pixels))
        return
    model.to(device)
    yield partial(_by_torch, model)
    model.to("cpu")


def _openvino(model: GBAD) -> Runner:
    architecture = model.architecture
    engine = Engine(
        backend="openvino",
        version=runtime_openvino.version(),
        device="cpu",
        precision="fp32",
        input_size=architecture.input_size,
        features=architecture.features,
        bundle_hash="",
        key="",
        blob=to_openvino.build(*export_graphs(model)),
    )
    return open_engine(engine)


def _both(outputs: Outputs) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    return outputs.x, outputs.logits


@torch.no_grad()
def _by_torch(model: GBAD, pixels: Pixels) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    x, logits = model.features(torch.from_numpy(pixels).to(model.pixel_mean.device))
    return x.cpu().numpy(), logits.cpu().numpy()


def _batches(
    paths: Sequence[Path], start: int, size: int
) -> Iterator[tuple[NDArray[np.intp], list[NDArray[np.uint8] | None]]]:
    """Yield positions and pixels, a batch at a time, from image `start` on."""
    images = decoded(paths[start:], size)
    for first in range(start, len(paths), AT_ONCE):
        index = np.arange(first, min(first + AT_ONCE, len(paths)))
        yield index, [next(images) for _ in index]
