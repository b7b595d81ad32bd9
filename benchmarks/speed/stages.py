"""Each stage of a scan alone, on all cores: what the machine's limit is."""

import hashlib
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from gbad_batch.engine.bundle import Bundle
from gbad_batch.engine.decode import DecodeLimits, Decoder
from gbad_batch.engine.decode.resize import Resizer
from gbad_batch.engine.results import open_results
from gbad_batch.engine.results.index import key_of
from gbad_batch.engine.results.schema import results_schema, to_batch
from gbad_batch.engine.row import Row
from gbad_batch.engine.runtime import Engine, Outputs, open_engine
from gbad_batch.engine.runtime.runtime_openvino import DEVICE, open_core
from gbad_batch.engine.scan import Scan
from gbad_batch.engine.scorer import Scorer, batches
from gbad_batch.engine.settings import BATCH_SIZES, ScanSettings
from gbad_batch.engine.sources import ListingCounts, SourceSettings, find
from gbad_batch.engine.system.machine import usable_cores

from ..robustness.resume import made_up_row

if TYPE_CHECKING:
    from gbad_batch.engine.runtime.cuda_graphs import Pixels as Given

WRITTEN = 20_000  # rows
LEAST_S = 0.5  # that a stage is repeated for
BATCH = BATCH_SIZES["cpu"]
Pixels = NDArray[np.uint8]


@dataclass(frozen=True)
class Alone:
    """What a stage takes while nothing else runs, an image."""

    seconds: float
    cpu_seconds: float

    @property
    def images_per_second(self) -> float:
        """Speed of the stage alone on all cores."""
        return 1 / self.seconds


class Stages:
    """The stages of a scan with one bundle in one precision, over some pictures."""

    def __init__(self, bundle: Path, precision: str, cache: Path, pictures: Sequence[Path]):
        self.bundle = Bundle.read(bundle)
        self._paths = list(pictures)
        self._blobs = [path.read_bytes() for path in pictures]
        self._size = self.bundle.manifest.architecture.input_size
        self._decoder = Decoder(self._size, DecodeLimits())
        self._pixels = [self._decode(blob) for blob in self._blobs]
        self._stack = ExitStack()
        self._cores = self._stack.enter_context(ThreadPoolExecutor(usable_cores()))
        chosen: Any = {"precision": precision, "cache_dir": cache}
        settings = ScanSettings(sources=tuple(map(str, pictures)), model=bundle, device="cpu", **chosen)
        self._scan = OpenScan(settings)
        self._scorer = self._scan.opened(self._stack)
        self._streams = self._stack.enter_context(ThreadPoolExecutor(self._scorer.plan.streams))
        # the whole machine for one batch, as a loop without overlap has it
        self._runner = self._stack.enter_context(closing(open_engine(self._scorer.engine)))
        self._outputs = self._runner(np.stack(self._pixels))

    def close(self) -> None:
        """Free the engines."""
        self._stack.close()

    def pixels(self) -> Alone:
        """Decode and resize, as the scan's stage `decode` does."""
        return self._on_all_cores(self._decode, self._blobs)

    def engine(self) -> Alone:
        """Run the networks on batches that are ready."""
        ready, run = list(self._batches()), self._scorer.runner
        return _alone(lambda: list(self._streams.map(run, ready)), len(self._pixels))

    def batch_ms(self) -> list[float]:
        """Time each batch in the networks, nothing beside them."""
        return [_once(partial(self._runner, batch)) * 1e3 for batch in self._batches()]

    def without_overlap(self) -> Alone:
        """Read and decode a batch on all cores, then run the networks on it, then the next."""
        return _alone(self._one_after_the_other, len(self._paths))

    def all(self, folder: Path) -> dict[str, Alone]:
        """Measure every stage; the listing is that of `folder`."""
        whole = partial(_decoded, Decoder(None, DecodeLimits()))
        stored = [whole(blob) for blob in self._blobs]
        return {
            "list": self.listing(folder),
            "read": self.read(),
            "hash": self._on_all_cores(hashlib.sha256, self._blobs),
            "decode": self._on_all_cores(whole, self._blobs),
            "resize": self._on_all_cores(Resizer(self._size), stored),
            "decode_resize": self.pixels(),
            "engine": self.engine(),
            "bigan": self.bigan(),
            "decision": self.decision(),
            "write": write(),
        }

    def listing(self, folder: Path) -> Alone:
        """Find the candidates below a folder."""
        settings = SourceSettings(sources=(str(folder),))
        count = sum(1 for _ in find(settings, ListingCounts(), lambda _: True))
        return _alone(lambda: list(find(settings, ListingCounts(), lambda _: True)), count)

    def read(self) -> Alone:
        """Read the files, as the scan does."""
        sources = tuple(map(str, self._paths))
        candidates = list(find(SourceSettings(sources=sources), ListingCounts(), lambda _: True))
        most = self._scan.settings.max_file_size
        return self._on_all_cores(lambda candidate: candidate.read(most), candidates)

    def bigan(self) -> Alone:
        """Run the BiGAN's graph alone on the features of all pictures."""
        core = open_core()
        graph = core.read_model(self.bundle.bigan_onnx)
        model = core.compile_model(graph, DEVICE, {"INFERENCE_PRECISION_HINT": "f32"})
        request = model.create_infer_request()
        parts = [self._outputs.x[i : i + BATCH] for i in range(0, len(self._pixels), BATCH)]
        request.infer({"x": parts[0]})
        return _alone(lambda: [request.infer({"x": part}) for part in parts], len(self._pixels))

    def decision(self) -> Alone:
        """Fill the rows of batches whose outputs are there; it is one thread, so its time is the CPU's."""
        scorer, spent, done = self._scorer, self._scan.progress.seconds, 0
        runner, scorer.runner = scorer.runner, KeptOutputs(scorer.engine, self._outputs)
        while spent["decide"] < LEAST_S:
            rows = ((Row("picture"), pixels) for pixels in self._pixels)
            done += sum(len(scorer(batch).images) for batch in batches(rows, BATCH))
        scorer.runner = runner
        return Alone(spent["decide"] / done, spent["decide"] / done)

    def _one_after_the_other(self) -> None:
        for i in range(0, len(self._paths), BATCH):
            blobs = self._cores.map(Path.read_bytes, self._paths[i : i + BATCH])
            self._runner(np.stack(list(self._cores.map(self._decode, blobs))))

    def _decode(self, blob: bytes) -> Pixels:
        return _decoded(self._decoder, blob)

    def _batches(self) -> Iterator[Pixels]:
        for i in range(0, len(self._pixels), BATCH):
            yield np.stack(self._pixels[i : i + BATCH])

    def _on_all_cores(self, function: Callable[[Any], Any], items: Sequence[Any]) -> Alone:
        return _alone(lambda: list(self._cores.map(function, items)), len(items))


