"""What the scan costs the host besides decoding and inference, and what follows for larger machines.

All figures are the best of several rounds, in microseconds of CPU an image where their name ends in `_us`;
so what a process imports at its first scan is left out:

- `img_s_stub_N`: whole scans, stored, of thumbnails that are really read and hashed, with N workers of one
  thread; stand-ins for decoder and engine give every image the same arrays. Start-up is left out.
- `serial_us`: the coordinator of these scans: listing, dealing, writing, finish and summary; the larger of
  both. `cap_img_s` is what one coordinator could do with a core of its own.
- `worker_us`: a worker's process in a scan of the same thumbnails with all real stages, in which only the
  engine's own run is left out, less the bare native calls (read, SHA-256, libjpeg-turbo, resize) on the same
  files. It holds the header gate, queues, clocks, the decision, Arrow's columns.
- `gpu_loop_us`: the process of a GPU's worker, whose reader processes feed it JPEGs of about 100 kB through
  shared memory; stand-ins for DALI and the engine, so it needs no GPU. `reader_us` is one reader's CPU.
- `dali_us`: the one thread that feeds DALI, runs it and looks at its answers, without DALI's own threads;
  CPU operators decode the same JPEGs. `assemble_us`: what other threads make ready for it meanwhile.
"""

import argparse
import hashlib
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import simplejpeg

from gbad_batch.engine.bundle import Bundle, default_bundle_path
from gbad_batch.engine.decode import DecodeLimits, Decoder
from gbad_batch.engine.decode.batch import BatchDecoder
from gbad_batch.engine.row import Row
from gbad_batch.engine.scan import Scan
from gbad_batch.engine.settings import BATCH_SIZES, ScanSettings
from gbad_batch.engine.sources import ListingCounts, find
from gbad_batch.engine.stages import Batch, Stages
from gbad_batch.engine.stages.plan import readers
from gbad_batch.engine.stages.readers import Readers
from gbad_batch.engine.summary import Summary
from gbad_batch.engine.system.machine import usable_cores
from gbad_batch.export import engine_for

from ..archives import bags, linked
from ..report import Report, Table
from ..stand_ins import (
    SIDE,
    open_engineless_stages,
    open_gpu_stages,
    open_stub_stages,
    reader_settings,
)
from .limit import FileCalls, Limit, Work

IMAGES = 96_000
PHOTOGRAPHS = 6_000
PICTURES = 16  # that differ
THUMBNAIL, PHOTOGRAPH = (48, 64), (500, 700)  # pixels: height, width
BARS_US = {"serial_us": 25, "worker_us": 60, "gpu_loop_us": 40, "dali_us": 1e6 / 15_000}
LEAST_IMG_S = 12_000
NVJPEG_IMG_S = (10_000, 15_000)  # of one H200's JPEG hardware and CUDA cores, low and high: from reports


@dataclass(frozen=True)
class Machine:
    """A machine that nobody has measured."""

    name: str
    cores: int
    gpus: int = 0


MACHINES = (
    Machine("16 cores", 16),
    Machine("64 cores", 64),
    Machine("1 H200, 14 cores", 14, 1),
    Machine("8 H200, 112 cores", 112, 8),
)


@dataclass
class Costs:
    """Microseconds of CPU an image."""

    serial_us: float = 0.0
    worker_us: float = 0.0
    gpu_loop_us: float = 0.0
    dali_us: float = 0.0
    assemble_us: float = 0.0
    reader_us: float = 0.0
    native_us: float = 0.0  # bare calls and engine of the model, of one core


def options(parser: argparse.ArgumentParser) -> None:
    """Declare how many images, how often, and the model."""
    add = parser.add_argument
    add("--images", type=int, default=IMAGES, metavar="N", help="thumbnails of a scan")
    add("--photographs", type=int, default=PHOTOGRAPHS, metavar="N", help="JPEGs for the GPU's loop")
    add("--rounds", type=int, default=3, metavar="N", help="of which the best counts")
    add("--seconds", type=float, default=5.0, metavar="S", help="of the bare calls with the model")
    add("--model", type=Path, metavar="BUNDLE", help="in the place of the default bundle")


