"""The N-th write, fsync, rename or unlink fails, for every N: the old state or the new one is there, and a retry works."""

from __future__ import annotations

import errno
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from failures import Failing, each_failure
from helpers import assert_verifies, build_ngrams, contents, published, rows_of, stamps_of

import ngramstore as ngs
from ngramstore import file_writer, files
from ngramstore.errors import DiskFull, IncompleteStore, NotAStore
from ngramstore.store.building import packing
from ngramstore.store.repair.repair import repair

OLD = {(1,): 1, (2,): 2, (3,): 3, (1, 2): 4, (2, 3): 5, (1, 2, 3): 6, (7, 8, 9): 7}
PUT = {(2,): 20, (4,): 40, (3, 4): 41}
DELETED = [(1, 2, 3), (7, 8, 9)]
NEW = {ngram: stamp for ngram, stamp in {**OLD, **PUT}.items() if ngram not in DELETED}


def build(path: Path, memory_bytes: int, **options) -> None:
    """A build that spills runs, if memory_bytes is small."""
    with ngs.build(path, dim=4, max_n=3, codec="f32", memory_bytes=memory_bytes, threads=2, **options) as builder:
        stamps = np.arange(200)
        builder.add(np.stack([stamps, stamps + 1], axis=1), rows_of(stamps, 4))


@pytest.mark.parametrize("memory_bytes", [1 << 20, 1], ids=["in memory", "spilled"])
@pytest.mark.parametrize("is_large", [False, True], ids=["", "as a large one"])
def test_a_build_that_fails_anywhere_leaves_nothing_or_is_recognised(quick_path, monkeypatch, memory_bytes, is_large):
    """As a large one: in threads, and past the page cache."""
    wanted = {(i, i + 1): i for i in range(200)}
    if is_large:
        monkeypatch.setattr(packing, "CHUNK_BYTES", 200)
        monkeypatch.setattr(packing, "_MIN_CHUNK_BYTES", 1)
        monkeypatch.setattr(packing, "_UNCACHED_FROM_BYTES", 0)
        monkeypatch.setattr(file_writer, "_PIECE_BYTES", 4096)

    def check(_, path, error):
        try:
            assert published(path) == wanted  # also after an error: the last fsync comes after the rename
        except IncompleteStore:
            build(path, memory_bytes, restart=True)
        except NotAStore:
            build(path, memory_bytes)
        assert published(path) == wanted
        ngs.open(path, mode="rw").close()  # removes what a failed unlink has left
        left = {file.name for file in path.iterdir()}
        assert left == {"LOCK", "MANIFEST", "base-000001.index", "base-000001.rows", "base-000001.tokens"}

    num = each_failure(monkeypatch, lambda path: None, lambda _, path: build(path, memory_bytes), check, quick_path)
    assert num > 15


def test_a_build_hears_of_writes_of_its_runs_that_fail_later(quick_path, monkeypatch):
    """Only a sync tells of them; rows read back wrong would be stored under good checksums."""
    synced = []

    def observe(operation: str, path: Path) -> None:
        if operation == "fsync" and path.parent.name == "runs":
            synced.append(path.suffix)
            if path.suffix == ".rows":
                raise OSError(errno.EIO, "lost later")

    monkeypatch.setattr(files, "observe", observe)
    with pytest.raises(OSError, match=r"lost later.*\.rows"):
        build(quick_path / "store", 1)
    assert ".rows" in synced and not (quick_path / "store").exists()


@pytest.mark.parametrize("code", [errno.EIO, errno.EACCES])
def test_a_build_that_cannot_even_clean_up_is_recognised(quick_path, monkeypatch, code):
    """The mark of an unfinished build goes last, whichever unlink fails; the first error is the one that is raised."""
    for nth in range(8):
        path = quick_path / f"{nth}"
        unlinks = iter(range(100))

        def observe(operation: str, path: Path, nth: int = nth, unlinks: Iterator[int] = unlinks) -> None:
            if operation == "unlink" and next(unlinks) >= nth:
                raise OSError(code, "injected")
            if operation == "fsync" and path.name == "base-000001.tokens":
                raise OSError(errno.EIO, "the first")

        with monkeypatch.context() as patch:
            patch.setattr(files, "observe", observe)
            with pytest.raises(OSError, match="the first"):
                build(path, 1 << 20)
        if not path.exists() or {file.name for file in path.iterdir()} == {"LOCK"}:
            break
        with pytest.raises(IncompleteStore):
            ngs.open(path)
        build(path, 1 << 20, restart=True)
        assert len(published(path)) == 200
    assert nth > 3


