"""From the weights of a bundle to TensorRT's plans: one of the trunk, one of the BiGAN.

By TensorRT's own builder from ONNX graphs in half precision, for TensorRT 11 has no flag for it: networks are
strongly typed, and a type is what the graph says. torch-tensorrt would build the same plans, but without the
name that ties a plan to its bundle, and with one minor version of TensorRT alone. The trunk has two forms,
timed on the GPU that it is built for: one ends with the feature maps, pooling and heads following in torch;
one holds these too, in float32.
"""

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import triton.testing
from torch import Tensor, nn

from ..engine.bundle import Bundle
from ..engine.errors import Refused
from ..engine.model.bigan import BiGAN
from ..engine.model.gbad import GBAD
from ..engine.model.parts import DTYPES, Parts
from ..engine.runtime import Engine
from ..engine.runtime.lanes import exact_float32
from ..engine.runtime.runtime_tensorrt import (
    BIGAN,
    HEADS,
    MAPS,
    PAIRS,
    SIZES,
    TRUNK,
    Forward,
    logger,
    network_name,
    opened_plan,
)
from ..engine.runtime.torch_form import pack
from .cache import TIMING, EngineCache, cache_key
from .gate import Built
from .to_onnx import export, sample_pixels

log = logging.getLogger(__name__)

FORMS = {"maps": MAPS, "heads": HEADS}  # of the trunk, with its outputs
WORKSPACE = 4 << 30  # bytes; TensorRT's own default is all of the GPU's memory
TIMED_MS = 200  # of running that a form is timed by


def build(bundle: Bundle, engine: Engine, gpu: str, kept: EngineCache | None) -> Iterator[Built]:
    """Build the plans of an engine that has none yet; yields what `TensorRTRunner` opens, the fastest first.

    The faster form of the trunk is taken. Where the precision is half, a second engine computes the BiGAN, a
    thousandth of the work, in float32; it is built when it is asked for. `gpu` names the kind of GPU. Raises
    Refused.
    """
    plans = Plans(bundle, engine, Timings(kept, cache_key({"timings": engine.version, "gpu": gpu})))
    bigan = plans.bigan(engine.precision)
    trunks = {"maps": plans.trunk("maps")}
    try:
        trunks["heads"] = plans.trunk("heads")
    except Refused as error:
        log.warning("pooling stays outside of the engine: %s", error)
    times = {form: plans.milliseconds(trunk, bigan) for form, trunk in trunks.items()}
    form = min(times, key=lambda each: times[each])
    log.info("the trunk's form is %r, by milliseconds a batch of %d: %s", form, SIZES[-1], times)
    for precision in dict.fromkeys((engine.precision, "fp32")):
        bigan = bigan if precision == engine.precision else plans.bigan(precision)
        how = {"trunk": form, "milliseconds": times, "bigan": precision}
        yield Built(pack(bundle, trunk=trunks[form], bigan=bigan), how)


def trunk_graph(bundle: Bundle, precision: str, form: str) -> bytes:
    """Return the ONNX graph of the trunk in `fp16` or `fp32`, batch norms folded.

    From uint8 pixels [N, S, S, 3] to c2..c5 [N, H, W, C] in the precision or, where the form is `heads`, to x
    and logits, which are float32 as all that follows the maps.
    """
    model = _model(bundle)
    parts = Parts(model, precision)
    module = _Maps(parts) if form == "maps" else _Heads(parts)
    with torch.no_grad():
        pixels = sample_pixels(model.architecture.input_size)
        return export(module, pixels, "pixels", FORMS[form], folded=True)


def bigan_graph(bundle: Bundle, precision: str) -> bytes:
    """Return the ONNX graph of the BiGAN, its networks computed in `fp16` or `fp32`.

    It maps x [N, features] to s, again, f_d and f_d_again, all of them float32.
    """
    model = _model(bundle)
    x = torch.zeros(2, model.architecture.features)
    with torch.no_grad():
        return export(_Pairs(model.bigan, precision), x, "x", PAIRS, folded=True)


def _model(bundle: Bundle) -> GBAD:
    form = bundle.manifest.preprocessing
    return GBAD.from_arrays(bundle.manifest.architecture, bundle.tensors(), form.mean, form.std)


class _Maps(nn.Module):
    """The trunk, its maps handed out in the order in which a GPU computes them."""

    def __init__(self, parts: Parts):
        super().__init__()
        self.parts = parts
        self.eval()

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        return tuple(each.permute(0, 2, 3, 1) for each in self.parts.trunk(pixels))


class _Heads(nn.Module):
    """The trunk with pooling and heads."""

    def __init__(self, parts: Parts):
        super().__init__()
        self.parts = parts
        self.eval()

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        return self.parts.model.network.heads(self.parts.trunk(pixels), summed_means)


