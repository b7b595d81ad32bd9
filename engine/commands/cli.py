"""The `gbad-batch` command: parse, call, print; no logic."""

import errno
import json
import logging
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, get_args

import click

from ..errors import GbadError, Refused, Stopped
from ..row import Status
from .configuration import config_option
from .drifting import drift
from .options import DEMO, VIEWS, SectionedCommand, complete_path, complete_with, options, setting_option
from .rescreening import bags, calibrate, decide, diff, rescore
from .sharding import merge, pack
from .signing import sign, verify
from .training import adapt, data, evaluate, quantize, train, typicality

if TYPE_CHECKING:
    from ..settings import ScanSettings

LEVELS = ("debug", "info", "warning", "error")


class _Group(click.Group):
    """Commands that report an error as one sentence and exit with its code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            with _terminated_like_interrupted():
                return super().invoke(ctx)
        except GbadError as error:
            _end(str(error), error.exit_code)
        except KeyboardInterrupt as stop:
            _end(" ".join(stop.args) or "stopped on request", 143 if isinstance(stop, _Terminated) else 130)
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise  # the reader of the output closed it: click ends silently
            where = f"{error.filename} cannot be used" if error.filename else "the output cannot be written"
            _end(f"{where}: {error.strerror}", Stopped.exit_code)


class _Terminated(KeyboardInterrupt):
    """Raised by SIGTERM, as KeyboardInterrupt is by Ctrl-C."""


@contextmanager
def _terminated_like_interrupted() -> Iterator[None]:
    """Have SIGTERM end a command in order; a scan has a way of its own."""

    def stop(*_: object) -> NoReturn:
        raise _Terminated

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _end(sentence: str, code: int) -> NoReturn:
    """Say why the command ends, and exit with its code."""
    from .console import tell

    tell(sentence, logging.ERROR, exit_code=code)
    sys.exit(code)


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
    from ..system.machine import let_arrow_use_malloc
    from .console import whole_streams

    whole_streams()
    let_arrow_use_malloc()  # here, as a library's caller may want another allocator


def _log_to_stderr(level: str, *, quiet: bool, as_json: bool = False) -> None:
    from .console import LogLines

    least = "warning" if quiet and level in ("debug", "info") else level
    logging.basicConfig(level=least.upper(), handlers=[LogLines(as_json=as_json)], force=True)


PATH = click.Path(path_type=Path)

_THE_OUTPUT = options(
    setting_option("out", metavar="FILE|DIR/", shell_complete=complete_path),
    setting_option("update"),
    setting_option("by_content"),
    setting_option("keep_gone"),
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
        shell_complete=complete_with("failed", *get_args(Status)),
    ),
    setting_option("features", type=PATH, metavar="DIR"),
    setting_option("state_dir", type=PATH, metavar="DIR"),
    title="Output",
)
_WHICH_FILES = options(
    setting_option("files_from", metavar="FILE", shell_complete=complete_path),
    setting_option("include", multiple=True, metavar="PATTERN"),
    setting_option("exclude", multiple=True, metavar="PATTERN"),
    setting_option("limit", type=int, metavar="N"),
    setting_option("shard", metavar="I/N"),
    click.option("--dry-run", is_flag=True, help="Count the images, estimate the time, and scan nothing."),
    setting_option("follow_links"),
    setting_option("hidden"),
    setting_option("null"),
    title="Which images",
)
_WHAT_ALARMS = options(
    setting_option("pfa", type=float, metavar="P"),
    setting_option("threshold", type=float, metavar="T"),
    setting_option("point", type=PATH, metavar="FILE"),
    setting_option("decision", metavar="NAME", shell_complete=complete_with("gbad", "classes", "combined")),
    title="What raises an alarm",
)
_WHICH_MODEL = options(
    setting_option("model", type=PATH, metavar="BUNDLE"),
    setting_option("device", metavar="auto|cpu|cuda[:N,...]"),
    setting_option("precision", type=click.Choice(["auto", "fp32", "fp16", "bf16", "int8"])),
    setting_option("engine", type=click.Choice(["auto", "openvino", "tensorrt", "inductor"])),
    setting_option("cache_dir", type=PATH, metavar="DIR"),
    title="Model and device",
)
_MESSAGES = options(
    click.option(
        "--quiet", is_flag=True, help="Print warnings and errors only, neither progress nor summary."
    ),
    click.option("--json", "as_json", is_flag=True, help="Print the summary as one JSON object."),
    click.option(
        "--log-level",
        type=click.Choice(LEVELS),
        default="info",
        show_default=True,
        help="Lowest severity of messages on standard error; debug adds choices, chunks, parts and retries.",
    ),
    click.option(
        "--log-format",
        type=click.Choice(("text", "json")),
        default="text",
        show_default=True,
        help="Form of messages on standard error; json: one object a line, and no progress bar.",
    ),
    click.option(
        "--metrics",
        type=PATH,
        metavar="FILE.prom",
        help="Keep figures of the scan in FILE.prom, for Prometheus's node_exporter.",
    ),
    config_option("scan"),
)
_HOW = options(
    setting_option("batch_size", type=int, metavar="N"),
    setting_option("threads", type=int, metavar="N"),
    setting_option("workers", type=int, metavar="N"),
    setting_option("ray", is_flag=False, flag_value="", metavar="[ADDRESS]"),
    setting_option("hardware_share", metavar="SHARE"),
    setting_option("max_pixels"),
    setting_option("max_file_size", metavar="BYTES"),
    setting_option("decode_timeout", metavar="SECONDS"),
    setting_option("max_failures", metavar="N|N%"),
    title="Speed and limits (rarely needed)",
)


@main.command(epilog=DEMO, cls=SectionedCommand)
@click.argument("sources", nargs=-1, metavar="SOURCE...", shell_complete=complete_path)
@_THE_OUTPUT
@_WHICH_FILES
@_WHAT_ALARMS
@_WHICH_MODEL
@_MESSAGES
@_HOW
def scan(  # noqa: PLR0913 - click's: a parameter an option
    sources: tuple[str, ...],
    dry_run: bool,
    quiet: bool,
    as_json: bool,
    log_level: str,
    log_format: str,
    metrics: Path | None,
    **given: Any,
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
    gbad-batch scan /archive --out results.parquet --update          every night

    \b
    Exit code: 0 done; 3 done, but some images failed; 2 refused before the first image;
    1 stopped by the machine, 4 too many failures, 130 or 143 interrupted: run it again to resume.
    """
    _log_to_stderr(log_level, quiet=quiet, as_json=log_format == "json")
    settings = _scan_settings(sources, **given)
    if dry_run:
        from .dry_run import estimate

        expected = estimate(settings)
        click.echo(json.dumps(asdict(expected), indent=2) if as_json else expected.text())
        return
    if settings.out is None:
        raise Refused("the output is missing: add --out results.parquet")
    from .guarded import guarded_scan

    sys.exit(guarded_scan(settings, quiet=quiet, as_json=as_json, metrics=metrics))


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
    from ..text import counted
    from .console import synth_bar

    settings = SynthSettings(workers=usable_cores(), **given)
    with synth_bar(settings.count) as progress:
        counts = write_archive(out, settings, progress)
    if as_json:
        click.echo(json.dumps(asdict(counts), indent=2))
        return
    labels = ", ".join(f"{name} {number}" for name, number in counts.labels.items())
    told = f"{counted(counts.images, 'image')} in {out / 'images'}, {counts.positives} with a threat"
    click.echo(f"{told}: {labels}")


