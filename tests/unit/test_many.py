"""Many n-grams in one call into a kernel: the same rows, errors, counters and recency as the long way."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from cache_cases import bytes_of, check_sound, copy_of, keys_of
from helpers import cache_of, flip, rows_of
from hypothesis import given, settings
from hypothesis import strategies as st

import ngramstore as ngs
from ngramstore.errors import DamagedRows, DamagedStore, StoreClosed
from ngramstore.kernels.native import many as native
from ngramstore.kernels.reference import many as reference
from ngramstore.serve.few import FEW_ROWS, Few
from ngramstore.serve.row_cache import RowCache

NUM_ROWS, DIM, ROW_BYTES = 700, 4, 16
NGRAMS = np.stack([np.arange(NUM_ROWS), np.arange(NUM_ROWS) % 7], axis=1).astype(np.uint32)
positions = st.lists(st.integers(-20, NUM_ROWS - 1), min_size=FEW_ROWS + 1, max_size=600)


def build(path, **options):
    with ngs.build(path, dim=DIM, max_n=2, codec="f32", seed=5, **{"compression": "none", **options}) as builder:
        builder.add(NGRAMS, rows_of(range(NUM_ROWS), DIM))
    return path


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return build(tmp_path_factory.mktemp("many") / "store")


def ngrams_at(numbers) -> np.ndarray:
    """The n-grams of rows; below 0: some that are not stored."""
    numbers = np.array(numbers, np.int64)
    return np.where(numbers[:, None] < 0, np.uint32(4000) - numbers[:, None], NGRAMS[numbers]).astype(np.uint32)


def ran(kernels, store, numbers):
    """What a kernel answers, writes, and does to the cache."""
    cache = None if store._source.cache is None else copy_of(store._source.cache)
    counts = np.zeros(5, np.int64)
    few = Few(store._view, store._source.resident if cache is None else cache, counts)
    count = len(numbers)
    out, ids = np.full((count, DIM), 9, np.float32), np.zeros(count, np.uint64)
    keys, miss, found = np.zeros(count, np.int64), np.full(count, -7), np.zeros(count, np.bool_)
    absent = kernels.serve_ngrams(few._calls["f"], ngrams_at(numbers), out, ids, keys, miss, found)
    assert found.tolist() == [key >= 0 for key in keys]
    assert counts.tolist() == ([1, count, int(found.sum()), 0, 0] if absent == 0 else [0] * 5)
    return absent, out.tolist(), ids.tolist(), keys.tolist(), miss[:absent].tolist(), cache and bytes_of(cache)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from([1, 20, 300, NUM_ROWS]), st.lists(positions, max_size=2), positions)
def test_native_and_reference_agree_whatever_is_cached(path, num_slots, before, numbers):
    with ngs.open(path, cache_bytes=cache_of(num_slots, ROW_BYTES)) as store:
        for earlier in before:
            store.get(ngrams_at(earlier))
        assert ran(native, store, numbers) == ran(reference, store, numbers)


@pytest.mark.parametrize("count", [1, 63, 64, 65, 255, 256, 257, 512, 600, 1300])
def test_native_and_reference_agree_at_the_edges_of_blocks(path, count):
    numbers = np.random.default_rng(count).integers(-50, NUM_ROWS, count)
    with ngs.open(path, cache_bytes=cache_of(300, ROW_BYTES)) as store:
        store.get(NGRAMS[100:350])
        assert ran(native, store, numbers) == ran(reference, store, numbers)
    with ngs.open(path, resident=True) as store:
        one = ran(native, store, numbers)
        assert one == ran(reference, store, numbers)
        assert one[0] == 0
        np.testing.assert_array_equal(one[1], np.where(numbers[:, None] < 0, 0, rows_of(numbers, DIM)))


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([1, 20, 300, NUM_ROWS]),
    st.lists(positions, min_size=1, max_size=4),
    st.sampled_from(["f32", "f16", "bf16"]),
)
def test_both_ways_give_the_same_rows_and_the_same_numbers_in_stats(path, num_slots, calls, dtype):
    """A pair of tokens and lengths goes the long way."""
    budget = cache_of(num_slots, ROW_BYTES)
    with ngs.open(path, cache_bytes=budget) as short, ngs.open(path, cache_bytes=budget) as long:
        for numbers in calls:
            ngrams = ngrams_at(numbers)
            rows, found = short.get(ngrams, dtype=dtype)
            long_rows, long_found = long.get((ngrams, np.full(len(ngrams), 2)), dtype=dtype)
            np.testing.assert_array_equal(rows, long_rows)
            np.testing.assert_array_equal(found, long_found)
            np.testing.assert_array_equal(found, np.array(numbers) >= 0)
            assert short.stats() == long.stats()
            assert keys_of(short._source.cache) == keys_of(long._source.cache)


def test_large_calls_take_this_way(path, monkeypatch):
    with ngs.open(path) as store:
        monkeypatch.setattr(store, "_ids", None)  # what the long way begins with
        rows, found = store.get(NGRAMS)
        np.testing.assert_array_equal(rows, rows_of(range(NUM_ROWS), DIM))
        assert found.all()
        with pytest.raises(TypeError):
            store.get((NGRAMS, np.full(NUM_ROWS, 2)))


def test_arrays_of_every_layout_take_this_way_without_another_kernel(path):
    """Read-only ones come from mapped corpora, strided ones from windows over a line of tokens."""
    read_only = NGRAMS.copy()
    read_only.flags.writeable = False
    with ngs.open(path) as store:
        store.get(NGRAMS)
        compiled = len(native.serve_ngrams.signatures)
        for ngrams in (read_only, NGRAMS[::-1][::-1], np.asfortranarray(NGRAMS), np.repeat(NGRAMS, 2, axis=1)[:, ::2]):
            rows, found = store.get(ngrams)
            np.testing.assert_array_equal(rows, rows_of(range(NUM_ROWS), DIM))
            assert found.all()
        assert len(native.serve_ngrams.signatures) == compiled


def test_changes_that_were_published_are_served(tmp_path):
    build(tmp_path / "store")
    with ngs.open(tmp_path / "store", mode="rw") as writer:
        writer.put(NGRAMS[5:8], rows_of([1005, 1006, 1007], DIM))
        writer.delete(NGRAMS[9:10])
    want = rows_of(range(NUM_ROWS), DIM)
    want[5:8], want[9] = rows_of([1005, 1006, 1007], DIM), 0
    for options in ({}, {"resident": True}):
        with ngs.open(tmp_path / "store", **options) as store:
            for _ in range(2):
                rows, found = store.get(NGRAMS)
                np.testing.assert_array_equal(rows, want)
                assert np.flatnonzero(~found).tolist() == [9]


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_damaged_rows_are_named_and_the_rest_is_served(tmp_path, compression):
    build(tmp_path / "store", compression=compression)
    with ngs.open(tmp_path / "store") as store:
        key = int(store._view.find(store._ids(NGRAMS[33:34], "get"))[0])
        at, file = int(store._view.base.places(key & (1 << 40) - 1, 1)[0][0]), store._view.base.rows.path
    flip(file, at + 3)
    want = rows_of(range(NUM_ROWS), DIM)
    want[33] = 0
    with ngs.open(tmp_path / "store") as store:
        out = np.full((NUM_ROWS, DIM), 9, np.float32)
        with pytest.raises(DamagedRows, match="checksum"):
            store.get(NGRAMS, out=out)
        np.testing.assert_array_equal(out, want)
    with ngs.open(tmp_path / "store", on_damage="missing") as store:
        rows, found = store.get(NGRAMS)
        np.testing.assert_array_equal(rows, want)
        assert np.flatnonzero(~found).tolist() == [33]
        assert store.stats()["found"] == NUM_ROWS - 1


def test_a_bad_page_of_the_index_is_named(tmp_path):
    build(tmp_path / "store")
    index = next((tmp_path / "store").glob("*.index"))
    flip(index, -100)
    with ngs.open(tmp_path / "store") as store, pytest.raises(DamagedStore, match="index"):
        store.get(NGRAMS)


def test_a_closed_handle_says_so(path):
    store = ngs.open(path)
    store.get(NGRAMS)
    store.close()
    with pytest.raises(StoreClosed):
        store.get(NGRAMS)


def test_threads_share_a_cache_that_is_too_small(path):
    wrong: list[int] = []
    with ngs.open(path, cache_bytes=cache_of(150, ROW_BYTES)) as store:

        def work(seed: int) -> None:
            rng = np.random.default_rng(seed)
            for _ in range(60):
                numbers = rng.integers(0, NUM_ROWS, 400)
                rows, found = store.get(NGRAMS[numbers])
                if not (found.all() and (rows == rows_of(numbers, DIM)).all()):
                    wrong.append(seed)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        assert isinstance(store._source.cache, RowCache)
        check_sound(store._source.cache)
        stats = store.stats()
        assert stats["cache_hits"] + stats["cache_misses"] == stats["positions"] == 6 * 60 * 400
