"""Groups of options, and the check for an extra's packages, which the commands share."""

from collections.abc import Callable
from typing import Any

import click

from ..errors import MissingExtra
from ..settings import declared

DEMO = "The default model is trained on synthetic images, not for operational decisions."


def options(*decorators: Callable[..., Any]) -> Callable[..., Any]:
    """Combine click options into one decorator that keeps their order."""

    def add(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(decorators):
            command = option(command)
        return command

    return add


def setting_option(name: str, **attributes: Any) -> Callable[..., Any]:
    """Make the click option of a scan setting; name, default and help come from its field."""
    field = declared(name)
    known = {"help": field.metadata["help"], "default": field.default}
    if field.default is False:
        known["is_flag"] = True
    elif isinstance(field.default, str | int | float):
        known["show_default"] = True
    return click.option(f"--{name.replace('_', '-')}", **{**known, **attributes})


def need_extra(extra: str, *modules: str) -> None:
    """Raise MissingExtra if a module of an extra is not installed."""
    from importlib.util import find_spec

    missing = [module for module in modules if find_spec(module) is None]
    if missing:
        raise MissingExtra(f"{', '.join(missing)} not installed: pip install 'gbad-batch[{extra}]'")
