"""Faults of a file are rows, faults of the machine are not: with faults that the system really makes."""

import errno
import os
import resource
import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from gbad_batch.engine.errors import Stopped
from gbad_batch.engine.row import ImageFault
from gbad_batch.engine.sources import Candidate, ListingCounts, SourceSettings, check, faults, find
from gbad_batch.engine.sources.storage import Archive, Folder

NOBODY = 65_534


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "DELAYS_S", (0.01, 0.02))


@contextmanager
def not_root() -> Iterator[None]:
    """Be a user that permissions hold for."""
    before = os.geteuid()
    if before == 0:
        os.seteuid(NOBODY)
    try:
        yield
    finally:
        os.seteuid(before)


def grow(root: Path, *names: str, data: bytes = b"image") -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(data)
    return root


def listing(*sources: Path, files_from: Path | None = None) -> Iterator[Candidate]:
    settings = SourceSettings(sources, files_from=str(files_from) if files_from else None)
    check(settings)
    return find(settings, ListingCounts(), lambda _: True)


def rows(found: Iterator[Candidate], below: Path) -> list[tuple[str, str, str | None]]:
    return [(c.row.uri.removeprefix(f"{below}/"), c.row.kind, c.row.status) for c in found]


def fault_of(candidate: Candidate) -> ImageFault:
    with pytest.raises(ImageFault) as caught:
        candidate.read()
    return caught.value


def test_a_file_that_may_not_be_read(open_folder: Path) -> None:
    grow(open_folder, "a.jpg", "b.jpg")
    (open_folder / "a.jpg").chmod(0)
    with not_root():
        a, b = listing(open_folder)
        fault = fault_of(a)
        assert b.read() == b"image"
    assert (fault.status, str(fault)) == ("unreadable", "it could not be read: Permission denied")


def test_a_folder_that_may_not_be_listed(open_folder: Path) -> None:
    grow(open_folder, "a.jpg", "b/c.jpg", "d.jpg")
    (open_folder / "b").chmod(0)
    with not_root():
        found = list(listing(open_folder))
    assert rows(iter(found), open_folder) == [
        ("a.jpg", "image", None),
        ("b", "container", "unlistable"),
        ("d.jpg", "image", None),
    ]
    assert found[1].row.error == "the folder could not be listed: Permission denied"
    with not_root():
        assert rows(listing(open_folder / "b"), open_folder) == [("b", "container", "unlistable")]
        assert rows(listing(open_folder / "b/c.jpg"), open_folder) == [("b/c.jpg", "image", "unreadable")]
    (open_folder / "b").chmod(0o755)


def test_a_folder_whose_names_show_but_not_their_files(open_folder: Path) -> None:
    grow(open_folder, "b/c.jpg")
    (open_folder / "b").chmod(0o744)
    with not_root():
        assert rows(listing(open_folder), open_folder) == [("b/c.jpg", "image", "unreadable")]


def test_a_tar_that_may_not_be_read(open_folder: Path) -> None:
    grow(open_folder, "t.tar")
    (open_folder / "t.tar").chmod(0)
    with not_root():
        assert rows(listing(open_folder), open_folder) == [("t.tar", "container", "unreadable")]


def test_a_file_that_vanishes_after_it_was_listed(tmp_path: Path) -> None:
    grow(tmp_path, "a.jpg", "d/b.jpg")
    a, b = listing(tmp_path)
    (tmp_path / "a.jpg").unlink()
    shutil.rmtree(tmp_path / "d")
    assert fault_of(a).status == fault_of(b).status == "vanished"


def test_what_vanishes_while_it_is_listed(tmp_path: Path) -> None:
    grow(tmp_path, "a.jpg", "b.jpg", "c/d.jpg", "e.tar")
    found = listing(tmp_path)
    next(found)
    (tmp_path / "b.jpg").unlink()
    (tmp_path / "e.tar").unlink()
    shutil.rmtree(tmp_path / "c")
    assert rows(found, tmp_path) == [
        ("b.jpg", "image", "vanished"),
        ("c", "container", "vanished"),
        ("e.tar", "container", "vanished"),
    ]


