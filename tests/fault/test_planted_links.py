"""A store or a run folder that somebody else made, with links where files are written: what they lead to stays as it is."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from helpers import build_ngrams, flip, published

import ngramstore as ngs
from ngramstore.errors import StaleStore, UsageError
from ngramstore.files import publish
from ngramstore.store.repair.repair import repair

TEXT = "of somebody else"


@pytest.fixture
def victim(quick_path) -> Path:
    (quick_path / "notes.txt").write_text(TEXT)
    return quick_path / "notes.txt"


@pytest.fixture
def store(quick_path) -> Path:
    build_ngrams(quick_path / "store", {(i,): i for i in range(50)})
    return quick_path / "store"


def compact(path: Path) -> None:
    with ngs.open(path, mode="rw") as writer:
        writer.compact()


@pytest.mark.parametrize("work", [compact, repair])
@pytest.mark.parametrize("is_there", [True, False], ids=["a file", "nothing"])
def test_a_lock_that_is_a_link_is_refused(store, victim, work, is_there):
    if not is_there:
        victim.unlink()
    flip(store / "base-000001.rows", 4096 + 20 * 30)  # something to repair
    (store / "LOCK").unlink(missing_ok=True)
    (store / "LOCK").symlink_to(victim)
    with pytest.raises(UsageError, match="LOCK"):
        work(store)
    assert victim.read_text() == TEXT if is_there else not victim.exists()


def test_a_lock_that_becomes_a_link_is_refused(store, victim):
    """A hard link apart: a file with another name is still the file."""
    with ngs.open(store, mode="rw") as writer:
        shutil.move(store / "LOCK", store.parent / "moved")
        (store / "LOCK").symlink_to(store.parent / "moved")
        with pytest.raises(UsageError, match="LOCK"):
            ngs.open(store, mode="rw")
        with pytest.raises(StaleStore, match="moved, removed or replaced"):
            writer.put([(1,)], [[9.0] * writer.dim])


def test_a_link_under_the_temporary_name_of_an_acknowledgement_is_not_followed(store, victim):
    with ngs.open(store, mode="rw") as writer:
        journal = store / writer._manifest.journal
    journal.mkdir(exist_ok=True)
    for file in journal.iterdir():
        file.unlink()
    (journal / "ACK.tmp").symlink_to(victim)
    with ngs.open(store, mode="rw") as writer:
        writer.delete([(3,)])
        writer.flush()
    assert victim.read_text() == TEXT
    assert (3,) not in published(store) and len(published(store)) == 49


def test_a_link_under_the_temporary_name_of_a_manifest_is_not_followed(store, victim):
    (store / "MANIFEST.tmp").symlink_to(victim)
    compact(store)
    assert victim.read_text() == TEXT
    assert len(published(store)) == 50


def test_publication_replaces_a_link_and_leaves_its_target(quick_path, victim):
    (quick_path / "file.tmp").symlink_to(victim)
    (quick_path / "file").symlink_to(victim)
    publish(quick_path / "file", b"new")
    assert victim.read_text() == TEXT
    assert (quick_path / "file").read_bytes() == b"new" and not (quick_path / "file").is_symlink()
