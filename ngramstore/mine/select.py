"""The runs of all lengths -> one ranking by count, cut to the wanted size, with the tokens of what is left.

Order: count (most first), then length (shortest first), then tokens. A suffix or a prefix occurs at least as often as the
n-gram and is shorter, so it stands before it: whatever the cut, the set is suffix-closed and prefix-closed. That is also why
tokens can be rebuilt from prefix numbers with what was kept alone.

Shapes: M n-grams kept (of one length or of all), K longest n-gram.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ngramstore.mine.runs import RunReader

_BLOCK_PAIRS = 1 << 16
_SMALL_COUNTS = 1 << 12
"""Counts below are counted in an array: nearly all of them."""


@dataclass(frozen=True)
class Selection:
    """The kept n-grams in rank order: tokens (M, K) u32 left-aligned, lengths (M,) u8, counts (M,) u64."""

    tokens_MK: np.ndarray
    lengths_M: np.ndarray
    counts_M: np.ndarray
    num_frequent: int
    """How many n-grams of all lengths there were to choose from."""


def select_top(paths: Sequence[Path], size: int, *, block_pairs: int = _BLOCK_PAIRS) -> Selection:
    """Rank the n-grams of the runs for n = 2, 3, ... and keep the first `size`.

    Memory: about 12 K + 60 bytes for each n-gram kept, and one block. Raises DamagedStore.
    """
    max_n = len(paths) + 1
    cut, num_frequent = _cut(paths, size, block_pairs)
    parts_tokens, parts_counts, lengths = [], [], []
    prefix_ids = np.zeros(0, np.int64)
    prefix_tokens = np.zeros((0, max_n), np.uint32)
    for n, path in enumerate(paths, 2):
        ids_M, keys_M, counts_M = _kept(path, n, cut, block_pairs)
        tokens_MK = np.zeros((len(ids_M), max_n), np.uint32)
        prefix_M = (keys_M >> np.uint64(32)).astype(np.int64)
        if n == 2:
            tokens_MK[:, 0] = prefix_M
        else:
            where_M = np.searchsorted(prefix_ids, prefix_M)
            assert np.array_equal(prefix_ids[where_M], prefix_M), "a kept n-gram's prefix is kept"
            tokens_MK[:, : n - 1] = prefix_tokens[where_M, : n - 1]
        tokens_MK[:, n - 1] = keys_M & np.uint64(0xFFFFFFFF)
        prefix_ids, prefix_tokens = ids_M, tokens_MK
        parts_tokens.append(tokens_MK)
        parts_counts.append(counts_M)
        lengths.append(np.full(len(ids_M), n, np.uint8))
    counts_M, lengths_M = np.concatenate(parts_counts), np.concatenate(lengths)
    # The parts are in order of length, then tokens; a stable sort by falling count keeps that order among equals.
    order_M = np.argsort(np.iinfo(np.uint64).max - counts_M, kind="stable")
    return Selection(np.concatenate(parts_tokens)[order_M], lengths_M[order_M], counts_M[order_M], num_frequent)


@dataclass(frozen=True)
class _Cut:
    """Kept: count above `count`; at `count`, lengths below `length` and the first `quota` of that length."""

    count: int
    length: int
    quota: int


def _cut(paths: Sequence[Path], size: int, block_pairs: int) -> tuple[_Cut, int]:
    """Where the ranking ends. Distinct counts are few (about the square root of the corpus), so they fit in memory."""
    found: dict[tuple[int, int], int] = {}
    for n, path in enumerate(paths, 2):
        small_C = np.zeros(_SMALL_COUNTS, np.int64)
        for pairs_N2 in RunReader(path).blocks(block_pairs):
            counts_N = pairs_N2[:, 1].astype(np.int64)
            is_small_N = counts_N < _SMALL_COUNTS
            small_C += np.bincount(counts_N[is_small_N], minlength=_SMALL_COUNTS)
            for count in counts_N[~is_small_N].tolist():
                found[-count, n] = found.get((-count, n), 0) + 1
        found |= {(-count, n): int(small_C[count]) for count in np.flatnonzero(small_C).tolist()}
    num_frequent, left = sum(found.values()), size
    for (minus_count, n), num in sorted(found.items()):
        if num >= left:
            return _Cut(-minus_count, n, left), num_frequent
        left -= num
    return _Cut(0, 0, 0), num_frequent


def _kept(path: Path, n: int, cut: _Cut, block_pairs: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Numbers (places in the run), keys and counts of what is kept of one length, in token order."""
    quota = cut.quota if n == cut.length else 0
    ids, keys, counts = [np.zeros(0, np.int64)], [np.zeros(0, np.uint64)], [np.zeros(0, np.uint64)]
    at = 0
    for pairs_N2 in RunReader(path).blocks(block_pairs):
        keep_N = pairs_N2[:, 1] > cut.count
        equal = np.flatnonzero(pairs_N2[:, 1] == cut.count)
        taken = equal if n < cut.length else equal[:quota]
        quota -= 0 if n < cut.length else len(taken)
        keep_N[taken] = True
        here = np.flatnonzero(keep_N)
        ids.append(here + at)
        keys.append(pairs_N2[here, 0])
        counts.append(pairs_N2[here, 1])
        at += len(pairs_N2)
    return np.concatenate(ids), np.concatenate(keys), np.concatenate(counts)
