"""What is a candidate, in which order, under which name: walks, names, patterns, lists, links, tars."""

import io
import json
import os
import socket
import sys
import tarfile
import tempfile
import threading
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gbad_batch.engine.errors import Refused, Stopped
from gbad_batch.engine.row import ImageFault
from gbad_batch.engine.sources import Candidate, ListingCounts, SourceSettings, check, count, find
from gbad_batch.engine.sources import listing as listing_module
from gbad_batch.engine.sources.names import IMAGE_EXTENSIONS, UNSUPPORTED_EXTENSIONS
from gbad_batch.engine.sources.uris import parts_of, shown, uri_of

UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
Source = str | bytes | Path


def grow(root: Path, *names: str, data: bytes = b"image") -> Path:
    """Make files; a name with a slash at its end is a folder."""
    for name in names:
        path = root / name
        if name.endswith("/"):
            path.mkdir(parents=True)
            continue
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return root


def scan(
    *sources: Source, max_file_size: int = 10**9, **options: Any
) -> tuple[list[Candidate], ListingCounts]:
    settings = SourceSettings(sources, **options)
    check(settings)
    tally = ListingCounts()
    return list(find(settings, tally, lambda _: True, max_file_size)), tally


def uris(*sources: Source, below: Path, **options: Any) -> list[str]:
    return [c.row.uri.removeprefix(f"{below}/") for c in scan(*sources, **options)[0]]


def tar(path: Path, names: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, cast("Any", mode)) as archive:
        for name, data in names.items():
            member = tarfile.TarInfo(name)
            member.size, member.mtime = len(data), 1_700_000_000
            archive.addfile(member, io.BytesIO(data))
    return path


# Walks


def test_walk_goes_by_bytes_of_the_full_path(tmp_path: Path) -> None:
    names = ["a.jpg", "a/z.jpg", "a/b/c.jpg", "a-b.jpg", "a0.jpg", "B.jpg", "ä.jpg", "a.tar.jpg/x.jpg"]
    grow(tmp_path, *names)
    assert uris(tmp_path, below=tmp_path) == sorted(names, key=str.encode)


@UNHURRIED
@given(
    st.sets(
        st.lists(st.sampled_from(["a", "a.", "a!", "a0", "b", "é"]), min_size=1, max_size=4).map("/".join)
    )
)
def test_walk_order_of_any_tree(tmp_path_factory: pytest.TempPathFactory, names: set[str]) -> None:
    files = [f"{name}.jpg" for name in names]  # never the name of a folder
    root = grow(tmp_path_factory.mktemp("tree"), *files)
    assert uris(root, below=root) == sorted(files, key=str.encode)


def test_sources_keep_the_order_in_which_they_are_given(tmp_path: Path) -> None:
    grow(tmp_path, "b/1.jpg", "a/1.jpg", "c.jpg")
    given_order = [tmp_path / "c.jpg", tmp_path / "b", tmp_path / "a"]
    assert uris(*given_order, below=tmp_path) == ["c.jpg", "b/1.jpg", "a/1.jpg"]


def test_candidates_are_known_by_their_extension_in_any_case(tmp_path: Path) -> None:
    images = [f"x.{e.decode()}" for e in IMAGE_EXTENSIONS] + ["y.JPG", "y.TiFf", "no_extension", "ends.with."]
    strange = [f"x.{e.decode()}" for e in UNSUPPORTED_EXTENSIONS] + ["y.DCM"]
    grow(tmp_path, *images, *strange, "a.xml", "b.XML", "c.txt", "d.zip", "e.jpg.bak")
    found, tally = scan(tmp_path)
    status = {c.row.uri.removeprefix(f"{tmp_path}/"): c.row.status for c in found}
    expected = dict.fromkeys(images) | dict.fromkeys(strange, "unsupported")
    expected["ends.with."] = None
    assert status == expected
    assert tally.skipped == {".xml": 2, ".txt": 1, ".zip": 1, ".bak": 1}
    assert tally.images == len(found)


def test_row_carries_what_identifies_the_file(tmp_path: Path) -> None:
    grow(tmp_path, "a.jpg", data=b"123")
    os.utime(tmp_path / "a.jpg", ns=(5, 1_234_567_890_123_456_789))
    [only], _ = scan(tmp_path)
    row = only.row
    assert (row.uri, row.kind, row.bytes, row.mtime, row.offset, row.status) == (
        f"{tmp_path}/a.jpg",
        "image",
        3,
        1_234_567_890_123_456,
        None,
        None,
    )
    assert only.read() == b"123"


def test_hidden_names_are_counted_unless_wanted(tmp_path: Path) -> None:
    grow(tmp_path, "a.jpg", ".b.jpg", ".c/d.jpg", ".c/e.jpg")
    found, tally = scan(tmp_path)
    assert len(found) == 1
    assert tally.skipped == {"hidden": 2}
    assert uris(tmp_path, below=tmp_path, hidden=True) == [".b.jpg", ".c/d.jpg", ".c/e.jpg", "a.jpg"]


