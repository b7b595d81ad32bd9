"""Child processes: a fresh interpreter that serves requests over a socket and can be killed at any time.

A child is not forked, so it inherits no thread and no lock. Unlike with `multiprocessing`, the caller's main
module is not imported again. A child dies with its parent, and leaves Ctrl-C and SIGTERM to it.
"""

import json
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import traceback
from collections.abc import Callable
from logging.handlers import QueueHandler
from multiprocessing.connection import Connection
from typing import Any

from ..errors import GbadError, Stopped
from ..text import signal_name
from .machine import die_with

BOOT = (
    "import json, site, sys; sys.path[:] = json.loads(sys.argv[1]);"
    " [site.addsitedir(path) for path in [*sys.path] if path.endswith('-packages')];"
    " from gbad_batch.engine.system.child import boot; boot(*map(int, sys.argv[2:]))"
)
PACKAGE = "gbad_batch"  # whose logger has the level of the parent's
Serve = Callable[..., None]  # (channel, *arguments): what a child does; a function of a module


class Failed:
    """Message of a child that an error ended."""

    def __init__(self, error: BaseException):
        self.error = error
        if not isinstance(error, GbadError | MemoryError | OSError | ImportError):
            error.add_note("in a worker process:\n" + "".join(traceback.format_exception(error)))


class Child:
    """A process that runs `serve(channel, *arguments)`; both are pickled, functions by their names.

    It inherits the descriptor `inherit` under the same number. Raises Stopped if no process can be started.
    """

    def __init__(self, serve: Serve, *arguments: Any, inherit: int | None = None):
        ours, theirs = socket.socketpair()
        command = [
            sys.executable,
            "-P",
            "-c",
            BOOT,
            json.dumps(sys.path),
            str(theirs.fileno()),
            str(os.getpid()),
            str(logging.getLogger(PACKAGE).getEffectiveLevel()),
        ]
        try:
            self._process = subprocess.Popen(  # noqa: S603 - our own module; -P: none of the current folder's
                command,
                stdin=subprocess.DEVNULL,
                stdout=2,  # standard output is for the summary
                pass_fds=[theirs.fileno(), *([] if inherit is None else [inherit])],
                process_group=0,  # a Ctrl-C is for the parent, which ends its children in order
                env=os.environ | {"OPENBLAS_NUM_THREADS": "1"},
            )
        except OSError as error:
            raise Stopped(
                f"no worker process can be started ({error.strerror}); finished rows are kept: raise the "
                "limits on processes and memory, and run the same command again"
            ) from error
        finally:
            theirs.close()
        self.connection = Connection(ours.detach())
        self._send_or_die((serve, arguments))

    @property
    def pid(self) -> int:
        """Id of the process."""
        return self._process.pid

    def send(self, message: object) -> None:
        """Send a message; if the child is dead, the next `receive` raises EOFError."""
        self._send_or_die(message)

    def receive(self) -> Any:
        """Wait for a message; raises EOFError if the child is dead, or the error that ended it.

        Log records of the child are logged here before they are returned.
        """
        try:
            message = self.connection.recv()
        except OSError as error:
            raise EOFError from error
        return delivered(message)

    def kill(self) -> None:
        """Kill the process."""
        self._process.kill()

    def end(self) -> str:
        """Close the connection and wait, killing the process after a second; returns what ended it."""
        self.connection.close()
        try:
            code = self._process.wait(timeout=1)  # it exits by itself when the connection closes
        except subprocess.TimeoutExpired:
            self._process.kill()
            code = self._process.wait()
        return signal_name(-code) if code < 0 else f"exit code {code}"

    def _send_or_die(self, message: object) -> None:
        try:
            self.connection.send(message)
        except (BrokenPipeError, ConnectionResetError):
            return


def delivered(message: Any) -> Any:
    """Return a message of another process; log a record first, and raise the error that ended the process."""
    if isinstance(message, logging.LogRecord):
        logger = logging.getLogger(message.name)
        if logger.isEnabledFor(message.levelno):
            logger.handle(message)
    if isinstance(message, Failed):
        raise message.error
    return message


class LogLines(QueueHandler):
    """Sends log records to the parent, which shows them."""

    def __init__(self, send: Callable[[object], None]):
        super().__init__(None)  # type: ignore[arg-type] - `enqueue` takes its place
        self._hand_over = send

    def enqueue(self, record: logging.LogRecord) -> None:
        """Send one record."""
        self._hand_over(record)


class Channel:
    """A child's end of the connection to its parent; any of its threads may send."""

    def __init__(self, connection: Connection):
        self._connection = connection
        self._sending = threading.Lock()

    def send(self, message: object) -> None:
        """Send a message; ends this process if the parent is dead."""
        try:
            with self._sending:
                self._connection.send(message)
        except (BrokenPipeError, ConnectionResetError):
            os._exit(1)

    def receive(self) -> Any:
        """Wait for a message; raises EOFError once the parent has closed the connection."""
        return self._connection.recv()


def boot(handle: int, parent: int, level: int) -> None:
    """Run what the parent asked for and exit; the main function of a child."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends its children in order
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    die_with(parent)
    channel = Channel(Connection(handle))
    logging.basicConfig(
        level=logging.INFO, format="%(message)s", handlers=[LogLines(channel.send)], force=True
    )
    logging.getLogger(PACKAGE).setLevel(level)
    code = 0
    try:
        serve, arguments = channel.receive()
        serve(channel, *arguments)
    except EOFError:
        pass  # the parent closed the connection
    except BaseException as error:  # noqa: BLE001 - the parent reports it, whatever it is
        channel.send(Failed(error))
        code = 1
    os._exit(code)  # a decoder that hangs in a thread must not delay the exit
