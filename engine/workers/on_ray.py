"""Worker processes in a Ray cluster: actors that run the same loop as a worker on this machine.

The coordinator stays this process: it lists, deals chunks, and writes the rows. Ray Core serves rather than
Ray Data, since order, exactly-once rows and resuming are the coordinator's already, and are the same here:
of Ray it needs processes on other machines and messages to them. What a worker needs of this machine, which
are the files of the model, Ray copies to each node once.
"""

import logging
import os
import re
import shutil
import signal
import tempfile
import threading
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from fcntl import LOCK_EX, LOCK_NB, LOCK_SH, LOCK_UN, flock
from hashlib import sha256
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from queue import Empty, SimpleQueue
from socket import create_connection, gethostname
from threading import Thread
from typing import Any

from ..bundle import MANIFEST, Bundle, default_bundle_path
from ..errors import MissingExtra, Refused, Stopped, how_to_install
from ..results.in_flight import LateImages, Pauses, in_flight
from ..runtime.cache import default_cache_dir
from ..settings import ScanSettings
from ..sources.storage import read_elsewhere
from ..stages import OpenStages, Setup, Stages
from ..stages.plan import CORES_A_WORKER
from ..stages.scorer import resolved_settings
from ..system.child import PACKAGE, Failed, LogLines, delivered
from ..system.machine import usable_cores
from .chunk import Chunk, FinishedChunk
from .worker import Begin, serve

log = logging.getLogger(__name__)

Files = Mapping[str, bytes]

OBJECT_STORE = 300_000_000  # bytes of shared memory, of a cluster that is started here
PATIENCE_S = 60.0  # after which a worker that has no place yet is told of
LOOK_S = 0.25
CONNECT_S = 10.0
MODELS = "models"  # folder of the cache, of models that a coordinator has sent
GONE = "its node has died"  # in what Ray says of an actor


@dataclass(frozen=True)
class _Coordinator:
    """What workers on other machines are told of this process."""

    version: str = field(default_factory=lambda: version("gbad-batch"))
    host: str = field(default_factory=gethostname)
    log_level: int = field(default_factory=lambda: logging.getLogger(PACKAGE).getEffectiveLevel())


class _Late:
    """Message of a worker in which an image takes too long."""


# On this machine


class RayLauncher:
    """Starts workers in a Ray cluster, as many as it has cores for, or GPUs.

    Raises Refused if Ray is not installed, no cluster answers, or the model cannot be used.
    """

    def __init__(self, settings: ScanSettings, open_stages: OpenStages):
        self._ray: Any = _import_ray()
        bundle = Bundle.read(Path(settings.model or default_bundle_path()))
        self._hash = bundle.hash
        self._open_stages = open_stages
        self._ours = not self._ray.is_initialized()
        if self._ours:
            _connect(self._ray, settings.ray or "auto")
        try:
            self._plan(settings)
            manifest = (bundle.path / MANIFEST).read_bytes()
            self._model = self._ray.put({**bundle.files, MANIFEST: manifest})
            self._point = self._ray.put(_content(settings.point))
        except BaseException:
            self.close()
            raise
        self._actor = self._ray.remote(concurrency_groups={"in": 1, "out": 1})(_Actor)

    def _plan(self, settings: ScanSettings) -> None:
        """Divide the cluster among workers; raises Refused if there is no room for one."""
        nodes = [node["Resources"] for node in self._ray.nodes() if node["Alive"]]
        self._gpu = _wants_gpu(settings.device, nodes)
        self._cores = settings.threads or _cores_a_worker(nodes, self._gpu)
        places = sum(map(self._places, nodes))
        if not places:
            raise Refused(
                f"no node of the Ray cluster has {self._needs()}: give fewer --threads, or start larger nodes"
            )
        self._workers = settings.workers or places
        self._nodes = sum(self._places(node) > 0 for node in nodes)

    def launch(self, settings: ScanSettings) -> "RayWorker":
        """Start an actor, wherever there is room."""
        where = {"num_cpus": self._cores, "num_gpus": int(self._gpu)}
        device = settings.device if self._gpu else "cpu"
        its = replace(
            settings, ray=None, device=device, threads=self._cores, workers=1, model=None, point=None
        )
        actor = self._actor.options(**where).remote(
            self._open_stages,
            its,
            self._model,
            self._point,
            _Coordinator(),
        )
        return RayWorker(self._ray, actor, self._needs())

    def complete(self, setup: Setup) -> Setup:
        """Make the plan one for the cluster."""
        if setup.bundle_hash != self._hash:
            raise Refused("the model was replaced while the scan began: run the command again")
        origin = f"on {self._nodes} Ray node{'s' * (self._nodes > 1)}"
        return replace(setup, plan=replace(setup.plan, workers=self._workers, origin=origin))

    def settings_of(self, _number: int, settings: ScanSettings, setup: Setup, /) -> ScanSettings:
        """Give each worker the one GPU that Ray shows it, if there are GPUs."""
        return resolved_settings(settings, setup, "cuda:0" if setup.devices else "cpu")

    def close(self) -> None:
        """Leave the cluster; one that was started here ends."""
        if self._ours:
            self._ray.shutdown()

    def _places(self, node: Mapping[str, float]) -> int:
        """Count the workers that a node has room for."""
        by_cores = int(node.get("CPU", 0)) // self._cores
        return min(by_cores, int(node.get("GPU", 0))) if self._gpu else by_cores

    def _needs(self) -> str:
        return f"{self._cores} CPU{'s' * (self._cores > 1)}{' and a GPU' * self._gpu}"


