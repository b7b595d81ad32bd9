"""Stages that stand in for real ones in tests of the workers; each is opened in a worker by its name."""

import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

from gbad_batch.engine.errors import DeviceLost, Stopped
from gbad_batch.engine.row import Row
from gbad_batch.engine.runtime import Outputs
from gbad_batch.engine.settings import ScanSettings
from gbad_batch.engine.stages import Batch, InFlight, Stages, open_stages
from gbad_batch.engine.stages.scorer import Pixels


def open_unexpected(settings: ScanSettings) -> Stages:
    """Open stages whose scorer has a bug."""

    def score(*_: object) -> Outputs | None:
        raise ZeroDivisionError("nobody thought of this")

    stages = open_stages(settings)
    stages.score = score
    return stages


def open_dying(settings: ScanSettings) -> Stages:
    """Open stages that kill their process on the first three tries of an image named `fatal`."""
    stages = open_stages(settings)
    decode = stages.decode

    def dying(batch: Batch, in_flight: InFlight) -> None:
        for candidate in batch.candidates:
            if b"fatal" in candidate.path and _tries(Path(settings.cache_dir or ".")) < 3:
                in_flight.begin(candidate.key)
                os.kill(os.getpid(), signal.SIGKILL)
        decode(batch, in_flight)

    stages.decode = dying
    return stages


def open_always_dying(settings: ScanSettings) -> Stages:
    """Open stages that kill their process on every chunk, with no image in a decoder."""
    stages = open_stages(settings)

    def dying(*_: object) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    stages.decode = dying
    return stages


def open_losing(settings: ScanSettings) -> Stages:
    """Open stages that lose their GPU twice, each time with a batch in its decoder."""
    stages = open_stages(settings)
    decode = stages.decode

    def losing(batch: Batch, in_flight: InFlight) -> None:
        if _tries(Path(settings.cache_dir or ".")) < 2:
            in_flight.begin_all([candidate.key for candidate in batch.candidates])
            raise DeviceLost("the GPU failed")
        decode(batch, in_flight)

    stages.decode = losing
    return stages


def open_stopping(settings: ScanSettings) -> Stages:
    """Open stages that meet a fault of the machine at the image named `fatal`."""
    stages = open_stages(settings)
    read = stages.read

    def stopping(batch: Batch) -> None:
        if any(b"fatal" in candidate.path for candidate in batch.candidates):
            raise Stopped("the disk is gone; run the same command again")
        read(batch)

    stages.read = stopping
    return stages


def open_fixed(settings: ScanSettings) -> Stages:
    """Open stages that decode and score nothing: each image gets the same numbers."""
    stages = open_stages(settings)
    side = stages.setup.input_size

    def decode(batch: Batch, _in_flight: InFlight) -> None:
        batch.images = [row for row in batch.rows if row.status is None]
        for row in batch.images:
            row.status = "ok"
        batch.pixels = np.zeros((len(batch.images), side, side, 3), np.uint8)

    def score(rows: list[Row], _pixels: object) -> Outputs | None:
        for row in rows:
            row.anomaly_score, row.anomalous = 1.0, False
        return None

    stages.decode, stages.score = decode, score
    return stages


def open_slow(settings: ScanSettings) -> Stages:
    """Open stages that take 10 ms for each image."""
    return _slowed(settings, 0.01)


def open_very_slow(settings: ScanSettings) -> Stages:
    """Open stages that take 100 ms for each image."""
    return _slowed(settings, 0.1)


def _slowed(settings: ScanSettings, image_s: float) -> Stages:
    stages = open_stages(settings)
    decode = stages.decode

    def slow(batch: Batch, in_flight: InFlight) -> None:
        time.sleep(image_s * len(batch.candidates))
        decode(batch, in_flight)

    stages.decode = slow
    return stages


def open_hanging(settings: ScanSettings) -> Stages:
    """Open stages in which the image named `fatal` hangs, unless it is decoded apart."""
    stages = open_stages(settings)
    decode = stages.decode

    def hanging(batch: Batch, in_flight: InFlight) -> None:
        for candidate in batch.candidates:
            if b"fatal" in candidate.path and candidate.key not in batch.suspects:
                in_flight.begin(candidate.key)
                while True:
                    pass
        decode(batch, in_flight)

    stages.decode = hanging
    return stages


def open_listing_modules(settings: ScanSettings) -> Stages:
    """Open stages that list the modules of their process in a file of the cache folder."""
    stages = open_stages(settings)
    score = stages.score

    def listing(rows: list[Row], pixels: object) -> Outputs | None:
        outputs = score(rows, pixels)
        (Path(settings.cache_dir or ".") / "modules").write_text("\n".join(sorted(sys.modules)))
        return outputs

    stages.score = listing
    return stages


def _tries(folder: Path) -> int:
    """Count calls over all processes; returns how many there were before."""
    with (folder / "tries").open("a+") as file:
        before = file.tell()
        file.write(".")
    return before


def open_boundless(settings: ScanSettings) -> Stages:
    """Open stages that say of the image named `fatal`, once it is scored, what no row can hold."""
    stages = open_stages(settings)
    score = stages.score

    def boundless(rows: list[Row], pixels: Pixels) -> Outputs | None:
        outputs = score(rows, pixels)
        for row in rows:
            if "fatal" in row.uri:
                row.width, row.bit_depth, row.warnings = 1 << 64, 1 << 31, "w" * 1_000_000
        return outputs

    stages.score = boundless
    return stages


def open_noting(settings: ScanSettings) -> Stages:
    """Open stages that note the name of every image that is decoded in the cache folder's file `decoded`."""
    stages = open_stages(settings)
    decode = stages.decode

    def noting(batch: Batch, in_flight: InFlight) -> None:
        names = [c.path for c, data in zip(batch.candidates, batch.contents, strict=True) if data is not None]
        with (Path(settings.cache_dir or ".") / "decoded").open("ab") as file:
            file.write(b"".join(name + b"\n" for name in names))
        decode(batch, in_flight)

    stages.decode = noting
    return stages
