"""Images for phase I: DALI decodes, resizes, flips, moves and normalizes them, alike on CPU and GPU."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .data import Index
from .settings import Augmentation


@dataclass(frozen=True)
class Draw:
    """Random numbers of one image, which depend only on the seed, the epoch and the image."""

    affine: NDArray[np.float32]  # [2, 3], pixels of the output to pixels of the input
    mirror: bool


def draw(augmentation: Augmentation, size: int, key: Sequence[int]) -> Draw:
    """Draw the map of one image of `size` pixels a side; equal keys draw equal maps."""
    random = np.random.default_rng(key)
    mirror = bool(random.random() < augmentation.flip)
    angle, shear, scale, *shift = random.uniform(-1, 1, 5)
    angle, shear = np.deg2rad([angle * augmentation.rotation, shear * augmentation.shear])
    cos, sin = np.cos(angle), np.sin(angle)
    turn = np.array([[cos, -sin], [sin, cos]]) @ np.array([[1, np.tan(shear)], [0, 1]])
    turn /= 1 + scale * augmentation.scale
    centre = np.full(2, size / 2)
    moved = centre + np.array(shift) * augmentation.shift * size - turn @ centre
    return Draw(np.concatenate([turn, moved[:, None]], axis=1).astype(np.float32), mirror)


@dataclass(frozen=True)
class ImageSettings:
    """How DALI prepares an image file."""

    size: int  # pixels a side
    mean: tuple[float, ...]  # of RGB in [0, 1]: the bundle's constants
    std: tuple[float, ...]
    augmentation: Augmentation | None  # None: only decoded, resized and normalized
    seed: int
    device: str = "cpu"  # of torch
    threads: int = 2


def training_images(
    paths: Sequence[Path],
    batches: Sequence[Index],
    epoch: int,
    settings: ImageSettings,
    parts: NDArray[np.float32] | None = None,
) -> Iterator[tuple[Index, Tensor]]:
    """Yield positions [n] and images float32 [n, 3, S, S] (channels last) of each batch, in order.

    `parts` [., 4]: left, top, width and height of the visible part of each image, as shares of it; None for
    whole images. The batches must have one size. DALI resizes with an antialiased triangle filter,
    as the scan does (`python -m benchmarks training-pixels` measures what is left); at the border of a moved
    image its edge is repeated, not black: scanners leave air around a bag.
    """
    if not len(batches):
        return
    pipeline = _pipeline(_Source(paths, epoch, settings, parts), batches)
    for expected in batches:
        images, index = pipeline.run()
        # each image brings its own position: results are never joined again by counting
        returned = np.array(index.as_array() if hasattr(index, "as_array") else index)[:, 0]
        if not np.array_equal(returned, expected):
            raise RuntimeError(f"DALI returned images {returned[:4]} where {expected[:4]} were fed")
        tensor = torch.from_dlpack(images.as_tensor())  # [n, S, S, 3]
        yield expected, tensor.permute(0, 3, 1, 2)


@dataclass(frozen=True)
class _Source:
    """What DALI is fed for each image."""

    paths: Sequence[Path]
    epoch: int
    settings: ImageSettings
    parts: NDArray[np.float32] | None

    def batch(self, index: Index) -> tuple[list[Any], ...]:
        """Return bytes, mirrors, positions and, if requested, parts and maps of a batch."""
        settings = self.settings
        augmentation = settings.augmentation or Augmentation(0, 0, 0, 0, 0)
        drawn = [draw(augmentation, settings.size, (settings.seed, self.epoch, int(i))) for i in index]
        return (
            [np.frombuffer(self.paths[i].read_bytes(), np.uint8) for i in index],
            [np.array([each.mirror], np.int32) for each in drawn],
            [np.array([i], np.int64) for i in index],
            *(
                []
                if self.parts is None
                else [[p[:2] for p in self.parts[index]], [p[2:] for p in self.parts[index]]]
            ),
            *([[each.affine for each in drawn]] if settings.augmentation else []),
        )


def _pipeline(source: _Source, batches: Sequence[Index]) -> Any:
    from nvidia.dali import fn, types
    from nvidia.dali.pipeline import pipeline_def

    settings = source.settings
    on_gpu = settings.device != "cpu"
    fed = iter(batches)

    def feed() -> tuple[list[Any], ...]:
        return source.batch(next(fed))

    @pipeline_def(
        batch_size=len(batches[0]),
        num_threads=settings.threads,
        device_id=cast("int", (torch.device(settings.device).index or 0) if on_gpu else None),
        prefetch_queue_depth=2,
    )
    def define() -> Any:
        kind, linear = types.DALIDataType, types.DALIInterpType.INTERP_LINEAR
        parted, moved = source.parts is not None, settings.augmentation is not None
        fed_kinds = [kind.UINT8, kind.INT32, kind.INT64, *[kind.FLOAT] * (2 * parted + moved)]
        encoded, mirror, index, *more = cast(
            "Sequence[Any]",
            fn.external_source(feed, num_outputs=len(fed_kinds), batch=True, dtype=fed_kinds),
        )
        images = fn.decoders.image(
            encoded,
            device="mixed" if on_gpu else "cpu",
            output_type=types.DALIImageType.RGB,
            adjust_orientation=False,  # the scan's policy
            jpeg_fancy_upsampling=True,  # as the CPU decoders do
        )
        if parted:
            images: Any = fn.slice(images, more[0], more[1], axis_names="WH")
        images = fn.resize(images, size=(settings.size,) * 2, interp_type=linear, antialias=True)
        if moved:
            images = fn.warp_affine(images, matrix=more[-1], interp_type=linear, inverse_map=True)
        images = fn.crop_mirror_normalize(
            images,
            mirror=mirror,
            mean=[255 * each for each in settings.mean],
            std=[255 * each for each in settings.std],
            dtype=kind.FLOAT,
            output_layout="HWC",
        )
        return images, index

    pipeline = define()
    pipeline.build()
    return pipeline
