"""Headers of tars of every make, and of hostile ones; the standard library's reader is the reference."""

import gzip
import io
import shutil
import subprocess
import tarfile
import tracemalloc
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tar_blocks import header, pax, signed

from gbad_batch.engine.tar import headers, streams
from gbad_batch.engine.tar.headers import Member, members
from gbad_batch.engine.tar.streams import ArchiveFault, GzipStream, PlainStream, TarStream

UNHURRIED = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])


def plain(data: bytes) -> PlainStream:
    return PlainStream(lambda size, offset: data[offset : offset + size], len(data))


def zipped(data: bytes) -> GzipStream:
    return GzipStream(lambda size, offset: data[offset : offset + size])


def read(stream: TarStream) -> list[tuple[Member, bytes]]:
    return [(member, stream.read(member.end - member.offset)) for member in members(stream)]


def made(names: dict[str, bytes], form: int = tarfile.GNU_FORMAT, **fields: object) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for name, data in names.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            for field, value in fields.items():
                setattr(member, field, value)
            archive.addfile(member, io.BytesIO(data))
    return out.getvalue()


LONG = {
    "short.jpg": b"1" * 700,
    "d/" * 60 + "long.jpg": b"2",
    "n" * 180 + "ä.jpg": b"3" * 1024,
    "./dot.jpg": b"4",
    "empty.jpg": b"",
}


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("compressed", [False, True])
def test_names_data_and_offsets_agree_with_the_standard_library(form: int, compressed: bool) -> None:
    data = made(LONG, form, mtime=1_700_000_000)
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        expected = [(m.name.removeprefix("./").encode(), m.size, m.offset_data) for m in archive]
    got = read(zipped(gzip.compress(data)) if compressed else plain(data))
    assert [(m.name, m.size, m.offset) for m, _ in got] == expected
    assert [content for _, content in got] == list(LONG.values())
    assert {m.mtime for m, _ in got} == {1_700_000_000 * 10**6}


def test_ustar_prefix() -> None:
    name = "a" * 90 + "/" + "b" * 90 + ".jpg"
    [(member, _)] = read(plain(made({name: b"x"}, tarfile.USTAR_FORMAT)))
    assert member.name == name.encode()


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("1700000000.123456789", 1_700_000_000_123_456),
        ("1700000000.5", 1_700_000_000_500_000),
        ("-1.5", -1_500_000),
        ("17", 17 * 10**6),
        ("9" * 30, None),
        ("999999999999", None),
        ("yesterday", None),
    ],
)
def test_pax_times_are_exact_or_null(value: str, expected: int | None) -> None:
    data = made({"a.jpg": b"x"}, tarfile.PAX_FORMAT, pax_headers={"mtime": value})
    [(member, _)] = read(plain(data))
    assert member.mtime == expected


def test_gnu_numbers_in_base_256() -> None:
    [(member, _)] = read(plain(made({"a.jpg": b"x"}, mtime=-5)))
    assert member.mtime == -5 * 10**6
    [(member, _)] = read(plain(made({"a.jpg": b"x"}, mtime=2**60)))
    assert member.mtime is None


def test_kinds() -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for kind in (
            tarfile.DIRTYPE,
            tarfile.SYMTYPE,
            tarfile.LNKTYPE,
            tarfile.FIFOTYPE,
            b"Z",
            tarfile.REGTYPE,
        ):
            member = tarfile.TarInfo("x")
            member.type, member.linkname = kind, "y"
            archive.addfile(member)
    kinds = [m.kind for m, _ in read(plain(out.getvalue()))]
    assert kinds == ["folder", "symlink", "hard link", "special", "file", "file"]


