"""A result computed from a finished one, batch by batch: it is written whole, or not at all."""

import os
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import Refused
from ..settings import StrPath
from ..system.durable import TEMPORARY, make_folder
from .features import write_common_metadata
from .parts import ROW_GROUP, files_of, read_parquet, write_parquet
from .remote_staging import staging_for
from .schema import footer_metadata, results_schema
from .staging import Staging

if TYPE_CHECKING:
    import pyarrow as pa

    Change = Callable[[pa.RecordBatch], pa.RecordBatch]
    Batches = Generator[pa.RecordBatch, None, None]

Footer = Callable[[], dict[str, Any]]  # called once all rows are written


@dataclass(frozen=True)
class Derivation:
    """A finished result of `rows` rows, and the output, of the same form, that is computed from it."""

    source: Path
    rows: int
    out: StrPath
    overwrite: bool

    def write(self, change: "Change", footer: Footer) -> None:
        """Write each batch of the source as `change` returns it, then the footer.

        The output gets its name once it is durable, and may replace a source that is a file. Raises Refused,
        and leaves nothing, if the source is damaged or the output cannot be written.
        """
        self.check()
        with new_output(self.out, self.overwrite) as staging:
            rows = _Counted(change)
            if staging.is_folder:
                self._write_folder(staging, rows, footer)
            else:
                write_file(staging, results_schema(), read_ahead(self._whole(rows)), footer, self.overwrite)

    def check(self) -> None:
        """Raise Refused unless both are files, or different folders, and the output may be written."""
        is_folder = os.fspath(self.out).endswith("/")
        if is_folder and not self.source.is_dir():
            raise Refused(f"{self.source} is a file: name a file as the output, without a slash at its end")
        if self.source.is_dir() and not is_folder:
            raise Refused(f"{self.source} is a folder: name a folder as the output, with a slash at its end")
        if is_folder and (out := Path(self.out)).exists() and out.samefile(self.source):
            raise Refused(f"{self.source} is a folder and cannot replace itself: name another output")
        with told(self.out):
            _checked(self.out, self.overwrite)

    def _write_folder(self, staging: Staging, rows: "_Counted", footer: Footer) -> None:
        make_folder(staging.data)
        for part in files_of(self.source):
            write_parquet(staging.data / part.name, results_schema(), read_ahead(rows.of(part)))
        self._check_rows(rows.count)
        write_common_metadata(staging.data, results_schema(), footer())
        for _ in staging.install_data(self.overwrite):
            pass
        staging.remove()

    def _whole(self, rows: "_Counted") -> "Batches":
        yield from rows.of(self.source)
        self._check_rows(rows.count)

    def _check_rows(self, count: int) -> None:
        if count != self.rows:
            raise Refused(
                f"{self.source} holds {count} rows, not the {self.rows} of its footer: scan its images again"
            )


class _Counted:
    """Changes the batches of files, and counts their rows."""

    def __init__(self, change: "Change"):
        self.count = 0
        self._change = change

    def of(self, file: Path) -> "Batches":
        for batch in read_parquet(file, results_schema(), ROW_GROUP):
            self.count += batch.num_rows
            yield self._change(batch)


def read_ahead(batches: "Batches") -> "Iterator[pa.RecordBatch]":
    """Yield batches that another thread makes, one ahead: while one core writes, another reads."""
    with closing(batches), ThreadPoolExecutor(1, thread_name_prefix="derive") as thread:
        coming = thread.submit(next, batches, None)
        while (batch := coming.result()) is not None:
            coming = thread.submit(next, batches, None)
            yield batch


@contextmanager
def new_output(out: StrPath, overwrite: bool) -> Iterator[Staging]:
    """Lend the private folder of a result, and leave nothing in it, whatever happens.

    Raises Refused if the output stands already, unless `overwrite`, or cannot be written.
    """
    with told(out), _entered(_checked(out, overwrite)) as staging:
        yield staging


@contextmanager
def told(out: StrPath) -> Iterator[None]:
    """Turn an OSError of the disk into a Refused that names the output."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else str(error)
        raise Refused(f"{out} cannot be written: {reason}; nothing was written") from error


def _checked(out: StrPath, overwrite: bool) -> Staging:
    """Return the private folder of a result, not yet made; raises Refused if the output stands already."""
    staging = staging_for(out)
    staging.check_target()
    staging.check_replaceable()
    target = staging.target
    if target.exists() and not overwrite and not (target.is_dir() and not any(target.iterdir())):
        raise Refused(f"{out} exists: name another output, or add --overwrite to replace it")
    return staging


def write_file(
    staging: Staging,
    schema: "pa.Schema",
    batches: "Iterable[pa.RecordBatch]",
    footer: Footer,
    overwrite: bool,
) -> None:
    """Write a result that is one file; it gets its name once it is durable. Raises OSError."""
    file = staging.folder / f"derived{TEMPORARY}"  # to a later scan, what a crash left
    metadata: dict[bytes, bytes] = {}

    def then_footer() -> "Iterator[pa.RecordBatch]":
        yield from batches
        metadata.update(footer_metadata(footer()))  # before the writer, now at the end, reads it

    write_parquet(file, schema, then_footer(), metadata)
    for _ in staging.install_file(file, overwrite):
        pass
    staging.remove()


@contextmanager
def _entered(staging: Staging) -> Iterator[Staging]:
    """Take the private folder of an output, and leave nothing in it."""
    staging.enter()
    try:
        if staging.state.exists():
            raise Refused(
                f"{staging.folder} holds an unfinished scan: resume it first, or name another output"
            )
        staging.clear()  # what a killed command left
        try:
            yield staging
        finally:
            if staging.lock.held:
                staging.clear()
    finally:
        staging.leave()
