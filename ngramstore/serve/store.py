"""The handle that users hold: look-ups, and for the one writer changes; numbers, verification, backup.

Shapes: M n-grams or rows, D row width, B bytes of an encoded row.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ngramstore.errors import ReadOnlyStore, UsageError
from ngramstore.kernels.jit import cache_is_on_disk
from ngramstore.serve.lookups import Hit, Lookups
from ngramstore.serve.recorder import DEFAULT_ENTRIES, Recorder
from ngramstore.store.backup import backup
from ngramstore.store.changes.writer import Writer
from ngramstore.store.stats import stats_of
from ngramstore.windows import Ngrams, as_array, as_ngrams, blank_from

__all__ = ["Hit", "Store"]


class Store(Lookups):
    """An open store; `ngramstore.open` makes it. Use it as a context manager or call `close`.

    Threads: any number may look up; changes from several threads run one after the other. Fork: raises WrongProcess in
    the child; open the store there. Pickle: the copy opens the same path and checks that it is the same store.
    mode="rw": look-ups see unpublished changes, which are read from the journal, and raise DamagedJournal where that is bad.
    """

    def put(self, keys: Any, rows: ArrayLike) -> None:
        """Insert or replace M n-grams (or rows by number) with rows (M, D): all or nothing, seen by this handle at once.

        keys: n-grams as `Builder.add` takes them, or (M,) integers, numbers of rows that are there; of equal ones the last wins.
        rows: f16, bf16, f32 or f64. Other processes see it after `flush` here and `refresh` there.
        Raises UsageError, ReadOnlyStore, HashCollision, DiskFull, DamagedStore, DamagedJournal, StaleStore (the
        directory was moved or replaced), StoreClosed, WrongProcess.
        """
        array = as_array(rows, "rows")
        if array.ndim != 2 or array.shape[1] != self.dim:
            raise UsageError(f"rows have shape {array.shape}, wanted (M, {self.dim})")
        self.put_encoded(keys, self.spec.codec.encode(array))

    def put_encoded(self, keys: Any, rows: np.ndarray) -> None:
        """As `put`, with rows already encoded (M, row_bytes) u8; kept bit for bit. Raises as `put`."""
        writer = self._changing()
        rows = as_array(rows, "rows")
        if rows.dtype != np.uint8 or rows.ndim != 2 or rows.shape[1] != self.spec.codec.row_bytes:
            raise UsageError(f"encoded rows are {rows.dtype} {rows.shape}, wanted u8 (M, {self.spec.codec.row_bytes})")
        if self.spec.is_ngram:
            tokens, lengths = as_ngrams(keys, self.max_n)
            _require_same(len(lengths), len(rows))
            with self._lock, self._in_change():
                writer.put(blank_from(tokens, lengths), lengths, rows)
        else:
            numbers, _ = self._numbers(keys, "put")
            _require_same(len(numbers), len(rows))
            with self._lock, self._in_change():
                writer.put_rows(numbers, rows)

    def delete(self, ngrams: Ngrams) -> int:
        """Remove M n-grams, all or nothing; absent ones are fine. Returns how many were there. Seen by others as a `put` is.

        Not for addressing="row". Raises as `put`.
        """
        writer = self._changing()
        self._require_ngram("delete")
        tokens, lengths = as_ngrams(ngrams, self.max_n)
        with self._lock, self._in_change():
            return writer.delete(blank_from(tokens, lengths), lengths)

    def flush(self) -> None:
        """Make all changes durable and visible to other processes. After it returns, no kill or power cut loses them.

        Where it fails, the changes stay in the journal. Raises ReadOnlyStore, UsageError (no permission), DiskFull,
        DamagedRows, DamagedStore, DamagedJournal, StaleStore, StoreClosed, WrongProcess.
        """
        writer = self._changing()
        with self._lock:
            self._check()
            self._publish(writer)

    def compact(self, *, progress: bool = False) -> None:
        """Merge all changes into the packed rows: look-ups probe one index again. Needs room for a second copy.

        Rows that an import left in place are copied into the store, which then needs no trust_external. Unpublished changes are
        flushed first; where merging fails, the store stays at that. progress: a bar on stderr.
        Raises as `flush`.
        """
        writer = self._changing()
        with self._lock:
            self._check()
            self._publish(writer)  # and let go of what that replaced: its room may be needed
            try:
                writer.compact(progress=progress)
            finally:
                self._follow(writer)
            writer.collect_garbage()

    def backup(self, path: str | os.PathLike[str], *, progress: bool = False) -> None:
        """A copy of the published state in a new directory, complete or absent. Unpublished changes are flushed first.

        Bytes are copied as they are: `verify` the copy. progress: a bar on stderr. Raises UsageError (`path` holds something),
        DiskFull, DamagedStore, StoreClosed, WrongProcess, and what `flush` raises.
        """
        self._check()
        with self._lock:
            self._check()
            if self._writer is not None:
                self.flush()
            view = self._view  # its files stay open and unchanged, whatever is published meanwhile
        backup(view, Path(path), progress=progress)

    def trace(self, *, max_entries: int = DEFAULT_ENTRIES) -> Recorder:
        """Count which rows this handle is asked for, from now until `stop()` (or the end of a `with` block).

        `result()` is a `Trace` at any time: `save` it, `warm` another process from it. max_entries: rows counted at most, up to
        46 B each; the rarest are forgotten first. Raises UsageError where a recording is under way.
        """
        self._check()
        with self._lock:
            self._check()
            if self._current.recorder is not None:
                raise UsageError(f"{self.path} is being traced already", hint="stop() that recording first")
            recorder = Recorder(
                self.spec.addressing, self._trace_space, max_entries=max_entries, on_stop=self._stop_trace
            )
            self._record(recorder)
            return recorder

    def _stop_trace(self, recorder: Recorder) -> None:
        if os.getpid() != self._pid:  # a lock that another thread held at the fork stays taken
            return
        with self._lock:
            if self._current.recorder is recorder:
                self._record(None)

    def stats(self) -> dict[str, Any]:
        """Numbers about the store and this handle, as JSON values.

        Of the store: path, addressing, rows, dim, max_n, codec, row_bytes (of an encoded row), compression, generation,
        identity, ngrams_by_length (without tokens and after a repair: at most), suffix_closed (every n-gram's endings are stored
        too), overlay_rows and tombstones (changes since the last `compact`), file_bytes by name, total_bytes, external_bytes (of
        checkpoints that rows are read from in place).
        Of this handle: unpublished_changes (since the last `flush`; None for a reader, who does not look into the
        journal); since it
        was opened: calls, positions and found of look-ups; rows_read and bytes_read from files.
        Of its row cache, since it was made: cache_hits, cache_misses, cache_inserted, cache_evicted, cache_not_kept in
        rows; cache_rows and cache_bytes that it holds; cache_budget_bytes, cache_slots (rows that fit); hit_rate = hits
        / (hits + misses), None before the first.
        resident_bytes: rows held in memory by `resident=True`. kernels_cached_on_disk: False where every new process compiles
        again (`ngramstore warmup`, NUMBA_CACHE_DIR).
        """
        self._check()
        with self._lock:
            self._check()
            pending = None
            if self._writer is not None:
                self._writer.recover_for_reading()  # first: it may find a newer state to follow
                pending = self._writer.num_pending
                if self._stale:
                    self._follow(self._writer)
            source = self._source
            cache = source.cache.stats() if source.cache is not None else {}
            hits, misses = cache.get("cache_hits", 0), cache.get("cache_misses", 0)
            return {
                **stats_of(source.view),
                "rows": len(self),
                "unpublished_changes": pending,
                **self._counts.as_dict(),
                **cache,
                "hit_rate": hits / (hits + misses) if hits + misses else None,
                "resident_bytes": source.resident.num_bytes if source.resident else 0,
                "kernels_cached_on_disk": cache_is_on_disk(),
            }

    def verify(self) -> list[str]:
        """Read everything on disk and check it: a line per fault, with file and offset; empty means all is well.

        Damage is listed, not raised. Raises NotAStore, IncompleteStore, UnsupportedVersion, UsageError (a file that is kept from
        us), StoreClosed, WrongProcess.
        """
        self._check()
        from ngramstore.store.repair.check import verify

        return [str(fault) for fault in verify(self.path)]

    def _changing(self) -> Writer:
        writer = self._writer  # before the check: a handle that another thread closes has none any more
        self._check()
        if writer is None:
            raise ReadOnlyStore(f"{self.path} is open for reading")
        return writer


def _require_same(num_keys: int, num_rows: int) -> None:
    if num_keys != num_rows:
        raise UsageError(f"{num_keys} keys, {num_rows} rows", hint="give one row for each key")
