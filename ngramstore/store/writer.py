"""The one writer of a store: journal, published overlay, compaction. Readers meet its work only through the manifest.

A put goes to the journal (RocksDB). `flush` merges journal and overlay into a new overlay and publishes it; `compact` merges
overlay and base into a new base. Until the manifest is renamed nothing has happened; after it, journal and old files
are rubbish that the next writer removes too.

Shapes: M n-grams, B bytes of an encoded row, N tokens of the longest (K).
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

import ngramstore
from ngramstore.errors import DamagedRows, NgramStoreError, UsageError
from ngramstore.files import (
    WriterLock,
    clear_errors,
    fsync_directory,
    remove_if_possible,
    remove_unless_read,
    require_space,
)
from ngramstore.hashing import ngram_ids, row_ids
from ngramstore.kernels.native.index import RANK_BITS
from ngramstore.kernels.native.rows import read_rows
from ngramstore.layout import CHECKSUM_BYTES
from ngramstore.store.build import collision, suffixes_are_stored
from ngramstore.store.index import IndexBuilder, IndexPlan
from ngramstore.store.journal import Changes, Journal
from ngramstore.store.layer import Batch, LayerWriter
from ngramstore.store.manifest import BUILDING_NAME, LOCK_NAME, Manifest, read_manifest
from ngramstore.store.merge import is_in, merged, without
from ngramstore.store.view import View

_log = logging.getLogger("ngramstore")
_DATA_FILE = re.compile(r"(base|overlay|tombstones)-[0-9]+\.(index|rows|tokens|sums)")
_JOURNAL = re.compile(r"journal-[0-9]+(\.salvage-.*)?")
_ROW_NUMBER_WIDTH = 2  # a row number in the journal: two u32 "tokens"


class Writer:
    """Holds the writer lock from construction to `close`. Not safe for threads: the store's handle serialises."""

    def __init__(self, directory: Path, *, lock_index: bool = False, trust_external: bool = False) -> None:
        self._directory = directory
        read_manifest(directory)  # what is no store gets no lock file
        self._lock = WriterLock(directory / LOCK_NAME)
        self._journal: Journal | None = None
        self._journal_failed = False
        self._may_be_behind = False
        try:
            self.view = View.open(directory, lock_index=lock_index, trust_external=trust_external)
            self.collect_garbage()
            if self._journal_path.exists():
                self._journal = self._open_journal()
        except BaseException:
            self._lock.release()
            raise

    @property
    def manifest(self) -> Manifest:
        """The published state."""
        return self.view.manifest

    @property
    def num_pending(self) -> int:
        """Changes not yet published. After a failure the journal is opened again here, which may fail: DiskFull."""
        if self._journal is None and self._journal_failed:
            self._recover()
        return len(self._journal) if self._journal is not None else 0

    def pending_ids(self) -> tuple[np.ndarray, np.ndarray]:
        """Sorted IDs of unpublished changes (M,) u64, and which are deletions (M,) bool."""
        assert self._journal is not None
        return self._journal.ids()

    def pending_view(self) -> View:
        """The published state with the unpublished changes on top."""
        if self.num_pending == 0:
            return self.view
        assert self._journal is not None
        ids, is_delete = self._journal.ids()
        return self.view.with_pending(ids[~is_delete], ids[is_delete])

    def pending_rows(self, ranks: np.ndarray) -> np.ndarray:
        """Encoded rows (U, B) u8 of ranks among the unpublished puts."""
        assert self._journal is not None
        ids, is_delete = self._journal.ids()
        return self._journal.get(ids[~is_delete][ranks]).rows

    def put(self, tokens_MN: np.ndarray, lengths_M: np.ndarray, rows_MB: np.ndarray) -> None:
        """Insert or replace M n-grams, all or nothing; of equal ones the last wins. HashCollision, DiskFull."""
        self._recover()
        ids = ngram_ids(tokens_MN, lengths_M, self.manifest.spec.seed)
        wide = np.zeros((len(ids), self.manifest.spec.max_n), np.uint32)
        wide[:, : tokens_MN.shape[1]] = tokens_MN
        kept = self._last_of_equal(ids, wide, lengths_M)
        self._refuse_collisions(ids[kept], wide[kept], lengths_M[kept])
        self._append(Changes(ids[kept], np.zeros(len(kept), bool), wide[kept], lengths_M[kept], rows_MB[kept]))

    def delete(self, tokens_MN: np.ndarray, lengths_M: np.ndarray) -> int:
        """Remove M n-grams; absent ones are fine. Returns how many were there."""
        self._recover()
        ids = ngram_ids(tokens_MN, lengths_M, self.manifest.spec.seed)
        wide = np.zeros((len(ids), self.manifest.spec.max_n), np.uint32)
        wide[:, : tokens_MN.shape[1]] = tokens_MN
        kept = self._last_of_equal(ids, wide, lengths_M)
        kept = kept[self._is_live(ids[kept])]
        self._refuse_collisions(ids[kept], wide[kept], lengths_M[kept])
        rows = np.zeros((len(kept), self.manifest.spec.codec.row_bytes), np.uint8)
        self._append(Changes(ids[kept], np.ones(len(kept), bool), wide[kept], lengths_M[kept], rows))
        return len(kept)

    def put_rows(self, numbers_M: np.ndarray, rows_MB: np.ndarray) -> None:
        """Row-addressed: replace rows by number; of equal numbers the last wins."""
        self._recover()
        ids = row_ids(numbers_M.astype(np.uint64))
        tokens = numbers_M.astype("<u8").view(np.uint32).reshape(len(ids), _ROW_NUMBER_WIDTH)
        lengths = np.full(len(ids), _ROW_NUMBER_WIDTH, np.uint8)
        kept = self._last_of_equal(ids, tokens, lengths)
        self._append(Changes(ids[kept], np.zeros(len(kept), bool), tokens[kept], lengths[kept], rows_MB[kept]))

    def flush(self) -> bool:
        """Make all changes durable and publish them. True if there were any."""
        self._recover()
        journal = self._journal
        if journal is None or len(journal) == 0:
            return False
        with self._cleaned_after_failure():
            try:
                journal.sync()
            except BaseException:
                self._journal_failed = True
                raise
            self._publish_overlay(journal)
        self._drop_journal()
        return True

    def compact(self) -> bool:
        """Merge the overlay into a new base. True if there was one."""
        self.flush()
        view, manifest = self.view, self.manifest
        if view.overlay is None and view.tombstones is None:
            return False
        with self._cleaned_after_failure():
            in_place = manifest.num_rows * (manifest.spec.codec.row_bytes + CHECKSUM_BYTES) if manifest.sources else 0
            ours = sum(entry.file_bytes for entry in manifest.files)
            require_space(self._directory, ours + in_place, "compaction")
            generation = manifest.generation + 1
            stamp = manifest.stamp(generation)
            writer = LayerWriter(
                self._directory,
                "base",
                generation,
                manifest.spec,
                manifest.num_rows,
                is_keyed=manifest.spec.is_ngram,
                dictionary=view.base.rows.dictionary,
            )
            try:
                for batch in live_batches(view):
                    writer.add(batch)
                base = writer.finish(stamp)
            finally:
                writer.close()
            published = manifest.next(
                base=base,
                base_generation=generation,
                overlay=None,
                tombstones=None,
                overlay_generation=generation,
                release=ngramstore.__version__,
            )
            suffix_closed = self._is_suffix_closed(published)
            self._publish(published.next(generation=generation, suffix_closed=suffix_closed))
        return True

    def collect_garbage(self) -> list[str]:
        """Remove files that no manifest names, unless a reader still holds them. Returns what had to stay."""
        if self._may_be_behind:
            return []  # a newer manifest may name what ours does not
        named = {entry.name for entry in self.manifest.files}
        kept = []
        for name in sorted(os.listdir(self._directory)):
            path = self._directory / name
            if _DATA_FILE.fullmatch(name) and name not in named:
                if not remove_unless_read(path):
                    kept.append(name)
            elif _is_left_over(name, self.manifest.journal) and not remove_if_possible(path):
                kept.append(name)
        return kept

    def close(self) -> None:
        """Close the journal (unpublished changes stay in it) and let another writer in."""
        try:
            if self._journal is not None:
                self._journal.close()
                self._journal = None
        finally:
            self._lock.release()
            del self.view

    @property
    def _journal_path(self) -> Path:
        return self._directory / self.manifest.journal

    def _open_journal(self) -> Journal:
        spec = self.manifest.spec
        width = spec.max_n if spec.is_ngram else _ROW_NUMBER_WIDTH
        return Journal.open(self._journal_path, row_bytes=spec.codec.row_bytes, width=width)

    def _append(self, changes: Changes) -> None:
        if len(changes.ids) == 0:
            return
        if self._journal is None:
            self._journal = self._open_journal()
        try:
            self._journal.append(changes)
        except BaseException:
            self._journal_failed = True
            raise

    def _last_of_equal(self, ids: np.ndarray, tokens: np.ndarray, lengths: np.ndarray) -> np.ndarray:
        """Positions of the last of each ID, by ascending ID; HashCollision if equal IDs have different n-grams."""
        order = np.argsort(ids, kind="stable")
        equal = np.flatnonzero(ids[order][1:] == ids[order][:-1])
        left, right = order[equal], order[equal + 1]
        self._refuse_different((tokens[left], lengths[left]), (tokens[right], lengths[right]))
        return order[np.append(ids[order][1:] != ids[order][:-1], np.ones(min(1, len(ids)), bool))]

    def _refuse_collisions(self, ids: np.ndarray, tokens: np.ndarray, lengths: np.ndarray) -> None:
        """HashCollision if a stored n-gram with one of these IDs has other tokens."""
        if not self.manifest.spec.has_tokens:
            return
        keys = self.view.find(ids)
        is_pending = np.zeros(len(ids), bool)
        if self._journal is not None:
            is_pending, is_delete = self._journal.find(ids)
            keys[is_pending & is_delete] = -1  # gone already: its ID is free
            is_pending &= ~is_delete
        for layer in self.view.file_layers:
            where = np.flatnonzero((keys >= 0) & (keys >> RANK_BITS == layer.serial))
            if len(where):
                assert layer.tokens is not None
                stored = layer.tokens.rows(keys[where] & ((1 << RANK_BITS) - 1))
                self._refuse_different(stored, (tokens[where], lengths[where]))
        if self._journal is not None:
            where = np.flatnonzero(is_pending)
            if len(where):
                pending = self._journal.get(ids[where])
                self._refuse_different((pending.tokens, pending.lengths), (tokens[where], lengths[where]))

    def _is_live(self, ids: np.ndarray) -> np.ndarray:
        """Which IDs have a row now, unpublished changes included: (M,) bool."""
        live = self.view.find(ids) >= 0
        if self._journal is not None:
            is_pending, is_delete = self._journal.find(ids)
            live = np.where(is_pending, ~is_delete, live)
        return live

    def _refuse_different(self, left: tuple[np.ndarray, np.ndarray], right: tuple[np.ndarray, np.ndarray]) -> None:
        same = (left[1] == right[1]) & (left[0] == right[0]).all(axis=1)
        if not same.all():
            i = int(np.flatnonzero(~same)[0])
            names = [tuple(tokens[i, : lengths[i]].tolist()) for tokens, lengths in (left, right)]
            raise collision(names[0], names[1], self.manifest.spec.seed)

    def _publish_overlay(self, journal: Journal) -> None:
        view, manifest = self.view, self.manifest
        spec, generation = manifest.spec, manifest.generation + 1
        stamp = manifest.stamp(generation)
        ids, is_delete = journal.ids()
        old_puts = view.overlay.index.ids() if view.overlay else np.empty(0, np.uint64)
        old_tombstones = view.tombstones.ids() if view.tombstones else np.empty(0, np.uint64)
        in_base = self._in_base(ids[is_delete])
        tombstones = np.union1d(old_tombstones[~is_in(old_tombstones, ids)], ids[is_delete][in_base])
        num_puts = int((~is_in(old_puts, ids)).sum() + (~is_delete).sum())
        require_space(
            self._directory,
            (num_puts + len(tombstones)) * (spec.codec.row_bytes + CHECKSUM_BYTES + 8),
            "publishing changes",
        )
        counts = np.array(manifest.length_counts, np.int64)
        num_rows, set_changed = manifest.num_rows, False
        overlay = None
        writer = (
            LayerWriter(self._directory, "overlay", generation, spec, num_puts, is_keyed=True) if num_puts else None
        )
        try:
            for change in journal.scan():
                if spec.is_ngram:
                    moved = (~change.is_delete).astype(np.int64) - (view.find(change.ids) >= 0)
                    num_rows += int(moved.sum())
                    set_changed |= bool(moved.any())
                    np.add.at(counts, change.lengths, moved)
            if writer is not None:
                old = view.overlay.batches() if view.overlay else iter(())
                for batch in merged(without(old, ids), _puts(journal.scan(), spec.max_n if spec.has_tokens else 0)):
                    writer.add(batch)
                overlay = writer.finish(stamp)
        finally:
            if writer is not None:
                writer.close()
        tombstone_entry = None
        if len(tombstones):
            builder = IndexBuilder(IndexPlan(len(tombstones), is_keyed=True, is_sized=False))
            builder.add(tombstones)
            tombstone_entry = builder.write(self._directory / f"tombstones-{generation:06d}.index", stamp)
        self._publish(
            manifest.next(
                overlay=overlay,
                tombstones=tombstone_entry,
                overlay_generation=generation,
                num_rows=num_rows,
                length_counts=tuple(counts.tolist()),
                suffix_closed=manifest.suffix_closed and not set_changed,
                journal=f"journal-{generation:06d}",
                release=ngramstore.__version__,
            )
        )

    def _in_base(self, ids: np.ndarray) -> np.ndarray:
        if not self.view.base.is_keyed:
            return np.ones(len(ids), bool)
        return self.view.base_only().find(ids) >= 0

    def _publish(self, manifest: Manifest) -> None:
        """The moment of change: before the rename the old state, after it the new one."""
        fsync_directory(self._directory)
        self._may_be_behind = True
        manifest.write(self._directory)
        self._catch_up()

    def _catch_up(self) -> None:
        """Make the state on disk ours."""
        self.view = View.open(self._directory, lock_index=self.view.lock_index, previous=self.view)
        self._may_be_behind = False

    def _recover(self) -> None:
        """After a failure, find out how far it got, before anything else is changed.

        A publication that failed after its rename has happened: its files must not be written over, and the changes it
        holds are not pending any more. A journal that failed is opened again: its last append is there whole or not at all.
        """
        if self._may_be_behind:
            fsync_directory(self._directory)
            self._catch_up()
            if self._journal is not None and self._journal.path != self._journal_path:
                self._drop_journal()
        if self._journal_failed:
            if self._journal is not None:
                journal, self._journal = self._journal, None
                try:
                    journal.close()
                except NgramStoreError as error:  # the failure that we know of already
                    _log.info("%s: closing the failed journal: %s", self._directory, str(error))
            self._journal = self._open_journal() if self._journal_path.exists() else None
            self._journal_failed = False

    @contextmanager
    def _cleaned_after_failure(self) -> Iterator[None]:
        """Clear errors; what a failed flush or compaction wrote is removed, so that it does not fill the disk."""
        try:
            with clear_errors(self._directory):
                yield
        except BaseException:
            try:
                self._recover()
                self.collect_garbage()
            except (OSError, NgramStoreError) as error:  # the next change tries again
                _log.warning("%s: not yet recovered from a failure: %s", self._directory, str(error))
            raise

    def _drop_journal(self) -> None:
        if self._journal is not None:
            journal, self._journal = self._journal, None
            try:
                journal.destroy()
            except OSError as error:  # no manifest names it: `collect_garbage` tries again
                _log.warning("%s is of no use any more but cannot be removed: %s", journal.path, str(error))

    def _is_suffix_closed(self, manifest: Manifest) -> bool:
        """Whether the longest match may stop at the first miss; known only where tokens are kept."""
        spec = manifest.spec
        stored = np.flatnonzero(manifest.length_counts)
        if not spec.is_ngram or not spec.has_tokens:
            return False
        if len(stored) <= 1:
            return True
        view = View(self._directory, manifest)
        return all(
            suffixes_are_stored(view.base.index, batch.tokens, batch.lengths, int(stored[0]), spec.seed)
            for batch in _token_batches(view)
        )


