"""The folder of a run: made before its first step, and held by one training at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ngramstore.errors import UsageError, WriterLocked
from ngramstore.files import make_directory
from ngramstore.writer_lock import WriterLock, lock_where_possible

_LOCK_NAME = "LOCK"


class HeldFolder:
    """A run folder that is held."""

    def __init__(self, path: Path, lock: WriterLock | None) -> None:
        self._path, self._lock = path, lock

    def require_in_place(self) -> None:
        """UsageError where the folder was moved or replaced meanwhile: what is saved by its path would go into another one."""
        if self._lock is not None and not self._lock.is_in_place:
            raise UsageError(
                f"{self._path} was moved, removed or replaced while a training was at work in it",
                hint="its last checkpoint is where it is now; go on there with --resume",
            )


@contextmanager
def run_folder(path: Path) -> Iterator[HeldFolder]:
    """Make the folder if it is not there, and hold it until the block ends: a save removes the files of every other checkpoint.

    A file LOCK is in it meanwhile, which a killed run leaves and the next one takes over. Raises UsageError where a
    file is in the way, WriterLocked where another training is at work.
    """
    if path.exists() and not path.is_dir():
        raise UsageError(f"{path} is a file", hint="give a folder for the checkpoints")
    make_directory(path)
    try:
        lock = lock_where_possible(path / _LOCK_NAME)
    except WriterLocked as error:
        raise WriterLocked(
            f"another training is at work in {path}",
            hint="wait for its end, or give a folder of its own (`--out`) to each",
        ) from error
    try:
        yield HeldFolder(path, lock)
    finally:
        if lock is not None:
            lock.remove()