@pytest.mark.skipif(not shutil.which("tar"), reason="needs the system's tar")
@pytest.mark.parametrize("form", ["gnu", "posix"])
@pytest.mark.parametrize("holes", [1, 60])
def test_sparse_members_are_known_and_what_follows_is_found(tmp_path: Path, form: str, holes: int) -> None:
    with (tmp_path / "s.jpg").open("wb") as file:
        for hole in range(holes):
            file.seek(hole * 65_536 + 32_768)
            file.write(b"x" * 4_096)
        file.truncate(holes * 65_536)
    (tmp_path / "z.jpg").write_bytes(b"after")
    command = ["tar", "-S", f"--format={form}", "-cf", "t.tar", "s.jpg", "z.jpg"]
    subprocess.run(command, cwd=tmp_path, check=True)
    got = read(plain((tmp_path / "t.tar").read_bytes()))
    assert [(m.name, m.kind, m.size) for m, _ in got] == [
        (b"s.jpg", "sparse", holes * 65_536),
        (b"z.jpg", "file", 5),
    ]
    assert got[1][1] == b"after"


@pytest.mark.skipif(not shutil.which("tar"), reason="needs the system's tar")
@pytest.mark.parametrize("form", ["v7", "oldgnu", "gnu", "ustar", "posix"])
def test_the_systems_own_tars(tmp_path: Path, form: str) -> None:
    (tmp_path / "d").mkdir()
    (tmp_path / "d/a.jpg").write_bytes(b"one")
    (tmp_path / "b.jpg").write_bytes(b"two" * 300)
    subprocess.run(["tar", f"--format={form}", "-cf", "t.tar", "d", "b.jpg"], cwd=tmp_path, check=True)
    got = read(plain((tmp_path / "t.tar").read_bytes()))
    assert [(m.name, m.kind, data) for m, data in got] == [
        (b"d", "folder", b""),
        (b"d/a.jpg", "file", b"one"),
        (b"b.jpg", "file", b"two" * 300),
    ]


def test_archives_joined_by_cat_are_read_to_their_end_and_garbage_is_not() -> None:
    data = made({"a.jpg": b"1"}) + made({"b.jpg": b"2"})
    assert [m.name for m, _ in read(plain(data))] == [b"a.jpg", b"b.jpg"]
    both = (
        gzip.compress(made({"a.jpg": b"1"})) + gzip.compress(made({"b.jpg": b"2"})) + b"\0" * 700 + b"garbage"
    )
    assert [m.name for m, _ in read(zipped(both))] == [b"a.jpg", b"b.jpg"]
    assert [m.name for m, _ in read(plain(made({"a.jpg": b"1"}) + b"garbage" * 200))] == [b"a.jpg"]


def test_zeros_without_end_are_not_read_to_their_end() -> None:
    class Zeros:
        position = 0

        def read(self, size: int) -> bytes:
            self.position += size
            return bytes(size)

        def seek(self, position: int) -> None:
            self.position = position

        def finish(self) -> None:
            pass

    assert not list(members(Zeros()))


def cut_at(data: bytes, size: int) -> tuple[list[Member], str]:
    found: list[Member] = []
    with pytest.raises(ArchiveFault) as caught:
        found.extend(members(plain(data[:size])))
    return found, str(caught.value)


def test_every_cut_before_the_end_mark_is_named() -> None:
    data = made({"a.jpg": b"x" * 600, "b" * 150 + ".jpg": b"y" * 600})
    end = len(data.rstrip(b"\0")) + (-len(data.rstrip(b"\0")) % 512)
    for size in range(0, end, 64):
        cut_at(data, size)
    assert cut_at(data, end)[1] == f"it ends at byte {end} without an end mark"
    assert len(list(members(plain(data[: end + 512])))) == 2  # one block of zeros is enough


def test_every_cut_of_a_gzip_stream_is_named() -> None:
    data = gzip.compress(made({"a.jpg": bytes(range(256)) * 8, "b.jpg": b"y" * 3000}))
    for size in range(len(data)):
        with pytest.raises(ArchiveFault):
            read(zipped(data[:size]))


def test_a_wrong_checksum_of_gzip_is_named() -> None:
    data = bytearray(gzip.compress(made({"a.jpg": b"x"})))
    data[-8] ^= 1
    with pytest.raises(ArchiveFault, match="damaged"):
        read(zipped(bytes(data)))


