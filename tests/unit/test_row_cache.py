"""The row cache: right rows whatever is evicted or lost; exact counts; threads share it."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
from cache_cases import check_sound, entries_of
from hypothesis import given, settings
from hypothesis import strategies as st
from store_cases import build, some_ngrams, some_rows

import ngramstore as ngs
from ngramstore.errors import UsageError
from ngramstore.kernels.native import cache_table as parts
from ngramstore.kernels.native.arrivals import keep_and_write
from ngramstore.kernels.native.cache import insert as keep
from ngramstore.kernels.native.dequantize import row_writer
from ngramstore.serve import lookups
from ngramstore.serve.row_cache import SLOT_OVERHEAD_BYTES, RowCache

ROW = 5


def rows_of(keys: np.ndarray) -> np.ndarray:
    """What a source holds under each key: (U, 5) u8."""
    return (keys[:, None] * 7 + np.arange(ROW)).astype(np.uint8)


class Source:
    """Stands for the files: counts what is read, loses some keys, and asks the cache as a look-up does."""

    def __init__(self, lost: frozenset[int] = frozenset()) -> None:
        self.lost = lost
        self.read: list[int] = []

    def fetch(self, keys_U: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.read += keys_U.tolist()
        at = np.arange(len(keys_U)) * ROW
        at[np.isin(keys_U, list(self.lost))] = -1
        return rows_of(keys_U).reshape(-1), at

    def ask(self, cache: RowCache, keys: list[int]) -> np.ndarray:
        """Rows of those keys, zeros for -1 and for lost ones: (M, 5) u8."""
        keys_M = np.array(keys, np.int64)
        out = np.full((len(keys), ROW), 99, np.uint8)
        plan = np.array([row_writer("copy", "copy"), ROW, ROW, ROW, ROW, 0])
        misses = cache.serve(plan, keys_M, out)
        if len(misses):
            keys_U = np.array(list(dict.fromkeys(keys_M[misses].tolist())))
            rows, at = self.fetch(keys_U)
            which = np.array([keys_U.tolist().index(key) for key in keys_M[misses].tolist()])
            keep_and_write(cache.state, rows, at, keys_U, plan, which, misses, out)
        return out


def wanted(keys: list[int], lost: frozenset[int] = frozenset()) -> np.ndarray:
    rows = rows_of(np.array(keys, np.int64))
    rows[[key < 0 or key in lost for key in keys]] = 0
    return rows


def cache_of(num_slots: int, max_rows: int = 1000) -> RowCache:
    return RowCache(num_slots * (ROW + SLOT_OVERHEAD_BYTES), ROW, max_rows)


def check(cache: RowCache) -> None:
    """The cache is sound, and holds each row under its own key."""
    check_sound(cache)
    entries = entries_of(cache)
    arena = cache._arena.reshape(cache.num_slots, ROW)
    assert (arena[entries[:, parts.SLOT]] == rows_of(entries[:, parts.KEY] - 1)).all()


@settings(max_examples=80, deadline=None)
@given(
    st.integers(1, 6),
    st.lists(st.lists(st.integers(-1, 12), max_size=10), max_size=15),
    st.frozensets(st.integers(0, 12), max_size=3),
)
def test_rows_are_right_whatever_is_evicted(num_slots, calls, lost):
    """Batches larger than the cache too: then rows come from what was just read."""
    cache, source = cache_of(num_slots), Source(lost)
    asked = 0
    for keys in calls:
        assert (source.ask(cache, keys) == wanted(keys, lost)).all()
        asked += sum(key >= 0 for key in keys)
        check(cache)
    stats = cache.stats()
    assert stats["cache_hits"] + stats["cache_misses"] == asked
    assert stats["cache_rows"] == stats["cache_inserted"] - stats["cache_evicted"] <= num_slots


def test_a_second_look_reads_nothing():
    cache, source = cache_of(4), Source()
    source.ask(cache, [1, 2, 1, 3])
    assert source.read == [1, 2, 3]
    source.ask(cache, [3, 3, 2, 1])
    assert source.read == [1, 2, 3]
    assert cache.stats() == {
        "cache_hits": 4,
        "cache_misses": 4,
        "cache_inserted": 3,
        "cache_evicted": 0,
        "cache_not_kept": 0,
        "cache_rows": 3,
        "cache_bytes": 3 * ROW + 4 * SLOT_OVERHEAD_BYTES,
        "cache_budget_bytes": 4 * (ROW + SLOT_OVERHEAD_BYTES),
        "cache_slots": 4,
    }


def test_the_least_recently_used_row_goes_first():
    cache, source = cache_of(3), Source()
    for keys in ([1], [2], [3], [1], [4]):
        source.ask(cache, keys)
    source.read.clear()
    source.ask(cache, [1, 3, 4])
    assert source.read == []
    source.ask(cache, [2])
    assert source.read == [2]


def test_damaged_rows_are_not_kept():
    cache = cache_of(4)
    assert not Source(frozenset([7])).ask(cache, [7]).any()
    assert (Source().ask(cache, [7]) == wanted([7])).all()


@pytest.mark.parametrize(
    ("budget", "max_rows", "slots"),
    [(0, 10, 1), (1, 10, 1), (10 * (ROW + SLOT_OVERHEAD_BYTES), 100, 10), (1 << 40, 10, 10), (1 << 20, 1, 1)],
)
def test_slots_follow_budget_and_rows(budget, max_rows, slots):
    cache = RowCache(budget, ROW, max_rows)
    assert cache.num_slots == slots
    assert cache._arena.nbytes == slots * ROW
    assert len(cache._table) == 2 * slots
    bookkeeping = cache._table.nbytes + cache._oldest.nbytes + cache._scratch.nbytes + cache.state.nbytes
    assert bookkeeping <= slots * SLOT_OVERHEAD_BYTES + 12_000


def test_the_bookkeeping_of_many_slots_is_what_the_budget_counts():
    cache = cache_of(100_000, 100_000)
    bookkeeping = cache._table.nbytes + cache._oldest.nbytes + cache._scratch.nbytes + cache.state.nbytes
    assert 0.999 < bookkeeping / (100_000 * SLOT_OVERHEAD_BYTES) < 1.01


def test_threads_share_the_cache_and_see_right_rows():
    cache = cache_of(40)
    wrong: list[list[int]] = []

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(150):
            keys = rng.zipf(1.3, 30).clip(0, 200).tolist()
            if not (Source().ask(cache, keys) == wanted(keys)).all():
                wrong.append(keys)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []
    check(cache)
    stats = cache.stats()
    assert stats["cache_hits"] + stats["cache_misses"] == 4 * 150 * 30


def test_warming_up_is_no_look_up(tmp_path):
    ngrams = [(n,) for n in range(50)]
    with ngs.build(tmp_path / "store", dim=4, max_n=1, codec="f32") as build:
        build.add(ngrams, np.ones((50, 4), np.float32))
    with ngs.open(tmp_path / "store") as store:
        assert store.warm(ngrams) == 50
        stats = store.stats()
        assert (stats["calls"], stats["cache_hits"], stats["cache_misses"], stats["hit_rate"]) == (0, 0, 0, None)
        assert stats["rows_read"] == 50
        store.get(ngrams)
        assert store.stats()["hit_rate"] == 1


def test_warming_goes_on_where_what_it_looked_for_first_is_not_stored(tmp_path, monkeypatch):
    monkeypatch.setattr(lookups, "_LEAST_STEP", 3)
    with ngs.build(tmp_path / "store", dim=4, max_n=2, codec="f32") as build:
        build.add([(n, n) for n in range(40)], np.ones((40, 4), np.float32))
    wanted = [(n + 1, n) for n in range(50)] + [(n // 2, n // 2) for n in range(80)]
    slot = 16 + SLOT_OVERHEAD_BYTES
    for most in (0, 1, 7, 40, 99):
        with ngs.open(tmp_path / "store") as store:
            assert store.warm(wanted, max_bytes=most * slot) == min(most, 40)
            store.get([(n, n) for n in range(min(most, 40))])
            assert store.stats()["cache_misses"] == 0
    with ngs.open(tmp_path / "store", mode="rw") as store:
        store.put([(90, n) for n in range(9)], np.ones((9, 4), np.float32))
        assert store.warm([*((90, n) for n in range(9)), (1, 1), (2, 2)], max_bytes=2 * slot) == 2


def test_warming_passes_by_what_is_absent_or_was_named_before(tmp_path):
    with ngs.build(tmp_path / "store", dim=4, max_n=2, codec="f32") as build:
        build.add([(1, 2), (2, 3), (3, 4)], np.ones((3, 4), np.float32))
    with ngs.open(tmp_path / "store") as store:
        assert store.warm([(9, 9), (8, 8), (7, 7), (1, 2), (1, 2), (2, 3), (3, 4)]) == 3
    slot = 16 + SLOT_OVERHEAD_BYTES
    with ngs.open(tmp_path / "store") as store:
        assert store.warm([(9, 9), (2, 3), (2, 3), (1, 2), (3, 4)], max_bytes=2 * slot) == 2
        store.get([(2, 3), (1, 2)])
        assert store.stats()["cache_misses"] == 0
    with ngs.build(tmp_path / "rows", dim=4, codec="f32", addressing="row") as build:
        build.add_rows(np.ones((3, 4), np.float32))
    with ngs.open(tmp_path / "rows") as store:
        assert store.warm([0, 0, 0, 1, 2]) == 3
    with ngs.open(tmp_path / "rows") as store:
        assert store.warm([2, 2, 0, 0, 1], max_bytes=2 * slot) == 2
        store.rows([2, 0])
        assert store.stats()["cache_misses"] == 0


@pytest.mark.parametrize("kind", ["list of n-grams", "array of n-grams", "list of numbers", "array of numbers"])
def test_warming_keeps_the_first_keys_of_a_list_that_does_not_fit(tmp_path, kind):
    numbers = np.random.default_rng(7).permutation(60)
    rows = (numbers[:, None] + np.arange(4)).astype(np.float32)
    options = {"max_n": 1} if "n-grams" in kind else {"addressing": "row"}
    with ngs.build(tmp_path / "store", dim=4, codec="f32", **options) as build:
        if "n-grams" in kind:
            build.add(numbers[:, None], rows)
        else:
            build.add_rows(rows[np.argsort(numbers)])
    slot = 16 + SLOT_OVERHEAD_BYTES
    keys = numbers.astype(np.uint32)[:, None] if "n-grams" in kind else numbers
    for slots, most, kept in ((20, None, 20), (20, 7, 7), (20, 0, 0), (50, 20, 20), (20, 50, 20), (100, None, 60)):
        with ngs.open(tmp_path / "store", cache_bytes=slots * slot) as store:
            given = keys if "array" in kind else list(map(tuple, keys.tolist())) if keys.ndim == 2 else keys.tolist()
            assert store.warm(given, max_bytes=None if most is None else most * slot) == kept
            assert store.stats()["rows_read"] == kept
            got = store.get(keys[:kept])[0] if keys.ndim == 2 else store.rows(keys[:kept])
            np.testing.assert_array_equal(got, rows[:kept])
            stats = store.stats()
            assert (stats["cache_hits"], stats["cache_misses"]) == (kept, 0)


def check_rows_while_others_insert(num_inserting: int, seconds: float) -> None:
    """Rows of 64 KiB in 64 slots are served and compared in full while threads put others in their place."""
    row_bytes, num_slots = 1 << 16, 64
    cache = RowCache(num_slots * (row_bytes + SLOT_OVERHEAD_BYTES), row_bytes, num_slots)
    plan = np.array([row_writer("copy", "copy"), *[row_bytes] * 4, 0])
    end = time.monotonic() + seconds

    def insert(first: int) -> None:
        for begin in range(first, first + (1 << 40), 16):
            keys = np.arange(begin, begin + 16)
            keep(cache.state, np.repeat((keys % 251).astype(np.uint8), row_bytes), np.arange(16) * row_bytes, keys)
            if time.monotonic() > end:
                return

    threads = [threading.Thread(target=insert, args=(n << 41,), daemon=True) for n in range(num_inserting)]
    for thread in threads:
        thread.start()
    out = np.empty((num_slots, row_bytes), np.uint8)
    num_served = 0
    while time.monotonic() < end:
        stored = cache._table[:, parts.KEY].copy()
        keys = stored[stored > 0][:num_slots] - 1
        is_here = np.ones(len(keys), bool)
        is_here[cache.serve(plan, keys, out)] = False
        wrong = (out[: len(keys)] != (keys % 251).astype(np.uint8)[:, None]).any(axis=1)
        assert not (wrong & is_here).any()
        num_served += int(is_here.sum())
    for thread in threads:
        thread.join(60)
        assert not thread.is_alive()
    assert num_served > 0
    check_sound(cache)
    stats = cache.stats()
    assert stats["cache_rows"] == stats["cache_inserted"] - stats["cache_evicted"] == num_slots
    entries = entries_of(cache)
    arena = cache._arena.reshape(num_slots, row_bytes)
    assert (arena[entries[:, parts.SLOT]] == ((entries[:, parts.KEY] - 1) % 251).astype(np.uint8)[:, None]).all()


@pytest.mark.parametrize("num_inserting", [1, 3])
def test_rows_that_are_copied_out_are_not_written_over(num_inserting):
    check_rows_while_others_insert(num_inserting, 2)


def test_threads_that_read_the_same_rows_keep_them_once():
    """As for a prompt that several requests begin with: whoever comes second finds the rows there."""
    num_keys, turns, row_bytes = 8192, 6, 4096
    cache = RowCache(num_keys * turns * (row_bytes + SLOT_OVERHEAD_BYTES), row_bytes, num_keys * turns)
    rows, at = np.zeros(row_bytes, np.uint8), np.zeros(num_keys, np.int64)
    for turn in range(turns):
        keys = np.arange(turn * num_keys, (turn + 1) * num_keys)
        threads = [threading.Thread(target=keep, args=(cache.state, rows, at, keys)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    check_sound(cache)
    assert cache.stats()["cache_inserted"] == turns * num_keys


@pytest.mark.parametrize("cache_bytes", [0, 1 << 20])
@pytest.mark.parametrize("most", [-1, 1e9, True, "1GiB"])
def test_bytes_to_warm_that_are_no_number_of_bytes_are_refused(tmp_path, most, cache_bytes):
    path = build(tmp_path / "store", some_ngrams(20), some_rows(20))
    with ngs.open(path, cache_bytes=cache_bytes) as store:
        with pytest.raises(UsageError, match=rf"(?s)max_bytes is {most!r}.*hint: "):
            store.warm(some_ngrams(20), max_bytes=most)
        assert store.warm(some_ngrams(20), max_bytes=np.int64(0)) == 0
