"""A look-up split over threads is the look-up: the same rows, lengths, counts and errors, whatever the parts."""

from __future__ import annotations

import gc
import linecache
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from helpers import all_ngrams, build_ngrams, cache_of, flip, open_files, rows_of
from store_cases import build_rows

import ngramstore as ngs
from ngramstore.errors import DamagedRows, DamagedStore, StoreClosed, UsageError
from ngramstore.serve import split
from ngramstore.store.view import View

NGRAMS = [ngram for ngram in all_ngrams(4, (0, 1, 2)) if sum(ngram) % 3]
MODEL = {ngram: stamp for stamp, ngram in enumerate(NGRAMS)}
OPTIONS = {
    "cached": {},
    "small cache": {"cache_bytes": cache_of(5, 16)},
    "no cache": {"cache_bytes": 0},
    "resident": {"resident": True},
}


@pytest.fixture
def path(quick_path):
    build_ngrams(quick_path / "store", MODEL, max_n=4)
    with ngs.open(quick_path / "store", mode="rw") as store:
        store.put([(0, 0), NGRAMS[3]], rows_of([900, 901], 4))
        store.delete([NGRAMS[7]])
    return quick_path / "store"


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(split, "LEAST_PART", 7)


def both(path, **options):
    return ngs.open(path, **options), ngs.open(path, **options, threads=3)


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("shape", [(1, 100), (9, 11), (40, 1), (200,), (3, 5), (0, 4)])
def test_every_look_up_by_ngram_is_the_same(path, options, shape):
    rng = np.random.default_rng(sum(shape))
    tokens = rng.integers(0, 4, shape).astype(np.uint32)
    starts = rng.random(shape) < 0.1
    one, many = both(path, **options)
    with one, many:
        for _ in range(2):  # cold, then warm
            for marks in (None, starts):
                wanted, found = one.lookup(tokens, starts=marks), many.lookup(tokens, starts=marks)
                np.testing.assert_array_equal(found.rows, wanted.rows)
                np.testing.assert_array_equal(found.length, wanted.length)
                np.testing.assert_array_equal(many.match(tokens, starts=marks), wanted.length)
            asked = [NGRAMS[i] if i < len(NGRAMS) else (9, i) for i in rng.integers(0, len(NGRAMS) + 20, 90)]
            for values, others in zip(many.get(asked), one.get(asked), strict=True):
                np.testing.assert_array_equal(values, others)
            np.testing.assert_array_equal(many.get_encoded(asked)[0], one.get_encoded(asked)[0])
            np.testing.assert_array_equal(many.contains(asked), one.contains(asked))
            for values, others in zip(
                many.match_ids(tokens.reshape(-1)), one.match_ids(tokens.reshape(-1)), strict=True
            ):
                np.testing.assert_array_equal(values, others)
            ids, lengths = one.match_ids(tokens)
            assert ids.shape == lengths.shape == shape
            np.testing.assert_array_equal(lengths, one.match(tokens))
        if tokens.ndim == 2:
            room = np.minimum(rng.integers(0, 5, shape), np.arange(1, shape[1] + 1)).astype(np.uint8)
            outs = [np.ones((*shape, 4), np.float32) for _ in range(2)]
            lengths = [store.lookup_tail(tokens, room, out=out) for store, out in zip((one, many), outs, strict=True)]
            np.testing.assert_array_equal(*lengths)
            np.testing.assert_array_equal(*outs)
        names = ("calls", "positions", "found")
        assert [many.stats()[name] for name in names] == [one.stats()[name] for name in names]


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
@pytest.mark.parametrize("is_changed", [False, True])
def test_every_look_up_by_number_is_the_same(quick_path, options, is_changed):
    path = build_rows(quick_path / "rows", rows_of(range(300), 4))
    if is_changed:
        with ngs.open(path, mode="rw") as store:
            store.put([3, 150], rows_of([900, 901], 4))
    numbers = np.random.default_rng(0).integers(0, 300, (10, 30))
    one, many = both(path, **options)
    with one, many:
        for _ in range(2):
            np.testing.assert_array_equal(many.rows(numbers), one.rows(numbers))
            np.testing.assert_array_equal(many.rows_encoded(numbers), one.rows_encoded(numbers))


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("on_damage", ["raise", "missing"])
def test_damage_in_several_parts_is_one_error_or_missing_rows(quick_path, on_damage):
    path = build_rows(quick_path / "rows", rows_of(range(300), 4))
    rows = next(path.glob("base-*.rows"))
    damaged = [5, 100, 299]
    for number in damaged:
        flip(rows, 4096 + number * 20)
    one, many = both(path, on_damage=on_damage, cache_bytes=0)
    with one, many:
        if on_damage == "raise":
            for store in (one, many):
                with pytest.raises(DamagedRows) as caught:
                    store.rows(np.arange(300))
                assert sorted(caught.value.keys) == damaged
            return
        found = [np.zeros(300, bool) for _ in range(2)]
        np.testing.assert_array_equal(
            many.rows(np.arange(300), found=found[1]), one.rows(np.arange(300), found=found[0])
        )
        assert np.flatnonzero(~found[1]).tolist() == np.flatnonzero(~found[0]).tolist() == damaged


