"""Handles misused and shared: after close, in a fork, pickled, by eight threads at once, on files that change under them."""

from __future__ import annotations

import gc
import os
import pickle
import shutil
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from cache_cases import check_sound
from click.testing import CliRunner
from helpers import build_ngrams, cache_of, contents, open_files, published, rows_of, stamps_of, start_python

import ngramstore as ngs
from ngramstore.cli.main import cli
from ngramstore.errors import (
    DamagedRows,
    NgramStoreError,
    ReadOnlyStore,
    StaleStore,
    StoreClosed,
    WriterLocked,
)
from ngramstore.store import view as view_module

MODEL = {(i,): i for i in range(200)} | {(i, i + 1): 1000 + i for i in range(200)}


@pytest.fixture
def path(quick_path) -> Path:
    path = quick_path / "store"
    build_ngrams(path, MODEL, max_n=2)
    return path


USES = {
    "lookup": lambda store: store.lookup([[1, 2]]),
    "match": lambda store: store.match([[1, 2]]),
    "get": lambda store: store.get([(1,)]),
    "get_encoded": lambda store: store.get_encoded([(1,)]),
    "contains": lambda store: store.contains([(1,)]),
    "in": lambda store: (1,) in store,
    "len": len,
    "items": lambda store: next(iter(store.items())),
    "batches": lambda store: next(iter(store.batches())),
    "warm": lambda store: store.warm([(1,)]),
    "stats": lambda store: store.stats(),
    "refresh": lambda store: store.refresh(),
    "verify": lambda store: store.verify(),
    "backup": lambda store: store.backup("/nowhere/at/all"),
    "put": lambda store: store.put([(1,)], rows_of([1], 4)),
    "delete": lambda store: store.delete([(1,)]),
    "flush": lambda store: store.flush(),
    "compact": lambda store: store.compact(),
    "pickle": pickle.dumps,
}


@pytest.mark.parametrize("mode", ["r", "rw"])
@pytest.mark.parametrize("use", USES)
def test_a_closed_handle_says_so(path, mode, use):
    store = ngs.open(path, mode=mode)
    store.close()
    store.close()
    with pytest.raises(StoreClosed, match="closed"):
        USES[use](store)


_CHANGES = ["put", "delete", "flush", "compact"]


@pytest.mark.parametrize(
    ("mode", "use"),
    [(mode, use) for mode in ("r", "rw") for use in ("len", "stats", "warm", "batches", "backup")]
    + [("rw", use) for use in _CHANGES],
)
def test_a_handle_closed_between_its_check_and_its_work_says_so(path, mode, use, monkeypatch):
    store = ngs.open(path, mode=mode)
    check, calls = store._check, []

    def close_after_the_first_check() -> None:
        check()
        calls.append(1)
        if len(calls) == 1:
            closer = threading.Thread(target=store.close)
            closer.start()
            closer.join(10)

    monkeypatch.setattr(store, "_check", close_after_the_first_check)
    with pytest.raises(StoreClosed, match="closed"):
        USES[use](store)


def test_an_error_inside_with_publishes_nothing_and_loses_nothing(path):
    def change_and_fail(store) -> None:
        with store:
            store.put([(1,), (1000,)], rows_of([77, 78], 4))
            store.delete([(2,)])
            raise ZeroDivisionError

    store = ngs.open(path, mode="rw")
    with pytest.raises(ZeroDivisionError):
        change_and_fail(store)
    with pytest.raises(StoreClosed):
        store.get([(1,)])
    assert published(path) == MODEL
    with ngs.open(path) as reader:
        assert reader.stats()["unpublished_changes"] is None, "a reader does not look into the journal"
    for form in ([], ["--json"]):
        said = CliRunner().invoke(cli, ["stats", str(path), *form])
        assert said.exit_code == 0 and "rows" in said.output and "unpublished_changes" not in said.output
    wanted = {**MODEL, (1,): 77, (1000,): 78}
    del wanted[2,]
    with ngs.open(path, mode="rw") as store:
        assert store.stats()["unpublished_changes"] == 3
        assert stamps_of(store.get([(1,), (1000,)])[0]) == [77, 78]
        assert (2,) not in store
    assert published(path) == wanted


