"""McNemar's test of whether two decisions on the same images differ by more than chance."""

from dataclasses import dataclass
from importlib.util import find_spec

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Paired:
    """Images that two results decide, and those that they decide differently."""

    group: str
    images: int
    raised: int  # alarms in the second result only
    cleared: int  # alarms in the first result only
    p_value: float | None = None  # of raised and cleared being equally likely; None without SciPy or flips
    interval: tuple[float, float] | None = None  # 95 %, of the share of `raised` among all flips


def can_test() -> bool:
    """Tell whether SciPy, which tests, is installed."""
    return find_spec("scipy") is not None


def paired(group: str, images: int, raised: int, cleared: int) -> Paired:
    """Compare the flips of each direction by McNemar's exact test, where SciPy is installed."""
    if not can_test() or not raised + cleared:
        return Paired(group, images, raised, cleared)
    from scipy.stats import binomtest

    test = binomtest(raised, raised + cleared)
    low, high = test.proportion_ci(CONFIDENCE, method="wilson")
    return Paired(group, images, raised, cleared, float(test.pvalue), (float(low), float(high)))
