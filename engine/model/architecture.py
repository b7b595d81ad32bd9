"""The sizes that make one GBAD model: the part of a bundle that a network is built from."""

from dataclasses import dataclass

# what gives an image's class logits: FC5, or the class map by its maximum or a log-sum-exp over places
FC5, MAP_MAX, MAP_LSE = HEADS = ("fc5", "map_max", "map_lse")


@dataclass(frozen=True)
class Architecture:
    """Sizes of the networks; the defaults are the report's, with METHOD's BiGAN."""

    backbone: str = "resnext50_32x4d"  # a plain name of timm's registry
    fpn_channels: int = 256  # channels of P2..P5
    head_features: int = 256  # outputs of each of FC1..FC4
    features: int = 1024  # length of x: one head for each of four levels
    input_size: int = 256  # pixels a side
    latent: int = 64  # length of z
    f_d: int = 128  # length of the discriminator's penultimate layer
    head: str = FC5  # one of HEADS
    map_channels: int = 64  # of the class map's neck, if the head is a map

    @property
    def has_map(self) -> bool:
        """Whether the class logits come from a class map."""
        return self.head != FC5
