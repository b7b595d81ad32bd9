"""Hard links in a tar: files like others, plain or compressed, with the bytes of what they name."""

import io
import os
import shutil
import subprocess
import tarfile
from pathlib import Path
from typing import Any, cast

import pytest
from PIL import Image
from tar_blocks import signed

from gbad_batch.engine import Scan, ScanSettings
from gbad_batch.engine.bundle import Bundle
from gbad_batch.engine.sources import (
    Candidate,
    ListingCounts,
    SourceSettings,
    archive_entries,
    find,
    storage,
)

MODES = pytest.mark.parametrize("mode", ["w", "w:gz"])


def write(path: Path, mode: str, *members: tuple[str, bytes | str]) -> Path:
    """Write a tar; the content of a member is bytes, or the name that a hard link names."""
    with tarfile.open(path, cast("Any", mode)) as archive:
        for time, (name, content) in enumerate(members):
            member = tarfile.TarInfo(name)
            member.mtime = time
            if isinstance(content, str):
                member.type, member.linkname = tarfile.LNKTYPE, content
                archive.addfile(member)
            else:
                member.size = len(content)
                archive.addfile(member, io.BytesIO(content))
    return path


def listed(path: Path, **limits: Any) -> list[Candidate]:
    return list(find(SourceSettings((path,)), ListingCounts(), lambda _: True, **limits))


def contents(found: list[Candidate]) -> dict[str, bytes | str]:
    """Return what each member holds, or its status."""
    return {c.row.uri.rpartition("!")[2]: c.row.status or c.read() for c in found}


def test_a_link_needs_no_size(tmp_path: Path) -> None:
    path = write(tmp_path / "t.tar", "w", ("a.png", b"one"), ("b.png", "a.png"), ("c.png", b"two"))
    blob = bytearray(path.read_bytes())
    header = blob[1024:1536]
    header[124:136] = b"\xff" * 12  # -1, where GNU tar does not look, either
    blob[1024:1536] = signed(header)
    path.write_bytes(blob)
    assert contents(listed(path)) == {"a.png": b"one", "b.png": b"one", "c.png": b"two"}


@MODES
def test_a_link_has_a_row_with_the_bytes_of_its_target(tmp_path: Path, mode: str) -> None:
    path = write(
        tmp_path / "t.tar",
        mode,
        ("day/lane1.png", b"one"),
        ("day/lane2.png", "day/lane1.png"),
        ("./x.dat", b"raw"),
        ("x.jpg", "x.dat"),  # its target is no image by name
        ("day/lane3.png", "./day/lane2.png"),  # a link to a link
        ("z.jpg", b"last"),
    )
    found = listed(path)
    assert contents(found) == {
        "day/lane1.png": b"one",
        "day/lane2.png": b"one",
        "day/lane3.png": b"one",
        "x.jpg": b"raw",
        "z.jpg": b"last",
    }
    rows = {c.row.uri.rpartition("!")[2]: c.row for c in found}
    assert {rows[f"day/lane{i}.png"].offset for i in (1, 2, 3)} == {512}
    assert {rows[f"day/lane{i}.png"].bytes for i in (1, 2, 3)} == {3}
    assert rows["day/lane2.png"].mtime == 1_000_000
    order = [*rows]
    last = ["day/lane2.png", "day/lane3.png", "x.jpg"]  # of a compressed tar
    assert order == (
        ["day/lane1.png", *last[:1], "x.jpg", "day/lane3.png", "z.jpg"]
        if mode == "w"
        else ["day/lane1.png", "z.jpg", *last]
    )


@MODES
def test_a_link_means_the_member_before_it_of_several_with_one_name(tmp_path: Path, mode: str) -> None:
    path = write(
        tmp_path / "t.tar",
        mode,
        ("a.jpg", b"old"),
        ("1.jpg", "a.jpg"),
        ("a.jpg", b"newer"),
        ("2.jpg", "a.jpg"),
        ("a.jpg", b"newest!"),
    )
    got = contents(listed(path))
    assert (got["1.jpg"], got["2.jpg"]) == (b"old", b"newer")


@MODES
def test_a_link_without_a_target_has_a_row_that_says_so(tmp_path: Path, mode: str) -> None:
    path = write(tmp_path / "t.tar", mode, ("1.jpg", "a.jpg"), ("a.jpg", b"x"), ("2.jpg", "2.jpg"))
    found = listed(path)
    assert contents(found) == {"1.jpg": "vanished", "a.jpg": b"x", "2.jpg": "vanished"}
    assert found[0].row.error == "it is a hard link to 'a.jpg', which is not before it"