def test_what_a_scan_writes_in_its_own_archive_is_no_candidate(tmp_path: Path) -> None:
    grow(tmp_path, "a.jpg", "rows/_common_metadata", "rows/part-00000001.parquet")
    ours = grow(tmp_path / "rows.parquet.parts", "lock", "scan.json", "journal", "suspects", "data/x.jpg")
    (ours / "scan.json").write_text(json.dumps({"scan_id": "1" * 32}))
    found, tally = scan(tmp_path)
    assert [c.row.uri.removeprefix(f"{tmp_path}/") for c in found] == ["a.jpg"]
    assert tally.skipped == {"unfinished results": 1, "no extension": 1, ".parquet": 1}


@pytest.mark.parametrize(
    "state",
    [b"", b"{", b"[]", b"3", b'{"id": 1}', b'{"scan_id": 7}', b"[" * 100_000, b"\xff\xfe", b"9" * 5_000],
)
def test_a_folder_of_parts_of_another_kind_is_an_archive_like_others(tmp_path: Path, state: bytes) -> None:
    grow(tmp_path / "spare.parts", "lock", "b.jpg")
    (tmp_path / "spare.parts" / "scan.json").write_bytes(state)
    found, tally = scan(tmp_path)
    names = [c.row.uri.removeprefix(f"{tmp_path}/") for c in found]
    assert names == ["spare.parts/b.jpg", "spare.parts/lock"]
    assert tally.skipped == {".json": 1}


def test_a_folder_of_parts_whose_state_is_no_file_is_an_archive_like_others(tmp_path: Path) -> None:
    for name in ("pipe.parts", "link.parts"):
        grow(tmp_path / name, "lock", "b.jpg")
    os.mkfifo(tmp_path / "pipe.parts" / "scan.json")
    (tmp_path / "state").write_text(json.dumps({"scan_id": "1" * 32}))
    (tmp_path / "link.parts" / "scan.json").symlink_to(tmp_path / "state")
    assert len([c for c in scan(tmp_path)[0] if c.row.uri.endswith("b.jpg")]) == 2


@pytest.mark.skipif(os.geteuid() != 0, reason="needs to give a file to another user")
def test_a_folder_of_parts_of_another_user_is_an_archive_like_others(tmp_path: Path) -> None:
    theirs = grow(tmp_path / "x.parts", "lock", "b.jpg", "scan.json")
    (theirs / "scan.json").write_text(json.dumps({"scan_id": "1" * 32}))
    os.chown(theirs, 12345, 12345)
    assert uris(tmp_path, below=tmp_path) == ["x.parts/b.jpg", "x.parts/lock"]


@pytest.mark.parametrize("seconds", [2**40, -(2**40), 253_402_300_800, -62_135_596_801])
def test_a_time_that_readers_of_parquet_do_not_know_is_null(seconds: int) -> None:
    """On tmpfs, which keeps such times; NTFS and Samba give them, too."""
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        root = tar(grow(Path(folder), "a.jpg") / "t.tar", {"a.jpg": b"x"}).parent
        (root / "b.tar").write_bytes(b"no tar")
        for name in ("a.jpg", "b.tar"):
            os.utime(root / name, (seconds, seconds))
        found, _ = scan(root)
        assert [(c.row.uri.rpartition("/")[2], c.row.mtime) for c in found] == [
            ("a.jpg", None),
            ("b.tar", None),
            ("t.tar!a.jpg", 1_700_000_000 * 10**6),
        ]
        assert scan(root / "a.jpg")[0][0].row.mtime is None


