"""`verify` reads every byte of a store and lists every fault. It trusts nothing that it reads, no damage stops it, and it
writes nothing.

Shapes: M rows of a chunk.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ngramstore.errors import DamagedJournal, DamagedStore, FormatError, NgramStoreError, StaleStore
from ngramstore.files import our_errors
from ngramstore.hashing import row_ids
from ngramstore.layout import BLOCK_ROWS, MAGIC, PAGE_BYTES
from ngramstore.store.journal.ack import no_writer
from ngramstore.store.journal.reading import check_journal
from ngramstore.store.layers.datafile import FileStamp
from ngramstore.store.layers.layer import Layer
from ngramstore.store.layers.layer_entry import LayerEntry
from ngramstore.store.layers.manifest import LOCK_NAME, MANIFEST_NAME, Manifest, read_manifest
from ngramstore.store.layers.merge import is_in
from ngramstore.store.progress import over_rows
from ngramstore.store.repair.agreement import Agreement
from ngramstore.store.repair.journal import is_there
from ngramstore.store.repair.raw_file import Fault, damage_of
from ngramstore.store.repair.stretches import Stretch, StretchLines
from ngramstore.store.repair.worn import WornLayer
from ngramstore.store.repair.worn_index import WornIndex
from ngramstore.store.repair.worn_manifest import open_manifest
from ngramstore.store.view import View

__all__ = ["Fault", "Report", "examine", "verify"]

_ATTEMPTS = 20
_CHUNK_BYTES = 16 << 20


@dataclass
class Report:
    """What `examine` found. `notes` are not faults: files that do not belong here, things that could not be looked at."""

    faults: list[Fault] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    num_rows: int = 0
    num_bytes: int = 0
    manifest: Manifest | None = None
    """Of the state that was examined; None where there was none to be read."""


def verify(path: str | os.PathLike[str]) -> list[Fault]:
    """Every fault of the store at `path`; empty if all is well.

    Reads all of it: manifest, headers, index pages, IDs, rows with their checksums and frames, tokens, the overlay, and the
    journal if no writer is at work. Raises NotAStore, IncompleteStore, UsageError where there is nothing to read or a file is
    there and kept from us (its mode, a link, too many open files), UnsupportedVersion, and StaleStore where a writer publishes
    so often that no state can be opened.
    """
    return examine(path).faults


def examine(path: str | os.PathLike[str], *, progress: bool = False) -> Report:
    """As `verify`, with notes and counts. progress: a bar on stderr."""
    directory = Path(path)
    for _ in range(_ATTEMPTS):
        report = Report()
        manifest = report.manifest = open_manifest(directory, report.faults)
        if manifest is None:
            _examine_headers(directory, report)
            return report
        work = _Examination(directory, manifest, report, progress)
        if not work.lacks_files or not _has_changed(directory, manifest):
            work.run()
            return report
    raise StaleStore(
        f"{directory}: {_ATTEMPTS} times a writer published, and removed files that had not been opened yet",
        hint="run it again; it opens files as soon as it has read the manifest",
    )


def _has_changed(directory: Path, manifest: Manifest) -> bool:
    """Whether a writer has published meanwhile, and perhaps removed what was not open yet."""
    try:
        return read_manifest(directory) != manifest
    except NgramStoreError:
        return False


def _examine_headers(directory: Path, report: Report) -> None:
    """Without a manifest only what a file says of itself can be checked."""
    for name in sorted(os.listdir(directory)):
        path = directory / name
        if path.suffix in (".index", ".rows", ".tokens") and path.is_file():
            with our_errors(path), open(path, "rb") as file:
                page = file.read(PAGE_BYTES)
            if page[: len(MAGIC)] != MAGIC:
                report.faults.append(Fault(name, 0, "does not begin like a file of a store"))
    report.notes.append("the rest cannot be checked without the manifest")


class _Examination:
    """One pass over a store. All files of its state are opened before any is read: what is open no writer takes away."""

    def __init__(self, directory: Path, manifest: Manifest, report: Report, progress: bool) -> None:
        self._directory = directory
        self._progress = progress
        self._manifest = manifest
        self._spec = manifest.spec
        self._report = report
        changed = manifest.stamp(manifest.overlay_generation)
        self._overlay = self._open(manifest.overlay, changed, is_keyed=True) if manifest.overlay else None
        self._tombstones = (
            WornIndex(directory, manifest.tombstones, changed, None, is_keyed=True, is_sized=False)
            if manifest.tombstones
            else None
        )
        stamp = manifest.stamp(manifest.base_generation)
        self._base: WornLayer | Layer | str = (
            self._open(manifest.base, stamp, is_keyed=self._spec.is_ngram)
            if isinstance(manifest.base, LayerEntry)
            else self._open_in_place()
        )
        self._agreement = Agreement(manifest, self._base, self._overlay, self._tombstones)

    def _open(self, entry: LayerEntry, stamp: FileStamp, *, is_keyed: bool) -> WornLayer:
        return WornLayer(self._directory, entry, stamp, self._spec, is_keyed=is_keyed)

    def _open_in_place(self) -> Layer | str:
        """A base in the files of others, or why it cannot be opened."""
        try:
            alone = replace(self._manifest, overlay=None, tombstones=None)
            return View(self._directory, alone, trust_external=True).base
        except (FormatError, OSError) as error:
            return str(error).splitlines()[0]

    @property
    def lacks_files(self) -> bool:
        """Whether a file was not there any more, or (of a base in place) could not be opened."""
        worn = [
            part for part in (self._overlay, self._tombstones, self._base) if isinstance(part, WornLayer | WornIndex)
        ]
        return isinstance(self._base, str) or any(fault.is_missing for part in worn for fault in part.faults)

    def run(self) -> None:
        """Fill the report."""
        report = self._report
        before = len(report.faults)
        overlay_ids = self._overlay_ids()
        tombstones = self._deleted_ids()
        both = np.intersect1d(overlay_ids, tombstones)
        if len(both):
            self._fault(f"ID 0x{int(both[0]):016x} is among the tombstones and in the overlay")
        num_live, num_dead = self._read_base(overlay_ids, tombstones)
        if len(report.faults) == before:
            for what in self._agreement.faults(overlay_ids, tombstones, num_live, num_dead):
                self._fault(what)
        self._journal()
        self._strangers()
        report.num_bytes = sum(entry.file_bytes for entry in self._manifest.files)

    def _fault(self, what: str) -> None:
        self._report.faults.append(Fault(MANIFEST_NAME, None, what))

    def _overlay_ids(self) -> np.ndarray:
        layer = self._overlay
        if layer is None:
            return np.empty(0, np.uint64)
        ids = [np.empty(0, np.uint64)]
        for chunk in layer.chunks():
            ids.append(chunk.ids[chunk.has_id])
            self._agreement.add(chunk, np.ones(len(chunk.ids), bool))
        self._report.num_rows += layer.num_rows
        layer.index.check_order()
        self._report.faults += layer.faults
        return np.concatenate(ids)

    def _deleted_ids(self) -> np.ndarray:
        index = self._tombstones
        if index is None:
            return np.empty(0, np.uint64)
        index.check_order()
        self._report.faults += index.faults
        return index.all_ids()[0]

    def _read_base(self, overlay_ids: np.ndarray, tombstones: np.ndarray) -> tuple[int, int]:
        """Read the base; returns its rows that neither overlay nor tombstones change, and those that the latter do."""
        layer = self._base
        if not isinstance(layer, WornLayer):
            self._read_base_in_place(layer)
            return 0, 0
        changed = np.sort(np.concatenate([overlay_ids, tombstones]))
        num_live = num_dead = 0
        for chunk in over_rows(layer.chunks(), layer.num_rows, "verify", self._progress):
            ids = chunk.ids if self._spec.is_ngram else row_ids(chunk.ids)
            live = ~is_in(ids, changed)
            num_live += int(live.sum())
            num_dead += int(is_in(ids, tombstones).sum())
            self._agreement.add(chunk, live)
        self._report.num_rows += layer.num_rows
        layer.index.check_order()
        self._report.faults += layer.faults
        return num_live, num_dead

    def _read_base_in_place(self, base: Layer | str) -> None:
        """Rows in the files of others: reading proves what can be proved."""
        num_rows = self._manifest.base.num_rows
        lines: StretchLines[None, Fault] = StretchLines(self._report.faults, _fault_in_place)
        try:
            if isinstance(base, str):
                raise DamagedStore(base)
            step = max(BLOCK_ROWS, _CHUNK_BYTES // self._spec.codec.row_bytes)
            for first in tqdm(range(0, num_rows, step), desc="verify", disable=not self._progress):
                _check_in_place(base, first, min(step, num_rows - first), lines)
        except (FormatError, OSError) as error:
            self._fault(f"its rows cannot be read in place: {str(error).splitlines()[0]}")
        self._report.num_rows += num_rows

    def _journal(self) -> None:
        manifest, report = self._manifest, self._report
        path = self._directory / manifest.journal
        try:
            if not is_there(path):
                return
            num_changes, lost = self._check_journal(path)
        except FormatError as error:
            if not _has_changed(self._directory, manifest):  # else it is published, and being removed
                report.faults.append(Fault(manifest.journal, None, str(error).splitlines()[0]))
        except NgramStoreError as error:
            report.notes.append(f"{manifest.journal} was not checked: {str(error).splitlines()[0]}")
        else:
            report.notes.append(f"{manifest.journal} holds {num_changes} changes that are not published yet")
            report.notes += [f"{manifest.journal}: {lost}"] if lost else []

    def _check_journal(self, path: Path) -> tuple[int, str]:
        spec, state = self._spec, self._manifest.state_digest
        try:
            with no_writer(self._directory / LOCK_NAME):
                return check_journal(path, row_bytes=spec.codec.row_bytes, width=spec.journal_width, store_state=state)
        except NgramStoreError:
            raise
        except OSError as error:
            raise DamagedJournal(f"{path}: {damage_of(path, error)}") from error

    def _strangers(self) -> None:
        if _has_changed(self._directory, self._manifest):
            generation = self._manifest.generation
            self._report.notes.append(f"a writer published meanwhile; what was checked is generation {generation}")
            return
        known = {entry.name for entry in self._manifest.files} | {MANIFEST_NAME, LOCK_NAME, self._manifest.journal}
        for name in sorted(set(os.listdir(self._directory)) - known):
            self._report.notes.append(f"{name} is not part of the store")


def _check_in_place(base: Layer, first: int, count: int, lines: StretchLines[None, Fault]) -> None:
    bad: list[int] = []
    try:
        base.read_encoded(first, count, bad=bad)
    finally:  # what was found before an error counts too
        is_bad = np.zeros(count, bool)
        is_bad[np.array(bad, np.int64) - first] = True
        lines.add(first, is_bad, lambda _: None)


def _fault_in_place(stretch: Stretch[None]) -> Fault:
    one, several = "fails its checksum", "fail their checksums"
    return Fault(MANIFEST_NAME, None, f"{stretch.rows}, read in place, {one if stretch.num_rows == 1 else several}")
