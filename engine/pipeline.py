"""Stages that overlap: generators joined by threads and bounded queues.

A scan is a chain of generators. `background` lets one link run ahead of the next, `parallel` runs one
link on several threads and keeps the order. The first error anywhere surfaces at the end of the chain. Once
stopped, no link takes in more: what has come through to the end is still handed out, then Halted is raised.
Leaving the pipeline stops every thread.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, Self, TypeVar

from .errors import Stopped

S = TypeVar("S")
T = TypeVar("T")

WAKE_S = 0.2  # how often a waiting stage looks whether the pipeline was stopped


class Halted(Exception):
    """The pipeline was stopped while a stage waited."""


class Channel(Generic[T]):
    """A bounded queue with an end: closed by its producer, or with the error that ended it."""

    def __init__(self, depth: int, stopped: threading.Event):
        self._items: deque[T] = deque()
        self._depth = depth
        self._stopped = stopped
        self._changed = threading.Condition()
        self._closed = False
        self._error: BaseException | None = None

    def put(self, item: T) -> None:
        """Append an item; waits while the channel is full; raises Halted once the pipeline stops."""
        with self._changed:
            while self._stopped.is_set() or len(self._items) >= self._depth:
                self._wait()
            self._items.append(item)
            self._changed.notify_all()

    def close(self, error: BaseException | None = None) -> None:
        """End the channel; its consumer gets what is queued, then the error."""
        with self._changed:
            self._closed, self._error = True, error
            self._changed.notify_all()

    def __iter__(self) -> Iterator[T]:
        while True:
            with self._changed:
                while not self._items and (not self._closed or self._stopped.is_set()):
                    self._wait()
                if not self._items:
                    break
                item = self._items.popleft()
                self._changed.notify_all()
            yield item
        if self._error is not None:
            raise self._error

    def _wait(self) -> None:
        if self._stopped.is_set():
            raise Halted
        self._changed.wait(WAKE_S)


class Pipeline:
    """Owns the threads of one scan; a context manager that leaves none behind."""

    def __init__(self) -> None:
        self.stopped = threading.Event()
        self._threads: list[threading.Thread] = []
        self._pools: list[ThreadPoolExecutor] = []

    def background(self, items: Iterable[T], depth: int, name: str) -> Iterator[T]:
        """Run a generator on its own thread, at most `depth` items ahead of its consumer."""
        channel: Channel[T] = Channel(depth, self.stopped)

        def produce() -> None:
            try:
                for item in items:
                    channel.put(item)
            except Halted:
                channel.close()
            except BaseException as error:  # noqa: BLE001 - handed to the consumer, whatever it is
                channel.close(error)
            else:
                channel.close()

        thread = threading.Thread(target=produce, name=name, daemon=True)
        _begun(thread.start)
        self._threads.append(thread)
        return iter(channel)

    def parallel(
        self, function: Callable[[S], T], items: Iterable[S], threads: int, depth: int, name: str
    ) -> Iterator[T]:
        """Apply a function on several threads; results come in the order of the items."""
        pool = ThreadPoolExecutor(threads, thread_name_prefix=name)
        self._pools.append(pool)

        def submit(item: S) -> Future[T]:
            return _begun(lambda: pool.submit(function, item))

        submitted = map(submit, items)
        return (future.result() for future in self.background(submitted, depth, f"{name} feeder"))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.stopped.set()
        for pool in self._pools:
            pool.shutdown(wait=False, cancel_futures=True)
        for thread in self._threads:
            thread.join(timeout=10)


def _begun(begin: Callable[[], T]) -> T:
    """Start a thread; raises Stopped where the system gives no more of them."""
    try:
        return begin()
    except RuntimeError as error:
        raise Stopped(
            f"this machine gives the scan no more threads ({error}); what is finished is kept: give fewer "
            "--threads, or raise its limits on processes and memory, and run the same command again"
        ) from error