def test_special_files_are_counted_and_never_opened(tmp_path: Path) -> None:
    grow(tmp_path, "a.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "s.jpg"))
        found, tally = scan(tmp_path)
    assert len(found) == 1
    assert tally.skipped == {"FIFO": 1, "socket": 1}


def test_named_special_file_has_a_row_and_does_not_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.jpg")
    [only], _ = scan(tmp_path / "pipe.jpg")
    assert (only.row.status, only.row.error) == ("unsupported", "it is a FIFO, which is never opened")
    [device], _ = scan("/dev/null")
    assert device.row.status == "unsupported"


def test_file_that_became_a_fifo_does_not_block(tmp_path: Path) -> None:
    grow(tmp_path, "a.jpg")
    [only], _ = scan(tmp_path)
    (tmp_path / "a.jpg").unlink()
    os.mkfifo(tmp_path / "a.jpg")
    with pytest.raises(Exception, match="no longer a regular file") as caught:
        only.read()
    assert getattr(caught.value, "status", None) == "unreadable"


def test_listing_begins_before_it_ends_and_holds_one_folder(tmp_path: Path) -> None:
    for folder in range(8):
        grow(tmp_path / f"{folder:02}", *(f"a_long_name_of_a_bag_{i:04}.jpg" for i in range(300)))

    def peak(*folders: Path) -> int:
        tracemalloc.start()
        assert sum(1 for _ in find(SourceSettings(folders), ListingCounts(), lambda _: True)) >= 300
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    peak(tmp_path / "00")
    assert peak(tmp_path) < peak(tmp_path / "00") + 20_000

    stream = find(SourceSettings((tmp_path,)), tally := ListingCounts(), lambda _: True)
    next(stream)
    assert tally.folders == 2


def test_wanted_is_asked_once_for_each_in_order_and_decides(tmp_path: Path) -> None:
    grow(tmp_path, "a.jpg", "b.jpg", "c.jpg")
    asked: list[str] = []

    def wanted(candidate: Candidate) -> bool:
        asked.append(candidate.row.uri)
        return not candidate.row.uri.endswith("b.jpg")

    tally = ListingCounts()
    found = [c.row.uri for c in find(SourceSettings((tmp_path,)), tally, wanted)]
    assert [Path(uri).name for uri in asked] == ["a.jpg", "b.jpg", "c.jpg"]
    assert [Path(uri).name for uri in found] == ["a.jpg", "c.jpg"]
    assert tally.images == 3


def test_an_error_of_wanted_is_not_taken_for_the_archives(tmp_path: Path) -> None:
    tar(tmp_path / "t.tar", {"a.jpg": b"x"})

    def wanted(_: Candidate) -> bool:
        raise OSError(5, "the ledger's own")

    with pytest.raises(OSError, match="own"):
        list(find(SourceSettings((tmp_path,)), ListingCounts(), wanted))


def test_too_large_by_its_size_is_never_read(tmp_path: Path) -> None:
    grow(tmp_path, "a.jpg", data=bytes(100))
    [only], _ = scan(tmp_path, max_file_size=99)
    assert only.row.status == "too_large"
    assert only.row.error == "it has 100 bytes, more than the limit of 99"
    [fits], _ = scan(tmp_path, max_file_size=100)
    assert fits.row.status is None
    (tmp_path / "a.jpg").write_bytes(bytes(101))  # grew since
    with pytest.raises(Exception, match="more than the limit of 100"):
        fits.read(100)


def test_empty_file_is_named_when_it_is_read(tmp_path: Path) -> None:
    grow(tmp_path, "a.jpg", data=b"")
    [only], _ = scan(tmp_path)
    with pytest.raises(Exception, match="no bytes") as caught:
        only.read()
    assert getattr(caught.value, "status", None) == "empty"


def test_hard_links_are_different_files_and_one_path_reached_twice_is_seen_twice(tmp_path: Path) -> None:
    grow(tmp_path, "a/1.jpg")
    (tmp_path / "a/2.jpg").hardlink_to(tmp_path / "a/1.jpg")
    assert (
        uris(tmp_path, tmp_path / "a", below=tmp_path) == ["a/1.jpg", "a/2.jpg"] * 2
    )  # the ledger's to find


# Symlinks


def test_symlinks_of_a_walk_are_counted_and_not_followed(tmp_path: Path) -> None:
    grow(tmp_path, "real/a.jpg")
    (tmp_path / "folder").symlink_to("real")
    (tmp_path / "file.jpg").symlink_to("real/a.jpg")
    found, tally = scan(tmp_path)
    assert len(found) == 1
    assert tally.skipped == {"symlink": 2}


def test_followed_links_give_the_path_that_they_lead_to(tmp_path: Path) -> None:
    grow(tmp_path, "src/real/a.jpg", "out/b.jpg")
    (tmp_path / "src/a_link").symlink_to("real")
    (tmp_path / "src/file.jpg").symlink_to("real/a.jpg")
    (tmp_path / "src/out").symlink_to(tmp_path / "out")
    (tmp_path / "src/gone.jpg").symlink_to("nowhere")
    (tmp_path / "named").symlink_to("src")
    found = uris(tmp_path / "named", below=tmp_path, follow_links=True)
    assert found == ["named/real/a.jpg", "named/real/a.jpg", "out/b.jpg", "named/real/a.jpg"]
    tally = scan(tmp_path / "src", follow_links=True)[1]
    assert tally.skipped == {"symlink to nowhere": 1}


def test_link_loops_end(tmp_path: Path) -> None:
    grow(tmp_path, "top/a/b.jpg")
    (tmp_path / "top/a/up").symlink_to(tmp_path / "top")
    (tmp_path / "top/a/self").symlink_to("self")
    (tmp_path / "top/a/above").symlink_to(tmp_path)
    found, tally = scan(tmp_path / "top", follow_links=True)
    assert {c.row.uri for c in found} == {f"{tmp_path}/top/a/b.jpg"}
    assert tally.skipped["symlink loop"] == 2
    assert tally.skipped["symlink to nowhere"] == 1


def test_a_link_that_the_user_names_is_followed_and_keeps_its_name(tmp_path: Path) -> None:
    grow(tmp_path, "real/a.jpg")
    (tmp_path / "folder").symlink_to("real")
    (tmp_path / "b.jpg").symlink_to("real/a.jpg")
    found, _ = scan(tmp_path / "folder", tmp_path / "b.jpg")
    assert [c.row.uri for c in found] == [f"{tmp_path}/folder/a.jpg", f"{tmp_path}/b.jpg"]
    assert found[1].read() == b"image"


@pytest.mark.parametrize("depth", [1, 2, 3])
@pytest.mark.parametrize("outside", [None, "/dev/shm"])
@pytest.mark.parametrize("follow_links", [False, True])
def test_a_folder_exchanged_for_a_link_before_it_is_entered_is_not_followed(
    tmp_path: Path, depth: int, outside: str | None, follow_links: bool
) -> None:
    """Whether the link stands in its own place or above it, and on whichever disk what it leads to lies."""
    with tempfile.TemporaryDirectory(dir=outside or tmp_path) as elsewhere:
        grow(Path(elsewhere), *("/".join(["d"] * n) + "/secret.jpg" for n in range(4)), data=b"secret")
        root = grow(tmp_path / "src", "a.jpg", "d/d/d/b.jpg", "e.jpg")
        listing = find(SourceSettings((root,), follow_links=follow_links), ListingCounts(), lambda _: True)
        found = [next(listing)]
        exchanged = root / "/".join(["d"] * depth)
        if depth > 1:
            found.append(next(listing))
            assert found[1].row.uri.endswith("b.jpg")  # the folder was listed before
        exchanged.rename(tmp_path / "away")
        exchanged.symlink_to(Path(elsewhere) / "/".join(["d"] * (depth - 1)))
        found += listing
        assert not any("secret" in c.row.uri for c in found)
        for each in found:
            if "b.jpg" in each.row.uri:
                with pytest.raises(ImageFault) as caught:
                    each.read()
                assert caught.value.status == "vanished"
        if depth == 1:
            [row] = [c.row for c in found if c.row.uri.endswith("/d")]
            assert (row.kind, row.status) == ("container", "vanished")


def test_a_folder_made_anew_is_read(tmp_path: Path) -> None:
    """A thread that still has the old one open looks again."""
    root = grow(tmp_path / "src", "d/a.jpg", "d/b.jpg")
    found, _ = scan(root)
    assert found[0].read() == b"image"
    (root / "d").rename(tmp_path / "old")
    (tmp_path / "old" / "b.jpg").unlink()
    grow(root, "d/b.jpg", data=b"anew")
    assert found[1].read() == b"anew"


def test_folders_that_are_read_leave_few_descriptors(tmp_path: Path) -> None:
    grow(tmp_path, *(f"{i}/{j}/a.jpg" for i in range(10) for j in range(10)))
    before = len(list(Path("/proc/self/fd").iterdir()))
    found, _ = scan(tmp_path)
    assert [c.read() for c in found] == [b"image"] * 100
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 1


def test_a_deep_tree_is_walked(tmp_path: Path) -> None:
    deep = "/".join(["d" * 20] * 60)
    grow(tmp_path, f"{deep}/a.jpg")
    [only], _ = scan(tmp_path)
    assert only.read() == b"image"


def test_a_file_exchanged_for_a_link_is_not_read_through_it(tmp_path: Path) -> None:
    grow(tmp_path, "src/a.jpg", "secret", data=b"secret")
    [only], _ = scan(tmp_path / "src")
    (tmp_path / "src/a.jpg").unlink()
    (tmp_path / "src/a.jpg").symlink_to(tmp_path / "secret")
    with pytest.raises(Exception, match="could not be read") as caught:
        only.read()
    assert getattr(caught.value, "status", None) == "unreadable"


# What is named


def test_a_named_file_always_has_a_row(tmp_path: Path) -> None:
    grow(tmp_path, "labels.xml", ".hidden.jpg", "x.gif", "x.zip")
    names = ["labels.xml", ".hidden.jpg", "x.gif", "x.zip"]
    found, tally = scan(*(tmp_path / n for n in names), include=("*.png",))
    assert [c.row.status for c in found] == [None, None, "unsupported", None]
    assert not tally.skipped


def test_relative_sources_become_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grow(tmp_path, "a/b/1.jpg", "c/2.jpg")
    (tmp_path / "link").symlink_to("a/b")
    monkeypatch.chdir(tmp_path)
    assert uris("./a//b/", "c/../c/2.jpg", below=tmp_path) == ["a/b/1.jpg", "c/2.jpg"]
    assert uris("link/../b/1.jpg", below=tmp_path) == ["a/b/1.jpg"]  # not link/.. cut as text
    assert uris(b"c", below=tmp_path) == ["c/2.jpg"]


def test_an_existing_path_beats_a_pattern(tmp_path: Path) -> None:
    grow(tmp_path, "[ab].jpg", "a.jpg", "*/x.jpg", "d/y.jpg")
    assert uris(tmp_path / "[ab].jpg", below=tmp_path) == ["[ab].jpg"]
    assert uris(tmp_path / "*", below=tmp_path) == ["*/x.jpg"]


def test_patterns(tmp_path: Path) -> None:
    grow(
        tmp_path,
        "a/1.jpg",
        "a/2.png",
        "a/b/3.jpg",
        "b/a/4.jpg",
        "b/5.jpg",
        "ä/6.jpg",
        "a/.h/7.jpg",
        "a/x.xml",
    )

    def match(pattern: str) -> list[str]:
        return uris(f"{tmp_path}/{pattern}", below=tmp_path)

    assert match("*/*.jpg") == ["a/1.jpg", "b/5.jpg", "ä/6.jpg"]
    assert match("a/*") == ["a/1.jpg", "a/2.png", "a/b/3.jpg"]  # a folder that matches is walked
    assert match("**/*.jpg") == ["a/1.jpg", "a/b/3.jpg", "b/5.jpg", "b/a/4.jpg", "ä/6.jpg"]
    assert match("**/a/*.jpg") == ["a/1.jpg", "b/a/4.jpg"]
    assert match("b/**") == ["b/5.jpg", "b/a/4.jpg"]
    assert match("?/[!1-4].jpg") == ["b/5.jpg", "ä/6.jpg"]  # one character, not one byte
    tally = scan(f"{tmp_path}/a/*")[1]
    assert tally.skipped == {".xml": 1, "hidden": 1}


def test_a_relative_pattern(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grow(tmp_path, "[x]/1.jpg", "[x]/2.jpg", "x/3.jpg")
    monkeypatch.chdir(tmp_path / "[x]")
    assert uris("*1*", "../x/?.j*", below=tmp_path) == ["[x]/1.jpg", "x/3.jpg"]


def test_include_and_exclude(tmp_path: Path) -> None:
    grow(tmp_path, "a/1.jpg", "a/2.png", "a/thumbs/3.jpg", "b/4.jpg", "b/5.png", "6.jpg", "a/l.xml")
    tar(tmp_path / "b/t.tar", {"x/7.jpg": b"x", "thumbs/8.jpg": b"x", "9.png": b"x"})

    def take(**options: Any) -> list[str]:
        return uris(tmp_path, below=tmp_path, **options)

    assert take(include=("*.png",)) == ["a/2.png", "b/5.png", "b/t.tar!9.png"]
    assert take(include=("/*.jpg",)) == ["6.jpg"]  # a pattern with a slash begins at the source
    assert take(include=("a/*.jpg", "b/5*")) == ["a/1.jpg", "b/5.png"]
    assert take(include=("thumbs",)) == ["a/thumbs/3.jpg", "b/t.tar!thumbs/8.jpg"]  # a folder: all below it
    assert take(include=("b/t.tar",)) == ["b/t.tar!x/7.jpg", "b/t.tar!thumbs/8.jpg", "b/t.tar!9.png"]
    assert take(include=("b/t.tar/x",)) == ["b/t.tar!x/7.jpg"]
    assert take(exclude=("thumbs", "*.png", "b/4.jpg")) == ["6.jpg", "a/1.jpg", "b/t.tar!x/7.jpg"]
    assert take(include=("*.jpg",), exclude=("a/**",)) == [
        "6.jpg",
        "b/4.jpg",
        "b/t.tar!x/7.jpg",
        "b/t.tar!thumbs/8.jpg",
    ]
    assert scan(tmp_path, exclude=("a", "*.tar"))[1].skipped == {"excluded": 2}
    assert scan(tmp_path, include=("*.JPG",))[1].images == 0  # case counts
    assert uris(tmp_path / "b/t.tar", below=tmp_path, include=("x/*",)) == ["b/t.tar!x/7.jpg"]


# Lists


@pytest.mark.parametrize(("null", "end"), [(False, b"\n"), (False, b"\r\n"), (True, b"\0")])
def test_a_list_keeps_its_own_order(tmp_path: Path, null: bool, end: bytes) -> None:
    grow(tmp_path, "b.jpg", "a.xml", "d/2.jpg", "d/1.jpg")
    tar(tmp_path / "t.tar", {"z.jpg": b"x", "y.jpg": b"x"})
    names = ["b.jpg", "missing.jpg", "", "a.xml", "d", "t.tar"]
    lines = [os.fsencode(tmp_path / n) if n else b"" for n in names]
    (tmp_path / "list").write_bytes(end.join(lines))  # no end after the last
    found, _ = scan(files_from=str(tmp_path / "list"), null=null)
    assert [(c.row.uri.removeprefix(f"{tmp_path}/"), c.row.status) for c in found] == [
        ("b.jpg", None),
        ("missing.jpg", "vanished"),
        ("a.xml", None),
        ("d/1.jpg", None),
        ("d/2.jpg", None),
        ("t.tar!z.jpg", None),
        ("t.tar!y.jpg", None),
    ]


def test_a_list_may_hold_any_name_and_no_pattern(tmp_path: Path) -> None:
    odd = os.fsencode(tmp_path) + b"/new\nline\xff*.jpg"
    Path(os.fsdecode(odd)).write_bytes(b"x")
    (tmp_path / "list").write_bytes(odd + b"\0")
    [only], _ = scan(files_from=str(tmp_path / "list"), null=True)
    assert only.row.uri == f"{tmp_path}/new\nline%FF*.jpg"
    assert only.read() == b"x"


def test_a_list_from_standard_input_is_a_stream(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    grow(tmp_path, "a.jpg", "b.jpg")
    end, start = os.pipe()
    with os.fdopen(end, "r") as stdin, os.fdopen(start, "wb", buffering=0) as feed:
        monkeypatch.setattr(sys, "stdin", stdin)
        stream = find(SourceSettings(files_from="-"), ListingCounts(), lambda _: True)
        feed.write(os.fsencode(tmp_path / "a.jpg") + b"\n" + os.fsencode(tmp_path))
        assert next(stream).row.uri.endswith("a.jpg")  # before the list ends
        feed.write(b"/b.jpg\n")
        feed.close()
        assert [c.row.uri for c in stream] == [f"{tmp_path}/b.jpg"]


@pytest.mark.parametrize("null", [False, True])
@pytest.mark.parametrize("by_pipe", [False, True])
def test_a_byte_order_mark_is_no_part_of_the_first_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, null: bool, by_pipe: bool
) -> None:
    grow(tmp_path, "a.jpg", "\ufeffb.jpg")
    monkeypatch.chdir(tmp_path)
    lists = {
        "absolute": ([os.fsencode(tmp_path / "a.jpg"), os.fsencode(tmp_path / "a.jpg")], ["a.jpg", "a.jpg"]),
        "relative": ([b"a.jpg"], ["a.jpg"]),
        "not a mark": ([b"b.jpg"], ["\ufeffb.jpg"]),
        "empty": ([], []),
    }
    for names, expected in lists.values():
        text = b"\xef\xbb\xbf" + b"".join(name + (b"\0" if null else b"\r\n") for name in names)
        (tmp_path / "list").write_bytes(text)
        if by_pipe:
            end, start = os.pipe()
            writer = threading.Thread(target=_trickle, args=(start, text))
            writer.start()
            with os.fdopen(end, "r") as stdin:
                monkeypatch.setattr(sys, "stdin", stdin)
                assert uris(below=tmp_path, files_from="-", null=null) == expected
            writer.join()
        else:
            assert uris(below=tmp_path, files_from="list", null=null) == expected


def _trickle(descriptor: int, text: bytes) -> None:
    with os.fdopen(descriptor, "wb", buffering=0) as pipe:
        for at in range(len(text)):
            pipe.write(text[at : at + 1])


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_a_list_in_utf_16_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    grow(tmp_path, "a.jpg")
    (tmp_path / "list").write_bytes(f"{tmp_path}/a.jpg\r\n".encode(encoding))
    with pytest.raises(Refused, match="is UTF-16: save it as UTF-8"):
        scan(files_from=str(tmp_path / "list"))
    with (tmp_path / "list").open() as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        with pytest.raises(Stopped, match=r"is UTF-16: save it as UTF-8|NUL"):
            scan(files_from="-")


def test_what_is_no_list_is_refused(tmp_path: Path) -> None:
    (tmp_path / "nul").write_bytes(b"/a\0/b\0")
    with pytest.raises(Refused, match="add --null"):
        scan(files_from=str(tmp_path / "nul"))
    (tmp_path / "late").write_bytes(b"/a\n" * 40_000 + b"/b\0\n")
    with pytest.raises(Stopped, match="NUL"):
        scan(files_from=str(tmp_path / "late"))
    (tmp_path / "long").write_bytes(b"x" * 200_000)
    with pytest.raises(Stopped, match="longer than any path"):
        scan(files_from=str(tmp_path / "long"))


# What is refused before anything is read


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "the source is missing"),
        ({"sources": ("",)}, "empty name"),
        ({"sources": ("/no/such/folder",)}, "'/no/such/folder' is not there"),
        ({"sources": ("/no/such/*.jpg",)}, "matches nothing"),
        ({"files_from": "/no/such/list"}, "list '/no/such/list' cannot be read"),
        ({"sources": ("/no/such\x1b[2J",)}, r"such\\x1b\[2J"),
    ],
)
def test_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(Refused, match=words) as caught:
        check(SourceSettings(**options))
    assert "\n" not in str(caught.value)


