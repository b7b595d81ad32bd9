"""DALI's graphs, one definition for a GPU and for the CPU: JPEG bytes or pixels in, the network's pixels out.

They stay uint8: normalization is the engine's, with constants beside the weights, and less is moved.

What is reported to go wrong in these libraries is kept out here:

- Decoding of a part of an image (crop, slice) crashes on some GPUs: images are decoded whole.
- `ANY_DATA` as output type corrupts memory with gray JPEGs: it is always RGB.
- An empty batch breaks a pipeline for good, as inputs of different lengths do: neither is fed.
- The legacy executor is of no use after a bad image, and its outputs do not last: it is always the dynamic
  one, and image ids pass through the graph, so that stale outputs are detected.
- The JPEG hardware writes into memory that was freed while a kernel still reads it, whatever the order of
  streams says (pytorch/vision#9606, meta-pytorch/torchcodec#1634). So one batch at a time is under way, and
  `DaliGraph` waits for its end: when the next is decoded, nothing that DALI has freed is in use.
- The hardware may skip an image and report success (MrNeRF/LichtFeld-Studio#1924), which leaves what was in
  that memory before: `DecodedBatch` tells images of one colour, and has fingerprints to notice
  repetitions.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from nvidia.dali import fn, types
from nvidia.dali.pipeline import pipeline_def
from nvidia.dali.tensors import TensorCPU

from .coded_image import CodedImage


@dataclass(frozen=True)
class GraphSettings:
    """Settings of a graph."""

    size: int  # pixels a side
    most: int  # images a batch
    threads: int
    gpu: int | None  # None: CPU operators
    hardware_share: float  # of JPEGs, for the GPU's JPEG hardware


@dataclass(frozen=True)
class CodedBatch:
    """JPEGs that are decoded at once, ready to be fed; made beside a graph that runs."""

    ids: list[int]
    coded: list[CodedImage]
    shapes: list[tuple[int, int]]  # height and width, by the headers
    tensors: list[Any]  # DALI's, uint8 [bytes], over the memory of `coded`

    @classmethod
    def of(
        cls, ids: Sequence[int], coded: Sequence[CodedImage], shapes: Sequence[tuple[int, int]]
    ) -> "CodedBatch":
        """Put a tensor over each image's bytes, which is most of what feeding them takes."""
        tensors = [TensorCPU(np.frombuffer(image.data, np.uint8)) for image in coded]
        return cls(list(ids), list(coded), list(shapes), tensors)


@dataclass(frozen=True)
class DecodedBatch:
    """The n images that a graph decoded and resized."""

    ids: list[int]
    pixels: Any  # DALI's tensor list, uint8 [n, size, size, 3] RGB, on the GPU or the host; kept alive by it
    uniform: npt.NDArray[np.bool_]  # [n]: all samples are equal
    fingerprints: list[tuple[int, float]]  # equal for equal pixels, hardly ever for others


class DaliGraph:
    """A pipeline that is run a batch at a time; belongs to one thread at a time."""

    def __init__(self, settings: GraphSettings, *, encoded: bool):
        """Make the pipeline; raises RuntimeError where DALI cannot work here."""
        self._settings = settings
        self._encoded = encoded
        self._pipeline: Any = self._made()

    def renew(self) -> None:
        """Have the next batch run by a new pipeline."""
        self._pipeline = None

    def __call__(self, images: Sequence[Any], ids: Sequence[int]) -> DecodedBatch:
        """Run images, which are uint8 [bytes] as stored or [H, W, 3] where the graph runs, with their ids.

        Bytes as stored are read in place, so nobody may write to them until this returns or raises.

        Takes 1 to `most` images; when it returns, the pixels are finished. Raises RuntimeError where DALI
        fails, at an image that it cannot decode too, and may be called again after that.
        """
        if not 0 < len(images) == len(ids) <= self._settings.most:
            raise ValueError(f"{len(images)} images with {len(ids)} ids do not make a batch")
        self._pipeline = self._pipeline or self._made()
        fed = [np.array([number], np.int64) for number in ids]
        pixels, returned, least, most, *moments = self._pipeline.run(images=list(images), ids=fed)
        if returned.as_array()[:, 0].tolist() != list(ids):
            self.renew()  # it keeps what an earlier batch has left in it
            raise RuntimeError("DALI returned other images than were fed")
        pairs = zip(*(moment.as_array().tolist() for moment in moments), strict=True)
        return DecodedBatch(list(ids), pixels, least.as_array() == most.as_array(), list(pairs))

    def _made(self) -> Any:
        settings = self._settings
        pipeline = define(
            settings,
            self._encoded,
            batch_size=settings.most,
            num_threads=settings.threads,
            device_id=settings.gpu,
            prefetch_queue_depth=1,
            exec_dynamic=True,
        )
        pipeline.build()
        return pipeline


def decoded(stored: Any, on_gpu: bool, **options: Any) -> Any:
    """Decode stored images to RGB as the CPU's decoders do, on a GPU or by CPU operators."""
    return fn.decoders.image(
        stored,
        device="mixed" if on_gpu else "cpu",
        output_type=types.DALIImageType.RGB,
        adjust_orientation=False,  # the scan's policy
        jpeg_fancy_upsampling=True,  # as the CPU decoders do
        **options,
    )


@pipeline_def
def define(settings: GraphSettings, encoded: bool) -> tuple[Any, ...]:
    """Decode, where images come as stored, and resize; the same for CPU operators and a GPU's."""
    kind, axes = types.DALIDataType, (0, 1, 2)
    on_gpu = settings.gpu is not None
    ids = fn.external_source(name="ids", dtype=kind.INT64, ndim=1)
    if encoded:
        # not copied: `run` returns, or raises, when all images were decoded, and DALI keeps what it was fed
        stored = fn.external_source(name="images", dtype=kind.UINT8, ndim=1, no_copy=True)
        # `affine`: the cores are shared with those who read
        images = decoded(stored, on_gpu, hw_decoder_load=settings.hardware_share, affine=False)
    else:
        device = "gpu" if on_gpu else "cpu"
        images = fn.external_source(name="images", device=device, dtype=kind.UINT8, ndim=3, layout="HWC")
    linear = types.DALIInterpType.INTERP_LINEAR
    pixels: Any = fn.resize(images, size=(settings.size, settings.size), interp_type=linear, antialias=True)
    statistics: tuple[Any, ...] = (
        fn.reductions.min(pixels, axes=axes),
        fn.reductions.max(pixels, axes=axes),
        fn.reductions.sum(pixels, axes=axes, dtype=kind.UINT64),
        fn.reductions.mean_square(pixels, axes=axes),
    )
    return pixels, ids, *(value.cpu() for value in statistics)
