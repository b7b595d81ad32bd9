"""The commands around scans of large archives: merge, pack."""

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..text import counted, escaped
from .options import DEMO, complete_path, setting_option

if TYPE_CHECKING:
    from ..results.merging import Merged
    from ..webdataset import Packing

PATH = click.Path(path_type=Path)


@click.command(epilog=DEMO)
@click.argument("parts", nargs=-1, required=True, metavar="PARTS...", shell_complete=complete_path)
@setting_option("out", required=True, metavar="FILE", help="New results, of all shards.")
@setting_option("overwrite", help="Replace what stands at --out.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as one JSON object.")
def merge(as_json: bool, **given: Any) -> None:
    """Join the finished results of all shards of a scan: PARTS..., in any order.

    Each part is the --out of a scan with --shard I/N: a file, or an address such as s3://bucket/name, whose
    last part may be a pattern in quotes. The rows of --out stand in the order of the sources, and its footer
    is that of a scan of the whole, so that decide, diff, report and scan --update take it. Refused if a shard
    is missing, given twice, unfinished, or of a scan with other settings. Features that were stored stay in
    the folders of the shards.

    \b
    gbad-batch scan /archive --shard 0/2 --out part-0.parquet      on one machine
    gbad-batch scan /archive --shard 1/2 --out part-1.parquet      on another
    gbad-batch merge part-*.parquet --out results.parquet
    """
    from ..results.merging import MergeSettings
    from ..results.merging import merge as join

    merged = join(MergeSettings(**given))
    click.echo(json.dumps(merged.to_json(), indent=2) if as_json else _merged_text(merged))


def _merged_text(merged: "Merged") -> str:
    """Format the figures of `merge` for a person."""
    lines = [f"{counted(merged.rows, 'row')} of {counted(merged.shards, 'shard')}"]
    lines += [f"  {note}" for note in merged.notes]
    return "\n".join([*lines, "", f"Results: {escaped(merged.out)}"])


@click.command(epilog=DEMO)
@click.argument("folder", metavar="DIR", shell_complete=complete_path)
@setting_option("out", required=True, metavar="SHARDS/", help="New folder for the shards.")
@click.option(
    "--shard-size",
    type=int,
    default=1_000_000_000,
    show_default=True,
    metavar="BYTES",
    help="Size that a shard does not exceed, unless one file alone does.",
)
@setting_option("include", multiple=True, metavar="PATTERN", help="Pack only files that match.")
@setting_option("exclude", multiple=True, metavar="PATTERN")
@setting_option("follow_links")
@setting_option("hidden")
@click.option("--quiet", is_flag=True, help="Print warnings and errors only.")
@click.option("--json", "as_json", is_flag=True, help="Print the figures as one JSON object.")
def pack(quiet: bool, as_json: bool, **given: Any) -> None:
    """Pack the images in DIR, and in the tars in it, into WebDataset shards: SHARDS/shard-000000.tar etc.

    DIR may be an address such as s3://bucket/path.

    Small files on a network disk or in an object store are read slowly, one request for each; shards are
    read in large pieces. They hold what a scan of DIR would list, in its order, byte by byte, with names and
    times: a scan of SHARDS gives the same rows, but for uri and offset. They appear once all are complete; a
    run that was killed is resumed by the same command. SHARDS/pack.json lists them, SHARDS/not-packed.jsonl
    the files that could not be read.

    \b
    gbad-batch pack /archive --out shards/
    gbad-batch scan shards --out results.parquet

    \b
    Exit code: 0 done; 3 done, but some files could not be read; 2 refused before the first image;
    1 stopped by the machine, 130 or 143 interrupted: run it again to resume.
    """
    from ..webdataset import PackSettings
    from ..webdataset import pack as pack_into
    from .console import counting_bar

    with counting_bar("pack", quiet) as watch:
        packing = pack_into(PackSettings(**given), watch)
    if as_json or not quiet:
        figures = asdict(packing) | {"exit_code": packing.exit_code}
        click.echo(json.dumps(figures, indent=2) if as_json else _packing_text(packing))
    sys.exit(packing.exit_code)


def _packing_text(packing: "Packing") -> str:
    """Format the figures of `pack` for a person."""
    size = f"{packing.bytes / 1e9:.3f} GB"
    lines = [f"{counted(packing.images, 'image')} in {counted(packing.shards, 'shard')}, {size}"]
    if packing.resumed:
        lines.append(f"  {packing.resumed:>10} packed by an earlier run")
    if packing.duplicates:
        lines.append(f"  {packing.duplicates:>10} reached twice, packed once")
    lines += [f"  {number:>10} not packed: {status}" for status, number in packing.not_packed.items()]
    return "\n".join([*lines, "", f"Shards: {escaped(packing.out)}"])