def test_a_damaged_header_is_named_by_its_place() -> None:
    data = bytearray(made({"a.jpg": b"x", "b.jpg": b"y"}))
    data[1024 + 3] ^= 0xFF
    found: list[Member] = []
    with pytest.raises(ArchiveFault, match="the header at byte 1024 is damaged"):
        found.extend(members(plain(bytes(data))))


@pytest.mark.parametrize("kind", [b"x", b"g", b"L", b"K"])
def test_an_extended_header_without_bound_is_not_read(kind: bytes) -> None:
    data = header(b"p", kind, b"77777777777") + bytes(1 << 22)
    tracemalloc.start()
    with pytest.raises(ArchiveFault, match="claims 8589934591 bytes"):
        read(plain(data))
    assert tracemalloc.get_traced_memory()[1] < 100_000
    tracemalloc.stop()


@pytest.mark.parametrize("size", [b"\xff" * 12, b"\x80" + b"\xff" * 11, b"not octal"])
def test_a_size_that_cannot_be_is_named(size: bytes) -> None:
    entries = members(plain(header(b"a.jpg", b"0", size) + bytes(1024)))
    member = next(entries)
    assert (member.name, member.kind, member.size) == (b"a.jpg", "unsized", 0)
    with pytest.raises(ArchiveFault, match="no usable size"):
        next(entries)


@pytest.mark.parametrize("size", [b"\xff" * 12, b"\x80" + b"\xff" * 11, b"\xff" + bytes(11), b"777"])
def test_the_size_of_a_sparse_member_is_one_that_a_row_can_hold(size: bytes) -> None:
    block = bytearray(header(b"a.jpg", b"S", b"0"))
    block[483:495] = size.ljust(12, b"\0")
    [(member, _)] = read(plain(signed(block) + bytes(1024)))
    assert (member.name, member.kind) == (b"a.jpg", "sparse")
    assert 0 <= member.size < 2**63


@pytest.mark.parametrize("kind", [b"8", b"A", b"Q", b"\x7f", b"\xff", b" "])
@pytest.mark.parametrize("compressed", [False, True])
def test_members_of_unknown_type_are_regular(kind: bytes, compressed: bool) -> None:
    data = header(b"a.jpg", kind, b"3") + b"one".ljust(512, b"\0") + made({"b.jpg": b"two"})
    got = read(zipped(gzip.compress(data)) if compressed else plain(data))
    assert [(m.name, m.kind, content) for m, content in got] == [
        (b"a.jpg", "file", b"one"),
        (b"b.jpg", "file", b"two"),
    ]


def test_a_long_name_outlives_a_global_header_before_its_member() -> None:
    named = header(b"././@LongLink", b"L", b"7") + b"a.jpg\0\0".ljust(512, b"\0")
    common = header(b"p", b"g", b"14") + b"12 mtime=30\n".ljust(512, b"\0")
    data = named + common + header(b"/", b"0", b"3") + b"one".ljust(512, b"\0") + bytes(1024)
    ((member, content),) = read(plain(data))
    assert (member.name, member.kind, member.mtime, content) == (b"a.jpg", "file", 30_000_000, b"one")
    assert read(plain(common + bytes(1024))) == []


def test_of_two_extended_headers_the_last_one_counts() -> None:
    data = pax(b"21 GNU.sparse.name=b\n") + pax(b"14 path=a.jpg\n") + header(b"c", b"0", b"3")
    ((member, content),) = read(plain(data + b"one".ljust(512, b"\0") + bytes(1024)))
    assert (member.name, member.kind, content) == (b"a.jpg", "file", b"one")


def test_volume_labels_and_the_rest_of_a_file_are_known() -> None:
    data = (
        header(b"label", b"V", b"0")
        + header(b"d", b"D", b"3")
        + b"Ya\0".ljust(512, b"\0")
        + header(b"a.jpg", b"M", b"3")
        + b"end".ljust(512, b"\0")
        + bytes(1024)
    )
    assert [(m.name, m.kind) for m, _ in read(plain(data))] == [
        (b"label", "label"),
        (b"d", "folder"),
        (b"a.jpg", "rest"),
    ]