@main.command(epilog=DEMO)
@click.argument("folder", type=click.Path(path_type=Path), default="demo", metavar="[DIR]")
@click.option("--count", type=click.IntRange(1), default=200, show_default=True, help="Number of images.")
@click.pass_context
def demo(ctx: click.Context, folder: Path, count: int) -> None:
    """Make a synthetic archive in DIR/archive, scan it to DIR/results.parquet, show it in DIR/report.html.

    DIR is demo/ by default. If the archive exists already, it is scanned again and the results are replaced.
    """
    from ..settings import ScanSettings
    from .guarded import guarded_scan

    archive, out = folder / "archive", folder / "results.parquet"
    if not (archive / "synth.json").exists():
        ctx.invoke(synth, out=archive, count=count, seed=1)
    _log_to_stderr("info", quiet=False)
    settings = ScanSettings(sources=(str(archive / "images"),), out=str(out), overwrite=True)
    code = guarded_scan(settings, quiet=False, as_json=False)
    if code in (0, 3):
        ctx.invoke(report, results=out)
    sys.exit(code)


@main.command(epilog=DEMO)
@click.argument("results", type=PATH, metavar="RESULTS")
@click.option("--out", type=PATH, metavar="FILE", help="The page; default: report.html beside RESULTS.")
@click.option(
    "--top", type=click.IntRange(1, 5000), default=200, show_default=True, help="Images in the gallery."
)
@setting_option("model", type=PATH, metavar="BUNDLE")
@VIEWS
@click.option(
    "--sample",
    type=click.IntRange(1, 5000),
    metavar="N",
    help="Show N alarms drawn at random instead, for `calibrate` where there are too many to judge.",
)
def report(
    results: Path,
    out: Path | None,
    model: Path | None,
    group_by: str | None,
    groups: Path | None,
    **shown: Any,
) -> None:
    """Write a page that shows the finished scan RESULTS, to be opened in any browser.

    One file, which loads nothing and asks no network: totals, failures, an operating point that can be
    dragged, and the most anomalous images with their pictures, to be judged by keyboard. Its pictures are
    read from where the scan found them. Verdicts stay in the browser and are downloaded as CSV.

    With the model of the scan (the default one, or --model) it shows the false alarms to be expected, and
    where the model sees each class if it has a class map. With --group-by or --groups an entry is a bag, with
    all its views; a verdict on it holds for each of them.

    \b
    gbad-batch report results.parquet
    gbad-batch report results.parquet --model my-bundle --top 500 --out tonight.html
    """
    from ..grouping import grouping_of
    from ..report import Shown, write_report

    page = out or results.absolute().parent / "report.html"
    write_report(results, page, Shown(grouping=grouping_of(group_by, groups), **shown), model)
    click.echo(f"Report: {page}")


