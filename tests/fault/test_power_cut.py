"""The power goes off at any moment: what was fsynced by then is the old state or the new one, and after the return the new one.

The disk of these tests keeps a file's bytes as of its last fsync, and a directory's names as of its last fsync; any of the names
that changed since may have reached it as well, in any order. RocksDB writes its own files, so journals are left out.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from checkpoints import write_engram
from helpers import build_ngrams, published, rows_of

import ngramstore as ngs
from ngramstore import files
from ngramstore.errors import IncompleteStore, NotAStore
from ngramstore.store.imports.importing import import_checkpoint
from ngramstore.store.layers.manifest import MANIFEST_NAME
from ngramstore.store.repair.repair import repair

OLD = {(1,): 1, (2,): 2, (3,): 3, (1, 2): 4, (2, 3): 5, (1, 2, 3): 6, (7, 8, 9): 7}
PUT = {(2,): 20, (4,): 40, (3, 4): 41}
DELETED = [(1, 2, 3), (7, 8, 9)]
NEW = {ngram: stamp for ngram, stamp in {**OLD, **PUT}.items() if ngram not in DELETED}

_JOURNAL = re.compile(r"(set-aside-)?journal-[0-9]+.*")
Names = dict[str, int]
Bytes = dict[str, bytes]
State = frozenset[tuple[str, bytes]]
"""A store as readers see it: its manifest and every file that names, byte for byte."""


class Disk:
    """What a power cut would leave of the tree at `root`, kept up to date by `observe`, and looked at before each operation.

    A number stands for a file or directory (its inode, held open so that no other one gets the number).
    """

    def __init__(self, root: Path, store: Path, room: Path) -> None:
        self.root, self.room = root, room
        self.place = store.relative_to(root)
        self.bytes: dict[int, bytes] = {}
        self.names: dict[int, Names] = {}
        self.seen: dict[frozenset[tuple[str, bytes]], State | None] = {}
        self.states: set[State | None] = set()
        self.broken: list[str] = []
        self._held: dict[int, int] = {}
        self._lock = threading.Lock()
        self._top = self._number(root)
        for directory, names in self._live().items():
            self.names[directory] = names
        for path in root.rglob("*"):
            if path.is_file() and not _is_of_a_journal(path.relative_to(root)):
                self.bytes[self._number(path)] = path.read_bytes()

    def observe(self, operation: str, path: Path) -> None:
        """Look at all cuts before this operation, then let it reach the disk."""
        with self._lock:
            self.states |= self.cut(f"before {operation} of {path.name}")
            path = path.absolute()
            if operation != "fsync" or not path.is_relative_to(self.root):
                return
            if _is_of_a_journal(path.relative_to(self.root)):
                return
            number = self._number(path)
            if path.is_dir():
                self.names[number] = self._names(path)
            else:
                self.bytes[number] = path.read_bytes()

    def cut(self, when: str) -> set[State | None]:
        """What a reader finds after a power cut now, one for each set of changed names that reached the disk."""
        live = self._live()
        changed = [
            (directory, name)
            for directory, names in live.items()
            for name in sorted({*names, *self.names.get(directory, {})})
            if names.get(name) != self.names.get(directory, {}).get(name)
        ]
        sets = [set(), set(changed), *({one} for one in changed), *(set(changed) - {one} for one in changed)]
        found = set()
        for arrived in sets:
            content: Bytes = {}
            self._collect(self._top, "", arrived, live, content)
            key = frozenset(content.items())
            if key not in self.seen:
                self.seen[key] = self._read(content, when, sorted(name for _, name in arrived))
            found.add(self.seen[key])
        return found

    def close(self) -> None:
        for fd in self._held.values():
            os.close(fd)
        self._held.clear()

    def _collect(
        self, directory: int, prefix: str, arrived: set[tuple[int, str]], live: dict[int, Names], content: Bytes
    ) -> None:
        names = dict(self.names.get(directory, {}))
        for where, name in arrived:
            if where == directory:
                names.pop(name, None)
                if name in live[directory]:
                    names[name] = live[directory][name]
        for name, number in names.items():
            if number in self.names or number in live:
                content[f"{prefix}{name}/"] = b""
                self._collect(number, f"{prefix}{name}/", arrived, live, content)
            else:
                content[f"{prefix}{name}"] = self.bytes.get(number, b"")

    def _read(self, content: Bytes, when: str, arrived: list[str]) -> State | None:
        """None where there is no store, or one that says it is not finished."""
        place = self.room / str(len(self.seen))
        place.mkdir(parents=True)
        for name in sorted(content):
            if name.endswith("/"):
                (place / name).mkdir()
            else:
                (place / name).write_bytes(content[name])
        try:
            return state_of(place / self.place)
        except (ngs.errors.NgramStoreError, OSError, ValueError, AssertionError) as error:
            self.broken.append(f"{when}, where {arrived} reached the disk: {error}")
            return None

    def _live(self) -> dict[int, Names]:
        """The names in each directory as they are now."""
        found = {}
        for folder, folders, _ in os.walk(self.root):
            folders[:] = [name for name in folders if not _JOURNAL.fullmatch(name)]
            found[self._number(Path(folder))] = self._names(Path(folder))
        return found

    def _names(self, folder: Path) -> Names:
        return {name: self._number(folder / name) for name in os.listdir(folder) if not _JOURNAL.fullmatch(name)}

    def _number(self, path: Path) -> int:
        number = os.stat(path).st_ino
        if number not in self._held:
            self._held[number] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        return number


def _is_of_a_journal(path: Path) -> bool:
    return any(_JOURNAL.fullmatch(part) for part in path.parts)


def state_of(path: Path) -> State | None:
    """What a reader of the store at `path` depends on; None where there is no store, or one that says it is not finished."""
    try:
        with ngs.open(path, cache_bytes=0, trust_external=True) as store:
            names = [MANIFEST_NAME, *(file.name for file in store.files)]
            return frozenset((name, (path / name).read_bytes()) for name in names)
    except (NotAStore, IncompleteStore):
        return None


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
