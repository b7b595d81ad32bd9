"""`pack`: a folder of images as WebDataset shards, which a scan reads to the same rows."""

import json
import os
import subprocess
import sys
import tarfile
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from PIL import Image
from processes import PATIENCE_S

from gbad_batch.engine import Scan, ScanSettings
from gbad_batch.engine.bundle import Bundle
from gbad_batch.engine.commands.cli import main
from gbad_batch.engine.errors import Refused
from gbad_batch.engine.row import Row
from gbad_batch.engine.sources import Candidate, ListingCounts, SourceSettings, find
from gbad_batch.engine.webdataset import PackSettings, pack

COMMAND = str(Path(sys.executable).with_name("gbad-batch"))


def picture(path: Path, number: int, side: int = 8) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.effect_noise((side, side), number % 100).save(path)
    os.utime(path, ns=(0, (1_700_000_000_000_000 + 12_345 * number) * 1000))
    return path


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    root = tmp_path / "archive"
    for number in range(30):
        picture(root / f"day{number % 3}" / f"bag{number:03d}.png", number)
    return root


def listed(folder: Path) -> list[Candidate]:
    return list(find(SourceSettings((folder,)), ListingCounts(), lambda _: True))


def contents(folder: Path) -> list[tuple[str, int | None, int | None, bytes]]:
    """Read what a scan of a folder would, with the name below it, or in the tar."""
    found = []
    for candidate in listed(folder):
        row: Row = candidate.row
        name = row.uri.rpartition("!")[2].removeprefix(f"{folder}/")
        found.append((name, row.bytes, row.mtime, candidate.read()))
    return found


