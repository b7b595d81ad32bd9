"""What a worker does with a chunk: read, decode, score; opened from settings, exchangeable one by one."""

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
    """Where a stage notes the images that are in a decoder, for whoever outlives this process."""

    def begin(self, key: bytes) -> None:
        """Note one image, in place of the one before."""
        ...

    def begin_all(self, keys: Sequence[bytes]) -> None:
        """Note images that are decoded at once."""
        ...

    def end(self) -> None:
        """Note that nothing is being decoded."""
        ...


@dataclass(slots=True)
class Batch:
    """The images of a chunk on their way through the stages; each stage fills in what the next one needs."""

    candidates: list[Candidate]
    suspects: frozenset[bytes] = frozenset()  # keys of images to be decoded apart
    contents: list[Any] = field(default_factory=list)  # of each candidate; None: its row has a status
    images: list[Row] = field(default_factory=list)  # rows that have pixels
    pixels: Pixels = None  # uint8 [len(images), S, S, 3]
    release: Callable[[], None] = lambda: None  # gives the memory of the contents back

    @property
    def rows(self) -> list[Row]:
        """The rows of the candidates, in order."""
        return [candidate.row for candidate in self.candidates]


@dataclass
class Stages:
    """The stages of one worker, each an object with one verb; safe to call from the plan's threads."""

    setup: Setup
    read: Callable[[Batch], None]  # fills contents and digests; raises Stopped
    decode: Callable[[Batch, InFlight], None]  # fills images and pixels; raises Stopped, DeviceLost
    score: Callable[[list[Row], Pixels], Outputs | None]  # fills rows; raises Stopped, DeviceLost
    close: Callable[[], None] = lambda: None

    @property
    def plan(self) -> WorkPlan:
        """How this worker divides its cores."""
        return self.setup.plan

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


OpenStages = Callable[[ScanSettings], Stages]  # a module's function: each worker opens its own, by this name


def open_stages(settings: ScanSettings) -> Stages:
    """Open what a worker needs; raises Refused if the model, the engine or the device is unavailable."""
    with ExitStack() as stack:
        scorer = stack.enter_context(Scorer(settings))
        limits = DecodeLimits(settings.max_pixels, settings.max_file_size)
        if scorer.engine.device == "cpu":
            from .cpu import CPUDecode, FileRead

            read = FileRead(settings.max_file_size)
            decode = stack.enter_context(CPUDecode(scorer.input_size, limits, settings.decode_timeout))
        else:
            from .gpu import open_reading_and_decoding

            gpu = int(scorer.engine.device.partition(":")[2])
            read, decode = open_reading_and_decoding(settings, scorer, limits, gpu, stack)
        return Stages(scorer.setup(), read, decode, scorer, stack.pop_all().close)
