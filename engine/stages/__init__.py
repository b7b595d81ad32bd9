"""The stages of a worker: read, decode, score; opened from settings, and exchangeable one by one."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Protocol, Self

from ..decode import DecodeLimits
from ..row import Row
from ..runtime import Outputs
from ..settings import ScanSettings
from ..sources import Candidate
from .plan import WorkPlan
from .scorer import Pixels, Scorer, Setup

__all__ = ["Batch", "InFlight", "OpenStages", "Setup", "Stages", "WorkPlan", "open_stages"]


class InFlight(Protocol):
    """Notes of the images that are in a decoder, readable after this process has died."""

    def begin(self, key: bytes) -> None:
        """Note one image, replacing the one before."""
        ...

    def begin_all(self, keys: Sequence[bytes]) -> None:
        """Note images that are decoded at the same time."""
        ...

    def end(self) -> None:
        """Note that nothing is being decoded."""
        ...


def _nothing() -> None:
    pass


def _not_ahead(_candidates: list[Candidate]) -> None:
    pass


@dataclass(slots=True)
class Batch:
    """Images of a chunk on their way through the stages; each stage fills in what the next one needs."""

    candidates: list[Candidate]
    suspects: frozenset[bytes] = frozenset()  # keys of images to decode in a process of their own
    contents: list[Any] = field(default_factory=list)  # one per candidate; None if its row has a status,
    # a function where it is to be read only now, since the others take all memory that the chunk may have
    images: list[Row] = field(default_factory=list)  # rows that have pixels
    pixels: Pixels = None  # uint8 [len(images), S, S, 3]
    release: Callable[[], None] = _nothing  # what else frees the memory of the contents

    @property
    def rows(self) -> list[Row]:
        """Rows of the candidates, in order."""
        return [candidate.row for candidate in self.candidates]

    def drop_contents(self) -> None:
        """Free the memory of the contents, which are decoded; a second call does nothing."""
        self.contents = []
        release, self.release = self.release, _nothing
        release()


@dataclass
class Stages:
    """Stages of one worker, each a callable; safe to call from as many threads as the plan has."""

    setup: Setup
    read: Callable[[Batch], None]  # fills contents and digests; raises Stopped
    decode: Callable[[Batch, InFlight], None]  # fills images and pixels; raises Stopped, DeviceLost
    score: Callable[[list[Row], Pixels], Outputs | None]  # fills rows; raises Stopped, DeviceLost
    close: Callable[[], None] = lambda: None
    ahead: Callable[[list[Candidate]], None] = _not_ahead  # begins to read a chunk that has to wait

    @property
    def plan(self) -> WorkPlan:
        """Batch size, workers and threads of the scan."""
        return self.setup.plan

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


OpenStages = Callable[[ScanSettings], Stages]  # a function of a module; each worker imports and calls it


def open_stages(settings: ScanSettings, plan: WorkPlan | None = None) -> Stages:
    """Open the stages of a worker; raises Refused if the model, the engine or the device is unavailable.

    A `plan` takes the place of the one that follows from the settings, the tuned one, and the default.
    """
    with ExitStack() as stack:
        scorer = stack.enter_context(Scorer(settings, plan))
        limits = DecodeLimits(settings.max_pixels, settings.max_file_size)
        if scorer.engine.device == "cpu":
            from .cpu import CPUDecode, FileRead

            read = stack.enter_context(FileRead(settings.max_file_size))
            ahead = read.ahead
            decode = stack.enter_context(CPUDecode(scorer.input_size, limits, settings.decode_timeout))
        else:
            from .gpu import open_reading_and_decoding

            gpu = int(scorer.engine.device.partition(":")[2])
            ahead = _not_ahead
            read, decode = open_reading_and_decoding(settings, scorer, limits, gpu, stack)
        return Stages(scorer.setup(), read, decode, scorer, stack.pop_all().close, ahead)
