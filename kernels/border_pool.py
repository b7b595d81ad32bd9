"""The nine window means of a feature map, all that a pooled feature pyramid needs, in one pass.

A 3x3 convolution with zero padding sees the map through nine windows: window (i, j) is the map shifted by
(i - 1, j - 1), zeros entering. Lin et al., Feature Pyramid Networks for Object Detection, CVPR 2017, followed
by an average over positions, depends on a map only through the means over these windows.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .compiler import triton_compiles


@torch.library.custom_op("gbad_batch::border_means", mutates_args=(), device_types="cpu")
def border_means(features: Tensor) -> Tensor:
    """Return the means of a map [N, C, H, W] over the nine windows, zeros counted: float32 [N, C, 3, 3].

    `features`: half, bfloat16 or float32, H and W at least 2, on a CPU or an NVIDIA GPU; channels_last is
    read in place (pass a buffer [N, H, W, C] as `buffer.permute(0, 3, 1, 2)`), other layouts are copied
    first. The means are channels_last too. An image's means do not depend on the rest of its batch. Raises
    ValueError for other shapes. For inference: no gradient is defined.
    """
    return empty_means(features).copy_(plain_border_means(features))


def plain_border_means(features: Tensor) -> Tensor:
    """Compute the same with plain torch, as the reference: a pooling kernel as large as the map."""
    height, width = features.shape[-2:]
    return F.avg_pool2d(features.float(), (height, width), stride=1, padding=1, count_include_pad=True)


@border_means.register_kernel("cuda")
def _on_gpu(features: Tensor) -> Tensor:
    means = empty_means(features)
    if not triton_compiles():
        return means.copy_(plain_border_means(features))
    from .border_pool_triton import launch  # a torch that can use a GPU brings Triton

    with torch.cuda.device(features.device):  # Triton launches on the current device
        launch(features.contiguous(memory_format=torch.channels_last), means)
    return means


@border_means.register_fake
def empty_means(features: Tensor) -> Tensor:
    """Allocate means [N, C, 3, 3], float32 in channels_last; raises ValueError for other shapes."""
    if features.ndim != 4 or min(features.shape[2:]) < 2:
        raise ValueError(f"border_means takes [N, C, H, W] with H, W >= 2, not {list(features.shape)}")
    size = (features.shape[0], features.shape[1], 3, 3)
    return torch.empty(size, dtype=torch.float32, device=features.device, memory_format=torch.channels_last)
