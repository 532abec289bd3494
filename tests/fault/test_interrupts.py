"""Ctrl-C at each place inside a handle: locks are given back, what the handle serves is one published state, the newest
it was told of, and a recording goes on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from helpers import build_ngrams, cache_of, contents, rows_of, stamps_of
from interrupts import each_interrupt, is_interrupted

import ngramstore as ngs
from ngramstore.kernels.native.mining import EMPTY
from ngramstore.serve import recorder as recording
from ngramstore.serve.recorder import Recorder

MODEL = {(i,): i for i in range(20)} | {(i, i + 1): 1000 + i for i in range(20)}
TOKENS = np.array([[1, 2, 3, 50]], np.uint32)
ROOM = np.array([[1, 2, 2, 2]], np.uint8)


@pytest.fixture
def path(quick_path) -> Path:
    path = quick_path / "store"
    build_ngrams(path, MODEL, max_n=2)
    return path


LOOK_UPS = {
    "get": lambda store: store.get([(1,), (1, 2)]),
    "get_encoded": lambda store: store.get_encoded([(1,), (1, 2)]),
    "contains": lambda store: store.contains([(1,), (1, 2)]),
    "lookup": lambda store: store.lookup(TOKENS),
    "lookup_tail": lambda store: store.lookup_tail(TOKENS, ROOM, out=np.empty((1, 4, 4), np.float32)),
    "match": lambda store: store.match(TOKENS),
    "match_ids": lambda store: store.match_ids(TOKENS),
    "warm": lambda store: store.warm([(1,), (1, 2)]),
    "len": len,
    "stats": lambda store: store.stats(),
}


@pytest.mark.parametrize("use", LOOK_UPS)
@pytest.mark.parametrize("has_changes", [False, True])
def test_an_interrupted_look_up_of_a_writers_handle_keeps_no_lock(path, use, has_changes):
    with ngs.open(path, mode="rw") as store:
        if has_changes:
            store.put([(1,)], rows_of([1], 4))

        def check() -> None:
            assert not store._lock._is_owned()
            assert stamps_of(store.get([(1,), (1, 2)])[0]) == [1, 1001]

        assert each_interrupt(lambda: LOOK_UPS[use](store), check) > 3


def test_an_interrupted_look_up_by_number_keeps_no_lock(quick_path):
    with ngs.build(quick_path / "rows", dim=4, addressing="row", codec="f32") as builder:
        builder.add_rows(rows_of(range(9), 4))
    with ngs.open(quick_path / "rows", mode="rw") as store:
        store.put([3], rows_of([33], 4))

        def check() -> None:
            assert not store._lock._is_owned()
            assert stamps_of(store.rows([3, 4])) == [33, 4]

        assert each_interrupt(lambda: store.rows([3, 4]), check) > 3


@pytest.mark.parametrize("options", [{"cache_bytes": cache_of(60, 16)}, {"cache_bytes": 0}, {"resident": True}])
def test_after_an_interrupted_refresh_the_next_one_shows_the_newest_state(path, options):
    stamp = 0
    with ngs.open(path, mode="rw") as writer, ngs.open(path, **options) as reader:

        def publish() -> None:
            nonlocal stamp
            stamp += 1
            writer.put([(1,), (90, stamp)], rows_of([stamp, stamp], 4))
            writer.flush() if stamp % 7 else writer.compact()

        def check() -> None:
            reader.refresh()
            assert reader.generation == writer.generation
            assert len(reader) == len(MODEL) + stamp
            assert stamps_of(reader.get([(1,), (90, stamp), (5,)])[0]) == [stamp, stamp, 5]
            assert stamps_of(reader.get(np.array([[90, stamp]], np.uint32))[0]) == [stamp]  # by the short way
            publish()

        publish()
        assert each_interrupt(reader.refresh, check) > 10


@pytest.mark.parametrize("how", ["flush", "compact", "refresh", "batches"])
def test_after_an_interrupted_publication_its_own_handle_serves_what_was_put(path, how):
    stamp = 0
    acts = {"batches": lambda store: list(store.batches())}
    act = acts.get(how, lambda store: getattr(store, how)())
    with ngs.open(path, mode="rw") as store:

        def put() -> None:
            nonlocal stamp
            stamp += 1
            store.put([(1,), (90, stamp)], rows_of([stamp, stamp], 4))
            assert stamps_of(store.get([(1,)])[0]) == [stamp]

        def check() -> None:
            assert stamps_of(store.get([(1,), (90, stamp), (5,)])[0]) == [stamp, stamp, 5]
            assert len(store) == len(MODEL) + stamp
            assert not store._lock._is_owned()
            put()

        put()
        assert each_interrupt(lambda: act(store), check) > 3
        store.flush()
        assert sum(len(rows) for _, _, rows in store.batches()) == len(MODEL) + stamp


def test_after_an_interrupted_publication_all_that_is_told_is_of_the_newest_state(path):
    """No look-up in between: what lists, counts and copies asks for what was published itself."""
    for nth in range(100):
        with ngs.open(path, mode="rw") as store:
            store.put([(91, nth)], rows_of([nth], 4))
            store.get([(1,)])
            if not is_interrupted(store.flush, nth, "ngramstore/serve/"):
                break
            ask = (lambda: store.stats()["rows"], lambda: len(store), lambda: len(contents(store)))[nth % 3]
            assert ask() == len(MODEL) + nth + 1
    assert 3 < nth < 99


@pytest.mark.parametrize("has_changes", [False, True])
@pytest.mark.parametrize("how", ["close", "leave after an error"])
def test_after_an_interrupted_close_the_store_can_be_opened_for_writing(path, how, has_changes):
    """Closing again is all it takes, at most, and no lock, file or journal of the first handle is in the way."""
    error = ZeroDivisionError()
    for nth in range(100):
        store = ngs.open(path, mode="rw", threads=2)
        if has_changes:
            store.put([(1,)], rows_of([nth], 4))
        act = store.close if how == "close" else lambda store=store: store.__exit__(type(error), error, None)
        has_come = is_interrupted(act, nth, "ngramstore/serve/")
        if not store._closed:
            store.close()
        with ngs.open(path, mode="rw") as next_one:
            assert stamps_of(next_one.get([(1,)])[0]) == [nth if has_changes else 1]
        if not has_come:
            break
    assert 1 < nth < 99


def test_workers_that_cannot_be_told_to_end_keep_no_lock(path, monkeypatch):
    store = ngs.open(path, mode="rw")
    monkeypatch.setattr(store._workers, "close", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        store.close()
    ngs.open(path, mode="rw").close()


def test_a_writer_whose_closing_is_interrupted_keeps_no_lock(path, monkeypatch):
    store = ngs.open(path, mode="rw")
    store.put([(1,)], rows_of([7], 4))
    act = store._shut
    assert is_interrupted(act, 0, "ngramstore/store/changes/writer.py")  # as it begins: nothing is closed
    ngs.open(path, mode="rw").close()


def num_used(recorder: Recorder) -> int:
    """Slots of its table that hold a key; fails where that is more than it may hold, or not what it believes."""
    used = int(np.count_nonzero(recorder._table_C2[:, 0] != EMPTY))
    assert recorder._used in (None, used)
    assert used <= min(recorder.max_entries, 0.7 * len(recorder._table_C2))
    return used


def test_a_recording_that_was_interrupted_as_a_kernel_ended_knows_how_full_its_table_is(monkeypatch):
    """Ctrl-C is raised before what the kernel answers is kept. In a table that is full to the last slot it would look
    for a free one for ever."""
    recorder, count_keys = Recorder("row", 10**9), recording.native.count_keys

    def interrupted(*arguments: object) -> None:
        count_keys(*arguments)
        raise KeyboardInterrupt

    for begin in range(0, 24_000, 8_000):
        keys = np.arange(begin, begin + 8_000)
        with monkeypatch.context() as patch:
            patch.setattr(recording.native, "count_keys", interrupted)
            with pytest.raises(KeyboardInterrupt):
                recorder.add(keys)
        num_used(recorder)
        recorder.add(keys)
        assert num_used(recorder) == begin + 8_000
    assert sorted(recorder.result().keys.tolist()) == list(range(24_000))


@pytest.mark.parametrize("max_entries", [20, 10**6], ids=["full", "growing"])
def test_a_recording_that_was_interrupted_anywhere_goes_on(monkeypatch, max_entries):
    monkeypatch.setattr(recording, "_FIRST_SLOTS", 16)
    recorder, added = Recorder("row", 10**9, max_entries=max_entries), 0

    def add() -> None:
        nonlocal added
        added += 15
        recorder.add(np.arange(added - 15, added))

    def check() -> None:
        assert not recorder._lock._is_owned()
        num_used(recorder)
        add()
        num_used(recorder)
        assert added - 1 in recorder.result().keys

    assert each_interrupt(add, check, "ngramstore/serve/recorder") > 10


def test_what_a_signals_handler_records_in_the_middle_of_a_recording_is_counted_too(monkeypatch):
    recorder, count_keys = Recorder("row", 10**9), recording.native.count_keys

    def count_and_handle(*arguments: object) -> tuple[int, int]:
        answer = count_keys(*arguments)
        monkeypatch.setattr(recording.native, "count_keys", count_keys)
        recorder.add(np.arange(100, 160))
        return answer

    monkeypatch.setattr(recording.native, "count_keys", count_and_handle)
    recorder.add(np.arange(50))
    assert num_used(recorder) == recorder._used == 110
