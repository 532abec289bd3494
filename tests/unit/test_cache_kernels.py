"""The row cache's compiled kernels against their plain twins, byte for byte, and against an OrderedDict."""

from __future__ import annotations

import ctypes
import threading
from collections import OrderedDict

import numpy as np
import pytest
from cache_cases import CacheState, bytes_of, check_sound, keys_of, readers_of
from hypothesis import given, settings
from hypothesis import strategies as st

from ngramstore.kernels.native import cache as native_cache
from ngramstore.kernels.native import cache_oldest
from ngramstore.kernels.native import cache_table as parts
from ngramstore.kernels.native.dequantize import WRITER
from ngramstore.kernels.reference import cache as reference_cache
from ngramstore.kernels.reference import hashing as reference_hashing


def colliding_keys(num_slots: int, count: int) -> list[int]:
    """Row keys whose home is one of two neighbouring places at the end of the table, so that clusters wrap around."""
    places = 2 * num_slots
    found, key = [], 0
    while len(found) < count:
        if (reference_hashing.mix64(key) >> 32) * places >> 32 in (places - 1, places - 2):
            found.append(key)
        key += 1
    return found


requests = st.lists(
    st.tuples(
        st.lists(st.integers(-1, 13), max_size=9), st.sets(st.integers(0, 13), max_size=2), st.sampled_from("uuulh")
    ),
    max_size=25,
)


@settings(max_examples=120, deadline=None)
@given(st.integers(1, 7), requests, st.booleans())
def test_the_cache_agrees_with_its_twin_whatever_happens(num_slots, steps, collide):
    """Any sequence of look-ups, lost rows and rows that other threads hold ("h") leaves the same bytes everywhere."""
    names = colliding_keys(num_slots, 14) if collide else [5 + 1000 * i for i in range(14)]
    ours, twin = CacheState(native_cache, num_slots), CacheState(reference_cache, num_slots)
    for wanted, lost, what in steps:
        keys = [names[w] if w >= 0 else -1 for w in wanted]
        here = set(keys_of(ours.cache)) | {-1}
        answers = []
        for state in (ours, twin):
            if what == "l":
                state.let_go()
            few = state.serve_if_all_are_here(keys)
            rows, misses = state.serve(keys)
            if what == "h":
                state.hold(keys)
            state.insert(list(dict.fromkeys(keys[m] for m in misses)), [names[w] for w in lost])
            answers.append((few, rows, misses, bytes_of(state.cache)))
        assert answers[0] == answers[1]
        few, rows, misses, _ = answers[0]
        assert misses == [m for m, key in enumerate(keys) if key not in here]
        assert rows == [[0 if key < 0 else key % 251 if key in here else 99] * 3 for key in keys]
        assert few == (rows if not misses else None)
    while ours.readers:
        ours.let_go()
    check_sound(ours.cache)


def test_blocks_of_many_rows_agree_with_the_twin():
    """More rows than one block, with absent ones, none wanted and doubles at every block's edge."""
    rng = np.random.default_rng(0)
    ours, twin = CacheState(native_cache, 150), CacheState(reference_cache, 150)
    for count in (63, 64, 65, 128, 400):
        keys = rng.integers(-20, 200, count).tolist()
        keys = [max(key, -1) for key in keys]
        answers = []
        for state in (ours, twin):
            rows, misses = state.serve(keys)
            state.insert(list(dict.fromkeys(keys[m] for m in misses)))
            answers.append((rows, misses, bytes_of(state.cache)))
        assert answers[0] == answers[1]


def test_what_is_only_kept_is_neither_copied_nor_counted():
    for module in (native_cache, reference_cache):
        state = CacheState(module, 4)
        state.insert([1, 2])
        assert state.serve([1, 3, -1], np.zeros(6, np.int64)) == ([[99] * 3] * 3, [1])
        assert keys_of(state.cache) == [1, 2]
        assert state.state[parts.HITS] == state.state[parts.MISSES] == 0


@settings(max_examples=120, deadline=None)
@given(st.integers(1, 7), st.lists(st.integers(0, 13), max_size=60), st.booleans())
def test_the_cache_is_least_recently_used_first_out(num_slots, wanted, collide):
    """One key a call, against an OrderedDict; heavy collisions make each eviction shift the table."""
    names = colliding_keys(num_slots, 14) if collide else [5 + 1000 * i for i in range(14)]
    cache, model = CacheState(native_cache, num_slots), OrderedDict()
    hits = 0
    for w in wanted:
        key = names[w]
        rows, misses = cache.serve([key])
        assert bool(misses) == (key not in model)
        if misses:
            cache.insert([key])
        else:
            assert rows == [[key % 251] * 3]
        hits += key in model
        model[key] = True
        model.move_to_end(key)
        if len(model) > num_slots:
            model.popitem(last=False)
        assert keys_of(cache.cache) == list(model)[::-1]
    stats = cache.cache.stats()
    missed = len(wanted) - hits
    assert (stats["cache_hits"], stats["cache_misses"], stats["cache_inserted"]) == (hits, missed, missed)
    assert (stats["cache_evicted"], stats["cache_rows"]) == (missed - len(model), len(model))


