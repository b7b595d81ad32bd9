"""`scan --ray`: a cluster of Ray gives the rows of one machine, whatever dies on the way."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import stand_in_stages
from PIL import Image
from processes import PATIENCE_S, children, runs

from gbad_batch.engine import Scan, ScanSettings
from gbad_batch.engine.bundle import Bundle
from gbad_batch.engine.errors import BundleError, Refused
from gbad_batch.engine.results.schema import COLUMNS

COMMAND = str(Path(sys.executable).with_name("gbad-batch"))
IMAGES = 300

slow = pytest.mark.slow


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Make an archive with bad files."""
    root = tmp_path_factory.mktemp("ray") / "archive"
    for number in range(IMAGES):
        path = root / f"day{number % 3}" / f"bag{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8 + number % 5, 8), (number % 251, 7 * number % 251, 99)).save(path)
    (root / "day1" / "bag900.png").write_bytes(b"")
    (root / "day1" / "bag901.jpg").write_bytes(b"nothing of the kind")
    return root


class TwoNodes:
    """A cluster of two nodes of a core each, the second of which can be lost."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self.cluster: Any = Cluster(initialize_head=True, head_node_args=self._one())
        self.second: Any = self.cluster.add_node(**self._one())
        self.address: str = self.cluster.address

    def actors(self) -> list[int]:
        """Return the process ids of the actors that live."""
        return [pid for node in self.cluster.list_all_nodes() for pid in self._actors_of(node)]

    def lose_second(self) -> None:
        """Kill a node and all that runs on it at once."""
        for pid in [*self._actors_of(self.second), _raylet(self.second)]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.cluster.remove_node(self.second, allow_graceful=False)
        self.second = None

    def repair(self) -> None:
        """Have two nodes again."""
        if self.second is None:
            self.second = self.cluster.add_node(**self._one())

    def close(self) -> None:
        """End all of it."""
        self.cluster.shutdown()

    @staticmethod
    def _one() -> dict[str, Any]:
        return {"num_cpus": 1, "object_store_memory": 80_000_000, "include_dashboard": False}

    @staticmethod
    def _actors_of(node: Any) -> list[int]:
        return [pid for pid in children(_raylet(node)) if b"Actor" in _title(pid) and runs(pid)]


def _raylet(node: Any) -> int:
    (process,) = node.all_processes["raylet"]
    return int(process.process.pid)


def _title(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


@pytest.fixture(scope="module")
def cluster() -> Iterator[TwoNodes]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_worker_niceness", "0")
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.setenv("RAY_AUTH_MODE", "disabled")
        path = [str(Path(__file__).parent), *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
        patch.setenv("PYTHONPATH", os.pathsep.join(filter(None, path)))  # nodes import the stand-ins
        nodes = TwoNodes()
        yield nodes
        nodes.close()


@pytest.fixture
def two_nodes(cluster: TwoNodes) -> TwoNodes:
    cluster.repair()
    return cluster


def settings(archive: Path, out: Path, bundle: Bundle, **given: Any) -> ScanSettings:
    return ScanSettings(sources=(archive,), out=out, model=bundle.path, **given)


def rows(path: Path) -> list[dict[str, Any]]:
    """Read the rows, but for when they were scanned."""
    return pq.read_table(path).select([name for name in COLUMNS if name != "scanned_at"]).to_pylist()


@pytest.fixture(scope="module")
def expected(
    archive: Path, tiny_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory
) -> list[dict[str, Any]]:
    """Scan the archive on this machine."""
    out = tmp_path_factory.mktemp("local") / "r.parquet"
    Scan(settings(archive, out, tiny_bundle, threads=1)).run()
    return rows(out)


# --- the same rows ---


@slow
def test_a_cluster_gives_the_rows_of_one_machine(
    two_nodes: TwoNodes, archive: Path, tiny_bundle: Bundle, expected: list[dict[str, Any]], tmp_path: Path
) -> None:
    out = tmp_path / "r.parquet"
    scan = Scan(settings(archive, out, tiny_bundle, ray=two_nodes.address), stand_in_stages.open_slow)
    summary = scan.run()
    assert rows(out) == expected
    assert summary.plan is not None
    assert (summary.plan.workers, summary.plan.threads) == (2, 1)
    assert "2 Ray nodes" in str(summary.plan)
    assert len(summary.images_per_second_by_node) == 2
    total = sum(summary.images_per_second_by_node.values())
    assert total == pytest.approx(summary.images_per_second)
    assert list(tmp_path.iterdir()) == [out]


@slow
def test_the_command_starts_a_cluster_of_its_own_and_tells_each_node(
    archive: Path, tiny_bundle: Bundle, expected: list[dict[str, Any]], tmp_path: Path
) -> None:
    ran = subprocess.run(
        [
            COMMAND,
            "scan",
            archive,
            "--model",
            tiny_bundle.path,
            "--out",
            tmp_path / "r.parquet",
            "--ray=local",
        ],
        check=False,
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 3, ran.stderr
    assert "on 1 Ray node" in ran.stderr
    assert f"{os.uname().nodename} " in ran.stdout
    assert rows(tmp_path / "r.parquet") == expected


@slow
def test_a_node_gets_the_model_once_and_checks_it(
    two_nodes: TwoNodes, archive: Path, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(tiny_bundle.path, model)
    given = {"model": model, "limit": 3, "cache_dir": tmp_path / "cache", "overwrite": True}
    given |= {"ray": two_nodes.address, "out": tmp_path / "r.parquet", "sources": (archive,)}
    Scan(ScanSettings(**given)).run()
    (sent,) = [path for path in (tmp_path / "cache" / "models").iterdir() if path.is_dir()]
    assert sent.name == tiny_bundle.hash
    assert {path.name: path.read_bytes() for path in sent.iterdir()} == {
        path.name: path.read_bytes() for path in model.iterdir()
    }
    changed = sent / "weights.safetensors"
    changed.write_bytes(changed.read_bytes()[:-1] + b"?")
    with pytest.raises(BundleError, match=r"weights.safetensors is not the file"):
        Scan(ScanSettings(**given)).run()


# --- whatever dies ---


def killing(nodes: TwoNodes, times: int, killed: list[int]) -> None:
    """Kill `times` actors, each another one, at work."""
    until = time.monotonic() + PATIENCE_S
    while len(killed) < times and time.monotonic() < until:
        for pid in nodes.actors():
            if pid not in killed:
                time.sleep(0.5)
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)
                break
        time.sleep(0.05)


@slow
def test_actors_that_die_are_replaced(
    two_nodes: TwoNodes, archive: Path, tiny_bundle: Bundle, expected: list[dict[str, Any]], tmp_path: Path
) -> None:
    killed: list[int] = []
    thread = threading.Thread(target=killing, args=(two_nodes, 5, killed), daemon=True)
    scan = Scan(
        settings(archive, tmp_path / "r.parquet", tiny_bundle, ray=two_nodes.address),
        stand_in_stages.open_very_slow,
    )
    thread.start()
    scan.run()
    thread.join(1)
    assert len(killed) == 5
    assert rows(tmp_path / "r.parquet") == expected


@slow
def test_a_node_that_goes_is_done_without(
    two_nodes: TwoNodes, archive: Path, tiny_bundle: Bundle, expected: list[dict[str, Any]], tmp_path: Path
) -> None:
    scan = Scan(
        settings(archive, tmp_path / "r.parquet", tiny_bundle, ray=two_nodes.address),
        stand_in_stages.open_very_slow,
    )
    lost = threading.Event()

    def watch(progress: Any) -> None:
        if progress.done > IMAGES / 5 and not lost.is_set() and len(progress.rows_by_node) == 2:
            lost.set()
            two_nodes.lose_second()

    scan.run(watch)
    assert lost.is_set()
    assert rows(tmp_path / "r.parquet") == expected


@slow
def test_a_driver_that_is_killed_goes_on(
    two_nodes: TwoNodes, archive: Path, tiny_bundle: Bundle, expected: list[dict[str, Any]], tmp_path: Path
) -> None:
    out = tmp_path / "r.parquet"
    options = ["--model", tiny_bundle.path, "--out", out, f"--ray={two_nodes.address}", "--json"]
    program = (
        "import sys, stand_in_stages; from gbad_batch.engine import Scan, ScanSettings; "
        "Scan(ScanSettings(sources=(sys.argv[1],), out=sys.argv[2], model=sys.argv[3], ray=sys.argv[4]),"
        " stand_in_stages.open_very_slow).run()"
    )
    driver = [sys.executable, "-c", program, archive, out, tiny_bundle.path, two_nodes.address]
    for kill in range(2):
        with subprocess.Popen(driver, cwd=Path(__file__).parent) as process:
            until = time.monotonic() + PATIENCE_S
            parts = Path(f"{out}.parts")
            while len(list(parts.rglob("*.parquet"))) <= kill and time.monotonic() < until:
                assert process.poll() is None
                time.sleep(0.05)
            process.kill()
    ran = subprocess.run([COMMAND, "scan", archive, *options], check=False, capture_output=True, text=True)
    assert ran.returncode == 3, ran.stderr
    assert 0 < json.loads(ran.stdout)["scanned_now"] < IMAGES
    assert rows(out) == expected


@slow
def test_an_image_that_kills_its_actor_each_time_gets_a_row(
    two_nodes: TwoNodes, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    (tmp_path / "archive").mkdir()
    for name in ("a", "fatal", "z"):
        Image.new("RGB", (9, 9)).save(tmp_path / "archive" / f"{name}.png")
    scan = Scan(
        settings(
            tmp_path / "archive",
            tmp_path / "r.parquet",
            tiny_bundle,
            ray=two_nodes.address,
            cache_dir=tmp_path,
        ),
        stand_in_stages.open_dying,
    )
    scan.run()
    assert [row["status"] for row in rows(tmp_path / "r.parquet")] == ["ok", "ok", "ok"]
    assert (tmp_path / "tries").stat().st_size > 3


@slow
def test_an_image_that_hangs_its_actor_gets_a_row(
    two_nodes: TwoNodes, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    (tmp_path / "archive").mkdir()
    for name in ("a", "fatal", "z"):
        Image.new("RGB", (9, 9)).save(tmp_path / "archive" / f"{name}.png")
    given = {"ray": two_nodes.address, "decode_timeout": 0.2}
    Scan(
        settings(tmp_path / "archive", tmp_path / "r.parquet", tiny_bundle, **given),
        stand_in_stages.open_hanging,
    ).run()
    assert [row["status"] for row in rows(tmp_path / "r.parquet")] == ["ok", "ok", "ok"]


@slow
def test_a_scan_that_is_terminated_goes_on(
    two_nodes: TwoNodes, archive: Path, tiny_bundle: Bundle, expected: list[dict[str, Any]], tmp_path: Path
) -> None:
    out = tmp_path / "r.parquet"
    command = [COMMAND, "scan", archive, "--model", tiny_bundle.path, "--out", out]
    command += [f"--ray={two_nodes.address}"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        until = time.monotonic() + PATIENCE_S
        while not Path(f"{out}.parts").exists() and time.monotonic() < until:
            time.sleep(0.01)
        process.terminate()
        _, told = process.communicate()
    assert process.returncode in (143, 3), told
    if process.returncode == 143:
        assert subprocess.run(command, check=False, capture_output=True).returncode == 3
    assert rows(out) == expected


# --- what is refused ---


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"ray": "ray://10.0.0.1:10001"}, "run the command on a node"),
        ({"ray": "/archive"}, "is not an address such as 10.0.0.1:6379"),
        ({"ray": "10.0.0.1"}, "is not an address"),
        ({"ray": "", "update": True, "by_content": True}, "exclude each other"),
    ],
)
def test_what_cannot_be_is_refused(given: dict[str, Any], sentence: str) -> None:
    with pytest.raises(Refused, match=sentence):
        ScanSettings(sources=("x",), out="r.parquet", **given)


@slow
@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"device": "cuda"}, "no node of the Ray cluster has a GPU"),
        ({"device": "cuda:0,1"}, "give --device cuda"),
        ({"threads": 7}, "no node of the Ray cluster has 7 CPUs"),
    ],
)
def test_what_the_cluster_has_not_is_refused(
    two_nodes: TwoNodes,
    archive: Path,
    tiny_bundle: Bundle,
    tmp_path: Path,
    given: dict[str, Any],
    sentence: str,
) -> None:
    with pytest.raises(Refused, match=sentence):
        Scan(settings(archive, tmp_path / "r.parquet", tiny_bundle, ray=two_nodes.address, **given)).run()
    assert list(tmp_path.iterdir()) == []


@slow
def test_a_cluster_that_does_not_answer_is_refused(
    archive: Path, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    with pytest.raises(Refused, match=r"no Ray cluster answers at 127.0.0.1:9 "):
        Scan(settings(archive, tmp_path / "r.parquet", tiny_bundle, ray="127.0.0.1:9")).run()
    assert list(tmp_path.iterdir()) == []
