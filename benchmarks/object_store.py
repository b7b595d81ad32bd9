"""A real S3 server on loopback (SeaweedFS's weed), and a network before it that takes its time."""

import asyncio
import json
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

KEY, SECRET = "AKIDGBADBATCHTEST", "s3cr3t/that+must/never=be+printed"
WEED = Path(sys.executable).with_name("weed")
BUCKET = "archive"
PATIENCE_S = 300  # for the server to start
PIECE = 1 << 16  # bytes that are passed on at a time


@contextmanager
def s3_server(folder: Path) -> Iterator[str]:
    """Start a server that keeps its data in a folder; yields its address."""
    config = folder / "s3.json"
    identity = {
        "credentials": [{"accessKey": KEY, "secretKey": SECRET}],
        "actions": ["Admin"],
        "name": "test",
    }
    config.write_text(json.dumps({"identities": [identity]}))
    (folder / "data").mkdir()
    names = ["master.port", "volume.port", "filer.port", "s3.port"]
    names += [f"{name}.grpc" for name in names]
    ports = dict(zip(names, _free_ports(len(names)), strict=True))
    words = [
        WEED, "server", f"-dir={folder / 'data'}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3",
        f"-s3.config={config}", "-s3.port.iceberg=0", "-s3.port.lance=0",
        "-master.volumeSizeLimitMB=64", "-volume.max=20", "-master.telemetry=false",
        *(f"-{name}={port}" for name, port in ports.items()),
    ]  # fmt: skip
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(list(map(str, words)), stdout=log, stderr=log, cwd=folder)
    try:
        address = f"http://127.0.0.1:{ports['s3.port']}"
        _await(address, process)
        yield address
    finally:
        process.kill()  # asked to end, it takes half a minute
        process.wait()
        shutil.rmtree(folder / "data", ignore_errors=True)


def environment(address: str, key: str = KEY, secret: str = SECRET) -> dict[str, str]:
    """Return the variables by which a client finds the server, as users set them."""
    return {
        "AWS_ACCESS_KEY_ID": key,
        "AWS_SECRET_ACCESS_KEY": secret,
        "AWS_ENDPOINT_URL": address,
        "AWS_REGION": "us-east-1",
    }


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _await(address: str, process: "subprocess.Popen[bytes]") -> None:
    """Wait until the server answers and its volumes are there to be written."""
    patience = time.monotonic() + PATIENCE_S
    while time.monotonic() < patience and process.poll() is None:
        try:
            urlopen(address).close()  # noqa: S310 - our own server
        except HTTPError:
            return
        except OSError:
            time.sleep(0.2)
        else:
            return
    raise RuntimeError(f"weed did not start: exit {process.poll()}")


def make_bucket(address: str) -> None:
    """Make the bucket."""
    from pyarrow.fs import S3FileSystem

    S3FileSystem(
        access_key=KEY,
        secret_key=SECRET,
        endpoint_override=address.partition("://")[2],
        scheme="http",
        allow_bucket_creation=True,
        force_virtual_addressing=False,
    ).create_dir(BUCKET)


@contextmanager
def delayed(address: str, seconds: float) -> Iterator[str]:
    """Run a network before a server that delivers every answer so much later; yields its address."""
    loop = asyncio.new_event_loop()
    network = _Network(address, seconds)
    server = loop.run_until_complete(asyncio.start_server(network.connected, "127.0.0.1", 0))
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        server.close()
        for task in asyncio.all_tasks(loop):
            task.cancel()
        loop.run_until_complete(asyncio.sleep(0))
        loop.close()


class _Network:
    """Passes bytes on between clients and a server."""

    def __init__(self, address: str, seconds: float):
        self._host, _, self._port = address.partition("://")[2].partition(":")
        self._seconds = seconds

    async def connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection until either side closes it."""
        with suppress(OSError):
            there, to_there = await asyncio.open_connection(self._host, int(self._port))
            await asyncio.gather(self._pass(reader, to_there, 0.0), self._pass(there, writer, self._seconds))

    async def _pass(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, late: float) -> None:
        """Pass on what arrives, each piece so much later, in order."""
        loop, waiting = asyncio.get_running_loop(), asyncio.Queue[tuple[float, bytes]](64)

        async def read() -> None:
            while data := await reader.read(PIECE):
                await waiting.put((loop.time() + late, data))
            await waiting.put((0.0, b""))

        reading = loop.create_task(read())
        while (piece := await waiting.get())[1]:
            await asyncio.sleep(max(0.0, piece[0] - loop.time()))
            writer.write(piece[1])
            await writer.drain()
        writer.close()
        await reading
