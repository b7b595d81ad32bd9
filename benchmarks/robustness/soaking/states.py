"""Mutants of what a scan reads beside images: bundles, cache, outputs, configurations."""

import hashlib
import json
import logging
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
from click.testing import CliRunner

from gbad_batch.engine.bundle import Bundle
from gbad_batch.engine.commands.cli import main
from gbad_batch.engine.errors import GbadError
from gbad_batch.engine.results import open_results
from gbad_batch.engine.results.index import key_of
from gbad_batch.engine.results.schema import results_schema, to_batch
from gbad_batch.engine.row import Row
from gbad_batch.engine.runtime.cache import ENGINE, EngineCache, cache_key
from gbad_batch.engine.settings import ScanSettings
from gbad_batch.engine.system.durable import remove

from .mutating import mutated
from .place import write_tiny_bundle
from .tally import Tally

ROWS, PARTS = 30, 3
FINGERPRINT = {"model": "m"}
CONFIG = """[scan]
device = "cpu"
threads = 2
pfa = 0.05
include = ["*.jpg", "*.png"]
max-file-size = 1000000
decode-timeout = 30.0
hidden = false
"""
WORDS = (
    "1e400",
    "nan",
    "-1",
    "9" * 10_000,
    "[" * 3000,
    "{a = 1}",
    '"x"',
    "true",
    "1979-05-27",
    "0x1F",
    '"\\u0000"',
    "[[]]",
)
ODD: tuple[Any, ...] = (None, True, -1, 0, 2**70, 1.5, "", "x", [], {}, [[[]]], "é" * 1000, [None], {"a": {}})


class StateMutants:
    """Makes mutants by number; each must open, or be refused in one sentence."""

    counted = "state_mutants"

    def __init__(self, seed: int, folder: Path):
        self._seed, self._folder = seed, folder
        logging.disable(logging.CRITICAL)
        self._sound = folder / "sound"
        remove(self._sound)
        self._sound.mkdir(parents=True)
        write_tiny_bundle(self._sound / "bundle")
        _write_unfinished(self._sound / "rows.parquet")
        shutil.copytree(self._sound / "rows.parquet.parts", self._sound / "finished.parquet.parts")
        with _opened(self._sound / "finished.parquet") as session:
            _finish(session)
        cache = EngineCache.open(self._sound / "cache")
        assert cache is not None
        cache.store(cache_key({"a": 1}), bytes(3000), {"backend": "openvino", "reason": "x"})
        cache.close()

    def __call__(self, number: int, tally: Tally) -> None:
        """Open one mutant."""
        luck = random.Random(f"{self._seed}/{number}")
        kind, look = luck.choice(list(LOOKS.items()))
        tally.counts["state_mutants"] += 1
        tally.counts[f"mutants of {kind}"] += 1
        own = self._folder / "own"
        remove(own)
        own.mkdir()
        try:
            look(luck, self._sound, own)
        except GbadError as error:
            tally.counts[f"{kind}: refused"] += 1
            said = str(error)
            if not said or len(said) > 3000 or "\n" in said.strip():
                tally.find(
                    "unhandled", f"not a sentence: {said[:500]!r}", seed=self._seed, number=number, of=kind
                )
        except Exception as error:  # noqa: BLE001 - whatever it is, it should have been a sentence
            trace = _innermost(error)
            tally.find("unhandled", f"{error!r} at {trace}", seed=self._seed, number=number, of=kind)
        else:
            tally.counts[f"{kind}: opened"] += 1


def _innermost(error: BaseException) -> str:
    """Name the last of our lines that an error passed."""
    at, trace = "nowhere", error.__traceback__
    while trace is not None:
        name = trace.tb_frame.f_code.co_filename
        if "/engine/" in name:
            at = f"{name.rpartition('/engine/')[2]}:{trace.tb_lineno}"
        trace = trace.tb_next
    return at


# --- bundles


