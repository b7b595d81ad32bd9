"""From the weights of a bundle to TensorRT plans, one of the trunk and one of the BiGAN.

TensorRT's own builder reads ONNX graphs that are in half precision themselves, since networks of TensorRT 11
are strongly typed and no flag changes a type. Where torch-tensorrt is installed, it builds the same plans
from torch's operators. The trunk has two forms: one ends with the feature maps, and torch computes pooling
and heads; the other includes these, in float32. All are timed on the GPU that they are built for.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch
import triton.testing
from torch import Tensor, nn

from ..engine.bundle import Bundle
from ..engine.errors import Refused
from ..engine.model.bigan import BiGAN
from ..engine.model.gbad import GBAD
from ..engine.model.mixed_precision import DTYPES, MixedPrecisionGBAD
from ..engine.runtime import Engine
from ..engine.runtime.cache import TIMING, EngineCache, cache_key
from ..engine.runtime.cuda_graphs import exact_float32
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
    open_plan,
)
from ..engine.runtime.torch_form import pack
from ..engine.text import one_line
from . import to_torch_tensorrt
from .gate import Built
from .to_onnx import export, sample_pixels

log = logging.getLogger(__name__)

FORMS = {"maps": MAPS, "heads": HEADS}  # of the trunk, with its outputs
WORKSPACE = 4 << 30  # bytes; TensorRT's own default is all of the GPU's memory
TIMED_MS = 200  # how long a form is timed


def build(bundle: Bundle, engine: Engine, gpu: str, cache: EngineCache | None) -> Iterator[Built]:
    """Build the plans of an engine; yields blobs that `TensorRTRunner` opens, the fastest first.

    In half precision each form of the trunk has a second candidate, which computes the BiGAN, a thousandth of
    the work, in float32; it is built only on demand. `gpu` names the model of the GPU. Raises Refused.
    """
    timings = Timings(cache, cache_key({"timings": engine.version, "gpu": gpu}))
    builders = [PlanBuilder(bundle, engine, timings)]
    if to_torch_tensorrt.is_usable():
        builders.append(PlanBuilder(bundle, engine, timings, by_torch_tensorrt=True))
    forms = _timed(builders)
    times = {form.name: form.milliseconds for form in forms}
    log.info(
        "the trunk uses the form %r; milliseconds for a batch of %d: %s", forms[0].name, SIZES[-1], times
    )
    for form in forms:
        for precision in dict.fromkeys((engine.precision, "fp32")):
            bigan = form.bigan if precision == engine.precision else form.plans.bigan(precision)
            how = {"trunk": form.name, "milliseconds": times, "bigan": precision}
            yield Built(pack(bundle, trunk=form.trunk, bigan=bigan), how)


@dataclass(frozen=True)
class _Form:
    """Plans of a trunk in one form by one builder, and the time that both plans take."""

    name: str
    plans: "PlanBuilder"
    trunk: bytes
    bigan: bytes
    milliseconds: float


def _timed(builders: Sequence["PlanBuilder"]) -> list[_Form]:
    """Build and time each form by each builder, the fastest first; one that fails is left out.

    Raises Refused if all do.
    """
    found, bigans, reasons = list[_Form](), dict[bool, bytes](), list[str]()
    for plans, form in product(builders, FORMS):
        name = f"{form} by torch-tensorrt" if plans.by_torch_tensorrt else form
        try:
            trunk = plans.trunk(form)
            if plans.by_torch_tensorrt not in bigans:
                bigans[plans.by_torch_tensorrt] = plans.bigan(plans.engine.precision)
            bigan = bigans[plans.by_torch_tensorrt]
            found.append(_Form(name, plans, trunk, bigan, plans.milliseconds(trunk, bigan)))
        except (Refused, RuntimeError) as error:
            reasons.append(f"the form {name!r}: {one_line(error)[:200]}")
            log.warning("TensorRT's trunk cannot be used in %s", reasons[-1])
    if not found:
        where = builders[0].engine.device
        raise Refused(
            f"TensorRT cannot run the model on {where} ({'; '.join(reasons)}): use --engine inductor"
        )
    return sorted(found, key=lambda each: each.milliseconds)


def trunk_graph(bundle: Bundle, precision: str, form: str) -> bytes:
    """Return the ONNX graph of the trunk in `fp16` or `fp32`, batch norms folded.

    It maps uint8 pixels [N, S, S, 3] to c2..c5 [N, H, W, C] in that precision or, in the form `heads`, to x
    and logits in float32.
    """
    module, pixels = trunk_module(bundle, precision, form)
    with torch.no_grad():
        return export(module, pixels, "pixels", FORMS[form], folded=True)


def trunk_module(bundle: Bundle, precision: str, form: str) -> tuple[nn.Module, Tensor]:
    """Return what the graph of the trunk is exported from, and pixels to export it with."""
    model = _model(bundle)
    mixed = MixedPrecisionGBAD(model, precision)
    module = _Maps(mixed) if form == "maps" else _Heads(mixed)
    return module, sample_pixels(model.architecture.input_size)


def bigan_graph(bundle: Bundle, precision: str) -> bytes:
    """Return the ONNX graph of the BiGAN, its networks computed in `fp16` or `fp32`.

    It maps x [N, features] to s, its reconstruction and the f_d of both, all of them float32.
    """
    module, x = bigan_module(bundle, precision)
    with torch.no_grad():
        return export(module, x, "x", PAIRS, folded=True)


def bigan_module(bundle: Bundle, precision: str) -> tuple[nn.Module, Tensor]:
    """Return what the graph of the BiGAN is exported from, and x to export it with."""
    model = _model(bundle)
    return _Pairs(model.bigan, precision), torch.zeros(2, model.architecture.features)


def _model(bundle: Bundle) -> GBAD:
    form = bundle.manifest.preprocessing
    return GBAD.from_arrays(bundle.manifest.architecture, bundle.tensors(), form.mean, form.std)


class _Maps(nn.Module):
    """The trunk; its maps are channels-last, as a GPU computes them."""

    def __init__(self, mixed: MixedPrecisionGBAD):
        super().__init__()
        self.mixed = mixed
        self.eval()

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        return tuple(feature_map.permute(0, 2, 3, 1) for feature_map in self.mixed.trunk(pixels))


class _Heads(nn.Module):
    """The trunk with pooling and heads."""

    def __init__(self, mixed: MixedPrecisionGBAD):
        super().__init__()
        self.mixed = mixed
        self.eval()

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        return self.mixed.model.network.heads(self.mixed.trunk(pixels), summed_means)


def summed_means(features: Tensor) -> Tensor:
    """Compute the same as `border_means` by slices and sums, in float32: [N, C, H, W] to [N, C, 3, 3].

    A pooling layer with a kernel as large as the map would read each element nine times.
    """
    height, width = features.shape[-2:]
    return _windows(_windows(features.float(), 2), 3) / (height * width)


def _windows(values: Tensor, dimension: int) -> Tensor:
    """Sum a dimension over its three windows: without the last line, all lines, without the first."""
    lines = values.shape[dimension]
    first, last = (values.narrow(dimension, line, 1) for line in (0, lines - 1))
    above, below = first, last
    if lines > 2:
        inner = values.narrow(dimension, 1, lines - 2).sum(dimension, keepdim=True)
        above, below = first + inner, inner + last
    return torch.cat([above, above + last, below], dimension)


class _Pairs(nn.Module):
    """The inputs of both losses; standardized in float32, since half precision could overflow."""

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
        reconstruction, f_d, f_d_reconstruction = self.bigan.reconstruct(half)
        return s, reconstruction.float(), f_d.float(), f_d_reconstruction.float()


@dataclass(frozen=True)
class Timings:
    """TensorRT's timing cache for one model of GPU, reused by later builds."""

    cache: EngineCache | None
    key: str

    def load(self) -> bytes:
        """Return the timing cache as TensorRT serialized it; empty at first."""
        entry = self.cache.load(self.key, TIMING) if self.cache else None
        return entry.blob if entry else b""

    def store(self, timings: bytes) -> None:
        """Store the timing cache, if there is an engine cache."""
        if self.cache:
            self.cache.store(self.key, timings, {}, TIMING)