def _is_left_over(name: str, journal: str) -> bool:
    """What an earlier writer or build did not get to remove."""
    return (_JOURNAL.fullmatch(name) is not None and name != journal) or name in ("runs", BUILDING_NAME, "MANIFEST.tmp")


def live_batches(view: View) -> Iterator[Batch]:
    """The published rows of a view in ID order (or by number): base, less what changed, with what came in its place."""
    if not view.manifest.spec.is_ngram:
        yield from _with_replaced_rows(view)
        return
    changed = [index.ids() for index in (view.overlay.index if view.overlay else None, view.tombstones) if index]
    dropped = np.sort(np.concatenate([np.empty(0, np.uint64), *changed]))
    overlay = view.overlay.batches() if view.overlay else iter(())
    yield from merged(without(view.base.batches(), dropped), overlay)


def _with_replaced_rows(view: View) -> Iterator[Batch]:
    overlay = view.overlay
    for batch in view.base.batches():
        rows = batch.rows
        if overlay is not None:
            keys, seeds = view.find_rows(batch.ids.astype(np.int64))
            changed = np.flatnonzero(keys >> RANK_BITS == overlay.serial)
            if len(changed):
                rows = rows.copy()
                rows[changed] = _replaced_rows(view, keys[changed], seeds[changed])
        yield Batch(batch.ids, rows, batch.tokens, batch.lengths)


