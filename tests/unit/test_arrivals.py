"""Rows that come from files: listed once, looked for, kept and written out; compiled kernels against their plain twins."""

from __future__ import annotations

import numpy as np
from cache_cases import CacheState, bytes_of
from hypothesis import given, settings
from hypothesis import strategies as st

from ngramstore.kernels.native import arrivals as native_arrivals
from ngramstore.kernels.native import cache as native_cache
from ngramstore.kernels.native import distinct as native_distinct
from ngramstore.kernels.native import index as native_index
from ngramstore.kernels.native import rows as native_rows
from ngramstore.kernels.reference import arrivals as reference_arrivals
from ngramstore.kernels.reference import cache as reference_cache
from ngramstore.kernels.reference import distinct as reference_distinct
from ngramstore.kernels.reference import rows as reference_rows


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-1, 6), max_size=30))
def test_distinct_lists_each_key_once_in_order_of_appearance(keys):
    results = []
    for module in (native_distinct, reference_distinct):
        count = len(keys)
        places, listed_keys, seeds = np.zeros(count, np.int32), np.zeros(count, np.int64), np.zeros(count, np.uint64)
        seen = np.zeros(1 << (2 * count).bit_length(), np.int32)
        array = np.array(keys, np.int64)
        num_listed = module.distinct(seen, array, array.astype(np.uint64), places, listed_keys, seeds)
        results.append((num_listed, places.tolist(), listed_keys.tolist(), seeds.tolist()))
    assert results[0] == results[1]
    listed = list(dict.fromkeys(key for key in keys if key >= 0))
    assert results[0][2][: results[0][0]] == listed
    assert results[0][1] == [listed.index(key) if key >= 0 else -1 for key in keys]


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 40), st.booleans()), max_size=20, unique_by=lambda pair: pair[0]),
    st.data(),
    st.sampled_from(["cache", "no cache"]),
    st.booleans(),
)
def test_rows_that_were_read_are_kept_and_written_alike(read, data, where, is_written):
    """Into a cache or none, with lost rows, and rows that several positions want or none does."""
    keys = np.array([key for key, _ in read], np.int64)
    row = CacheState.ROW
    at = np.array([-1 if is_lost else u * row for u, (_, is_lost) in enumerate(read)], np.int64)
    which = np.array(data.draw(st.lists(st.integers(0, len(read) - 1), max_size=8) if read else st.just([])), np.int64)
    places = np.array(data.draw(st.permutations(range(8)))[: len(which)], np.int64)
    results = []
    for arrivals, cache in ((native_arrivals, native_cache), (reference_arrivals, reference_cache)):
        state = CacheState(cache, 6)
        state.insert([3, 99])
        out = np.full((8, row), 77, np.uint8)
        plan = state.plan if is_written else np.zeros_like(state.plan)
        kept_in = state.state if where == "cache" else np.empty(0, np.int64)
        rows = np.repeat(keys % 251, row).astype(np.uint8)
        arrivals.keep_and_write(kept_in, rows, at, keys, plan, which, places, out)
        results.append((out.tolist(), bytes_of(state.cache)))
    assert results[0] == results[1]
    expected = np.full((8, row), 77)
    for which_one, place in zip(which.tolist(), places.tolist(), strict=True):
        expected[place] = keys[which_one] if at[which_one] >= 0 else 0
    assert results[0][0] == (expected.tolist() if is_written else np.full((8, row), 77).tolist())


def test_rows_of_a_layer_that_is_not_there_are_told_not_searched_for():
    """A key of no layer in the table, before and behind those that are: nothing is read, nothing is searched without end."""
    layers = np.zeros((2, native_index.NUM_COLUMNS), np.int64)
    layers[:, native_index.SERIAL] = 4, 9
    for serial in (0, 5, 12):
        keys = np.array([serial << native_index.RANK_BITS], np.int64)
        for module in (native_rows, reference_rows):
            staging, lengths, status = np.empty(8, np.uint8), np.zeros(1, np.int64), np.zeros(1, np.uint8)
            told = module.read_rows(layers, keys, np.zeros(1, np.uint64), 8, staging, lengths, status)
            assert told == (-1, 0, 0)