class RayWorker:
    """The coordinator's end of one actor; its `fileno` becomes readable when there is a message."""

    def __init__(self, ray: Any, actor: Any, needs: str):
        self._ray = ray
        self._actor = actor
        self._arrived: deque[Any] = deque()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_SEMAPHORE)
        self._late = False
        self._cause = ""
        self._patience = threading.Timer(
            PATIENCE_S, log.warning, ("a worker still waits for %s of the Ray cluster", needs)
        )
        self._patience.daemon = True
        self._patience.start()
        self.name = f"actor {actor._actor_id.hex()[:12]}"
        self._ask()

    def __del__(self) -> None:
        os.close(self._wake)  # not before the last answer, whose call-back holds this object

    @property
    def connection(self) -> "RayWorker":
        """This object."""
        return self

    def fileno(self) -> int:
        """Return the descriptor."""
        return self._wake

    def send(self, message: object) -> None:
        """Send a message, after those before."""
        self._actor.put.options(concurrency_group="in").remote(message)

    def receive(self) -> Any:
        """Wait for a message; log records are logged before they are returned."""
        os.eventfd_read(self._wake)
        message = self._arrived.popleft()
        if isinstance(message, BaseException):
            raise self._judged(message)
        if message is None:
            self._ask()
        elif isinstance(message, _Late):
            self._late = True
        return delivered(message)

    def begin(self, begin: Begin) -> None:
        """Send `begin`; the actor has a file of its own for the images in its decoders."""
        self.send(begin)

    def is_late(self, _resumed: int, /) -> bool:
        """Tell whether the actor has said so; pauses of this process stop no clock there."""
        return self._late

    def take_suspects(self, chunks: Sequence[Chunk], /) -> list[bytes]:
        """Return the keys of all images that it held, unless its whole node is gone."""
        if GONE in self._cause:
            return []
        return [candidate.key for chunk in chunks for candidate in chunk.candidates]

    def kill(self) -> None:
        """Kill the actor, which removes its folder first, if it can within a second."""
        with suppress(Exception):  # of Ray: it is dead, or its cluster is
            self._ray.get(self._actor.close.remote(), timeout=1)
        with suppress(Exception):
            self._ray.kill(self._actor)

    def end(self) -> str:
        """Kill the actor, if it is not dead; returns what ended it."""
        self._patience.cancel()
        self.kill()
        return "the loss of its node" if GONE in self._cause else "a signal, or by Ray"

    def _ask(self) -> None:
        """Ask for the next messages, which a thread of Ray's brings; behind them stands None."""
        self._actor.messages.options(concurrency_group="out").remote().future().add_done_callback(self._take)

    def _take(self, answer: "Future[list[Any]]") -> None:
        error = answer.exception()
        self._patience.cancel()
        for message in [*answer.result(), None] if error is None else [error]:
            self._arrived.append(message)
            os.eventfd_write(self._wake, 1)

    def _judged(self, error: BaseException) -> BaseException:
        """Return what an error of Ray means: EOFError for a dead actor."""
        self._cause = text = str(error)
        log.debug("%s: %s", self.name, " ".join(text.split()))
        if found := re.search(r"No module named '([\w.]+)'", text):
            return Refused(
                f"{found[1]} is not installed on a node of the Ray cluster: install the same gbad-batch, "
                "with the extra cluster, on every node"
            )
        if isinstance(error, self._ray.exceptions.RayActorError):
            return EOFError(text)
        return Stopped(
            f"the Ray cluster does not answer ({type(error).__name__}); finished rows are kept: see to it, "
            "and run the same command again"
        )


