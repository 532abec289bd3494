"""All that a store answers: look-ups by n-gram and by row number, rows read ahead, and everything it holds.

Shapes: M wanted rows, D row width, K longest n-gram.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from ngramstore.errors import UsageError
from ngramstore.hashing import ngram_ids
from ngramstore.kernels.native.index import RANK_BITS
from ngramstore.options import is_whole
from ngramstore.serve.by_ngram import Hit, NgramLookups
from ngramstore.serve.by_row import RowLookups
from ngramstore.serve.exact import ExactLookups
from ngramstore.serve.row_cache import SLOT_OVERHEAD_BYTES
from ngramstore.store.live import live_batches
from ngramstore.store.trace import Trace
from ngramstore.store.view import PENDING_SERIAL, View
from ngramstore.windows import as_ngrams, plain

_LEAST_STEP = 1 << 16
"""Keys that `warm` looks for at a time, at least."""

__all__ = ["Hit", "Lookups"]


class Lookups(NgramLookups, ExactLookups, RowLookups):
    """What a store answers. Threads: any number at once."""

    def warm(self, keys: Any, *, max_bytes: int | None = None) -> int:
        """Read rows into the cache ahead of use: n-grams (most frequent first), row numbers, or a `Trace`. Returns rows
        now cached.

        Of those stored, each once, the first are read: as many as fit the cache, or `max_bytes` of it. Counts as rows
        and bytes read, not as look-ups, hits or misses. Raises UsageError, also for a trace of another seed or number of rows.
        """
        self._check()
        cache = self._source.cache
        if max_bytes is not None and (not is_whole(max_bytes) or max_bytes < 0):
            raise UsageError(
                f"max_bytes is {max_bytes!r}", hint="give a number of bytes, or None for all that fits the cache"
            )
        is_traced = isinstance(keys, Trace)
        if is_traced:
            keys = self._keys_of(keys)
        if cache is None:
            return 0
        limit = cache.num_slots
        if max_bytes is not None:
            limit = min(limit, max_bytes // (self.spec.codec.row_bytes + SLOT_OVERHEAD_BYTES))
        if not self.spec.is_ngram:
            flat, _ = self._numbers(keys, "warm")
            wanted = _first_of(len(flat), limit, lambda part: flat[part])
        elif is_traced:
            wanted = _first_of(len(keys), limit, lambda part: self._in_files(keys[part]))
        else:
            tokens, lengths = as_ngrams(keys, self.max_n)
            wanted = _first_of(
                len(tokens),
                limit,
                lambda part: self._in_files(ngram_ids(tokens[part], lengths[part], self.spec.seed)),
            )
        with self._reading:
            view, source = self._view_and_source()
            found, seeds = (self._find(view, wanted), wanted) if self.spec.is_ngram else view.find_rows(wanted)
            self._lost(source, source.bring(found, seeds, self._counts), found, wanted)
        return cache.stats()["cache_rows"]

    def _in_files(self, ids: np.ndarray) -> np.ndarray:
        """Those of the IDs whose rows lie in files: what is not published yet is in memory as it is."""
        ids = plain(ids)
        with self._reading:
            keys = self._find(self._view_and_source()[0], ids)
        return ids[(keys >= 0) & (keys >> RANK_BITS < PENDING_SERIAL)]

    def _keys_of(self, trace: Trace) -> np.ndarray:
        """The keys of a trace: IDs (K,) u64, or numbers (K,) i64. UsageError if it is not of this store."""
        spec = self.spec
        found, wanted = (trace.addressing, trace.space), (spec.addressing, self._trace_space)
        if found != wanted:
            names = {"row": "{:,} rows addressed by number", "ngram": "n-grams under the seed {}"}
            of, here = (names[addressing].format(space) for addressing, space in (found, wanted))
            raise UsageError(f"the trace is of {of}, {self.path} holds {here}", hint="record one on this store")
        return trace.keys if spec.is_ngram else trace.keys.astype(np.int64)

    @property
    def _trace_space(self) -> int:
        """What a trace of this store says of it: its seed, or how many rows it addresses."""
        return self.spec.seed if self.spec.is_ngram else self._manifest.base.num_rows

    def items(self) -> Iterator[tuple[Any, np.ndarray]]:
        """All (n-gram as a tuple, row (D,) f32) in ID order, or (number, row): the published state, read in batches.

        Unpublished changes of this handle are flushed first.
        """
        for tokens, lengths, rows in self.batches():
            decoded = self.spec.codec.decode(rows)
            if self.spec.is_ngram:
                for ngram, length, row in zip(tokens.tolist(), lengths.tolist(), decoded, strict=True):
                    yield tuple(ngram[:length]), row
            else:
                yield from zip(tokens.tolist(), decoded, strict=True)

    def batches(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """All rows of the published state: tokens (M, K) u32, lengths (M,) u8, encoded rows (M, row_bytes) u8.

        Row-addressed: numbers (M,) i64 in place of tokens. Unpublished changes of this handle are flushed first.
        """
        self._check()
        with self._lock:
            self._check()
            if self._writer is not None:
                self._publish(self._writer)
            view = self._view
        yield from _published_batches(view)


def _first_of(count: int, limit: int, usable: Callable[[slice], np.ndarray]) -> np.ndarray:
    """The first `limit` keys, each once, the first one last: so it ends up as the newest. usable: those among a part of
    `count`."""
    found = usable(slice(0, 0))
    step = max(_LEAST_STEP, 2 * limit)
    for at in range(0, count, step):
        if len(found) >= limit:
            break
        found = _each_once(np.concatenate((found, usable(slice(at, at + step)))))
    return plain(found[:limit][::-1])


def _each_once(keys: np.ndarray) -> np.ndarray:
    """The keys in their order, each where it came first."""
    _, first = np.unique(keys, return_index=True)
    return keys[np.sort(first)]


def _published_batches(view: View) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """What `Store.batches` yields, of one view."""
    is_ngram = view.manifest.spec.is_ngram
    if is_ngram:
        view.require_tokens()
    for batch in live_batches(view):
        yield batch.tokens if is_ngram else batch.ids.astype(np.int64), batch.lengths, batch.rows
