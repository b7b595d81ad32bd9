"""An image is late by the CPU time of its thread; a machine under load is no fault of a file."""

import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from processes import PATIENCE_S

from gbad_batch.engine.results.in_flight import LateImages, in_flight, open_slots

KEY = bytes(range(16))


def computes(ended: threading.Event) -> None:
    while not ended.is_set():
        sum(range(1000))


def waits(ended: threading.Event) -> None:
    ended.wait()


@contextmanager
def decoding(path: Path, work: Callable[[threading.Event], None]) -> Iterator[None]:
    """Note an image in a thread that works as a decoder would."""
    (slots,), ended, begun = open_slots(path, [1]), threading.Event(), threading.Event()

    def thread() -> None:
        slots.belong_to_this_thread()
        slots.begin(KEY)
        begun.set()
        work(ended)

    worker = threading.Thread(target=thread)
    worker.start()
    assert begun.wait(PATIENCE_S)
    try:
        yield
    finally:
        ended.set()
        worker.join()


def test_a_thread_that_computes_is_late_after_its_cpu_time(tmp_path: Path) -> None:
    with decoding(tmp_path / "slots", computes):
        late, started, spent = LateImages(0.5), time.monotonic(), time.process_time()
        while not late.among(os.getpid(), in_flight(tmp_path / "slots")):
            assert time.monotonic() < started + PATIENCE_S
            time.sleep(0.02)
        assert time.process_time() - spent > 0.4


def test_a_thread_that_waits_is_late_by_the_clock_alone(tmp_path: Path) -> None:
    with decoding(tmp_path / "slots", waits):
        images = in_flight(tmp_path / "slots")
        patient, soon, never = LateImages(10), LateImages(0.01), LateImages(0.01)
        time.sleep(0.3)
        assert not patient.among(os.getpid(), images)
        assert soon.among(os.getpid(), images)
        assert not never.among(os.getpid(), images, resumed=time.monotonic_ns())


def test_the_time_of_the_image_before_does_not_count(tmp_path: Path) -> None:
    (slots,), late = open_slots(tmp_path / "slots", [1]), LateImages(0.3)
    slots.belong_to_this_thread()
    for _ in range(4):
        slots.begin(KEY)
        for _ in range(2):
            assert not late.among(os.getpid(), in_flight(tmp_path / "slots"))
            before = time.thread_time()
            while time.thread_time() < before + 0.1:
                sum(range(1000))
