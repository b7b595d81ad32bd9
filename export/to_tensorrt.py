"""From the weights of a bundle to TensorRT's plans: one of the trunk, one of the BiGAN.

By TensorRT's own builder from ONNX graphs in half precision, for TensorRT 11 has no flag for it: networks are
strongly typed, and a type is what the graph says. Pooling and heads stay in torch, between the two.
"""

import torch
from torch import Tensor, nn

from ..engine.bundle import Bundle
from ..engine.errors import Refused
from ..engine.model.bigan import BiGAN
from ..engine.model.gbad import GBAD
from ..engine.model.parts import DTYPES, Parts
from ..engine.runtime.runtime_tensorrt import BIGAN, SIZES, TRUNK, logger, network_name
from ..engine.runtime.torch_form import pack
from .to_onnx import export, sample_pixels

MAPS = ("c2", "c3", "c4", "c5")
PAIRS = ("s", "again", "f_d", "f_d_again")
WORKSPACE = 4 << 30  # bytes; TensorRT's own default is all of the GPU's memory


def build(bundle: Bundle, device: str, precision: str) -> bytes:
    """Build both plans on `cuda:N` and return what `TensorRTRunner` opens; raises Refused."""
    size = bundle.manifest.architecture.input_size
    trunk, bigan = graphs(bundle, precision)
    with torch.cuda.device(device):
        return pack(
            bundle,
            trunk=_plan(trunk, network_name(TRUNK, bundle.hash), "pixels", (size, size, 3)),
            bigan=_plan(
                bigan, network_name(BIGAN, bundle.hash), "x", (bundle.manifest.architecture.features,)
            ),
        )


def graphs(bundle: Bundle, precision: str) -> tuple[bytes, bytes]:
    """Return the ONNX graphs of trunk and BiGAN in `fp16` or `fp32`.

    Trunk: uint8 pixels [N, S, S, 3] to c2..c5 [N, H, W, C] in the precision, batch norms folded. BiGAN: x
    [N, features] to s, again, f_d and f_d_again in float32, its networks computed in the precision.
    """
    form = bundle.manifest.preprocessing
    model = GBAD.from_arrays(bundle.manifest.architecture, bundle.tensors(), form.mean, form.std)
    parts = Parts(model, precision)
    x = torch.zeros(2, model.architecture.features)
    pairs = _Pairs(model.bigan, precision)
    with torch.no_grad():
        return (
            export(_Trunk(parts), sample_pixels(model.architecture.input_size), "pixels", MAPS, folded=True),
            export(pairs, x, "x", PAIRS, folded=True),
        )


class _Trunk(nn.Module):
    """The trunk, its maps handed out in the order in which a GPU computes them."""

    def __init__(self, parts: Parts):
        super().__init__()
        self.parts = parts
        self.eval()

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        return tuple(each.permute(0, 2, 3, 1) for each in self.parts.trunk(pixels))


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


def _plan(graph: bytes, name: str, entry: str, shape: tuple[int, ...]) -> bytes:
    """Build the plan of a graph on the current GPU, for batches of 1 to the largest size."""
    import tensorrt as trt

    builder = trt.Builder(logger())
    network = builder.create_network()
    parser = trt.OnnxParser(network, logger())
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
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise Refused(f"TensorRT cannot build the {name}: use --engine inductor")
    return bytes(plan)
