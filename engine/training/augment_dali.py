"""Images for phase I on a GPU: DALI's operators do there, by the same draws, what `augment` does on the CPU.

JPEGs are decoded whole by a first pipeline, and torch shows their rims to `look`, for the colour of the air;
a second pipeline (`augment_graph`) takes them, rows of arrays and what the CPU has decoded. The same code
runs on DALI's CPU operators, by which tests hold it against the other form. Pixels differ by a level or two,
those of JPEG compression a little more, and those of sharpened outermost lines, which Pillow leaves as they
are. Noise is as strong, but of DALI's own random numbers: it is another where an epoch is resumed.

What is reported to go wrong in DALI is kept out as in `decode.dali_graph`: images are decoded whole, no batch
is empty, and positions pass through. Outputs are copied before DALI gets their memory back. The JPEG
hardware, which may skip an image in silence, is left alone: training does not wait for it.
"""

import logging
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..datasets.arrays import is_row, read_row
from ..decode import DecodeLimits, Decoder
from ..decode.batch import waits_for_batch
from ..decode.coded_image import CodedImage
from ..errors import Refused, Stopped
from ..row import Row
from ..text import one_line
from .augment import Draw, ImageSettings, ahead, cut_of
from .augment_graph import augmenting, decoding, movement, painting
from .data import Index
from .look import air_of_rim
from .pixels import Pixels, WholeImages

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Read:
    """One image as it was read, and what was drawn for it."""

    position: int
    path: Path
    image: Pixels | CodedImage  # the latter is decoded by DALI
    part: NDArray[np.float32] | None = None
    drawn: Draw | None = None


def dali_images(
    paths: Sequence[Path],
    batches: Sequence[Index],
    epoch: int,
    settings: ImageSettings,
    parts: NDArray[np.float32] | None = None,
) -> Iterator[tuple[Index, Tensor]]:
    """Yield what `training_images` yields, on the settings' device; raises Refused where DALI cannot work.

    Threads read files and check their headers, and one more runs DALI, while the network learns.
    """
    if not len(batches):
        return
    decoder, read_whole = Decoder(None, DecodeLimits()), WholeImages()

    def read(k: int) -> Read:
        image = read_row(paths[k]) if is_row(paths[k]) else _gated(paths[k], decoder)
        part = None if parts is None else parts[k]
        whole = read_whole(paths[k]) if image is None else image
        return Read(k, paths[k], whole, part, settings.drawn(epoch, k))

    prepare = DaliImages(settings, max(map(len, batches)), epoch, parted=parts is not None)
    readers = ThreadPoolExecutor(settings.threads, thread_name_prefix="augment")
    runner = ThreadPoolExecutor(1, thread_name_prefix="DALI")

    def begin(index: Index) -> Future[Tensor]:
        reads = [readers.submit(read, k) for k in index.tolist()]
        return runner.submit(lambda: prepare([each.result() for each in reads]))

    try:
        for index, images in ahead(batches, begin):
            yield index, images.result()
    finally:
        readers.shutdown(cancel_futures=True)
        runner.shutdown(cancel_futures=True)


def _gated(path: Path, decoder: Decoder) -> CodedImage | None:
    """Return a file as DALI decodes it; None for one that the scan's gate leaves to the CPU, or refuses."""
    row = Row(uri=str(path))
    coded = decoder.gate(row, path.read_bytes())
    return coded if coded is not None and waits_for_batch(row, coded) else None


