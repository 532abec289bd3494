"""A handful of rows by number in one kernel: the same answers, errors, counters and recency as the long way."""

from __future__ import annotations

import ctypes
import os
import threading

import numpy as np
import pytest
from cache_cases import bytes_of, check_sound, copy_of
from helpers import cache_of, flip, rows_of
from hypothesis import given, settings
from hypothesis import strategies as st

import ngramstore as ngs
from ngramstore.errors import DamagedRows, StoreClosed, UsageError
from ngramstore.kernels.native import cache as cache_kernels
from ngramstore.kernels.native import few_rows as native
from ngramstore.kernels.native.dequantize import WRITER
from ngramstore.kernels.native.index import RANK_BITS
from ngramstore.kernels.reference import few_rows as reference
from ngramstore.serve import few as few_module
from ngramstore.serve.few import FewRows
from ngramstore.serve.row_cache import RowCache

NUM_ROWS, DIM, ROW_BYTES = 90, 4, 16
requests = st.lists(st.integers(0, NUM_ROWS - 1), min_size=1, max_size=native.MOST_ROWS)


def build(path, **options):
    with ngs.build(path, dim=DIM, addressing="row", codec="f32", **{"compression": "none", **options}) as builder:
        builder.add_rows(rows_of(range(NUM_ROWS), DIM))
    return path


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return build(tmp_path_factory.mktemp("few_rows") / "store")


@pytest.fixture(params=[0, 1, 20, NUM_ROWS])
def store(path, request):
    with ngs.open(path, cache_bytes=cache_of(request.param, ROW_BYTES) if request.param else 0) as handle:
        yield handle


def damage(path, number: int) -> None:
    """Flip one bit of a row."""
    with ngs.open(path) as store:
        at, file = int(store._view.base.places(number, 1)[0][0]), store._view.base.rows.path
    flip(file, at + 3)


def copied(store) -> tuple[FewRows, RowCache | None]:
    """The short way over a copy of the store's cache, and that copy."""
    if store._source.cache is None:
        return FewRows(store._view, None, np.zeros(5, np.int64)), None
    cache = copy_of(store._source.cache)
    return FewRows(store._view, cache, np.zeros(5, np.int64)), cache


def ran(kernels, store, numbers):
    """What a kernel answers, writes, and does to the cache and the counters."""
    few, cache = copied(store)
    out = np.full(len(numbers) * DIM, 9, np.float32)
    answer = kernels.serve_numbers(few._calls["f"], np.array(numbers, np.int64), out)
    state = None
    if cache is not None:
        state = bytes_of(cache)
    return answer, state, few._alive[2].tolist(), out.tolist() if answer >= 0 else None


@settings(max_examples=60, deadline=None)
@given(st.sampled_from([0, 1, 5, 20, NUM_ROWS]), st.lists(requests, max_size=4), requests)
def test_native_and_reference_agree_whatever_is_cached(path, num_slots, before, numbers):
    with ngs.open(path, cache_bytes=cache_of(num_slots, ROW_BYTES) if num_slots else 0) as store:
        for earlier in before:
            store.rows(earlier)
        assert ran(native, store, numbers) == ran(reference, store, numbers)


@pytest.mark.parametrize("numbers", [[-1], [NUM_ROWS], [3, -(2**63)], [2**63 - 1, 0]])
def test_native_and_reference_refuse_numbers_out_of_range(store, numbers):
    store.rows([3, 4])
    one = ran(native, store, numbers)
    assert one == ran(reference, store, numbers)
    assert one[0] == -1
    with pytest.raises(UsageError, match="does not exist"):
        store.rows(np.array(numbers))