@dataclass(frozen=True)
class PlanBuilder:
    """Builds the plans of one engine on its GPU, and times them there."""

    bundle: Bundle
    engine: Engine
    timings: Timings
    by_torch_tensorrt: bool = False  # rather than by TensorRT's own parser

    def trunk(self, form: str) -> bytes:
        """Build the trunk in one form."""
        if self.by_torch_tensorrt:
            return self._converted(
                *trunk_module(self.bundle, self.engine.precision, form), TRUNK, FORMS[form]
            )
        size = self.engine.input_size
        return self._plan(
            trunk_graph(self.bundle, self.engine.precision, form), TRUNK, "pixels", (size, size, 3)
        )

    def bigan(self, precision: str) -> bytes:
        """Build the BiGAN in a precision of its own."""
        if self.by_torch_tensorrt:
            return self._converted(*bigan_module(self.bundle, precision), BIGAN, PAIRS)
        return self._plan(bigan_graph(self.bundle, precision), BIGAN, "x", (self.engine.features,))

    def milliseconds(self, trunk: bytes, bigan: bytes) -> float:
        """Return the median time of the largest batch, from pixels to losses on the GPU, as a CUDA graph."""
        engine, size = self.engine, self.engine.input_size
        with torch.cuda.device(engine.device), exact_float32(), torch.inference_mode():
            opened = open_plan(trunk, TRUNK, engine), open_plan(bigan, BIGAN, engine)
            forward = Forward(_model(self.bundle).to(engine.device), *opened, SIZES[-1])
            pixels = torch.randint(256, (SIZES[-1], size, size, 3), dtype=torch.uint8, device=engine.device)
            median: Any = triton.testing.do_bench_cudagraph(
                lambda: forward(pixels), TIMED_MS, return_mode="median"
            )
        return round(median, 3)

    def _converted(self, module: nn.Module, sample: Tensor, part: str, outputs: tuple[str, ...]) -> bytes:
        """Build the plan of a module by torch-tensorrt, for batches of 1 to the largest size."""
        names = network_name(part, self.engine.bundle_hash), outputs
        with torch.cuda.device(self.engine.device):
            plan, timings = to_torch_tensorrt.build_plan(
                module, sample, names, self.timings.load(), most=SIZES[-1], workspace=WORKSPACE
            )
        self.timings.store(timings)
        return plan

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
            config.clear_flag(trt.BuilderFlag.TF32)  # float32 stays exact
            config.max_aux_streams = 0  # everything runs on the caller's stream, which is captured
            profile = builder.create_optimization_profile()
            least, most = trt.Dims([1, *shape]), trt.Dims([SIZES[-1], *shape])
            profile.set_shape(entry, least, most, most)
            config.add_optimization_profile(profile)
            timings = config.create_timing_cache(self.timings.load())
            if not config.set_timing_cache(
                timings, ignore_mismatch=False
            ):  # from another driver, for example
                timings = config.create_timing_cache(b"")
                config.set_timing_cache(timings, ignore_mismatch=False)
            plan = builder.build_serialized_network(network, config)
            if plan is None:
                raise Refused(f"TensorRT cannot build the {name}: use --engine inductor")
            self.timings.store(bytes(timings.serialize()))
            return bytes(plan)