@pytest.mark.usefixtures("small_parts")
def test_a_writers_unpublished_changes_are_seen(path):
    with ngs.open(path, mode="rw", threads=3) as store:
        store.put(NGRAMS[20:40], rows_of(range(500, 520), 4))
        rows, found = store.get(NGRAMS)
        wanted = np.arange(len(NGRAMS))
        wanted[20:40] = np.arange(500, 520)
        wanted[3] = 901
        np.testing.assert_array_equal(rows[found], rows_of(wanted[found], 4))
        assert np.flatnonzero(~found).tolist() == [7]


@pytest.mark.usefixtures("small_parts")
def test_parts_run_side_by_side_and_end_before_an_error_is_raised():
    workers = split.Workers(3)
    meeting, ended = threading.Barrier(3, timeout=20), []

    def work(part: slice) -> int:
        meeting.wait()
        if part.start:
            raise ValueError(f"at {part.start}")
        time.sleep(0.1)
        ended.append(part.start)
        return part.start

    with pytest.raises(ValueError, match="at 10"):  # of two, the first part's
        workers.run(work, workers.parts(30))
    assert ended == [0]
    workers.close()
    assert workers.run(lambda part: part.stop, workers.parts(30)) == [10, 20, 30]  # alone, after the end


@pytest.mark.usefixtures("small_parts")
def test_a_caller_does_what_nobody_is_free_for():
    """Four callers and one helper: none waits for the helper to come to its parts."""
    workers = split.Workers(2)
    blocked, release = threading.Event(), threading.Event()

    def block(part: slice) -> None:
        if threading.current_thread().name.startswith("ngramstore-look-up"):
            blocked.set()
            assert release.wait(20)
        else:
            assert blocked.wait(20)

    with ThreadPoolExecutor(1) as pool:
        held = pool.submit(workers.run, block, workers.parts(20))
        assert blocked.wait(20)
        assert workers.run(lambda part: part.start, workers.parts(20)) == [0, 10]  # the helper is not free
        release.set()
        held.result()
    workers.close()


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("where", ["at work", "waiting", "waiting, three times"])
def test_ctrl_c_is_raised_when_all_parts_have_ended(where):
    """It comes while the caller is at its own part, or waits for the helper's. The helper's goes on for a while."""
    workers, ended = split.Workers(2), []
    caller, (begun, started, left) = threading.main_thread(), (threading.Event() for _ in range(3))

    def is_waiting() -> bool:
        code = sys._current_frames()[caller.ident].f_code
        return left.is_set() and code is split._Share.end.__code__

    def work(part: slice) -> None:
        if threading.current_thread() is caller:
            begun.set()
            assert started.wait(20)
            if where == "at work":
                time.sleep(20)
            left.set()
            return
        started.set()
        assert begun.wait(20)
        for _ in range(2000 if where != "at work" else 0):
            if is_waiting():
                break
            time.sleep(0.01)
        for _ in range(3 if where.endswith("times") else 1):
            signal.pthread_kill(caller.ident, signal.SIGINT)
            time.sleep(0.3)
        ended.append(part.start)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    try:
        with pytest.raises(KeyboardInterrupt):
            workers.run(work, workers.parts(20))
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(ended) == 1
    workers.close()


