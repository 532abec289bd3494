"""The one writer of a store: journal, published overlay, compaction. Readers meet its work only through the manifest.

A put goes to the journal (RocksDB). `flush` merges journal and overlay into a new overlay and publishes it; `compact` merges
overlay and base into a new base. Until the manifest is renamed nothing has happened; after it, journal and old files
are rubbish that the next writer removes too.

Shapes: M n-grams, B bytes of an encoded row, N tokens of the longest (K).
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ngramstore.errors import NgramStoreError, UsageError
from ngramstore.files import fsync_directory, our_errors, require_space
from ngramstore.hashing import row_ids
from ngramstore.store.changes.collisions import distinct, last_of_each, refuse_collisions, state_of
from ngramstore.store.changes.compaction import compacted
from ngramstore.store.changes.garbage import remove_unnamed
from ngramstore.store.changes.overlay import write_overlay
from ngramstore.store.journal.journal import Changes, Journal
from ngramstore.store.journal.left import clear_left_journals, refuse_later_journals
from ngramstore.store.layers.manifest import LOCK_NAME, Manifest, read_manifest
from ngramstore.store.view import View
from ngramstore.writer_lock import WriterLock

_log = logging.getLogger("ngramstore")
_REOPEN_BYTES = 256 << 10  # less cannot be enough for RocksDB's new files


class Writer:
    """Holds the writer lock from construction to `close`. Not safe for threads: the store's handle serialises.

    Where the directory was moved or replaced since, changes are refused (StaleStore) before they touch what is there now.

    What a failure leaves undecided is marked, and `_recover` decides it before the next change:
    - `_may_be_behind`: the manifest was perhaps renamed. Nothing may be removed or written over before it is read again.
    - `_journal_failed`: its last append is there whole or not at all. It takes no other one before it is opened again.
    - `_is_published`: the open journal is one whose changes are published. It is dropped.
    - `_num_moved` is None: rows that came and went are counted when somebody asks.
    """

    def __init__(self, directory: Path, *, lock_index: bool = False, trust_external: bool = False) -> None:
        self._directory = directory
        read_manifest(directory)  # what is no store gets no lock file
        self._lock = WriterLock(directory / LOCK_NAME)
        self._journal: Journal | None = None
        self._journal_failed = self._is_writing = False
        self._may_be_behind = False
        self._published_journals: set[str] = set()  # that could not be removed yet
        self._num_moved: int | None = None  # rows more than published; None: not yet counted
        try:
            fsync_directory(directory)  # who published was perhaps killed before: what that replaced is removed below
            self.view = View.open(directory, lock_index=lock_index, trust_external=trust_external)
            refuse_later_journals(directory, self.manifest)
            self.collect_garbage()
            self._journal = self._found_journal()
        except BaseException:
            self._lock.release()
            raise

    @property
    def manifest(self) -> Manifest:
        """The published state."""
        return self.view.manifest

    @property
    def num_pending(self) -> int:
        """Changes not yet published."""
        return len(self._journal) if self._journal is not None and not self._is_published else 0

    @property
    def num_rows(self) -> int:
        """Rows that a look-up can find, unpublished changes included. Begins with `recover_for_reading`, and raises as
        it does."""
        self.recover_for_reading()
        if self.num_pending == 0 or not self.manifest.spec.is_ngram:
            return self.manifest.num_rows
        if self._num_moved is None:
            assert self._journal is not None
            ids, is_delete = self._journal.ids()
            self._num_moved = int((~is_delete).sum()) - int((self.view.find(ids) >= 0).sum())
        return self.manifest.num_rows + self._num_moved

    def recover_for_reading(self) -> None:
        """Before it is asked what is pending: a journal that failed is opened again if it cannot tell all that it holds.

        One that can tell stays as it is, and so does one in the middle of a write, of which a signal's handler asks.
        Raises DiskFull, DamagedJournal, StaleStore.
        """
        if not self._is_writing and self._journal_failed and (self._journal is None or self._journal.is_behind):
            self._recover()

    def pending_view(self) -> View | None:
        """The published state with the unpublished changes on top; None where there are none."""
        if self._journal is None or self.num_pending == 0:
            return None
        return self.view.with_pending(self._journal.tiers)

    def pending_rows(self, ids: np.ndarray) -> np.ndarray:
        """Encoded rows (U, B) u8 of IDs (U,) u64 with unpublished puts."""
        assert self._journal is not None
        return self._journal.get(ids).rows

    def put(self, tokens_MN: np.ndarray, lengths_M: np.ndarray, rows_MB: np.ndarray) -> None:
        """Insert or replace M n-grams, all or nothing; of equal ones the last wins. HashCollision, DiskFull."""
        self._recover()
        ids, wide, kept = distinct(tokens_MN, lengths_M, self.manifest.spec)
        keys, is_put = state_of(self.view, self._journal, ids)
        if self.manifest.spec.has_tokens:
            refuse_collisions(self.view, self._journal, ids, keys, is_put, (wide, lengths_M[kept]))
        self._append(Changes(ids, np.zeros(len(ids), bool), wide, lengths_M[kept], rows_MB[kept]), (keys, is_put))

    def delete(self, tokens_MN: np.ndarray, lengths_M: np.ndarray) -> int:
        """Remove M n-grams; absent ones are fine. Returns how many were there."""
        self._recover()
        ids, wide, kept = distinct(tokens_MN, lengths_M, self.manifest.spec)
        keys, is_put = state_of(self.view, self._journal, ids)
        live = np.flatnonzero((keys >= 0) | is_put)
        ids, wide, lengths, keys, is_put = ids[live], wide[live], lengths_M[kept[live]], keys[live], is_put[live]
        if self.manifest.spec.has_tokens:
            refuse_collisions(self.view, self._journal, ids, keys, is_put, (wide, lengths))
        rows = np.zeros((len(ids), self.manifest.spec.codec.row_bytes), np.uint8)
        self._append(Changes(ids, np.ones(len(ids), bool), wide, lengths, rows), (keys, is_put))
        return len(ids)

    def put_rows(self, numbers_M: np.ndarray, rows_MB: np.ndarray) -> None:
        """Row-addressed: replace rows by number; of equal numbers the last wins."""
        self._recover()
        ids = row_ids(numbers_M.astype(np.uint64))
        tokens = numbers_M.astype("<u8").view(np.uint32).reshape(len(ids), self.manifest.spec.journal_width)
        lengths = np.full(len(ids), tokens.shape[1], np.uint8)
        kept = last_of_each(ids, (tokens, lengths), self.manifest.spec.seed)
        self._append(Changes(ids[kept], np.zeros(len(kept), bool), tokens[kept], lengths[kept], rows_MB[kept]))

    def flush(self) -> bool:
        """Make all changes durable and publish them. True if there were any."""
        self._recover()
        journal = self._journal
        if journal is None or len(journal) == 0:
            return False
        self._lock.require_in_place()
        with self._cleaned_after_failure():
            self.collect_garbage()  # what a failure left may take the room that is needed now
            with self._journal_watched():
                journal.sync()
            manifest = write_overlay(self.view, journal)
            with self._journal_watched():
                journal.mark_published_as(manifest.state_digest)
            self._publish(manifest)
        self._drop_journal()
        return True

    def compact(self, *, progress: bool = False) -> None:
        """Merge the overlay, and rows in place, into a new base, if anything is new then. progress: a bar on stderr."""
        self.flush()
        self._lock.require_in_place()
        with self._cleaned_after_failure():
            self.collect_garbage()
            manifest = compacted(self.view, progress=progress)
            if manifest is None:
                return
            self._publish(manifest)
        self._drop_journal()  # an empty one, after an append that failed

    def collect_garbage(self) -> None:
        """Remove files that no manifest names, unless a reader still holds them.

        A journal with changes that are not published is renamed instead, with a warning.
        """
        if self._may_be_behind:
            return  # a newer manifest may name what ours does not
        self._lock.require_in_place()
        remove_unnamed(self._directory, self.manifest)
        clear_left_journals(self._directory, self.manifest, self._published_journals)

    def close(self) -> None:
        """Close the journal (unpublished changes stay in it) and let another writer in."""
        try:
            if self._journal is not None and self._lock.is_in_place:
                self._journal.close()
            elif self._journal is not None:
                self._journal.let_go()
            self._journal = None
        finally:
            self._lock.release()
            del self.view

    @property
    def _journal_path(self) -> Path:
        return self._directory / self.manifest.journal

    @property
    def _is_published(self) -> bool:
        """Whether the open journal is one that a publication has left behind: Ctrl-C came before it was dropped."""
        return self._journal is not None and self._journal.path != self._journal_path

    def _open_journal(self) -> Journal:
        spec, state = self.manifest.spec, self.manifest.state_digest
        row_bytes, width = spec.codec.row_bytes, spec.journal_width
        return Journal.open(self._journal_path, row_bytes=row_bytes, width=width, store_state=state)

    def _found_journal(self) -> Journal | None:
        return self._open_journal() if self._journal_path.exists() else None

    def _append(self, changes: Changes, state: tuple[np.ndarray, np.ndarray] | None = None) -> None:
        """Write changes to the journal; state: what `state_of` says of n-grams."""
        if len(changes.ids) == 0:
            return
        self._lock.require_in_place()
        if self._journal is None:
            self._journal = self._open_journal()
            self._num_moved = None if len(self._journal) else 0
        num_moved, self._num_moved = self._num_moved, None  # not known until it is noted, whatever comes in between
        with self._journal_watched():
            self._journal.append(changes)
        if num_moved is not None and state is not None:
            keys, is_put = state
            self._num_moved = num_moved + int((~changes.is_delete).sum()) - int(((keys >= 0) | is_put).sum())

    def _publish(self, manifest: Manifest) -> None:
        """The moment of change: before the rename the old state, after it the new one."""
        fsync_directory(self._directory)
        self._lock.require_in_place()
        self._may_be_behind = True
        manifest.write(self._directory)
        self._catch_up()

    def _catch_up(self) -> None:
        """Make the state on disk ours."""
        self.view = View.open(self._directory, lock_index=self.view.lock_index, previous=self.view)
        self._num_moved = None
        self._may_be_behind = False

    def _recover(self) -> None:
        """After a failure, find out how far it got, before anything else is changed.

        A publication that failed after its rename has happened: its files must not be written over, and the changes it
        holds are not pending any more. A journal that failed is opened again: its last append is there whole or not at all.
        """
        if self._may_be_behind or self._journal_failed:
            self._lock.require_in_place()
        if self._may_be_behind:
            fsync_directory(self._directory)
            self._catch_up()
        if self._is_published:
            self._drop_journal()
        if self._journal_failed:
            if self._journal is not None:
                if not self._journal.is_behind:  # it can tell what it holds as long as it is open
                    require_space(self._directory, _REOPEN_BYTES, "opening the journal again")
                journal, self._journal = self._journal, None
                try:
                    journal.close()
                except NgramStoreError as error:  # the failure that we know of already
                    _log.info("%s: closing the failed journal: %s", self._directory, str(error))
            self._num_moved = None
            self._journal = self._found_journal()
            self._journal_failed = False

    @contextmanager
    def _journal_watched(self) -> Iterator[None]:
        """Around each write to the journal."""
        self._journal_failed = True  # unless the end is reached: a second Ctrl-C must not come before the mark
        self._is_writing = True
        try:
            yield
        finally:
            self._is_writing = False
        self._journal_failed = False

    @contextmanager
    def _cleaned_after_failure(self) -> Iterator[None]:
        """What the system refuses is an error of ours; what a failed flush or compaction wrote does not fill the disk."""
        try:
            with our_errors(self._directory):
                yield
        except BaseException:
            try:
                self._recover()
                self.collect_garbage()
            except (OSError, NgramStoreError) as error:  # the next change tries again
                _log.warning("%s: not yet recovered from a failure: %s", self._directory, str(error))
            raise

    def _drop_journal(self) -> None:
        if (journal := self._journal) is not None:
            self._published_journals.add(journal.path.name)
            try:
                journal.destroy()
            except (OSError, UsageError) as error:  # no manifest names it: `collect_garbage` tries again
                _log.warning("%s is of no use any more but cannot be removed: %s", journal.path, str(error))
            else:
                self._published_journals.discard(journal.path.name)
            self._journal = None  # last: after Ctrl-C in between `_recover` goes on
