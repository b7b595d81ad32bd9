"""The `gbad-batch` command: parse, call, print; no logic."""

import errno
import json
import logging
import sys
from dataclasses import asdict
from importlib.metadata import version
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

import click

from ..errors import GbadError, Refused, Stopped
from ..system.toml import read_toml
from .options import DEMO, options, setting_option
from .training import data, evaluate, quantize, train

if TYPE_CHECKING:
    from ..settings import ScanSettings

LEVELS = ("debug", "info", "warning", "error")


class _Group(click.Group):
    """Commands that report an error as one sentence and exit with its code."""

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
                raise  # the reader of the output closed it: click ends silently
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
    """Read the defaults of the command from its table in a TOML file."""
    if path is None or ctx.command.name is None:
        return
    try:
        tables = read_toml(path, "--config")
    except Refused as refused:
        _fail(refused)
    known = _keys(ctx.command)
    table = tables.pop(ctx.command.name, {})
    if not isinstance(table, dict):
        _fail(Refused(f"--config {path}: {ctx.command.name} must be a table, [{ctx.command.name}]"))
    for name in tables:
        _fail(Refused(f"--config {path}: unknown table [{name}]; settings belong in [{ctx.command.name}]"))
    given = {key.replace("_", "-"): value for key, value in table.items()}
    for name in given.keys() - known.keys():
        _fail(Refused(f"--config {path}: unknown key {name!r} in [{ctx.command.name}]; see --help"))
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
        _fail(Refused(f"{where} must be {kind}"))
    return values if listed else value


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
    click.option("--dry-run", is_flag=True, help="Count the images, estimate the time, and scan nothing."),
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
        "--retry-failed", is_flag=True, help="Scan the failed rows of a finished or unfinished output again."
    ),
    setting_option(
        "retry",
        multiple=True,
        default=(),
        metavar="REASON",
        help="Scan the rows with this status again, e.g. unreadable.",
    ),
    click.option(
        "--quiet", is_flag=True, help="Print warnings and errors only, neither progress nor summary."
    ),
    click.option("--json", "as_json", is_flag=True, help="Print the summary as one JSON object."),
    click.option(
        "--log-level",
        type=click.Choice(LEVELS),
        default="info",
        show_default=True,
        help="Lowest severity of messages on standard error.",
    ),
    click.option(
        "--config",
        type=PATH,
        is_eager=True,
        expose_value=False,
        callback=_configure,
        metavar="FILE",
        help="Read defaults from the [scan] table of a TOML file.",
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
    """Screen every image in SOURCE... and write one row per image to --out.

    A SOURCE is a folder (with everything below it), an image file, a tar shard (.tar, .tar.gz, .tgz;
    WebDataset too) or a glob pattern in quotes. Bad files never stop a scan: they get a row with the
    reason. A scan may be killed at any moment; the same command resumes it.

    \b
    gbad-batch scan /archive --out results.parquet
    gbad-batch scan /archive --out results.parquet --pfa 0.01        fewer alarms
    gbad-batch scan 'shards/*.tar' --out results.parquet --features features/
    find /archive -newer last | gbad-batch scan --files-from - --out new.parquet
    gbad-batch scan /archive --out results.parquet --retry-failed

    \b
    Exit code: 0 done; 3 done, but some images failed; 2 refused before the first image;
    1 stopped by the machine, 4 too many failures, 130 or 143 interrupted: run it again to resume.
    """
    _log_to_stderr(log_level, quiet=quiet)
    settings = _scan_settings(sources, **given)
    if dry_run:
        from .dry_run import estimate

        expected = estimate(settings)
        click.echo(json.dumps(asdict(expected), indent=2) if as_json else expected.text())
        return
    if settings.out is None:
        raise Refused("the output is missing: add --out results.parquet")
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
@click.option("--count", type=click.IntRange(1), default=200, show_default=True, help="Number of images.")
@click.option("--seed", type=int, default=0, show_default=True, help="The same seed gives the same bytes.")
@click.option(
    "--positive",
    type=click.FloatRange(0, 1),
    default=0.1,
    show_default=True,
    help="Share of images with a threat.",
)
@click.option(
    "--objects",
    type=click.Choice(["train", "test"]),
    default="train",
    show_default=True,
    help="Pool of object shapes to draw from.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the figures as one JSON object.")
def synth(out: Path, as_json: bool, **given: Any) -> None:
    """Write a synthetic X-ray archive to OUT.

    Bags are solids of several materials, imaged at two X-ray energies and coloured as scanners do. OUT gets
    images/, labels.csv in SIXray's format, and boxes.json with the threats' boxes and outlines in COCO's.

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
@click.option("--count", type=click.IntRange(1), default=200, show_default=True, help="Number of images.")
@click.pass_context
def demo(ctx: click.Context, folder: Path, count: int) -> None:
    """Make a synthetic archive in DIR/archive and scan it to DIR/results.parquet.

    DIR is demo/ by default. If the archive exists already, it is scanned again and the results are replaced.
    """
    archive = folder / "archive"
    if not (archive / "synth.json").exists():
        ctx.invoke(synth, out=archive, count=count, seed=1)
    ctx.invoke(scan, sources=(str(archive / "images"),), out=str(folder / "results.parquet"), overwrite=True)


@main.command(epilog=DEMO)
@click.option("--json", "as_json", is_flag=True, help="Print the findings as one JSON object.")
@click.option("--empty-cache", is_flag=True, help="Delete the cached engines and do nothing else.")
@_WHICH_MODEL
def doctor(as_json: bool, empty_cache: bool, **given: Any) -> None:
    """Show what this machine can do, what a scan here would use, and why."""
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
    help="Images to measure with; default: synthetic ones.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the figures as one JSON object.")
def tune(images: Path | None, as_json: bool, **given: Any) -> None:
    """Find the fastest settings for this machine; later scans use them.

    Takes up to two minutes on an otherwise idle machine. The result is stored in the cache folder for this
    model, machine and versions. Scans say when they use it; --batch-size, --threads and --workers override
    it. It changes no score.

    \b
    gbad-batch tune
    gbad-batch tune --model my-bundle --images /archive
    """
    from ..settings import ScanSettings
    from .console import tuning_text
    from .tune import tune as measure

    _log_to_stderr("info", quiet=False)
    tuning = measure(ScanSettings(sources=(str(images),) if images else (), **given))
    click.echo(json.dumps(tuning.to_json(), indent=2) if as_json else tuning_text(tuning))


for command in (train, quantize, evaluate, data):
    main.add_command(command)