class Interrupting:
    """A trace function that raises Ctrl-C at the N-th place of a split call: a function begun, a line, a return.

    In split.py and what it calls. Not at a `with`, whose line comes up again behind its block: the interpreter looks
    for no signals between that and the lock's end.
    """

    def __init__(self, nth: int) -> None:
        self.nth, self.count = nth, 0
        self.places: list[tuple[str, int, str]] = []

    def __call__(self, frame, event, _):
        if split.__file__ not in (frame.f_code.co_filename, frame.f_back.f_code.co_filename):
            return None
        if event == "line" and linecache.getline(frame.f_code.co_filename, frame.f_lineno).lstrip().startswith("with "):
            return self
        self.places.append((frame.f_code.co_name, frame.f_lineno, event))
        self.count += 1
        if self.count == self.nth:
            raise KeyboardInterrupt
        return self


@pytest.mark.usefixtures("small_parts")
def test_ctrl_c_at_any_place_leaves_nobody_at_work_and_nothing_locked():
    """As at a function's begin, where the interpreter looks for signals: before a `try` of that function can see it."""
    nth = 0
    while True:
        nth += 1
        workers, at_work = split.Workers(2), []
        started, caller = threading.Event(), threading.main_thread()

        def work(part: slice, at_work=at_work, started=started, caller=caller) -> int:
            if threading.current_thread() is caller:
                assert started.wait(20)
                return part.start
            at_work.append(part.start)
            started.set()
            time.sleep(0.02)
            at_work.remove(part.start)
            return part.start

        parts = workers.parts(20)
        workers.run(lambda part: None, parts)  # the pool is there
        interrupting, before = Interrupting(nth), sys.gettrace()
        sys.settrace(interrupting)
        try:
            answer = workers.run(work, parts)
        except KeyboardInterrupt:
            answer = None
        finally:
            sys.settrace(before)
        where = interrupting.places[-1:] if interrupting.count >= nth else []
        assert at_work == [], f"a helper is at work after Ctrl-C in {where}"
        meeting = threading.Barrier(2, timeout=20)
        assert workers.run(lambda part, meet=meeting.wait: meet() < 2, parts) == [True, True], (
            where
        )  # the helper is free
        workers.close()
        if interrupting.count < nth:
            assert answer == [0, 10]
            break
        assert answer is None, where
    assert nth > 30


@pytest.mark.usefixtures("small_parts")
def test_after_an_error_in_another_thread_dropping_the_handle_closes_its_files(path, monkeypatch):
    """No cycle of error, traceback and handle is left for the collector."""
    real, begun = View.find, threading.Event()

    def find(view, ids_M):
        if threading.current_thread() is not threading.main_thread():
            begun.set()
            raise DamagedStore("a page of the index")
        assert begun.wait(20)
        return real(view, ids_M)

    monkeypatch.setattr(View, "find", find)
    before = open_files()
    gc.disable()
    try:
        store = ngs.open(path, threads=3)
        with pytest.raises(DamagedStore, match="a page of the index"):
            store.contains(NGRAMS)
        store.close()
        del store
        assert open_files() == before
    finally:
        gc.enable()


@pytest.mark.usefixtures("small_parts")
def test_a_signals_handler_may_split_a_look_up_in_the_middle_of_another():
    """It comes in the thread that holds the lock."""
    workers = split.Workers(2)
    with workers._lock:
        assert workers._lock.acquire(timeout=1)
        workers._lock.release()
        assert workers.run(lambda part: part.start, workers.parts(20)) == [0, 10]
        workers.close()


def test_small_look_ups_stay_in_the_callers_thread(path):
    assert [len(split.Workers(4).parts(count)) for count in (0, 1, 4095, 4096, 8192, 10**6)] == [1, 1, 1, 2, 4, 4]
    with ngs.open(path, threads=np.int8(4)) as store:
        store.lookup(np.zeros((1, 100), np.uint32))
        assert store._workers._pool is None
        store.lookup(np.zeros((1, 50_000), np.uint32))
        assert store._workers._pool is not None
    with pytest.raises(StoreClosed):
        store.lookup(np.zeros((1, 5000), np.uint32))


@pytest.mark.parametrize("threads", [0, -1, 257, "2", 1.5, None, True])
def test_other_numbers_of_threads_are_refused(path, threads):
    with pytest.raises(UsageError, match="threads is"):
        ngs.open(path, threads=threads)
