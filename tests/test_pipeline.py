"""Stages that overlap: order, bounded depth, errors from anywhere, a stop from elsewhere, no thread left."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest

from gbad_batch.engine.errors import Stopped
from gbad_batch.engine.pipeline import Halted, Pipeline
from gbad_batch.engine.scorer import Batch, batches

DEPTH, THREADS, STREAMS, WAITING = 4, 3, 2, 2
STAGES = ("list", "decode", "gather", "score", "write")
ERRORS = (Stopped("the disk is gone"), MemoryError(), KeyboardInterrupt(), SystemExit(3))


@pytest.fixture(autouse=True)
def no_thread_left() -> Iterator[None]:
    """Fail a test that leaves a thread behind."""
    before = set(threading.enumerate())
    yield
    end = time.monotonic() + 10
    while (left := set(threading.enumerate()) - before) and time.monotonic() < end:
        time.sleep(0.01)
    assert not left


def flow(pipeline: Pipeline, items: Iterable[int], at: Callable[[str, int], None]) -> Iterator[int]:
    """Chain the stages as a scan does; `at` is told the stage and the item, and may raise."""

    def through(stage: str, items: Iterable[int]) -> Iterator[int]:
        for item in items:
            at(stage, item)
            yield item

    def on_threads(stage: str) -> Callable[[int], int]:
        def work(item: int) -> int:
            at(stage, item)
            return item

        return work

    found = pipeline.background(through("list", items), DEPTH, "list")
    decoded = pipeline.parallel(on_threads("decode"), found, THREADS, DEPTH, "decode")
    gathered = pipeline.background(through("gather", decoded), 1, "gather")
    scored = pipeline.parallel(on_threads("score"), gathered, STREAMS, STREAMS, "score")
    return through("write", pipeline.background(scored, WAITING, "write"))


def test_order_is_kept_whatever_each_item_takes() -> None:
    def at(stage: str, item: int) -> None:
        if stage in ("decode", "score"):
            time.sleep(0.002 * (item % (5 if stage == "decode" else 3) == 0))

    with Pipeline() as pipeline:
        assert list(flow(pipeline, range(300), at)) == list(range(300))


def test_no_items_end_at_once() -> None:
    with Pipeline() as pipeline:
        assert list(flow(pipeline, [], lambda *_: None)) == []


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_an_error_of_any_stage_ends_the_chain(stage: str, error: BaseException) -> None:
    """The consumer gets the error itself, and before it only what came in order before it."""

    def at(here: str, item: int) -> None:
        if (here, item) == (stage, 50):
            raise error

    got: list[int] = []
    with pytest.raises(type(error)) as caught, Pipeline() as pipeline:  # noqa: PT012 - the loop is the consumer
        for item in flow(pipeline, range(10**9), at):
            got.append(item)
    assert caught.value is error
    assert got == list(range(len(got)))
    assert len(got) <= 50


@pytest.mark.parametrize("several", ["decode", "score"])
def test_the_first_error_in_order_is_told(several: str) -> None:
    def at(stage: str, item: int) -> None:
        if stage == several and item in (7, 8, 9):
            time.sleep(0.05 * (item == 7))  # the later ones fail first
            raise Stopped(f"item {item}")

    with pytest.raises(Stopped, match="item 7"), Pipeline() as pipeline:
        list(flow(pipeline, range(1000), at))


def test_what_waits_is_bounded() -> None:
    """A consumer that takes nothing makes every stage wait, however long the list is."""
    reached: dict[str, int] = dict.fromkeys(STAGES, 0)
    lock = threading.Lock()

    def at(stage: str, _item: int) -> None:
        with lock:
            reached[stage] += 1

    with Pipeline() as pipeline:
        chain = flow(pipeline, range(10**9), at)
        assert next(chain) == 0
        before: dict[str, int] = {}
        while before != reached:
            before = dict(reached)
            time.sleep(0.3)
        assert reached["score"] <= 1 + WAITING + 1 + STREAMS + 2
        assert reached["gather"] <= reached["score"] + 1 + 2
        assert reached["decode"] <= reached["gather"] + DEPTH + 2
        assert reached["list"] <= reached["decode"] + DEPTH + 2


@pytest.mark.parametrize("slow", STAGES[:4])
def test_a_stop_from_another_thread_ends_a_chain_that_waits(slow: str) -> None:
    """The consumer is halted at once, also where a stage hangs; leaving waits for the stage."""
    release, hanging = threading.Event(), threading.Event()

    def at(stage: str, item: int) -> None:
        if (stage, item) == (slow, 3):
            hanging.set()
            release.wait(30)

    with Pipeline() as pipeline:

        def stop() -> None:
            hanging.wait(30)
            pipeline.stopped.set()

        stopper = threading.Thread(target=stop)
        stopper.start()
        with pytest.raises(Halted):
            list(flow(pipeline, range(10**9), at))
        release.set()
        stopper.join()


def test_what_has_come_to_the_end_is_handed_out_after_a_stop() -> None:
    """As batches that are scored and wait for a slow disk."""
    made: list[int] = []

    def at(stage: str, item: int) -> None:
        if stage == "score":
            made.append(item)

    with Pipeline() as pipeline:
        chain = pipeline.background(flow(pipeline, range(10**9), at), DEPTH, "more")
        assert next(chain) == 0
        before = -1
        while before != len(made):
            before = len(made)
            time.sleep(0.3)
        pipeline.stopped.set()
        got: list[int] = []
        with pytest.raises(Halted):
            got.extend(chain)  # keeps what came before the error
        assert got == list(range(1, 1 + DEPTH))
        assert len(made) <= before + STREAMS + 2


def test_a_pipeline_stopped_before_it_starts_gives_nothing() -> None:
    pipeline = Pipeline()
    pipeline.stopped.set()
    with pytest.raises(Halted), pipeline:
        list(flow(pipeline, range(10**9), lambda *_: None))


def test_a_consumer_that_leaves_early_stops_every_stage() -> None:
    seen: list[int] = []
    with Pipeline() as pipeline:
        for item in flow(pipeline, range(10**9), lambda *_: None):
            seen.append(item)
            if item == 20:
                break
    assert seen == list(range(21))


def test_what_a_stage_holds_open_is_closed() -> None:
    closed = threading.Event()

    def listing() -> Iterator[int]:
        try:
            yield from range(10**9)
        finally:
            closed.set()

    with Pipeline() as pipeline:
        assert next(pipeline.background(listing(), DEPTH, "list")) == 0
    assert closed.wait(10)


@pytest.mark.parametrize("refused", ["list", "decode feeder", "decode_0", "score feeder", "score_0", "write"])
def test_a_thread_that_cannot_start_is_the_machines_fault(
    monkeypatch: pytest.MonkeyPatch, refused: str
) -> None:
    """As under a limit on processes; told by the consumer, whichever thread it was."""
    begin = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == refused:
            raise RuntimeError("can't start new thread")
        begin(thread)

    monkeypatch.setattr(threading.Thread, "start", refuse)
    with pytest.raises(Stopped, match="thread"), Pipeline() as pipeline:
        list(flow(pipeline, range(100), lambda *_: None))


def test_batches_hold_their_size_of_images_and_all_rows_in_order() -> None:
    rows: list[Any] = list(range(4000))
    pixels: list[Any] = [None if i % 3 or i > 100 else i for i in rows]
    made: list[Batch] = list(batches(zip(rows, pixels, strict=True), 4))
    assert [row for batch in made for row in batch.rows] == rows
    assert [row for batch in made for row in batch.images] == [p for p in pixels if p is not None]
    assert max(len(batch.images) for batch in made) == 4
    assert max(len(batch.rows) for batch in made) <= 4 + 1024