def _bundle(luck: random.Random, sound: Path, own: Path) -> None:
    """Change a file of a bundle, mostly with its record right, or a field of bundle.json."""
    folder = own / "bundle"
    shutil.copytree(sound / "bundle", folder)
    manifest = json.loads((folder / "bundle.json").read_bytes())
    what = luck.randrange(4)
    if what == 0:
        manifest = _odd(luck, manifest)
    elif what == 1:
        _change(luck, folder / "bundle.json")
        Bundle.read(folder)
        return
    else:
        name = luck.choice(sorted(manifest["files"]))
        _change(luck, folder / name)
        data = (folder / name).read_bytes()
        manifest["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (folder / "bundle.json").write_text(json.dumps(manifest))
    bundle = Bundle.read(folder)
    bundle.gate()
    bundle.tensors()


# --- the cache


def _cache(luck: random.Random, sound: Path, own: Path) -> None:
    """Change the entry of a cache, mostly its record: it is read, or is as if it were not there."""
    shutil.copytree(sound / "cache", own / "cache")
    (own / "cache").chmod(0o700)
    (entry,) = [path for path in (own / "cache").iterdir() if path.suffix == f".{ENGINE}"]
    _change(luck, entry)
    cache = EngineCache.open(own / "cache", warn=False)
    assert cache is not None
    try:
        cache.load(cache_key({"a": 1}))
        cache.contents()
    finally:
        cache.close()


# --- outputs


def _unfinished(luck: random.Random, sound: Path, own: Path) -> None:
    """Change a file of an unfinished output, or its state's fields, and go on with the scan."""
    staging = own / "rows.parquet.parts"
    shutil.copytree(sound / staging.name, staging)
    file = luck.choice(sorted(path for path in staging.rglob("*") if path.is_file() and path.name != "lock"))
    what = luck.randrange(8)
    if file.name == "scan.json" and what < 6:
        file.write_text(json.dumps(_odd(luck, json.loads(file.read_bytes()))))
    elif what == 7:
        (staging / luck.choice(("suspects", "in_flight-1", "data/part-00000009.parquet"))).write_bytes(
            luck.randbytes(40)
        )
    elif what == 6:
        _foreign(luck, staging / "data" / "part-00000002.parquet")
    else:
        _change(luck, file)
    with _opened(own / "rows.parquet") as session:
        _finish(session)


def _finished(luck: random.Random, sound: Path, own: Path) -> None:
    """Change a finished result, and ask for some of its images again."""
    out = own / "finished.parquet"
    shutil.copy(sound / out.name, out)
    if luck.random() < 0.2:
        _foreign(luck, out)
    else:
        _change(luck, out)
    with _opened(out, retry=frozenset({"failed"})) as session:
        if session.finished is None:
            _finish(session)


def _foreign(luck: random.Random, path: Path) -> None:
    """Write a Parquet file of another schema."""
    import pyarrow.parquet as pq

    columns = luck.choice(
        (
            {"x": [1]},
            {"uri": [1], "bytes": ["a"], "mtime": [1], "offset": [None], "status": [0]},
            {"uri": ["a"]},
            {},
        )
    )
    footer = luck.choice(
        (b"{}", b"[]", b"null", b'{"scan_id": 1}', b"x", b'{"scan_id": "a", "rows": "b", "runs": 3}')
    )
    table = pa.table(columns).replace_schema_metadata({b"gbad_batch": footer})
    pq.write_table(table, path)


def _opened(out: Path, retry: frozenset[str] = frozenset()) -> Any:
    settings = ScanSettings(sources=("/archive",), out=str(out), retry=retry)
    return open_results(settings, FINGERPRINT, {"model": "m"})


def _rows() -> list[Row]:
    return [
        Row(
            f"/archive/{n}.jpg",
            bytes=n,
            mtime=n,
            status="ok" if n % 3 else "empty",
            error=None if n % 3 else "no",
        )
        for n in range(ROWS)
    ]


def _write_unfinished(out: Path) -> None:
    """Write the first parts of a scan that stops."""
    rows = _rows()
    with _opened(out) as session:
        for part in range(PARTS):
            mine = rows[part * 8 : part * 8 + 8]
            for row in mine:
                session.index.claim(key_of(row), row.kind)
            session.write(to_batch(mine, results_schema()))
            session.flush()


def _finish(session: Any) -> None:
    """List everything, write the rows that are missing, and finish."""
    new = [row for row in _rows() if session.index.claim(key_of(row), row.kind) == "new"]
    if new:
        session.write(to_batch(new, results_schema()))
    session.finish()


# --- configurations


def _config(luck: random.Random, _sound: Path, own: Path) -> None:
    """Change a configuration: values of other types, huge numbers, deep nesting, or any bytes."""
    lines, file = CONFIG.splitlines(), own / "scan.toml"
    what = luck.randrange(4)
    if what < 3:
        at = luck.randrange(1, len(lines))
        key = lines[at].partition(" =")[0]
        lines[at] = f"{key} = {luck.choice(WORDS)}"
    if what == 2:
        lines.insert(
            luck.randrange(len(lines)),
            luck.choice(("[[scan]]", "[scan.x]", "[x]", "scan = 1", "a.b = 1", "=")),
        )
    file.write_text("\n".join(lines), encoding="utf-8")
    if what == 3:
        _change(luck, file)
    (own / "a.jpg").write_bytes(b"x")
    ended = CliRunner().invoke(main, ["scan", str(own / "a.jpg"), "--dry-run", "--config", str(file)])
    if ended.exception is not None and not isinstance(ended.exception, SystemExit):
        raise ended.exception
    if ended.exit_code not in (0, 2):
        raise RuntimeError(f"exit code {ended.exit_code}: {ended.output[-300:]}")


# --- ways to change


def _change(luck: random.Random, path: Path) -> None:
    path.write_bytes(mutated(luck, path.read_bytes(), "any"))


def _odd(luck: random.Random, content: Any) -> Any:
    """Put an odd value somewhere into what JSON holds, or leave a field out."""
    if luck.random() < 0.25 or not isinstance(content, dict | list) or not content:
        return luck.choice(ODD)
    where = luck.choice(list(content)) if isinstance(content, dict) else luck.randrange(len(content))
    if luck.random() < 0.15:
        del content[where]
    else:
        content[where] = _odd(luck, content[where])
    return content


LOOKS: dict[str, Callable[[random.Random, Path, Path], None]] = {
    "bundle": _bundle,
    "cache": _cache,
    "unfinished": _unfinished,
    "finished": _finished,
    "config": _config,
}
