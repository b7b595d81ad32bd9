"""The `gbad-batch` command: parses, calls, prints; no logic."""

import errno
import json
import logging
import sys
import tomllib
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from ..errors import GbadError, Refused, Stopped
from .options import DEMO, options, setting_option
from .training import data, evaluate, quantize, train

if TYPE_CHECKING:
    from ..settings import ScanSettings

LEVELS = ("debug", "info", "warning", "error")


class _Group(click.Group):
    """Commands whose errors end as one sentence and their exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except GbadError as error:
            _fail(error)
        except KeyboardInterrupt:
            click.echo("gbad-batch: stopped on request", err=True)
            sys.exit(130)
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise  # whoever read the output has read enough: click ends without a word
            where = f"{error.filename} cannot be used" if error.filename else "the output cannot be written"
            _fail(Stopped(f"{where}: {error.strerror}"))


def _fail(error: GbadError) -> NoReturn:
    from ..text import escaped

    click.echo(f"gbad-batch: {escaped(str(error))}", err=True)
    sys.exit(error.exit_code)


@click.group(
    cls=_Group,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog=DEMO,
)
@click.version_option(version("gbad-batch"), prog_name="gbad-batch")
def main() -> None:
    """Screen whole archives of X-ray bag images: a decision and a reason for every image.

    \b
    gbad-batch demo                                  make a small archive and scan it
    gbad-batch scan /archive --out results.parquet   screen your own
    gbad-batch doctor                                see what this machine can do
    gbad-batch tune                                  find its fastest settings
    """
    from .console import whole_streams

    whole_streams()


def _configure(ctx: click.Context, _parameter: click.Parameter, path: Path | None) -> None:
    """Fill the defaults of the command from the table of its name in a TOML file."""
    if path is None or ctx.command.name is None:
        return
    try:
        tables = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        _fail(Refused(f"--config {path} cannot be read: {error.strerror}"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        _fail(Refused(f"--config {path} is not a TOML file: {error}"))
    known = _keys(ctx.command)
    table = tables.pop(ctx.command.name, {})
    if not isinstance(table, dict):
        _fail(
            Refused(
                f"--config {path}: {ctx.command.name} is no table; settings stand in [{ctx.command.name}]"
            )
        )
    for name in tables:
        _fail(Refused(f"--config {path}: unknown table [{name}]; settings stand in [{ctx.command.name}]"))
    given = {key.replace("_", "-"): value for key, value in table.items()}
    for name in given.keys() - known.keys():
        _fail(Refused(f"--config {path}: unknown key {name!r} in [{ctx.command.name}]; see --help"))
    ctx.default_map = {str(known[name].name): _listed(known[name], value) for name, value in given.items()}


def _keys(command: click.Command) -> dict[str, click.Parameter]:
    """Name the settings of a command as its long options do, without the dashes in front."""
    names = {max(p.opts, key=len).removeprefix("--"): p for p in command.params}
    return {name: p for name, p in names.items() if name != "config"}


def _listed(parameter: click.Parameter, value: Any) -> Any:
    """Make one value a list where a list is meant: click would take a text letter by letter."""
    return [value] if isinstance(value, str) and (parameter.multiple or parameter.nargs == -1) else value


def _log_to_stderr(level: str, *, quiet: bool) -> None:
    from .console import LogLines

    least = "warning" if quiet and level in ("debug", "info") else level
    logging.basicConfig(level=least.upper(), handlers=[LogLines()], force=True)


PATH = click.Path(path_type=Path)

_WHICH_FILES = options(
    setting_option("files_from", metavar="FILE"),
    setting_option("null"),
    setting_option("include", multiple=True, metavar="PATTERN"),
    setting_option("exclude", multiple=True, metavar="PATTERN"),
    setting_option("hidden"),
    setting_option("follow_links"),
    setting_option("limit", type=int, metavar="N"),
    click.option("--dry-run", is_flag=True, help="Count what is there, estimate the time, scan nothing."),
)
_WHICH_MODEL = options(
    setting_option("model", type=PATH, metavar="BUNDLE"),
    setting_option("device", metavar="auto|cpu|cuda[:N,...]"),
    setting_option("engine", type=click.Choice(["auto", "openvino", "tensorrt", "inductor"])),
    setting_option("precision", type=click.Choice(["auto", "fp32", "fp16", "int8"])),
    setting_option("cache_dir", type=PATH, metavar="DIR"),
)
_WHAT_ALARMS = options(
    setting_option("decision", metavar="NAME"),
    setting_option("pfa", type=float, metavar="P"),
    setting_option("threshold", type=float, metavar="T"),
)
_HOW = options(
    setting_option("batch_size", type=int, metavar="N"),
    setting_option("threads", type=int, metavar="N"),
    setting_option("workers", type=int, metavar="N"),
    setting_option("hardware_share", metavar="SHARE"),
    setting_option("max_pixels"),
    setting_option("max_file_size", metavar="BYTES"),
    setting_option("decode_timeout", metavar="SECONDS"),
    setting_option("max_failures", metavar="N|N%"),
)
_THE_OUTPUT = options(
    setting_option("features", type=PATH, metavar="DIR"),
    setting_option("overwrite"),
    setting_option("restart"),
    click.option(
        "--retry-failed", is_flag=True, help="Scan again what failed, in a finished or unfinished output."
    ),
    setting_option(
        "retry",
        multiple=True,
        default=(),
        metavar="REASON",
        help="Scan again the rows of this status, e.g. unreadable.",
    ),
    click.option("--quiet", is_flag=True, help="No progress, no summary; warnings stay."),
    click.option("--json", "as_json", is_flag=True, help="Print the summary as one JSON object."),
    click.option(
        "--log-level",
        type=click.Choice(LEVELS),
        default="info",
        show_default=True,
        help="Least severe messages to show on standard error.",
    ),
    click.option(
        "--config",
        type=PATH,
        is_eager=True,
        expose_value=False,
        callback=_configure,
        metavar="FILE",
        help="Defaults from the [scan] table of a TOML file.",
    ),
)


@main.command(epilog=DEMO)
@click.argument("sources", nargs=-1, metavar="SOURCE...")
@setting_option("out", metavar="FILE|DIR/")
@_WHICH_FILES
@_WHICH_MODEL
@_WHAT_ALARMS
@_HOW
@_THE_OUTPUT
def scan(
    sources: tuple[str, ...], dry_run: bool, quiet: bool, as_json: bool, log_level: str, **given: Any
) -> None:
    """Screen every image of SOURCE... and write one row for each to --out.

    A SOURCE is a folder (walked whole), an image file, a tar shard (.tar, .tar.gz, .tgz; WebDataset too)
    or a glob pattern in quotes. Bad files never stop a scan: each gets a row with its reason. Killed at
    any moment, the same command goes on where it was.

    \b
    gbad-batch scan /archive --out results.parquet
    gbad-batch scan /archive --out results.parquet --pfa 0.01        fewer alarms
    gbad-batch scan 'shards/*.tar' --out results.parquet --features features/
    find /archive -newer last | gbad-batch scan --files-from - --out new.parquet
    gbad-batch scan /archive --out results.parquet --retry-failed

    \b
    Exit code: 0 done; 3 done, some images failed; 2 refused before the first image;
    1 stopped, run again to go on; 4 too many failures; 130 and 143 interrupted, run again.
    """
    _log_to_stderr(log_level, quiet=quiet)
    settings = _scan_settings(sources, **given)
    if dry_run:
        from .dry_run import estimate

        found = estimate(settings)
        click.echo(json.dumps(asdict(found), indent=2) if as_json else found.text())
        return
    if settings.out is None:
        raise Refused("the scan has nowhere to write: add --out results.parquet")
    from .guarded import guarded_scan

    sys.exit(guarded_scan(settings, quiet=quiet, as_json=as_json))


def _scan_settings(
    sources: tuple[str, ...], *, out: str | None, retry_failed: bool, retry: tuple[str, ...], **given: Any
) -> "ScanSettings":
    from ..settings import ScanSettings

    return ScanSettings(
        sources=sources,
        out=out,
        retry=frozenset({*retry, *(("failed",) if retry_failed else ())}),
        **given,
    )


@main.command(epilog=DEMO)
@click.argument("out", type=click.Path(path_type=Path), metavar="OUT")
@click.option("--count", type=click.IntRange(1), default=200, show_default=True, help="Images to write.")
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed gives the same bytes.")
@click.option(
    "--positive", type=click.FloatRange(0, 1), default=0.1, show_default=True, help="Share with a threat."
)
@click.option(
    "--objects",
    type=click.Choice(["train", "test"]),
    default="train",
    show_default=True,
    help="Which pool of shapes.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the figures as one JSON object.")
def synth(out: Path, as_json: bool, **given: Any) -> None:
    """Write a synthetic X-ray archive to OUT.

    Bags are solids of several materials seen by two X-ray energies, coloured as scanners colour them.
    OUT gets images/, labels.csv in SIXray's form, and boxes.json with the
    threats' boxes and outlines in COCO form.

    \b
    gbad-batch synth demo/archive --count 200 --seed 1 --positive 0.1
    """
    from ..synth import SynthSettings, write_archive
    from ..system.machine import usable_cores
    from .console import synth_bar

    settings = SynthSettings(workers=usable_cores(), **given)
    with synth_bar(settings.count) as progress:
        counts = write_archive(out, settings, progress)
    if as_json:
        click.echo(json.dumps(asdict(counts), indent=2))
        return
    labels = ", ".join(f"{name} {number}" for name, number in counts.labels.items())
    click.echo(f"{counts.images} images in {out / 'images'}, {counts.positives} with a threat: {labels}")


@main.command(epilog=DEMO)
@click.argument("folder", type=click.Path(path_type=Path), default="demo", metavar="[DIR]")
@click.option(
    "--count", type=click.IntRange(1), default=200, show_default=True, help="Images of the archive."
)
@click.pass_context
def demo(ctx: click.Context, folder: Path, count: int) -> None:
    """Make a synthetic archive in DIR/archive and scan its images to DIR/results.parquet.

    DIR is demo/ where none is given. An archive that is there already is scanned again, and the results
    are replaced.
    """
    archive = folder / "archive"
    if not (archive / "synth.json").exists():
        ctx.invoke(synth, out=archive, count=count, seed=1)
    ctx.invoke(scan, sources=(str(archive / "images"),), out=str(folder / "results.parquet"), overwrite=True)


@main.command(epilog=DEMO)
@click.option("--json", "as_json", is_flag=True, help="Print the findings as one JSON object.")
@click.option("--empty-cache", is_flag=True, help="Remove the ready engines that are kept, and no more.")
@_WHICH_MODEL
def doctor(as_json: bool, empty_cache: bool, **given: Any) -> None:
    """Report what this machine can do, what a scan here would use, and why."""
    from .console import findings_text
    from .doctor import emptied, examine

    findings = emptied(given["cache_dir"]) if empty_cache else examine(**given)
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        click.echo(findings_text(findings))
    sys.exit(0 if all(finding.ok for finding in findings) else 1)


@main.command(epilog=DEMO)
@_WHICH_MODEL
@click.option(
    "--images",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Measure on your images; default: synthetic ones.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the figures as one JSON object.")
def tune(images: Path | None, as_json: bool, **given: Any) -> None:
    """Find the fastest settings for this machine; later scans use them.

    Takes up to two minutes, on a machine that is otherwise idle. The choice is stored in the cache folder
    for this model, machine and versions. Scans say when they use it; --batch-size, --threads and --workers
    override it. No score depends on it.

    \b
    gbad-batch tune
    gbad-batch tune --model my-bundle --images /archive
    """
    from ..settings import ScanSettings
    from .console import tuning_text
    from .tune import tune as measure

    _log_to_stderr("info", quiet=False)
    found = measure(ScanSettings(sources=(str(images),) if images else (), **given))
    click.echo(json.dumps(found.to_json(), indent=2) if as_json else tuning_text(found))


for command in (train, quantize, evaluate, data):
    main.add_command(command)
