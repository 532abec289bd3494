"""An n-gram that takes the ID of one deleted before is another n-gram: what the manifest says of the set follows it."""

from __future__ import annotations

import pytest
from helpers import assert_verifies, build_ngrams, published, rows_of

import ngramstore as ngs
from ngramstore.errors import HashCollision
from ngramstore.hashing import ngram_ids
from ngramstore.windows import as_ngrams, blank_from

GONE = {(5, 239592): (683688164, 11750, 7), (5, 13960): (1611312476, 14526)}
"""Pairs of n-grams with one ID, of other lengths and of equal ones."""
PAIRS = pytest.mark.parametrize(("gone", "came"), GONE.items(), ids=["longer", "as long"])


@pytest.fixture
def path(quick_path):
    return quick_path / "store"


def build_closed(path, gone) -> dict:
    model = {gone[1:]: 1, gone: 2, (50,): 3, (60, 50): 4}
    build_ngrams(path, model)
    with ngs.open(path) as store:
        assert store.stats()["suffix_closed"]
    return model


def check(path, model) -> None:
    """Numbers and the longest match are those of the n-grams that are there."""
    assert published(path) == model
    assert_verifies(path)
    lengths = [len(ngram) for ngram in model]
    with ngs.open(path) as store:
        assert store.stats()["ngrams_by_length"] == {n: lengths.count(n) for n in sorted(set(lengths))}
        assert store.stats()["suffix_closed"] <= all(ngram[1:] in model for ngram in model if len(ngram) > 1)
        for ngram in model:
            assert store.lookup([ngram]).length[0, -1] == len(ngram)


@PAIRS
def test_the_pairs_have_one_id(gone, came):
    tokens, lengths = as_ngrams([gone, came], 3)
    ids = ngram_ids(blank_from(tokens, lengths), lengths, 0)
    assert ids[0] == ids[1]


@PAIRS
@pytest.mark.parametrize("then", ["flush", "compact"])
@pytest.mark.parametrize("is_in_overlay", [False, True])
def test_another_ngram_under_the_id_of_a_deleted_one_is_counted_as_what_it_is(path, gone, came, then, is_in_overlay):
    model = build_closed(path, gone)
    with ngs.open(path, mode="rw") as store:
        if is_in_overlay:
            store.put([gone], rows_of([5], 4))
            store.flush()
        store.delete([gone])
        store.put([came], rows_of([9], 4))
        getattr(store, then)()
        del model[gone]
        check(path, model | {came: 9})


@PAIRS
def test_the_ngram_that_goes_is_the_published_one_where_the_other_came_and_went(path, gone, came):
    model = build_closed(path, gone)
    with ngs.open(path, mode="rw") as store:
        store.delete([gone])
        store.put([came], rows_of([9], 4))
        store.delete([came])
        store.put([(51,)], rows_of([6], 4))
    del model[gone]
    check(path, model | {(51,): 6})


@PAIRS
def test_an_ngram_that_comes_back_under_its_id_changes_nothing(path, gone, came):
    model = build_closed(path, gone)
    with ngs.open(path, mode="rw") as store:
        store.delete([gone])
        store.put([came], rows_of([9], 4))
        store.delete([came])
        store.put([gone], rows_of([2], 4))
    check(path, model)
    with ngs.open(path) as store:
        assert store.stats()["suffix_closed"]


@PAIRS
@pytest.mark.parametrize("is_in_overlay", [False, True])
def test_another_ngram_under_a_stored_id_is_refused_and_both_are_named(path, gone, came, is_in_overlay):
    model = build_closed(path, gone)
    with ngs.open(path, mode="rw") as store:
        if is_in_overlay:
            store.put([gone], rows_of([5], 4))
            store.flush()
            model[gone] = 5
        with pytest.raises(HashCollision) as caught:
            store.put([came], rows_of([9], 4))
        assert str(gone) in caught.value.message and str(came) in caught.value.message
    check(path, model)