def run(arguments: argparse.Namespace) -> Report:
    """Measure, hold to the bars, and work out what follows."""
    report = Report("What the host does for an image besides decoding and inference")
    with tempfile.TemporaryDirectory() as scratch:
        host = Host(Path(scratch), arguments)
        speeds, costs = host.measured()
    for workers, speed in speeds.items():
        report.add(f"img_s_stub_{workers}", speed, "img/s", at_least=LEAST_IMG_S)
    report.add("stub_2_of_1", speeds[2] / speeds[1], "times", at_least=1)
    for name, most in BARS_US.items():
        report.add(name, getattr(costs, name), "us", at_most=most)
    report.add("cap_img_s", 1e6 / costs.serial_us, "img/s")
    report.add("assemble_us", costs.assemble_us, "us")
    report.add("reader_us", costs.reader_us, "us")
    report.add("native_us", costs.native_us, "us")
    report.tables.append(expected_table(costs))
    report.facts["expected_img_s"] = {machine.name: expected(costs, machine)[0] for machine in MACHINES}
    report.notes += [
        "expected: computed from the figures below, not measured; cores as fast as these and without loss by",
        "sharing caches and memory; default model on a CPU; a GPU has a worker, and its readers a quarter of",
        f"its cores; nvJPEG {NVJPEG_IMG_S[0]:,} to {NVJPEG_IMG_S[1]:,} img/s a GPU as reported by others",
    ]
    return report


class Host:
    """The archives that are scanned, and what the scans of them take."""

    def __init__(self, root: Path, arguments: argparse.Namespace):
        self._root, self._arguments = root, arguments
        self._thumbnails = write_jpegs(root / "thumbnails", THUMBNAIL)
        self._archive = linked(root / "small", self._thumbnails, arguments.images)
        photographs = write_jpegs(root / "photographs", PHOTOGRAPH)
        self._photographs = linked(root / "large", photographs, arguments.photographs)
        self._photographs_read = [path.read_bytes() for path in photographs]

    def measured(self) -> tuple[dict[int, float], Costs]:
        """Give images a second by workers, and costs: the best of all rounds."""
        stub: dict[int, list[Summary]] = {1: [], 2: []}
        workers, loops, bare = list[float](), list[float](), list[float]()
        calls = FileCalls(self._thumbnails, SIDE)
        for number in range(self._arguments.rounds):
            print(f"  round {number + 1} ...", file=sys.stderr)
            for count, summaries in stub.items():
                summaries.append(self._scan(open_stub_stages, self._archive, workers=count, threads=count))
            workers.append(
                _worker_us(self._scan(open_engineless_stages, self._archive, workers=1, threads=1))
            )
            bare.append(_cpu_us(lambda: [calls.file(path) for path in self._thumbnails], PICTURES))
            loops.append(_worker_us(self._scan(open_gpu_stages, self._photographs, threads=usable_cores())))
        assembling, feeding = self._dali_us()
        costs = Costs(
            dali_us=feeding,
            assemble_us=assembling,
            serial_us=max(min(map(_coordinator_us, each)) for each in stub.values()),
            worker_us=min(workers) - min(bare),
            gpu_loop_us=min(loops),
            reader_us=self._reader_us(),
            native_us=self._native_us(),
        )
        return {count: max(each.images_per_second for each in done) for count, done in stub.items()}, costs

    def _scan(self, stages: Callable[[ScanSettings], Stages], archive: Path, **given: int) -> Summary:
        """Scan an archive to a file; every image must come out ok."""
        settings = ScanSettings(
            sources=(archive,),
            out=self._root / "results.parquet",
            overwrite=True,
            device="cpu",
            model=self._arguments.model,
            **given,  # type: ignore[arg-type]
        )
        summary = Scan(settings, stages).run()
        if summary.failed:
            raise RuntimeError(f"images failed: {summary.failed}")
        return summary

    def _dali_us(self) -> tuple[float, float]:
        """Give what assembling and decoding a batch take of the threads that call them, at best."""
        count, limits = BATCH_SIZES["cuda"], DecodeLimits()
        decode = BatchDecoder(Decoder(SIDE, limits), None, count, usable_cores(), 0.0)
        blobs = [self._photographs_read[i % PICTURES] for i in range(count)]
        rows = [Row(str(i), sha256=hashlib.sha256(blob).digest()) for i, blob in enumerate(blobs)]
        images = [decode(row, bytes(bytearray(blob))) for row, blob in zip(rows, blobs, strict=True)]
        assembling, feeding = list[float](), list[float]()
        for _ in range(self._arguments.rounds):
            began = time.thread_time()
            assembled = decode.assemble(rows, [image for image in images if image is not None])
            assembling.append(time.thread_time() - began)
            kept, _ = decode.decode(assembled)
            feeding.append(time.thread_time() - began - assembling[-1])
            if len(kept) != count:
                raise RuntimeError(f"{count - len(kept)} photographs are not decoded")
        return min(assembling) / count * 1e6, min(feeding) / count * 1e6

    def _reader_us(self) -> float:
        """Give a reader's CPU: what a second pass over some images adds."""
        settings = ScanSettings(sources=(self._photographs,))
        candidates = list(find(settings, ListingCounts(), lambda _: True))
        once, twice = (self._read(settings, candidates, times) for times in (1, 2))
        return (twice - once) / len(candidates) * 1e6

    def _read(self, settings: ScanSettings, candidates: Sequence, times: int) -> float:
        """Have a reader read images so often; returns the CPU seconds of its process."""
        before, size = _children_cpu(), BATCH_SIZES["cuda"]
        with Readers(reader_settings(settings), 1) as reading:
            for start in list(range(0, len(candidates), size)) * times:
                batch = Batch(list(candidates[start : start + size]))
                for row in batch.rows:
                    row.status = None
                reading(batch)
                batch.release()
        return _children_cpu() - before

    def _native_us(self) -> float:
        """Give one core's time for the bare calls and the engine of the model, on synthetic bags."""
        bundle = Bundle.read(self._arguments.model or default_bundle_path())
        work = Work(bags(self._root / "bags", PICTURES), engine_for(bundle, device="cpu"), BATCH_SIZES["cpu"])
        with closing(Limit(work)) as limit:
            return sum(limit(self._arguments.seconds).microseconds.values())