def test_rows_in_memory_take_the_short_way(path):
    numbers = np.array([[3, 89], [3, 0]])
    with ngs.open(path, resident=True) as store:
        results = []
        for kernels in (native, reference):
            few = FewRows(store._view, store._source.resident, np.zeros(5, np.int64))
            out = np.full((4, DIM), 9, np.float32)
            answer = kernels.serve_numbers(few._calls["f"], numbers.ravel(), out.reshape(-1))
            refused = [kernels.serve_numbers(few._calls["f"], np.array([0, bad]), out.reshape(-1)) for bad in (-1, 90)]
            results.append((answer, refused, out.tolist(), few._alive[2].tolist()))
        assert results[0] == results[1]
        assert results[0][:2] == (0, [-1, -1]) and results[0][3] == [1, 4, 4, 0, 0]
        for rows in (store._current.few_rows.rows(numbers, None, "f32"), store.rows(numbers)):
            np.testing.assert_array_equal(rows, rows_of([3, 89, 3, 0], DIM).reshape(2, 2, DIM))
        with pytest.raises(UsageError, match="90"):
            store.rows(np.array([90]))


def test_native_and_reference_leave_a_damaged_row_to_the_long_way(tmp_path):
    damage(build(tmp_path / "store"), 7)
    with ngs.open(tmp_path / "store", cache_bytes=cache_of(20, ROW_BYTES)) as store:
        store.rows([5, 8])
        one = ran(native, store, [8, 6, 7, 5])
        assert one == ran(reference, store, [8, 6, 7, 5])
        assert one[0] == -1
        assert one[2] == [0] * 5


@pytest.mark.parametrize("numbers", [[0, 1, 2, 3], [2, 60, 0, 60]], ids=["cached", "some read"])
def test_rows_stay_until_they_are_copied_out(path, numbers):
    """Whoever inserts between the finding of rows and their copying evicts others, or none."""
    others = np.arange(40, 48)
    with ngs.open(path, cache_bytes=cache_of(4, ROW_BYTES)) as store:
        store.rows([0, 1, 2, 3])
        few, cache = copied(store)
        keys, at = store._view.base.serial << RANK_BITS | others, np.arange(len(others)) * ROW_BYTES

        @ctypes.CFUNCTYPE(None, *[ctypes.c_int64] * 5)
        def insert_then_copy(source, target, *_):
            cache_kernels.insert(cache.state, rows_of(others, DIM).view(np.uint8).reshape(-1), at, keys)
            ctypes.memmove(target, source, ROW_BYTES)

        call = few._calls["f"].copy()
        call[WRITER] = ctypes.cast(insert_then_copy, ctypes.c_void_p).value
        out = np.empty(len(numbers) * DIM, np.float32)
        num_read = native.serve_numbers(call, np.array(numbers), out)
        if num_read < 0 and 60 in numbers:
            pytest.skip("this filesystem does not read without waiting")
        assert num_read == numbers.count(60) // 2
        np.testing.assert_array_equal(out.reshape(-1, DIM), rows_of(numbers, DIM))
        assert cache.stats()["cache_not_kept"] > 0
        check_sound(cache)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from([0, 1, 5, 20, NUM_ROWS]), st.lists(requests, min_size=1, max_size=6), st.booleans())
def test_both_ways_give_the_same_rows_and_the_same_numbers_in_stats(path, num_slots, calls, is_encoded):
    """A list of numbers goes the long way."""
    budget = cache_of(num_slots, ROW_BYTES) if num_slots else 0
    with ngs.open(path, cache_bytes=budget) as short, ngs.open(path, cache_bytes=budget) as long:
        for numbers in calls:
            if is_encoded:
                got, wanted = short.rows_encoded(np.array(numbers)), long.rows_encoded(numbers)
            else:
                got, wanted = short.rows(np.array(numbers)), long.rows(numbers)
            np.testing.assert_array_equal(got, wanted)
            assert short.stats() == long.stats()


def test_cached_rows_take_the_short_way(path):
    with ngs.open(path) as store:
        store.rows([1, 2])
        before = store._counts.shared.tolist()
        store.rows(np.array([2, 1]))
        store.rows_encoded(np.array([[2, 1]]))
        assert store._counts.shared.tolist() == [before[0] + 2, before[1] + 4, before[2] + 4, *before[3:]]


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("shape", [(), (1,), (6,), (2, 3), (1, 2, 3)])
def test_rows_come_in_every_type_and_shape(store, dtype, shape):
    numbers = np.arange(20, 20 + int(np.prod(shape))).reshape(shape)
    for _ in range(2):
        rows = store.rows(numbers, dtype=dtype)
        wanted = store.rows(numbers.tolist(), dtype=dtype)
        assert rows.dtype == wanted.dtype
        assert rows.shape == (*shape, DIM)
        np.testing.assert_array_equal(rows, wanted)
        out = np.empty_like(rows)
        assert store.rows(numbers, out=out) is out
        np.testing.assert_array_equal(out, wanted)


