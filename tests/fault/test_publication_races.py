"""A writer publishes, and removes what it replaced, between a reader's look at the manifest and its opening of the files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from helpers import build_ngrams, contents, flip, published, rows_of

import ngramstore as ngs
from ngramstore.errors import DamagedStore, StaleStore
from ngramstore.store.journal.ack import no_writer
from ngramstore.store.layers.manifest import Manifest, read_manifest
from ngramstore.store.repair.check import examine, verify
from ngramstore.store.repair.rebuild_journal import RebuildJournal
from ngramstore.store.repair.repair import repair
from ngramstore.store.repair.worn import WornLayer
from ngramstore.store.repair.worn_index import WornIndex

pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")

OLD = {(1,): 1, (2,): 2, (1, 2): 4}


class Races:
    """Stands in for `read_manifest`: after each of the first `count` looks the writer publishes anew."""

    def __init__(self, publish: Callable[[], None], count: int) -> None:
        self.publish, self.count, self.looks = publish, count, 0
        self.is_publishing = False

    def __call__(self, directory: Path) -> Manifest:
        manifest = read_manifest(directory)
        if self.is_publishing:  # the writer's own look
            return manifest
        self.looks += 1
        if self.looks <= self.count:
            self.is_publishing = True
            self.publish()
            self.is_publishing = False
            assert any(not (directory / entry.name).exists() for entry in manifest.files), "what was read is gone"
        return manifest


class Publisher:
    """A writer whose every publication replaces the overlay, or everything."""

    def __init__(self, path: Path) -> None:
        build_ngrams(path, OLD)
        self.path, self.stamp = path, 10
        self.store = ngs.open(path, mode="rw")
        self.overlay()

    def overlay(self) -> None:
        self.stamp += 1
        self.store.put([(2,)], rows_of([self.stamp], 4))
        self.store.flush()

    def base(self) -> None:
        self.overlay()
        self.store.compact()

    @property
    def state(self) -> dict:
        return {**OLD, (2,): self.stamp}


@pytest.fixture
def publisher(quick_path):
    made = Publisher(quick_path / "store")
    yield made
    made.store.close()


def race(
    monkeypatch, publish: Callable[[], None], count: int, of: str = "ngramstore.store.view.read_manifest"
) -> Races:
    races = Races(publish, count)
    monkeypatch.setattr(of, races)
    return races


@pytest.mark.parametrize("how", ["overlay", "base"])
@pytest.mark.parametrize("count", [1, 2, 6])
def test_a_reader_that_opens_while_a_writer_publishes_sees_the_newest_state(publisher, monkeypatch, how, count):
    races = race(monkeypatch, getattr(publisher, how), count)
    with ngs.open(publisher.path, cache_bytes=0) as reader:
        assert races.looks > count
        assert contents(reader) == publisher.state


@pytest.mark.parametrize("how", ["overlay", "base"])
@pytest.mark.parametrize("count", [1, 2, 6])
@pytest.mark.parametrize("options", [{"cache_bytes": 0}, {}, {"resident": True}], ids=["", "cached", "resident"])
def test_a_refresh_while_a_writer_publishes_sees_the_newest_state(publisher, monkeypatch, how, count, options):
    with ngs.open(publisher.path, **options) as reader:
        before = publisher.state
        assert contents(reader) == before
        publisher.overlay()
        races = race(monkeypatch, getattr(publisher, how), count)
        assert contents(reader) == before
        assert reader.refresh()
        assert races.looks > count
        assert contents(reader) == publisher.state != before
        assert not reader.refresh()


def test_a_file_that_stays_missing_is_damage_at_once(publisher, monkeypatch):
    publisher.store.close()
    missing = next(publisher.path.glob("overlay-*.rows"))
    data = missing.read_bytes()
    missing.unlink()
    races = race(monkeypatch, lambda: None, 0)
    with pytest.raises(DamagedStore, match=f"{missing.name} is missing; the manifest names it"):
        ngs.open(publisher.path)
    assert races.looks == 2, "the manifest still names it: there is nothing to wait for"
    missing.write_bytes(data)
    with ngs.open(publisher.path) as reader:
        assert contents(reader) == publisher.state


def test_a_refresh_that_finds_a_file_missing_keeps_the_state_it_had(publisher, monkeypatch):
    with ngs.open(publisher.path) as reader:
        before = publisher.state
        publisher.overlay()
        missing = max(publisher.path.glob("overlay-*.rows"))
        data = missing.read_bytes()
        missing.unlink()
        with pytest.raises(DamagedStore, match=f"{missing.name} is missing"):
            reader.refresh()
        assert contents(reader) == before
        missing.write_bytes(data)
        assert reader.refresh()
        assert contents(reader) == publisher.state


def test_a_reader_that_never_wins_gives_up_and_says_what_is_missing(publisher, monkeypatch):
    monkeypatch.setattr("ngramstore.store.view._ATTEMPTS", 4)
    races = race(monkeypatch, publisher.overlay, 100)
    with pytest.raises(DamagedStore, match=r"overlay-[0-9]+\.\w+ is missing"):
        ngs.open(publisher.path)
    assert races.count > races.looks >= 4


def delete_and_flush(publisher: Publisher) -> None:
    """A publication with an overlay and tombstones that replace those of before."""
    publisher.stamp += 1
    publisher.store.put([(2,), (publisher.stamp,)], rows_of([publisher.stamp] * 2, 4))
    publisher.store.delete([(1, 2)])
    publisher.store.flush()


@pytest.mark.parametrize("compacts", [False, True], ids=["flush", "compact"])
def test_a_verify_under_which_a_writer_publishes_all_the_time_finds_no_damage(publisher, monkeypatch, compacts):
    """Between any two chunks that it reads, and before the journal."""
    delete_and_flush(publisher)
    real_chunk, real_order = WornLayer._chunk, WornIndex.check_order

    def publish():
        delete_and_flush(publisher)
        if compacts:
            publisher.store.put([(1, 2)], rows_of([4], 4))
            publisher.store.compact()
            delete_and_flush(publisher)

    def chunk(*args):
        publish()
        return real_chunk(*args)

    def check_order(index):
        publish()
        real_order(index)

    monkeypatch.setattr(WornLayer, "_chunk", chunk)
    monkeypatch.setattr(WornIndex, "check_order", check_order)
    report = examine(publisher.path)
    assert report.faults == []
    assert any("a writer published meanwhile" in note for note in report.notes)
    assert not any("not part of the store" in note for note in report.notes)


@pytest.mark.parametrize("how", ["overlay", "base"])
def test_a_verify_that_opens_while_a_writer_publishes_checks_the_newest_state(publisher, monkeypatch, how):
    races = race(monkeypatch, getattr(publisher, how), 5, of="ngramstore.store.repair.worn_manifest.read_manifest")
    assert verify(publisher.path) == []
    assert races.looks > 5


def test_a_verify_that_never_wins_says_that_a_writer_published_and_calls_nothing_damaged(publisher, monkeypatch):
    race(monkeypatch, publisher.overlay, 1000, of="ngramstore.store.repair.worn_manifest.read_manifest")
    with pytest.raises(StaleStore, match="a writer published") as caught:
        verify(publisher.path)
    assert "again" in caught.value.hint


def test_a_journal_that_is_published_while_verify_reads_it_is_not_damaged(publisher, monkeypatch):
    publisher.store.put([(2,)], rows_of([50], 4))
    publisher.store._shut()

    def lock_too_late(path):
        store = ngs.open(publisher.path, mode="rw")
        store.flush()
        store.put([(2,)], rows_of([51], 4))
        store._shut()
        return no_writer(path)

    monkeypatch.setattr("ngramstore.store.repair.check.no_writer", lock_too_late)
    assert verify(publisher.path) == []


def test_a_repair_elsewhere_under_which_a_writer_publishes_brings_back_nothing_deleted(publisher, monkeypatch):
    delete_and_flush(publisher)
    flip(publisher.path / "base-000001.index", 100)  # in the header: costs nothing
    real = RebuildJournal._salvaged

    def publish_first(*args):
        delete_and_flush(publisher)
        return real(*args)

    monkeypatch.setattr(RebuildJournal, "_salvaged", publish_first)
    out = publisher.path.with_name("out")
    assert repair(publisher.path, out).lost == []
    assert (1, 2) not in published(out)
