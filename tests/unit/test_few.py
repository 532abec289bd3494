"""A handful of cached n-grams in one kernel: the same answers, counters and recency as the long way."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import rows_of

import ngramstore as ngs
from ngramstore.kernels.native import few as native
from ngramstore.kernels.reference import few as reference

NGRAMS = np.array([[a, b] for a in range(6) for b in range(4)], np.uint32)
ABSENT = np.array([[99, 99]], np.uint32)


@pytest.fixture
def store(tmp_path):
    with ngs.build(tmp_path / "store", dim=4, max_n=2, codec="f32", seed=5) as build:
        build.add(NGRAMS, rows_of(range(len(NGRAMS)), 4))
    with ngs.open(tmp_path / "store", cache_bytes=20 * (16 + 32)) as handle:
        yield handle


def touched(kernels, store, tokens):
    """What a kernel does to copies of the cache's arrays, and what it answers."""
    cache = store._cache
    arrays = [array.copy() for array in (cache._table, cache._keys, cache._links, cache._counters)]
    offsets, found = np.full(len(tokens), -9, np.int64), np.zeros(len(tokens), np.bool_)
    answer = kernels.touch_ngrams(
        store._view.probe_table, tokens, np.uint64(5), *arrays, cache.row_bytes, offsets, found
    )
    return answer, arrays, offsets if answer >= 0 else None, found if answer >= 0 else None


@pytest.mark.parametrize("tokens", [NGRAMS[:3], NGRAMS[[2, 2, 7]], np.concatenate([ABSENT, NGRAMS[1:2]]), NGRAMS[22:]])
def test_native_and_reference_agree(store, tokens):
    store.get(NGRAMS[:10])
    one, other = touched(native, store, tokens), touched(reference, store, tokens)
    np.testing.assert_equal(one, other)
    assert (one[0] == -1) == bool((tokens[:, 0] == 5).any())


def test_few_and_many_give_the_same_rows(store):
    store.get(NGRAMS[:16])
    few_rows, few_found = store.get(np.concatenate([NGRAMS[3:6], ABSENT]))
    long_rows, long_found = store.get([(0, 3), (1, 0), (1, 1), (99, 99)])
    np.testing.assert_array_equal(few_rows, long_rows)
    np.testing.assert_array_equal(few_found, long_found)
    np.testing.assert_array_equal(few_rows[:3], rows_of([3, 4, 5], 4))


def test_a_hit_of_few_counts_and_keeps_the_row_from_eviction(store):
    store.get(NGRAMS[:20])  # the cache is full, row 0 is the oldest
    before = store.stats()
    store.get(NGRAMS[:1])
    after = store.stats()
    assert after["cache_hits"] == before["cache_hits"] + 1
    assert (after["calls"], after["found"]) == (before["calls"] + 1, before["found"] + 1)
    store.get(NGRAMS[20:21])  # pushes out row 1, the oldest now
    assert store._cache.stats()["cache_evicted"] == 1
    rows_read = store.stats()["rows_read"]
    store.get(NGRAMS[:1])
    assert store.stats()["rows_read"] == rows_read


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_few_rows_come_in_every_type(store, dtype):
    store.get(NGRAMS[:4])
    rows, _ = store.get(NGRAMS[1:3], dtype=dtype)
    wanted, _ = store.get([(0, 1), (0, 2)], dtype=dtype)
    assert rows.dtype == wanted.dtype
    np.testing.assert_array_equal(rows, wanted)
