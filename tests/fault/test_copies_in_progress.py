"""A backup or repair into another directory holds it: who comes meanwhile is told so, and takes nothing away."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest
from helpers import assert_verifies, build_ngrams, flip, published

import ngramstore as ngs
from ngramstore import files
from ngramstore.errors import UsageError, WriterLocked
from ngramstore.store.repair.repair import repair
from ngramstore.writer_lock import WriterLock

pytestmark = pytest.mark.usefixtures("no_waiting_for_the_disk")

STORED = {(i,): i for i in range(100)}


@pytest.fixture
def source(quick_path) -> Path:
    """A store with a row that is lost."""
    build_ngrams(quick_path / "source", STORED)
    flip(quick_path / "source" / "base-000001.rows", 4096 + 20 * 30)
    return quick_path / "source"


def backup(source: Path, target: Path) -> None:
    with ngs.open(source) as store:
        store.backup(target)


def build_again(source: Path, target: Path) -> None:
    build_ngrams(target, {(7,): 7}, restart=True)


def write(source: Path, target: Path) -> None:
    ngs.open(target, mode="rw").close()


def names_in(path: Path) -> set[str]:
    return {file.name for file in path.iterdir()}


@pytest.mark.parametrize("work", [backup, repair])
@pytest.mark.parametrize("other", [build_again, backup, repair])
def test_who_comes_while_a_copy_is_made_meets_its_lock_and_the_copy_is_whole(source, monkeypatch, work, other):
    target = source.with_name("target")
    met = []

    def come(operation: str, path: Path) -> None:
        if operation == "fsync" and path.parent == target and path.suffix == ".rows" and not met:
            before = names_in(target)
            with pytest.raises(WriterLocked) as caught:
                other(source, target)
            assert names_in(target) == before
            met.append(caught.value)

    monkeypatch.setattr(files, "observe", come)
    work(source, target)
    assert len(met) == 1
    assert names_in(target) == {
        "MANIFEST",
        "LOCK",
        *(f"base-00000{1 + (work is repair)}.{kind}" for kind in ("index", "rows", "tokens")),
    }
    if work is repair:
        assert_verifies(target)
        assert len(published(target)) == len(STORED) - 1
    write(source, target)


@pytest.mark.parametrize("work", [backup, repair])
def test_what_is_put_into_the_target_before_the_lock_is_held_stays(source, monkeypatch, work):
    target = source.with_name("target")
    real = WriterLock.__init__

    def lock_too_late(self, path):
        if path.parent == target:
            (target / "base-000001.rows").write_text("mine")
        real(self, path)

    monkeypatch.setattr(WriterLock, "__init__", lock_too_late)
    with pytest.raises(UsageError, match="there already"):
        work(source, target)
    assert (target / "base-000001.rows").read_text() == "mine"


@pytest.mark.parametrize("work", [backup, repair])
@pytest.mark.parametrize("is_there", [False, True])
def test_a_copy_that_fails_leaves_the_directory_as_it_was(source, monkeypatch, work, is_there):
    target = source.with_name("target")
    if is_there:
        target.mkdir()

    def fail(operation: str, path: Path) -> None:
        if operation == "write" and path.suffix == ".rows":
            raise OSError(5, "no")

    with monkeypatch.context() as patch:
        patch.setattr(files, "observe", fail)
        with pytest.raises(OSError, match="no"):
            work(source, target)
    assert target.exists() == is_there
    assert not is_there or names_in(target) == set()
    work(source, target)


@pytest.mark.parametrize("work", [backup, repair])
@pytest.mark.parametrize("code", files.NO_LOCKS)
def test_a_copy_goes_to_a_filesystem_without_locks_as_well(source, monkeypatch, work, code):
    target, real = source.parent / "copy", fcntl.flock

    def flock(fd, operation):
        if Path(os.readlink(f"/proc/self/fd/{fd}")).parent == target:
            raise OSError(code, os.strerror(code))
        real(fd, operation)

    monkeypatch.setattr(fcntl, "flock", flock)
    work(source, target)
    assert "MANIFEST" in names_in(target) and not names_in(target) & {"LOCK", "BUILDING"}
    with ngs.open(target) as store:
        assert len(store) == (100 if work is backup else 99)
    if work is not backup:  # it copies damage as it is
        assert_verifies(target)


def test_files_of_many_pieces_are_copied_byte_for_byte(source, monkeypatch):
    monkeypatch.setattr("ngramstore.store.backup._COPY_BYTES", 1000)
    target = source.with_name("copy")
    backup(source, target)
    files = sorted(source.glob("base-*"))
    assert len(files) == 3
    assert all((target / file.name).read_bytes() == file.read_bytes() for file in files)