def test_a_source_that_is_gone_invents_no_row_and_goes_on_when_it_is_back(tmp_path: Path) -> None:
    grow(tmp_path, "src/a.jpg", "src/b/c.jpg", "src/d.jpg")
    found = listing(tmp_path / "src")
    first = next(found)
    (tmp_path / "src").rename(tmp_path / "away")
    with pytest.raises(Stopped, match=r"source '.*/src' is gone; run the same command again when it is back"):
        first.read()
    with pytest.raises(Stopped, match="is gone"):
        next(found)
    (tmp_path / "away").rename(tmp_path / "src")
    assert first.read() == b"image"
    assert len(list(listing(tmp_path / "src"))) == 3


def test_another_folder_at_the_sources_place_is_not_the_source(tmp_path: Path) -> None:
    grow(tmp_path, "src/a.jpg", "src/b.jpg")
    found = listing(tmp_path / "src")
    first = next(found)
    (tmp_path / "src").rename(tmp_path / "away")
    (tmp_path / "src").mkdir()  # as the empty folder that a disk was mounted on
    with pytest.raises(Stopped, match="is gone"):
        first.read()
    with pytest.raises(Stopped, match="is gone"):
        list(found)


def test_a_later_source_that_goes_away_is_missed(tmp_path: Path) -> None:
    grow(tmp_path, "one/a.jpg", "two/b.jpg")
    found = listing(tmp_path / "one", tmp_path / "two")
    next(found)
    (tmp_path / "two").rename(tmp_path / "away")
    with pytest.raises(Stopped, match="two' is gone"):
        list(found)


def test_a_listed_file_on_a_disk_that_is_gone_is_no_vanished_file(tmp_path: Path) -> None:
    shm = Path("/dev/shm")
    if not shm.is_dir() or shm.stat().st_dev == tmp_path.stat().st_dev:
        pytest.skip("needs a second file system")
    disk = Path(tempfile.mkdtemp(dir=shm))
    grow(disk, "a.jpg", "b.jpg")
    (tmp_path / "disk").symlink_to(disk)
    (tmp_path / "list").write_text(f"{tmp_path}/disk/a.jpg\n{tmp_path}/disk/b.jpg\n")
    found = listing(files_from=tmp_path / "list")
    first = next(found)
    (tmp_path / "disk").unlink()
    (tmp_path / "disk").mkdir()  # what is under a mount when the disk is off
    with pytest.raises(Stopped, match="disk' is gone"):
        first.read()
    with pytest.raises(Stopped, match="disk' is gone"):
        next(found)
    shutil.rmtree(disk)


def test_named_files_whose_folder_is_gone_stop_the_scan(tmp_path: Path) -> None:
    grow(tmp_path, "d/a.jpg", "d/b.jpg", "d/c.jpg")
    (tmp_path / "list").write_text(f"{tmp_path}/d/b.jpg\n{tmp_path}/d/c.jpg\n")
    found = listing(tmp_path / "d/a.jpg", files_from=tmp_path / "list")
    first = next(found)
    (tmp_path / "d/b.jpg").unlink()
    assert next(found).row.status == "vanished"
    (tmp_path / "d").rename(tmp_path / "away")
    with pytest.raises(Stopped, match="d' is gone"):
        first.read()
    with pytest.raises(Stopped, match="d' is gone"):
        next(found)


def test_a_source_that_went_away_before_the_listing_began_is_no_vanished_file(tmp_path: Path) -> None:
    found = listing(grow(tmp_path / "d", "a.jpg"))
    (tmp_path / "d").rename(tmp_path / "away")
    with pytest.raises(Stopped, match="d' is gone"):
        next(found)


