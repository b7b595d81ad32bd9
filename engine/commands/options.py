"""What the commands share: groups of options, and the check for an extra's packages."""

from collections.abc import Callable
from typing import Any

from ..errors import MissingExtra

DEMO = "The default model is trained on synthetic images, not for operational decisions."


def options(*decorators: Callable[..., Any]) -> Callable[..., Any]:
    """Join click options into one decorator, in their order."""

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(decorators):
            command = option(command)
        return command

    return add


def need_extra(extra: str, *modules: str) -> None:
    """Raise MissingExtra where a module of an extra is not installed."""
    from importlib.util import find_spec

    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise MissingExtra(f"this needs {', '.join(missing)}: pip install 'gbad-batch[{extra}]'")