def test_numbers_that_do_not_lie_side_by_side_are_taken_in_their_order(store):
    numbers = np.arange(24).reshape(4, 6)
    for some in (numbers[::2, ::-1], numbers.T, numbers[:, 3]):
        np.testing.assert_array_equal(store.rows(some), store.rows(some.tolist()))
        np.testing.assert_array_equal(store.rows_encoded(some), store.rows_encoded(some.tolist()))


def test_what_is_unusual_goes_the_long_way_and_says_what_is_wrong(store):
    numbers = np.array([5])
    wrong = [
        np.empty((1, 5), np.float32),
        np.empty((1, 4), np.float64),
        np.empty((1, 8), np.float32)[:, ::2],
        np.empty((1, 4), ">f4"),
        np.empty((1, 4), np.uint8),
        np.frombuffer(bytes(16), np.float32).reshape(1, 4),
    ]
    for out in wrong:
        with pytest.raises(UsageError, match="out"):
            store.rows(numbers, out=out)
    with pytest.raises(UsageError, match="dtype"):
        store.rows(numbers, dtype="f64")
    with pytest.raises(UsageError, match="integers"):
        store.rows(np.array([1.0]))
    for kind in (np.int32, np.uint64, ">i8"):
        np.testing.assert_array_equal(store.rows(numbers.astype(kind)), rows_of([5], DIM))
    assert store.rows(np.empty((0, 3), np.int64)).shape == (0, 3, DIM)


def test_a_damaged_row_is_named_and_the_rest_is_served(tmp_path, store):
    damage(build(tmp_path / "store"), 7)
    for options in ({"cache_bytes": store.options.cache_bytes}, {"cache_bytes": 0}):
        with ngs.open(tmp_path / "store", **options) as raising:
            for _ in range(2):
                with pytest.raises(DamagedRows) as caught:
                    raising.rows(np.array([6, 7, 8, 7]))
                assert caught.value.keys == [7]
                with pytest.raises(DamagedRows):
                    raising.rows_encoded(np.array([7]))
        with ngs.open(tmp_path / "store", on_damage="missing", **options) as missing:
            found = np.empty(3, np.bool_)
            wanted = rows_of([6, 0, 8], DIM)
            wanted[1] = 0
            np.testing.assert_array_equal(missing.rows(np.array([6, 7, 8])), wanted)
            np.testing.assert_array_equal(missing.rows(np.array([6, 7, 8]), found=found), wanted)
            assert found.tolist() == [True, False, True]


def test_a_cut_file_is_damage(tmp_path):
    build(tmp_path / "store")
    with ngs.open(tmp_path / "store", cache_bytes=0) as store:
        file = store._view.base.rows.path
        os.truncate(file, file.stat().st_size - 1)
        np.testing.assert_array_equal(store.rows(np.array([NUM_ROWS - 2])), rows_of([NUM_ROWS - 2], DIM))
        with pytest.raises(DamagedRows, match="ends inside"):
            store.rows(np.array([NUM_ROWS - 1]))


@pytest.mark.skipif(not hasattr(os, "posix_fadvise"), reason="no way to drop pages here")
@pytest.mark.parametrize("numbers", [[80, 3, 80, 41], [*range(NUM_ROWS)]], ids=["few", "many"])
def test_rows_that_left_the_page_cache_are_waited_for(store, numbers):
    numbers = np.array(numbers)
    for _ in range(3):
        fd = os.open(store._view.base.rows.path, os.O_RDONLY)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)
        np.testing.assert_array_equal(store.rows(numbers), rows_of(numbers, DIM))


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_rows_that_do_not_lie_plainly_are_read_the_long_way_and_served_the_short_one(tmp_path, compression):
    with ngs.build(tmp_path / "s", dim=256, addressing="row", codec="f32", compression=compression) as builder:
        builder.add_rows(rows_of(range(NUM_ROWS), 256))
    with ngs.open(tmp_path / "s") as store:
        numbers = np.array([1, 50, 1])
        for turn in range(3):
            np.testing.assert_array_equal(store.rows(numbers), rows_of(numbers, 256))
            stats = store.stats()
            assert (stats["rows_read"], stats["cache_hits"], stats["cache_misses"]) == (2, 3 * turn, 3)