def summed_means(features: Tensor) -> Tensor:
    """Give what `border_means` does by slices and sums, in float32: [N, C, H, W] to [N, C, 3, 3].

    A pooling layer with a kernel as large as the map would read each element nine times.
    """
    height, width = features.shape[-2:]
    return _windows(_windows(features.float(), 2), 3) / (height * width)


def _windows(values: Tensor, dimension: int) -> Tensor:
    """Sum a dimension over its three windows: without its last line, of all, and without the first."""
    lines = values.shape[dimension]
    first, last = (values.narrow(dimension, line, 1) for line in (0, lines - 1))
    above, below = first, last
    if lines > 2:
        inner = values.narrow(dimension, 1, lines - 2).sum(dimension, keepdim=True)
        above, below = first + inner, inner + last
    return torch.cat([above, above + last, below], dimension)


class _Pairs(nn.Module):
    """What the two losses compare; standardized in float32, where half precision could overflow."""

    def __init__(self, bigan: BiGAN, precision: str):
        super().__init__()
        self.dtype = DTYPES[precision]
        self.bigan = bigan
        for part in (bigan.encoder, bigan.generator, bigan.discriminator):
            part.to(self.dtype)
        self.eval()

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        s = self.bigan.standardize(x)[:, :, None, None]
        half = s.to(self.dtype)
        again, f_d, f_d_again = self.bigan.compared(half)
        return s, again.float(), f_d.float(), f_d_again.float()


@dataclass(frozen=True)
class Timings:
    """What TensorRT learned of its kernels' speed on one kind of GPU, kept from one build to the next."""

    kept: EngineCache | None
    key: str

    def load(self) -> bytes:
        """Give it as TensorRT wrote it, empty at first."""
        entry = self.kept.load(self.key, TIMING) if self.kept else None
        return entry.blob if entry else b""

    def store(self, learned: bytes) -> None:
        """Keep it where there is a cache."""
        if self.kept:
            self.kept.store(self.key, learned, {}, TIMING)


@dataclass(frozen=True)
class Plans:
    """Builds the plans of one engine on its GPU, and times them there."""

    bundle: Bundle
    engine: Engine
    timings: Timings

    def trunk(self, form: str) -> bytes:
        """Build the trunk in one form."""
        size = self.engine.input_size
        return self._plan(
            trunk_graph(self.bundle, self.engine.precision, form), TRUNK, "pixels", (size, size, 3)
        )

    def bigan(self, precision: str) -> bytes:
        """Build the BiGAN in a precision of its own."""
        return self._plan(bigan_graph(self.bundle, precision), BIGAN, "x", (self.engine.features,))

    def milliseconds(self, trunk: bytes, bigan: bytes) -> float:
        """Time the largest batch, from pixels on the GPU to losses there, as a CUDA graph: the median."""
        engine, size = self.engine, self.engine.input_size
        with torch.cuda.device(engine.device), exact_float32(), torch.inference_mode():
            opened = opened_plan(trunk, TRUNK, engine), opened_plan(bigan, BIGAN, engine)
            forward = Forward(_model(self.bundle).to(engine.device), *opened)
            pixels = torch.randint(256, (SIZES[-1], size, size, 3), dtype=torch.uint8, device=engine.device)
            found: Any = triton.testing.do_bench_cudagraph(
                lambda: forward(pixels), TIMED_MS, return_mode="median"
            )
        return round(found, 3)

    def _plan(self, graph: bytes, part: str, entry: str, shape: tuple[int, ...]) -> bytes:
        """Build the plan of a graph, for batches of 1 to the largest size."""
        import tensorrt as trt

        with torch.cuda.device(self.engine.device):
            builder = trt.Builder(logger())
            network = builder.create_network()
            parser = trt.OnnxParser(network, logger())
            name = network_name(part, self.engine.bundle_hash)
            if not parser.parse(graph):
                reasons = "; ".join(parser.get_error(i).desc() for i in range(parser.num_errors))
                raise Refused(f"TensorRT cannot read the {name} ({reasons:.300}): use --engine inductor")
            network.name = name
            config = builder.create_builder_config()
            config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, WORKSPACE)
            config.clear_flag(trt.BuilderFlag.TF32)  # what is float32 stays exact
            config.max_aux_streams = 0  # all on the caller's stream, which is being captured
            profile = builder.create_optimization_profile()
            least, most = trt.Dims([1, *shape]), trt.Dims([SIZES[-1], *shape])
            profile.set_shape(entry, least, most, most)
            config.add_optimization_profile(profile)
            learned = config.create_timing_cache(self.timings.load())
            if not config.set_timing_cache(learned, ignore_mismatch=False):  # of another driver, say
                learned = config.create_timing_cache(b"")
                config.set_timing_cache(learned, ignore_mismatch=False)
            plan = builder.build_serialized_network(network, config)
            if plan is None:
                raise Refused(f"TensorRT cannot build the {name}: use --engine inductor")
            self.timings.store(bytes(learned.serialize()))
            return bytes(plan)
