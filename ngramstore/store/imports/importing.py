"""Import a checkpoint's tables: in place (a manifest that points into its files), or packed into blocks of our own.

In place nothing is copied: the store is a manifest, and with `checksums` a sidecar of four bytes a row. Packed, codes and
scales of a row lie together under a checksum, in the checkpoint's own codec bit for bit, or in another one.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ngramstore.codec import compress
from ngramstore.codec.registry import codec_from_spec
from ngramstore.errors import UsageError
from ngramstore.files import our_errors, publish, remove, remove_if_possible
from ngramstore.options import choose
from ngramstore.store.building.directory import claim_directory, clear_directory
from ngramstore.store.imports.checkpoint import read_checkpoint
from ngramstore.store.imports.job import WORK, Import
from ngramstore.store.imports.report import ImportReport
from ngramstore.store.layers.manifest import BUILDING_NAME, LOCK_NAME, MANIFEST_NAME
from ngramstore.store.layers.names import RUN_FILE, RUNS_NAME
from ngramstore.writer_lock import WriterLock


def import_checkpoint(
    checkpoint: str | os.PathLike[str],
    path: str | os.PathLike[str],
    *,
    checksums: bool = False,
    pack: bool = False,
    codec: str | Mapping[str, Any] | None = None,
    compression: str = "auto",
    tokenizer: Any = None,
    token_map: Any = None,
    restart: bool = False,
    progress: bool = False,
) -> ImportReport:
    """Make a row-addressed store at `path` of the n-gram tables of a checkpoint; `metadata["keys"]` is its key spec.

    Default: in place; open it with trust_external=True. checksums: a sidecar, so that every row read is verified; it reads
    the whole table once. pack: copy all rows into the store. codec: other than the checkpoint's (with pack).
    compression: as in `build` (with pack). tokenizer, token_map: Engram's, to freeze the digest of its token map.
    restart: throw away an import that was killed or failed here; without it, the same pack resumes: what is there is read and
    verified first. It cannot resume where the codec refuses values, nor where a file of the checkpoint has another size,
    modification time or inode than it had: written to, downloaded again, or copied or touched only.
    Raises UsageError, FormatError, IncompleteStore, WriterLocked, DiskFull.
    """
    if codec is not None and not pack:
        raise UsageError(f"codec={codec!r} without pack", hint="rows in place keep their codec; add pack=True (--pack)")
    if pack and checksums:
        raise UsageError("checksums with pack", hint="packed rows are under checksums anyway")
    choose("compression", compression, ("auto", "none", "zstd"))
    if compression != "auto" and not pack:
        raise UsageError(
            f"compression={compression!r} without pack", hint="rows in place stay as they are; add pack=True (--pack)"
        )
    found = read_checkpoint(Path(checkpoint), tokenizer=tokenizer, token_map=token_map)
    target = found.codec if codec is None else codec_from_spec(codec, found.codec.dim)
    compress.refuse_too_long(compression, target.row_bytes)
    out = Path(path).absolute()
    job = Import(found, target, out, pack=pack, checksums=checksums, compression=compression, progress=progress)
    claim_directory(out, restart or job.may_take_over())
    lock = WriterLock(out / LOCK_NAME)
    try:
        with our_errors(out):
            claim_directory(out, restart or job.may_take_over())  # again: nobody can come in between any more
            if restart or not job.can_go_on():
                clear_directory(out)
                publish(out / BUILDING_NAME, WORK)
            try:
                report = job.run()
            except BaseException:
                remove(out / MANIFEST_NAME)  # there, but perhaps not durable; the rows are, and can be gone on with
                if not job.is_worth_keeping():
                    clear_directory(out)
                raise
            remove_if_possible(out / RUNS_NAME, only=RUN_FILE)
            remove(out / BUILDING_NAME)
    finally:
        lock.release()
    return report
