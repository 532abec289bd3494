"""A file written front to back that appears under its name whole and synced, or not at all."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from ngramstore.files import clear_errors, fsync_directory


@contextmanager
def published(path: Path, *, sync: bool = True, sync_directory: bool = True) -> Iterator[BinaryIO]:
    """A file open for reading and writing under a temporary name, renamed to `path` when the block ends without an error.

    A killed process leaves only the temporary file, which the next try overwrites. Raises DiskFull where the disk is full.
    sync=False leaves it to the system when the bytes reach the disk: for files with a checksum whose loss in a power cut costs little.
    """
    tmp = path.with_name(path.name + ".tmp")
    with clear_errors(path):
        try:
            with open(tmp, "w+b") as file:
                yield file
                file.flush()
                if sync:
                    os.fsync(file.fileno())
        except BaseException:
            tmp.unlink(missing_ok=True)
            raise
        os.replace(tmp, path)
    if (
        sync and sync_directory
    ):  # without it a power cut can undo the rename, which is fine for a file that a rerun makes again
        fsync_directory(path.parent)
