"""Stored features: a folder of files, one for each part of the rows, never merged."""

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import Refused
from ..row import THREATS
from ..system.durable import make_folder, read_whole, remove, write_whole
from .form import has_form
from .index import Index
from .parts import PartFolder, keys_in, read_parquet, write_parquet
from .schema import (
    COMMON_METADATA,
    KEY_COLUMNS,
    columns_of,
    features_schema,
    features_to_batch,
    footer_metadata,
    read_footer,
)
from .staging import Staging

if TYPE_CHECKING:
    import pyarrow as pa

    from .schema import Floats

X_SIZE = 1024  # length of x, where nothing is said
HELD_ROWS = 1 << 14  # 32 MB; a part of the rows closes here where features are stored


class FeatureStore:
    """The features of one scan, float16, in `DIR.parts/data` until the scan finishes.

    A file is durable before the part of rows with its number: after a crash the rows decide, and files
    beyond their last part are removed. Methods raise OSError of the disk.
    """

    def __init__(self, folder: Path, x_size: int = X_SIZE):
        self._x_size = x_size
        self.staging = Staging(folder, is_folder=True)
        self._batches: list[pa.RecordBatch] = []
        self.held = 0  # rows not yet in a file

    def check(self, replace: bool) -> None:
        """Raise Refused, without creating anything, if the folder cannot hold the features."""
        target = self.staging.target
        self.staging.check_target()
        self.staging.check_replaceable()
        if read_footer(target) is not None and not replace:
            raise Refused(f"{target} holds the features of a finished scan: add --overwrite, or name another")

    def reserve(self, former_id: str | None) -> None:
        """Take the staging folder for a new scan, emptied of what the dropped scan `former_id` left there.

        Raises Refused if it holds another scan's features.
        """
        self.staging.enter()
        if not self.staging.is_empty:
            self._check_owner(former_id)
            self.staging.clear()

    def enter(self, scan_id: str) -> None:
        """Take the staging folder for this scan; raises Refused if it holds another scan's features."""
        self.staging.enter()
        if self.staging.is_empty:
            write_whole(self.staging.state, json.dumps({"scan_id": scan_id}).encode())
        self._check_owner(scan_id)

    def discard(self, scan_id: str) -> None:
        """Remove the unfinished features of a scan that is dropped."""
        if self.staging.exists:
            self.staging.enter()
            if self._scan_id() == scan_id:
                self.staging.clear()
            self.staging.leave()

    def open(self, last_part: int) -> None:
        """Match the files to the parts of rows; raises Refused if some are missing."""
        self._files = PartFolder(self.staging.data, "features")
        remove(self.staging.data / COMMON_METADATA)
        self._files.drop_after(last_part)
        if self._files.last < last_part:
            raise Refused(f"features of finished images are missing in {self.staging.folder}: add --restart")

    def import_finished(self) -> int:
        """Take over the files of the finished folder, as links; returns the number of the last."""
        remove(self.staging.data)
        make_folder(self.staging.data)
        for part in PartFolder(self.staging.target, "features").parts:
            _link(part.path, self.staging.data / part.path.name)
        return PartFolder(self.staging.data, "features").last

    def add(self, keys: "pa.RecordBatch", x: "Floats", logits: "Floats") -> None:
        """Hold the features of rows: their key columns, x [n, k], logits [n, 5]."""
        if keys.num_rows:
            self._batches.append(features_to_batch(keys, x, logits))
            self.held += keys.num_rows

    def flush(self) -> None:
        """Write the features held as the next file, durably, even if there are none."""
        self._files.append(features_schema(self._x_size, len(THREATS)), self._batches)
        self._batches, self.held = [], 0

    def drop_stale(self, index: Index, keep_gone: bool) -> int:
        """Rewrite files that hold features of dropped rows; returns how many features remain.

        The newest features of a key count: an image that was scanned twice has two.
        """
        kept = 0
        for part in reversed(self._files.parts):
            keys = (
                key for batch in read_parquet(part.path, columns_of(*KEY_COLUMNS)) for key in keys_in(batch)
            )
            keep = index.take_features(keys, keep_gone)
            self._files.mask(part, keep)
            kept += int(keep.sum())
        return kept

    def seal(self, footer: dict[str, Any]) -> None:
        """Write the folder's own description, so that it can take its place."""
        write_common_metadata(self.staging.data, features_schema(self._x_size, len(THREATS)), footer)

    def install(self, scan_id: str, replace: bool) -> Iterator[str]:
        """Put the sealed folder in its place and clean up; also after a crash, from wherever it stopped.

        Yields the name of each step done; raises Stopped if something else is there.
        """
        sealed = read_footer(self.staging.data)
        if sealed and sealed["scan_id"] == scan_id:
            for step in self.staging.install_data(replace):
                yield f"features-{step}"
        self.staging.remove()

    def _check_owner(self, scan_id: str | None) -> None:
        if scan_id is None or self._scan_id() != scan_id:
            raise Refused(f"{self.staging.folder} holds the features of another unfinished scan: remove it")

    def _scan_id(self) -> str | None:
        try:
            state = json.loads(read_whole(self.staging.state))
        except (FileNotFoundError, ValueError, RecursionError):
            return None
        return state["scan_id"] if has_form(state, {"scan_id": str}) else None


def write_common_metadata(folder: Path, schema: "pa.Schema", footer: dict[str, Any]) -> None:
    """Write the file that gives a folder of parts its schema and footer, durably; raises OSError."""
    write_parquet(folder / COMMON_METADATA, schema, (), footer_metadata(footer))


def _link(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:  # a file system without hard links
        shutil.copy2(source, target)
