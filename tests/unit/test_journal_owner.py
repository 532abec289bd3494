"""A journal belongs to one published state of one store: with changes to another one it is refused, never replayed."""

from __future__ import annotations

import os
import shutil
import zlib

import pytest
from helpers import build_ngrams, published, rows_of, stamps_of

import ngramstore as ngs
from ngramstore.errors import DamagedJournal, UnsupportedVersion
from ngramstore.store.journal.ack import ACK_NAME, ACK_VERSION, AckFile, read_ack
from ngramstore.store.layers.manifest import Manifest
from ngramstore.store.repair.check import examine
from ngramstore.store.repair.repair import repair

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


def files_of(path):
    """The files of RocksDB that hold what it knows."""
    return {file.name: file.read_bytes() for file in path.iterdir() if file.suffix in (".log", ".sst")}


def assert_left_out(mine, journal):
    """With another store's journal in its place it is refused, and repaired without those changes."""
    shutil.copytree(journal, mine / journal.name)
    assert_refused(mine)
    lines = repair(mine).lost
    assert any("its changes were made to another state" in line for line in lines)
    assert any(f"{journal.name} is kept as set-aside-{journal.name}" in line for line in lines)
    assert files_of(mine / f"set-aside-{journal.name}") == files_of(journal)
    assert not (mine / journal.name).exists()
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


def two_of_one_state(make, quick_path):
    """A store with an unpublished change, and a copy made before it that has published another one."""
    mine, other = make("mine"), quick_path / "other"
    shutil.copytree(mine, other)
    journal = leave_change(mine)
    with ngs.open(other, mode="rw") as store:
        store.put([(5,)], rows_of([5], 4))
    return mine, other, journal


def put_in_place(source, target):
    for file in sorted(source.iterdir(), key=lambda file: file.name == "MANIFEST"):
        if file.name != "LOCK":
            shutil.copyfile(file, target / "arriving")
            os.replace(target / "arriving", target / file.name)


@pytest.mark.parametrize("is_damaged", [False, True])
def test_changes_to_an_earlier_state_are_set_aside_when_a_later_one_is_put_over_them(
    make, quick_path, caplog, is_damaged
):
    mine, other, journal = two_of_one_state(make, quick_path)
    shutil.copytree(mine, quick_path / "earlier")
    put_in_place(other, mine)
    if is_damaged:
        (journal / ACK_NAME).write_bytes(bytes(1024))
    wanted = files_of(journal)
    with ngs.open(mine, mode="rw") as store:
        assert store.contains([(5,), (9,)]).tolist() == [True, False]
    aside = mine / f"set-aside-{journal.name}"
    assert not journal.exists() and files_of(aside) == wanted
    assert aside.name in caplog.text
    ngs.open(mine, mode="rw").close()  # no one takes it for a journal
    assert files_of(aside) == wanted and published(mine) == {**STORED, (5,): 5}
    if not is_damaged:
        put_in_place(quick_path / "other", mine)
        shutil.copyfile(quick_path / "earlier" / "MANIFEST", mine / "MANIFEST")
        aside.rename(journal)
        with ngs.open(mine, mode="rw") as store:  # what the warning says
            assert stamps_of(store.get([(9,)])[0]) == [9]


def test_a_second_journal_set_aside_does_not_replace_the_first(make, quick_path):
    mine, other, journal = two_of_one_state(make, quick_path)
    shutil.copytree(journal, mine / f"set-aside-{journal.name}")
    put_in_place(other, mine)
    ngs.open(mine, mode="rw").close()
    assert {file.name for file in mine.iterdir() if file.is_dir()} == {
        f"set-aside-{journal.name}",
        f"set-aside-{journal.name}-2",
    }


@pytest.mark.parametrize("act", ["open", "repair"])
def test_a_flush_killed_before_it_removed_its_journal_is_cleaned_up_in_silence(make, monkeypatch, caplog, act):
    path = make("store")
    with ngs.open(path, mode="rw") as store:
        store.put([(9,)], rows_of([9], 4))
        journal = store._writer._journal_path
        with monkeypatch.context() as patch:
            patch.setattr(store._writer, "_drop_journal", lambda: (_ for _ in ()).throw(KeyboardInterrupt))
            with pytest.raises(KeyboardInterrupt):
                store.flush()
        store._shut()
    assert journal.exists() and read_ack(journal / ACK_NAME).num_changes == 1
    if act == "repair":
        break_and_repair(path)
    else:
        ngs.open(path, mode="rw").close()
    assert not [file for file in path.iterdir() if file.is_dir()]
    assert caplog.text == ""
    assert (9,) in published(path)


def test_a_change_after_a_publication_that_failed_belongs_to_no_published_state(make, monkeypatch):
    path = make("store")
    store = ngs.open(path, mode="rw")
    store.put([(9,)], rows_of([9], 4))
    journal = store._writer._journal_path
    with monkeypatch.context() as patch:
        patch.setattr(Manifest, "write", lambda *_: (_ for _ in ()).throw(OSError(5, "Input/output error")))
        with pytest.raises(OSError, match="Input/output"):
            store._writer.flush()
    store.put([(8,)], rows_of([8], 4))
    assert read_ack(journal / ACK_NAME).published_as == bytes(16)
    store._shut()
    with ngs.open(path, mode="rw") as store:
        assert stamps_of(store.get([(8,), (9,)])[0]) == [8, 9]


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
        "ngramstore.store.journal.ack.os.fsync", lambda fd: synced.append(os.readlink(f"/proc/self/fd/{fd}"))
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
