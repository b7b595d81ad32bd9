"""The option --config: defaults of a command, read from its table in a TOML file."""

from collections.abc import Callable
from math import isfinite
from pathlib import Path
from typing import Any

import click

from ..errors import Refused
from ..system.toml import read_toml


def config_option(name: str) -> Callable[..., Any]:
    """Make the option that reads the defaults of the command `name`."""
    return click.option(
        "--config",
        type=click.Path(path_type=Path),
        is_eager=True,
        expose_value=False,
        callback=_configure,
        metavar="FILE",
        help=f"Read defaults from the [{name}] table of a TOML file.",
    )


def _configure(ctx: click.Context, _parameter: click.Parameter, path: Path | None) -> None:
    """Set the defaults of the command; raises Refused for what it does not know."""
    if path is None or ctx.command.name is None:
        return
    command, tables, known = ctx.command.name, read_toml(path, "--config"), _keys(ctx.command)
    table = tables.pop(command, {})
    if not isinstance(table, dict):
        raise Refused(f"--config {path}: {command} must be a table, [{command}]")
    for name in tables:
        raise Refused(f"--config {path}: unknown table [{name}]; settings belong in [{command}]")
    given = {key.replace("_", "-"): value for key, value in table.items()}
    for name in given.keys() - known.keys():
        raise Refused(f"--config {path}: unknown key {name!r} in [{command}]; see --help")
    ctx.default_map = {
        str(known[name].name): _default(f"--config {path}: {name}", known[name], value)
        for name, value in given.items()
    }


def _keys(command: click.Command) -> dict[str, click.Parameter]:
    """Map the names of a command's long options, without dashes, to its parameters."""
    names = {max(p.opts, key=len).removeprefix("--"): p for p in command.params}
    return {name: p for name, p in names.items() if name != "config"}


def _default(where: str, parameter: click.Parameter, value: Any) -> Any:
    """Check the type of a value of a configuration; a list may be given where an option may be repeated."""
    listed = parameter.multiple or parameter.nargs == -1
    values = value if listed and isinstance(value, list) else [value]
    if isinstance(parameter.type, click.types.BoolParamType):
        kind, fits = "true or false", all(isinstance(one, bool) for one in values)
    else:
        kind = "a list of texts" if listed else "a text or a number"
        fits = all(
            isinstance(one, str)
            or (isinstance(one, int | float) and not isinstance(one, bool) and isfinite(one))
            for one in values
        )
    if not fits:
        raise Refused(f"{where} must be {kind}")
    return values if listed else value
