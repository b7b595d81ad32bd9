"""Stages that stand in for real ones in benchmarks; worker processes open them by their function's name."""

import os
import time
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np

from gbad_batch.engine.bundle import OperatingPoint
from gbad_batch.engine.decode import DecodeLimits
from gbad_batch.engine.decode.coded_image import CodedImage
from gbad_batch.engine.row import THREATS, Row
from gbad_batch.engine.runtime import Engine, Outputs
from gbad_batch.engine.settings import BATCH_SIZES, ScanSettings
from gbad_batch.engine.stages import Batch, InFlight, Setup, Stages, open_stages
from gbad_batch.engine.stages.cpu import CPUDecode, FileRead
from gbad_batch.engine.stages.gpu import BatchDecode
from gbad_batch.engine.stages.plan import WorkPlan, gpu_threads, readers
from gbad_batch.engine.stages.readers import Readers, ReaderSettings
from gbad_batch.engine.stages.scorer import Pixels, Scorer

SIDE = 64  # pixels of what stand-ins decode to
READS = "GBAD_BENCHMARK_READS"  # environment: a file that grows by a byte for each image read
IMAGE_SECONDS = "GBAD_BENCHMARK_IMAGE_SECONDS"  # environment: that a decoder takes at least, for an image
JPEG_START = (0xFF, 0xD8)


def open_unscored_stages(settings: ScanSettings) -> Stages:
    """Open the real stages, but for the networks: every image gets the same score."""
    stages = open_stages(settings)
    stages.score = score_alike
    return stages


def open_stub_stages(settings: ScanSettings) -> Stages:
    """Open stages that read and hash each file; every image gets the same pixels and the same score."""
    read = FileRead(settings.max_file_size)
    return Stages(made_up_setup(_plan(settings)), read, AlikeDecode(), score_alike, read.close, read.ahead)


def open_engineless_stages(settings: ScanSettings) -> Stages:
    """Open the real stages, decoding to SIDE pixels, but for the engine's own run on a batch."""
    scorer = Scorer(settings)
    scorer.runner.close()
    scorer.runner = AlikeRunner(scorer.engine)
    decode = CPUDecode(SIDE, _limits(settings), settings.decode_timeout)
    return Stages(scorer.setup(), FileRead(settings.max_file_size), decode, scorer, decode.close)


def open_gpu_stages(settings: ScanSettings, plan: WorkPlan | None = None) -> Stages:
    """Open a GPU worker's stages without a GPU: real reader processes, and stand-ins for DALI and engine."""
    if plan is None:
        cores, batch_size = settings.threads or 1, settings.batch_size or BATCH_SIZES["cuda"]
        plan = WorkPlan(batch_size, 1, gpu_threads(cores), cores)
    setup = made_up_setup(plan, devices=("cuda:0",))
    reading = Readers(reader_settings(settings), readers(plan.cores))
    decoder: Any = AlikeBatchDecoder()
    return Stages(setup, reading, BatchDecode(decoder, Lock()), score_alike, reading.close)


def open_pixel_stages(settings: ScanSettings) -> Stages:
    """Open real reading and decoding to SIDE pixels, and score each image by its own pixels.

    Reads are counted, and images take their time, as READS and IMAGE_SECONDS say in the environment.
    """
    read = FileRead(settings.max_file_size)
    decode = CPUDecode(SIDE, _limits(settings), settings.decode_timeout)
    reads, seconds = os.environ.get(READS), float(os.environ.get(IMAGE_SECONDS, "0"))

    def counted(batch: Batch) -> None:
        if reads:
            with Path(reads).open("ab", buffering=0) as file:
                file.write(bytes(len(batch.candidates)))  # appended whole, whoever else writes
        read(batch)

    def slow(batch: Batch, in_flight: InFlight) -> None:
        time.sleep(seconds * len(batch.candidates))
        decode(batch, in_flight)

    return Stages(made_up_setup(_plan(settings)), counted, slow, score_by_pixels, decode.close)