@pytest.mark.parametrize("mode", ["r", "rw"])
def test_two_threads_may_close_one_handle(path, mode):
    store = ngs.open(path, mode=mode)
    with ThreadPoolExecutor(2) as pool:
        with store._lock:
            closing = [pool.submit(store.close) for _ in range(2)]
            time.sleep(0.2)  # both have looked and wait for the lock
        for one in closing:
            one.result()


@pytest.mark.parametrize("use", _CHANGES)
def test_a_handle_opened_for_reading_refuses_changes(path, use):
    with ngs.open(path) as store, pytest.raises(ReadOnlyStore) as caught:
        USES[use](store)
    assert 'mode="rw"' in caught.value.hint


@pytest.mark.parametrize("mode", ["r", "rw"])
@pytest.mark.parametrize("options", [{}, {"resident": True}, {"cache_bytes": 0, "lock_index": True}])
def test_close_lets_go_of_every_file_and_lock(path, mode, options):
    before = open_files()
    store = ngs.open(path, mode=mode, **options)
    store.get(list(MODEL))
    if mode == "rw":
        store.put([(1,)], rows_of([7], 4))
        store.get([(1,)])
    assert open_files() - before
    store.close()
    assert open_files() - before == set()
    assert (store.dim, store.max_n, store.spec.addressing) == (4, 2, "ngram")
    assert "closed" in repr(store)
    ngs.open(path, mode="rw").close()


def test_a_handle_that_failed_to_open_leaks_nothing(path):
    before = open_files()
    with pytest.raises(StaleStore):
        ngs.open(path, mode="rw", identity="00000000-0000-0000-0000-000000000000")
    os.truncate(path / "base-000001.tokens", 100)
    for mode in ("r", "rw"):
        with pytest.raises(NgramStoreError, match="tokens"):
            ngs.open(path, mode=mode)
    assert open_files() - before == set()


def in_fork(act) -> str:
    """What `act` answers in a forked child."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            answer = str(act())
        except BaseException as error:
            answer = f"{type(error).__name__}: {error}"
        os.write(writing, answer.encode())
        os._exit(0)
    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        answer = pipe.read().decode()
    assert os.waitpid(child, 0)[1] == 0
    return answer


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@pytest.mark.parametrize("mode", ["r", "rw"])
def test_a_fork_is_told_to_open_the_store_itself(path, mode):
    with ngs.open(path, mode=mode) as store:
        if mode == "rw":
            store.put([(1,)], rows_of([7], 4))
        for use in USES.values():
            said = in_fork(lambda use=use: use(store))
            assert said.startswith(("WrongProcess", "ReadOnlyStore") if mode == "r" else "WrongProcess"), said
        with store.trace() as recorder:
            for stop in (recorder.stop, lambda: store._stop_trace(recorder)):
                said = in_fork(lambda stop=stop: (stop(), store.get(np.array([[1]], np.uint32))))
                assert said.startswith("WrongProcess"), (
                    said
                )  # not by a short path that came back with the end of the trace
        assert in_fork(store.close) == "None"
        assert in_fork(lambda: stamps_of(ngs.open(path).get([(2,)])[0])) == "[2]"
        assert stamps_of(store.get([(1,)])[0]) == [7 if mode == "rw" else 1]
    assert published(path)[(1,)] == (7 if mode == "rw" else 1)


@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_fork_that_outlives_the_writer_does_not_keep_the_next_one_out(path):
    store = ngs.open(path, mode="rw")
    reading, writing = os.pipe()
    hearing, telling = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(writing)
        os.write(telling, b"!")  # by now the fork has let go of the lock
        os.read(reading, 1)  # until the parent is done
        os._exit(0)
    try:
        assert os.read(hearing, 1) == b"!"
        with pytest.raises(WriterLocked):  # the fork's copy is gone, the parent's lock is not
            ngs.open(path, mode="rw")
        store.close()
        ngs.open(path, mode="rw").close()
    finally:
        for fd in (writing, reading, hearing, telling):
            os.close(fd)
        os.waitpid(child, 0)


def test_a_pickled_handle_reopens_the_store_for_reading(path):
    with ngs.open(path, mode="rw", cache_bytes=cache_of(3, 16)) as store:
        copy = pickle.loads(pickle.dumps(store))
        assert copy.options.mode == "r"
        assert copy.options.cache_bytes == store.options.cache_bytes
        assert contents(copy) == MODEL
        store.put([(1,)], rows_of([7], 4))
        store.flush()
        assert copy.refresh()
        assert stamps_of(copy.get([(1,)])[0]) == [7]
        copy.close()


def test_a_pickled_handle_refuses_another_store(path, quick_path):
    with ngs.open(path) as store:
        data = pickle.dumps(store)
        shutil.rmtree(path)
        build_ngrams(path, {(1,): 5}, max_n=2)
        with pytest.raises(StaleStore) as caught:
            pickle.loads(data)
        assert caught.value.hint
        with pytest.raises(StaleStore):
            store.refresh()
        assert stamps_of(store.get([(1,)])[0]) == [1]  # the old files are still held


WORKERS = """
import multiprocessing, sys
import ngramstore as ngs

