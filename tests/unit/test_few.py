"""A handful of cached n-grams in one kernel: the same answers, counters and recency as the long way."""

from __future__ import annotations

import os
import threading

import numpy as np
import pytest
from cache_cases import bytes_of, check_sound, copy_of
from helpers import flip, rows_of

import ngramstore as ngs
from ngramstore.errors import UsageError
from ngramstore.kernels.native import few as native
from ngramstore.kernels.reference import few as reference
from ngramstore.serve.few import Few
from ngramstore.serve.row_cache import SLOT_OVERHEAD_BYTES, RowCache

NGRAMS = np.array([[a, b] for a in range(6) for b in range(4)], np.uint32)
ABSENT = np.array([[99, 99]], np.uint32)


@pytest.fixture
def store(tmp_path):
    with ngs.build(tmp_path / "store", dim=4, max_n=2, codec="f32", seed=5) as build:
        build.add(NGRAMS, rows_of(range(len(NGRAMS)), 4))
    with ngs.open(tmp_path / "store", cache_bytes=20 * (16 + SLOT_OVERHEAD_BYTES)) as handle:
        yield handle


def copied(store) -> tuple[Few, RowCache]:
    """The short way over a copy of the store's cache, and that copy."""
    cache = copy_of(store._source.cache)
    return Few(store._view, cache, np.zeros(5, np.int64)), cache


def ran(kernels, store, name, *arguments):
    """What a kernel answers, writes, and does to the cache and the counters."""
    few, cache = copied(store)
    call = few._calls["f"]
    filled = arguments[-2:]
    for array in filled:
        array[...] = 9
    answer = getattr(kernels, name)(call, *arguments)
    state = (bytes_of(cache), few._alive[2].tolist())
    return answer, state, [array.tolist() for array in filled] if answer >= 0 else None


@pytest.mark.parametrize("tokens", [NGRAMS[:3], NGRAMS[[2, 2, 7]], np.concatenate([ABSENT, NGRAMS[1:2]]), NGRAMS[22:]])
def test_native_and_reference_agree_on_ngrams(store, tokens):
    store.get(NGRAMS[:10])
    buffers = np.empty((len(tokens), 4), np.float32), np.empty(len(tokens), np.bool_)
    one, other = (ran(kernels, store, "serve_ngrams", tokens, *buffers) for kernels in (native, reference))
    assert one == other
    assert (one[0] == -1) == bool((tokens[:, 0] == 5).any())


@pytest.mark.parametrize(("tokens", "last"), [(NGRAMS[:3], 1), (NGRAMS[:2], 2), (NGRAMS[22:], 1), (ABSENT, 2)])
@pytest.mark.parametrize("most", [0, 1, 2, 200])
def test_native_and_reference_agree_on_tails(store, tokens, last, most):
    store.get(NGRAMS[:10])
    room = np.full((len(tokens), last), most, np.uint8)
    buffers = np.empty((len(tokens), last, 4), np.float32), np.empty((len(tokens), last), np.uint8)
    one, other = (ran(kernels, store, "serve_tail", tokens, room, *buffers) for kernels in (native, reference))
    assert one == other
    assert (one[0] == -2) == (most > 1 and last == 2)  # at the first token of a line there is room for one


@pytest.mark.parametrize("room", [0, 1, 2, 200])
@pytest.mark.parametrize("end", [1, 2, 5, 6])
def test_native_and_reference_agree_on_one_position(store, end, room):
    store.get(NGRAMS[:10])
    tokens = np.array([0, 2, 1, 1, 5, 3], np.uint32)
    results = []
    for kernels in (native, reference):
        few, cache = copied(store)
        out = np.full(4, 9, np.float32)
        answer = kernels.serve_one(few._calls["f"], tokens, end, min(room, end), out)
        state = (bytes_of(cache), few._alive[2].tolist())
        results.append((answer, state, out.tolist() if answer >= 0 else None))
    assert results[0] == results[1]
    assert (results[0][0] == -1) == (end == 6 and room >= 2)  # (5, 3) is stored and not cached


def test_what_is_unusual_goes_the_long_way_and_says_what_is_wrong(store):
    store.get(NGRAMS[:10])
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
            store.get(NGRAMS[:1], out=out)
    for ngrams in (NGRAMS[0], np.zeros((1, 3), np.uint32), np.zeros((1, 0), np.uint32)):
        with pytest.raises(UsageError):
            store.get(ngrams)
    np.testing.assert_array_equal(store.get(NGRAMS[:4][::-2])[0], rows_of([3, 1], 4))
    np.testing.assert_array_equal(store.get(NGRAMS[:1].astype(np.int64))[0], rows_of([0], 4))
    with pytest.raises(UsageError, match="dtype"):
        store.get(NGRAMS[:1], dtype="f64")