def made_up_setup(plan: WorkPlan, devices: tuple[str, ...] = ()) -> Setup:
    """Describe a model that is not there."""
    return Setup(
        model="a stand-in",
        bundle="a stand-in",
        bundle_hash="",
        trunk="",
        demo=False,
        backend="openvino",
        backend_version="",
        device=devices[0] if devices else "cpu",
        devices=devices,
        precision="fp32",
        engine_key="",
        parity="",
        reason="",
        point=OperatingPoint("gbad", "fp32", 0.05, 2.0, (0.5,) * len(THREATS), None, supported=True),
        features=1,
        input_size=SIDE,
        plan=plan,
    )


def reader_settings(settings: ScanSettings) -> ReaderSettings:
    """Say to reader processes what they need to know."""
    return ReaderSettings(SIDE, _limits(settings), settings.decode_timeout)


def score_alike(rows: list[Row], _pixels: Pixels) -> None:
    """Give every image the same figures."""
    for row in rows:
        row.p_gun = row.p_knife = row.p_wrench = row.p_pliers = row.p_scissors = 0.25
        row.largest_logit = -1.0
        row.reconstruction_loss = row.feature_matching_loss = 0.5
        row.anomaly_score, row.anomalous = 1.0, False


def score_by_pixels(rows: list[Row], pixels: Pixels) -> None:
    """Give every image the mean of its pixels as its score."""
    score_alike(rows, pixels)
    for row, own in zip(rows, pixels, strict=True):
        row.anomaly_score = float(own.mean())


class AlikeDecode:
    """Gives every image that could be read the same pixels."""

    def __init__(self) -> None:
        self._pixels = np.zeros((0, SIDE, SIDE, 3), np.uint8)

    def __call__(self, batch: Batch, in_flight: InFlight) -> None:
        """Fill images and pixels, uint8 [n, SIDE, SIDE, 3]."""
        for candidate, content in zip(batch.candidates, batch.contents, strict=True):
            if content is not None:
                in_flight.begin(candidate.key)
                fill_header(candidate.row)
                batch.images.append(candidate.row)
        in_flight.end()
        batch.contents = []
        if len(self._pixels) < len(batch.images):
            self._pixels = np.zeros((len(batch.images), SIDE, SIDE, 3), np.uint8)
        batch.pixels = self._pixels[: len(batch.images)]


class AlikeBatchDecoder:
    """Stands in for DALI: looks at the bytes of every JPEG that the readers share, and gives no pixels."""

    def assemble(self, rows: list[Row], contents: list[Any]) -> list[Row]:
        """Look at every image; raises ValueError for bytes of no JPEG."""
        for row, content in zip(rows, contents, strict=True):
            if isinstance(content, CodedImage) and tuple(content.data[:2]) != JPEG_START:
                raise ValueError(f"the reader shared other bytes than those of {row.uri}")
            row.status = "ok"
        return rows

    def decode(self, assembled: list[Row]) -> tuple[list[Row], Any]:
        """Return the rows, and no pixels."""
        return assembled, None


class AlikeRunner:
    """Stands in for an engine: gives every image the same outputs."""

    streams, sizes = 1, ()

    def __init__(self, engine: Engine):
        self.engine = engine

    def __call__(self, pixels: Pixels) -> Outputs:
        """Score nothing."""
        n = len(pixels)
        ones = np.ones(n, np.float32)
        x = np.zeros((n, self.engine.features), np.float32)
        return Outputs(x, np.zeros((n, len(THREATS)), np.float32), ones, ones)

    def close(self) -> None:
        """Free nothing."""


def fill_header(row: Row) -> None:
    """Say of an image what the header gate would."""
    row.format, row.width, row.height, row.bit_depth, row.color = "jpeg", SIDE, SIDE, 8, "rgb"
    row.status = "ok"


def _plan(settings: ScanSettings) -> WorkPlan:
    workers = settings.workers or 1
    threads = max(1, (settings.threads or workers) // workers)
    return WorkPlan(settings.batch_size or BATCH_SIZES["cpu"], workers, threads, threads)


def _limits(settings: ScanSettings) -> DecodeLimits:
    return DecodeLimits(settings.max_pixels, settings.max_file_size)