def test_an_empty_archive_is_told_by_the_tally(tmp_path: Path) -> None:
    grow(tmp_path, "a.xml", "b/")
    found, tally = scan(tmp_path)
    assert (found, tally.images, tally.containers, tally.skipped) == ([], 0, 0, {".xml": 1})


# uri


@UNHURRIED
@given(st.binary(min_size=1).map(lambda b: b"/" + b), st.none() | st.binary())
def test_uri_loses_nothing(path: bytes, member: bytes | None) -> None:
    if member is None:
        assert parts_of(uri_of(path), in_archive=False) == (path, None)
    else:
        archive = path.replace(b"!", b"") + b".tar"
        assert parts_of(uri_of(archive, member), in_archive=True) == (archive, member)


def test_uri_encodes_the_percent_sign_and_what_is_not_utf8_and_nothing_else() -> None:
    assert uri_of("/a b/ä!#?\n.jpg".encode()) == "/a b/ä!#?\n.jpg"
    assert uri_of(b"/100%/\xff\xc3\xa4\xed\xa0\x80.jpg") == "/100%25/%FFä%ED%A0%80.jpg"
    assert uri_of(b"/x!y/s.TAR", b"d!/b.jpg") == "/x!y/s.TAR!d!/b.jpg"
    assert parts_of("/x!y/s.TAR!d!/b.jpg", in_archive=True) == (b"/x!y/s.TAR", b"d!/b.jpg")
    assert shown(b"/a\x1b[2J\xff") == "'/a\\x1b[2J%FF'"


