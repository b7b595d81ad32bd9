"""What a Ray cluster costs beside one machine, and how many machines an archive of some size takes.

- `ray_overhead`: the time of a scan on a cluster of this machine's cores beside that of local workers, with
  reading, decoding and writing but without the networks, so that what Ray takes weighs most.
- `error_N`: how far the model's prediction for N local nodes of one core lies from a real scan there with
  the default model. Its constants come from local scans and from the scans above, never from the real one.
- The table says what follows for whole archives, for nodes that nobody has measured.
"""

import argparse
import json
import math
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from gbad_batch.engine.scan import Scan
from gbad_batch.engine.settings import ScanSettings
from gbad_batch.engine.stages import OpenStages, open_stages
from gbad_batch.engine.summary import Summary

from ..archives import bags, linked
from ..report import ROOT, Report, Table
from ..stand_ins import open_engineless_stages
from .host import Costs, Machine, expected

IMAGES = 20_000  # of the scans without networks
SCORED = 600  # of those with the default model
PICTURES = 64
MOST_OVERHEAD = 0.10
MOST_ERROR = 0.15
ARCHIVES = (10_000_000, 1_000_000_000)  # images
NIGHT_H = 8.0
LINK_BYTES_S = 1.25e9  # of a node's network: 10 Gbit/s
NODES = (Machine("16 cores", 16), Machine("1 H200, 14 cores", 14, 1))
CLUSTERS = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_AUTH_MODE": "disabled", "RAY_worker_niceness": "0"}
HOST = ROOT / "benchmarks" / "results" / "host.json"  # costs of a GPU's node, which no card here can give


@dataclass(frozen=True)
class Constants:
    """What one image takes, in microseconds, and what starts; all of them measured."""

    worker_us: tuple[float, float]  # of a worker of one core, with one at work and with two
    open_s: float  # until another worker is ready
    coordinator_us: float
    ray_worker_us: float  # what Ray adds to a worker's time
    ray_coordinator_us: float  # and to the coordinator's CPU
    image_bytes: float

    def speed(self, nodes: int) -> float:
        """Return the images a second of so many nodes of one core of this machine."""
        return nodes * 1e6 / (self.worker_us[nodes - 1] + self.ray_worker_us)

    def seconds(self, images: int, nodes: int) -> float:
        """Predict the time of a scan from when its first worker is ready; the others open meanwhile."""
        late = self.open_s * self.speed(1) * (nodes - 1)
        return (images + late) / self.speed(nodes)

    @property
    def cap(self) -> float:
        """Images a second of one coordinator with a core of its own."""
        return 1e6 / (self.coordinator_us + self.ray_coordinator_us)


def options(parser: argparse.ArgumentParser) -> None:
    """Declare how many images the scans have."""
    parser.add_argument("--images", type=int, default=IMAGES, metavar="N", help="images without networks")
    parser.add_argument("--scored", type=int, default=SCORED, metavar="N", help="images with the model")


