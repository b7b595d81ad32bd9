"""Candidates that are handed to another process: the same bytes, the same verdicts."""

import io
import os
import pickle
import subprocess
import sys
import tarfile
import threading
from pathlib import Path
from typing import Any, cast

import pytest

from gbad_batch.engine.errors import Stopped
from gbad_batch.engine.row import ImageFault
from gbad_batch.engine.sources import Candidate, ListingCounts, SourceSettings, find
from gbad_batch.engine.sources import listing as listing_module

CHILD = """
import os, pickle, sys
from gbad_batch.engine.errors import Stopped
from gbad_batch.engine.row import ImageFault

def outcome(candidate):
    row = candidate.row
    if row.status is not None:
        return row, None
    try:
        return row, candidate.read(1_000_000)
    except ImageFault as fault:
        return row, (fault.status, str(fault))
    except Stopped as stopped:
        return row, ("Stopped", str(stopped))

found = []
for _ in range(pickle.load(sys.stdin.buffer)):
    found += map(outcome, pickle.load(sys.stdin.buffer))
opened = []
for fd in os.listdir("/proc/self/fd"):
    link = f"/proc/self/fd/{fd}"
    if int(fd) > 2 and os.path.exists(link):
        opened.append(os.readlink(link))
pickle.dump((found, opened), sys.stdout.buffer)
"""


def listed(*sources: Path, max_file_size: int = 1_000_000) -> list[Candidate]:
    return list(find(SourceSettings(sources), ListingCounts(), lambda _: True, max_file_size))


def message(candidates: list[Candidate]) -> bytes:
    return pickle.dumps(candidates, protocol=5)


def elsewhere(*messages: bytes) -> tuple[list[tuple[Any, Any]], list[str]]:
    """Read the candidates of some messages in another process; also return the files that it keeps open."""
    data = pickle.dumps(len(messages)) + b"".join(messages)
    done = subprocess.run([sys.executable, "-c", CHILD], input=data, stdout=subprocess.PIPE, check=True)
    return pickle.loads(done.stdout)


def outcomes(*messages: bytes) -> list[Any]:
    return [outcome for _, outcome in elsewhere(*messages)[0]]


def tar(path: Path, names: dict[str, bytes], mode: str = "w") -> Path:
    with tarfile.open(path, cast("Any", mode)) as archive:
        for name, data in names.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """Make a folder with one candidate of each kind."""
    root = tmp_path / "archive"
    (root / "sub").mkdir(parents=True)
    (root / "a.jpg").write_bytes(b"file")
    (root / "b.gif").write_bytes(b"unsupported")
    (root / "c.jpg").write_bytes(b"")
    os.truncate(root / "c.jpg", 1_000_001)
    (root / "d.jpg").write_bytes(b"")
    Path(os.fsdecode(os.fsencode(root / "sub") + b"/\xff%.jpg")).write_bytes(b"odd")
    tar(root / "t.tar", {"x.jpg": b"member", "y.jpg": b"another", "z.jpg": b""})
    tar(root / "u.tgz", {"x.jpg": b"compressed", "y.jpg": b"likewise"}, "w:gz")
    (root / "v.tar").write_bytes(b"not a tar" * 100)
    return root


def test_another_process_reads_the_same(archive: Path) -> None:
    expected: list[Any] = []
    for candidate in listed(archive):
        try:
            expected.append(None if candidate.row.status else candidate.read())
        except ImageFault as fault:
            expected.append((fault.status, str(fault)))
    found, _ = elsewhere(message(listed(archive)))
    assert [outcome for _, outcome in found] == expected
    assert [row for row, _ in found] == [candidate.row for candidate in listed(archive)]
    assert [outcome for outcome in expected if isinstance(outcome, bytes)] == [
        b"file",
        b"odd",
        b"member",
        b"another",
        b"compressed",
        b"likewise",
    ]


def test_faults_get_the_same_verdict_in_another_process(archive: Path) -> None:
    names = ("a.jpg", "t.tar", "d.jpg")
    message_before = message(listed(*(archive / name for name in names)))
    (archive / "a.jpg").unlink()
    tar(archive / "new", {"x.jpg": b"exchanged"}).rename(archive / "t.tar")
    (archive / "d.jpg").unlink()
    os.mkfifo(archive / "d.jpg")
    changed = ("vanished", "its archive was changed while it was scanned")
    assert [outcome[0] for outcome in outcomes(message_before)] == [
        "vanished",
        "vanished",
        "vanished",
        "empty",
        "unreadable",
    ]
    assert outcomes(message_before)[1:3] == [changed, changed]


def test_a_source_that_is_gone_stops_another_process_too(archive: Path) -> None:
    whole = message(listed(archive))
    archive.rename(archive.parent / "away")
    kinds = [outcome[0] for outcome in outcomes(whole) if isinstance(outcome, tuple)]
    assert set(kinds) == {"Stopped", "empty"}  # the empty member needs no reading


def test_a_tar_stays_open_from_one_message_to_the_next(tmp_path: Path) -> None:
    contents = {f"{i}.jpg": b"%d" % i for i in range(20)}
    one = tar(tmp_path / "one.tar", contents)
    found = listed(one)
    in_twos = [message(found[at : at + 2]) for at in range(0, 20, 2)]
    read, opened = elsewhere(*in_twos)
    assert [outcome for _, outcome in read] == list(contents.values())
    assert opened == [str(one)]


def test_tars_that_another_process_keeps_open_are_bounded(tmp_path: Path) -> None:
    for i in range(60):
        tar(tmp_path / f"{i:02}.tar", {"a.jpg": b"%d" % i})
    read, opened = elsewhere(*(message([candidate]) for candidate in listed(tmp_path)))
    assert [outcome for _, outcome in read] == [b"%d" % i for i in range(60)]
    assert len(opened) == 32
    assert str(tmp_path / "59.tar") in opened


def test_bytes_of_a_compressed_tar_can_be_sent_again_and_free_the_listing_with_their_candidate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that dies leaves its candidates to another, so they keep their bytes until they are done."""
    monkeypatch.setattr(listing_module, "READ_AHEAD", 10_000)
    path = tar(tmp_path / "t.tgz", {f"{i:02}.jpg": bytes([i]) * 1_000 for i in range(40)}, "w:gz")
    stopped = threading.Event()
    stopped.set()  # a listing that waits for room ends
    settings = SourceSettings((path,))
    messages: list[bytes] = []
    for candidate in find(settings, ListingCounts(), lambda _: True, stopped=stopped):
        first, again = message([candidate]), message([candidate])
        assert first == again
        messages.append(again)
        del candidate  # it is done
    assert outcomes(*messages) == [bytes([i]) * 1_000 for i in range(40)]
    with pytest.raises(Stopped):
        list(find(settings, ListingCounts(), lambda _: True, stopped=stopped))


def test_a_message_holds_what_the_listing_said_and_little_more(tmp_path: Path) -> None:
    for i in range(64):
        (tmp_path / f"bag_{i:04}.jpg").write_bytes(b"x")
    found = listed(tmp_path)
    found[0].row.width = 5  # of a later stage
    assert pickle.loads(message(found))[0].row.width is None
    assert len(message(found)) < 64 * (2 * len(found[0].path) + 50) + 500
