"""The INT8 form of a bundle: made on training images, judged on calibration images."""

import logging
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ....export.to_int8 import DEPTHWISE, PROJECTIONS, quantize
from ...bundle import Bundle
from ...bundle.manifest import OPTIONAL_FILES
from ...errors import Refused, Stopped
from ...system.progress import ProgressCallback, silent
from ..pixels import decoded
from ..settings import QuantizeSettings
from .reduced import judged, open_network, score_images, with_form

log = logging.getLogger(__name__)

# parts of the backbone that stay FP32, each form slower and closer to FP32 than the one before
FORMS = ((), (DEPTHWISE,), (PROJECTIONS,), (DEPTHWISE, PROJECTIONS))


def with_int8(
    bundle: Bundle,
    images: Sequence[Path],
    benign: Sequence[Path],
    settings: QuantizeSettings,
    progress: ProgressCallback = silent,
) -> Bundle:
    """Add an INT8 form to a bundle, in memory.

    `images` are training images, with and without threats. `benign` are calibration images, on which INT8
    gets operating points of its own; without any it uses FP32's. The same images and seed give the same bytes
    on one machine. Raises Refused where no image can be decoded, and Stopped where INT8 decides otherwise
    than FP32 too often.
    """
    pixels = _sample(images, bundle.manifest.architecture.input_size, settings, progress)
    with closing(open_network(bundle, "fp32", bundle.network_onnx)) as fp32:
        plain = score_images(bundle, fp32, benign, progress) if benign else None
    finding = ""
    for in_fp32 in FORMS:
        files = quantize(bundle.network_onnx, pixels, settings.overflow_fix, in_fp32)
        with closing(open_network(bundle, "int8", *files)) as int8:
            both = (score_images(bundle, int8, benign, progress), plain) if plain else None
            form = judged(bundle, int8, both, dict(zip(OPTIONAL_FILES, files, strict=True)))
        if form.agrees:
            how = {"images": len(pixels), "seed": settings.seed, "overflow_fix": settings.overflow_fix}
            return with_form(bundle, form, how | {"in_fp32": list(in_fp32)})
        finding = form.finding
        log.info("with %s in FP32 %s", " and ".join(in_fp32) or "nothing", finding)
    raise Stopped(
        f"{finding}: keep the bundle as it is, or quantize it on more images like those that it was "
        "trained on"
    )


def sample(paths: Sequence[Path], count: int, seed: int) -> list[Path]:
    """Draw `count` of the paths, in their order; or all of them if there are fewer."""
    random = np.random.default_rng((seed, 8))
    return [paths[i] for i in np.sort(random.permutation(len(paths))[:count])]


def _sample(
    images: Sequence[Path], size: int, settings: QuantizeSettings, progress: ProgressCallback
) -> list[NDArray[np.uint8]]:
    """Decode the images that the network is quantized on; leaves out those that cannot be decoded."""
    chosen = sample(images, settings.image_count, settings.seed)
    images_decoded = []
    for number, pixels in enumerate(decoded(chosen, size), 1):
        progress("INT8: images", number, len(chosen), {})
        images_decoded += [] if pixels is None else [pixels]
    if not images_decoded:
        raise Refused(
            f"none of {len(images)} images can be decoded, but INT8 is quantized on images: name others"
        )
    return images_decoded