def _replaced_rows(view: View, keys_M: np.ndarray, seeds_M: np.ndarray) -> np.ndarray:
    """Encoded rows of the overlay by key: (M, B) u8. DamagedRows names those that fail."""
    row_bytes = view.manifest.spec.codec.row_bytes
    stored = np.empty((len(keys_M), row_bytes + CHECKSUM_BYTES), np.uint8)
    lengths, status = np.zeros(len(keys_M), np.int64), np.empty(len(keys_M), np.uint8)
    if read_rows(view.file_table, keys_M, seeds_M, stored.shape[1], True, stored.reshape(-1), lengths, status):
        assert view.overlay is not None
        bad = (keys_M[status != 0] & ((1 << RANK_BITS) - 1)).tolist()
        raise DamagedRows(
            f"{view.overlay.rows.path}: {len(bad)} rows fail their checksum, first row {bad[0]:,}", keys=bad
        )
    return stored[:, :row_bytes]


def _token_batches(view: View) -> Iterator[Batch]:
    tokens = view.base.tokens
    assert tokens is not None
    for block in range(0, tokens.num_blocks, 1024):
        words, lengths = tokens.blocks(block, min(1024, tokens.num_blocks - block))
        yield Batch(np.empty(0, np.uint64), np.empty((0, 0), np.uint8), words, lengths)


def _puts(chunks: Iterator[Changes], width: int) -> Iterator[Batch]:
    """The puts among changes, as batches with tokens of that width."""
    for change in chunks:
        keep = ~change.is_delete
        yield Batch(change.ids[keep], change.rows[keep], change.tokens[keep, :width], change.lengths[keep])


def require_rows(numbers: np.ndarray, num_rows: int) -> None:
    """UsageError for a row number outside 0 .. num_rows - 1."""
    if numbers.size and (numbers.min() < 0 or numbers.max() >= num_rows):
        wrong = numbers[(numbers < 0) | (numbers >= num_rows)].flat[0]
        raise UsageError(f"row {wrong} does not exist; this store has rows 0 to {num_rows - 1:,}")