@MODES
def test_a_link_to_what_is_judged_by_its_size_is_judged_likewise(tmp_path: Path, mode: str) -> None:
    members = [
        ("a.jpg", bytes(2_000)),
        ("b.jpg", "a.jpg"),
        ("c.jpg", b""),
        ("d.jpg", "c.jpg"),
        ("e.gif", "a.jpg"),
    ]
    found = listed(write(tmp_path / "t.tar", mode, *members), max_file_size=1_999)
    got = {c.row.uri.rpartition("!")[2]: c.row.status for c in found}
    assert (got["a.jpg"], got["b.jpg"], got["e.gif"]) == ("too_large", "too_large", "unsupported")
    for each in found:
        if each.row.uri.endswith(("c.jpg", "d.jpg")):
            with pytest.raises(Exception, match="no bytes"):
                each.read()


@MODES
def test_links_of_a_cut_archive_have_rows(tmp_path: Path, mode: str) -> None:
    noise = os.urandom(200_000)
    path = write(
        tmp_path / "t",
        mode,
        ("a.jpg", noise[:1000]),
        ("b.jpg", "a.jpg"),
        ("c.jpg", noise),
        ("d.jpg", "c.jpg"),
    )
    path = path.rename(tmp_path / "t.tar")
    path.write_bytes(path.read_bytes()[:100_000])
    got = contents(listed(path))
    assert got[f"{path}"] == "archive_truncated"
    assert (got["a.jpg"], got["b.jpg"], got["c.jpg"]) == (noise[:1000], noise[:1000], "truncated")


def test_links_that_wait_take_a_bounded_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(archive_entries, "MAX_WAITING", 1_000)
    members = [("a.jpg", b"x"), *((f"{i}.jpg", "a.jpg") for i in range(9))]
    got = contents(listed(write(tmp_path / "t.tgz", "w:gz", *members)))
    assert len(got) == 10
    assert sorted(got.values(), key=str) == [*[b"x"] * 4, *["unsupported"] * 6]
    assert list(contents(listed(write(tmp_path / "t.tar", "w", *members))).values()) == [b"x"] * 10


def test_links_cost_one_more_pass_however_many_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = 0
    real = storage.pread

    def counting(fd: int, size: int, offset: int) -> bytes:
        nonlocal read
        data = real(fd, size, offset)
        read += len(data)
        return data

    monkeypatch.setattr(storage, "pread", counting)
    members = [(f"{i:03}.jpg", os.urandom(2_000)) for i in range(200)]
    links = [(f"l{i:03}.jpg", f"{i * 7 % 200:03}.jpg") for i in range(200)]
    path = write(tmp_path / "t.tgz", "w:gz", *members, *links)
    assert len(contents(listed(path))) == 400
    assert read < 2.5 * path.stat().st_size + (1 << 19)


@pytest.mark.skipif(not shutil.which("tar"), reason="needs the system's tar")
@pytest.mark.parametrize("form", ["v7", "oldgnu", "gnu", "ustar", "posix"])
@pytest.mark.parametrize("option", ["-c", "-cz"])
def test_the_systems_own_tars(tmp_path: Path, form: str, option: str) -> None:
    length = 20 if form in ("v7", "ustar") else 70  # these keep 100 bytes of a link's name
    long = "n" * length + "/" + "m" * length
    (tmp_path / "day" / long).mkdir(parents=True)
    (tmp_path / "day" / long / "1.png").write_bytes(b"picture")
    (tmp_path / "day" / long / "2.png").hardlink_to(tmp_path / "day" / long / "1.png")
    (tmp_path / "day" / "3.png").hardlink_to(tmp_path / "day" / long / "1.png")
    command = ["tar", f"--format={form}", option, "-f", "t.tar", "day"]
    subprocess.run(command, cwd=tmp_path, check=True)
    got = contents(listed(tmp_path / "t.tar"))
    assert len(got) == 3
    assert set(got.values()) == {b"picture"}


@MODES
def test_a_scan_gives_a_link_the_score_of_its_target(tmp_path: Path, tiny_bundle: Bundle, mode: str) -> None:
    picture = io.BytesIO()
    Image.linear_gradient("L").resize((40, 30)).save(picture, "PNG")
    path = write(tmp_path / "t.tar", mode, ("1.png", picture.getvalue()), ("2.png", "1.png"))
    settings = ScanSettings(sources=(path,), model=tiny_bundle.path, cache_dir=tmp_path, threads=1)
    one, two = Scan(settings).rows()
    assert (one.status, two.status) == ("ok", "ok")
    assert (one.sha256, one.anomaly_score, one.width) == (two.sha256, two.anomaly_score, two.width)
