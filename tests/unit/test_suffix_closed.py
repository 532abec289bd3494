"""What a store says of its endings after changes: never more than is true, and after compaction all of it."""

from __future__ import annotations

import pytest
from helpers import all_ngrams, assert_verifies, build_ngrams, contents, rows_of, temporary_directory
from hypothesis import given, settings
from hypothesis import strategies as st

import ngramstore as ngs

CLOSED = dict.fromkeys([(1,), (2,), (3,), (1, 2), (2, 2), (3, 1, 2)], 0)
NGRAM = st.sampled_from(all_ngrams(3, (0, 1, 2)))
STEPS = st.lists(
    st.tuples(st.sampled_from(["put", "delete"]), st.lists(NGRAM, min_size=1, max_size=4))
    | st.tuples(st.sampled_from(["flush", "compact", "reopen"]), st.just([])),
    max_size=8,
)


def is_closed(ngrams) -> bool:
    """The definition: every n-gram longer than the shortest has its ending."""
    shortest = min(map(len, ngrams), default=0)
    return all(ngram[1:] in ngrams for ngram in ngrams if len(ngram) > shortest)


def says(path) -> bool:
    with ngs.open(path) as store:
        return store.stats()["suffix_closed"]


@pytest.mark.parametrize("tokens", [True, False])
@pytest.mark.parametrize("restored", [False, True])
def test_new_values_leave_a_store_suffix_closed(quick_path, restored, tokens):
    """Also those of an n-gram that was deleted and put again before the flush."""
    path = quick_path / "store"
    build_ngrams(path, CLOSED, tokens=tokens)
    assert says(path)
    with ngs.open(path, mode="rw") as store:
        if restored:
            store.delete([(1, 2)])
        store.put([(1, 2), (3,)], rows_of([5, 6], 4))
        store.flush()
        assert says(path)
        store.put([(1, 2)], rows_of([7], 4))
        store.flush()
        assert says(path)
        store.compact()
    assert says(path)
    assert_verifies(path)


@pytest.mark.parametrize("is_put", [False, True])
def test_other_ngrams_take_the_promise_back_until_compaction_has_looked(quick_path, is_put):
    path = quick_path / "store"
    build_ngrams(path, CLOSED)
    with ngs.open(path, mode="rw") as store:
        if is_put:
            store.put([(2, 3), (2, 2, 2)], rows_of([1, 2], 4))  # both endings are there
        else:
            store.delete([(2, 2)])  # the ending of none
        store.flush()
        assert not says(path)
        store.compact()
        assert says(path)
        store.delete([(1, 2)])  # the ending of (3, 1, 2)
        store.compact()
        assert not says(path)


def test_changes_that_took_back_what_they_did_leave_what_compaction_can_prove(quick_path):
    path = quick_path / "store"
    build_ngrams(path, CLOSED)
    with ngs.open(path, mode="rw") as store:
        store.put([(9, 9)], rows_of([1], 4))
        store.flush()
        store.delete([(9, 9)])
        store.flush()
        assert not says(path) and store.stats()["overlay_rows"] == store.stats()["tombstones"] == 0
        store.compact()
        assert says(path)
        generation = store.generation
        store.compact()
        assert store.generation == generation  # nothing is left to do
        assert set(contents(store)) == set(CLOSED)
        store.put([(1,)], rows_of([8], 4))  # the writer goes on
    assert says(path)
    assert_verifies(path)


@settings(max_examples=60, deadline=None)
@given(st.sets(NGRAM, min_size=1, max_size=12), st.booleans(), STEPS)
def test_after_any_changes_compaction_says_what_is_true(stored, close, steps):
    if close:
        stored = stored | {ngram[i:] for ngram in stored for i in range(len(ngram))}
    with temporary_directory() as room:
        path = f"{room}/store"
        build_ngrams(path, dict.fromkeys(sorted(stored), 0))
        model = set(stored)
        assert says(path) == is_closed(model)
        store = ngs.open(path, mode="rw")
        for step, ngrams in steps:
            if step == "put":
                store.put(ngrams, rows_of([1] * len(ngrams), 4))
                model |= set(ngrams)
            elif step == "delete":
                store.delete(ngrams)
                model -= set(ngrams)
            elif step == "reopen":
                store.close()
                store = ngs.open(path, mode="rw")
            else:
                getattr(store, step)()
            if step in ("flush", "compact", "reopen"):
                assert says(path) <= is_closed(model)
        store.put([(0,)], rows_of([1], 4))
        model.add((0,))
        store.compact()
        assert says(path) == is_closed(model)
        assert set(contents(store)) == model
        store.close()
        assert_verifies(path)
