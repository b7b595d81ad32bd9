"""What the index promises: every candidate once, a change seen, its position known, little memory."""

import random
import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from gbad_batch.engine.results.index import GONE, REPLACED, TAKEN, Claim, Index, key_from, key_of
from gbad_batch.engine.row import Row


def row(i: int, mtime: int = 0, offset: int | None = None) -> Row:
    return Row(f"/archive/bag{i}.jpg", bytes=1000 + i, mtime=mtime, offset=offset)


def claim(index: Index, *rows: Row) -> list[Claim]:
    return [index.claim(key_of(row), row.kind) for row in rows]


def taken(index: Index, *rows: Row) -> list[int]:
    return index.take_rows(map(key_of, rows)).tolist()


def test_a_candidate_is_new_once():
    index = Index()
    assert claim(index, row(1), row(2), row(1)) == ["new", "new", "duplicate"]
    assert (index.listed, index.duplicates) == (2, 1)


def test_members_of_a_tar_differ_by_offset():
    assert claim(Index(), *(row(1, offset=offset) for offset in (None, 0, 512))) == ["new"] * 3


def test_images_and_containers_are_counted_apart():
    index = Index()
    claim(index, row(1), Row("/archive/locked", kind="container"))
    assert (index.listed_images, index.listed_containers, index.listed) == (1, 1, 2)


def test_a_finished_candidate_is_recognised():
    index = Index()
    index.add_finished(key_of(row(i)) for i in range(3))
    assert index.finished == 3
    assert claim(index, row(0), row(1), row(1)) == ["finished", "finished", "duplicate"]
    assert taken(index, row(0), row(1), row(2)) == [0, 1, GONE]
    assert key_of(row(2)) in index
    assert key_of(row(3)) not in index


def test_positions_follow_the_listing():
    index = Index()
    index.add_finished(key_of(row(i)) for i in (5, 3))
    claim(index, row(1), row(3), row(1), row(4), row(5))
    assert taken(index, row(5), row(3), row(1), row(4)) == [3, 1, 0, 2]


def test_a_changed_file_is_new_and_replaces_its_old_row():
    index = Index()
    index.add_finished([key_of(row(1))])
    changed = row(1, mtime=5)
    assert claim(index, changed, row(1)) == ["new", "duplicate"]  # the same path, as it was
    assert taken(index, row(1), changed) == [REPLACED, 0]


def test_a_file_that_changed_back_keeps_its_first_row():
    index = Index()
    index.add_finished([key_of(row(1)), key_of(row(1, mtime=5))])
    assert claim(index, row(1)) == ["finished"]
    assert taken(index, row(1, mtime=5), row(1)) == [REPLACED, 0]


def test_a_row_that_is_there_twice_is_taken_once():
    index = Index()
    index.add_finished(key_of(row(i)) for i in (1, 2, 1))
    assert claim(index, row(2), row(1)) == ["finished", "finished"]
    assert taken(index, row(1), row(2), row(1)) == [1, 0, TAKEN]


def test_features_of_a_key_are_taken_once_and_only_when_listed():
    index = Index()
    index.add_finished([key_of(row(1)), key_of(row(2))])
    claim(index, row(1))
    assert index.take_features(key_of(row(i)) for i in (1, 1, 2, 3)).tolist() == [True, False, False, False]
    assert taken(index, row(1)) == [0]


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 3)), max_size=80), st.data())
def test_it_agrees_with_a_dictionary(met: list[tuple[int, int]], data: st.DataObject):
    finished = data.draw(st.sets(st.tuples(st.integers(0, 30), st.integers(0, 3))))
    index = Index()
    index.add_finished(key_of(row(*stamp)) for stamp in finished)
    listed: dict[int, int] = {}
    for i, mtime in met:
        expected = "duplicate" if i in listed else "finished" if (i, mtime) in finished else "new"
        assert claim(index, row(i, mtime)) == [expected]
        listed.setdefault(i, mtime)
    assert index.listed == len(listed)
    positions = {stamp: position for position, stamp in enumerate(listed.items())}
    for i, mtime in finished:
        absent = REPLACED if i in listed else GONE
        assert taken(index, row(i, mtime)) == [positions.get((i, mtime), absent)]


def test_keys_tell_null_from_zero_and_parts_from_each_other():
    keys = {key_from("/a", *stamp) for stamp in [(None, 0, 0), (0, 0, 0), (None, None, 0), (None, 0, None)]}
    assert len(keys) == 4
    assert {len(key) for key in keys} == {16}
    assert key_from("/a", None, 1, 23) != key_from("/a", None, 12, 3)


def test_a_candidate_takes_little_memory():
    source = random.Random(0)
    index = Index()
    tracemalloc.start()
    index.add_finished(source.randbytes(16) for _ in range(200_000))
    one = tracemalloc.get_traced_memory()[0]
    index.add_finished(source.randbytes(16) for _ in range(200_000))
    two = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert index.finished == 400_000
    assert (two - one) / 200_000 <= 20
