"""A file written front to back that appears under its name whole and synced, or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ngramstore.errors import UsageError
from ngramstore.file_writer import FileWriter
from ngramstore.files import fsync_directory, remove_if_possible, rename


@contextmanager
def published(path: Path, *, sync: bool = True, sync_directory: bool = True) -> Iterator[FileWriter]:
    """A file written under a temporary name and renamed to `path` when the block ends without an error.

    A killed process leaves only the temporary file, which the next try replaces. Raises DiskFull where the disk is full, and
    UsageError where another process has begun to write the same file meanwhile.
    sync=False leaves it to the system when the bytes reach the disk: for files with a checksum whose loss in a power
    cut costs little. sync_directory=False lets a power cut undo the rename: for a file that a rerun makes again.
    """
    temporary = path.with_name(path.name + ".tmp")
    with FileWriter(temporary) as writer:
        ours = os.fstat(writer.fd)
        try:
            yield writer
            if sync:
                writer.finish()
            else:
                writer.flush()
            if not _is_at(temporary, ours):
                raise UsageError(f"another process writes {path} at the same time", hint="let one of them end first")
            rename(temporary, path)
        except BaseException:
            if _is_at(temporary, ours):
                remove_if_possible(temporary)
            raise
    if sync and sync_directory:
        fsync_directory(path.parent)


def _is_at(path: Path, ours: os.stat_result) -> bool:
    """Is our file there still, or has another process put its own in the place?"""
    try:
        return os.path.samestat(ours, os.stat(path))
    except FileNotFoundError:
        return False