def test_a_name_that_is_not_utf8_is_found_and_read(tmp_path: Path) -> None:
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/b\xe4g%.jpg")).write_bytes(b"x")
    [only], _ = scan(tmp_path)
    assert only.row.uri == f"{tmp_path}/b%E4g%25.jpg"
    assert only.read() == b"x"


# Tars

MEMBERS = {
    "a.jpg": b"first",
    "d/b.png": b"second" * 200,
    "d/c.xml": b"<x/>",
    "e": b"",
    "in.tar": b"t",
    "z.zip": b"z",
}
MODES = [
    ("t.tar", "w"),
    ("t.tar.gz", "w:gz"),
    ("T.TGZ", "w:gz"),
    ("really_gzip.tar", "w:gz"),
    ("plain.tgz", "w"),
]


@pytest.mark.parametrize(("name", "mode"), MODES)
def test_a_walk_opens_a_tar_at_its_place(tmp_path: Path, name: str, mode: str) -> None:
    root = grow(tmp_path / "src", "0.jpg", "z.jpg")
    path = tar(root / name, MEMBERS, mode)
    with tarfile.open(path) as archive:
        offsets = [archive.getmember(n).offset_data for n in ("a.jpg", "d/b.png", "e")]
    found, tally = scan(root)
    assert [c.row.uri.removeprefix(f"{root}/") for c in found] == [
        "0.jpg",
        f"{name}!a.jpg",
        f"{name}!d/b.png",
        f"{name}!e",
        "z.jpg",
    ]
    assert [c.row.offset for c in found] == [None, *offsets, None]
    assert [c.row.bytes for c in found[1:4]] == [5, 1200, 0]
    assert found[1].row.mtime == 1_700_000_000 * 10**6
    assert found[2].read() == MEMBERS["d/b.png"]
    assert found[1].read() == MEMBERS["a.jpg"]
    with pytest.raises(Exception, match="no bytes"):
        found[3].read()
    assert tally.skipped == {".xml": 1, ".tar": 1, ".zip": 1}
    assert uris(path, below=root) == [f"{name}!a.jpg", f"{name}!d/b.png", f"{name}!e"]