@main.command(epilog=DEMO)
@click.option("--json", "as_json", is_flag=True, help="Print the findings as one JSON object.")
@click.option(
    "--empty-cache",
    is_flag=True,
    help="Delete the cached engines and the benchmarks' files, and do nothing else.",
)
@click.option(
    "--gpu",
    is_flag=True,
    help="Run the chain of a GPU step by step; prints JSON to paste into an issue.",
)
@_WHICH_MODEL
def doctor(as_json: bool, empty_cache: bool, gpu: bool, **given: Any) -> None:
    """Show what this machine can do, what a scan here would use, and why."""
    if gpu:
        _show_chain(**given)
    from .console import findings_text
    from .doctor import emptied, examine

    findings = emptied(given["cache_dir"]) if empty_cache else examine(**given)
    if as_json:
        click.echo(json.dumps([asdict(finding) for finding in findings], indent=2))
    else:
        click.echo(findings_text(findings))
    sys.exit(0 if all(finding.ok for finding in findings) else 1)


def _show_chain(device: str, model: Path | None, **given: Any) -> NoReturn:
    """Run the steps of a GPU's chain, telling of each as it ends, and print the report."""
    from ...export.choice import listed_gpus
    from ..settings import check_device
    from .console import tell
    from .gpu_chain import FAILS, report, run_chain

    check_device(device)
    device = (listed_gpus(device) or ("cuda:0",))[0]
    steps = []
    for step in run_chain(device, model, **given):
        steps.append(step)
        tell(f"{step.name}: {step.outcome} ({step.seconds:.1f} s): {step.found}")
    click.echo(json.dumps(report(device, model, steps), indent=2))
    sys.exit(1 if any(step.outcome == FAILS for step in steps) else 0)


@main.command(epilog=DEMO)
@_WHICH_MODEL
@click.option(
    "--images",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Images to measure with; default: synthetic ones.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the figures as one JSON object.")
@config_option("tune")
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


@main.command("export")
@click.argument("results", type=PATH, metavar="RESULTS")
@click.argument("out", type=PATH, metavar="OUT")
def export_results(results: Path, out: Path) -> None:
    """Write the RESULTS of a scan as a table to OUT: .csv, .xlsx or .json, by its extension.

    All columns, with `path` (the plain path) behind `uri` and `sha256` in hexadecimal. In .csv and .xlsx,
    times are in UTC, threats are joined by ;, and no text can be taken for a formula (in .csv an apostrophe
    stands before it). Programs that read Parquet need no export. An .xlsx needs the excel extra.

    \b
    gbad-batch export results.parquet results.csv
    gbad-batch export results.parquet results.xlsx
    """
    from ..tables import export
    from ..text import counted

    click.echo(f"{out}: {counted(export(results, out), 'row')}")


@main.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print a script with which a shell completes commands, options, paths, decisions and statuses.

    \b
    gbad-batch completion bash > ~/.local/share/bash-completion/completions/gbad-batch
    gbad-batch completion zsh > ~/.zfunc/_gbad-batch           where ~/.zfunc is in $fpath
    gbad-batch completion fish > ~/.config/fish/completions/gbad-batch.fish
    """
    from click.shell_completion import get_completion_class

    script = get_completion_class(shell)
    assert script is not None
    click.echo(script(main, {}, "gbad-batch", "_GBAD_BATCH_COMPLETE").source())


@main.command(epilog=DEMO)
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@click.option(
    "--out",
    type=PATH,
    required=True,
    metavar="DIR",
    help="New or empty folder for the overlays and regions.json.",
)
@setting_option("model", type=PATH, metavar="BUNDLE")
def explain(images: tuple[str, ...], out: Path, model: Path | None) -> None:
    """Show where the model sees each class in IMAGE...: files, folders or tars.

    DIR gets a picture of each image with the heat of its most probable class over it, and regions.json:
    probability and hottest place of each class, and the regions where a class reaches its threshold, in
    pixels. The heat is exact: it is the map whose strongest place is the class's score. The model must have
    a class map.

    \b
    gbad-batch explain bag.png --model my-bundle --out looked/
    gbad-batch explain /archive/2026-03 --model my-bundle --out looked/

    \b
    Exit code: 0 done; 3 done, but some images could not be read; 2 refused.
    """
    from ..text import counted
    from .explaining import explain_into

    found = explain_into(images, out, model)
    failed = sum(entry["status"] != "ok" for entry in found)
    unreadable = f", {failed} of them unreadable" if failed else ""
    click.echo(f"{counted(len(found), 'image')}{unreadable}: overlays and regions.json in {out}")
    sys.exit(3 if failed else 0)


for command in (
    decide,
    rescore,
    diff,
    drift,
    calibrate,
    bags,
    merge,
    pack,
    sign,
    verify,
    train,
    adapt,
    quantize,
    typicality,
    evaluate,
    data,
):
    main.add_command(command)
