"""An archive in an object store, image by image and packed into shards, beside the same on a disk."""

import argparse
import os
import tempfile
from pathlib import Path

from gbad_batch.engine.scan import Scan
from gbad_batch.engine.settings import ScanSettings
from gbad_batch.engine.stages import OpenStages, open_stages
from gbad_batch.engine.system import objects
from gbad_batch.engine.webdataset import PackSettings, pack

from ..archives import bags, linked
from ..object_store import BUCKET, delayed, environment, make_bucket, s3_server
from ..report import Report
from ..stand_ins import open_stub_stages

IMAGES = 4_000  # that are read, hashed and not decoded
SCANNED = 400  # that are decoded and scored, too
PICTURES = 64
LATENCY_S = 0.005
LEAST_SHARE = 0.85  # of the disk's speed, where images are scored
LEAST_GAIN = 1.0  # of shards, beside single objects
ROOT = f"s3://{BUCKET}"


def options(parser: argparse.ArgumentParser) -> None:
    """Declare how many images the archive has."""
    parser.add_argument("--images", type=int, default=IMAGES, metavar="N", help="images of the archive")


def run(arguments: argparse.Namespace) -> Report:
    """Fill a store of this machine, and scan it as it is, and through a network that takes its time."""
    report = Report(
        f"An S3 server on this machine, and the same with every answer {1000 * LATENCY_S:g} ms late"
    )
    with tempfile.TemporaryDirectory() as scratch, s3_server(Path(scratch)) as server:
        root = Path(scratch)
        archive, few = root / "archive", root / "few"
        pictures = bags(root / "bags", PICTURES)
        linked(archive, pictures, arguments.images)
        linked(few, pictures, min(SCANNED, arguments.images))
        pack(PackSettings(folder=archive, out=root / "shards", shard_size=64_000_000))
        _use(server)
        make_bucket(server)
        for folder in (archive, few, root / "shards"):
            _upload(folder)
        size = sum(path.stat().st_size for path in archive.rglob("*.jpg"))
        report.notes.append(f"{arguments.images:,} images of {size / arguments.images / 1000:.0f} kB")
        disk, store = _speed(few, open_stages), _speed(f"{ROOT}/few", open_stages)
        report.add("scored_from_disk", disk, "images/s")
        report.add("scored_from_store", store, "images/s")
        report.add("scored_share", store / disk, at_least=LEAST_SHARE)
        with delayed(server, LATENCY_S) as late:
            _use(late)
            single, shards = (_speed(f"{ROOT}/{name}", open_stub_stages) for name in ("archive", "shards"))
        report.add("read_single", single, "images/s")
        report.add("read_shards", shards, "images/s")
        report.add("gain_of_pack", shards / single, at_least=LEAST_GAIN)
    return report


def _use(address: str) -> None:
    """Point the client of this process and its workers at a server."""
    os.environ |= environment(address)
    objects.reopen()


def _upload(folder: Path) -> None:
    for path in sorted(folder.rglob("*")):
        if path.is_file():
            key = f"{folder.name}/{path.relative_to(folder)}"
            objects.write(objects.Location(ROOT, key), path)


def _speed(source: object, stages: OpenStages) -> float:
    """Return the images per second of a scan on the CPU, without its start-up."""
    scan = Scan(ScanSettings(sources=(str(source),), device="cpu"), open_stages=stages)
    done = sum(row.status == "ok" for row in scan.rows())
    return done / scan.progress.elapsed()
