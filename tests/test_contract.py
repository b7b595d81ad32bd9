"""The contract of a scan where one run of the command shows several of its sentences at once."""

import json
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import sysconfig
import tarfile
import time
import zlib
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
import pytest
import tiny_bundle as tiny
from in_process import run_here
from PIL import Image
from processes import PATIENCE_S
from terminal import on_a_terminal

from gbad_batch.engine import Scan, ScanSettings, Summary
from gbad_batch.engine.bundle import DEMO_SENTENCE, Bundle, operating_point, write_bundle
from gbad_batch.engine.errors import Refused, Stopped, TooManyFailures
from gbad_batch.engine.results.schema import COLUMNS, read_footer
from gbad_batch.engine.row import THREATS
from gbad_batch.engine.system.machine import usable_cores
from gbad_batch.export import nvidia_gpus

COMMAND = str(Path(sys.executable).with_name("gbad-batch"))
NOBODY = 65_534
Rows = list[dict[str, Any]]


def picture(seed: int) -> Image.Image:
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), np.uint8)
    return Image.fromarray(coarse).resize((50 + seed, 44), Image.Resampling.BICUBIC)


def fill(root: Path, count: int = 10) -> Path:
    """Write good images of four formats in two folders."""
    for i in range(count):
        folder = root / f"day{i % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        picture(i).save(folder / f"bag{i}.{('jpg', 'png', 'bmp', 'webp')[i % 4]}")
    return root


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    return fill(tmp_path / "archive")


def rows_of(out: Path) -> Rows:
    table = ds.dataset(out, format="parquet").to_table().drop_columns("scanned_at")
    return sorted(table.to_pylist(), key=lambda row: (row["uri"], row["offset"] or 0))


def run(*words: Any, program: Sequence[str] = (COMMAND,), **options: Any) -> tuple[int, str, str]:
    """Run the command; returns exit code, stdout, stderr."""
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, "timeout": 120, **options}
    ran = subprocess.run([*program, *map(str, words)], check=False, **options)
    return ran.returncode, ran.stdout or "", ran.stderr or ""


@pytest.fixture
def scan(tiny_bundle: Bundle, own_cache: Path) -> Any:
    """Scan in this process."""

    def start(*sources: Path, out: Path, **settings: Any) -> Summary:
        settings = {"model": tiny_bundle.path, "cache_dir": own_cache, **settings}
        return Scan(ScanSettings(sources=tuple(map(str, sources)), out=out, **settings)).run()

    return start


@pytest.fixture
def command(tiny_bundle: Bundle, own_cache: Path) -> Any:
    """Scan as a user does."""

    def start(*words: Any, **options: Any) -> tuple[int, str, str]:
        return run("scan", *words, "--model", tiny_bundle.path, "--cache-dir", own_cache, **options)

    return start


@pytest.fixture
def here(tiny_bundle: Bundle, own_cache: Path) -> Any:
    """Scan by the command in this process."""

    def start(*words: Any) -> tuple[int, str, str]:
        return run_here("scan", *words, "--model", tiny_bundle.path, "--cache-dir", own_cache)

    return start


# --- bad input, as a user that permissions hold for ----------------------------------------------------


@pytest.fixture
def as_another(open_folder: Path, tiny_bundle: Bundle) -> Any:
    """Run the command as a user that is not root, with a model and a cache of its own."""
    shutil.copytree(tiny_bundle.path, open_folder / "model")
    (open_folder / "cache").mkdir(mode=0o700)
    user: dict[str, Any] = {"cwd": "/"}
    if os.geteuid() == 0:
        os.chown(open_folder / "cache", NOBODY, NOBODY)
        user |= {"user": NOBODY, "group": NOBODY, "extra_groups": []}
    system = f"/usr/bin/python3.{sys.version_info.minor}"  # the environment's own may lie in root's home
    code = (
        "import site, sys; site.addsitedir(sys.argv.pop(1));"
        " from gbad_batch.engine.commands.cli import main; main()"
    )
    for program in ([COMMAND], [system, "-c", code, sysconfig.get_path("purelib")]):
        with suppress(OSError):
            if run("--version", program=program, **user)[0] == 0:
                break
    else:
        pytest.skip("another user may not run this interpreter, and the system has none like it")

    def start(*words: Any) -> tuple[int, str, str]:
        model = ("--model", open_folder / "model", "--cache-dir", open_folder / "cache")
        return run("scan", *words, *model, program=program, **user)

    return start