def _import_ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # a scan calls nobody
    os.environ.setdefault("RAY_worker_niceness", "0")  # of a cluster that is started here; Ray's own is 15
    try:
        return import_module("ray")
    except ImportError:
        raise MissingExtra(f"ray is not installed: {how_to_install('cluster')}") from None


def _connect(ray: Any, address: str) -> None:
    """Join the cluster at `address`; for `auto`, that of RAY_ADDRESS or of this machine, or a new one."""
    logging.getLogger("ray").setLevel(logging.ERROR)
    quiet = {"log_to_driver": False, "configure_logging": False}
    new = {"num_cpus": usable_cores(), "include_dashboard": False, "object_store_memory": OBJECT_STORE}
    where = os.environ.get("RAY_ADDRESS") or _running_here() if address == "auto" else address
    terminated = signal.getsignal(signal.SIGTERM)
    try:
        if ":" in where:
            _reach(where)
        ray.init(address=where, **quiet, **(new if where == "local" else {}))
    except Exception as error:
        raise Refused(
            f"no Ray cluster answers at {where} ({type(error).__name__}): check the address, and that this "
            "machine is one of its nodes (ray start --address=...)"
        ) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, terminated)  # Ray has put its own in its place


def _running_here() -> str:
    """Return the address of the cluster that was last started here, or `local` if none runs."""
    file = Path(os.environ.get("RAY_TMPDIR", "/tmp")) / "ray" / "ray_current_cluster"  # noqa: S108 - Ray's
    try:
        address = file.read_text().strip()
        _reach(address)
    except (OSError, ValueError):
        return "local"
    return address


