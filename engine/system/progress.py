"""How long-running work reports its progress."""

from collections.abc import Callable, Mapping

# phase, steps done, steps in all, figures by name
ProgressCallback = Callable[[str, int, int, Mapping[str, float]], None]


def silent(phase: str, done: int, total: int, figures: Mapping[str, float]) -> None:
    """Report nothing."""
