"""The row cache's compiled kernels against their plain twins, byte for byte, and against an OrderedDict."""

from __future__ import annotations

import threading
from collections import OrderedDict

import numpy as np
import pytest
from cache_cases import bytes_of, check_sound, entries_of, keys_of, readers_of
from hypothesis import given, settings
from hypothesis import strategies as st

from ngramstore.kernels.jit import kernel
from ngramstore.kernels.native import arrivals as native_arrivals
from ngramstore.kernels.native import cache as native_cache
from ngramstore.kernels.native import cache_oldest
from ngramstore.kernels.native import cache_table as parts
from ngramstore.kernels.native import distinct as native_distinct
from ngramstore.kernels.native import index as native_index
from ngramstore.kernels.native import rows as native_rows
from ngramstore.kernels.native.dequantize import row_writer
from ngramstore.kernels.reference import arrivals as reference_arrivals
from ngramstore.kernels.reference import cache as reference_cache
from ngramstore.kernels.reference import distinct as reference_distinct
from ngramstore.kernels.reference import hashing as reference_hashing
from ngramstore.kernels.reference import rows as reference_rows
from ngramstore.serve.row_cache import SLOT_OVERHEAD_BYTES, RowCache


class CacheState:
    """A row cache driven by one package of kernels; its rows are the key's byte, repeated."""

    ROW = 3

    def __init__(self, module, num_slots: int) -> None:
        self.module, self.num_slots = module, num_slots
        self.cache = RowCache(num_slots * (self.ROW + SLOT_OVERHEAD_BYTES), self.ROW, num_slots)
        self.state = self.cache.state
        self.plan = np.array([row_writer("copy", "copy"), self.ROW, self.ROW, self.ROW, self.ROW, 0])
        self.readers: list[int] = []

    def serve(self, keys, plan=None):
        """Rows of those keys and positions of absent ones; a row that is absent stays 99."""
        keys = np.array(keys, np.int64)
        out, miss = np.full((len(keys), self.ROW), 99, np.uint8), np.zeros(len(keys), np.int64)
        absent = self.module.serve(self.state, self.plan if plan is None else plan, keys, out, miss)
        return out.tolist(), miss[:absent].tolist()

    def insert(self, keys, lost=()):
        """Put keys in, but for those that are lost."""
        keys = np.array(keys, np.int64)
        at = np.arange(len(keys)) * self.ROW
        at[np.isin(keys, list(lost))] = -1
        self.module.insert(self.state, np.repeat(keys % 251, self.ROW).astype(np.uint8), at, keys)

    def serve_if_all_are_here(self, keys):
        """Rows if all of those keys are there."""
        keys = np.array(keys, np.int64)
        out = np.full((len(keys), self.ROW), 99, np.uint8)
        call = compiled_serve if self.module is native_cache else reference_cache.serve_if_all_are_here
        there = call(self.state.ctypes.data, self.plan, keys, len(keys), out.ctypes.data)
        return out.tolist() if there else None

    def hold(self, keys) -> None:
        """Be another thread that is copying some rows out: what is there of them was found by it, the first of them first."""
        stamps = {key - 1: stamp for key, stamp, _ in entries_of(self.cache).tolist()}
        begin = min((stamps[key] for key in keys if key in stamps), default=int(self.state[parts.CLOCK]) + 1)
        free = int(np.flatnonzero(readers_of(self.cache) == 0)[-1])
        readers_of(self.cache)[free] = begin
        self.readers.append(free)

    def let_go(self) -> None:
        if self.readers:
            readers_of(self.cache)[self.readers.pop(0)] = 0


@kernel
def compiled_serve(state, plan, keys, count, target):
    """The helper, callable from here."""
    return native_cache.serve_if_all_are_here(state, plan, keys, count, target)


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


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(-1, 6), max_size=30))
def test_distinct_lists_each_key_once_in_order_of_appearance(keys):
    results = []
    for module in (native_distinct, reference_distinct):
        count = len(keys)
        miss, miss_keys, miss_seeds = np.zeros(count, np.int32), np.zeros(count, np.int64), np.zeros(count, np.uint64)
        seen = np.zeros(1 << (2 * count).bit_length(), np.int32)
        array = np.array(keys, np.int64)
        unique = module.distinct(seen, array, array.astype(np.uint64), miss, miss_keys, miss_seeds)
        results.append((unique, miss.tolist(), miss_keys.tolist(), miss_seeds.tolist()))
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
            told = module.read_rows(layers, keys, np.zeros(1, np.uint64), 8, True, staging, lengths, status)
            assert told == (-1, 0, 0)