def png_header(width: int, height: int) -> bytes:
    """Write a PNG that announces many pixels and holds hardly any."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(1000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def plant_good(root: Path) -> None:
    fill(root)
    picture(20).convert("CMYK").save(root / "cmyk.jpg")
    deep = np.random.default_rng(0).integers(0, 65_536, (40, 60)).astype(np.uint16)
    Image.fromarray(deep).save(root / "deep.png")
    Image.fromarray(deep).save(root / "deep.tif")
    picture(21).save(os.fsdecode(os.fsencode(root) + b"/100% b\xe4g.png"), "PNG")
    with tarfile.open(root / "shard.tar", "w") as tar:
        for name in ("a.png", "inner.tar", "labels.zip", "b.png"):
            member = root / "day0" / "bag0.jpg" if name.startswith("a") else root / "deep.png"
            tar.add(member, name)


def plant_bad(root: Path) -> None:
    whole = (root / "day0" / "bag0.jpg").read_bytes()
    for i, share in enumerate((0.02, 0.3, 0.5, 0.8, 0.99)):
        (root / "day0" / f"cut{i}.jpg").write_bytes(whole[: int(len(whole) * share)])
    (root / "empty.jpg").touch()
    (root / "text.jpg").write_text("<html>not found</html>")
    (root / "huge.png").write_bytes(png_header(60_000, 60_000))
    (root / "labels.xml").touch()
    os.mkfifo(root / "pipe.jpg")
    shutil.copy(root / "deep.png", root / "secret.png")
    (root / "secret.png").chmod(0)
    shutil.copytree(root / "day1", root / "locked")
    (root / "locked").chmod(0)
    with tarfile.open(root / "shard.tar") as tar:
        last = tar.getmember("b.png")
    kept = (root / "shard.tar").stat()
    os.truncate(root / "shard.tar", last.offset_data + last.size // 2)
    os.utime(root / "shard.tar", ns=(kept.st_atime_ns, kept.st_mtime_ns))


def test_planted_bad_files_give_the_rows_and_counts_of_the_contract(
    open_folder: Path, as_another: Any
) -> None:
    root, results = open_folder / "archive", open_folder / "results"
    results.mkdir(mode=0o777)
    results.chmod(0o777)
    plant_good(root)
    code, _, stderr = as_another(root, "--out", results / "good.parquet", "--json")
    assert code == 0, stderr
    good = {row["uri"].removeprefix(f"{root}/"): row for row in rows_of(results / "good.parquet")}
    names = {"cmyk.jpg", "deep.png", "deep.tif", "100%25 b%E4g.png", "shard.tar!a.png", "shard.tar!b.png"}
    assert good.keys() > names
    assert len(good) == 16
    assert (good["cmyk.jpg"]["color"], good["deep.png"]["bit_depth"]) == ("cmyk", 16)
    assert (good["deep.tif"]["bit_depth"], good["deep.tif"]["format"]) == (16, "tiff")

    plant_bad(root)
    code, stdout, stderr = as_another(root, "--out", results / "bad.parquet", "--json")
    assert code == 3, stderr
    bad = {row["uri"].removeprefix(f"{root}/"): row for row in rows_of(results / "bad.parquet")}
    assert {name: (row["kind"], row["status"]) for name, row in bad.items() if row["status"] != "ok"} == {
        **{f"day0/cut{i}.jpg": ("image", "truncated") for i in range(5)},
        "empty.jpg": ("image", "empty"),
        "text.jpg": ("image", "not_an_image"),
        "huge.png": ("image", "too_large"),
        "secret.png": ("image", "unreadable"),
        "locked": ("container", "unlistable"),
        "shard.tar!b.png": ("image", "truncated"),
        "shard.tar": ("container", "archive_truncated"),
    }
    still_good = good.keys() - {"shard.tar!b.png"}
    assert {name: bad[name] for name in still_good} == {name: good[name] for name in still_good}
    assert all(row["error"] and row["anomaly_score"] is None for row in bad.values() if row["status"] != "ok")
    assert (bad["huge.png"]["width"], bad["huge.png"]["height"]) == (60_000, 60_000)
    summary = json.loads(stdout)
    assert (summary["images"], summary["ok"], summary["containers"]) == (25, 15, 2)
    assert summary["failed"] == {
        "truncated": 6, "empty": 1, "not_an_image": 1, "too_large": 1, "unreadable": 1, "unlistable": 1,
        "archive_truncated": 1,
    }  # fmt: skip
    assert summary["other_files"] == {"FIFO": 1, ".xml": 1, ".tar": 1, ".zip": 1}
    footer = read_footer(results / "bad.parquet")
    assert footer is not None
    assert (footer["rows"], footer["images"], footer["containers"]) == (27, 25, 2)
    assert "Traceback" not in stderr


def test_an_output_folder_that_this_user_may_not_write(open_folder: Path, as_another: Any) -> None:
    root = fill(open_folder / "archive", 2)
    (open_folder / "closed").mkdir(mode=0o555)
    code, stdout, stderr = as_another(root, "--out", open_folder / "closed" / "r.parquet")
    assert (code, stdout) == (2, "")
    assert f"the folder {open_folder}/closed cannot be written" in stderr
    assert stderr.count("\n") == 1
    assert list((open_folder / "closed").iterdir()) == []


def spoil_hash(bundle: Path) -> None:
    data = bytearray((bundle / "weights.safetensors").read_bytes())
    data[-1] ^= 1
    (bundle / "weights.safetensors").write_bytes(data)


def spoil_version(bundle: Path) -> None:
    manifest = json.loads((bundle / "bundle.json").read_text())
    (bundle / "bundle.json").write_text(json.dumps({**manifest, "format": 99}))


def spoil_link(bundle: Path) -> None:
    (bundle / "network.onnx").rename(bundle.parent / "network.onnx")
    (bundle / "network.onnx").symlink_to(bundle.parent / "network.onnx")


def spoil_size(bundle: Path) -> None:
    os.truncate(bundle / "gate.tar", 10**12)


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (spoil_hash, "weights.safetensors"),
        (spoil_version, "format"),
        (spoil_link, "network.onnx"),
        (spoil_size, "gate.tar"),
    ],
)
def test_a_spoilt_bundle_is_refused_in_a_sentence(
    archive: Path, tiny_bundle: Bundle, tmp_path: Path, spoil: Any, said: str
) -> None:
    shutil.copytree(tiny_bundle.path, tmp_path / "model")
    spoil(tmp_path / "model")
    code, stdout, stderr = run(
        "scan", archive, "--out", tmp_path / "r.parquet", "--model", tmp_path / "model"
    )
    assert (code, stdout, stderr.count("\n")) == (2, "", 1)
    assert said in stderr
    assert {path.name for path in tmp_path.iterdir()} <= {"archive", "model", "network.onnx"}


def test_a_full_disk_stops_the_scan_and_the_same_command_goes_on(
    command: Any, archive: Path, small_disk: Path
) -> None:
    out = small_disk / "r.parquet"
    (small_disk / "ballast").write_bytes(bytes(os.statvfs(small_disk).f_bavail * 4096 - 24_576))
    code, stdout, stderr = command(archive, "--out", out)
    assert (code, stdout) == (1, "")
    assert "No space left on device" in stderr
    assert "run the same command" in stderr
    assert "Traceback" not in stderr
    assert (small_disk / "r.parquet.parts").is_dir()
    (small_disk / "ballast").unlink()
    code, _, stderr = command(archive, "--out", out)
    assert code == 0, stderr
    assert len(rows_of(out)) == 10


OUT_OF_MEMORY = """
import os, resource, sys
from pathlib import Path
from gbad_batch.engine import Scan, ScanSettings
from gbad_batch.engine.errors import Stopped

