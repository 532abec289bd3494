"""The work directory of a mining run: which steps are finished, for which corpus and options.

`STEP` is a small JSON file with a checksum: the options and the last length that is finished. Everything else is recognised
by its name: files appear whole or not at all. Without STEP they are of no use, and the next run deletes them.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from ngramstore.checked_json import crc_fits, with_crc
from ngramstore.errors import DamagedStore, UsageError
from ngramstore.files import make_directory, remove
from ngramstore.mine.publish import published
from ngramstore.writer_lock import WriterLock

STEP_NAME = "STEP"
LOCK_NAME = "LOCK"
_NUMBERED = r"(count|frequent|ids)-[0-9]{2}(-[0-9]{5,})?\.(run|u32)"
_OUR_NAMES = re.compile(rf"{LOCK_NAME}|{STEP_NAME}(\.tmp)?|{_NUMBERED}(\..+)?")
_UNFINISHED_NAMES = re.compile(rf"{_NUMBERED}\..+")


class WorkDirectory:
    """Names and steps. One process at a time drives it, under a lock; its workers only write files."""

    def __init__(self, path: str | Path, options: dict[str, Any], *, restart: bool, sync: bool = True) -> None:
        """Open or make it. `sync`: steps survive a power cut (else, they may be found damaged after one). Raises
        UsageError where it holds other options or foreign files, DamagedStore for a bad STEP, WriterLocked where
        another process mines there.
        """
        self.path = Path(path)
        self._options = options
        self.sync = sync
        self.finished_n = 1
        step = self.path / STEP_NAME
        refuse_foreign(self.path)
        make_directory(self.path)
        self._lock = WriterLock(self.path / LOCK_NAME)
        try:
            if restart or not step.exists():
                self._empty()
            if step.exists():
                self._resume(step)
                self._remove_unfinished()
            else:
                self.finish(1)
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let another process in."""
        self._lock.release()

    def finish(self, n: int) -> None:
        """Record that lengths up to n are counted and their positions numbered."""
        body = {"options": self._options, "finished_n": n}
        with published(self.path / STEP_NAME, sync=self.sync) as file:
            file.write(json.dumps(with_crc(body), indent=1).encode())
        self.finished_n = n

    def counts(self, n: int, shard: int) -> Path:
        """The run of one shard's counts."""
        return self.path / f"count-{n:02d}-{shard:05d}.run"

    def frequent(self, n: int) -> Path:
        """The run of the frequent n-grams."""
        return self.path / f"frequent-{n:02d}.run"

    def ids(self, n: int, shard: int) -> Path:
        """The numbers of the frequent n-grams by position."""
        return self.path / f"ids-{n:02d}-{shard:05d}.u32"

    def remove(self) -> None:
        """Delete the directory and all in it, and close."""
        try:
            self._empty()
            remove(self.path, only=_OUR_NAMES)
        finally:
            self.close()

    def _empty(self) -> None:
        """Delete all but the lock. STEP goes first: files without it count for nothing, but it vouches for files that
        may be gone."""
        remove(self.path / STEP_NAME)
        for file in list(self.path.iterdir()):
            if file.name != LOCK_NAME and _OUR_NAMES.fullmatch(file.name):
                remove(file)

    def _remove_unfinished(self) -> None:
        """Delete what a killed run was writing: the next one writes under other names."""
        for file in list(self.path.iterdir()):
            if _UNFINISHED_NAMES.fullmatch(file.name):
                remove(file)

    def _resume(self, step: Path) -> None:
        hint = "use the same options, or start over with restart=True (`ngramstore mine --restart`)"
        try:
            body = json.loads(step.read_bytes())
            is_good = crc_fits(body)
        except (ValueError, AttributeError, RecursionError):
            is_good = False
        if not is_good:
            raise DamagedStore(f"{step} is damaged", hint="start over with restart=True (`ngramstore mine --restart`)")
        for name, value in self._options.items():
            there = body["options"].get(name)
            if there != value:
                raise UsageError(
                    f"{self.path} was begun with {name} = {there!r:.80}, now it is {value!r:.80}", hint=hint
                )
        self.finished_n = body["finished_n"]


def refuse_foreign(path: Path) -> None:
    """A work directory holds files of mining and nothing else: all of it goes when the run ends or starts over.

    Raises UsageError where it holds something else.
    """
    if not path.exists():
        return
    files = sorted(path.iterdir()) if path.is_dir() else [path]
    foreign = [file for file in files if not _OUR_NAMES.fullmatch(file.name) or file.is_symlink() or not file.is_file()]
    if foreign:
        raise UsageError(f"{foreign[0]} is not a file of mining", hint="give another work directory")
