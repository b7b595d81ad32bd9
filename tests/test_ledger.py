"""What the ledger promises: every candidate once, a change seen, little memory."""

import random
import tracemalloc

from hypothesis import given
from hypothesis import strategies as st

from gbad_batch.engine.results.ledger import Ledger, key_from, key_of
from gbad_batch.engine.row import Row


def row(i: int, mtime: int = 0, offset: int | None = None) -> Row:
    return Row(f"/archive/bag{i}.jpg", bytes=1000 + i, mtime=mtime, offset=offset)


def test_a_candidate_is_new_once():
    ledger = Ledger()
    assert [ledger.claim(row(i)) for i in (1, 2, 1)] == ["new", "new", "duplicate"]
    assert (ledger.listed, ledger.duplicates) == (2, 1)


def test_members_of_a_tar_differ_by_offset():
    ledger = Ledger()
    assert [ledger.claim(row(1, offset=offset)) for offset in (None, 0, 512)] == ["new"] * 3


def test_images_and_containers_are_counted_apart():
    ledger = Ledger()
    ledger.claim(row(1))
    ledger.claim(Row("/archive/locked", kind="container"))
    assert (ledger.listed_images, ledger.listed_containers, ledger.listed) == (1, 1, 2)


def test_a_finished_candidate_is_found_and_marked():
    ledger = Ledger()
    ledger.add_finished(key_of(row(i)) for i in range(3))
    assert ledger.finished == 3
    assert [ledger.claim(row(i)) for i in (0, 1, 1)] == ["finished", "finished", "duplicate"]
    assert [ledger.is_listed(key_of(row(i))) for i in range(3)] == [True, True, False]
    assert not ledger.is_replaced(key_of(row(2)))


def test_a_changed_file_is_new_and_replaces_its_old_row():
    ledger = Ledger()
    ledger.add_finished([key_of(row(1))])
    changed = row(1, mtime=5)
    assert ledger.claim(changed) == "new"
    assert ledger.claim(row(1)) == "duplicate"  # the same path again, as it was
    assert ledger.is_listed(key_of(changed))
    assert not ledger.is_listed(key_of(row(1)))
    assert ledger.is_replaced(key_of(row(1)))
    assert not ledger.is_replaced(key_of(changed))


def test_a_file_that_changed_back_keeps_its_first_row():
    ledger = Ledger()
    ledger.add_finished([key_of(row(1)), key_of(row(1, mtime=5))])
    assert ledger.claim(row(1)) == "finished"
    assert ledger.is_replaced(key_of(row(1, mtime=5)))


def test_features_of_a_key_are_taken_once_and_only_when_listed():
    ledger = Ledger()
    ledger.add_finished([key_of(row(1)), key_of(row(2))])
    ledger.claim(row(1))
    assert [ledger.take_features(key_of(row(i))) for i in (1, 1, 2, 3)] == [True, False, False, False]
    assert ledger.is_listed(key_of(row(1)))


@given(st.lists(st.tuples(st.integers(0, 30), st.integers(0, 3)), max_size=80), st.data())
def test_it_agrees_with_a_dictionary(met: list[tuple[int, int]], data: st.DataObject):
    finished = data.draw(st.sets(st.tuples(st.integers(0, 30), st.integers(0, 3))))
    ledger = Ledger()
    ledger.add_finished(key_of(row(*each)) for each in finished)
    seen: dict[int, int] = {}
    for i, mtime in met:
        expected = "duplicate" if i in seen else "finished" if (i, mtime) in finished else "new"
        assert ledger.claim(row(i, mtime)) == expected
        seen.setdefault(i, mtime)
    assert ledger.listed == len(seen)
    for i, mtime in finished:
        assert ledger.is_listed(key_of(row(i, mtime))) == (seen.get(i) == mtime)
        assert ledger.is_replaced(key_of(row(i, mtime))) == (i in seen and seen[i] != mtime)


def test_keys_tell_null_from_zero_and_parts_from_each_other():
    keys = {key_from("/a", *stamp) for stamp in [(None, 0, 0), (0, 0, 0), (None, None, 0), (None, 0, None)]}
    assert len(keys) == 4
    assert {len(key) for key in keys} == {16}
    assert key_from("/a", None, 1, 23) != key_from("/a", None, 12, 3)


def test_a_million_candidates_take_their_sixteen_megabytes():
    source = random.Random(0)
    ledger = Ledger()
    tracemalloc.start()
    ledger.add_finished(source.randbytes(16) for _ in range(200_000))
    one = tracemalloc.get_traced_memory()[0]
    ledger.add_finished(source.randbytes(16) for _ in range(200_000))
    two = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    assert ledger.finished == 400_000
    assert (two - one) / 200_000 <= 17
