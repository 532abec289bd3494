"""A handful of look-ups that need no disk: one call into a kernel, as little Python around it as there can be.

Whatever is unusual (another type, an n-gram's row that is not cached, damage) is left to the long way: None, and nothing has
happened.

Shapes: M n-grams, B lines of S tokens, T positions wanted of each, D row width.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ngramstore.kernels.native import few as native
from ngramstore.kernels.native import few_rows as native_rows
from ngramstore.kernels.native import index as columns
from ngramstore.kernels.native.cache import BLOCK
from ngramstore.kernels.native.call import COUNTS, RESIDENT, STATE
from ngramstore.kernels.native.dequantize import NUM_PLAN, OUT_BYTES
from ngramstore.kernels.native.memory import HAS_READ_AT_ONCE
from ngramstore.serve.resident import Resident
from ngramstore.serve.row_cache import RowCache
from ngramstore.store.view import View
from ngramstore.windows import plain

FEW_ROWS = 8
"""Exact look-ups of more n-grams go block by block (serve/many.py)."""
_MOST_POSITIONS = BLOCK
"""In one call: the cache serves the rows of that many at once, all or none."""
_LONG_WAYS = 32
"""After a call for more than FEW_ROWS positions whose rows were not all here, so many such calls skip this path: with a
small cache nearly every one would miss some row, and look for its matches twice."""
_MOST_TOKENS = 256
_U8, _U32, _I64 = np.dtype(np.uint8), np.dtype(np.uint32), np.dtype(np.int64)
_DTYPES: dict[str, np.dtype[Any]] = {
    "f32": np.dtype(np.float32),
    "f16": np.dtype(np.float16),
    "bf16": np.dtype(np.uint16),
}
_ITEM_BYTES = {"f": 4, "e": 2, "H": 2, "B": 1}
"""Of the letters of types that kernels take: ml_dtypes has a type of one byte whose letter is that of f16."""
_serve_one = native.serve_one
_serve_numbers = native_rows.serve_numbers


class Few:
    """Look-ups of one view in its cache, or in memory. It holds what the kernels' addresses point to. Threads: any number."""

    def __init__(self, view: View, rows: RowCache | Resident, counts: np.ndarray) -> None:
        self._alive = view, rows, counts
        self._long_ways = 0
        spec = view.manifest.spec
        self._max_n, self._dim = spec.max_n, spec.dim
        self._calls = _Calls(_ngram_call(view, rows, counts), view)

    def get(self, ngrams: np.ndarray, out: np.ndarray | None, dtype: str) -> tuple[np.ndarray, np.ndarray] | None:
        """Rows (M, D) and found (M,) bool of an array of n-grams (M, N), as `Lookups.get` gives them."""
        taken = self.take(ngrams, out, dtype) if ngrams.ndim == 2 and len(ngrams) <= FEW_ROWS else None
        if taken is None:
            return None
        call, ngrams, out = taken
        found = np.empty(len(ngrams), np.bool_)
        if native.serve_ngrams(call, ngrams, out.view(np.uint16) if out.dtype.char == "e" else out, found) < 0:
            return None
        return out, found

    def take(
        self, ngrams: np.ndarray, out: np.ndarray | None, dtype: str
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
        """CALL, n-grams and the array for the rows; None where a kernel cannot take one of the arguments."""
        shape = ngrams.shape
        if len(shape) != 2 or not 0 < shape[1] <= self._max_n or ngrams.dtype is not _U32:
            return None
        if out is None:
            if type(dtype) is not str or dtype not in _DTYPES:
                return None
            out = np.empty((shape[0], self._dim), _DTYPES[dtype])
        elif type(out) is not np.ndarray or out.shape != (shape[0], self._dim) or not out.flags.carray:
            return None
        kind = out.dtype.char
        call = self._calls[kind]
        if call is None or kind == "B" or not out.dtype.isnative:
            return None
        if out.itemsize != _ITEM_BYTES[kind]:
            return None
        return call, plain(ngrams), out

    def tail(self, tokens: np.ndarray, room: np.ndarray, out: np.ndarray) -> np.ndarray | None:
        """Lengths (B, T) u8 of the longest matches, their rows in out, as `Lookups.lookup_tail` gives them."""
        if tokens.dtype is not _U32 or room.dtype is not _U8 or type(out) is not np.ndarray or not out.flags.carray:
            return None
        shape, width = room.shape, tokens.shape
        if len(shape) != 2 or len(width) != 2 or shape[0] * shape[1] > _MOST_POSITIONS:
            return None
        are_many = shape[0] * shape[1] > FEW_ROWS
        if are_many and self._long_ways > 0:
            self._long_ways -= 1
            return None
        if width[0] != shape[0] or not shape[1] <= width[1] <= _MOST_TOKENS:
            return None
        kind = out.dtype.char
        call = self._calls[kind]
        if call is None or not out.dtype.isnative:
            return None
        if out.shape != (*shape, call.item(OUT_BYTES) // _ITEM_BYTES[kind]) or out.itemsize != _ITEM_BYTES[kind]:
            return None
        lengths = np.empty(shape, np.uint8)
        bits = out.view(np.uint16) if kind == "e" else out
        if native.serve_tail(call, plain(tokens), plain(room), bits, lengths) < 0:
            if are_many:
                self._long_ways = _LONG_WAYS
            return None
        return lengths

    def one(self, tokens: np.ndarray, end: int, room: int, out: np.ndarray) -> int:
        """Length of the longest match at tokens[end - 1], its row in out, as `Lookups.lookup_one` gives them; -1: the
        long way."""
        if tokens.dtype is not _U32 or type(out) is not np.ndarray or not out.flags.carray:
            return -1
        if not tokens.flags.carray:  # the long way makes a plain array of the n-gram alone: the line may be long
            return -1
        if type(end) is not int or type(room) is not int:
            return -1
        if tokens.ndim != 1 or not 0 <= room <= end <= len(tokens) or end == 0 or room > _MOST_TOKENS:
            return -1
        kind = out.dtype.char
        call = self._calls[kind]
        if call is None or out.ndim != 1 or out.nbytes != call.item(OUT_BYTES) or not out.dtype.isnative:
            return -1
        if out.itemsize != _ITEM_BYTES[kind]:
            return -1
        return _serve_one(call, tokens, end, room, out.view(np.uint16) if kind == "e" else out)


class FewRows:
    """Rows by number of one view without changes: in memory, or read, with or without a cache. Threads: any number."""

    def __init__(self, view: View, rows: RowCache | Resident | None, counts: np.ndarray) -> None:
        self._alive = view, rows, counts
        self._dim, self._row_bytes = view.manifest.spec.dim, view.manifest.spec.codec.row_bytes
        self._calls = _Calls(_row_call(view, rows, counts), view)

    def rows(self, numbers: np.ndarray, out: np.ndarray | None, dtype: str) -> np.ndarray | None:
        """Rows (*S, D) of numbers of any shape S, as `Lookups.rows` gives them."""
        if numbers.dtype is not _I64 or not 0 < numbers.size <= native_rows.MOST_ROWS:
            return None
        shape = (*numbers.shape, self._dim)
        if out is None:
            if type(dtype) is not str or dtype not in _DTYPES:
                return None
            out = np.empty(shape, _DTYPES[dtype])
        elif type(out) is not np.ndarray or out.shape != shape or not out.flags.carray or not out.dtype.isnative:
            return None
        kind = out.dtype.char
        call = self._calls[kind]
        if call is None or kind == "B" or out.itemsize != _ITEM_BYTES[kind]:
            return None
        flat = out.reshape(-1)  # one type for the compiler, whatever the shape
        if _serve_numbers(call, plain(numbers).ravel(), flat.view(np.uint16) if kind == "e" else flat) < 0:
            return None
        return out

    def encoded(self, numbers: np.ndarray) -> np.ndarray | None:
        """Rows as they are stored, (*S, row_bytes) u8."""
        if numbers.dtype is not _I64 or not 0 < numbers.size <= native_rows.MOST_ROWS:
            return None
        out = np.empty((*numbers.shape, self._row_bytes), np.uint8)
        if _serve_numbers(self._calls["B"], plain(numbers).ravel(), out.reshape(-1)) < 0:
            return None
        return out


def _addresses(rows: RowCache | Resident | None) -> tuple[int, int]:
    """Of the cache's state and of the rows in memory; 0: there is none."""
    if isinstance(rows, Resident):
        return 0, rows.rows[0].ctypes.data
    return 0 if rows is None else rows.state.ctypes.data, 0


def _ngram_call(view: View, rows: RowCache | Resident, counts: np.ndarray) -> np.ndarray:
    """CALL of the kernels for n-grams, but for the plan."""
    call = np.zeros(native.NUM_CALL, np.int64)
    manifest = view.manifest
    call[STATE], call[RESIDENT] = _addresses(rows)
    call[native.LAYERS] = view.probe_table.ctypes.data
    call[native.NUM_LAYERS] = len(view.probe_table)
    call[COUNTS] = counts.ctypes.data
    call[native.SEED] = np.uint64(manifest.spec.seed).astype(np.int64)
    call[native.MAX_N] = manifest.spec.max_n
    call[native.LENGTHS_MASK] = view.lengths_mask
    call[native.STOP_AT_MISS] = manifest.suffix_closed
    return call


def _row_call(view: View, rows: RowCache | Resident | None, counts: np.ndarray) -> np.ndarray:
    """CALL of the kernel for rows by number, but for the plan."""
    call = np.zeros(native_rows.NUM_CALL, np.int64)
    line = view.base.lines[0]
    is_plain = not line[columns.FIRST_BYTES] and not line[columns.OFFSETS_AT]  # neither in place nor compressed
    is_read_here = is_plain and HAS_READ_AT_ONCE  # else the disk would be waited for while rows of the cache are held
    call[STATE], call[RESIDENT] = _addresses(rows)
    call[COUNTS] = counts.ctypes.data
    call[native_rows.NUM_ROWS] = view.base.num_rows
    call[native_rows.FIRST_KEY] = view.base.serial << columns.RANK_BITS
    call[native_rows.ROWS_FD] = line[columns.ROWS_FD] if is_read_here else -1
    call[native_rows.ROWS_DATA_AT] = line[columns.ROWS_DATA_AT]
    return call


class _Calls(dict[str, Any]):
    """dtype char of the output -> CALL of the kernels, None where rows cannot be written so; made on first use."""

    def __init__(self, call: np.ndarray, view: View) -> None:
        super().__init__()
        self._call, self._codec = call, view.manifest.spec.codec

    def __missing__(self, kind: str) -> np.ndarray | None:
        call = None
        if kind in "feHB":
            call = self._call.copy()
            call[:NUM_PLAN] = self._codec.plan(kind)
        self[kind] = call
        return call
