"""What the journal says is safe from a power cut is: the log is synced before ACK says so, and ACK survives a torn
write of its own."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from helpers import reboot
from test_journal import as_dict, contents, make_changes, open_journal

from ngramstore import files
from ngramstore.errors import DamagedJournal, DiskFull, StoreClosed
from ngramstore.store.journal.ack import ACK_NAME, ACK_PUBLISHED, ACK_SLOT, ACK_SLOT_BYTES, Ack, read_ack
from ngramstore.store.journal.journal import Journal

pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")

SLOT_END = ACK_SLOT.size + ACK_PUBLISHED.size
"""The bytes of a slot behind these are zeros."""


class Disk:
    """What a power cut would leave of an open journal: RocksDB's files as of the last synced log, ACK as of its last fsync."""

    def __init__(self, journal: Journal, room: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.journal, self.path, self.room = journal, journal.path, room
        self.steps: list[str] = []
        self.before: Callable[[str], None] = lambda step: None
        self.num_cuts = 0
        assert journal._db is not None
        self._flush_wal = journal._db.flush_wal
        shutil.copytree(self.path, room / "durable")
        monkeypatch.setattr(files, "observe", self._observe)
        journal._db = Wrapped(journal._db, self._sync_log)  # type: ignore[assignment]

    def cut(self) -> Path:
        """A copy of what is durable now."""
        self.num_cuts += 1
        return Path(shutil.copytree(self.room / "durable", self.room / f"cut {self.num_cuts}"))

    def _sync_log(self, sync: bool) -> None:
        self._step(f"log {sync}")
        self._flush_wal(sync)
        if sync:
            acknowledged = (self.room / "durable" / ACK_NAME).read_bytes()
            shutil.rmtree(self.room / "durable")
            shutil.copytree(self.path, self.room / "durable")
            (self.room / "durable" / ACK_NAME).write_bytes(acknowledged)

    def _observe(self, operation: str, path: Path) -> None:
        self._step(f"{operation} {path.name}")
        if operation == "fsync" and path.name == ACK_NAME:
            shutil.copy(path, self.room / "durable" / ACK_NAME)

    def _step(self, step: str) -> None:
        self.before(step)
        self.steps.append(step)


class Wrapped:
    """A RocksDB handle whose `flush_wal` goes elsewhere."""

    def __init__(self, db, flush_wal: Callable[[bool], None]) -> None:
        self._db, self.flush_wal = db, flush_wal

    def __getattr__(self, name: str):
        return getattr(self._db, name)


@pytest.fixture
def disk(quick_path, monkeypatch):
    journal = open_journal(quick_path / "j")
    yield Disk(journal, quick_path, monkeypatch)
    journal._db = getattr(journal._db, "_db", None)
    journal.close()


def test_a_synced_append_survives_a_power_cut_and_ack_says_so(disk, monkeypatch):
    for salt in range(3):
        disk.journal.append(make_changes(range(4), salt=salt))
    assert read_ack(disk.path / ACK_NAME).synced == 0
    disk.journal.sync()
    disk.journal.append(make_changes(range(4), salt=3))
    left = disk.cut()
    assert read_ack(left / ACK_NAME).synced == 3
    assert read_ack(disk.path / ACK_NAME).synced == 3
    reboot(monkeypatch)
    with open_journal(left, create=False) as journal:
        assert contents(journal) == as_dict(make_changes(range(4), salt=2))


def test_a_power_cut_during_a_sync_leaves_a_journal_that_opens(disk, monkeypatch):
    """So ACK never says more than the log holds, in whatever order the two reach the disk."""
    cuts: list[Path] = []
    disk.journal.append(make_changes(range(4)))
    disk.before = lambda step: cuts.append(disk.cut())
    disk.journal.sync()
    disk.before = lambda step: None
    cuts.append(disk.cut())
    assert len(cuts) == 4, disk.steps
    written_early = disk.room / "ACK written early"  # by the system, before the fsync
    shutil.copytree(cuts[2], written_early)
    shutil.copy(disk.path / ACK_NAME, written_early)
    reboot(monkeypatch)
    lengths = []
    for left in [*cuts, written_early]:
        with open_journal(left, create=False) as journal:
            lengths.append(len(journal))
    assert lengths == [0, 4, 4, 4, 4]


def test_a_log_that_cannot_be_synced_is_an_error_and_ack_stays_as_it_was(disk):
    disk.journal.append(make_changes(range(4)))
    before = (disk.path / ACK_NAME).read_bytes()

    def fail(sync):
        raise Exception("IO error: No space left on device: While fsync")  # as rocksdict does

    disk.journal._db.flush_wal = fail
    with pytest.raises(DiskFull):
        disk.journal.sync()
    assert (disk.path / ACK_NAME).read_bytes() == before
    assert read_ack(disk.path / ACK_NAME).synced == 0
    with pytest.raises(StoreClosed, match="an earlier write failed"):
        disk.journal.sync()
    disk.journal.close()
    with open_journal(disk.path, create=False) as journal:
        assert len(journal) == 4


def test_the_state_that_changes_are_published_as_is_durable_when_it_is_noted(disk):
    disk.journal.append(make_changes(range(4)))
    disk.journal.sync()
    disk.journal.mark_published_as(b"sixteen bytes ..")
    assert read_ack(disk.cut() / ACK_NAME).published_as == b"sixteen bytes .."
    disk.journal.append(make_changes(range(4), salt=1))
    assert read_ack(disk.path / ACK_NAME).published_as == bytes(16)
    assert read_ack(disk.path / ACK_NAME).synced == 1


@pytest.mark.parametrize("is_there", [False, True], ids=["new", "left by one that was killed"])
def test_the_directory_of_a_journal_is_durable_before_its_first_append(quick_path, monkeypatch, is_there):
    """Else a power cut takes the directory, and with it what was synced."""
    path = quick_path / "j"
    if is_there:
        path.mkdir()
    synced: dict[Path, list[str]] = {}

    def observe(operation: str, place: Path) -> None:
        if operation == "fsync" and place.is_dir():
            synced[place] = [file.name for file in place.iterdir()]

    monkeypatch.setattr(files, "observe", observe)
    with open_journal(path):
        assert synced[quick_path] == ["j"]
        assert ACK_NAME in synced[path]


def three_appends(path: Path, *, is_synced: bool = False) -> tuple[bytes, int]:
    """A journal of three appends, as a kill leaves it: ACK, and the position of its newer slot."""
    journal = open_journal(path)
    for salt in range(3):
        journal.append(make_changes(range(4), salt=salt))
    if is_synced:
        journal.sync()
    copy = path.with_name("killed")
    shutil.copytree(path, copy)
    journal.close()
    shutil.rmtree(path)
    copy.rename(path)
    return (path / ACK_NAME).read_bytes(), read_ack(path / ACK_NAME).counter % 2


def with_slot(data: bytes, position: int, slot: bytes) -> bytes:
    slots = [data[:ACK_SLOT_BYTES], data[ACK_SLOT_BYTES:]]
    slots[position] = slot.ljust(ACK_SLOT_BYTES, b"\0")
    return b"".join(slots)


@pytest.mark.parametrize("is_synced", [False, True], ids=["", "synced"])
@pytest.mark.parametrize("which", ["newer", "older"])
@pytest.mark.parametrize("slot", [b"", b"\xff" * ACK_SLOT_BYTES, b"NGSJACK\n\2"], ids=["zeros", "ones", "a beginning"])
def test_with_one_slot_of_ack_damaged_every_append_is_there(quick_path, which, is_synced, slot):
    path = quick_path / "j"
    data, newer = three_appends(path, is_synced=is_synced)
    damaged = newer if which == "newer" else 1 - newer
    (path / ACK_NAME).write_bytes(with_slot(data, damaged, slot))
    assert read_ack(path / ACK_NAME).acknowledged == (3 if which == "older" or is_synced else 2)
    with open_journal(path, create=False) as journal:
        assert contents(journal) == as_dict(make_changes(range(4), salt=2))
        journal.append(make_changes(range(4), salt=3))
        assert read_ack(path / ACK_NAME).acknowledged == 4
    with open_journal(path, create=False) as journal:
        assert contents(journal) == as_dict(make_changes(range(4), salt=3))


@pytest.mark.parametrize("which", ["newer", "older"])
def test_the_first_write_after_a_damage_replaces_the_damaged_slot(quick_path, which):
    """Were it the good one, a write torn just then would leave none."""
    path = quick_path / "j"
    data, newer = three_appends(path)
    damaged = newer if which == "newer" else 1 - newer
    (path / ACK_NAME).write_bytes(with_slot(data, damaged, b""))
    open_journal(path, create=False).close()  # writes ACK once
    now = (path / ACK_NAME).read_bytes()
    kept = slice((1 - damaged) * ACK_SLOT_BYTES, (2 - damaged) * ACK_SLOT_BYTES)
    assert now[kept] == data[kept]
    assert Ack.unpack(now[damaged * ACK_SLOT_BYTES :][:ACK_SLOT_BYTES]) is not None


def test_a_write_of_ack_torn_at_any_byte_leaves_the_slot_before_it(quick_path):
    path = quick_path / "j"
    journal = open_journal(path)
    acks = []
    for salt in range(5):
        journal.append(make_changes(range(4), salt=salt))
        acks.append((path / ACK_NAME).read_bytes())
    journal.close()
    torn = quick_path / ACK_NAME
    found = set()
    for before, after in pairwise(acks):
        changed = [at for at in range(2 * ACK_SLOT_BYTES) if before[at] != after[at]]
        assert changed[-1] // ACK_SLOT_BYTES == changed[0] // ACK_SLOT_BYTES, "one slot was written"
        assert changed[-1] % ACK_SLOT_BYTES < SLOT_END
        old, new = (read(quick_path, data) for data in (before, after))
        assert new.acknowledged == old.acknowledged + 1
        for at in changed:
            for mixed in (after[:at] + before[at:], before[:at] + after[at:]):
                torn.write_bytes(mixed)
                ack = read_ack(torn)
                assert ack.counter in (old.counter, new.counter)
                assert ack.acknowledged in (old.acknowledged, new.acknowledged)
                found.add(ack.counter - old.counter)
    assert found == {0, 1}


def read(room: Path, data: bytes) -> Ack:
    (room / ACK_NAME).write_bytes(data)
    return read_ack(room / ACK_NAME)


def test_a_slot_in_the_place_of_the_other_counts_for_nothing(quick_path):
    path = quick_path / "j"
    data, newer = three_appends(path)
    slots = [data[:ACK_SLOT_BYTES], data[ACK_SLOT_BYTES:]]
    assert read(quick_path, slots[newer] * 2).acknowledged == 3
    assert read(quick_path, slots[1 - newer] * 2).acknowledged == 2
    (path / ACK_NAME).write_bytes(slots[1] + slots[0])
    with pytest.raises(DamagedJournal, match="both slots"):
        open_journal(path, create=False)


def test_both_slots_damaged_is_a_damaged_journal(quick_path):
    path = quick_path / "j"
    data, _ = three_appends(path)
    (path / ACK_NAME).write_bytes(with_slot(with_slot(data, 0, b""), 1, data[:40]))
    with pytest.raises(DamagedJournal, match="both slots"):
        open_journal(path, create=False)


@pytest.mark.parametrize("which", ["newer", "older"])
def test_with_one_slot_damaged_a_log_that_lost_two_appends_is_still_refused(quick_path, which):
    """The slot that is left is at most one append behind."""
    open_journal(quick_path / "j").close()
    journal = open_journal(quick_path / "j")
    journal.append(make_changes(range(4)))
    shutil.copytree(journal.path, quick_path / "one")
    journal.append(make_changes(range(4), salt=1))
    journal.append(make_changes(range(4), salt=2))
    data, newer = (journal.path / ACK_NAME).read_bytes(), read_ack(journal.path / ACK_NAME).counter % 2
    journal.close()
    damaged = newer if which == "newer" else 1 - newer
    (quick_path / "one" / ACK_NAME).write_bytes(with_slot(data, damaged, b""))
    with pytest.raises(DamagedJournal, match=f"1 appends are there, ACK says {2 if which == 'newer' else 3}"):
        open_journal(quick_path / "one", create=False)