def test_a_followed_link_that_leads_where_one_may_not_look_has_a_row(open_folder: Path) -> None:
    grow(open_folder, "src/a.jpg", "closed/b/c.jpg")
    (open_folder / "src/link").symlink_to(open_folder / "closed/b")
    (open_folder / "closed").chmod(0)
    with not_root():
        settings = SourceSettings((open_folder / "src",), follow_links=True)
        found = rows(find(settings, ListingCounts(), lambda _: True), open_folder)
    (open_folder / "closed").chmod(0o755)
    assert found == [("src/a.jpg", "image", None), ("src/link", "container", "unreadable")]


# /proc/self/mem is a regular file whose first byte cannot be read: EIO, every time.


def test_an_io_error_of_one_file_alone_is_its_row(tmp_path: Path) -> None:
    grow(tmp_path, "d/good.jpg")
    (tmp_path / "d/bad.jpg").symlink_to("/proc/self/mem")
    [bad] = listing(tmp_path / "d/bad.jpg")
    fault = fault_of(bad)
    assert (fault.status, str(fault)) == ("unreadable", f"it could not be read: {os.strerror(errno.EIO)}")


def test_an_io_error_where_nothing_else_reads_stops_the_scan(tmp_path: Path) -> None:
    grow(tmp_path, "d/e/empty.jpg", data=b"")  # says nothing about the disk
    (tmp_path / "d/e/bad.jpg").symlink_to("/proc/self/mem")
    [bad] = listing(tmp_path / "d/e/bad.jpg")
    with pytest.raises(Stopped, match="neither could other files"):
        bad.read()


def test_a_file_alone_in_its_folder_is_compared_with_those_beside_the_folder(tmp_path: Path) -> None:
    grow(tmp_path, "bag1/other.jpg")
    (tmp_path / "bag2").mkdir()
    (tmp_path / "bag2/bad.jpg").symlink_to("/proc/self/mem")
    [bad] = listing(tmp_path / "bag2/bad.jpg")
    assert fault_of(bad).status == "unreadable"


def test_an_io_error_at_one_spot_of_a_tar_is_its_members(tmp_path: Path) -> None:
    folder = grow(tmp_path / "d/e", "t.tar")
    path = os.fsencode(folder / "t.tar")
    archive = Archive.open(path, Folder.of(os.fsencode(folder), None, follow=False))
    fault = archive.verdict(path, OSError(errno.EIO, ""))
    assert (fault.status, "this part of its archive" in str(fault)) == ("unreadable", True)
    (folder / "t.tar").unlink()
    with pytest.raises(Stopped):
        archive.verdict(path, OSError(errno.EIO, ""))


@contextmanager
def no_descriptors_left() -> Iterator[None]:
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    lowest = os.open("/dev/null", os.O_RDONLY)
    os.close(lowest)
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


def test_too_many_open_files_stop_the_scan_and_make_no_row(tmp_path: Path) -> None:
    grow(tmp_path, "a.jpg", "b.jpg", "c/d.jpg")
    found = listing(tmp_path)
    first = next(found)
    with no_descriptors_left(), pytest.raises(Stopped, match=os.strerror(errno.EMFILE)):
        first.read()
    with no_descriptors_left(), pytest.raises(Stopped, match=os.strerror(errno.EMFILE)):
        list(found)


def test_a_fault_of_the_machine_that_passes_is_not_noticed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(faults, "DELAYS_S", (0.5, 0.5, 5.0))
    grow(tmp_path, "a.jpg")
    [only] = listing(tmp_path)
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    healed = threading.Timer(0.2, resource.setrlimit, (resource.RLIMIT_NOFILE, limits))
    with no_descriptors_left():
        healed.start()
        assert only.read() == b"image"
    healed.join()


def test_an_unknown_error_is_the_machines() -> None:
    assert faults.status_of(OSError(errno.EIO, "")) is None
    assert faults.status_of(OSError(errno.ESTALE, "")) is None
    assert faults.status_of(OSError(123_456, "")) is None
    assert faults.status_of(OSError("no number")) is None