def test_eight_threads_count_exactly(store):
    """Twenty slots, 24 n-grams: short and long ways, hits and misses at once."""
    wrong = []

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        for _ in range(300):
            picked = rng.integers(0, 24, rng.integers(1, 12))
            rows, found = store.get(NGRAMS[picked])
            if not found.all() or not np.array_equal(rows, rows_of(picked, 4)):
                wrong.append(picked)
            asked[seed] += len(picked)

    asked = [0] * 8
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
    check_sound(store._source.cache)


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
    assert store._source.cache.stats()["cache_evicted"] == 1
    rows_read = store.stats()["rows_read"]
    store.get(NGRAMS[:1])
    assert store.stats()["rows_read"] == rows_read


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.parametrize("is_resident", [False, True])
def test_a_fork_is_refused_by_every_short_way(store, is_resident):
    many = np.resize(NGRAMS[:10], (500, 2))
    line, room = np.array([2, 1], np.uint32), np.full((1, 1), 2, np.uint8)
    rows, row = np.empty((1, 1, 4), np.float32), np.empty(4, np.float32)
    with ngs.open(store.path, resident=is_resident) as handle:
        uses = {
            "few": lambda: handle.get(NGRAMS[:2]),
            "many": lambda: handle.get(many),
            "tail": lambda: handle.lookup_tail(line[None], room, out=rows),
            "one": lambda: handle.lookup_one(line, 2, 2, out=row),
        }
        handle.get(NGRAMS)
        for use in uses.values():
            use()
        assert handle._current.few.get(NGRAMS[:2], None, "f32") is not None
        assert len(handle._current.many.get(many, None, "f32").absent) == 0
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            for name, use in uses.items():
                try:
                    use()
                    told = "an answer"
                except BaseException as error:
                    told = type(error).__name__
                os.write(writing, f"{name}: {told}\n".encode())
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading) as pipe:
            said = pipe.read().splitlines()
        assert os.waitpid(child, 0)[1] == 0
        assert said == [f"{name}: WrongProcess" for name in uses]
        for use in uses.values():
            use()


@pytest.fixture
def resident(store):
    with ngs.open(store.path, resident=True) as handle:
        yield handle


def test_native_and_reference_agree_on_rows_in_memory(resident):
    tokens, room = np.array([0, 2, 1, 1, 5, 3, 9], np.uint32), np.full((1, 6), 2, np.uint8)
    ngrams = np.concatenate([NGRAMS[[3, 3, 23]], ABSENT])
    results = []
    for kernels in (native, reference):
        few = Few(resident._view, resident._source.resident, np.zeros(5, np.int64))
        call, seen = few._calls["f"], []
        rows, found = np.full((4, 4), 9, np.float32), np.empty(4, np.bool_)
        seen += [kernels.serve_ngrams(call, ngrams, rows, found), rows.tolist(), found.tolist()]
        rows, lengths = np.full((1, 6, 4), 9, np.float32), np.empty((1, 6), np.uint8)
        seen += [kernels.serve_tail(call, tokens[None], room, rows, lengths), rows.tolist(), lengths.tolist()]
        for end in range(2, 8):
            row = np.full(4, 9, np.float32)
            seen += [kernels.serve_one(call, tokens, end, 2, row), row.tolist()]
        results.append([*seen, few._alive[2].tolist()])
    assert results[0] == results[1]
    assert results[0][0] == 3 and results[0][3] == 4 and results[0][-1][:3] == [8, 16, 11]


def test_rows_in_memory_take_the_short_way_and_are_the_cached_ones(store, resident):
    assert resident._source.cache is None
    ngrams = np.concatenate([NGRAMS[3:6], ABSENT])
    short = resident._current.few.get(ngrams, None, "f32")
    assert short is not None
    for rows, found in (short, resident.get(ngrams)):
        np.testing.assert_array_equal(rows, rows_of([3, 4, 5, 0], 4) * np.array([[1], [1], [1], [0]], np.float32))
        assert found.tolist() == [True, True, True, False]
    out = np.empty(4, np.float32)
    assert resident.lookup_one(np.array([7, 2, 1], np.uint32), 3, 2, out=out) == 2
    np.testing.assert_array_equal(out, rows_of([9], 4)[0])
    stats = resident.stats()
    assert (stats["calls"], stats["positions"], stats["found"], stats["rows_read"]) == (3, 9, 7, 0)


def test_rows_in_memory_under_tombstones_take_the_short_way(store):
    with ngs.open(store.path, mode="rw") as writer:
        writer.delete([tuple(NGRAMS[1])])
    with ngs.open(store.path, resident=True) as reader:
        assert reader._current.few is not None
        rows, found = reader._current.few.get(NGRAMS[:3], None, "f32")
        assert found.tolist() == [True, False, True]
        np.testing.assert_array_equal(rows, [rows_of([0], 4)[0], np.zeros(4), rows_of([2], 4)[0]])


def test_rows_in_memory_with_damage_go_the_long_way(store):
    with ngs.open(store.path) as reader:
        at, file = int(reader._view.base.places(5, 1)[0][0]), reader._view.base.rows.path
    flip(file, at + 3)
    with ngs.open(store.path, resident=True, on_damage="missing") as reader:
        assert reader._current.few is None
        assert np.count_nonzero(~reader.get(NGRAMS)[1]) == 1


def test_rows_in_memory_of_two_layers_go_the_long_way(store):
    with ngs.open(store.path, resident=True) as reader:
        with ngs.open(store.path, mode="rw", resident=True) as writer:
            assert writer._current.few is None
            writer.put(NGRAMS[:1], rows_of([77], 4))
        assert reader._current.few is not None
        np.testing.assert_array_equal(reader.get(NGRAMS[:1])[0], rows_of([0], 4))
        assert reader.refresh() and reader._current.few is None
        np.testing.assert_array_equal(reader.get(NGRAMS[:2])[0], rows_of([77, 1], 4))
        with ngs.open(store.path, mode="rw") as writer:
            writer.compact()
        assert reader.refresh() and reader._current.few is not None
        np.testing.assert_array_equal(reader.get(NGRAMS[:2])[0], rows_of([77, 1], 4))


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
def test_few_rows_come_in_every_type(store, dtype):
    store.get(NGRAMS[:4])
    rows, _ = store.get(NGRAMS[1:3], dtype=dtype)
    wanted, _ = store.get([(0, 1), (0, 2)], dtype=dtype)
    assert rows.dtype == wanted.dtype
    np.testing.assert_array_equal(rows, wanted)