def _reach(address: str) -> None:
    """Connect once; raises OSError or ValueError. Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    create_connection((host.strip("[]"), int(port)), CONNECT_S).close()


def _wants_gpu(device: str, nodes: Sequence[Mapping[str, float]]) -> bool:
    """Tell whether workers take GPUs; raises Refused for GPUs that the cluster does not have."""
    if device.startswith("cuda:"):
        raise Refused(f"--device {device} names GPUs of one machine: with --ray give --device cuda")
    has_some = any(node.get("GPU", 0) >= 1 for node in nodes)
    if device == "cuda" and not has_some:
        raise Refused(
            "no node of the Ray cluster has a GPU: leave --device cuda out, or start nodes with one"
        )
    return has_some and device != "cpu"


def _cores_a_worker(nodes: Sequence[Mapping[str, float]], gpu: bool) -> int:
    """Return the cores that each worker gets, such that every node has room for one."""
    if gpu:
        shares = [int(node.get("CPU", 0) // node["GPU"]) for node in nodes if node.get("GPU", 0) >= 1]
    else:
        shares = [min(CORES_A_WORKER, int(node["CPU"])) for node in nodes if node.get("CPU", 0) >= 1]
    return max(1, min(shares, default=1))


def _content(path: Any) -> bytes | None:
    """Read a file that goes to the workers; raises Refused."""
    if path is None:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise Refused(f"{path} cannot be read: {error.strerror}") from None


# On a node


class _Actor:
    """One worker of a scan, with a thread for its messages in and one for those out."""

    def __init__(
        self,
        open_stages: OpenStages,
        settings: ScanSettings,
        model: Files,
        point: bytes | None,
        coordinator: _Coordinator,
    ):
        self._inbox: SimpleQueue[Any] = SimpleQueue()
        self._outbox: SimpleQueue[Any] = SimpleQueue()
        self._folder = tempfile.TemporaryDirectory(prefix="gbad-batch-")
        self._node, self._timeout_s = _node_name(), settings.decode_timeout
        logger = logging.getLogger(PACKAGE)
        logger.propagate, logger.handlers = False, [LogLines(self.send)]
        logger.setLevel(coordinator.log_level)
        if gethostname() != coordinator.host:
            read_elsewhere()
        arguments = open_stages, settings, model, point, coordinator.version
        Thread(target=self._serve, args=arguments, name="serve", daemon=True).start()

    # the coordinator's side

    def put(self, message: Any) -> None:
        if isinstance(message, Begin):
            file = Path(self._folder.name) / "in_flight"
            message = message.with_file(file)
            Thread(target=self._watch, args=(file, self._timeout_s), name="watch", daemon=True).start()
        self._inbox.put(message)

    def messages(self) -> list[Any]:
        """Wait for a message; returns all that there are."""
        found = [self._outbox.get()]
        with suppress(Empty):
            while True:
                found.append(self._outbox.get_nowait())
        return found

    def close(self) -> None:
        self._folder.cleanup()

    # the worker's side

    def send(self, message: object) -> None:
        if isinstance(message, FinishedChunk):
            message.node = self._node
        self._outbox.put(message)

    def receive(self) -> Any:
        return self._inbox.get()

    def _serve(
        self, open_stages: OpenStages, settings: ScanSettings, model: Files, point: bytes | None, wanted: str
    ) -> None:
        """Run the worker's loop, and report the error that ends it."""
        try:
            _check_version(wanted)
            folder = _model_folder(model, settings)
            given = Path(self._folder.name) / "point.json"
            if point is not None:
                given.write_bytes(point)
            settings = replace(settings, model=folder, point=None if point is None else given)

            def open_in_turn(its: ScanSettings) -> Stages:
                with _first_alone(folder.with_suffix(".lock")):
                    return open_stages(its)

            serve(self, open_in_turn, settings)
        except BaseException as error:  # noqa: BLE001 - the coordinator reports it, whatever it is
            self.send(Failed(error))

    def _watch(self, file: Path, timeout_s: float) -> None:
        """Tell the coordinator once an image takes too long; it kills this process."""
        late, pauses = LateImages(timeout_s), Pauses()
        while not late.among(os.getpid(), in_flight(file), pauses.look()):
            time.sleep(LOOK_S)
        self.send(_Late())


def _check_version(wanted: str) -> None:
    """Raise Refused if this node has another version than the coordinator."""
    if version("gbad-batch") != wanted:
        raise Refused(
            f"gbad-batch is {version('gbad-batch')} on {gethostname()} and {wanted} where the scan began: "
            "install the same version on every node"
        )


def _node_name() -> str:
    """Name this node: its host, and its id, for a host may have several."""
    context = import_module("ray").get_runtime_context()
    return f"{gethostname()} {context.get_node_id()[:8]}"


def _model_folder(files: Files, settings: ScanSettings) -> Path:
    """Write the files of the model to this node's cache, unless they are there; returns their folder.

    The folder's name is the bundle's hash, which holds those of all files: opening the bundle checks them.
    """
    digest = sha256(files[MANIFEST]).hexdigest()
    base = Path(settings.cache_dir) if settings.cache_dir else default_cache_dir()
    folder = base / MODELS / digest
    if (folder / MANIFEST).is_file():
        return folder
    folder.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    begun = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".new-"))
    for name, content in files.items():
        (begun / name).write_bytes(content)
    try:
        begun.rename(folder)
    except OSError:  # another worker was faster
        shutil.rmtree(begun)
    return folder


@contextmanager
def _first_alone(path: Path) -> Iterator[None]:
    """Let one process of this node in, which may have to build the engine; the others once it has."""
    with path.open("w") as file:
        try:
            flock(file, LOCK_EX | LOCK_NB)
        except BlockingIOError:
            flock(file, LOCK_SH)
            flock(file, LOCK_UN)
        yield