def write_jpegs(folder: Path, shape: tuple[int, int]) -> list[Path]:
    """Write PICTURES colour JPEGs of noise over a gradient, 100 kB at 700 x 500 pixels."""
    folder.mkdir()
    random, paths = np.random.default_rng(0), []
    for number in range(PICTURES):
        gradient = np.linspace(40, 215, shape[1])[None, :, None]
        pixels = np.clip(random.normal(gradient, 12, (*shape, 3)), 0, 255).astype(np.uint8)
        paths.append(folder / f"{number:04d}.jpg")
        paths[-1].write_bytes(simplejpeg.encode_jpeg(pixels, 75))
    return paths


def expected(costs: Costs, machine: Machine) -> tuple[tuple[float, float], str]:
    """Work out the images a second of a machine, low and high, and what limits it."""
    coordinator = 1e6 / costs.serial_us
    if not machine.gpus:
        core = costs.native_us + costs.worker_us + costs.serial_us
        ceilings = {"coordinator": coordinator, "decoding and engine": machine.cores * 1e6 / core}
        limit = min(ceilings, key=ceilings.__getitem__)
        return (ceilings[limit], ceilings[limit]), limit
    count = readers(machine.cores // machine.gpus)
    ceilings = {
        "coordinator": coordinator,
        "GPU loop": machine.gpus * 1e6 / costs.gpu_loop_us,
        "thread of DALI": machine.gpus * 1e6 / costs.dali_us,
        "readers": machine.gpus * count * 1e6 / costs.reader_us,
    }
    low, high = (min(*ceilings.values(), machine.gpus * nvjpeg) for nvjpeg in NVJPEG_IMG_S)
    ceilings["nvJPEG"] = machine.gpus * NVJPEG_IMG_S[0]
    return (low, high), min(ceilings, key=ceilings.__getitem__)


def expected_table(costs: Costs) -> Table:
    """Write what follows for each machine."""
    rows = [["machine (computed, not measured)", "img/s expected", "limit"]]
    for machine in MACHINES:
        (low, high), limit = expected(costs, machine)
        speed = f"{low:,.0f}" if low == high else f"{low:,.0f} to {high:,.0f}"
        rows.append([machine.name, speed, limit])
    return rows


def _coordinator_us(summary: Summary) -> float:
    return summary.coordinator_cpu_seconds / summary.images * 1e6


def _worker_us(summary: Summary) -> float:
    return (summary.cpu_seconds - summary.coordinator_cpu_seconds) / summary.images * 1e6


def _children_cpu() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _cpu_us(work: Callable[[], object], images: int, least_s: float = 0.5) -> float:
    """Give the CPU an image of a piece of work that is repeated for a while."""
    work()
    began, done = time.process_time(), 0
    while (spent := time.process_time() - began) < least_s:
        work()
        done += images
    return spent / done * 1e6
