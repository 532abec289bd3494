"""What a power cut would leave: a disk that keeps only what was fsynced, kept up to date through `files.observe`.

It keeps a file's bytes as of its last fsync, and a directory's names as of its last fsync; any of the names that changed since
may have reached it as well, in any order. RocksDB writes its own files, so journals are left out.
"""

from __future__ import annotations

import os
import re
import shutil
import threading
from pathlib import Path

import ngramstore as ngs
from ngramstore.errors import IncompleteStore, NotAStore
from ngramstore.store.layers.manifest import MANIFEST_NAME

_JOURNAL = re.compile(r"(set-aside-)?journal-[0-9]+.*")
Names = dict[str, int]
Bytes = dict[str, bytes]
State = frozenset[tuple[str, bytes]]
"""A store as readers see it: its manifest and every file that names, byte for byte."""


class Killed(BaseException):
    """Stands for kill -9: nothing catches it."""


class Killing:
    """Tells a disk of each operation before the N-th, counting from 0; that one and all later ones end in Killed, undone."""

    def __init__(self, nth: int, disk: Disk) -> None:
        self.nth, self.disk = nth, disk
        self.log: list[tuple[str, str]] = []

    def __call__(self, operation: str, path: Path) -> None:
        self.log.append((operation, path.name))
        if len(self.log) > self.nth:
            raise Killed
        self.disk.observe(operation, path)


class Disk:
    """What a power cut would leave of the tree at `root`, kept up to date by `observe`, and looked at before each operation.

    A number stands for a file or directory (its inode, held open so that no other one gets the number).
    """

    def __init__(self, root: Path, store: Path, room: Path) -> None:
        self.root, self.room = root, room
        self.keep = False
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
        finally:
            if not self.keep:
                shutil.rmtree(place)

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
