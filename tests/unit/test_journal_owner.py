"""A journal belongs to one published state of one store: with changes to another one it is refused, never replayed."""

from __future__ import annotations

import os
import shutil
import zlib

import pytest
from helpers import build_ngrams, published, rows_of, stamps_of

import ngramstore as ngs
from ngramstore.errors import DamagedJournal, UnsupportedVersion
from ngramstore.store.check import examine
from ngramstore.store.journal_ack import ACK_NAME, ACK_VERSION, AckFile
from ngramstore.store.repair import repair

STORED = {(1,): 1, (1, 2): 2, (3, 4): 3}


@pytest.fixture
def make(quick_path):
    def build(name: str, stored=STORED):
        build_ngrams(quick_path / name, stored)
        return quick_path / name

    return build


def leave_change(path, ngram=(9,), stamp=9):
    """A put that its writer, killed, never published; returns the journal's path."""
    store = ngs.open(path, mode="rw")
    store.put([ngram], rows_of([stamp], 4))
    journal = store._writer._journal_path
    store._shut()
    return journal


def assert_refused(path):
    with pytest.raises(DamagedJournal, match="another state") as caught:
        ngs.open(path, mode="rw")
    assert "restored" in caught.value.hint
    assert published(path) == STORED  # readers do not mind
    assert ["another state" in fault.what for fault in examine(path).faults] == [True]


def assert_left_out(mine, journal):
    """With another store's journal in its place it is refused, and repaired without those changes."""
    shutil.copytree(journal, mine / journal.name)
    assert_refused(mine)
    assert any("its changes were made to another state" in line for line in repair(mine).lost)
    with ngs.open(mine, mode="rw") as store:
        assert not store.contains([(9,)])[0]
    assert published(mine) == STORED


def test_a_journal_of_another_store_is_refused_and_repair_leaves_its_changes_out(make):
    mine, other = make("mine"), make("other", {(7,): 7})
    journal = leave_change(other)
    assert_left_out(mine, journal)


def test_a_journal_of_another_history_is_refused(make, quick_path):
    """The same store, restored from an older copy, changed and published again: one name, two states."""
    path = make("store")
    shutil.copytree(path, quick_path / "older")
    with ngs.open(path, mode="rw") as store:
        store.put([(5,)], rows_of([5], 4))
    journal = leave_change(path)
    with ngs.open(quick_path / "older", mode="rw") as store:
        store.put([(6,)], rows_of([6], 4))
    ngs.open(quick_path / "older", mode="rw").close()
    assert not (quick_path / "older" / journal.name).exists()
    shutil.copytree(journal, quick_path / "older" / journal.name)
    with pytest.raises(DamagedJournal, match="another state"):
        ngs.open(quick_path / "older", mode="rw")
    assert published(quick_path / "older") == {**STORED, (6,): 6}


def test_repair_leaves_anothers_changes_out_also_where_ack_has_not_counted_them(make):
    """Killed between RocksDB's write and ACK's, of the very first append."""
    mine, other = make("mine"), make("other", {(7,): 7})
    journal = leave_change(other)
    ack = AckFile.open(journal)
    ack.write(acknowledged=0, num_changes=0)
    ack.write()
    ack.close()
    assert_left_out(mine, journal)


def test_changes_to_a_later_state_are_not_thrown_away_by_a_store_that_was_restored_under_them(make, quick_path):
    path = make("store")
    shutil.copytree(path, quick_path / "older")
    with ngs.open(path, mode="rw") as store:
        store.put([(5,)], rows_of([5], 4))
    journal = leave_change(path)
    shutil.copytree(journal, quick_path / "older" / journal.name)
    older = quick_path / "older"
    for attempt in (lambda: ngs.open(older, mode="rw"), lambda: break_and_repair(older)):
        with pytest.raises(DamagedJournal, match="1 changes were made to a later state"):
            attempt()
    (older / journal.name).rename(quick_path / "kept")
    repair(older)
    with ngs.open(older, mode="rw") as store:
        assert not store.contains([(5,), (9,)]).any()
    shutil.rmtree(path / journal.name)
    (quick_path / "kept").rename(path / journal.name)
    with ngs.open(path, mode="rw") as store:
        assert stamps_of(store.get([(5,), (9,)])[0]) == [5, 9]


def break_and_repair(path):
    rows = next(path.glob("base-*.rows"))
    data = bytearray(rows.read_bytes())
    data[4096] ^= 1
    rows.write_bytes(data)
    repair(path)


def test_a_journal_that_was_taken_over_says_so_on_disk_before_its_first_append(make, monkeypatch):
    mine, other = make("mine"), make("other", {(7,): 7})
    store = ngs.open(other, mode="rw")
    store._writer._open_journal().close()
    journal = store._writer._journal_path
    store.close()
    shutil.copytree(journal, mine / journal.name)
    synced = []
    monkeypatch.setattr(
        "ngramstore.store.journal_ack.os.fsync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}"))
    )
    ngs.open(mine, mode="rw").close()
    assert str(mine / journal.name / ACK_NAME) in synced


def test_a_copy_of_the_whole_store_takes_its_journal_along(make, quick_path):
    path = make("store")
    leave_change(path)
    shutil.copytree(path, quick_path / "moved")
    with ngs.open(quick_path / "moved", mode="rw") as store:
        assert stamps_of(store.get([(9,)])[0]) == [9]


def test_an_empty_journal_is_taken_over(make):
    mine, other = make("mine"), make("other", {(7,): 7})
    store = ngs.open(other, mode="rw")
    store._writer._open_journal().close()
    journal = store._writer._journal_path
    store.close()
    shutil.copytree(journal, mine / journal.name)
    leave_change(mine)
    with ngs.open(mine, mode="rw") as store:
        assert stamps_of(store.get([(9,)])[0]) == [9]


def test_changes_after_a_compaction_with_an_empty_journal_open_belong_to_the_new_state(make):
    path = make("store")
    store = ngs.open(path, mode="rw")
    store.put([(5,)], rows_of([5], 4))
    store.flush()
    store._writer._journal = store._writer._open_journal()  # what an append that failed leaves
    store.compact()
    store.put([(9,)], rows_of([9], 4))
    store._shut()
    assert examine(path).faults == []
    with ngs.open(path, mode="rw") as store:
        assert stamps_of(store.get([(5,), (9,)])[0]) == [5, 9]


def test_a_journal_of_version_1_is_named_not_called_damaged(make):
    path = make("store")
    ack = leave_change(path) / ACK_NAME
    data = ack.read_bytes()
    slots = [bytearray(data[start : start + 512]) for start in (0, 512)]
    for slot in slots:
        slot[8:10] = (1).to_bytes(2, "little")
        slot[64:] = zlib.crc32(slot[:64]).to_bytes(4, "little").ljust(448, b"\0")
    ack.write_bytes(b"".join(slots))
    with pytest.raises(UnsupportedVersion, match=f"version 1, this release reads {ACK_VERSION}"):
        ngs.open(path, mode="rw")