def opened(path: Path):
    """A writer on a store without changes."""
    template = path.parent / "template"
    if not template.exists():
        build_ngrams(template, OLD)
    shutil.copytree(template, path)
    return ngs.open(path, mode="rw")


def changed(path: Path, *, flushed: bool):
    """A writer on a store with unpublished changes; `flushed`: with an overlay and nothing unpublished."""
    store = opened(path)
    store.put(list(PUT), rows_of(list(PUT.values()), 4))
    store.delete(DELETED)
    if flushed:
        store.flush()
    return store


def check_writer(store, path: Path, error: BaseException | None, before: dict, act: Callable) -> None:
    """The failed handle still tells the truth, readers see the old or the new state, the retry works, also once reopened."""
    assert published(path) in (before, NEW)
    rows, found = store.get(list(NEW))
    assert found.all()
    np.testing.assert_array_equal(rows, rows_of(list(NEW.values()), 4))
    assert not store.contains(DELETED).any()
    assert len(store) == len(NEW)
    store.put([(2,)], rows_of([21], 4))  # the retry carries one more change
    act(store)
    assert published(path) == {**NEW, (2,): 21}
    assert contents(store) == {**NEW, (2,): 21}
    store.close()
    left = {file.name for file in path.iterdir()} - {"MANIFEST", "LOCK"}
    with ngs.open(path, mode="rw") as again:
        named = {file.name for file in again.files}
        assert contents(again) == {**NEW, (2,): 21}
    assert left == named, "files that no manifest names are gone after a good flush"
    assert_verifies(path)


@pytest.mark.parametrize("before", [{}, {(9,): 90}], ids=["first", "later"])
def test_a_put_that_fails_anywhere_is_there_whole_or_not_at_all(quick_path, monkeypatch, before):
    """The first put makes the journal; each writes its ACK."""
    old, new = OLD | before, OLD | before | PUT

    def prepare(path):
        store = opened(path)
        if before:
            store.put(list(before), rows_of(list(before.values()), 4))
        return store

    def check(store, path, error):
        assert published(path) == OLD
        rows, found = store.get(list(new))  # `contents` would publish
        there = [key for key, is_there in zip(new, found, strict=True) if is_there]
        now = dict(zip(there, stamps_of(rows[found]), strict=True))
        assert len(store) == len(now)
        assert now == new if error is None else now in (old, new)
        store._shut()  # as if killed
        with ngs.open(path, mode="rw") as again:
            assert contents(again) == now
            again.put([(2,)], rows_of([21], 4))
            assert contents(again) == {**now, (2,): 21}
        assert published(path) == {**now, (2,): 21}

    num = each_failure(
        monkeypatch, prepare, lambda store, _: store.put(list(PUT), rows_of(list(PUT.values()), 4)), check, quick_path
    )
    assert num >= (1 if before else 7)


def test_a_flush_that_fails_anywhere_leaves_the_old_state_or_the_new_one(quick_path, monkeypatch):
    num = each_failure(
        monkeypatch,
        lambda path: changed(path, flushed=False),
        lambda store, _: store.flush(),
        lambda store, path, error: check_writer(store, path, error, OLD, lambda store: store.flush()),
        quick_path,
    )
    assert num > 10


def test_a_compaction_that_fails_anywhere_leaves_the_old_state_or_the_new_one(quick_path, monkeypatch):
    num = each_failure(
        monkeypatch,
        lambda path: changed(path, flushed=True),
        lambda store, _: store.compact(),
        lambda store, path, error: check_writer(store, path, error, NEW, lambda store: store.compact()),
        quick_path,
    )
    assert num > 10


