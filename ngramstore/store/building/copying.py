"""The directory that a copy of a store goes into: new or empty, held against all others, and complete or as it was."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ngramstore.errors import UsageError
from ngramstore.files import make_directory, our_errors, publish, remove, remove_if_possible
from ngramstore.store.building.directory import clear_directory
from ngramstore.store.layers.manifest import BUILDING_NAME, LOCK_NAME
from ngramstore.writer_lock import lock_where_possible

_log = logging.getLogger("ngramstore")


@contextmanager
def copy_into(source: Path, target: Path, work: str) -> Iterator[None]:
    """Make the directory for a copy of `source` and hold its lock, so that nobody takes a copy in progress for one that
    was killed.

    work: "backup" or "repair", which BUILDING says until the end. A failure inside removes what was written. Raises UsageError
    where something is there already or `source` lies around it, WriterLocked where somebody writes there, DiskFull.
    """
    with our_errors(target):
        real = Path(os.path.realpath(target))  # never an error, as of a link to itself: that comes below
        if Path(os.path.realpath(source)) in (real, *real.parents):
            raise UsageError(f"{target} lies in the store {source}", hint=f"give the {work} a directory beside it")
        if not (target / LOCK_NAME).exists():  # a directory of others gets none
            _refuse_used(target, work)
        is_new = not target.exists()
        make_directory(target)
        lock = lock_where_possible(target / LOCK_NAME)  # None: BUILDING alone says that the copy is not complete
        try:
            _refuse_used(target, work)  # again, now that nobody else can have come in between
            try:
                publish(target / BUILDING_NAME, f"{work}\n".encode())
                yield
            except BaseException:
                _give_up(target, is_new)
                raise
            remove_if_possible(target / BUILDING_NAME)
        finally:
            if lock is not None:
                lock.release()


def _refuse_used(target: Path, work: str) -> None:
    if target.exists() and (not target.is_dir() or set(os.listdir(target)) - {LOCK_NAME}):
        raise UsageError(f"{target} is there already", hint=f"give the {work} a new directory")


def _give_up(target: Path, is_new: bool) -> None:
    try:
        clear_directory(target)
        remove(target / LOCK_NAME)
        if is_new:
            target.rmdir()
    except (OSError, UsageError) as error:  # what is left is still marked as incomplete, or still complete
        _log.warning("%s: not all of a copy that failed could be removed: %s", target, str(error))
