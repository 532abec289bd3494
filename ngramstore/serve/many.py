"""Exact look-ups of many n-grams in one call into a kernel, with as little Python around it as there can be.

Whatever is unusual is left to the long way, as in `few`: None. Rows that are not in memory are named, to be read.

Shapes: M n-grams, D row width.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ngramstore.kernels.native import many as native
from ngramstore.serve.few import Few
from ngramstore.serve.row_source import RowSource


class Served(NamedTuple):
    """Rows (M, D), which n-grams are stored (M,) bool, their IDs (M,) u64 and row keys (M,) i64, -1: not stored.

    absent: positions of rows that have to be read. A call without any has been counted.
    """

    rows: np.ndarray
    found: np.ndarray
    ids: np.ndarray
    keys: np.ndarray
    absent: np.ndarray


class Many:
    """Look-ups of the view and the cache of a `Few`; `source` reads what they leave. Threads: any number."""

    def __init__(self, few: Few, source: RowSource) -> None:
        self._few, self.source = few, source

    def get(self, ngrams: np.ndarray, out: np.ndarray | None, dtype: str) -> Served | None:
        """What is in memory of the rows of an array of n-grams (M, N)."""
        taken = self._few.take(ngrams, out, dtype)
        if taken is None:
            return None
        call, ngrams, rows = taken
        count = len(ngrams)
        ids, keys, absent = np.empty(count, np.uint64), np.empty(count, np.int64), np.empty(count, np.int64)
        found = np.empty(count, np.bool_)
        bits = rows.view(np.uint16) if rows.dtype.char == "e" else rows
        num_absent = native.serve_ngrams(call, ngrams, bits, ids, keys, absent, found)
        return Served(rows, found, ids, keys, absent[:num_absent]) if num_absent >= 0 else None