@pytest.mark.parametrize("first_held", range(13))
def test_rows_used_since_a_reader_began_stay_and_older_ones_go(first_held):
    states = [CacheState(module, 12) for module in (native_cache, reference_cache)]
    for state in states:
        for key in range(12):
            state.insert([key])
        state.hold(range(first_held, 12))
        state.insert(range(100, 112))
        kept = list(range(100 + first_held - 1, 99, -1)) + list(range(11, first_held - 1, -1))
        assert keys_of(state.cache) == kept
    assert bytes_of(states[0].cache) == bytes_of(states[1].cache)


def test_a_reader_waits_where_all_places_of_readers_are_taken():
    state = CacheState(native_cache, 4)
    state.insert([1, 2])
    readers_of(state.cache)[:] = 1
    answers: list[object] = []
    thread = threading.Thread(target=lambda: answers.append(state.serve([1, 2, 3])), daemon=True)
    thread.start()
    thread.join(0.3)
    assert thread.is_alive() and not answers
    readers_of(state.cache)[7] = 0
    thread.join(60)
    assert answers == [([[1] * 3, [2] * 3, [99] * 3], [2])]
    assert np.flatnonzero(readers_of(state.cache) == 0).tolist() == [7]


@pytest.mark.parametrize("num_slots", [1, 63, 64, 65, 1000, 5000])
def test_eviction_is_exact_at_every_size_of_the_list_of_the_oldest(num_slots):
    """Lists that hold all rows, that overflow, that were sampled; rows that are used again after they were listed."""
    rng = np.random.default_rng(num_slots)
    cache, model = CacheState(native_cache, num_slots), OrderedDict()
    for turn in range(40):
        keys = np.unique(rng.integers(0, 3 * num_slots, max(1, num_slots // 5))).tolist()
        if turn % 4 == 1 and model:  # the oldest are wanted again, just before they would go
            keys = list(model)[: max(1, num_slots // 30)]
        _, misses = cache.serve(keys)
        assert misses == [m for m, key in enumerate(keys) if key not in model]
        cache.insert([keys[m] for m in misses])
        for key in [key for key in keys if key in model] + [keys[m] for m in misses]:
            model[key] = True
            model.move_to_end(key)
        while len(model) > num_slots:
            model.popitem(last=False)
        assert keys_of(cache.cache) == list(model)[::-1]
    assert num_slots == 1 or cache.state[parts.EVICTED] > num_slots


def test_eviction_is_exact_where_the_sample_of_the_list_of_the_oldest_misleads():
    """All rows that the sample sees were used last: it lets expect far fewer old ones than there are."""
    cache = CacheState(native_cache, 1000)
    cache.insert(range(1000))
    step = len(cache.cache._table) // cache_oldest.SAMPLE
    seen = [int(key) - 1 for key in cache.cache._table[::step, parts.KEY] if key]
    cache.serve(seen)
    order = keys_of(cache.cache)
    for new in range(2000, 2900):
        cache.insert([new])
        order = [new, *order[:-1]]
        assert keys_of(cache.cache) == order


ROW_WRITER = ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 5)


@pytest.mark.parametrize("how", ["serve", "serve_if_all_are_here"])
def test_rows_stay_until_they_are_copied_out(how):
    """Whoever inserts between the finding of rows and their copying evicts others, or none."""
    cache = CacheState(native_cache, 4)
    cache.insert([1, 2, 3, 4])

    @ROW_WRITER
    def insert_then_copy(source, target, *_):
        cache.insert([10, 11, 12, 13])
        ctypes.memmove(target, source, cache.ROW)

    plan = cache.plan.copy()
    plan[WRITER] = ctypes.cast(insert_then_copy, ctypes.c_void_p).value
    rows = [[1] * 3, [2] * 3, [0] * 3]
    if how == "serve":
        assert cache.serve([1, 2, -1], plan) == (rows, [])
    else:
        assert cache.serve_if_all_are_here([1, 2, -1], plan) == rows
    assert keys_of(cache.cache) == [11, 10, 2, 1]
    check_sound(cache.cache)
