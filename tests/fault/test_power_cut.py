"""The power goes off at any moment: what is on the disk is the old state or the new one, and after the return the new one."""

from __future__ import annotations

import errno
import gc
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from checkpoints import write_engram
from failures import Failing
from helpers import build_ngrams, published, rows_of
from power_cuts import Disk, Killed, Killing, state_of

import ngramstore as ngs
from ngramstore import files
from ngramstore.store.imports.importing import import_checkpoint
from ngramstore.store.layers.manifest import MANIFEST_NAME
from ngramstore.store.repair.repair import repair

pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")

OLD = {(1,): 1, (2,): 2, (3,): 3, (1, 2): 4, (2, 3): 5, (1, 2, 3): 6, (7, 8, 9): 7}
PUT = {(2,): 20, (4,): 40, (3, 4): 41}
DELETED = [(1, 2, 3), (7, 8, 9)]
NEW = {ngram: stamp for ngram, stamp in {**OLD, **PUT}.items() if ngram not in DELETED}


@contextmanager
def power_cuts(monkeypatch: pytest.MonkeyPatch, root: Path, store: Path) -> Iterator[Disk]:
    """Every cut while the block runs leaves `store` as it was before or as it is after, and every cut after it the latter."""
    room = root.with_name(root.name + "-cuts")
    disk = Disk(root, store, room)
    old = state_of(store)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(files, "observe", disk.observe)
            yield disk
        new = state_of(store)
        assert new != old
        after = disk.cut("after the return")
        assert disk.broken == []
        assert after == {new}, "what was done did not survive a power cut after it"
        assert disk.states <= {old, new}
        assert disk.states == {old, new}, "no cut showed the one or the other"
    finally:
        disk.close()


@pytest.fixture
def root(quick_path):
    folder = quick_path / "disk"
    folder.mkdir()
    return folder


def changed(path: Path, *, flushed: bool):
    """A writer on a store with unpublished changes; `flushed`: with an overlay and nothing unpublished."""
    build_ngrams(path, OLD)
    store = ngs.open(path, mode="rw")
    store.put(list(PUT), rows_of(list(PUT.values()), 4))
    store.delete(DELETED)
    if flushed:
        store.flush()
    return store


@pytest.mark.parametrize("memory_bytes", [1 << 20, 1], ids=["in memory", "spilled"])
def test_a_build_that_a_power_cut_ends_is_absent_or_whole_and_can_be_done_again(root, monkeypatch, memory_bytes):
    """In directories that it makes."""
    path = root / "a" / "b" / "store"

    def build(path: Path, **options) -> None:
        with ngs.build(path, dim=4, max_n=2, codec="f32", memory_bytes=memory_bytes, threads=2, **options) as builder:
            stamps = np.arange(50)
            builder.add(np.stack([stamps, stamps + 1], axis=1), rows_of(stamps, 4))

    with power_cuts(monkeypatch, root, path) as disk:
        disk.keep = True
        build(path)
    assert len(published(path)) == 50
    again = 0
    for left in disk.room.iterdir():
        if state_of(left / disk.place) is None:
            is_marked = (left / disk.place / "BUILDING").exists()
            build(left / disk.place, restart=is_marked)
            assert len(published(left / disk.place)) == 50
            again += 1
    assert again > 5


@pytest.mark.parametrize("operation", ["flush", "compact"])
def test_a_publication_that_a_power_cut_ends_leaves_the_old_state_or_the_new_one(root, monkeypatch, operation):
    path = root / "store"
    with changed(path, flushed=operation == "compact") as store:
        with power_cuts(monkeypatch, root, path):
            getattr(store, operation)()
        assert published(path) == NEW


