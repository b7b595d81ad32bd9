"""What the soak scans: a small bundle and a small archive of every kind, and the rows that it must give."""

import io
import os
import sys
import tarfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from gbad_batch.engine.bundle import write_bundle
from gbad_batch.engine.system.durable import remove

from ...report import ROOT
from .commands import VICTIM, Ended, Running
from .tally import Tally

FORMS = ("jpeg", "png", "tiff", "bmp", "webp")
DAYS, FILES, MEMBERS = 6, 60, 40
SIDE = 48  # pixels
Rows = tuple[tuple[str, str], ...]  # (uri below the archive, all columns) of each, in order
ALL_ROWS = 3  # the exit code of a scan of this archive: some of its files are bad


@dataclass(frozen=True)
class Place:
    """Where a soak works, and what a scan of its archive gives when it is left alone."""

    root: Path
    archive: Path
    scratch: Path  # of the round
    wanted: Rows = ()
    seconds: float = 0.0  # of an undisturbed scan, start-up included

    @classmethod
    def bare(cls, root: Path) -> "Place":
        """Write the bundle alone below `root`."""
        remove(root)
        root.mkdir(parents=True)
        write_tiny_bundle(root / "tiny")
        return cls(root, root / "archive", root)

    @classmethod
    def prepare(cls, root: Path) -> "Place":
        """Write bundle and archive below `root`, and scan it undisturbed."""
        bare = cls.bare(root)
        write_archive(root / "archive")
        began = 0.0
        for _ in range(2):  # the first fills the cache
            remove(root / "plain.parquet")
            began = os.times().elapsed
            ended = Running(bare.words(bare.archive, root / "plain.parquet")).ended()
            if ended.code != ALL_ROWS:
                raise RuntimeError(f"the undisturbed scan ended with {ended.code}: {ended.said}")
        seconds = os.times().elapsed - began
        return cls(root, root / "archive", root, rows_in(root / "plain.parquet", root / "archive"), seconds)

    @contextmanager
    def round(self, name: str) -> "Iterator[Place]":
        """Lend this place with a scratch folder of its own, which goes with the round."""
        scratch = self.root / "rounds" / name
        remove(scratch)
        scratch.mkdir(parents=True)
        try:
            yield replace(self, scratch=scratch)
        finally:
            remove(scratch)

    def words(self, source: Path, out: Path, *more: str | Path) -> list[str]:
        """Give the words of the command that scans `source`."""
        words = [*VICTIM, "scan", source, "--out", out, "--model", self.root / "tiny"]
        words += ["--cache-dir", self.root / "cache", "--device", "cpu", "--precision", "fp32"]
        return list(map(str, [*words, "--threads", "2", "--quiet", *more]))

    def finish(self, out: Path, tally: Tally, *, step: str, seed: int) -> None:
        """Run the same command until it is done, and compare the rows with the undisturbed scan's."""
        words = self.words(self.archive, out)
        ended: Ended | None = None
        if not out.exists() or Path(f"{out}.parts").exists():
            ended = Running(words).ended()
            done = ALL_ROWS, 0
            refused = ended.code == 2 and out.exists()  # it was finished, but not tidied up
            if not refused and not ended.judge(tally, codes=done, step=step, seed=seed):
                return
        compare(rows_in(out, self.archive), self.wanted, tally, step=step, seed=seed)


def rows_in(out: Path, archive: Path) -> Rows:
    """Read the rows of a result in order, all columns but `scanned_at`; uris begin at the archive."""
    rows = []
    for row in pq.read_table(out).drop_columns("scanned_at").to_pylist():
        row["uri"] = row["uri"].removeprefix(f"{archive}/")
        rows.append((row["uri"], repr(sorted(row.items()))))
    return tuple(rows)


def compare(found: Rows, wanted: Rows, tally: Tally, *, step: str, seed: int) -> None:
    """Count rows that are lost, doubled, out of order, or changed."""
    tally.counts["results compared"] += 1
    if found == wanted:
        return
    uris, wanted_uris = (Counter(uri for uri, _ in rows) for rows in (found, wanted))
    for kind, differing in (("rows_lost", wanted_uris - uris), ("rows_doubled", uris - wanted_uris)):
        for uri in differing.elements():
            tally.find(kind, uri, step=step, seed=seed)
    if uris == wanted_uris:
        before = dict(wanted)
        changed = [f"{text} instead of {before[uri]}" for uri, text in found if before[uri] != text]
        for text in changed:
            tally.find("rows_changed", text, step=step, seed=seed)
        if not changed:
            tally.find("files_out_of_order", "all rows, in another order", step=step, seed=seed)


def write_tiny_bundle(folder: Path) -> None:
    """Write the bundle that tests use: real in every part, its networks a few convolutions."""
    sys.path.insert(0, str(ROOT / "tests"))
    tiny = import_module("tiny_bundle")
    sys.path.remove(str(ROOT / "tests"))
    write_bundle(folder, tiny.manifest(), tiny.files())


def write_archive(root: Path) -> None:
    """Write folders, tars and bad files; the same bytes each time."""
    rng = np.random.default_rng(0)
    for day in range(DAYS):
        folder = root / f"day{day}"
        folder.mkdir(parents=True)
        for number in range(FILES):
            form = FORMS[number % len(FORMS)]
            (folder / f"{number:03}.{form}").write_bytes(picture(rng, form))
    modes: tuple[tuple[str, Literal["w", "w:gz"]], ...] = (("lane.tar", "w"), ("lane.tar.gz", "w:gz"))
    for name, mode in modes:
        with tarfile.open(root / name, mode) as tar:
            for number in range(MEMBERS):
                data = picture(rng, FORMS[number % len(FORMS)])
                member = tarfile.TarInfo(f"bag{number:03}.{FORMS[number % len(FORMS)]}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    (root / "empty.jpg").write_bytes(b"")
    (root / "text.png").write_bytes(b"no picture")
    (root / "cut.jpeg").write_bytes(picture(rng, "jpeg")[:700])
    for path in sorted(root.rglob("*")):
        os.utime(path, (1_750_000_000, 1_750_000_000))


def picture(rng: np.random.Generator, form: str) -> bytes:
    """Encode smooth random colours of SIDE x SIDE pixels."""
    coarse = rng.integers(0, 256, (6, 6, 3), np.uint8)
    out = io.BytesIO()
    Image.fromarray(coarse).resize((SIDE, SIDE), Image.Resampling.BILINEAR).save(out, form)
    return out.getvalue()