def no_more(progress):
    # leave the worker 40 MB
    (worker,) = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
    if resource.prlimit(int(worker), resource.RLIMIT_AS)[0] == resource.RLIM_INFINITY:
        pages = int(Path(f"/proc/{worker}/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + 40_000_000
        resource.prlimit(int(worker), resource.RLIMIT_AS, (limit, resource.RLIM_INFINITY))

source, out, model, cache = sys.argv[1:]
scan = Scan(ScanSettings(sources=(source,), out=Path(out), model=Path(model), cache_dir=Path(cache),
                         batch_size=1, threads=1))
try:
    scan.run(no_more)
except Stopped as error:
    sys.exit(str(error))
"""


def test_a_machine_without_memory_stops_the_scan_and_makes_no_row(
    scan: Any, archive: Path, tiny_bundle: Bundle, own_cache: Path, tmp_path: Path
) -> None:
    for i in range(600):  # more than are dealt ahead
        (archive / f"copy{i}.bmp").hardlink_to(archive / "day0" / "bag2.bmp")
    Image.new("RGB", (6000, 6000)).save(archive / "z.jpg")  # 108 MB of pixels
    out = tmp_path / "r.parquet"
    words = [sys.executable, "-c", OUT_OF_MEMORY, archive, out, tiny_bundle.path, own_cache]
    ran = subprocess.run(list(map(str, words)), check=False, capture_output=True, text=True)
    assert ran.returncode == 1, ran.stderr
    assert "out of memory" in ran.stderr
    assert "Traceback" not in ran.stderr
    summary = scan(archive, out=out, batch_size=1)
    assert (summary.ok, summary.failed, summary.scanned_now < 611) == (611, {}, True)


# --- the same command again -----------------------------------------------------------------------------


def unfinished(scan: Any, source: Path, out: Path, **settings: Any) -> None:
    """Leave a scan that stopped at its last file, which holds no image."""
    (source / "zz.jpg").write_text("no image")
    with pytest.raises(TooManyFailures):
        scan(source, out=out, batch_size=1, max_failures="0", **settings)
    assert (out.parent / f"{out.name}.parts").is_dir()


def test_changed_and_gone_files_of_an_unfinished_scan(scan: Any, archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.parquet"
    unfinished(scan, archive, out)
    (archive / "day0" / "bag0.jpg").unlink()
    picture(30).save(archive / "day0" / "bag2.bmp")
    picture(31).save(archive / "day0" / "bag3.png")
    (archive / "zz.jpg").unlink()
    summary = scan(archive, out=out)
    assert (summary.images, summary.gone, summary.replaced, summary.scanned_now) == (10, 2, 1, 2)
    scan(archive, out=tmp_path / "anew.parquet")
    assert rows_of(out) == rows_of(tmp_path / "anew.parquet")


@pytest.fixture(scope="module")
def stopped(tiny_bundle: Bundle, own_cache: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Give the settings of one unfinished scan that no test here goes on with."""
    folder = tmp_path_factory.mktemp("stopped")
    root = fill(folder / "archive", 4)
    (root / "zz.jpg").write_text("no image")
    (folder / "list").write_text(f"{root}/day0/bag0.jpg\n")
    settings = {
        "sources": (str(root),), "out": folder / "r.parquet", "model": tiny_bundle.path,
        "cache_dir": own_cache, "batch_size": 1,
    }  # fmt: skip
    with pytest.raises(TooManyFailures):
        Scan(ScanSettings(**settings, max_failures="0")).run()
    write_bundle(folder / "other", {**tiny.manifest(), "name": "other"}, tiny.files())
    return settings


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("sources", ("{folder}/archive/day0",)),
        ("files_from", "{folder}/list"),
        ("include", ("*.jpg",)),
        ("exclude", ("*.jpg",)),
        ("hidden", True),
        ("follow_links", True),
        ("limit", 3),
        ("model", "{folder}/other"),
        ("decision", "classes"),
        ("pfa", 0.25),
        ("threshold", 1.5),
        ("max_pixels", 1000),
        ("max_file_size", 1000),
        ("decode_timeout", 7.0),
        ("features", "{folder}/features"),
    ],
)
def test_a_scan_of_another_fingerprint_names_the_field(
    stopped: dict[str, Any], field: str, value: Any
) -> None:
    folder = stopped["out"].parent
    if isinstance(value, str) and "{" in value:
        value = value.format(folder=folder)
        value = value if field == "files_from" else Path(value)
    elif field == "sources":
        value = tuple(v.format(folder=folder) for v in value)
    before = sorted(folder.rglob("*.parquet"))
    with pytest.raises(Refused, match=rf"differs in [a-z_, ]*\b{field}\b.*--restart"):
        Scan(ScanSettings(**{**stopped, field: value})).run()
    assert sorted(folder.rglob("*.parquet")) == before
    assert not (folder / "features").exists()


