"""Files that grow, shrink, vanish and are exchanged while they are scanned; the others must not suffer."""

import os
import random
import shutil
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from .commands import Running
from .place import ALL_ROWS, Place, compare, rows_in
from .tally import Tally

CHANGES = 60


def moving_files(place: Place, seed: int) -> Tally:
    """Change files of a copy of the archive during its scan, and compare the rows of those left alone."""
    luck, tally = random.Random(seed), Tally()
    folder = place.scratch / f"moving-{seed}"
    archive, out = folder / "archive", folder / "rows.parquet"
    shutil.copytree(place.archive, archive)
    files = sorted(path for path in archive.rglob("*") if path.is_file())
    running = Running(place.words(archive, out))
    time.sleep(place.seconds * luck.uniform(0.1, 0.6))
    touched: set[str] = set()
    for path in luck.sample(files, CHANGES):
        if running.poll():
            break
        touched.add(str(path.relative_to(archive)))
        with suppress(OSError):  # gone with its folder
            luck.choice(WAYS)(path, luck)
            tally.counts["files moved"] += 1
        time.sleep(luck.uniform(0, 0.01))
    running.ended().judge(tally, codes=(0, 1, ALL_ROWS), step="moving_files", seed=seed)
    if out.exists():
        _compare(place, archive, out, touched, tally, seed)
    return tally


def _compare(place: Place, archive: Path, out: Path, touched: set[str], tally: Tally, seed: int) -> None:
    """Compare the rows of files that were left alone, and look for two rows of one."""
    rows = rows_in(out, archive)
    for uri, times in Counter(uri for uri, _ in rows).items():
        if times > 1:
            tally.find("rows_doubled", f"{times} rows of {uri}", step="moving_files", seed=seed)
    new = {f"{path}/inside.jpg" for path in touched} | {f"{Path(path).parent}/new" for path in touched}
    left_out = touched | new
    alone, wanted = (
        tuple(row for row in either if row[0].partition("!")[0] not in left_out)
        for either in (rows, place.wanted)
    )
    compare(alone, wanted, tally, step="moving_files", seed=seed)


def _grow(path: Path, luck: random.Random) -> None:
    with path.open("ab") as file:
        file.write(luck.randbytes(luck.choice((1, 1000, 100_000))))


def _shrink(path: Path, luck: random.Random) -> None:
    os.truncate(path, luck.randrange(path.stat().st_size + 1))


def _vanish(path: Path, _luck: random.Random) -> None:
    path.unlink()


def _become_link(path: Path, luck: random.Random) -> None:
    path.unlink()
    path.symlink_to(luck.choice(("/etc/passwd", "nowhere", path.name, "..")))


def _become_folder(path: Path, _luck: random.Random) -> None:
    path.unlink()
    path.mkdir()
    (path / "inside.jpg").write_bytes(b"x")


def _become_fifo(path: Path, _luck: random.Random) -> None:
    path.unlink()
    os.mkfifo(path)


def _become_other(path: Path, luck: random.Random) -> None:
    other = path.with_name("new")
    other.write_bytes(luck.randbytes(500))
    other.rename(path)


WAYS: tuple[Callable[[Path, random.Random], None], ...] = (
    _grow,
    _shrink,
    _vanish,
    _become_link,
    _become_folder,
    _become_fifo,
    _become_other,
)
