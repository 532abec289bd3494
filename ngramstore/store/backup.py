"""A copy of a store's published state, made from open files: complete in the new directory, or not there at all."""

from __future__ import annotations

import os
from pathlib import Path

from tqdm import tqdm

from ngramstore.file_writer import FileWriter
from ngramstore.files import fsync_directory, require_space
from ngramstore.store.building.copying import copy_into
from ngramstore.store.view import View

_COPY_BYTES = 8 << 20


def backup(view: View, target: Path, *, progress: bool = False) -> None:
    """Copy every file of the view, then the manifest. The target must be a new or empty directory, and is held meanwhile.

    Bytes are copied as they are: run `verify` on the copy to know that they are good. progress: a bar on stderr. Raises
    UsageError, WriterLocked, DiskFull.
    """
    with copy_into(view.directory, target, "backup"):
        require_space(target, sum(entry.file_bytes for entry in view.manifest.files), "the backup")
        total = sum(os.fstat(file.fd).st_size for file in view.files)
        with tqdm(total=total, desc="backup", unit="B", unit_scale=True, disable=not progress) as bar:
            for file in view.files:
                with FileWriter(target / file.path.name) as writer:
                    size = os.fstat(file.fd).st_size
                    for at in range(0, size, _COPY_BYTES):
                        part = file.read(at, min(_COPY_BYTES, size - at))
                        writer.write(part)
                        bar.update(len(part))
                    writer.finish()
        fsync_directory(target)
        view.manifest.write(target)
