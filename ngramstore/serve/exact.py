"""Look-ups of exact n-grams: rows, encoded or dequantized, into any buffer, and which n-grams are stored.

Shapes: M wanted rows, D row width.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ngramstore.hashing import ngram_ids
from ngramstore.serve.filling import Filling
from ngramstore.serve.many import Served
from ngramstore.serve.output import output_array
from ngramstore.serve.row_source import RowSource
from ngramstore.store.view import View
from ngramstore.windows import Ngrams, as_ngrams, plain


class ExactLookups(Filling):
    """What a store addressed by n-gram answers to exact keys. Threads: any number at once."""

    def get(
        self, ngrams: Ngrams, *, out: np.ndarray | None = None, dtype: str = "f32"
    ) -> tuple[np.ndarray, np.ndarray]:
        """Exactly these M n-grams -> rows (M, D) of `dtype`, zeros where absent, and found (M,) bool. Order and duplicates kept.

        Fastest with a plain array (M, n) of uint32. `out` and `dtype` as in `lookup`. Raises UsageError, DamagedRows,
        DamagedStore, StoreClosed, WrongProcess.
        """
        current = self._current
        few = current.few
        if few is not None and type(ngrams) is np.ndarray:
            found = few.get(ngrams, out, dtype)
            if found is not None:
                return found
            many = current.many
            if many is not None and not self._workers.splits(len(ngrams) if ngrams.ndim else 0):
                served = many.get(ngrams, out, dtype)
                if served is not None:
                    if len(served.absent):
                        self._read_rest(many.source, served)
                    return served.rows, served.found
        self._check()
        ids = self._ids(ngrams, "get")
        rows = output_array(out, (len(ids), self.dim), dtype)
        return rows, self._get_ids(ids, rows)

    def get_encoded(self, ngrams: Ngrams) -> tuple[np.ndarray, np.ndarray]:
        """As `get`, rows as they are stored: (M, row_bytes) u8, zeros where absent, and found (M,) bool.

        `spec.codec.unpack` takes them apart. Raises as `get`.
        """
        self._check()
        ids = self._ids(ngrams, "get_encoded")
        rows = np.empty((len(ids), self.spec.codec.row_bytes), np.uint8)
        return rows, self._get_ids(ids, rows)

    def contains(self, ngrams: Ngrams) -> np.ndarray:
        """Which of M n-grams are stored: (M,) bool, in their order. Reads no rows.

        Raises UsageError, DamagedStore, StoreClosed, WrongProcess.
        """
        self._check()
        ids = self._ids(ngrams, "contains")
        with self._reading:
            view, _ = self._view_and_source()
            return self._find(view, ids) >= 0

    def __contains__(self, ngram: Any) -> bool:
        return bool(self.contains([ngram])[0])

    def _ids(self, ngrams: Ngrams, what: str) -> np.ndarray:
        self._require_ngram(what)
        spec = self.spec
        if (
            isinstance(ngrams, np.ndarray)
            and not isinstance(ngrams, np.ma.MaskedArray)
            and ngrams.dtype == np.uint32
            and ngrams.ndim == 2
            and 0 < ngrams.shape[1] <= spec.max_n
        ):
            return ngram_ids(plain(ngrams), None, spec.seed)  # what `as_ngrams` would find fine, 4 us sooner
        tokens, lengths = as_ngrams(ngrams, spec.max_n)
        return ngram_ids(tokens, lengths, spec.seed)

    def _find(self, view: View, ids_M: np.ndarray) -> np.ndarray:
        """Row keys of IDs: (M,) u64 -> (M,) i64, -1 where absent."""
        parts = self._workers.parts(len(ids_M))
        if len(parts) == 1:
            return view.find(ids_M)
        return np.concatenate(self._workers.run(lambda part: view.find(ids_M[part]), parts))

    def _get_ids(self, ids: np.ndarray, rows: np.ndarray) -> np.ndarray:
        with self._reading:
            view, source = self._view_and_source()
            keys = self._find(view, ids)
            lost = self._fill(source, keys, ids, rows, ids)
        return self._found(keys, lost)

    def _read_rest(self, source: RowSource, served: Served) -> None:
        """The rows that were not in memory; those that are damaged are not found."""
        damage = source.read_absent(served.absent, served.keys, served.ids, served.rows, self._counts)
        self._count(served.found, self._lost(source, damage, served.keys, served.ids))

    def _found(self, keys: np.ndarray, lost: list[int] | None) -> np.ndarray:
        found = keys >= 0
        self._count(found, lost)
        return found

    def _count(self, found: np.ndarray, lost: list[int] | None) -> None:
        if lost is not None:
            found[lost] = False
        self._counts.add_call(len(found), int(np.count_nonzero(found)))
