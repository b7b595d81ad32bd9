"""Groups of options, and the check for an extra's packages, which the commands share."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from ..errors import MissingExtra, how_to_install
from ..settings import declared

UNTITLED = "Messages and configuration"  # section of options whose group has no title
DEMO = "The default model is trained on synthetic images, not for operational decisions."


def options(*decorators: Callable[..., Any], title: str = UNTITLED) -> Callable[..., Any]:
    """Combine click options into one decorator that keeps their order; `title` is for SectionedCommand."""

    def add(command: Any) -> Any:
        before = len(getattr(command, "__click_params__", ()))
        for option in reversed(decorators):
            command = option(command)
        for parameter in command.__click_params__[before:]:
            parameter.section = title
        return command

    return add


class SectionedCommand(click.Command):
    """A command whose help shows options in sections, in the order of their declaration."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write a section for each title of `options`."""
        sections: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            if isinstance(parameter, click.Option) and (record := parameter.get_help_record(ctx)):
                sections.setdefault(getattr(parameter, "section", UNTITLED), []).append(record)
        for title, records in sections.items():
            with formatter.section(title):
                formatter.write_dl(records)


Completer = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]


def complete_path(_ctx: click.Context, _parameter: click.Parameter, begun: str) -> list[CompletionItem]:
    """Have the shell complete a path, of a value that may be more than one."""
    return [CompletionItem(begun, type="file")]


def complete_with(*words: str) -> Completer:
    """Make a completer for a value that is mostly one of these words."""
    return lambda _ctx, _parameter, begun: [CompletionItem(w) for w in words if w.startswith(begun)]


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
        raise MissingExtra(f"{', '.join(missing)} not installed: {how_to_install(extra)}")


WHAT_LABELS = options(
    click.option(
        "--form",
        type=click.Choice(["auto", "sixray", "table", "voc", "boxes", "coco", "folders"]),
        default="auto",
        show_default=True,
        help="Label format; auto detects it.",
    ),
    click.option(
        "--class-map",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="TOML file with a table [classes] of lines such as Dagger = 'knife' or Baton = 'ignore'.",
    ),
)
VIEWS = options(
    click.option(
        "--group-by",
        metavar="REGEX",
        help="Images in whose uris the groups of REGEX find the same are views of a bag, e.g. '(bag\\d+)_'.",
    ),
    click.option(
        "--groups",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="CSV that names the bag of each image: columns name (or path, or uri) and bag.",
    ),
)
