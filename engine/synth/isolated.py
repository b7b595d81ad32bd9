"""One threat alone on the belt: what threat image projection multiplies into other pictures."""

from dataclasses import replace

import numpy as np

from .beam import Beam, transmit
from .bodies import Pose, add, cast, extent
from .field import Field
from .looks import draw_look, paint
from .rotations import turn
from .shapes import Rng
from .threats import threat

LONGEST = 260  # pixels, of a threat's longer side
MARGIN = 8  # pixels of belt around it
QUIET = Beam(photons=1e12, scatter=0.006, crosstalk=0.12, banding=0.0)  # the bag that it goes into has noise


def isolated_threat(name: str, look: str, rng: Rng) -> np.ndarray:
    """Render a threat of the training pool in a look ('white', 'grey', 'vivid'), lying flat but for a tilt.

    Returns what it lets through, float32 [h, w, 3] in [0, 1]: the painted colours over those of the belt.
    """
    body = threat(name, "train", rng)
    tilted = turn(0, rng.normal(0, 0.35)) @ turn(1, rng.normal(0, 0.3))
    low, high = extent(body, tilted)  # cm
    scale = LONGEST / float((high - low).max())
    width, height = (np.ceil((high - low) * scale).astype(int) + 2 * MARGIN).tolist()
    x, y = (MARGIN - low * scale).tolist()
    belt = Field(height, width)
    add(belt, cast(body, Pose(tilted, (x, y), scale), belt.shape))
    style = replace(draw_look(look, rng), beam=QUIET, lines=0.0)
    painted = paint(transmit(belt.depth, QUIET, rng), style, rng).astype(np.float32)
    return np.clip(painted / painted[0, 0], 0, 1)
