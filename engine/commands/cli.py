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
from .options import DEMO, options
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
            click.echo("gbad-batch: stopped as asked", err=True)
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
    gbad-batch doctor                                what this machine can do
    gbad-batch tune                                  what is fastest on it
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


_WHICH_FILES = options(
    click.option(
        "--files-from", metavar="FILE", help="Read paths from FILE, one a line; - is standard input."
    ),
    click.option("--null", is_flag=True, help="The list is NUL-separated, as find -print0 writes it."),
    click.option(
        "--include", multiple=True, metavar="PATTERN", help="Only these are candidates, e.g. '*.png'."
    ),
    click.option("--exclude", multiple=True, metavar="PATTERN", help="These are not, e.g. 'thumbs/**'."),
    click.option("--hidden", is_flag=True, help="Take names that begin with a dot, too."),
    click.option("--follow-links", is_flag=True, help="Follow symbolic links met in folders."),
    click.option("--limit", type=int, metavar="N", help="Scan the first N candidates only."),
    click.option("--dry-run", is_flag=True, help="Count what is there, estimate the time, scan nothing."),
)
_WHICH_MODEL = options(
    click.option(
        "--model",
        type=click.Path(path_type=Path),
        metavar="BUNDLE",
        help="A trained model; default: the demo model.",
    ),
    click.option(
        "--device",
        default="auto",
        show_default=True,
        metavar="auto|cpu|cuda[:N]",
        help="Where to compute; cuda never falls back.",
    ),
    click.option(
        "--engine",
        type=click.Choice(["auto", "openvino", "tensorrt", "inductor"]),
        default="auto",
        show_default=True,
        help="Which backend runs the networks.",
    ),
    click.option(
        "--precision",
        type=click.Choice(["auto", "fp32", "fp16", "int8"]),
        default="auto",
        show_default=True,
        help="auto: the fastest that passed the parity gate here.",
    ),
    click.option(
        "--cache-dir",
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="Keep ready engines here, not in the user's cache folder.",
    ),
)
_WHAT_ALARMS = options(
    click.option(
        "--decision", metavar="NAME", help="gbad, classes or combined; default: the bundle's choice."
    ),
    click.option(
        "--pfa", type=float, metavar="P", help="Alarm on this share of benign bags.  [default: 0.05]"
    ),
    click.option(
        "--threshold", type=float, metavar="T", help="Alarm from this anomaly_score on; excludes --pfa."
    ),
)
_HOW = options(
    click.option(
        "--batch-size",
        type=int,
        metavar="N",
        help="Images computed at once; never changes a score. Default: as tuned here, else by rule.",
    ),
    click.option(
        "--threads", type=int, metavar="N", help="Default: the cores that affinity and cgroup allow."
    ),
    click.option(
        "--hardware-share",
        type=float,
        default=0.65,
        show_default=True,
        metavar="SHARE",
        help="JPEGs for a GPU's JPEG hardware; the others take cores, too.",
    ),
    click.option(
        "--max-pixels",
        type=int,
        default=64_000_000,
        show_default=True,
        help="Larger images are not decoded: too_large.",
    ),
    click.option(
        "--max-file-size",
        type=int,
        default=256_000_000,
        show_default=True,
        metavar="BYTES",
        help="Larger files are not read: too_large.",
    ),
    click.option(
        "--decode-timeout",
        type=float,
        default=60.0,
        show_default=True,
        metavar="SECONDS",
        help="An image that takes longer: decoder_timeout.",
    ),
    click.option("--max-failures", metavar="N|N%", help="Stop with exit 4 once more images failed."),
)
_THE_OUTPUT = options(
    click.option(
        "--features",
        type=click.Path(path_type=Path),
        metavar="DIR",
        help="Store each image's features and logits (float16) here.",
    ),
    click.option("--overwrite", is_flag=True, help="Replace a finished output, at the very end."),
    click.option("--restart", is_flag=True, help="Drop what an unfinished scan has done."),
    click.option(
        "--retry-failed", is_flag=True, help="Scan again what failed, in a finished or unfinished output."
    ),
    click.option(
        "--retry",
        multiple=True,
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
        help="What is told on stderr.",
    ),
    click.option(
        "--config",
        type=click.Path(path_type=Path),
        is_eager=True,
        expose_value=False,
        callback=_configure,
        metavar="FILE",
        help="Defaults from the [scan] table of a TOML file.",
    ),
)


@main.command(epilog=DEMO)
@click.argument("sources", nargs=-1, metavar="SOURCE...")
@click.option(
    "--out", "-o", metavar="FILE|DIR/", help="results.parquet, or with a trailing / a folder of parts."
)
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
        out=Path(out) if out is not None else None,
        out_is_folder=out is not None and out.endswith("/"),
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
    """Tell what this machine can do, what a scan here would use, and why."""
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
    """Measure which batch size, streams and threads are fastest here, for the scans to come.

    Takes up to two minutes; let the machine do nothing else meanwhile. The choice is kept in the cache
    folder for this model, machine and versions. Scans take it and say so; --batch-size and --threads win
    over it. No score depends on it.

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
