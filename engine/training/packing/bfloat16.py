"""The network in bfloat16: its own weights, computed by a CPU that multiplies bfloat16."""

from collections.abc import Sequence
from contextlib import closing
from pathlib import Path

from ...bundle import Bundle
from ...errors import Refused
from ...system.machine import multiplies_bfloat16
from ...system.progress import ProgressCallback, silent
from .reduced import judged, open_network, score_images, with_form


def with_bf16(bundle: Bundle, benign: Sequence[Path], progress: ProgressCallback = silent) -> Bundle:
    """Add operating points of bfloat16 to a bundle, in memory.

    `benign` are calibration images. Raises Refused where this CPU has no bfloat16 or no image can be decoded,
    and Stopped where bfloat16 decides otherwise than FP32 too often.
    """
    if not multiplies_bfloat16():
        raise Refused("this CPU has no instructions for bfloat16 (avx512_bf16 or amx_bf16)")
    with closing(open_network(bundle, "fp32", bundle.network_onnx)) as fp32:
        plain = score_images(bundle, fp32, benign, progress)
    with closing(open_network(bundle, "bf16", bundle.network_onnx)) as bf16:
        own = score_images(bundle, bf16, benign, progress)
        return with_form(bundle, judged(bundle, bf16, (own, plain)), {})