@pytest.mark.parametrize("operation", ["flush", "compact"])
def test_two_failures_in_a_row_and_a_kill_leave_a_good_store(quick_path, monkeypatch, operation):
    """The first failure may come after the rename: the second try must not write over files that are published by then."""
    acknowledged = []

    def act(store, _):
        try:
            getattr(store, operation)()
        except OSError:
            store.put([(2,)], rows_of([22], 4))  # may raise as well, while the disk is full
            acknowledged.append(store.path)
            with monkeypatch.context() as patch:
                patch.setattr(files, "observe", Failing(3, errno.EIO, for_good=True))
                try:
                    getattr(store, operation)()
                except OSError:
                    pass
            raise

    def check(store, path, error):
        last = {**NEW, (2,): 22}
        assert published(path) in (OLD, NEW, last)
        assert_verifies(path)
        store._shut()  # as if killed
        with ngs.open(path, mode="rw") as again:
            now = contents(again)
        wanted = [last] if path in acknowledged else [NEW, last]  # a put that raised is there whole or not at all
        assert now in wanted
        assert published(path) == now

    each_failure(monkeypatch, lambda path: changed(path, flushed=operation == "compact"), act, check, quick_path)
    assert len(acknowledged) > 10


def test_a_reader_is_not_troubled_by_failures_of_the_writer(quick_path, monkeypatch):
    def prepare(path):
        store = changed(path, flushed=False)
        return store, ngs.open(path, cache_bytes=0)

    def check(pair, path, error):
        writer, reader = pair
        assert contents(reader) == OLD
        reader.refresh()
        assert contents(reader) in (OLD, NEW)
        writer.flush()
        reader.refresh()
        assert contents(reader) == NEW
        reader.close()
        writer.close()

    each_failure(monkeypatch, prepare, lambda pair, _: pair[0].flush(), check, quick_path)


def test_a_backup_that_fails_anywhere_is_absent_and_can_be_tried_again(quick_path, monkeypatch):
    def check(store, path, error):
        copy = path.with_name(path.name + "-copy")
        if error is None:
            assert published(copy) == NEW
        else:
            with pytest.raises((NotAStore, IncompleteStore)):
                ngs.open(copy)
            if not isinstance(error, DiskFull):  # one failure alone: nothing stays behind
                store.backup(copy)
                assert published(copy) == NEW
        assert published(path) == NEW
        store.close()

    num = each_failure(
        monkeypatch,
        lambda path: changed(path, flushed=True),
        lambda store, path: store.backup(path.with_name(path.name + "-copy")),
        check,
        quick_path,
    )
    assert num > 10


@pytest.fixture
def damaged(quick_path):
    """Makes copies of a store with an overlay, unpublished changes and rows of the base that are lost; and what is left of it."""
    template = quick_path / "damaged"
    store = changed(template, flushed=True)
    store.put([(5,)], rows_of([50], 4))
    store._shut()
    rows = template / "base-000001.rows"
    data = bytearray(rows.read_bytes())
    data[-60:] = bytes(60)
    rows.write_bytes(data)
    shutil.copytree(template, quick_path / "whole")
    num_lost = repair(quick_path / "whole").num_lost
    wanted = published(quick_path / "whole")
    assert num_lost == len(NEW) + 1 - len(wanted) > 0 and wanted.items() < {**NEW, (5,): 50}.items()
    return lambda path: shutil.copytree(template, path), wanted


def test_a_repair_that_fails_anywhere_leaves_the_old_state_or_the_good_one(quick_path, monkeypatch, damaged):
    make, wanted = damaged

    def check(_, path, error):
        if error is not None:
            repair(path)
        assert published(path) == wanted
        assert_verifies(path)
        ngs.open(path, mode="rw").close()  # removes what a failed unlink has left
        left = {file.name for file in path.iterdir()} - {"MANIFEST", "LOCK"}
        with ngs.open(path) as store:
            assert left == {file.name for file in store.files}

    num = each_failure(monkeypatch, make, lambda _, path: repair(path), check, quick_path)
    assert num > 20


def test_a_repair_into_another_directory_that_fails_anywhere_leaves_the_source_and_can_be_tried_again(
    quick_path, monkeypatch, damaged
):
    make, wanted = damaged

    def files_of(path):
        return {file.name: file.read_bytes() for file in path.rglob("*") if file.is_file()}

    def check(before, path, error):
        out = path.with_name(path.name + "-out")
        assert files_of(path) == before
        try:
            assert published(out) == wanted
        except (NotAStore, IncompleteStore):
            assert error is not None
            if isinstance(error, DiskFull) and out.exists():
                shutil.rmtree(out)  # a disk on which nothing works any more keeps what it has
            repair(path, out)
            assert published(out) == wanted
        assert_verifies(out)

    num = each_failure(
        monkeypatch,
        lambda path: files_of(make(path)),
        lambda _, path: repair(path, path.with_name(path.name + "-out")),
        check,
        quick_path,
    )
    assert num > 20