def test_changes_are_seen_after_refresh_and_compaction(tmp_path):
    build(tmp_path / "store")
    numbers = np.array([4, 5])
    with ngs.open(tmp_path / "store") as reader, ngs.open(tmp_path / "store", mode="rw") as writer:
        assert reader.rows(numbers)[1, 0] == rows_of([5], DIM)[0, 0]
        writer.put([5], rows_of([70], DIM))
        np.testing.assert_array_equal(writer.rows(numbers), rows_of([4, 70], DIM))
        writer.flush()
        np.testing.assert_array_equal(reader.rows(numbers), rows_of([4, 5], DIM))
        for change in (lambda: None, writer.compact):
            change()
            assert reader.refresh()
            for _ in range(2):
                np.testing.assert_array_equal(reader.rows(numbers), rows_of([4, 70], DIM))


def test_what_is_asked_for_is_traced(store):
    store.rows(np.array([3, 4]))
    with store.trace() as recorder:
        store.rows(np.array([3, 5]))
        store.rows_encoded(np.array([3]))
    store.rows(np.array([3]))
    trace = recorder.result()
    assert trace.num_lookups == 3
    assert dict(zip(trace.keys.tolist(), trace.counts.tolist(), strict=True)) == {3: 2, 5: 1}


def test_a_closed_handle_says_so(path):
    store = ngs.open(path)
    store.rows(np.array([1]))
    store.close()
    for use in (store.rows, store.rows_encoded):
        with pytest.raises(StoreClosed):
            use(np.array([1]))


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_fork_is_refused(store):
    numbers = np.array([1, 2])
    store.rows(numbers)
    child = os.fork()
    if child == 0:
        told = 0
        for use in (store.rows, store.rows_encoded):
            try:
                use(numbers)
            except BaseException as error:
                told += type(error).__name__ == "WrongProcess"
        os._exit(told)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 2
    np.testing.assert_array_equal(store.rows(numbers), rows_of(numbers, DIM))


def test_eight_threads_count_exactly(path):
    """Twenty slots, 90 rows: short and long ways, hits and misses at once."""
    wrong: list[list[int]] = []
    asked = [0] * 8
    with ngs.open(path, cache_bytes=cache_of(20, ROW_BYTES)) as store:

        def work(seed: int) -> None:
            rng = np.random.default_rng(seed)
            for _ in range(300):
                picked = rng.integers(0, 30, rng.integers(1, 80))
                if not np.array_equal(store.rows(picked), rows_of(picked, DIM)):
                    wrong.append(picked.tolist())
                asked[seed] += len(picked)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert wrong == []
        stats = store.stats()
        assert (stats["calls"], stats["positions"], stats["found"]) == (8 * 300, sum(asked), sum(asked))
        assert stats["cache_hits"] + stats["cache_misses"] == sum(asked)
        assert stats["cache_rows"] == stats["cache_inserted"] - stats["cache_evicted"]
        assert stats["bytes_read"] == stats["rows_read"] * (ROW_BYTES + 4)
        check_sound(store._source.cache)


def test_where_a_read_may_wait_for_the_disk_rows_of_the_cache_are_not_held_meanwhile(path, monkeypatch):
    """A system that cannot tell whether it would wait."""
    monkeypatch.setattr(few_module, "HAS_READ_AT_ONCE", False)
    with ngs.open(path, cache_bytes=cache_of(20, ROW_BYTES)) as store:
        numbers = np.arange(5)
        assert store._current.few_rows.rows(numbers, None, "f32") is None
        np.testing.assert_array_equal(store.rows(numbers), rows_of(range(5), DIM))
        np.testing.assert_array_equal(store._current.few_rows.rows(numbers, None, "f32"), rows_of(range(5), DIM))
