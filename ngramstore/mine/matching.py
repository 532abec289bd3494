"""Longest match in running text: a hash table of n-grams, built at once; whether they are suffix-closed is found at first use.

Shapes: M n-grams, K longest n-gram, T position, C table slots.
"""

from __future__ import annotations

import threading

import numpy as np

from ngramstore.errors import UsageError
from ngramstore.kernels.count_table import empty_table
from ngramstore.kernels.native import mining as native
from ngramstore.windows import as_tokens


class Matcher:
    """Finds which of M different n-grams is the longest to end at each position. Threads: any number."""

    def __init__(self, tokens_MK: np.ndarray, lengths_M: np.ndarray) -> None:
        """tokens (M, K) u32 left-aligned, lengths (M,) u8 from 1 to K; neither may change. Raises UsageError for
        others, and a repeat."""
        _check_ngrams(tokens_MK, lengths_M)
        self._tokens_MK, self._lengths_M = tokens_MK, lengths_M
        self._shortest = int(lengths_M.min(initial=tokens_MK.shape[1]))
        self._lock = threading.Lock()
        self._is_closed: bool | None = None
        self._table_C2 = empty_table(max(16, 2 * len(lengths_M)))
        repeated = native.fill_matches(tokens_MK, lengths_M, self._table_C2)
        if repeated >= 0:
            ngram = tuple(tokens_MK[repeated, : lengths_M[repeated]].tolist())
            raise UsageError(f"the n-gram {ngram} is there twice, the second time in row {repeated}")

    @property
    def is_suffix_closed(self) -> bool:
        """True if every n-gram longer than the shortest has its suffix, one token shorter, in the set too."""
        with self._lock:
            if self._is_closed is None:
                self._is_closed = self._find_closed()
            return self._is_closed

    def tag(self, tokens: np.ndarray, starts: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """See Vocabulary.tag."""
        tokens_T = as_token_ids(tokens)
        is_start_T = start_flags(starts, len(tokens_T))
        return self._search(tokens_T, is_start_T, self.is_suffix_closed)

    def _search(self, tokens_T: np.ndarray, is_start_T: np.ndarray, is_closed: bool) -> tuple[np.ndarray, np.ndarray]:
        lengths_T, rows_T = np.zeros(len(tokens_T), np.uint8), np.full(len(tokens_T), -1, np.int64)
        if len(self._lengths_M):
            native.longest_matches(
                tokens_T,
                is_start_T,
                self._tokens_MK,
                self._lengths_M,
                self._shortest,
                self._table_C2,
                is_closed,
                lengths_T,
                rows_T,
            )
        return lengths_T, rows_T

    def _find_closed(self) -> bool:
        """Search each n-gram without its first token as a document of its own: the whole of it must match."""
        if not len(self._lengths_M):
            return True
        for begin in range(0, len(self._lengths_M), 1 << 16):
            lengths = self._lengths_M[begin : begin + (1 << 16)].astype(np.int64) - 1
            tokens_MK = self._tokens_MK[begin : begin + (1 << 16), 1:]
            is_longer = lengths >= self._shortest
            lengths, tokens_MK = lengths[is_longer], tokens_MK[is_longer]
            ends = np.cumsum(lengths)
            tokens_T = tokens_MK[np.arange(tokens_MK.shape[1]) < lengths[:, None]]
            found_T, _ = self._search(tokens_T, start_flags(ends - lengths, len(tokens_T)), False)
            if not np.array_equal(found_T[ends - 1], lengths):
                return False
        return True


def _check_ngrams(tokens_MK: np.ndarray, lengths_M: np.ndarray) -> None:
    """The kernels believe lengths: UsageError where one does not fit its line."""
    kinds = {tokens_MK.dtype.kind, lengths_M.dtype.kind}
    if tokens_MK.ndim != 2 or lengths_M.shape != (len(tokens_MK),) or not kinds <= {"u", "i"}:
        raise UsageError(
            f"tokens are {tokens_MK.dtype} {tokens_MK.shape}, lengths {lengths_M.dtype} {lengths_M.shape}",
            hint="wanted integers (M, K) and (M,)",
        )
    if len(lengths_M) and not 1 <= int(lengths_M.min()) <= int(lengths_M.max()) <= tokens_MK.shape[1]:
        raise UsageError(
            f"lengths run from {lengths_M.min()} to {lengths_M.max()}, lines have {tokens_MK.shape[1]} tokens"
        )


def as_token_ids(tokens: np.ndarray) -> np.ndarray:
    """A vector of integers as contiguous u32. Raises UsageError for another shape, other values or no integers."""
    array = as_tokens(tokens)
    if array.ndim != 1:
        raise UsageError(f"tokens have shape {array.shape}, wanted a vector (T,)")
    return np.ascontiguousarray(array)


def start_flags(starts: np.ndarray, num_tokens: int) -> np.ndarray:
    """Document starts, as (T,) bool or as ascending offsets -> (T,) bool with True at position 0."""
    array = np.asarray(starts)
    if array.dtype == np.bool_:
        if array.shape != (num_tokens,):
            raise UsageError(f"starts are {array.shape} flags for {num_tokens} tokens")
        flags_T = array.copy()
    else:
        if array.ndim != 1 or (array.size and array.dtype.kind not in "ui"):
            raise UsageError(f"starts are {array.dtype} of shape {array.shape}, wanted flags or a vector of offsets")
        if array.size and (int(array.min()) < 0 or int(array.max()) > num_tokens or (array[1:] < array[:-1]).any()):
            raise UsageError(f"document offsets must rise from 0 to at most {num_tokens}")
        flags_T = np.zeros(num_tokens, np.bool_)
        flags_T[array[array < num_tokens].astype(np.int64)] = True
    flags_T[:1] = True
    return flags_T