class DaliImages:
    """Both pipelines, for batches of up to `most` images; belongs to one thread at a time."""

    def __init__(self, settings: ImageSettings, most: int, epoch: int, *, parted: bool):
        self._settings, self._most = settings, most
        self._device = torch.device(settings.device)
        self._gpu = None if settings.device == "cpu" else self._device.index or 0
        self._read_whole = WholeImages()
        self._decode: Any = None
        seed = int(np.random.default_rng((settings.seed, epoch)).integers(1 << 31))
        try:
            self._augment = self._built(augmenting, settings, parted, seed=seed)
        except RuntimeError as error:
            reason = one_line(error)[-300:]
            raise Refused(f"DALI cannot work on {settings.device} ({reason}); use --device cpu") from error

    def __call__(self, reads: Sequence[Read]) -> Tensor:
        """Return images float32 [n, 3, S, S] (channels last), in order; raises Stopped."""
        try:
            with torch.cuda.device(-1 if self._gpu is None else self._gpu):  # -1: none
                return self._prepared(reads)
        except RuntimeError as error:
            raise Stopped(
                f"DALI cannot prepare images on {self._device} ({one_line(error)[-300:]}): run the same "
                "command again, with a smaller --batch-size if memory is short"
            ) from error

    def _prepared(self, reads: Sequence[Read]) -> Tensor:
        whole = self._whole(reads)
        fed = [self._drawn(read, image) for read, image in zip(reads, whole, strict=True)]
        inputs = {name: [each[name] for each in fed] for name in fed[0]}
        shown = [image.numpy() for image in whole] if self._gpu is None else whole
        images = _run(self._augment, reads, images=shown, **inputs)
        copied = torch.from_dlpack(images.as_tensor()).permute(0, 3, 1, 2).clone()  # [n, 3, S, S]
        if self._gpu is not None:  # DALI does not ask whether its memory has been read
            torch.cuda.current_stream().synchronize()
        return copied

    def _whole(self, reads: Sequence[Read]) -> list[Tensor]:
        """Return whole images [H, W, 3] on the device."""
        coded = [k for k, read in enumerate(reads) if isinstance(read.image, CodedImage)]
        decoded = dict(zip(coded, self._decoded([reads[k] for k in coded]), strict=True)) if coded else {}
        return [decoded[k] if k in decoded else self._put(read.image) for k, read in enumerate(reads)]

    def _decoded(self, reads: Sequence[Read]) -> list[Tensor]:
        self._decode = self._decode or self._built(decoding, self._gpu is not None)
        stored = [np.frombuffer(read.image.data, np.uint8) for read in reads]  # type: ignore[union-attr]
        try:
            images = _run(self._decode, reads, stored=stored)
        except RuntimeError as error:  # one bad image fails them all, and the CPU's decoder names it
            log.warning("DALI failed on a batch, which the CPU decodes: %s", one_line(error)[-300:])
            self._decode = None
            return [self._put(self._read_whole(read.path)) for read in reads]
        return [torch.from_dlpack(images[k]) for k in range(len(reads))]

    def _put(self, pixels: Any) -> Tensor:
        return torch.tensor(pixels, device=self._device)

    def _drawn(self, read: Read, image: Tensor) -> dict[str, NDArray[Any]]:
        """Return what the graph is fed with one whole image [H, W, 3]."""
        inputs: dict[str, NDArray[Any]] = {}
        augmentation, size = self._settings.augmentation, self._settings.size
        if read.part is not None:
            cut = np.array(cut_of((image.shape[0], image.shape[1]), read.part), np.int32)
            inputs |= {"start": cut[:2], "shape": cut[2:]}
        if augmentation is not None and read.drawn is not None:
            inputs["matrix"] = movement(read.drawn, size)
            if augmentation.look:
                rim = torch.cat([image[0], image[-1], image[:, 0], image[:, -1]])
                inputs |= painting(read.drawn.look, air_of_rim(rim.cpu().numpy()), size)
        return inputs

    def _built(self, define: Any, *arguments: Any, **options: Any) -> Any:
        """Build a pipeline on this device."""
        most, threads = self._most, self._settings.threads
        options |= {"batch_size": most, "num_threads": threads, "device_id": self._gpu}
        pipeline = define(*arguments, **options, prefetch_queue_depth=1, exec_dynamic=True)
        pipeline.build()
        return pipeline


def _run(pipeline: Any, reads: Sequence[Read], **fed: Sequence[Any]) -> Any:
    """Run a batch; raises RuntimeError where DALI fails, or returns other images than were fed."""
    positions = [read.position for read in reads]
    images, returned = pipeline.run(ids=[np.array([k], np.int64) for k in positions], **fed)
    if returned.as_array()[:, 0].tolist() != positions:
        raise RuntimeError("DALI returned other images than were fed")
    return images