def found_beside_damage(data: bytes) -> tuple[list[tuple[bytes, bytes]], str]:
    """Return the members, plain and compressed alike, and the fault, which says that reading went on."""
    got: list[list[tuple[bytes, bytes]]] = []
    for stream in (plain(data), zipped(gzip.compress(data))):
        contents = ((m.name, stream.read(m.end - m.offset)) for m in members(stream))
        got.append([])
        with pytest.raises(ArchiveFault) as caught:
            got[-1].extend(contents)
        assert caught.value.went_on
    assert got[0] == got[1]
    return got[0], str(caught.value)


@pytest.mark.parametrize(
    "record",
    [b"9999 comment=a\n", b"x comment=a\n", b"0 comment=a\n", b"10 comment\n", b"12comment=a\n", b"5 c=a"],
)
@pytest.mark.parametrize("kind", [b"x", b"g"])
def test_members_behind_a_bad_pax_record_are_found(record: bytes, kind: bytes) -> None:
    good = b"17 path=new.jpg\n\n"[:-1]
    record = good.replace(b"17", b"16") + record
    extended = header(b"p", kind, b"%o" % len(record)) + record.ljust(512, b"\0")
    data = made({"0.jpg": b"zero"}).rstrip(b"\0")
    data += bytes(-len(data) % 512) + extended + made({"a.jpg": b"one", "b.jpg": b"two"})
    got, message = found_beside_damage(data)
    assert [content for _, content in got] == [b"zero", b"one", b"two"]
    assert got[1][0] == b"new.jpg"  # a record before the bad one counts
    assert "extended header" in message


def test_members_behind_a_damaged_header_are_found() -> None:
    data = bytearray(made({"a.jpg": b"x" * 2_000, "b.jpg": b"y" * 600, "c.jpg": b"z"}))
    data[2560 + 3] ^= 0xFF
    got, message = found_beside_damage(bytes(data))
    assert [name for name, _ in got] == [b"a.jpg", b"c.jpg"]
    assert message == "the header at byte 2560 is damaged"


def test_members_behind_a_first_header_that_is_damaged_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    data = bytearray(made({"a.jpg": b"x" * 2_000, "b.jpg": b"y" * 600}))
    data[3] ^= 0xFF
    assert found_beside_damage(bytes(data)) == ([(b"b.jpg", b"y" * 600)], "the header at byte 0 is damaged")
    monkeypatch.setattr(headers, "MAX_SEARCH", 1 << 16)
    for content in (b"no tar" * 100_000, b"no tar" * 4):
        with pytest.raises(ArchiveFault, match="the header at byte 0"):
            list(members(plain(content)))


def test_members_behind_an_impossible_size_or_name_are_found() -> None:
    for bad, itself in (
        (header(b"a.jpg", b"0", b"not octal"), [(b"a.jpg", b"")]),
        (header(b"a.jpg", b"0", b"\xff" * 12), [(b"a.jpg", b"")]),
        (header(b"p", b"x", b"-1"), []),
        (header(b"p", b"L", b"40000") + b"n" * 16_384 + header(b"a", b"0", b"0"), []),
    ):
        got, _ = found_beside_damage(bad + made({"b.jpg": b"two"}))
        assert got == [*itself, (b"b.jpg", b"two")]


@pytest.mark.parametrize(
    "record", [b"9999 path=a\n", b"x path=a\n", b"0 path=a\n", b"7 path\n", b"12path=a\n"]
)
def test_a_damaged_pax_record_is_named(record: bytes) -> None:
    data = pax(record) + header(b"a", b"0", b"0") + bytes(1024)
    with pytest.raises(ArchiveFault):
        read(plain(data))


