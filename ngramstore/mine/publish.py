"""A file written front to back that appears under its name whole and synced, or not at all."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ngramstore.file_writer import FileWriter
from ngramstore.files import fsync_directory, remove_if_possible, rename


@contextmanager
def published(path: Path, *, sync: bool = True, sync_directory: bool = True) -> Iterator[FileWriter]:
    """A file written under a temporary name and renamed to `path` when the block ends without an error.

    A killed process leaves only the temporary file, which the next try replaces. Raises DiskFull where the disk is full.
    sync=False leaves it to the system when the bytes reach the disk: for files with a checksum whose loss in a power cut costs little.
    sync_directory=False lets a power cut undo the rename: for a file that a rerun makes again.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with FileWriter(temporary) as writer:
            yield writer
            if sync:
                writer.finish()
            else:
                writer.flush()
        rename(temporary, path)
    except BaseException:
        remove_if_possible(temporary)
        raise
    if sync and sync_directory:
        fsync_directory(path.parent)