def test_links_folders_and_special_files_of_a_tar(tmp_path: Path) -> None:
    source = grow(tmp_path / "d", "a.jpg", ".b.jpg", "x.gif")
    (source / "l.jpg").symlink_to("a.jpg")
    (source / "h.jpg").hardlink_to(source / "a.jpg")
    os.mkfifo(source / "p.jpg")
    with tarfile.open(tmp_path / "t.tar", "w") as archive:
        archive.add(source, ".")
    found, tally = scan(tmp_path / "t.tar")
    named = {c.row.uri.rpartition("!")[2]: c for c in found if c.row.status is None}
    assert sorted(named) == ["a.jpg", "h.jpg"]
    assert named["a.jpg"].read() == named["h.jpg"].read() == b"image"
    assert [c.row.status for c in found if c.row.uri.endswith("gif")] == ["unsupported"]
    assert tally.skipped == {"tar symlink": 1, "tar special": 1, "hidden": 1}


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_cut_tar_names_the_member_and_itself(tmp_path: Path, mode: str) -> None:
    noise = bytes(range(256)) * 400
    path = tar(tmp_path / "t.tar", {f"{i}.jpg": noise[i:] for i in range(3)}, mode)
    whole = path.read_bytes()
    path.write_bytes(whole[: 220_000 if mode == "w" else len(whole) * 4 // 5])
    found, tally = scan(tmp_path)
    assert [(c.row.uri.removeprefix(f"{tmp_path}/"), c.row.kind, c.row.status) for c in found] == [
        ("t.tar!0.jpg", "image", None),
        ("t.tar!1.jpg", "image", None),
        ("t.tar!2.jpg", "image", "truncated"),
        ("t.tar", "container", "archive_truncated"),
    ]
    assert found[1].read() == noise[1:]
    assert found[3].row.bytes == path.stat().st_size
    assert (tally.images, tally.containers) == (3, 1)


def test_a_tar_that_is_none_is_named(tmp_path: Path) -> None:
    grow(tmp_path, "text.tar", data=b"this is no tar" * 100)
    grow(tmp_path, "empty.tar", data=b"")
    grow(tmp_path, "bad.tar.gz", data=b"\x1f\x8b but no more")
    found, _ = scan(tmp_path)
    assert [(c.row.kind, c.row.status) for c in found] == [
        ("container", "archive_truncated"),
        ("container", "empty"),
        ("container", "archive_truncated"),
    ]
    assert "damaged" in str(found[2].row.error)


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_a_member_above_the_limit_is_passed_over(tmp_path: Path, mode: str) -> None:
    path = tar(tmp_path / "t.tar", {"a.jpg": bytes(2_000), "b.jpg": b"x"}, mode)
    found, _ = scan(path, max_file_size=1_999)
    assert [c.row.status for c in found] == ["too_large", None]
    assert found[1].read() == b"x"


def test_many_threads_read_one_tar(tmp_path: Path) -> None:
    contents = {f"{i}.jpg": bytes([i % 256]) * 3_000 for i in range(300)}
    found, _ = scan(tar(tmp_path / "t.tar", contents))
    read: list[bytes] = [b""] * len(found)

    def some(first: int) -> None:
        for i in range(first, len(found), 8):
            read[i] = found[i].read()

    threads = [threading.Thread(target=some, args=(i,)) for i in range(8)]
    [t.start() for t in threads]
    [t.join() for t in threads]
    assert read == list(contents.values())


def test_descriptors_of_tars_are_bounded_and_given_back(tmp_path: Path) -> None:
    for i in range(60):
        tar(tmp_path / f"{i:02}.tar", {"a.jpg": b"x%d" % i})
    before = len(list(Path("/proc/self/fd").iterdir()))
    found, _ = scan(tmp_path)
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 32
    assert [c.read() for c in found] == [b"x%d" % i for i in range(60)]
    found.clear()
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_tar_exchanged_while_it_was_not_open_is_noticed(tmp_path: Path) -> None:
    for i in range(40):
        tar(tmp_path / f"{i:02}.tar", {"a.jpg": b"old"})
    found, _ = scan(tmp_path)
    tar(tmp_path / "new", {"a.jpg": b"new"}).rename(tmp_path / "39.tar")
    with pytest.raises(Exception, match="changed while it was scanned") as caught:
        found[39].read()
    assert getattr(caught.value, "status", None) == "vanished"


def test_members_of_compressed_tars_in_flight_are_bounded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listing_module, "READ_AHEAD", 10_000)
    path = tar(tmp_path / "t.tgz", {f"{i:02}.jpg": bytes(1_000) for i in range(40)}, "w:gz")
    stopped = threading.Event()
    stopped.set()

    def listed(use: Callable[[Candidate], object]) -> int:
        tally = ListingCounts()
        for candidate in find(SourceSettings((path,)), tally, lambda _: True, stopped=stopped):
            use(candidate)
        return tally.images

    held: list[Candidate] = []
    with pytest.raises(Stopped):
        listed(held.append)  # nobody reads
    assert len(held) == 10
    assert listed(lambda candidate: candidate.read()) == 40
    assert listed(lambda _: None) == 40  # dropped unread
    monkeypatch.setattr(listing_module, "READ_AHEAD", 1)
    assert listed(lambda candidate: candidate.read()) == 40  # one always fits


def test_bytes_of_unwanted_members_are_not_held(tmp_path: Path) -> None:
    path = tar(tmp_path / "t.tgz", {f"{i}.jpg": os.urandom(1_000_000) for i in range(10)}, "w:gz")
    tracemalloc.start()
    assert not list(find(SourceSettings((path,)), ListingCounts(), lambda _: False))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000


# Counting


def test_count_reads_no_images(tmp_path: Path) -> None:
    grow(tmp_path, "a.jpg", "b.JPG", "n", "x.gif", "l.xml", "sub/c.png", data=b"12345")
    tar(tmp_path / "t.tar", {"d.jpg": b"1", "e.txt": b"2"})
    for path in (tmp_path / "a.jpg", tmp_path / "sub/c.png"):
        os.utime(path, ns=(1, 1))
    census = count(SourceSettings((tmp_path,)))
    assert census.extensions == {".jpg": 3, ".png": 1, ".gif": 1, "no extension": 1}
    assert census.bytes == 5 * 4 + 1
    assert census.faults == {"unsupported": 1}
    assert census.candidates == 6
    assert (census.listed.folders, census.listed.archives) == (2, 1)
    assert census.listed.skipped == {".xml": 1, ".txt": 1}
    assert (tmp_path / "a.jpg").stat().st_atime_ns == 1
