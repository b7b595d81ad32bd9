"""A proxy before an object store that fails as networks do."""

import http.client
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from random import Random


@dataclass
class Faults:
    """What a proxy does to requests, and what it has done."""

    errors: float = 0.0  # share answered by 503
    cuts: float = 0.0  # share of bodies that end half-way
    stalls: float = 0.0  # share that waits for 200 ms
    only: str = ""  # the end of the path of requests that are touched
    method: str = ""  # of those that are touched; all, if there is none
    down_after: int | None = None  # requests, then every one is answered by 503
    answer: tuple[int, str] | None = None  # status and code for every request, instead of the server's
    seen: int = 0
    failed: int = 0


@contextmanager
def proxied(address: str, faults: Faults) -> Iterator[str]:
    """Run a proxy before a server; yields the proxy's address."""
    random, lock = Random(1), threading.Lock()
    host = address.partition("://")[2]

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _handle(self) -> None:
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length) if length else b""
            with lock:
                faults.seen += 1
                touched = self.path.endswith(faults.only) and faults.method in ("", self.command)
                error, cut, stall = (random.random() < share * touched for share in (
                    faults.errors, faults.cuts, faults.stalls))  # fmt: skip
                error |= faults.down_after is not None and faults.seen > faults.down_after
                faults.failed += error
            time.sleep(0.2 * stall)
            if faults.answer and touched:
                self._answer(faults.answer[0], f"<Error><Code>{faults.answer[1]}</Code></Error>".encode())
                return
            if error:
                self._answer(503, b"<Error><Code>SlowDown</Code></Error>")
                return
            connection = http.client.HTTPConnection(host, timeout=60)
            try:
                connection.request(self.command, self.path, body, dict(self.headers.items()))
                answer = connection.getresponse()
                content = answer.read()
            finally:
                connection.close()
            self.send_response(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in (
                    "transfer-encoding",
                    "connection",
                    "content-length",
                    "date",
                    "server",
                ):
                    self.send_header(name, value)
            told = answer.getheader("Content-Length") if self.command == "HEAD" else None
            self.send_header("Content-Length", told or str(len(content)))
            self.end_headers()
            if cut and self.command == "GET" and len(content) > 1:
                with lock:
                    faults.failed += 1
                self.wfile.write(content[: len(content) // 2])
                self.close_connection = True
            else:
                self.wfile.write(content)

        def _answer(self, status: int, content: bytes) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        do_GET = do_PUT = do_HEAD = do_POST = do_DELETE = _handle

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as the base names it
            pass

    with answering(Handler) as address:
        yield address


@contextmanager
def answering(handler: Callable[..., BaseHTTPRequestHandler]) -> Iterator[str]:
    """Run an HTTP server on a free port of this machine; gives its address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
