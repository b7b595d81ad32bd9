"""What verdicts on the most anomalous images say about false alarms, and what they leave open.

Images that get a verdict are the first of a ranking, alarms, or whatever somebody looked at, so nothing is
extrapolated from them to others, unless they were drawn at random (`Drawn`). An alarm that is unsure, or has
no verdict, may be true or false, and every figure holds for both. Only below the alarms is something assumed:
an image without a verdict counts as harmless there, which hardly matters, since of those there are many and
of threats there are few.

Where a share q of the alarms was drawn, a false alarm is drawn with probability q whatever it is: the number
of those drawn is binomial, of all harmless images, with probability q * PFA. Its interval, divided by q, is
that of the PFA.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..model.calibration import threshold_allowing, wilson_interval
from ..model.decision import Scores

UNJUDGED, THREAT, HARMLESS, UNSURE = range(4)
VERDICTS = {"threat": THREAT, "harmless": HARMLESS, "unsure": UNSURE}


@dataclass(frozen=True)
class Alarms:
    """The images that reach a threshold, by their verdicts, and the rate of false alarms that they mean."""

    threshold: float
    images: int
    true: int
    false: int
    unsure: int
    unjudged: int
    pfa: float | None  # false alarms among harmless images; None if an alarm is unsure or without verdict
    interval: tuple[float, float]  # 95 % (Wilson), of pfa, whatever those alarms are
    drawn: int | None = None  # if the verdicts counted are of a sample: its images at or above the threshold


@dataclass(frozen=True, eq=False)
class Drawn:
    """A random sample of all images at or above a threshold."""

    members: NDArray[np.bool_]  # [n]
    threshold: float  # nothing is known below it
    share: float  # of those images, above 0


class Judged:
    """Images with scores [n] and verdicts [n], as numbers of VERDICTS or UNJUDGED.

    With `drawn` only verdicts on that sample count.
    """

    def __init__(self, scores: Scores, verdicts: NDArray[np.int8], drawn: Drawn | None = None):
        self.scores, self.verdicts, self.drawn = scores, verdicts, drawn
        self.share = 1.0 if drawn is None else drawn.share
        self._members = np.ones(len(scores), np.bool_) if drawn is None else drawn.members
        self.threats = round(int(((verdicts == THREAT) & self._members).sum()) / self.share)

    @property
    def harmless(self) -> int:
        """Number of images that are harmless as far as verdicts say."""
        return len(self.scores) - self.threats

    def alarms(self, threshold: float) -> Alarms:
        """Count the images that would alarm at a threshold, and the verdicts on them."""
        over = self.scores >= threshold
        counts = np.bincount(self.verdicts[over & self._members], minlength=4).tolist()
        unjudged, true, false, unsure = counts
        low, _ = wilson_interval(false, self.harmless)
        _, high = wilson_interval(false + unsure + unjudged, self.harmless)
        known = self.harmless and not unsure + unjudged
        return Alarms(
            threshold=threshold,
            images=int(over.sum()),
            true=true,
            false=false,
            unsure=unsure,
            unjudged=unjudged,
            pfa=false / self.share / self.harmless if known else None,
            interval=(low / self.share, min(1.0, high / self.share)),
            drawn=None if self.drawn is None else sum(counts),
        )

    def allowed(self, pfa: float) -> float:
        """Return how many images that may be harmless, of those whose verdicts count, may alarm."""
        return self.harmless * pfa * self.share

    def threshold(self, pfa: float) -> float | None:
        """Return the lowest threshold that at most a share `pfa` of images that may be harmless reaches.

        None if it lies below the images that a sample was drawn from.
        """
        may_be_harmless = self.scores[self._members & (self.verdicts != THREAT)]
        allowed = int(self.allowed(pfa) + 1e-9)
        if allowed >= len(may_be_harmless):
            return None
        threshold = threshold_allowing(may_be_harmless, allowed)
        return threshold if self.drawn is None else max(threshold, self.drawn.threshold)

    def top(self) -> "Alarms":
        """Return the longest head of the ranking in which every image has a verdict; ties fall together."""
        unjudged = self.scores[self.verdicts == UNJUDGED]
        bound = np.nextafter(unjudged.max(), np.inf) if len(unjudged) else -np.inf
        above = self.scores[self.scores >= bound]
        return self.alarms(float(above.min()) if len(above) else float(bound))