def work(store, queue):
    try:
        queue.put(("ok", store.get([(5,), (6,)])[0][:, 0].tolist()))
    except ngs.errors.NgramStoreError as error:
        queue.put((type(error).__name__, str(error)))

if __name__ == "__main__":
    method = sys.argv[2]
    context = multiprocessing.get_context(method)
    store = ngs.open(sys.argv[1])
    store.get([(5,)])
    queue = context.Queue()
    workers = [context.Process(target=work, args=(store, queue)) for _ in range(2)]
    for worker in workers:
        worker.start()
    print(sorted(queue.get(timeout=60) for _ in workers))
    for worker in workers:
        worker.join()
        assert worker.exitcode == 0
"""


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_worker_processes_reopen_or_are_told_to(path, tmp_path, method):
    """As data loaders do it: spawned workers get a pickled handle, forked ones the parent's own, which refuses."""
    script = tmp_path / "workers.py"
    script.write_text(WORKERS)
    child = start_python(
        "import runpy, sys; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')",
        script, path, method, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    said, complaint = child.communicate(timeout=120)
    assert child.returncode == 0, complaint.decode()
    if method == "fork":
        assert said.count(b"WrongProcess") == 2
    else:
        assert said.strip() == b"[('ok', [40.0, 48.0]), ('ok', [40.0, 48.0])]"


def hammer(num_threads: int, act) -> None:
    """`act(thread)` in threads at once; the first error is raised."""
    barrier = threading.Barrier(num_threads)

    def run(thread: int) -> None:
        barrier.wait()
        act(thread)

    switch = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(num_threads) as pool:
            for future in [pool.submit(run, thread) for thread in range(num_threads)]:
                future.result(timeout=60)
    finally:
        sys.setswitchinterval(switch)


def ask(store, rng: np.random.Generator, size: int) -> int:
    """One random look-up, checked; returns how many positions had a row."""
    keys = rng.zipf(1.3, size) % 260
    ngrams = np.stack([keys, keys + 1], axis=1)[:, : rng.integers(1, 3)]
    rows, found = store.get(ngrams)
    base = 0 if ngrams.shape[1] == 1 else 1000
    np.testing.assert_array_equal(found, keys < 200)
    np.testing.assert_array_equal(rows[found], rows_of(base + keys[found], 4))
    assert not rows[~found].any()
    return int(found.sum())


@pytest.mark.parametrize("mode", ["r", "rw"])
def test_a_cache_grows_with_its_store_as_its_budget_allows(quick_path, mode):
    build_ngrams(quick_path / "small", {(0,): 0})
    keys = np.arange(300, dtype=np.uint32).reshape(300, 1)
    with ngs.open(quick_path / "small", mode="rw", cache_bytes=cache_of(200, 16)) as writer:
        reader = writer if mode == "rw" else ngs.open(quick_path / "small", cache_bytes=cache_of(200, 16))
        for num_rows, slots in ((1, 1), (90, 180), (110, 180), (190, 200), (300, 200)):
            writer.put(keys[:num_rows], rows_of(range(num_rows), 4))
            writer.flush()
            reader.refresh()
            assert reader.stats()["cache_slots"] == slots
            before = reader.stats()["cache_hits"]
            for _ in range(2):
                assert stamps_of(reader.get(keys[:num_rows])[0]) == list(range(num_rows))
            assert reader.stats()["cache_hits"] - before >= (num_rows if num_rows <= 200 else 0)
        reader.close()


@pytest.mark.parametrize("num_slots", [1, 3, 40, 1000])
def test_eight_threads_over_one_small_cache_get_the_right_rows_and_exact_counts(path, num_slots):
    with ngs.open(path, cache_bytes=cache_of(num_slots, 16)) as store:
        present = [0] * 8
        asked = [0] * 8

        def act(thread: int) -> None:
            rng = np.random.default_rng(thread)
            for _ in range(120):
                size = int(rng.integers(1, 60))
                present[thread] += ask(store, rng, size)
                asked[thread] += size

        hammer(8, act)
        stats = store.stats()
        assert stats["cache_hits"] + stats["cache_misses"] == sum(present) == stats["found"]
        assert stats["positions"] == sum(asked)
        assert stats["cache_inserted"] - stats["cache_evicted"] == stats["cache_rows"] <= stats["cache_slots"]
        assert stats["cache_slots"] == min(num_slots, len(MODEL))
        assert stats["rows_read"] >= stats["cache_inserted"]
        assert stats["calls"] == 8 * 120
        check_sound(store._source.cache)
        for _ in range(2 * num_slots + 2):  # every slot can still be evicted
            ask(store, np.random.default_rng(9), 30)


def test_look_ups_while_another_thread_refreshes(path):
    """Each look-up is of one published state; cached rows of an older one never come back."""
    keys = [(i,) for i in range(50)]
    with ngs.open(path, mode="rw") as writer, ngs.open(path, cache_bytes=cache_of(30, 16)) as store:
        writer.put(keys, rows_of([0] * 50, 4))
        writer.flush()
        store.refresh()
        done = threading.Event()

        def act(thread: int) -> None:
            last = 0
            if thread == 0:
                for stamp in range(1, 25):
                    writer.put(keys, rows_of([stamp] * 50, 4))
                    writer.flush() if stamp % 4 else writer.compact()
                    store.refresh()
                done.set()
                return
            while not done.is_set():
                rows, found = store.get(keys)
                assert found.all()
                stamps = set(stamps_of(rows))
                assert len(stamps) == 1, "rows of two states"
                assert stamps.pop() >= last
                last = stamps_of(rows)[0]

        hammer(5, act)
        assert stamps_of(store.get(keys)[0]) == [24] * 50


def test_threads_look_up_while_the_same_handle_changes(path):
    keys = [(i,) for i in range(50)]
    with ngs.open(path, mode="rw", cache_bytes=cache_of(30, 16)) as store:
        store.put(keys, rows_of([0] * 50, 4))
        done = threading.Event()

        def act(thread: int) -> None:
            if thread == 0:
                for stamp in range(1, 13):
                    store.put(keys, rows_of([stamp] * 50, 4))
                    if stamp % 3 == 0:
                        store.flush() if stamp % 2 else store.compact()
                done.set()
                return
            last = 0
            while not done.is_set():
                stamps = set(stamps_of(store.get(keys)[0]))
                assert len(stamps) == 1
                assert max(stamps) >= last
                last = stamps.pop()
                assert len(store) == len(MODEL)

        hammer(4, act)


def test_closing_while_others_look_up_ends_in_store_closed(path):
    for mode in ("r", "rw"):
        store = ngs.open(path, mode=mode, cache_bytes=cache_of(10, 16))
        served, has_ended = [0] * 4, [False] * 4

        def ask_on(thread: int, rng: np.random.Generator, store=store, served=served, has_ended=has_ended) -> None:
            try:
                while True:
                    ask(store, rng, 20)
                    served[thread] += 1
            finally:
                has_ended[thread] = True

        def act(thread: int, store=store, served=served, has_ended=has_ended, ask_on=ask_on) -> None:
            rng = np.random.default_rng(thread)
            if thread == 0:
                while any(served[other] < 5 and not has_ended[other] for other in (1, 2, 3)):
                    ask(store, rng, 5)
                store.close()
                return
            with pytest.raises(StoreClosed, match="closed"):
                ask_on(thread, rng)

        hammer(4, act)


@pytest.mark.parametrize("options", [{"cache_bytes": cache_of(50, 16)}, {"resident": True}])
def test_a_handle_that_runs_out_of_layer_serials_starts_over(path, monkeypatch, options):
    """Rows are cached by (layer serial, rank); serials are few, a handle may live for millions of flushes."""
    monkeypatch.setattr(view_module, "_LAST_SERIAL", 3)
    keys = [(i,) for i in range(20)]
    with ngs.open(path, mode="rw", **options) as writer, ngs.open(path, **options) as reader:
        for stamp in range(12):
            writer.put(keys, rows_of([stamp] * 20, 4))
            writer.flush() if stamp % 3 else writer.compact()
            reader.refresh()
            for store in (writer, reader):
                assert stamps_of(store.get(keys)[0]) == [stamp] * 20
                assert store._view.next_serial <= 5


def test_a_rows_file_cut_under_running_threads_is_an_error_and_not_a_signal(path):
    failed = [""] * 4
    with ngs.open(path, cache_bytes=cache_of(3, 16)) as store:

        def act(thread: int) -> None:
            if thread == 0:
                os.truncate(path / "base-000001.rows", 4096 + 20 * 20)
                return
            keys = list(MODEL)
            while not failed[thread]:
                try:
                    store.get(keys)
                except DamagedRows as error:
                    failed[thread] = str(error)

        hammer(4, act)
    assert all("base-000001.rows" in said for said in failed[1:])


def test_a_flush_that_cannot_remove_its_old_journal_has_published(path, monkeypatch, caplog):
    with ngs.open(path, mode="rw") as writer:
        writer.put([(7, 7)], rows_of([77], 4))
        with monkeypatch.context() as patched:
            patched.setattr(shutil, "rmtree", lambda *_, **__: (_ for _ in ()).throw(OSError(5, "Input/output error")))
            writer.flush()
        assert published(path) == {**MODEL, (7, 7): 77}
        assert "Input/output error" in caplog.text
        assert list(path.glob("journal-*"))
        writer.put([(8, 8)], rows_of([88], 4))
        writer.flush()  # tries again
        assert not list(path.glob("journal-*"))
    assert published(path) == {**MODEL, (7, 7): 77, (8, 8): 88}


def test_a_writer_that_was_dropped_locks_nobody_out(path):
    """Nobody called close: what the journal holds open goes with the handle."""

    def change() -> None:
        writer = ngs.open(path, mode="rw")
        writer.put([(7, 7)], rows_of([77], 4))

    change()
    gc.collect()
    with ngs.open(path, mode="rw") as writer:
        assert writer.get([(7, 7)])[0][0, 0] == 8 * 77
    assert published(path) == {**MODEL, (7, 7): 77}


def test_numbers_may_be_asked_for_in_the_middle_of_a_look_up(path):
    """As a signal's handler does, which comes in the thread that is counting."""
    with ngs.open(path) as store, store.trace() as recorder:

        def ask() -> None:
            with store._counts._lock, recorder._lock:
                assert store.stats()["calls"] == 0 and recorder.result().num_lookups == 0
            done.set()

        done = threading.Event()
        threading.Thread(target=ask, daemon=True).start()
        assert done.wait(20)