def tars(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.tar"))


def packed(archive: Path, out: Path, **given: Any) -> dict[str, Any]:
    pack(PackSettings(folder=archive, out=f"{out}/", **given))
    return json.loads((out / "pack.json").read_text())


def test_shards_hold_the_files_in_order_with_names_sizes_and_times(archive: Path, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    manifest = packed(archive, out, shard_size=20_000)
    assert contents(out) == contents(archive)
    assert len(tars(out)) > 3
    assert all(path.stat().st_size < 40_000 for path in tars(out))  # of 20,000, and tar's padding at the end
    assert [each["name"] for each in manifest["files"]] == [path.name for path in tars(out)]
    assert sum(each["images"] for each in manifest["files"]) == manifest["images"] == 30
    assert {path.name for path in tmp_path.iterdir()} == {"archive", "shards"}


def test_a_scan_of_the_shards_gives_the_rows_of_the_folder(
    archive: Path, tiny_bundle: Bundle, tmp_path: Path
) -> None:
    (archive / "day1" / "bad.png").write_bytes(b"none")
    (archive / "day2" / "empty.png").write_bytes(b"")
    packed(archive, tmp_path / "shards")

    def rows(folder: Path) -> list[dict[str, Any]]:
        scan = Scan(ScanSettings(sources=(folder,), model=tiny_bundle.path, threads=1))
        return [asdict(replace(row, uri="", offset=None)) for row in scan.rows()]

    assert len(rows(archive)) == 32
    assert rows(tmp_path / "shards") == rows(archive)


def test_other_programs_read_the_shards(archive: Path, tmp_path: Path) -> None:
    packed(archive, tmp_path / "shards")
    names = []
    with tarfile.open(tmp_path / "shards" / "shard-000000.tar", "r|") as tar:  # as WebDataset does
        for member in tar:
            file = tar.extractfile(member)
            assert file is not None
            assert file.read() == (archive / member.name).read_bytes()
            names.append(member.name)
    assert len(names) == 30


def test_hostile_names_and_times_come_through(tmp_path: Path) -> None:
    root = os.fsencode(tmp_path / "archive")
    names = [
        b"new\nline.png", b"\xff\xfe odd.png", b"per%20cent.png", b"a!b.png", b"-rf.png", b"noextension",
        "größe.png".encode(), b"n" * 240 + b".png", b"\x1b[31mred.png", b"back\\slash.png", b"q'uote\".png",
    ]  # fmt: skip
    deep = b"/".join([b"d" * 200] * 8)
    Path(os.fsdecode(root + b"/" + deep)).mkdir(parents=True)
    times = [0, -1, 1, 2**33 * 1_000_000, 1_700_000_000_123_456, -1_500_000]
    for number, name in enumerate([*names, deep + b"/far.png"]):
        path = root + b"/" + name
        Path(os.fsdecode(path)).write_bytes(b"%d" % number)
        os.utime(path, ns=(0, times[number % len(times)] * 1000))
    (tmp_path / "archive" / "empty.png").write_bytes(b"")
    manifest = packed(tmp_path / "archive", tmp_path / "shards")
    before = [
        (c.row.uri.removeprefix(f"{tmp_path}/archive/"), c.row.bytes, c.row.mtime)
        for c in listed(tmp_path / "archive")
    ]
    after = [(c.row.uri.partition("!")[2], c.row.bytes, c.row.mtime) for c in listed(tmp_path / "shards")]
    assert after == before
    assert (manifest["images"], len(after)) == (13, 13)


def test_members_of_tars_lie_below_them_and_never_outside(tmp_path: Path) -> None:
    root = tmp_path / "archive"
    inner = picture(tmp_path / "x.png", 3)
    root.mkdir()
    for name, mode in (("a.tar", "w"), ("b.tar.gz", "w:gz")):
        with tarfile.open(root / name, mode) as tar:  # type: ignore[call-overload]
            for member in ("in/1.png", "../../evil.png", "/etc/evil.png", "in/1.png"):
                info = tarfile.TarInfo(member)
                info.size = inner.stat().st_size
                with inner.open("rb") as file:
                    tar.addfile(info, file)
    packed(root, tmp_path / "shards")
    names = [row[0] for row in contents(tmp_path / "shards")]
    expected = ["in/1.png", "%252E%252E/%252E%252E/evil.png", "etc/evil.png", "in/1.png"]
    assert names == [f"{tar}/{name}" for tar in ("a.tar", "b.tar.gz") for name in expected]
    assert all(row[3] == inner.read_bytes() for row in contents(tmp_path / "shards"))


def test_what_cannot_be_read_is_named_and_told(archive: Path, tmp_path: Path) -> None:
    with tarfile.open(archive / "cut.tar", "w") as tar:
        tar.add(archive / "day1" / "bag001.png", "x.png")
    (archive / "cut.tar").write_bytes((archive / "cut.tar").read_bytes()[:1600])
    (archive / "scan.dcm").write_bytes(b"no scan decodes it, but it is kept")
    result = CliRunner().invoke(main, ["pack", str(archive), "--out", str(tmp_path / "s"), "--json"])
    assert result.exit_code == 3
    figures = json.loads(result.output)
    assert (figures["images"], figures["not_packed"]) == (31, {"truncated": 1, "archive_truncated": 1})
    lines = [json.loads(line) for line in (tmp_path / "s" / "not-packed.jsonl").read_text().splitlines()]
    assert [line["uri"] for line in lines] == [f"{archive}/cut.tar!x.png", f"{archive}/cut.tar"]
    assert "its archive ends" in lines[0]["error"]


def test_a_run_that_was_killed_is_resumed(tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    for number in range(60):
        picture(archive / f"{number:03d}.png", number, side=200)
    out = tmp_path / "shards"
    words = [COMMAND, "pack", str(archive), "--out", str(out), "--shard-size", "100000", "--json"]
    data = tmp_path / "shards.parts" / "data"
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and len(tars(data)) < 4:
        time.sleep(0.001)
    process.kill()
    process.wait()
    if not out.exists():  # else it was faster than this test
        kept = tars(data)
        again = subprocess.run([*words, "--shard-size", "99999"], capture_output=True, text=True)
        assert (again.returncode, "differ in shard_size" in again.stderr) == (2, True)
        done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE_S)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout)["resumed"] >= len(kept) > 0
    assert contents(out) == contents(archive)


def interrupted(archive: Path, out: Path) -> PackSettings:
    """Begin to pack, and end behind the 25th file; returns the settings to go on with."""
    settings = PackSettings(folder=archive, out=out, shard_size=20_000)

    def interrupt(done: int) -> None:
        if done == 25:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(settings, interrupt)
    return settings


def test_an_unfinished_run_goes_on_with_what_the_folder_holds_now(archive: Path, tmp_path: Path) -> None:
    """Shards are dropped from the first change on, and written anew."""
    settings = interrupted(archive, tmp_path / "shards")
    kept = {path.name: path.read_bytes() for path in tars(tmp_path / "shards.parts" / "data")}
    assert len(kept) > 1
    picture(archive / "day1" / "bag0005.png", 7)  # in the second shard
    (archive / "day0" / "gone.png").symlink_to("nowhere")
    packing = pack(settings)
    assert 0 < packing.resumed < 25
    assert contents(tmp_path / "shards") == contents(archive)
    assert (tmp_path / "shards" / "shard-000000.tar").read_bytes() == kept["shard-000000.tar"]


def test_a_damaged_shard_of_an_unfinished_run_is_written_anew(archive: Path, tmp_path: Path) -> None:
    settings = interrupted(archive, tmp_path / "shards")
    first = tars(tmp_path / "shards.parts" / "data")[0]
    first.write_bytes(first.read_bytes()[:5000])
    assert pack(settings).resumed == 0
    assert contents(tmp_path / "shards") == contents(archive)


def test_unfinished_shards_are_no_images_of_a_scan_above_them(archive: Path) -> None:
    settings = PackSettings(folder=archive, out=archive / "shards", shard_size=20_000)

    def interrupt(done: int) -> None:
        if done == 25:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        pack(settings, interrupt)
    assert len(listed(archive)) == 30
    assert pack(settings).images == 30


def test_what_cannot_be_is_refused(archive: Path, tmp_path: Path) -> None:
    def refusal(**given: Any) -> str:
        with pytest.raises(Refused) as error:
            pack(PackSettings(**{"folder": archive, "out": tmp_path / "s", **given}))
        assert not (tmp_path / "s").exists()
        assert not (tmp_path / "s.parts").exists()
        return str(error.value)

    assert "is not a folder" in refusal(folder=archive / "day0" / "bag000.png")
    assert "exists: name a new folder" in refusal(out=archive)
    assert "no image was found" in refusal(include=("*.jpg",))
    assert "--shard-size" in refusal(shard_size=0)
    (tmp_path / "empty").mkdir()
    assert "no image was found" in refusal(folder=tmp_path / "empty")
