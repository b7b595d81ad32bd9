"""The networks of one bundle as each technique runs them: a function from decoded pixels to the outputs."""

from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from gbad_batch.engine.bundle import Bundle
from gbad_batch.engine.errors import Refused, how_to_install
from gbad_batch.engine.model.fpn import PooledPyramid
from gbad_batch.engine.model.gbad import GBAD
from gbad_batch.engine.runtime import OUTPUTS, Outputs, open_engine
from gbad_batch.engine.system.machine import usable_cores
from gbad_batch.export import engine_for

from .systems import NotRun

Networks = Callable[[Tensor, int], Outputs]  # uint8 [n, 3, S, S] RGB, the batch size of the loop


class PlainPyramid(nn.Module):
    """The pyramid as the paper writes it, at every size of maps."""

    def __init__(self, pyramid: PooledPyramid):
        super().__init__()
        self.pyramid = pyramid

    def forward(self, maps: list[Tensor], means: None = None) -> list[Tensor]:
        """Return the spatial means of P2..P5."""
        assert means is None
        return self.pyramid.plain(maps)


def in_torch(
    bundle: Bundle, cache: Path, *, collapsed: bool, channels_last: bool = False, compiled: bool = False
) -> Networks:
    """Run the model of a bundle's weights in torch, in float32."""
    del cache  # torch keeps its own
    form = bundle.manifest.preprocessing
    model = GBAD.from_arrays(bundle.manifest.architecture, bundle.tensors(), form.mean, form.std)
    if not collapsed:
        model.network.fpn = PlainPyramid(model.network.fpn)  # type: ignore[assignment]
    if channels_last:
        model = model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    forward: Any = torch.compile(model, dynamic=False, options={"freezing": True}) if compiled else model

    def run(pixels: Tensor, batch: int) -> Outputs:
        n = len(pixels)
        if compiled and n < batch:  # of the last batch: another size would be compiled again
            pixels = torch.cat([pixels, pixels[-1:].expand(batch - n, -1, -1, -1)])
        rows = pixels.permute(0, 2, 3, 1)  # what memory holds stays as it is, [n, 3, S, S]
        found = forward(rows.contiguous() if channels_last else rows)
        return Outputs(*(each[:n].numpy() for each in found))

    return run


def in_onnxruntime(bundle: Bundle, cache: Path) -> Networks:
    """Run the graphs of a bundle in ONNX Runtime on all cores."""
    del cache  # ONNX Runtime has none
    try:
        ort: Any = import_module("onnxruntime")
    except ImportError:
        raise NotRun(f"onnxruntime is not installed: {how_to_install('dev')}") from None
    options = ort.SessionOptions()
    options.intra_op_num_threads = usable_cores()
    network, bigan = (
        ort.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        for graph in (bundle.network_onnx, bundle.bigan_onnx)
    )

    def run(pixels: Tensor, batch: int) -> Outputs:
        del batch  # the graphs take any
        x, logits = network.run(OUTPUTS[:2], {"pixels": _rows(pixels)})
        return Outputs(x, logits, *bigan.run(OUTPUTS[2:], {"x": x}))

    return run


def in_openvino(bundle: Bundle, cache: Path, *, precision: str) -> Networks:
    """Run the engine that a scan uses, on all cores, one batch after the other."""
    try:
        engine = engine_for(bundle, device="cpu", engine="openvino", precision=precision, cache_dir=cache)
    except Refused as error:
        raise NotRun(str(error)) from error
    runner = open_engine(engine)

    def run(pixels: Tensor, batch: int) -> Outputs:
        del batch  # the engine takes any
        return runner(_rows(pixels))

    return run


def _rows(pixels: Tensor) -> np.ndarray:
    """Bring pixels [n, 3, S, S] to [n, S, S, 3]."""
    return pixels.permute(0, 2, 3, 1).contiguous().numpy()


TECHNIQUES: dict[str, Callable[[Bundle, Path], Networks]] = {
    "eager": partial(in_torch, collapsed=False),
    "collapsed": partial(in_torch, collapsed=True),
    "channels_last": partial(in_torch, collapsed=True, channels_last=True),
    "inductor": partial(in_torch, collapsed=True, channels_last=True, compiled=True),
    "onnxruntime": in_onnxruntime,
    "openvino_fp32": partial(in_openvino, precision="fp32"),
    "openvino_int8": partial(in_openvino, precision="int8"),
}
