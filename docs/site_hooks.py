"""Hooks of MkDocs: what the pages take from the code, and links to files beside them."""

import re
from collections.abc import Iterator
from dataclasses import MISSING, fields
from typing import Any

import click

from gbad_batch.engine.commands.cli import main
from gbad_batch.engine.settings import ScanSettings

FILES = "https://github.com/gbad-batch/gbad-batch/blob/main/"
WIDTH = 80  # columns of help


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Fill in settings and commands, and let links out of `docs/` lead to the repository."""
    filled = markdown.replace("<!-- settings -->", settings_table())
    filled = filled.replace("<!-- commands -->", "\n\n".join(help_of(main, "gbad-batch")))
    return re.sub(r"\]\(\.\./(?=[A-Z])", f"]({FILES}", filled)


def settings_table() -> str:
    """Write a table of the fields of ScanSettings: name, unit, default, meaning."""
    lines = ["| field | default | |", "| --- | --- | --- |"]
    for field in fields(ScanSettings):
        unit = f" ({field.metadata['unit']})" if field.metadata["unit"] else ""
        default = "" if field.default is MISSING else f"`{field.default!r}`"
        meaning = field.metadata["help"].replace("|", "\\|")
        lines.append(f"| `{field.name}`{unit} | {default} | {meaning} |")
    return "\n".join(lines)


def help_of(command: click.Command, name: str) -> Iterator[str]:
    """Yield a section with the help of a command, and of each command below it, as a terminal shows them."""
    context = click.Context(command, info_name=name, terminal_width=WIDTH, max_content_width=WIDTH)
    yield f"## {name}\n\n```text\n{command.get_help(context)}\n```"
    if isinstance(command, click.Group):
        for word in sorted(command.commands):
            yield from help_of(command.commands[word], f"{name} {word}")