def test_memory_does_not_grow_with_the_members_and_their_headers() -> None:
    def endless(number: int) -> Iterator[bytes]:
        record = b"30 comment=a key of its own %d"
        for i in range(number):
            own = b"%03d " % (len(record) + 10) + b"k%06d=" % i
            own = own.ljust(len(record) + 9, b"v") + b"\n"
            yield header(b"p", b"g", b"%o" % len(own)) + own.ljust(512, b"\0") + header(b"a.jpg", b"0", b"0")
        yield bytes(1024)

    def peak(number: int) -> int:
        data = b"".join(endless(number))
        tracemalloc.start()
        assert sum(1 for _ in members(plain(data))) == number
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    peak(10)
    assert peak(2_000) < peak(100) + 10_000


BASE = made(LONG, tarfile.PAX_FORMAT, mtime=1.5) + made(LONG, tarfile.GNU_FORMAT)


@settings(UNHURRIED, max_examples=300)
@given(
    st.lists(st.tuples(st.integers(0, len(BASE) - 1), st.integers(0, 255)), max_size=4),
    st.integers(0, len(BASE)),
)
def test_damage_anywhere_ends_with_members_or_a_named_fault(
    changes: list[tuple[int, int]], size: int
) -> None:
    data = bytearray(BASE)
    for at, value in changes:
        data[at] = value
    for stream in (plain(bytes(data[:size])), zipped(gzip.compress(bytes(data[:size]), 1))):
        with suppress(ArchiveFault):
            for member, content in read(stream):
                assert len(content) <= len(data)
                assert member.end >= member.offset


@settings(UNHURRIED, max_examples=200)
@given(st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), min_size=1, max_size=3))
def test_damage_of_a_gzip_stream_ends_with_a_named_fault_or_nothing_lost(
    changes: list[tuple[float, int]],
) -> None:
    whole = gzip.compress(BASE)
    data = bytearray(whole)
    for at, value in changes:
        data[int(at * len(data))] = value
    try:
        got = read(zipped(bytes(data)))
    except ArchiveFault:
        return
    assert [content for _, content in got] == [content for _, content in read(plain(BASE))]


def test_chunks_of_any_size_give_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    data = gzip.compress(BASE[:5_000]) + gzip.compress(BASE[5_000:])
    expected = read(plain(BASE))
    for chunk in (1, 7, 512, 1_000):
        monkeypatch.setattr(streams, "CHUNK", chunk)
        assert read(zipped(data)) == expected


def test_chained_extended_headers_take_no_memory() -> None:
    def chain(number: int) -> Iterator[bytes]:
        for i in range(number):
            key = b"k%07d" % i
            record = b"%d %s=%s\n" % (500_000, key, b"v" * (500_000 - 7 - len(key) - 2))
            yield pax(record)
        yield made({"a.jpg": b"x"})

    def peak(number: int) -> int:
        packed = gzip.compress(b"".join(chain(number)), 1)
        tracemalloc.start()
        with suppress(ArchiveFault):
            assert [member.name for member, _ in read(zipped(packed))] == [b"a.jpg"]
        size = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return size

    assert peak(40) < peak(4) + 1_000_000 < 8_000_000


@pytest.mark.parametrize("padding", [b"", b"\0" * 37])
def test_empty_gzip_members_are_read_in_linear_time(padding: bytes) -> None:
    """What zlib copies is counted: the bytes fed to it, and those that it hands back."""
    fed, decompressobj = 0, zlib.decompressobj

    class Counting:
        def __init__(self, **options: Any):
            self._inner = decompressobj(**options)

        def decompress(self, data: bytes, most: int) -> bytes:
            nonlocal fed
            fed += len(data)
            return self._inner.decompress(data, most)

        def __getattr__(self, name: str) -> object:
            return getattr(self._inner, name)

    def bytes_fed(number: int) -> int:
        nonlocal fed
        data = (gzip.compress(b"") + padding) * number + gzip.compress(made({"a.jpg": b"x"}))
        fed = 0
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(streams.zlib, "decompressobj", Counting)
            assert [member.name for member, _ in read(zipped(data))] == [b"a.jpg"]
        assert fed < 5 * len(data)
        return fed

    assert bytes_fed(20_000) < 11 * bytes_fed(2_000)
