"""`repair`: every good row of a damaged store into a new base, published as one more generation, and a list of what is lost.

A row is good if its checksum says so under an ID that its tokens hash to (or that the index holds, in a store without tokens).
A change that is lost is lost with what it replaced: an older value is not served for a newer one. Only where it cannot be known
what was changed (tombstones lost; an overlay's index lost in a store without tokens) older values may be there again, and
a line says so. Row-addressed stores keep every number; a lost row becomes zeros.
"""

from __future__ import annotations

import logging
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ngramstore.errors import DamagedStore, NgramStoreError, StaleStore, WriterLocked
from ngramstore.files import fsync_directory, our_errors, remove_if_possible
from ngramstore.store.building.copying import copy_into
from ngramstore.store.changes.writer import Writer
from ngramstore.store.journal.left import clear_left_journals, refuse_later_journals
from ngramstore.store.layers.manifest import LOCK_NAME, MANIFEST_NAME, Manifest
from ngramstore.store.layers.names import DATA_FILE, numbered
from ngramstore.store.repair.check import Fault, examine
from ngramstore.store.repair.rebuild import Rebuild
from ngramstore.store.repair.report import RepairReport
from ngramstore.store.repair.worn_manifest import open_manifest
from ngramstore.writer_lock import WriterLock

_log = logging.getLogger("ngramstore")
_ATTEMPTS = 3
"""Examinations of a store that a writer changes meanwhile: each reads all of it."""


def repair(
    path: str | os.PathLike[str],
    out: str | os.PathLike[str] | None = None,
    *,
    dry_run: bool = False,
    drop_tokens: bool = False,
    progress: bool = False,
) -> RepairReport:
    """Salvage the store at `path`, in place or, untouched, into the new directory `out`. A store that is well is left alone.

    The new state replaces the old one atomically; a journal of which no change could be taken is kept beside it, and a
    line says as what. dry_run: only say what would be kept and lost. drop_tokens: the repaired store
    keeps no tokens (as one built with tokens=False), and so loses no row for want of them. progress: bars on stderr.
    Raises NotAStore, IncompleteStore, UnsupportedVersion, WriterLocked, DiskFull, UsageError, DamagedStore where the
    manifest is beyond reading, and StaleStore where a writer publishes so often that no state could be examined.
    """
    directory = Path(path)
    target = directory if out is None else Path(out)
    report = RepairReport(str(target))
    in_place = out is None and not dry_run
    report.faults, found = _examined(directory, in_place, progress)
    if found is None:
        raise _no_manifest(directory, report.faults[0])
    if not report.faults:
        report.num_rows = found.num_rows
        return report
    if dry_run:
        with tempfile.TemporaryDirectory() as scratch:
            Rebuild(directory, found, Path(scratch), report, drop_tokens, progress).survey()
        return report
    if out is not None:
        with copy_into(directory, target, "repair"):
            Rebuild(directory, found, target, report, drop_tokens, progress).write()
        return report
    lock = WriterLock(directory / LOCK_NAME)
    try:
        fsync_directory(directory)  # as a writer does, before what the manifest replaced is removed
        is_same = open_manifest(directory, []) == found
        if is_same:
            refuse_later_journals(directory, found)
            with _cleaned_after_failure(directory, found), our_errors(directory):
                work = Rebuild(directory, found, directory, report, drop_tokens, progress)
                clear_left_journals(directory, found, set())
                work.write()
                work.journal.clear()
    finally:
        lock.release()
    if not is_same:  # a writer has published since we looked
        return repair(path, drop_tokens=drop_tokens, progress=progress)
    try:
        Writer(directory).close()  # removes the files that no manifest names any more
    except WriterLocked as error:  # another writer has come: it does the same
        _log.info("%s: what the repair replaced stays until its writer has ended: %s", directory, str(error))
    except (OSError, NgramStoreError) as error:  # what is lost is said in any case
        _log.warning("%s was repaired, but could not be opened afterwards: %s", directory, str(error))
    return report


def _examined(directory: Path, in_place: bool, progress: bool) -> tuple[list[Fault], Manifest | None]:
    """The faults of the state that is published, and its manifest. Raises StaleStore where a writer goes on publishing,
    WriterLocked where it would be repaired in place."""
    for _ in range(_ATTEMPTS):
        examined = examine(directory, progress=progress)
        found = open_manifest(directory, [])
        if found == examined.manifest or (found is not None and not examined.faults):
            return examined.faults, found
        if in_place:  # these are faults of an earlier state; a writer that is still there may publish again
            WriterLock(directory / LOCK_NAME).release()
    raise StaleStore(
        f"{directory}: {_ATTEMPTS} times a writer published while its files were examined",
        hint="close the writer first",
    )


@contextmanager
def _cleaned_after_failure(directory: Path, manifest: Manifest) -> Iterator[None]:
    """What a failed repair in place wrote is removed, so that it does not fill the disk, unless it is published all the same."""
    try:
        yield
    except BaseException:
        try:
            found = open_manifest(directory, [])
        except (OSError, NgramStoreError) as error:
            _log.warning("%s: what the failed repair wrote stays: %s", directory, str(error))
            raise
        if found is not None:
            named = {entry.name for entry in found.files}
            for path in directory.glob(f"{numbered('base', manifest.generation + 1)}.*"):
                if DATA_FILE.fullmatch(path.name) and path.name not in named:
                    remove_if_possible(path)
        raise


def _no_manifest(directory: Path, fault: Fault) -> DamagedStore:
    names = sorted(name for name in os.listdir(directory) if name.endswith((".index", ".rows", ".tokens")))
    return DamagedStore(
        f"{directory / MANIFEST_NAME} cannot be mended ({fault.what}), and only it knows codec, width and seed; the directory "
        f"holds {', '.join(names) or 'no files of a store'}",
        hint="put a copy of this MANIFEST back, from a backup made since the last compaction, and repair again",
    )