def test_publications_in_a_row_remove_only_files_that_no_power_cut_brings_back(root, monkeypatch):
    """Each removes what the ones before it wrote: that must not be what the manifest on the disk still names."""
    path = root / "store"
    build_ngrams(path, OLD)
    disk = Disk(root, path, root.with_name("cuts"))
    before = state_of(path)
    with monkeypatch.context() as patch, ngs.open(path, mode="rw") as store:
        patch.setattr(files, "observe", disk.observe)
        for number, act in enumerate([store.flush, store.flush, store.compact, store.flush]):
            disk.states.clear()
            store.put([(2,)], rows_of([20 + number], 4))
            act()
            after = state_of(path)
            assert disk.cut("after the return") == {after}
            assert {before, after} <= disk.states
            assert len(disk.states) == (2 if act == store.flush else 3)  # a compaction flushes first
            before = after
    disk.close()
    assert disk.broken == []
    with ngs.open(path) as store:
        assert {name for name in os.listdir(path) if "-" in name} == {file.name for file in store.files}


@pytest.mark.parametrize("operation", ["flush", "compact"])
def test_a_failure_and_then_a_power_cut_leave_the_old_state_or_the_new_one(root, monkeypatch, operation):
    """From the renaming of the manifest on each operation fails in turn. The writer removes what is of no use any more,
    but not too early."""

    def cuts_of(nth: int) -> list[tuple[str, str]]:
        path = root / f"{nth}" / "store"
        path.parent.mkdir()
        with changed(path, flushed=True) as store:
            if operation == "flush":
                store.put([(2,)], rows_of([21], 4))
            old = state_of(path)
            disk, failing = (
                Disk(path.parent, path, root.with_name(f"{nth}-cuts")),
                Failing(nth, errno.EIO, for_good=False),
            )

            def observe(operation: str, path: Path) -> None:
                try:
                    failing(operation, path)
                except OSError:
                    operation = "failing"
                    raise
                finally:
                    disk.observe(operation, path)

            with monkeypatch.context() as patch:
                patch.setattr(files, "observe", observe)
                try:
                    getattr(store, operation)()
                except OSError:
                    getattr(store, operation)()
            after = disk.cut("after the return")
            disk.close()
            assert disk.broken == [], failing.log[nth:]
            assert after == {state_of(path)}, failing.log[nth:]
            assert disk.states <= {old, *after}
            return failing.log

    log = cuts_of(1000)
    first = log.index(("rename", MANIFEST_NAME))
    assert len(log) > first + 3
    for nth in range(first - 1, len(log)):
        cuts_of(nth)


def killed(
    monkeypatch: pytest.MonkeyPatch, path: Path, operation: str, nth: int, *, is_damaged: bool
) -> tuple[Disk, list]:
    """The disk under a store whose writer was killed at the N-th step of a publication, and the steps it took."""
    store = changed(path, flushed=True)
    if is_damaged:
        rows = path / "base-000001.rows"
        rows.write_bytes(rows.read_bytes()[:-60] + bytes(60))
    store.put([(2,)], rows_of([21], 4))
    if operation == "compact":
        store.flush()
    disk = Disk(path.parent, path, path.parent.with_name(f"{path.parent.name}-cuts"))
    killing = Killing(nth, disk)
    with monkeypatch.context() as patch:
        patch.setattr(files, "observe", killing)
        try:
            getattr(store, operation)()
        except Killed as kill:
            kill.__traceback__ = kill.__context__ = None
    writer = store._writer
    if writer._journal is not None:
        writer._journal.close()
    writer._lock.let_go()  # as the system does
    return disk, killing.log


