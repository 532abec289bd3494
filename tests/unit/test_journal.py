"""The journal against a dict, across reopening; its locks, its errors, and what a kill and a power cut leave."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ngramstore.errors import (
    DamagedJournal,
    StoreClosed,
    UsageError,
    WriterLocked,
)
from ngramstore.store.journal import Changes, Journal

WIDTH, ROW_BYTES = 3, 10


def make_changes(ids, *, deletes=(), salt=0, row_bytes=ROW_BYTES) -> Changes:
    """A change of each ID, told apart by `salt`."""
    ids = np.array(sorted(ids), np.uint64)
    is_delete = np.isin(ids, np.array(list(deletes), np.uint64))
    rng = np.random.default_rng([salt, len(ids)])
    lengths = rng.integers(1, WIDTH + 1, len(ids)).astype(np.uint8)
    tokens = rng.integers(0, 2**32, (len(ids), WIDTH)).astype(np.uint32)
    tokens[np.arange(WIDTH) >= lengths[:, None]] = 0
    rows = rng.integers(0, 256, (len(ids), row_bytes)).astype(np.uint8)
    rows[is_delete] = 0
    return Changes(ids, is_delete, tokens, lengths, rows)


def as_dict(changes: Changes) -> dict[int, tuple]:
    return {
        int(changes.ids[i]): (
            bool(changes.is_delete[i]),
            changes.tokens[i].tolist(),
            int(changes.lengths[i]),
            changes.rows[i].tobytes(),
        )
        for i in range(len(changes))
    }


def contents(journal: Journal, max_bytes: int = 64 << 20) -> dict[int, tuple]:
    result: dict[int, tuple] = {}
    last = -1
    for chunk in journal.scan(max_bytes):
        assert chunk.ids.dtype == np.uint64 and chunk.tokens.dtype == np.uint32 and chunk.rows.dtype == np.uint8
        assert int(chunk.ids[0]) > last and (chunk.ids[1:] > chunk.ids[:-1]).all()
        last = int(chunk.ids[-1])
        result.update(as_dict(chunk))
    return result


def open_journal(path: Path, **kwargs) -> Journal:
    return Journal.open(path, row_bytes=ROW_BYTES, width=WIDTH, **kwargs)


ID = st.one_of(st.integers(0, 12), st.sampled_from([2**64 - 1, 2**63, 2**32, 255, 256]))
APPEND = st.tuples(st.just("append"), st.sets(ID, min_size=1, max_size=8), st.sets(ID, max_size=4))
STEP = st.one_of(APPEND, APPEND, st.tuples(st.sampled_from(["reopen", "sync", "scan"]), st.none(), st.none()))


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(STEP, max_size=12))
def test_a_journal_is_a_dict_that_survives_reopening(tmp_path_factory, steps):
    path = tmp_path_factory.mktemp("j") / "journal"
    model: dict[int, tuple] = {}
    journal = open_journal(path)
    for salt, (what, ids, deletes) in enumerate(steps):
        if what == "append":
            changes = make_changes(ids, deletes=deletes, salt=salt)
            journal.append(changes)
            model.update(as_dict(changes))
        elif what == "sync":
            journal.sync()
        elif what == "reopen":
            journal.close()
            journal = open_journal(path, create=False)
        else:
            assert contents(journal, max_bytes=100) == model
        assert len(journal) == len(model)
    ids, is_delete = journal.ids()
    assert ids.tolist() == sorted(model)
    assert is_delete.tolist() == [model[i][0] for i in sorted(model)]
    assert contents(journal) == model
    wanted = np.array(sorted(model, key=lambda i: i * 7919 % 13), np.uint64)
    got = journal.get(wanted)
    assert got.ids.tolist() == wanted.tolist()
    assert as_dict(got) == model
    journal.close()


def test_get_keeps_the_order_and_repeats_of_its_ids(tmp_path):
    with open_journal(tmp_path / "j") as journal:
        journal.append(make_changes([5, 6, 7]))
        assert journal.get(np.array([7, 5, 7], np.uint64)).ids.tolist() == [7, 5, 7]
        assert len(journal.get(np.array([], np.uint64))) == 0


def test_find_tells_known_and_deleted_ids_apart(tmp_path):
    with open_journal(tmp_path / "j") as journal:
        journal.append(make_changes([1, 2, 3], deletes=[2]))
        journal.ids()
        journal.append(make_changes([3, 4], deletes=[3]))
        is_known, is_delete = journal.find(np.array([4, 3, 2, 1, 0], np.uint64))
        assert is_known.tolist() == [True, True, True, True, False]
        assert is_delete.tolist() == [False, True, True, False, False]


def test_get_of_an_absent_id_names_it_and_the_path(tmp_path):
    with open_journal(tmp_path / "j") as journal:
        journal.append(make_changes([1]))
        with pytest.raises(DamagedJournal, match="0x00000000000000ff") as caught:
            journal.get(np.array([1, 255], np.uint64))
        assert str(tmp_path / "j") in str(caught.value)


def test_an_append_with_unsorted_ids_or_wrong_shapes_is_refused(tmp_path):
    with open_journal(tmp_path / "j") as journal:
        good = make_changes([1, 2])
        for ids in ([2, 1], [1, 1]):
            bad = Changes(np.array(ids, np.uint64), good.is_delete, good.tokens, good.lengths, good.rows)
            with pytest.raises(UsageError, match="ascend"):
                journal.append(bad)
        with pytest.raises(UsageError, match="shapes"):
            journal.append(make_changes([1], row_bytes=ROW_BYTES + 1))
        with pytest.raises(UsageError, match="tokens"):
            journal.append(Changes(good.ids, good.is_delete, good.tokens, good.lengths + WIDTH, good.rows))
        assert len(journal) == 0


def test_a_journal_of_another_width_or_row_size_is_refused(tmp_path):
    open_journal(tmp_path / "j").close()
    with pytest.raises(DamagedJournal, match="10 row bytes"):
        Journal.open(tmp_path / "j", row_bytes=ROW_BYTES + 1, width=WIDTH)
    with pytest.raises(DamagedJournal, match="3 tokens"):
        Journal.open(tmp_path / "j", row_bytes=ROW_BYTES, width=WIDTH + 1)


def test_opening_twice_is_writer_locked_and_a_missing_journal_says_so(tmp_path):
    with open_journal(tmp_path / "j"), pytest.raises(WriterLocked):
        open_journal(tmp_path / "j")
    open_journal(tmp_path / "j").close()
    with pytest.raises(DamagedJournal, match="missing"):
        open_journal(tmp_path / "k", create=False)


def test_after_close_and_destroy_every_use_is_a_clear_error(tmp_path):
    journal = open_journal(tmp_path / "j")
    journal.append(make_changes([1]))
    journal.close()
    journal.close()
    for use in (journal.ids, journal.sync, lambda: journal.append(make_changes([2])), lambda: list(journal.scan())):
        with pytest.raises(StoreClosed):
            use()
    journal = open_journal(tmp_path / "j")
    journal.destroy()
    assert os.listdir(tmp_path) == []
    with pytest.raises(StoreClosed):
        journal.get(np.array([1], np.uint64))
