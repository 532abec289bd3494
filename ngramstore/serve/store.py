"""The handle: one open store, for look-ups from any number of threads and, if opened for writing, for changes.

Shapes: B batch, T position, M wanted rows, D row width, K longest n-gram.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from ngramstore.errors import DamagedStore, ReadOnlyStore, StaleStore, StoreClosed, UsageError, WrongProcess
from ngramstore.hashing import ngram_ids
from ngramstore.kernels.jit import cache_is_on_disk
from ngramstore.kernels.native import index as native_index
from ngramstore.serve.lookup import CopyOut, Counts, Resident, RowSource, copy_encoded
from ngramstore.serve.options import OpenOptions
from ngramstore.serve.output import output_array
from ngramstore.serve.row_cache import RowCache
from ngramstore.store.backup import backup
from ngramstore.store.manifest import Spec
from ngramstore.store.view import View
from ngramstore.store.writer import Writer, require_rows
from ngramstore.windows import Ngrams, as_ngrams, as_tokens, blank_from, room

_RANK_MASK = (1 << native_index.RANK_BITS) - 1


@dataclass(frozen=True)
class Hit:
    """What `lookup` found: rows (B, T, D), zeros where nothing matched; length (B, T) u8, 0 where no n-gram ends."""

    rows: np.ndarray
    length: np.ndarray

    @property
    def found(self) -> np.ndarray:
        """(B, T) bool: some stored n-gram ends here."""
        return self.length > 0


class Store:
    """An open store; `ngramstore.open` makes it. Use it as a context manager or call `close`.

    Threads: any number may look up; changes from several threads run one after the other. Fork: raises WrongProcess in
    the child; open the store there. Pickle: the copy opens the same path and checks that it is the same store.
    """

    def __init__(self, path: str | os.PathLike[str], options: OpenOptions) -> None:
        self.path = Path(path).absolute()
        self.options = options
        self._pid = os.getpid()
        self._closed = False
        self._lock = threading.RLock()
        self._counts = Counts()
        self._reading = _Reading(self)
        where = {"lock_index": options.lock_index, "trust_external": options.trust_external}
        self._writer = Writer(self.path, **where) if options.mode == "rw" else None
        self._pending_view: View | None = None
        try:
            self._view = View.open(self.path, previous=self._writer.view if self._writer else None, **where)
            self._manifest = self._view.manifest
            if options.identity is not None and self.identity != options.identity:
                raise StaleStore(f"{self.path} holds store {self.identity}, wanted {options.identity}")
            self._cache: RowCache | None = None
            self._resident: Resident | None = None
            self._source: RowSource | None = None
            self._use(self._view)
        except BaseException:
            if self._writer is not None:
                self._writer.close()
            raise

    # What the store is

    @property
    def spec(self) -> Spec:
        """What never changes: addressing, dim, max_n, codec, seed, metadata."""
        return self._manifest.spec

    @property
    def dim(self) -> int:
        """Row width D."""
        return self.spec.dim

    @property
    def max_n(self) -> int:
        """Longest n-gram K the store takes."""
        return self.spec.max_n

    @property
    def metadata(self) -> dict[str, Any]:
        """What the builder wrote about the store (tokenizer, checkpoint, ...)."""
        return dict(self.spec.metadata)

    @property
    def identity(self) -> str:
        """UUID of the store; the same for its copies, whatever their changes."""
        return self._manifest.identity

    @property
    def generation(self) -> int:
        """Counts publications: build 1, then one more for each flush and compaction."""
        return self._manifest.generation

    @property
    def files(self) -> list[Path]:
        """The data files this handle reads."""
        return [self.path / entry.name for entry in self._manifest.files]

    def __len__(self) -> int:
        """Rows stored, unpublished changes of this handle included."""
        self._check()
        with self._lock:
            view = self._current_view()
            published = view.manifest.num_rows
            if self._writer is None or not self._writer.num_pending or not self.spec.is_ngram:
                return published
            ids, is_delete = self._writer.pending_ids()
            return published + int((~is_delete).sum()) - int((self._view.find(ids) >= 0).sum())

    # Look-ups

    def lookup(
        self,
        tokens: ArrayLike,
        *,
        starts: np.ndarray | None = None,
        out: np.ndarray | None = None,
        dtype: str = "f32",
    ) -> Hit:
        """Longest stored n-gram that ends at each token: (B, T) integers -> rows (B, T, D) and lengths (B, T) u8.

        starts (B, T) bool: True where a sequence begins inside a line; no n-gram reaches across. tokens (T,) count as one
        line and give rows (T, D). `out`: rows go there (C-contiguous f32, f16, or u16 / bfloat16 bits); else `dtype`
        ("f32", "f16", "bf16" as u16 bits) says what to allocate. Row i depends on tokens up to i of its line only.
        Raises UsageError, DamagedRows, DamagedStore, StoreClosed, WrongProcess.
        """
        self._check()
        self._require_ngram("lookup")
        tokens_BT, room_BT = self._lines(tokens, starts)
        shape = tokens_BT.shape
        rows = output_array(out, (*shape, self.dim), dtype)
        flat = np.ascontiguousarray(tokens_BT).reshape(-1)
        with self._reading as (view, source):
            keys, ids, lengths = self._match(view, flat, np.ascontiguousarray(room_BT).reshape(-1))
            lost = self._fill(source, keys, ids, rows.reshape(len(flat), self.dim), self.spec.codec.scatter)
        if lost is not None:
            lengths[lost] = 0
        self._counts.add_call(len(flat), int(np.count_nonzero(lengths)))
        return Hit(rows, lengths.reshape(shape))

    def lookup_tail(self, tokens: np.ndarray, room: np.ndarray, *, out: np.ndarray) -> np.ndarray:
        """Longest stored n-gram ending at the last T of S tokens, for callers that keep each sequence's last tokens.

        tokens (B, S) u32 are context and new tokens of B lines; room (B, T) u8, T <= S: how many tokens an n-gram may have
        that ends at each of the last T, itself included (0: none is looked for). Returns lengths (B, T) u8; `out` gets the
        rows: (B, T, D) f32, f16 or u16 bits of bf16, zeros where nothing matched; or u8 (B, T, row_bytes), as stored.
        Raises UsageError, DamagedRows, DamagedStore, StoreClosed, WrongProcess.
        """
        self._check()
        self._require_ngram("lookup_tail")
        if tokens.dtype != np.uint32 or room.dtype != np.uint8 or tokens.ndim != 2 or room.ndim != 2:
            raise UsageError(f"tokens are {tokens.dtype} {tokens.shape}, room is {room.dtype} {room.shape}")
        num_lines, width = tokens.shape
        count = room.shape[1]
        if len(room) != num_lines or count > width:
            raise UsageError(
                f"tokens have shape {tokens.shape}, room has {room.shape}", hint="(B, S) and (B, T), T <= S"
            )
        is_one = num_lines == 1 and count == 1
        reaches_all = width >= self.max_n and count == 1
        if not reaches_all and (np.minimum(room, self.max_n) > np.arange(width - count + 1, width + 1)).any():
            raise UsageError(f"room reaches before the beginning of a line of {width} tokens: {int(room.max())}")
        codec = self.spec.codec
        is_encoded = out.dtype == np.uint8
        if is_encoded:
            if out.shape != (num_lines, count, codec.row_bytes) or not out.flags.c_contiguous:
                raise UsageError(f"out must be contiguous of shape {(num_lines, count, codec.row_bytes)}")
            rows = out
        else:
            rows = output_array(out, (num_lines, count, codec.dim), "f32")
        room_BS = np.zeros((num_lines, width), np.uint8)
        np.minimum(room, self.max_n, out=room_BS[:, width - count :])
        with self._reading as (view, source):
            keys, ids, lengths = self._match(view, np.ascontiguousarray(tokens).reshape(-1), room_BS.reshape(-1))
            if num_lines == 1:
                keys, ids, lengths = keys[width - count :], ids[width - count :], lengths[width - count :]
            elif count != width:
                keys, ids, lengths = (
                    x.reshape(num_lines, width)[:, width - count :].reshape(-1) for x in (keys, ids, lengths)
                )
            if is_one and keys[0] < 0:  # one token at a time, nothing to read: the cache need not be asked
                rows[...] = 0
                lost = None
            else:
                copy_out = copy_encoded if is_encoded else codec.scatter
                lost = self._fill(source, keys, ids, rows.reshape(num_lines * count, rows.shape[2]), copy_out)
        if lost is not None:
            lengths[lost] = 0
        self._counts.add_call(len(lengths), int(np.count_nonzero(lengths)))
        return lengths.reshape(num_lines, count)

    def match(self, tokens: ArrayLike, *, starts: np.ndarray | None = None) -> np.ndarray:
        """As `lookup`, the lengths alone: (B, T) integers -> (B, T) u8. Reads no rows."""
        self._check()
        self._require_ngram("match")
        tokens_BT, room_BT = self._lines(tokens, starts)
        flat = np.ascontiguousarray(tokens_BT).reshape(-1)
        with self._reading as (view, _):
            _, _, lengths = self._match(view, flat, np.ascontiguousarray(room_BT).reshape(-1))
        return lengths.reshape(tokens_BT.shape)

    def get(
        self, ngrams: Ngrams, *, out: np.ndarray | None = None, dtype: str = "f32"
    ) -> tuple[np.ndarray, np.ndarray]:
        """Rows of exactly these n-grams: rows (M, D), zeros where absent, and found (M,) bool. Order and duplicates kept."""
        self._check()
        ids = self._ids(ngrams, "get")
        rows = output_array(out, (len(ids), self.dim), dtype)
        return rows, self._get_ids(ids, rows, self.spec.codec.scatter)

    def get_encoded(self, ngrams: Ngrams) -> tuple[np.ndarray, np.ndarray]:
        """As `get`, rows as they are stored: (M, B) u8 and found (M,) bool; `spec.codec.unpack` takes them apart."""
        self._check()
        ids = self._ids(ngrams, "get_encoded")
        rows = np.empty((len(ids), self.spec.codec.row_bytes), np.uint8)
        return rows, self._get_ids(ids, rows, copy_encoded)

    def rows(self, numbers: ArrayLike, *, out: np.ndarray | None = None, dtype: str = "f32") -> np.ndarray:
        """Addressing "row": rows by number: integers of any shape S -> (*S, D). UsageError for a number out of range."""
        self._check()
        flat, shape = self._numbers(numbers, "rows")
        rows = output_array(out, (*shape, self.dim), dtype)
        self._get_numbers(flat, rows.reshape(len(flat), self.dim), self.spec.codec.scatter)
        return rows

    def rows_encoded(self, numbers: ArrayLike) -> np.ndarray:
        """As `rows`, as they are stored: (*S, B) u8."""
        self._check()
        flat, shape = self._numbers(numbers, "rows_encoded")
        rows = np.empty((len(flat), self.spec.codec.row_bytes), np.uint8)
        self._get_numbers(flat, rows, copy_encoded)
        return rows.reshape(*shape, self.spec.codec.row_bytes)

    def contains(self, ngrams: Ngrams) -> np.ndarray:
        """Which n-grams are stored: (M,) bool. Reads no rows."""
        self._check()
        ids = self._ids(ngrams, "contains")
        with self._reading as (view, _):
            return view.find(ids) >= 0

    def __contains__(self, ngram: Any) -> bool:
        return bool(self.contains([ngram])[0])

    def warm(self, keys: Any) -> int:
        """Read rows into the cache ahead of use: n-grams (most frequent first), or row numbers. Returns rows now cached.

        What does not fit the budget is not read.
        """
        self._check()
        if self._cache is None:
            return 0
        limit = self._cache.num_slots
        if self.spec.is_ngram:
            tokens, lengths = as_ngrams(keys, self.max_n)
            ids = ngram_ids(tokens[:limit][::-1], lengths[:limit][::-1], self.spec.seed)  # the first ones end up newest
            rows = np.empty((len(ids), self.spec.codec.row_bytes), np.uint8)
            self._get_ids(ids, rows, _discard)
        else:
            flat, _ = self._numbers(keys, "warm")
            self._get_numbers(flat[:limit][::-1], np.empty((len(flat[:limit]), 1), np.uint8), _discard)
        return self._cache.stats()["cache_rows"]

    def items(self) -> Iterator[tuple[Any, np.ndarray]]:
        """All (n-gram as a tuple, row (D,) f32) in ID order, or (number, row): the published state, read in batches."""
        for tokens, lengths, rows in self.batches():
            decoded = self.spec.codec.decode(rows)
            if self.spec.is_ngram:
                for ngram, length, row in zip(tokens.tolist(), lengths.tolist(), decoded, strict=True):
                    yield tuple(ngram[:length]), row
            else:
                yield from zip(tokens.tolist(), decoded, strict=True)

    def batches(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """All rows of the published state: tokens (M, K) u32, lengths (M,) u8, encoded rows (M, B) u8.

        Row-addressed: numbers (M,) i64 in place of tokens. Unpublished changes of this handle are flushed first.
        """
        self._check()
        if self._writer is not None and self._writer.num_pending:
            self.flush()
        yield from published_batches(self._view)

    # Changes

    def put(self, keys: Any, rows: ArrayLike) -> None:
        """Insert or replace M n-grams (or rows by number) with rows (M, D): all or nothing, seen by this handle at once.

        Other processes see it after `flush` here and `refresh` there. Raises UsageError, HashCollision, DiskFull.
        """
        array = np.asarray(rows)
        if array.ndim != 2 or array.shape[1] != self.dim:
            raise UsageError(f"rows have shape {array.shape}, wanted (M, {self.dim})")
        self.put_encoded(keys, self.spec.codec.encode(array))

    def put_encoded(self, keys: Any, rows: np.ndarray) -> None:
        """As `put`, with rows already encoded (M, B) u8; kept bit for bit."""
        writer = self._changing()
        if rows.dtype != np.uint8 or rows.ndim != 2 or rows.shape[1] != self.spec.codec.row_bytes:
            raise UsageError(f"encoded rows are {rows.dtype} {rows.shape}, wanted u8 (M, {self.spec.codec.row_bytes})")
        if self.spec.is_ngram:
            tokens, lengths = as_ngrams(keys, self.max_n)
            _require_same(len(lengths), len(rows))
            with self._lock:
                self._stale = True
                writer.put(blank_from(tokens, lengths), lengths, rows)
        else:
            numbers, _ = self._numbers(keys, "put")
            _require_same(len(numbers), len(rows))
            with self._lock:
                self._stale = True
                writer.put_rows(numbers, rows)

    def delete(self, ngrams: Ngrams) -> int:
        """Remove M n-grams; absent ones are fine. Returns how many were there."""
        writer = self._changing()
        self._require_ngram("delete")
        tokens, lengths = as_ngrams(ngrams, self.max_n)
        with self._lock:
            self._stale = True
            return writer.delete(blank_from(tokens, lengths), lengths)

    def flush(self) -> None:
        """Make all changes durable and visible to other processes. After it returns, no kill or power cut loses them."""
        writer = self._changing()
        with self._lock:
            try:
                is_changed = writer.flush()
            finally:
                self._follow(writer)  # also when it failed after publishing
            if is_changed:
                writer.collect_garbage()

    def compact(self) -> None:
        """Merge all changes into the packed rows: look-ups probe one index again. Needs room for a second copy."""
        writer = self._changing()
        with self._lock:
            try:
                writer.flush()
                writer.compact()
            finally:
                self._follow(writer)
            writer.collect_garbage()

    def refresh(self) -> bool:
        """See what other processes have published since. True if there was something."""
        self._check()
        with self._lock:
            self._check()
            if self._writer is not None:  # nobody else publishes
                before = self._view
                self._follow(self._writer)
                return self._view is not before
            view = View.open(self.path, lock_index=self.options.lock_index, previous=self._view)
            if view is self._view:
                return False
            if view.manifest.identity != self.identity:
                raise StaleStore(f"{self.path} now holds another store ({view.manifest.identity})")
            self._use(view)
            return True

    def backup(self, path: str | os.PathLike[str]) -> None:
        """A copy of the published state in a new directory, complete or absent. Unpublished changes are flushed first."""
        self._check()
        with self._lock:
            if self._writer is not None:
                self.flush()
            backup(self._view, Path(path))

    # Care

    def stats(self) -> dict[str, Any]:
        """Numbers about the store and this handle: counts, bytes on disk, cache hits and misses, rows and bytes read."""
        self._check()
        view = self._view
        manifest = view.manifest
        lookups = self._counts.as_dict()
        cache = self._cache.stats() if self._cache is not None else {}
        hits, misses = cache.get("cache_hits", 0), cache.get("cache_misses", 0)
        return {
            "path": str(self.path),
            "addressing": self.spec.addressing,
            "rows": len(self),
            "dim": self.dim,
            "max_n": self.max_n,
            "codec": self.spec.codec.spec(),
            "row_bytes": self.spec.codec.row_bytes,
            "compression": "zstd" if manifest.base.is_compressed else "none",
            "generation": manifest.generation,
            "identity": manifest.identity,
            "ngrams_by_length": {n: count for n, count in enumerate(manifest.length_counts) if count},
            "suffix_closed": manifest.suffix_closed,
            "overlay_rows": manifest.overlay.num_rows if manifest.overlay else 0,
            "tombstones": len(view.tombstones) if view.tombstones else 0,
            "unpublished_changes": self._writer.num_pending if self._writer else 0,
            "file_bytes": {entry.name: entry.file_bytes for entry in manifest.files},
            "total_bytes": sum(entry.file_bytes for entry in manifest.files),
            "external_bytes": sum(manifest.sources.values()),
            **lookups,
            **cache,
            "hit_rate": hits / (hits + misses) if hits + misses else None,
            "resident_bytes": self._resident.num_bytes if self._resident else 0,
            "kernels_cached_on_disk": cache_is_on_disk(),
        }

    def verify(self) -> list[str]:
        """Read everything and check it: a line per fault, with file and offset; empty means all is well."""
        self._check()
        from ngramstore.store.check import verify

        return [str(fault) for fault in verify(self.path)]

    def close(self) -> None:
        """Let go of files and locks. A writer publishes its changes first. Closing twice is fine."""
        if self._closed or os.getpid() != self._pid:
            return
        with self._lock:
            try:
                if self._writer is not None:
                    self.flush()
            finally:
                self._shut()

    def _shut(self) -> None:
        self._closed = True
        try:
            if self._writer is not None:
                self._writer.close()
        finally:  # files close, and their locks go, with the last look-up that is still under way
            self._source = self._cache = self._resident = self._pending_view = None
            del self._view

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        elif not self._closed and os.getpid() == self._pid:
            self._shut()  # unpublished changes stay in the journal; the next writer finds them

    def __reduce__(self) -> tuple[Any, ...]:
        self._check()
        return _reopen, (str(self.path), self.options.for_copy(self.identity))

    def __repr__(self) -> str:
        if self._closed:
            return f"<ngramstore.Store {self.path} (closed)>"
        return (
            f"<ngramstore.Store {self.path}: {self._manifest.num_rows:,} rows, dim {self.dim}, {self.spec.codec.name}>"
        )

    # Inside

    def _check(self) -> None:
        if self._closed:
            raise StoreClosed(f"the handle on {self.path} is closed")
        if os.getpid() != self._pid:
            raise WrongProcess(f"the handle on {self.path} was opened in process {self._pid}, this is {os.getpid()}")

    def _require_ngram(self, what: str) -> None:
        if not self.spec.is_ngram:
            raise UsageError(f"{what} needs n-grams; {self.path} addresses rows by number", hint="use rows(numbers)")

    def _changing(self) -> Writer:
        self._check()
        if self._writer is None:
            raise ReadOnlyStore(f"{self.path} is open for reading")
        return self._writer

    def _ids(self, ngrams: Ngrams, what: str) -> np.ndarray:
        self._require_ngram(what)
        spec = self.spec
        if (
            isinstance(ngrams, np.ndarray)
            and ngrams.dtype == np.uint32
            and ngrams.ndim == 2
            and 0 < ngrams.shape[1] <= spec.max_n
        ):
            return ngram_ids(ngrams, None, spec.seed)  # what `as_ngrams` would find fine, 4 us sooner
        tokens, lengths = as_ngrams(ngrams, spec.max_n)
        return ngram_ids(tokens, lengths, spec.seed)

    def _numbers(self, numbers: ArrayLike, what: str) -> tuple[np.ndarray, tuple[int, ...]]:
        if self.spec.is_ngram:
            raise UsageError(
                f"{what} takes n-grams here; {self.path} is not addressed by number", hint="use get(ngrams)"
            )
        array = np.asarray(numbers)
        if array.dtype.kind not in "iu" and array.size:
            raise UsageError(f"row numbers must be integers, got dtype {array.dtype}")
        flat = np.ascontiguousarray(array).reshape(-1)
        require_rows(flat, self._view.manifest.base.num_rows)
        return flat.astype(np.int64), array.shape

    def _use(self, view: View) -> None:
        """Make a view the current one; caches keep what still holds."""
        if view.serial_space is not self._view.serial_space:  # serials began anew: the caches know rows by the old ones
            self._cache = self._resident = None
        if self.options.resident:
            self._resident = Resident(view, self._resident)
        elif self.options.cache_bytes and self._cache is None:
            self._cache = RowCache(self.options.cache_bytes, self.spec.codec.row_bytes, max(1, view.manifest.num_rows))
        self._view, self._manifest = view, view.manifest
        self._source = RowSource(view, self._cache, self._resident, None)
        self._stale = self._writer is not None and self._writer.num_pending > 0

    def _follow(self, writer: Writer) -> None:
        """After a change by our own writer, with the lock held: its view is ours."""
        self._stale = True
        self._pending_view = None
        if writer.view is not self._view:
            self._use(writer.view)

    def _current_view(self) -> View:
        """With the lock held: the published view, unpublished changes on top."""
        if self._stale:
            assert self._writer is not None
            self._follow(self._writer)  # a change after a failed publication may have found it done
            self._pending_view = self._writer.pending_view()
            self._stale = False
        if self._pending_view is not None and self._writer is not None and self._writer.num_pending:
            return self._pending_view
        return self._view

    def _lines(self, tokens: ArrayLike, starts: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        """Tokens as u32 of their own shape, and how many of them an n-gram may use at each: (B, T) u8."""
        tokens_BT = as_tokens(tokens)
        if tokens_BT.ndim not in (1, 2):
            raise UsageError(f"tokens have shape {tokens_BT.shape}, wanted (B, T)")
        lines = (1, *tokens_BT.shape)[-2:]
        if starts is not None:
            starts = np.asarray(starts)
            if starts.shape != tokens_BT.shape:
                raise UsageError(f"starts have shape {starts.shape}, the tokens {tokens_BT.shape}")
            starts = starts.reshape(lines)
        return tokens_BT, room(lines, self.max_n, starts)

    def _match(self, view: View, tokens_W: np.ndarray, room_W: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        count = len(tokens_W)
        keys, ids, lengths = np.empty(count, np.int64), np.empty(count, np.uint64), np.empty(count, np.uint8)
        manifest = view.manifest
        mask = sum(1 << n for n, stored in enumerate(manifest.length_counts) if stored)
        has_pending = view.pending_puts is not None or (self._writer is not None and self._writer.num_pending > 0)
        if has_pending:
            mask = (1 << (self.max_n + 1)) - 2
        done = native_index.match(
            view.probe_table,
            tokens_W,
            room_W,
            np.uint64(self.spec.seed),  # a Python int above 2**63 would be another type, and compiled again
            mask,
            manifest.suffix_closed and not has_pending,
            keys,
            ids,
            lengths,
        )
        if done < count:
            raise view.index_damage(int(keys[done]))
        return keys, ids, lengths

    def _get_ids(self, ids: np.ndarray, rows: np.ndarray, copy_out: CopyOut) -> np.ndarray:
        with self._reading as (view, source):
            keys = view.find(ids)
            lost = self._fill(source, keys, ids, rows, copy_out)
        found = keys >= 0
        if lost is not None:
            found[lost] = False
        self._counts.add_call(len(ids), int(np.count_nonzero(found)))
        return found

    def _get_numbers(self, numbers: np.ndarray, rows: np.ndarray, copy_out: CopyOut) -> None:
        with self._reading as (view, source):
            keys, seeds = view.find_rows(numbers)
            self._fill(source, keys, seeds, rows, copy_out)
        self._counts.add_call(len(numbers), len(numbers))

    def _fill(
        self, source: RowSource, keys: np.ndarray, seeds: np.ndarray, rows: np.ndarray, copy_out: CopyOut
    ) -> list[int] | None:
        """Rows of keys; positions of damaged rows if the handle treats them as missing, else DamagedRows."""
        damage = source.fill(keys, seeds, rows, self._counts, copy_out)
        if not damage:
            return None
        if self.options.on_damage == "raise":
            raise source.damage_error([int(keys[m]) for m in damage], list(damage.values()))
        return list(damage)


class _Reading:
    """Around each look-up: a view that stays the same, and the source of its rows. A writer's handle keeps its lock."""

    def __init__(self, store: Store) -> None:
        self._store = weakref.proxy(store)  # no cycle: dropping a handle closes its files at once
        self._lock = store._lock if store.options.mode == "rw" else None

    def __enter__(self) -> tuple[View, RowSource]:
        store = self._store
        if self._lock is None:
            source = store._source
            if source is None:  # closed by another thread since the call began
                raise StoreClosed(f"the handle on {store.path} is closed")
            return source.view, source
        self._lock.acquire()
        try:
            if store._source is None:
                raise StoreClosed(f"the handle on {store.path} is closed")
            view = store._current_view()
            if view is store._view:
                return view, store._source
            return view, RowSource(view, store._cache, store._resident, store._writer.pending_rows)
        except BaseException:
            self._lock.release()
            raise

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            self._lock.release()


def published_batches(view: View) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """What `Store.batches` yields, of one view."""
    from ngramstore.store.writer import live_batches

    if view.manifest.spec.is_ngram:
        view.require_tokens()
        for batch in live_batches(view):
            yield batch.tokens, batch.lengths, batch.rows
    else:
        for batch in live_batches(view):
            yield batch.ids.astype(np.int64), batch.lengths, batch.rows


def _reopen(path: str, options: OpenOptions) -> Store:
    return Store(path, options)


def _discard(source: np.ndarray, offsets_M: np.ndarray, out_MD: np.ndarray) -> None:
    """Rows are wanted in the cache only."""


def _require_same(num_keys: int, num_rows: int) -> None:
    if num_keys != num_rows:
        raise UsageError(f"{num_keys} keys, {num_rows} rows", hint="give one row for each key")


__all__ = ["DamagedStore", "Hit", "Store"]
