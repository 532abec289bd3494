"""The folder of a run: made before its first step, and held by one training at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ngramstore.errors import UsageError, WriterLocked
from ngramstore.files import make_directory, remove_if_possible
from ngramstore.writer_lock import lock_where_possible

_LOCK_NAME = "LOCK"


@contextmanager
def run_folder(path: Path) -> Iterator[None]:
    """Make the folder if it is not there, and hold it until the block ends: a save removes the files of every other checkpoint.

    A file LOCK is in it meanwhile, which a killed run leaves and the next one takes over. Raises UsageError where a file is in the way,
    WriterLocked where another training is at work.
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
        yield
    finally:
        if lock is not None:
            remove_if_possible(path / _LOCK_NAME)  # while it is held: who opened it meanwhile sees that it is gone
            lock.release()
