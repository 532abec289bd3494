"""Ctrl-C in a writer, between any two of its steps: what is acknowledged later is not lost, and numbers stay right."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from helpers import assert_verifies, build_ngrams, copy_of_one_moment, published, rows_of, stamps_of
from interrupts import each_interrupt

import ngramstore as ngs
from ngramstore import files
from ngramstore.store.changes import compaction, overlay
from ngramstore.store.changes.writer import Writer
from ngramstore.store.journal import journal as journal_module
from ngramstore.store.journal.known import KnownIds

MODEL = {(1,): 1, (2,): 2, (1, 2): 3}


@pytest.fixture
def path(quick_path) -> Path:
    build_ngrams(quick_path / "store", MODEL)
    return quick_path / "store"


@contextmanager
def ctrl_c(
    monkeypatch: pytest.MonkeyPatch, owner: object, name: str, when: Callable[..., bool] = bool
) -> Iterator[list]:
    """Ctrl-C where `owner.name` is called next with arguments that `when` is true of, before it does anything."""
    real = getattr(owner, name)

    def interrupted(*args, **options):
        if not when(*args):
            return real(*args, **options)
        patch.undo()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(owner, name, interrupted)
        raised: list[pytest.ExceptionInfo] = []
        with pytest.raises(KeyboardInterrupt) as info:
            yield raised
        raised.append(info)


def before_the_drop(monkeypatch):
    return ctrl_c(monkeypatch, Writer, "_drop_journal")


def before_the_removal(monkeypatch):
    return ctrl_c(monkeypatch, files, "observe", lambda what, path: (what, path.name) == ("unlink", "journal-000001"))


def after_the_removal(monkeypatch):
    return ctrl_c(
        monkeypatch,
        files,
        "observe",
        lambda what, path: what == "fsync" and path.name == "store" and not (path / "journal-000001").exists(),
    )


@pytest.mark.parametrize("interrupt", [before_the_drop, before_the_removal, after_the_removal])
def test_changes_after_a_publication_whose_journal_was_being_dropped_go_to_the_next_one(
    path, quick_path, monkeypatch, caplog, interrupt
):
    with ngs.open(path, mode="rw") as store:
        store.put([(3,)], rows_of([30], 4))
        with interrupt(monkeypatch):
            store.flush()
        assert published(path) == MODEL | {(3,): 30}
        assert store.stats()["unpublished_changes"] == 0
        assert len(store) == 4
        assert store.get([(3,)])[1].all()
        store.put([(4,)], rows_of([40], 4))
        assert store.stats()["unpublished_changes"] == 1
        copy_of_one_moment(path, quick_path / "killed")
        with ngs.open(quick_path / "killed", mode="rw") as survivor:
            assert survivor.get([(4,)])[1].all()
        store.flush()
    ngs.open(path, mode="rw").close()
    for left in (path, quick_path / "killed"):
        assert published(left) == MODEL | {(3,): 30, (4,): 40}
        assert_verifies(left)
        assert not [name for name in os.listdir(left) if "journal" in name]
    assert caplog.messages == []


def test_a_compaction_whose_empty_journal_was_being_dropped_leaves_the_next_put_a_journal(path, monkeypatch):
    with ngs.open(path, mode="rw") as store:
        store.put([(3,)], rows_of([30], 4))
        store.flush()
        store._writer._journal = store._writer._open_journal()  # as after an append that failed
        with before_the_drop(monkeypatch):
            store.compact()
        assert store.delete([(3,)]) == 1
        assert store._writer._journal.path.name == store._writer.manifest.journal
    assert published(path) == MODEL


def test_a_compaction_that_ends_while_it_looks_for_endings_leaves_no_base_behind(path, monkeypatch):
    """The error, which its caller may hold for long, holds no file of it."""
    with ngs.open(path, mode="rw") as store:
        store.put([(3,)], rows_of([30], 4))
        with ctrl_c(monkeypatch, compaction, "is_closed", lambda *args: True) as raised:
            store.compact()
        assert "is_suffix_closed" in [entry.name for entry in raised[0].traceback]
        assert {name for name in os.listdir(path) if name.startswith("base")} == {
            file.name for file in store._writer.manifest.base.files
        }
        store.compact()
    assert published(path) == MODEL | {(3,): 30}


@pytest.mark.parametrize(("act", "module"), [("flush", overlay), ("compact", compaction)])
def test_what_a_failure_left_is_removed_before_room_is_looked_for(path, monkeypatch, act, module):
    left = path / "base-000099.rows"
    with ngs.open(path, mode="rw") as store:
        store.put([(3,)], rows_of([30], 4))
        left.write_bytes(bytes(1000))  # a reader held it when the failure was cleaned up
        seen = []
        monkeypatch.setattr(module, "require_space", lambda *args: seen.append(left.exists()))
        getattr(store, act)()
    assert seen == [False]


@pytest.mark.parametrize("is_put", [True, False])
def test_rows_are_counted_anew_after_an_append_that_was_not_noted(path, monkeypatch, is_put):
    """Ctrl-C once the journal has the change, and before its rows are added up."""
    real = Writer._journal_watched

    @contextmanager
    def stop_behind(writer: Writer) -> Iterator[None]:
        with real(writer):
            yield
        raise KeyboardInterrupt

    with ngs.open(path, mode="rw") as store:
        store.put([(3,)], rows_of([30], 4))
        assert len(store) == 4
        with monkeypatch.context() as patch:
            patch.setattr(Writer, "_journal_watched", stop_behind)
            with pytest.raises(KeyboardInterrupt):
                store.put([(4,)], rows_of([40], 4)) if is_put else store.delete([(1, 2)])
        assert len(store) == 4 + (1 if is_put else -1)
        store.put([(5,)], rows_of([50], 4))
        assert len(store) == 5 + (1 if is_put else -1)


@pytest.mark.parametrize("change", ["put", "delete"])
def test_a_change_that_the_journal_was_told_of_at_ctrl_c_is_seen_whole_or_not_at_all(path, change):
    """By the same handle, before any other change: RocksDB may have what the IDs in memory do not tell of."""
    turn, model = 0, dict(MODEL)

    def changed() -> list:
        return [(3,), (4, turn)]

    with ngs.open(path, mode="rw") as store:

        def prepare() -> None:
            """Of the next two keys the first is pending, and the second too if it will be deleted."""
            nonlocal turn
            turn += 1
            pending = changed()[: 1 if change == "put" else 2]
            store.put(pending, rows_of([turn] * len(pending), 4))
            model.update(dict.fromkeys(pending, turn))

        def act() -> None:
            store.put(changed(), rows_of([1000 + turn] * 2, 4)) if change == "put" else store.delete(changed())

        def check() -> None:
            rows, found = store.get(changed())
            there = [ngram for ngram, is_there in zip(changed(), found, strict=True) if is_there]
            seen = dict(zip(there, stamps_of(rows[found]), strict=True))
            before = {ngram: model.pop(ngram) for ngram in changed() if ngram in model}
            assert seen in (before, dict.fromkeys(changed(), 1000 + turn) if change == "put" else {})
            model.update(seen)
            assert len(store) == len(model)
            prepare()

        prepare()
        assert each_interrupt(act, check, "ngramstore/store/journal/") > 20
    assert published(path) == model


@pytest.mark.parametrize("what", ["stats", "get", "len"])
@pytest.mark.parametrize("place", ["before RocksDB has it", "before it is known", "after it is known"])
def test_a_signals_handler_may_ask_in_the_middle_of_a_put(path, monkeypatch, what, place):
    """It runs in the thread that holds the handle's lock. The put goes on, and is seen afterwards."""
    owner, name = (journal_module, "write_values") if place == "before RocksDB has it" else (KnownIds, "add")
    real, asked = getattr(owner, name), []

    def handled(*args):
        if place == "after it is known":
            real(*args)
        asked.append({"stats": store.stats, "get": lambda: store.get([(1,)]), "len": lambda: len(store)}[what]())
        if place != "after it is known":
            real(*args)

    with ngs.open(path, mode="rw") as store:
        store.put([(3,)], rows_of([30], 4))
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, handled)
            store.put([(4,), (3,)], rows_of([40, 31], 4))
        assert len(asked) == 1
        rows, found = store.get([(3,), (4,)])
        assert found.all() and stamps_of(rows) == [31, 40]
        assert len(store) == len(MODEL) + 2
        store.put([(5,)], rows_of([50], 4))
        store.flush()
    assert published(path) == MODEL | {(3,): 31, (4,): 40, (5,): 50}
    assert_verifies(path)
