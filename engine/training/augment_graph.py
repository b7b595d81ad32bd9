"""DALI's graphs of phase I, one definition for a GPU and the CPU, and what an image's draws are in them."""

from typing import Any

import numpy as np
from numpy.typing import NDArray
from nvidia.dali import fn, math, types
from nvidia.dali.pipeline import pipeline_def

from ..decode.dali_graph import decoded
from .augment import Draw, ImageSettings
from .look import Look, colour_matrix

SMOOTH = np.array([[1, 1, 1], [1, 5, 1], [1, 1, 1]]) / 13  # as Pillow's ImageFilter.SMOOTH
PLAIN = Look(1.0, None, 0.0, 1.0, 1.0, 1.0, 0.0, 0, 0)  # changes nothing


@pipeline_def
def decoding(on_gpu: bool) -> tuple[Any, Any]:
    """Decode JPEGs, `stored`, whole."""
    stored = fn.external_source(name="stored", dtype=types.DALIDataType.UINT8, ndim=1)
    images = decoded(stored, on_gpu, hw_decoder_load=0.0)
    return images, fn.external_source(name="ids", dtype=types.DALIDataType.INT64, ndim=1)


@pipeline_def(enable_conditionals=True)
def augmenting(settings: ImageSettings, parted: bool) -> tuple[Any, Any]:
    """Cut, resize, move, repaint and normalize whole `images`, by what `movement` and `painting` return.

    A graph that repaints does so with every image: PLAIN is the look of those that none was drawn for.
    """
    kind, linear, side = types.DALIDataType, types.DALIInterpType.INTERP_LINEAR, settings.size
    device = "cpu" if settings.device == "cpu" else "gpu"

    def fed(name: str, ndim: int, dtype: Any = kind.FLOAT) -> Any:
        return fn.external_source(name=name, dtype=dtype, ndim=ndim)

    def placed(node: Any) -> Any:
        return node.gpu() if device == "gpu" else node

    def resized(images: Any, size: Any) -> Any:
        return fn.resize(images, size=size, interp_type=linear, antialias=True)

    images: Any = fn.external_source(name="images", device=device, dtype=kind.UINT8, ndim=3, layout="HWC")
    if parted:
        start, shape = fed("start", 1, kind.INT32), fed("shape", 1, kind.INT32)
        images = fn.slice(images, start=start, shape=shape, axis_names="HW")
    images = resized(images, (side, side))
    if settings.augmentation is not None:
        images = fn.warp_affine(images, matrix=fed("matrix", 2), interp_type=linear)
        if settings.augmentation.look:
            images = resized(resized(images, fed("reduced", 1)), (side, side))
            images = fn.filter(images, placed(fed("kernel", 2)), border="clamp")
            images = fn.coord_transform(images, M=fed("colours", 2), dtype=kind.UINT8)
            curved = placed(fed("scale", 3)) * math.pow(images, placed(fed("gamma", 1)))
            grain = placed(fed("noise", 1)) * fn.random.normal(device=device, shape=(side, side, 1))
            images = fn.cast(fn.cast(curved, dtype=kind.UINT8) + grain, dtype=kind.UINT8)
            images = fn.reshape(images, layout="HWC")
            quality = fed("quality", 0, kind.INT32)
            if quality > 0:
                images = fn.jpeg_compression_distortion(images, quality=quality)
    images = fn.crop_mirror_normalize(
        images,
        mean=[255 * each for each in settings.mean],
        std=[255 * each for each in settings.std],
        dtype=kind.FLOAT,
        output_layout="HWC",
    )
    return images, fed("ids", 1, kind.INT64)


def movement(drawn: Draw, size: int) -> NDArray[np.float32]:
    """Return the map [2, 3] from pixels of the output to those of the input, of all movements in one."""
    moved, mirrored, upended, transposed = (np.eye(3) for _ in range(4))
    moved[:2] = drawn.affine
    if drawn.mirror:
        mirrored[0] = -1, 0, size
    if drawn.upended:
        upended[1] = 0, -1, size
    if drawn.transposed:
        transposed = transposed[[1, 0, 2]]
    return (moved @ mirrored @ upended @ transposed)[:2].astype(np.float32)


def painting(look: Look | None, air: NDArray[np.float64], size: int) -> dict[str, NDArray[Any]]:
    """Return the inputs of one image's look, `air` (RGB) being its background."""
    look = look or PLAIN
    background = np.array(air if look.background is None else look.background)
    kernel = (1 - look.sharpness) * SMOOTH
    kernel[1, 1] += look.sharpness
    floats = {
        "reduced": np.full(2, max(1, round(size * look.resampled))),
        "kernel": kernel,
        "colours": colour_matrix(look)[:, :3],
        "scale": (background / air**look.gamma)[None, None],  # [1, 1, 3]: the curve takes air to background
        "gamma": np.array([look.gamma]),
        "noise": np.array([look.noise]),  # levels
    }
    quality = np.array(look.quality, np.int32)
    return {"quality": quality} | {name: each.astype(np.float32) for name, each in floats.items()}