class OpenScan(Scan):
    """A scan whose scorer is used by itself."""

    def opened(self, stack: ExitStack) -> Scorer:
        """Open what the scan needs, until the stack is closed, and return the scorer."""
        self._open(stack)
        return self._scorer


class KeptOutputs:
    """Gives outputs that are there already."""

    def __init__(self, engine: Engine, outputs: Outputs):
        self.engine = engine
        self._outputs = outputs

    def __call__(self, pixels: "Given") -> Outputs:
        """Give the first of them."""
        names = Outputs.__dataclass_fields__
        return Outputs(**{name: getattr(self._outputs, name)[: len(pixels)] for name in names})

    def close(self) -> None:
        """Free nothing."""


def write() -> Alone:
    """Write rows as a scan does, to the finished file."""
    rows = [made_up_row(i) for i in range(WRITTEN)]

    def whole() -> None:
        with (
            tempfile.TemporaryDirectory() as scratch,
            open_results(ScanSettings(out=Path(scratch) / "r.parquet"), {}, {}) as session,
        ):
            for row in rows:
                session.index.claim(key_of(row), row.kind)
            for i in range(0, WRITTEN, BATCH):
                session.write(to_batch(rows[i : i + BATCH], results_schema()))
            session.finish()

    return _alone(whole, WRITTEN)


def _alone(work: Callable[[], Any], images: int) -> Alone:
    """Time a piece of work that so many images go through, again and again for a while."""
    cpu, began, spent, done = time.process_time(), time.perf_counter(), 0.0, 0
    while spent < LEAST_S:
        work()
        done += images
        spent = time.perf_counter() - began
    return Alone(spent / done, (time.process_time() - cpu) / done)


def _once(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _decoded(decoder: Decoder, blob: bytes) -> Pixels:
    row = Row("picture")
    pixels = decoder(row, blob)
    if pixels is None:
        raise ValueError(f"a picture to be measured on cannot be decoded: {row.error}")
    return pixels