def run(arguments: argparse.Namespace) -> Report:
    """Measure the constants, predict, scan on one and two nodes, and work out what follows."""
    os.environ |= CLUSTERS | {"PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
    report = Report("A Ray cluster on this machine, and what follows for larger ones")
    with tempfile.TemporaryDirectory() as scratch:
        root = Path(scratch)
        pictures = bags(root / "bags", PICTURES)
        fleet = Fleet(root, linked(root / "many", pictures, arguments.images))
        scored = linked(root / "few", pictures, arguments.scored)
        constants = fleet.constants(report, scored)
        for count in (1, 2):
            predicted = constants.seconds(arguments.scored, count)
            with cluster(count) as address:
                measured = fleet.scan(scored, open_stages, ray=address).seconds
            report.add(f"predicted_s_{count}", predicted, "s")
            report.add(f"measured_s_{count}", measured, "s")
            report.add(f"error_{count}", abs(predicted / measured - 1), at_most=MOST_ERROR)
    report.tables.append(_table(constants))
    report.notes += [
        f"{arguments.images:,} images without networks, {arguments.scored:,} with the default model",
        "the table is computed: cores as fast as these, all of them busy; a GPU's node by the costs in",
        f"results/host.json and nvJPEG as reported by others; a night is {NIGHT_H:g} hours; 10 Gbit/s a node",
    ]
    return report


class Fleet:
    """Scans of the same archives, here and on clusters."""

    def __init__(self, root: Path, many: Path):
        self._root, self._many = root, many

    def constants(self, report: Report, scored: Path) -> Constants:
        """Measure what an image takes here, and what Ray adds."""
        here = self.scan(self._many, open_engineless_stages)
        there = self.scan(self._many, open_engineless_stages, ray="local")
        report.add("local_s", here.seconds, "s")
        report.add("ray_s", there.seconds, "s")
        report.add("ray_overhead", there.seconds / here.seconds - 1, at_most=MOST_OVERHEAD)
        report.add("ray_startup_s", there.startup_seconds - here.startup_seconds, "s")
        alone = self.scan(scored, open_stages, workers=1, threads=1)
        both = self.scan(scored, open_stages, workers=2, threads=2)
        images, cores = here.images, 2
        constants = Constants(
            worker_us=(_worker_us(alone, 1), _worker_us(both, 2)),
            open_s=both.startup_seconds,
            coordinator_us=_coordinator_us(here),
            ray_worker_us=max(0.0, (there.seconds - here.seconds) * cores / images * 1e6),
            ray_coordinator_us=max(0.0, _coordinator_us(there) - _coordinator_us(here)),
            image_bytes=sum(path.stat().st_size for path in scored.rglob("*.jpg")) / alone.images,
        )
        for name in ("coordinator_us", "ray_worker_us", "ray_coordinator_us"):
            report.add(name, getattr(constants, name), "us")
        report.add("worker_us_alone", constants.worker_us[0], "us")
        report.add("worker_us_of_two", constants.worker_us[1], "us")
        report.add("cap_img_s", constants.cap, "img/s")
        return constants

    def scan(self, archive: Path, stages: OpenStages, **given: Any) -> Summary:
        """Scan an archive on the CPU; every image must come out ok."""
        print(f"  {archive.name}, {given or 'local'} ...", file=sys.stderr)
        out = self._root / "results.parquet"
        settings = ScanSettings(sources=(archive,), out=out, overwrite=True, device="cpu", **given)
        summary = Scan(settings, stages).run()
        if summary.failed:
            raise RuntimeError(f"images failed: {summary.failed}")
        return summary


@contextmanager
def cluster(nodes: int) -> Iterator[str]:
    """Run a cluster of nodes of one core each; yields its address."""
    from ray.cluster_utils import Cluster

    one = {"num_cpus": 1, "object_store_memory": 100_000_000, "include_dashboard": False}
    running: Any = Cluster(initialize_head=True, head_node_args=one)
    try:
        for _ in range(nodes - 1):
            running.add_node(**one)
        time.sleep(5)  # its daemons start
        yield running.address
    finally:
        running.shutdown()


def _table(constants: Constants) -> Table:
    """Work out hours and machines for each archive and kind of node, and what limits them."""
    rows = [["images", "nodes (computed)", "img/s a node", "hours on 1", "nodes for a night", "first limit"]]
    for machine in NODES:
        speed, limit = node_speed(constants, machine)
        for images in ARCHIVES:
            needed = math.ceil(images / (speed * NIGHT_H * 3600))
            together = needed * speed
            coordinators = math.ceil(together / constants.cap)
            first = f"{limit} of a node"
            if coordinators > 1:
                first += f"; the coordinator at {constants.cap:,.0f} img/s: {coordinators} --shards"
            hours = f"{images / min(speed, constants.cap) / 3600:,.1f}"
            rows.append([f"{images:,}", machine.name, f"{speed:,.0f}", hours, f"{needed:,}", first])
    return rows


def node_speed(constants: Constants, machine: Machine) -> tuple[float, str]:
    """Return the images a second of a node, at least, and what limits it."""
    network = LINK_BYTES_S / constants.image_bytes
    if machine.gpus:
        (speed, _), limit = expected(_gpu_costs(), machine)
    else:
        speed = machine.cores * 1e6 / (constants.worker_us[1] + constants.ray_worker_us)
        limit = "decoding and engine"
    return (speed, limit) if speed <= network else (network, "network")


def _gpu_costs() -> Costs:
    """Read what a GPU's host does for an image, as `host` measured it."""
    stored = json.loads(HOST.read_text())
    names = [name for name in Costs.__dataclass_fields__ if name in stored]
    costs = replace(Costs(), **{name: stored[name] for name in names})
    return replace(costs, serial_us=1e-9)  # the coordinator is not the node's


def _worker_us(summary: Summary, workers: int) -> float:
    """Return the time that a worker of one core takes for an image, waiting for other work included."""
    return summary.seconds * workers / summary.images * 1e6


def _coordinator_us(summary: Summary) -> float:
    return summary.coordinator_cpu_seconds / summary.images * 1e6
