"""How phase I treats a backbone that has learned already: part of it is kept, the rest learns slower.

Edges and textures that ImageNet taught serve X-ray images as they are, and small sets only blur them. What
C2 is computed from stays, with the statistics of its norms: no gradient is computed there, which saves nearly
half of each step. Depthwise filters stay, too: a fiftieth of the weights, whose gradient takes a third of
the rest on a CPU; the convolutions between them learn what to make of what they see.
"""

import torch
from torch import nn

BACKBONE_RATE = 0.5  # learning rate of the rest of the backbone, as a share of that of the heads
PROBE = 64  # pixels a side


def freeze_general(backbone: nn.Module) -> None:
    """Freeze depthwise filters and all that C2 depends on, its norms in evaluation mode."""
    parameters = list(backbone.parameters())
    was_training = backbone.training
    probe = torch.zeros(1, 3, PROBE, PROBE, device=parameters[0].device)
    (first, *_) = backbone.eval()(probe)
    gradients = torch.autograd.grad(first.sum(), parameters, allow_unused=True)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.requires_grad_(gradient is None)
    for module in backbone.train(was_training).modules():
        own = list(module.parameters(recurse=False))
        if own and not any(parameter.requires_grad for parameter in own):
            module.eval()
        if isinstance(module, nn.Conv2d) and module.groups == module.in_channels > 1:
            module.weight.requires_grad_(False)