def each_kill(
    monkeypatch: pytest.MonkeyPatch, root: Path, how: tuple[str, bool], act, *, is_damaged: bool = False
) -> None:
    """A writer is killed at each step of a publication; then `act` takes over the store, and the power goes off.

    At any moment the disk has the state of before or that of the publication or, if `act` mends a damaged store, the good one.
    """
    operation, is_from_the_first = how

    def steps_of(nth: int) -> list[tuple[str, str]]:
        path = root / f"{nth}" / "store"
        path.parent.mkdir()
        disk, log = killed(monkeypatch, path, operation, nth, is_damaged=is_damaged)
        gc.collect()  # a process that is gone holds no file
        with monkeypatch.context() as patch:
            patch.setattr(files, "observe", disk.observe)
            act(path)
        after = disk.cut("after the return")
        disk.close()
        assert disk.broken == [], log[nth:]
        assert after == {state_of(path)}, log[nth:]
        assert len(disk.states | after) <= 2 + is_damaged
        return log

    log = steps_of(1000)
    first = 0 if is_from_the_first else log.index(("rename", MANIFEST_NAME)) - 1
    assert len(log) > first + 2
    for nth in range(first, len(log)):
        steps_of(nth)


HOW = [("flush", False), ("compact", False), pytest.param(("flush", True), marks=pytest.mark.slow)]
HOW += [pytest.param(("compact", True), marks=pytest.mark.slow)]


@pytest.mark.parametrize("how", HOW, ids=lambda how: f"{how[0]}, {'all steps' if how[1] else 'from the rename'}")
def test_what_a_killed_writer_published_is_on_the_disk_before_the_next_one_removes_what_it_replaced(
    root, monkeypatch, how
):
    """Its rename of the manifest is seen by all, and a power cut could still take it back."""
    each_kill(monkeypatch, root, how, lambda path: ngs.open(path, mode="rw").close())


def test_what_a_killed_writer_published_is_on_the_disk_before_a_repair_removes_what_it_replaced(root, monkeypatch):
    """The journal too, whose files these disks leave out."""

    def repair_in_order(path: Path) -> None:
        steps, observe = [], files.observe
        with monkeypatch.context() as patch:
            patch.setattr(files, "observe", lambda *step: (steps.append((step[0], step[1].name)), observe(*step)))
            assert repair(path).lost
        gone = [at for at, step in enumerate(steps) if re.fullmatch(r"(set-aside-)?journal-[0-9]+", step[1])]
        assert ("fsync", path.name) in steps[: min(gone, default=None)]

    each_kill(monkeypatch, root, ("flush", False), repair_in_order, is_damaged=True)


def test_a_backup_that_a_power_cut_ends_is_absent_or_whole(root, quick_path, monkeypatch):
    with (
        changed(quick_path / "source", flushed=True) as store,
        power_cuts(monkeypatch, root, root / "a" / "b" / "copy"),
    ):
        store.backup(root / "a" / "b" / "copy")
    assert published(root / "a" / "b" / "copy") == NEW


@pytest.mark.parametrize("is_in_place", [True, False], ids=["in place", "into another directory"])
def test_a_repair_that_a_power_cut_ends_leaves_the_damaged_store_or_the_good_one(
    root, quick_path, monkeypatch, is_in_place
):
    path = root / "store" if is_in_place else quick_path / "damaged"
    changed(path, flushed=True).close()
    rows = path / "base-000001.rows"
    rows.write_bytes(rows.read_bytes()[:-60] + bytes(60))
    target = path if is_in_place else root / "a" / "b" / "good"
    with power_cuts(monkeypatch, root, target):
        assert len(repair(path, None if is_in_place else target).lost) > 0
    assert 0 < len(published(target)) < len(NEW)


@pytest.mark.parametrize(
    "how", [{}, {"checksums": True}, {"pack": True}, {"pack": True, "compression": "zstd"}], ids=str
)
def test_an_import_that_a_power_cut_ends_is_absent_or_whole(root, quick_path, monkeypatch, how):
    wanted = write_engram(quick_path / "checkpoint")
    path = root / "a" / "b" / "store"
    with power_cuts(monkeypatch, root, path):
        import_checkpoint(quick_path / "checkpoint", path, **how)
    with ngs.open(path, trust_external=True) as store:
        assert (store.rows_encoded(np.arange(len(wanted))) == wanted).all()