def test_what_must_not_matter_does_not(here: Any, scan: Any, archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.parquet"
    unfinished(scan, archive, out)
    settled = ("--device", "cpu", "--engine", "openvino", "--precision", "fp32")  # what auto resolved to
    quiet = ("--quiet", "--log-level", "debug", "--json")
    other = ("--batch-size", 3, "--threads", 1, "--hardware-share", 0.1)
    same = ("--decision", "gbad", "--pfa", "0.05")
    code, stdout, stderr = here(archive, "--out", out, *settled, *quiet, *other, *same)
    assert code == 3, stderr
    assert json.loads(stdout)["scanned_now"] == 0
    scan(archive, out=tmp_path / "anew.parquet")
    assert rows_of(out) == rows_of(tmp_path / "anew.parquet")


def test_the_content_of_a_list_does_not_matter(scan: Any, archive: Path, tmp_path: Path) -> None:
    names = sorted(map(str, archive.rglob("*.*")))
    (tmp_path / "list").write_text("\n".join([*names[:6], str(archive / "zz.jpg")]))
    (archive / "zz.jpg").touch()
    out, settings = tmp_path / "r.parquet", {"files_from": str(tmp_path / "list"), "batch_size": 1}
    with pytest.raises(TooManyFailures):
        scan(out=out, max_failures="0", **settings)
    (tmp_path / "list").write_text("\n".join(names[1:]))
    summary = scan(out=out, **settings)
    assert (summary.images, summary.scanned_now, summary.gone) == (9, 4, 2)


def test_restart_drops_what_an_unfinished_scan_has_done(
    here: Any, scan: Any, archive: Path, tmp_path: Path
) -> None:
    out = tmp_path / "r.parquet"
    unfinished(scan, archive, out)
    code, stdout, stderr = here(archive, "--out", out, "--json", "--limit", 3, "--restart")
    assert code == 0, stderr
    assert json.loads(stdout)["scanned_now"] == len(rows_of(out)) == 3
    assert not (tmp_path / "r.parquet.parts").exists()


def test_one_reason_is_scanned_again(here: Any, archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "r.parquet"
    (archive / "empty.jpg").touch()
    (archive / "text.jpg").write_text("no image")
    assert here(archive, "--out", out, "--quiet") == (3, "", "")
    picture(5).save(archive / "empty.jpg")
    code, stdout, _ = here(archive, "--out", out, "--retry", "empty", "--json")
    summary = json.loads(stdout)
    assert (code, summary["failed"]) == (3, {"not_an_image": 1})
    assert (summary["scanned_now"], summary["images"]) == (1, 12)


def test_too_many_failures_end_the_command_with_four(here: Any, archive: Path, tmp_path: Path) -> None:
    (archive / "a.jpg").touch()
    code, stdout, stderr = here(archive, "--out", tmp_path / "r.parquet", "--max-failures", 0)
    assert (code, stdout) == (4, "")
    assert "--max-failures 0" in stderr
    assert not (tmp_path / "r.parquet").exists()
    assert here(archive, "--out", tmp_path / "r.parquet", "--quiet") == (3, "", "")


# --- what is written ------------------------------------------------------------------------------------


def test_the_footer_says_what_the_rows_come_from(
    scan: Any, archive: Path, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    out = tmp_path / "r.parquet"
    unfinished(scan, archive, out)
    scan(archive, out=out)
    schema = pq.read_schema(out)
    assert schema.names == list(COLUMNS)
    assert all(field.metadata[b"description"] for field in schema)
    footer = read_footer(out) or {}
    assert (footer["schema"], footer["bundle"], footer["bundle_hash"]) == (4, "tiny", tiny_bundle.hash)
    assert (footer["backend"], footer["precision"], footer["device"]) == ("openvino", "fp32", "cpu")
    assert footer["operating_point"]["decision"] == "gbad"
    assert footer["operating_point"]["pfa"] == 0.05
    assert footer["use"] == DEMO_SENTENCE
    assert footer["fingerprint"].keys() == {
        "sources", "files_from", "include", "exclude", "hidden", "follow_links", "limit", "shard", "model",
        "engine", "precision", "decision", "pfa", "threshold", "point", "max_pixels", "max_file_size",
        "decode_timeout", "features", "schema",
    }  # fmt: skip
    assert (footer["rows"], footer["images"], footer["containers"]) == (11, 11, 0)
    first, second = footer["runs"]
    for one in (first, second):
        assert one["host"] == os.uname().nodename
        assert one["versions"].keys() >= {"gbad-batch", "openvino", "numpy", "pyarrow"}
        assert datetime.fromisoformat(one["start"]) <= datetime.fromisoformat(one["end"])
    assert first["end"] <= second["start"]


def test_a_folder_of_parts_and_features(here: Any, scan: Any, archive: Path, tmp_path: Path) -> None:
    (archive / "empty.jpg").touch()
    out, features = f"{tmp_path}/rows/", tmp_path / "features"
    code, stdout, stderr = here(archive, "--out", out, "--features", features)
    assert code == 3, stderr
    scan(archive, out=tmp_path / "r.parquet")
    assert rows_of(Path(out)) == rows_of(tmp_path / "r.parquet")
    assert stdout.endswith(f"Results: {tmp_path}/rows\n")
    assert (read_footer(Path(out)) or {})["images"] == 11
    stored = {row["uri"]: row for row in ds.dataset(features, format="parquet").to_table().to_pylist()}
    good = {row["uri"]: row for row in rows_of(tmp_path / "r.parquet") if row["status"] == "ok"}
    assert stored.keys() == good.keys()
    assert pq.read_schema(next(features.glob("*.parquet"))).field("x").type == pa.list_(
        pa.float16(), tiny.FEATURES
    )
    for uri, row in stored.items():
        assert {name: row[name] for name in ("bytes", "mtime", "offset")} == {
            name: good[uri][name] for name in ("bytes", "mtime", "offset")
        }
        probabilities = 1 / (1 + np.exp(-np.array(row["logits"], np.float64)))
        assert np.allclose(probabilities, [good[uri][f"p_{threat}"] for threat in THREATS], atol=1e-3)
    assert here(archive, "--out", out, "--features", features)[0] == 2


def test_alarms_never_change_the_exit_code_and_the_suppressed_are_counted(
    here: Any, scan: Any, archive: Path, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    all_alarm = ("--threshold", "-1e9", "--json")
    code, stdout, stderr = here(archive, "--out", tmp_path / "all.parquet", *all_alarm)
    assert code == 0, stderr
    summary = json.loads(stdout)
    assert (summary["alarms"], summary["suppressed"], summary["pfa"]) == (10, 0, None)
    for threshold in (1e9, 3.0):
        out = tmp_path / f"{threshold}.parquet"
        summary = scan(archive, out=out, threshold=threshold)
        point = operating_point(tiny_bundle, "fp32", "gbad", None, threshold)
        over = [
            any(
                row[f"p_{threat}"] >= np.float32(limit)
                for threat, limit in zip(THREATS, point.class_thresholds, strict=True)
            )
            for row in rows_of(out)
        ]
        assert any(over)
        alarms = [row["anomalous"] for row in rows_of(out)]
        assert summary.suppressed == sum(o and not a for o, a in zip(over, alarms, strict=True))
        assert summary.alarms == sum(alarms)
        assert all(row["threats"] is None for row in rows_of(out) if not row["anomalous"])


def test_links_that_are_followed_are_one_row_and_hard_links_are_two(
    scan: Any, archive: Path, tmp_path: Path
) -> None:
    (archive / "link.jpg").symlink_to(archive / "day0" / "bag0.jpg")
    (archive / "loop").symlink_to(archive)
    (archive / "hard.jpg").hardlink_to(archive / "day0" / "bag0.jpg")
    summary = scan(archive, out=tmp_path / "r.parquet")
    assert (summary.images, summary.other_files) == (11, {"symlink": 2})
    summary = scan(archive, out=tmp_path / "s.parquet", follow_links=True)
    assert (summary.images, summary.duplicates, summary.other_files) == (11, 1, {"symlink loop": 1})


def test_what_a_list_names_always_has_a_row_and_twice_is_once(
    scan: Any, archive: Path, tmp_path: Path
) -> None:
    (archive / "labels.xml").write_text("<annotation/>")
    os.mkfifo(archive / "pipe.jpg")
    odd = os.fsencode(archive) + b"/100% b\xe4g"
    Path(os.fsdecode(odd)).write_bytes((archive / "day0" / "bag0.jpg").read_bytes())
    names = [archive / "labels.xml", archive / "day0/bag0.jpg", archive / "pipe.jpg", archive / "gone.jpg"]
    names += [archive / "day0/bag0.jpg", archive / "day0" / ".." / "day0" / "bag0.jpg"]
    (tmp_path / "list").write_bytes(b"\0".join([*map(os.fsencode, names), odd]))
    listed = {"files_from": str(tmp_path / "list"), "null": True}
    summary = scan(out=tmp_path / "r.parquet", **listed)
    assert [
        (row["uri"].removeprefix(f"{archive}/"), row["status"])
        for row in pq.read_table(tmp_path / "r.parquet").to_pylist()
    ] == [
        ("labels.xml", "not_an_image"),
        ("day0/bag0.jpg", "ok"),
        ("pipe.jpg", "unsupported"),
        ("gone.jpg", "vanished"),
        ("100%25 b%E4g", "ok"),
    ]
    assert summary.duplicates == 2
    summary = scan(archive, out=tmp_path / "s.parquet", **listed)
    assert (summary.images, summary.duplicates) == (11 + 3, 4)


# --- what is said, and where ------------------------------------------------------------------------------


def test_a_demo_model_says_so_everywhere(
    command: Any, here: Any, archive: Path, tiny_bundle: Bundle, own_cache: Path, tmp_path: Path
) -> None:
    code, stdout, stderr = command(archive, "--out", tmp_path / "r.parquet")
    assert code == 0, stderr
    assert DEMO_SENTENCE in stdout
    start, demo, *_ = stderr.splitlines()
    assert re.search(r"; 0 % of decisions differ from FP32 \(0\.5 % allowed\); batch 8, ", start)
    assert len(start) < 160
    assert DEMO_SENTENCE in demo
    assert (read_footer(tmp_path / "r.parquet") or {})["use"] == DEMO_SENTENCE
    stdout = here(archive, "--out", tmp_path / "r.parquet", "--overwrite", "--json", "--quiet")[1]
    assert json.loads(stdout)["use"] == DEMO_SENTENCE
    for words in (("--help",), ("scan", "--help"), ("doctor", "--help")):
        assert DEMO_SENTENCE in " ".join(run(*words)[1].split())
    code, stdout, stderr = run("doctor", "--model", tiny_bundle.path, "--cache-dir", own_cache)
    assert code == 0, stderr
    assert DEMO_SENTENCE in stdout


def test_progress_and_logs_go_to_standard_error_only(
    here: Any, archive: Path, tiny_bundle: Bundle, own_cache: Path, tmp_path: Path
) -> None:
    words = [COMMAND, "scan", str(archive), "--model", str(tiny_bundle.path), "--cache-dir", str(own_cache)]
    terminal = {**os.environ, "TERM": "xterm", "COLUMNS": "150"}
    code, stdout, shown = on_a_terminal([*words, "--out", str(tmp_path / "a.parquet")], terminal)
    assert code == 0
    assert "10/10" in shown
    assert "img/s, 0 failed" in shown
    assert " alarms" in shown
    assert stdout.startswith("10 images: 10 scored, 0 failed")
    assert stdout.endswith(f"Results: {tmp_path}/a.parquet\n")
    assert "\x1b" not in stdout
    quiet = [*words, "--quiet", "--out", str(tmp_path / "b.parquet")]
    assert on_a_terminal(quiet, terminal) == (0, "", "")
    code, stdout, stderr = here(archive, "--out", tmp_path / "c.parquet", "--json", "--log-level", "debug")
    summary = json.loads(stdout)
    assert (code, summary["images"]) == (0, 10)
    assert summary["stage_seconds"].keys() == {"list", "read", "decode", "score", "columns", "write"}
    assert stderr


def test_warnings_stay_when_quiet(archive: Path, tiny_bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "cache\x1b").mkdir(mode=0o777)
    (tmp_path / "cache\x1b").chmod(0o777)
    words = ("scan", archive, "--out", tmp_path / "r.parquet", "--model", tiny_bundle.path, "--quiet")
    code, stdout, stderr = run(*words, "--cache-dir", tmp_path / "cache\x1b")
    assert (code, stdout) == (0, "")
    assert "WARNING: the cache" in stderr
    assert "is not used" in stderr
    assert "\x1b" not in stderr


def test_a_terminal_without_the_letters_of_a_name_gets_their_escapes(command: Any, tmp_path: Path) -> None:
    (tmp_path / "odd").mkdir()
    picture(3).save(tmp_path / "odd" / "täsche.png")
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    code, stdout, stderr = command(tmp_path / "odd", "--out", tmp_path / "r.parquet", env=environment)
    assert code == 0, stderr
    assert "t\\xe4sche.png" in stdout


def mounted_over(place: Path, folder: Path) -> list[str]:
    """Words before a command that let it, and it alone, see a folder at a place of the system; or skip."""
    mount = ["unshare", "--mount", "sh", "-c", f'mount --bind "{folder}" {place} && exec "$@"', "sh"]
    if not place.is_dir() or subprocess.run([*mount, "true"], check=False, capture_output=True).returncode:
        pytest.skip(f"a folder cannot be mounted over {place} here")
    return mount


def test_a_gpu_that_cannot_be_used_is_warned_of_loudly(
    archive: Path, tiny_bundle: Bundle, own_cache: Path, tmp_path: Path
) -> None:
    devices = Path("/sys/bus/pci/devices")
    gpu = tmp_path / "devices" / "0000:01:00.0"
    gpu.mkdir(parents=True)
    (gpu / "vendor").write_text("0x10de\n")
    (gpu / "class").write_text("0x030200\n")
    mount = mounted_over(devices, gpu.parent)
    scan = [COMMAND, "scan", str(archive), "--model", str(tiny_bundle.path), "--cache-dir", str(own_cache)]

    def start(*words: str) -> tuple[int, str]:
        ran = subprocess.run([*mount, *scan, *words], check=False, capture_output=True, text=True)
        return ran.returncode, ran.stderr

    code, stderr = start("--out", f"{tmp_path}/a.parquet", "--quiet")
    assert (code, "WARNING: AN NVIDIA GPU IS HERE AND IS NOT USED" in stderr) == (0, True)
    assert start("--out", f"{tmp_path}/b.parquet", "--quiet", "--device", "cpu") == (0, "")
    code, stderr = start("--out", f"{tmp_path}/c.parquet", "--device", "cuda")
    assert (code, "1 NVIDIA GPU" in stderr) == (2, True)
    assert not (tmp_path / "c.parquet").exists()
    ran = subprocess.run(
        [*mount, COMMAND, "doctor", "--model", str(tiny_bundle.path), "--cache-dir", str(own_cache)],
        check=False,
        capture_output=True,
        text=True,
    )
    assert "1 found" in ran.stdout


def test_the_configuration_takes_each_option_by_its_name(here: Any, archive: Path, tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text(
        f'[scan]\njson = true\ninclude = "*.jpg"\nexclude = ["bag0.*"]\nsources = "{archive}"\n'
    )
    code, stdout, stderr = here("--out", tmp_path / "r.parquet", "--config", tmp_path / "c.toml")
    assert code == 0, stderr
    assert json.loads(stdout)["images"] == 2
    other = ("--include", "*.png", "--config", tmp_path / "c.toml")
    code, stdout, _ = here("--out", tmp_path / "s.parquet", *other)
    assert {row["uri"].rpartition(".")[2] for row in rows_of(tmp_path / "s.parquet")} == {"png"}
    for text, said in (
        ("scan = 1", "scan"),
        ("[scam]\n", "scam"),
        ("[scan]\nlimit = 'x'", "limit"),
        ("[scan]\nlimit = {a = 1}", "limit must be a text or a number"),
        ("[scan]\nlimit = 1979-05-27", "limit must be a text or a number"),
        ("[scan]\nlimit = true", "limit must be a text or a number"),
        ("[scan]\nhidden = 1.5", "hidden must be true or false"),
        ("[scan]\ninclude = [[]]", "include must be a list of texts"),
        (f"[scan]\nlimit = {'9' * 10_000}", "not a TOML file"),
        (f"[scan]\nlimit = {'[' * 5000}", "too deeply"),
        (f"#{'x' * (1 << 20)}", "larger than 1 MB"),
    ):
        (tmp_path / "c.toml").write_text(text)
        code, stdout, stderr = here("--out", tmp_path / "t.parquet", "--config", tmp_path / "c.toml")
        assert (code, stdout, said in stderr, "Traceback" in stderr) == (2, "", True, False)


@pytest.mark.skipif(bool(nvidia_gpus()), reason="a GPU is here")
def test_a_list_of_gpus_is_refused_in_one_sentence_where_there_are_none(
    here: Any, archive: Path, tmp_path: Path
) -> None:
    code, stdout, stderr = here(archive, "--out", tmp_path / "r.parquet", "--device", "cuda:0,2")
    assert (code, stdout, stderr.count("\n")) == (2, "", 1), stderr
    assert stderr.startswith("gbad-batch: --device cuda:0,2 cannot be used: ")
    assert not (tmp_path / "r.parquet").exists()


def test_workers_are_taken_from_the_command_or_its_configuration_and_change_no_row(
    here: Any, archive: Path, tmp_path: Path
) -> None:
    (tmp_path / "c.toml").write_text("[scan]\nworkers = 2\nthreads = 2\n")
    rows = []
    for words, workers in (
        (["--workers", "1"], 1),
        (["--workers", "2"], 2),
        (["--config", tmp_path / "c.toml"], 2),
        (["--config", tmp_path / "c.toml", "--workers", "1"], 1),
    ):
        out = tmp_path / f"{len(rows)}.parquet"
        code, stdout, stderr = here(archive, "--out", out, "--json", "--log-level", "info", *words)
        assert code == 0, stderr
        assert json.loads(stdout)["plan"]["workers"] == workers
        rows.append(pq.read_table(out).drop_columns("scanned_at").to_pylist())
    assert len(rows[0]) == 10
    assert all(each == rows[0] for each in rows)


# --- ends ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("after_s", [0.0, 0.15, 0.4, 1.0])
def test_a_signal_at_any_moment_ends_the_command_by_its_code(
    archive: Path, tiny_bundle: Bundle, own_cache: Path, tmp_path: Path, number: int, after_s: float
) -> None:
    words = [COMMAND, "scan", "--files-from", "-", "--out", str(tmp_path / "r.parquet"), "--batch-size", "1"]
    words += ["--model", str(tiny_bundle.path), "--cache-dir", str(own_cache)]
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    with subprocess.Popen(words, text=True, **pipes) as process:
        assert process.stdin is not None
        process.stdin.write("".join(f"{path}\n" for path in archive.rglob("*.*")))
        process.stdin.flush()  # and stays open: there may be more to come
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        while not children.read_text().split():
            time.sleep(0.005)
        time.sleep(0.02 + after_s)
        process.send_signal(number)
        process.wait(timeout=PATIENCE_S)  # though the list does not end
        stdout, stderr = process.communicate()
    assert (process.returncode, stdout) == (128 + number, ""), stderr
    assert "run the same command to resume" in stderr
    assert "Traceback" not in stderr


def test_threads_follow_the_affinity_mask() -> None:
    mask = os.sched_getaffinity(0)
    try:
        os.sched_setaffinity(0, {min(mask)})
        assert usable_cores() == 1
    finally:
        os.sched_setaffinity(0, mask)
    assert 1 <= usable_cores() <= len(mask)


# --- faults of the engine ---------------------------------------------------------------------------------


def test_an_image_on_which_the_engine_fails_is_a_row_and_harms_no_other(
    scan: Any, archive: Path, tmp_path: Path
) -> None:
    files = {**tiny.files(), "network.onnx": tiny.network_that_fails()}
    weak = write_bundle(tmp_path / "weak", tiny.manifest(), files).path
    scan(archive, out=tmp_path / "good.parquet", model=weak)
    black = [archive / name for name in ("black.png", "day0/black.png", "day1/bag4b.png", "z.png")]
    for path in black:
        Image.new("RGB", (64, 64)).save(path)
    for batch_size, threads in ((8, 1), (1, 1), (1, 4), (2, 3)):  # a batch in each of as many streams
        out = tmp_path / f"{batch_size} {threads}.parquet"
        summary = scan(archive, out=out, model=weak, batch_size=batch_size, threads=threads)
        assert summary.failed == {"decoder_crash": 4}
        bad = [row for row in rows_of(out) if row["status"] != "ok"]
        assert [row["uri"] for row in bad] == sorted(map(str, black))
        assert [row for row in rows_of(out) if row not in bad] == rows_of(tmp_path / "good.parquet")


def test_an_engine_that_fails_on_anything_stops_the_scan_and_makes_no_row(
    scan: Any, archive: Path, tmp_path: Path
) -> None:
    files = {**tiny.files(), "network.onnx": tiny.network_that_fails("flat")}  # what it is tried with is flat
    weak = write_bundle(tmp_path / "weak", tiny.manifest(), files).path
    Image.new("RGB", (64, 64)).save(archive / "z.png")
    out = tmp_path / "r.parquet"
    for threads in (1, 4):
        with pytest.raises(Stopped, match=r"failed on a batch of 1 .*twice; .* run the same command again"):
            scan(archive, out=out, model=weak, batch_size=1, threads=threads)
    (archive / "z.png").unlink()
    summary = scan(archive, out=out, model=weak)
    assert (summary.images, summary.failed, summary.gone, summary.scanned_now <= 5) == (10, {}, 0, True)


@pytest.mark.parametrize(
    "files",
    [
        {"cpu.max": "100000 100000"},
        {"cpu.max": "40000 100000"},
        {"cpu/cpu.cfs_quota_us": "100000", "cpu/cpu.cfs_period_us": "100000"},
    ],
)
def test_threads_follow_the_quota_of_the_cgroup(tmp_path: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"{text}\n")
    if usable_cores() == 1:
        pytest.skip("needs two cores")
    code = "from gbad_batch.engine.system.machine import usable_cores; print(usable_cores())"
    words = [*mounted_over(Path("/sys/fs/cgroup"), tmp_path), sys.executable, "-c", code]
    assert subprocess.run(words, check=True, capture_output=True, text=True).stdout == "1\n"


def test_the_doctor_says_what_a_scan_would_use_and_what_stops_it(
    tiny_bundle: Bundle, own_cache: Path, tmp_path: Path
) -> None:
    words = ("doctor", "--json", "--cache-dir", own_cache, "--model")
    code, stdout, stderr = run(*words, tiny_bundle.path)
    found = {(one["section"], one["name"]): one["found"] for one in json.loads(stdout)}
    assert code == 0, stderr
    assert found["machine", "cores a scan may use"] == str(usable_cores())
    assert found["engine", "a scan here would use"].endswith("fp32 on cpu")
    shutil.copytree(tiny_bundle.path, tmp_path / "model")
    spoil_hash(tmp_path / "model")
    code, stdout, stderr = run(*words, tmp_path / "model")
    (fault,) = [one for one in json.loads(stdout) if not one["ok"]]
    assert (code, fault["section"], "weights.safetensors" in fault["found"]) == (1, "model", True)
