"""A handful of look-ups whose rows are all in the cache: one call into a kernel, as little Python around it as there can be.

Whatever is unusual (another type, a row that is not cached, a damaged page) is left to the long way: None, and nothing has
happened.

Shapes: M n-grams, B lines of S tokens, T positions wanted of each, D row width.
"""

from __future__ import annotations

import os
import weakref
from typing import Any

import numpy as np

from ngramstore.kernels.native import few as native
from ngramstore.kernels.native.dequantize import NUM_PLAN, OUT_BYTES
from ngramstore.serve.row_cache import RowCache
from ngramstore.store.view import View

FEW_ROWS = 8
_MOST_TOKENS = 256
_U8, _U32 = np.dtype(np.uint8), np.dtype(np.uint32)
_DTYPES = {"f32": np.float32, "f16": np.float16, "bf16": np.uint16}


class Few:
    """Look-ups of one view through one cache. It holds what the kernels' addresses point to. Threads: any number."""

    def __init__(self, view: View, cache: RowCache, counts: np.ndarray) -> None:
        self._alive = view, cache, counts
        spec = view.manifest.spec
        self._max_n, self._dim = spec.max_n, spec.dim
        self._calls = _Calls(view, cache, counts)

    def get(self, ngrams: np.ndarray, out: np.ndarray | None, dtype: str) -> tuple[np.ndarray, np.ndarray] | None:
        """Rows (M, D) and found (M,) bool of an array of n-grams (M, N), as `Lookups.get` gives them."""
        shape = ngrams.shape
        if len(shape) != 2 or shape[0] > FEW_ROWS or not 0 < shape[1] <= self._max_n or ngrams.dtype is not _U32:
            return None
        if out is None:
            if dtype not in _DTYPES:
                return None
            out = np.empty((shape[0], self._dim), _DTYPES[dtype])
        elif type(out) is not np.ndarray or out.shape != (shape[0], self._dim) or not out.flags.carray:
            return None
        kind = out.dtype.char
        call = self._calls[kind]
        if call is None or kind == "B" or not out.dtype.isnative:
            return None
        found = np.empty(shape[0], np.bool_)
        if native.serve_ngrams(call, ngrams, out.view(np.uint16) if kind == "e" else out, found) < 0:
            return None
        return out, found

    def tail(self, tokens: np.ndarray, room: np.ndarray, out: np.ndarray) -> np.ndarray | None:
        """Lengths (B, T) u8 of the longest matches, their rows in out, as `Lookups.lookup_tail` gives them."""
        if tokens.dtype is not _U32 or room.dtype is not _U8 or type(out) is not np.ndarray or not out.flags.carray:
            return None
        shape, width = room.shape, tokens.shape
        if len(shape) != 2 or len(width) != 2 or shape[0] * shape[1] > FEW_ROWS:
            return None
        if width[0] != shape[0] or not shape[1] <= width[1] <= _MOST_TOKENS:
            return None
        kind = out.dtype.char
        call = self._calls[kind]
        if call is None or not out.dtype.isnative:
            return None
        if out.shape != (*shape, call.item(OUT_BYTES) // out.itemsize):
            return None
        lengths = np.empty(shape, np.uint8)
        if native.serve_tail(call, tokens, room, out.view(np.uint16) if kind == "e" else out, lengths) < 0:
            return None
        return lengths


class _Calls(dict[str, Any]):
    """dtype char of the output -> CALL of the kernels, None where rows cannot be written so; made on first use."""

    def __init__(self, view: View, cache: RowCache, counts: np.ndarray) -> None:
        super().__init__()
        call = np.zeros(native.NUM_CALL, np.int64)
        manifest = view.manifest
        call[native.STATE] = cache.state.ctypes.data
        call[native.LAYERS] = view.probe_table.ctypes.data
        call[native.NUM_LAYERS] = len(view.probe_table)
        call[native.COUNTS] = counts.ctypes.data
        call[native.SEED] = np.uint64(manifest.spec.seed).astype(np.int64)
        call[native.MAX_N] = manifest.spec.max_n
        call[native.LENGTHS_MASK] = view.lengths_mask
        call[native.STOP_AT_MISS] = manifest.suffix_closed
        self._call, self._codec = call, manifest.spec.codec

    def __missing__(self, kind: str) -> np.ndarray | None:
        call = None
        if kind in "feHB":
            call = self._call.copy()
            call[:NUM_PLAN] = self._codec.plan(kind)
        self[kind] = call
        return call


_owners: weakref.WeakSet[Any] = weakref.WeakSet()


def forget_in_forks(owner: Any) -> None:
    """From now on `owner._few` is None in every process forked from this one, so that the short way need not ask."""
    _owners.add(owner)


def _forget() -> None:
    for owner in list(_owners):
        owner._few = None


os.register_at_fork(after_in_child=_forget)
